"""Descriptions of classes: what annotations become, and what is said where they mean nothing elsewhere."""

# ruff: noqa: F401  (what is imported here is mentioned in annotations that are texts)

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import json
import pathlib
import typing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Optional, TypeVar

import pytest

from objserver import expose, oneway, readonly
from objserver.adapter import describe

if TYPE_CHECKING:
    from fractions import Fraction

    import never.imported
    from never.imported import Strange as Odd

T = TypeVar("T")
UserId = typing.NewType("UserId", int)
HERE = __name__


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Order:
    item: str

    class Line:
        pass


class Range(NamedTuple):
    first: int


class Box(typing.Generic[T]):
    pass


def returns(annotation: Any) -> Any:
    """How a result of this type is described."""

    def method(self: object) -> Any: ...

    method.__annotations__ = {"return": annotation}
    cls = type("Servant", (), {"method": method, "__module__": HERE})
    return describe(expose(cls))["members"]["method"]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("int", "int"),
        ("None", "None"),
        (None, "None"),
        ("Any", "typing.Any"),
        ("list[Order]", f"list[{HERE}.Order]"),
        ("Order.Line", f"{HERE}.Order.Line"),
        ("dict[str, tuple[Range, ...]]", f"dict[str, tuple[{HERE}.Range, ...]]"),
        ("Optional[int]", "int | None"),
        ("Optional['Colour']", f"{HERE}.Colour | None"),
        (list["Colour"], f"list[{HERE}.Colour]"),
        (Optional["list[Order]"], f"list[{HERE}.Order] | None"),
        ("typing.List[int]", "list[int]"),
        ("typing.Callable[[int], str]", "collections.abc.Callable[[int], str]"),
        ("typing.Callable[..., str]", "collections.abc.Callable[..., str]"),
        ("Literal['a', 1, Colour.RED]", f"typing.Literal['a', 1, {HERE}.Colour.RED]"),
        ("typing.Annotated[int, 'metres']", "int"),
        ("typing.Self", "typing.Self"),
        ("UserId", f"{HERE}.UserId"),
        ("datetime.datetime", "datetime.datetime"),
        ("pathlib.Path", "pathlib.Path"),
        ("tuple[()]", "tuple[()]"),
        # What type checkers want to be written out.
        ("list", "list[typing.Any]"),
        ("dict", "dict[typing.Any, typing.Any]"),
        ("tuple", "tuple[typing.Any, ...]"),
        ("collections.OrderedDict", "collections.OrderedDict[typing.Any, typing.Any]"),
        ("typing.Callable", "collections.abc.Callable[..., typing.Any]"),
        ("collections.deque", "collections.deque[typing.Any]"),
        ("Box", f"{HERE}.Box[typing.Any]"),
        ("Box[int]", f"{HERE}.Box[int]"),
        # What is imported for type checkers only.
        ("Fraction", "fractions.Fraction"),
        ("list[Odd] | None", "list[never.imported.Strange] | None"),
        ("Odd[int]", "never.imported.Strange[int]"),
        # What has no name elsewhere.
        ("T", "typing.Any"),
        ("list[T]", "list[typing.Any]"),
    ],
)
def test_a_type_is_described_by_names_that_others_can_import(annotation: Any, text: str) -> None:
    described = returns(annotation)
    assert described["returns"]["text"] == text
    assert described["unresolved"] == []
    for module, name in described["returns"]["names"]:
        assert f"{module}.{name}" in text


def test_what_means_nothing_is_any_and_is_named() -> None:
    described = returns("list[Nonsense]")
    assert described["returns"]["text"] == "typing.Any"
    assert described["unresolved"] == ["list[Nonsense]"]


def test_classes_that_nobody_else_can_import_are_any() -> None:
    class Local:
        pass

    main = type("InMain", (), {"__module__": "__main__"})
    assert returns(Local)["returns"]["text"] == "typing.Any"
    assert returns(list[main])["returns"]["text"] == "list[typing.Any]"


def test_nothing_said_is_none() -> None:
    @expose
    class Silent:
        def method(self, x, *y): ...  # type: ignore[no-untyped-def]

    member = describe(Silent)["members"]["method"]
    assert member["returns"] is None
    assert [parameter["type"] for parameter in member["parameters"]] == [None, None]


@expose
class Everything:
    """All kinds of members."""

    def method(
        self, a: int, /, b: str = "x", *c: int, d: Colour = Colour.RED, e: tuple[int, ...] = (1,), **f: Any
    ) -> int:
        """Does something.

        Really.
        """
        return a

    @readonly
    def look(self) -> int:
        return 0

    @oneway
    def tell(self, limit: float = float("inf"), kinds: frozenset[str] = frozenset("ab")) -> None: ...

    async def later(self) -> int:
        return 0

    def items(self) -> typing.Iterator[Order]:
        yield Order("tea")

    async def feed(self) -> typing.AsyncIterator[int]:
        yield 1

    def numbers(self) -> typing.Iterable[int]:
        yield 1

    def handed_on(self) -> typing.Generator[int, None, str]:
        return (yield from ())  # type: ignore[return-value]

    def untyped(self):  # type: ignore[no-untyped-def]
        yield 1

    def many(self) -> typing.Iterable[int]:
        return [1]

    @staticmethod
    def static(x: int) -> int:
        return x

    @classmethod
    def of_class(cls, x: int) -> int:
        return x

    @property
    def fixed(self) -> int:
        """What it is."""
        return 0

    @property
    def free(self):  # type: ignore[no-untyped-def]
        return 0

    @free.setter
    def free(self, value: int) -> None: ...

    def close(self) -> None: ...

    def _private(self) -> None: ...


MEMBERS = describe(Everything)["members"]


def test_parameters() -> None:
    assert [tuple(parameter.values())[:2] for parameter in MEMBERS["method"]["parameters"]] == [
        ("a", "positional_only"),
        ("b", "positional_or_keyword"),
        ("c", "var_positional"),
        ("d", "keyword_only"),
        ("e", "keyword_only"),
        ("f", "var_keyword"),
    ]
    defaults = [parameter["default"] for parameter in MEMBERS["method"]["parameters"]]
    assert defaults == [None, "'x'", None, "...", "(1,)", None]
    assert [parameter["default"] for parameter in MEMBERS["tell"]["parameters"]] == ["...", "..."]
    assert [parameter["name"] for parameter in MEMBERS["static"]["parameters"]] == ["x"]
    assert [parameter["name"] for parameter in MEMBERS["of_class"]["parameters"]] == ["x"]


def test_docstrings() -> None:
    assert describe(Everything)["doc"] == "All kinds of members."
    assert MEMBERS["method"]["doc"] == "Does something.\n\nReally."
    assert MEMBERS["fixed"]["doc"] == "What it is."

    @expose
    @dataclasses.dataclass
    class Undocumented:
        x: int = 0

        def method(self) -> None: ...

    assert describe(Undocumented)["doc"] == ""


def test_kinds_of_members() -> None:
    def having(mark: str) -> set[str]:
        return {name for name, member in MEMBERS.items() if member.get(mark) is True}

    assert {name for name, member in MEMBERS.items() if member["kind"] == "attribute"} == {"fixed", "free"}
    assert having("readonly") == {"look", "fixed"}
    assert having("oneway") == {"tell"}
    assert having("async") == {"later"}
    assert having("generator") == {"items", "feed", "numbers", "handed_on", "untyped"}
    assert not {"close", "_private"} & set(MEMBERS)


def test_of_a_stream_the_type_of_its_items_is_told() -> None:
    assert MEMBERS["items"]["returns"]["text"] == f"{HERE}.Order"
    assert MEMBERS["numbers"]["returns"]["text"] == "int"
    assert MEMBERS["feed"]["returns"]["text"] == "int"
    assert MEMBERS["handed_on"]["returns"]["text"] == "int"
    assert MEMBERS["untyped"]["returns"] is None
    assert MEMBERS["many"]["returns"]["text"] == "collections.abc.Iterable[int]"
    assert MEMBERS["free"]["returns"]["text"] == "int"


def test_a_description_is_plain_data() -> None:
    described = describe(Everything)
    assert json.loads(json.dumps(described)) == described
