"""Values of classes that this program does not have, to be shown.

A program says which classes it knows, and refuses others.  A shell knows none, and only shows what came: the
name of the class and its parts, which is what travels.  Nothing is made of them but text.

What kind of class it was is not said, so it is guessed from the parts: pairs of name and value are fields,
one text is the name of an Enum's member, and anything else is what a named tuple or a Flag is made of.
"""

from __future__ import annotations

from typing import Any

from objserver import errors
from objserver.cli import visible
from objserver.codecs.types import Types

__all__ = ["ShowingTypes", "Unknown"]


class Unknown:
    """The name of a class, without its module, and the parts of one of its values."""

    def __init__(self, name: str, parts: list[Any]) -> None:
        self.name = name
        self.parts = parts

    @property
    def fields(self) -> dict[str, Any] | None:
        """By name, if the parts look like that."""
        names = self.parts[::2]
        if len(self.parts) % 2 or not all(type(name) is str and name.isidentifier() for name in names):
            return None
        return dict(zip(names, self.parts[1::2], strict=True))

    @property
    def member(self) -> str | None:
        """The name of an Enum's member, if the parts look like that."""
        part = self.parts[0] if len(self.parts) == 1 else None
        return part if type(part) is str and part.isidentifier() else None

    def __repr__(self) -> str:
        name, fields = visible(self.name), self.fields
        if self.member is not None:
            return f"{name}.{self.member}"
        if fields is not None:
            return f"{name}({', '.join(f'{field}={value!r}' for field, value in fields.items())})"
        return f"{name}({', '.join(map(repr, self.parts))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unknown) and (other.name, other.parts) == (self.name, self.parts)

    def __hash__(self) -> int:
        return hash(repr(self))


class ShowingTypes(Types):
    """Knows every class, if only by name."""

    def make(self, content: list[Any]) -> Any:
        """An `Unknown`, whatever the peer sent."""
        name = content[0] if content else None
        if type(name) is not str:
            raise errors.SerializeError("a value of a class begins with the name of the class")
        return Unknown(name.rpartition(".")[2][:200], content[1:])
