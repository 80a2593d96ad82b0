"""Arguments are checked against the annotations of a member, before the servant sees them.

A wrong argument found here is told to the caller in his own terms; found later, it is an AttributeError out
of the middle of somebody else's program, or worse, stored.  The annotations are compiled once for each member
into a tree of checks.  Where an annotation says nothing that can be checked (Any, a Protocol, a name that
cannot be resolved), nothing is checked.

What a check costs is bounded: where the type of an item decides, as with list[int], a container is gone
through in C; where each item has to be looked at (list[Point]), the first `LOOKS_MAX` are.  And where the
types of all arguments decide, they are remembered, so that a plain call costs one comparison.

A proxy stands for an object of any class and is never asked for anything.  A caller who speaks a stock
serializer cannot send all types: his containers may be of another kind, and only the types that all
serializers have are checked.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import enum
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from objserver import errors
from objserver.codecs.exceptions import repr_of
from objserver.codecs.types import form_of, hints_of, is_proxy, takes_proxy

__all__ = ["Arguments"]

LOOKS_MAX = 10_000
"""Items of containers that one call has looked at one by one, in milliseconds.  Those beyond are let pass."""
ACCEPTED_MAX = 64
"""Combinations of types that are remembered for one member; what comes beyond is checked each time."""
_ACCEPTED_LENGTH_MAX = 8
"""... each of at most so many arguments."""

_WIDER: dict[Any, tuple[type, ...]] = {
    # PEP 484's numeric tower, and what was long typed as bytes
    float: (float, int),
    complex: (complex, float, int),
    bytes: (bytes, bytearray),
    memoryview: (bytes, bytearray),
}
_PORTABLE = frozenset({int, float, str, type(None)})
"""The types that every serializer keeps.  (For a bool, stock programs send what they like; Pyro5 a 0.0.)"""
_PLAIN = (str, int, float, bytes, list, tuple, dict, set, frozenset)
_CONTAINERS = ("builtins", "collections", "collections.abc")
_ATOMS = (str, bytes, bytearray, memoryview, range)
_ARRAYS = frozenset({list, tuple, set, frozenset, collections.deque})
_ONE_BY_ONE = frozenset({*_ARRAYS, dict})
"""What may be gone through without changing it, or asking anybody."""
_UNCHECKED = (
    collections.abc.Iterator,
    collections.abc.Awaitable,
    collections.abc.AsyncIterable,
    type,
)

_MODULES = re.compile(r"[\w<>]+[.]")

Fault = tuple[str, Any, "Check"]
"""The path to what is wrong, the value there, and what was wanted."""


class Looks:
    """How many looks the check of one call has left."""

    def __init__(self) -> None:
        self.left = LOOKS_MAX


class Check:
    """What one annotation asks for; `wanted` says it in words."""

    by_type = True
    """Whether values of the same type all pass, or all fail."""

    def __init__(self, wanted: str, types: Iterable[type] = ()) -> None:
        self.wanted = wanted
        self.types = frozenset(types)
        """Of these types all values pass."""

    def fault(self, value: Any, path: str, looks: Looks) -> Fault | None:
        """What is wrong with `value`, or None."""
        raise NotImplementedError


class _Instance(Check):
    """Of one of some classes, and perhaps a proxy that stands for one."""

    def __init__(self, wanted: str, classes: tuple[type, ...], proxy: bool) -> None:
        super().__init__(wanted, classes)
        self._classes = classes
        self._proxy = proxy

    def _is_one(self, value: Any) -> bool:
        return type(value) in self.types or (not is_proxy(value) and isinstance(value, self._classes))

    def fault(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if self._is_one(value) or (self._proxy and is_proxy(value)):
            return None
        return path, value, self


class _Callable(Check):
    def fault(self, value: Any, path: str, looks: Looks) -> Fault | None:
        return None if is_proxy(value) or callable(value) else (path, value, self)


class _Union(Check):
    def __init__(self, options: list[Check]) -> None:
        super().__init__(" or ".join(option.wanted for option in options))
        self._options = options
        self.types = frozenset().union(*(option.types for option in options))
        self.by_type = all(option.by_type for option in options)

    def fault(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if type(value) in self.types:
            return None
        faults = [option.fault(value, path, looks) for option in self._options]
        if None in faults:
            return None
        inside = [fault for fault in faults if fault is not None and fault[0] != path]
        return inside[0] if len(inside) == 1 else (path, value, self)


class _Literal(Check):
    by_type = False

    def __init__(self, choices: tuple[Any, ...]) -> None:
        super().__init__("one of " + ", ".join(map(repr_of, choices)))
        self._choices = choices

    def fault(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if any(type(choice) is type(value) and choice == value for choice in self._choices):
            return None
        return path, value, self


class _Inside(_Instance):
    """Of some classes, with something to check inside."""

    by_type = False

    def __init__(self, wanted: str, classes: tuple[type, ...], proxy: bool) -> None:
        super().__init__(wanted, classes, proxy)
        self._outer = frozenset(classes)
        self.types = frozenset()

    def _is_one(self, value: Any) -> bool:
        return type(value) in self._outer or super()._is_one(value)

    def fault(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if is_proxy(value):
            return None if self._proxy else (path, value, self)
        return self._inside(value, path, looks) if self._is_one(value) else (path, value, self)

    def _inside(self, value: Any, path: str, looks: Looks) -> Fault | None:
        raise NotImplementedError


class _Items(_Inside):
    """A container of items of one kind."""

    def __init__(self, wanted: str, classes: tuple[type, ...], proxy: bool, item: Check) -> None:
        super().__init__(wanted, classes, proxy)
        self._item = item

    def _inside(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if type(value) not in _ONE_BY_ONE:
            return None
        ordered = type(value) in (list, tuple, collections.deque)
        name = (lambda index: f"{path}[{index}]") if ordered else (lambda _: f"{path} (an item)")
        return _each(self._item, value, name, looks)


class _Tuple(_Inside):
    """One check for each place; None where anything may be."""

    def __init__(self, wanted: str, classes: tuple[type, ...], items: list[Check | None]) -> None:
        super().__init__(wanted, classes, proxy=False)
        self._items = items

    def _inside(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if len(value) != len(self._items):
            return path, value, self
        for index, (check, item) in enumerate(zip(self._items, value, strict=True)):
            fault = check.fault(item, f"{path}[{index}]", looks) if check is not None else None
            if fault is not None:
                return fault
        return None


class _Mapping(_Inside):
    def __init__(
        self, wanted: str, classes: tuple[type, ...], proxy: bool, key: Check | None, item: Check | None
    ) -> None:
        super().__init__(wanted, classes, proxy)
        self._key = key
        self._item = item

    def _inside(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if type(value) is not dict:
            return None
        fault = None
        if self._key is not None:
            fault = _each(self._key, value, lambda _: f"{path} (a key)", looks)
        if fault is None and self._item is not None:
            name = lambda key: f"{path}[{repr_of(key)[:50]}]"  # noqa: E731
            fault = _each(self._item, value.values(), name, looks, value)
        return fault


class _Fields(_Inside):
    """A value of a class with annotated fields.

    Their checks are made when they are first needed, for a class may mention itself.
    """

    def __init__(self, wanted: str, cls: type, compiler: _Compiler) -> None:
        super().__init__(wanted, (cls,), takes_proxy(cls))
        self._cls = cls
        self._compiler = compiler
        self._form = form_of(cls)
        self._checks: dict[str, Check] | None = None

    def _inside(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if self._checks is None:
            checks = {"." + name: self._compiler.compile(hint) for name, hint in hints_of(self._cls).items()}
            self._checks = {name: check for name, check in checks.items() if check is not None}
        assert self._form is not None
        for name, part in self._form.fields(value):
            check = self._checks.get(name)
            if check is not None and type(part) not in check.types:
                fault = check.fault(part, path + name, looks)
                if fault is not None:
                    return fault
        return None


class _TypedDict(_Inside):
    def __init__(self, wanted: str, cls: Any, compiler: _Compiler) -> None:
        super().__init__(wanted, (dict,), proxy=False)
        self._cls = cls
        self._compiler = compiler
        self._checks: dict[str, Check | None] | None = None

    def _inside(self, value: Any, path: str, looks: Looks) -> Fault | None:
        if self._checks is None:
            hints = typing.get_type_hints(self._cls)
            self._checks = {name: self._compiler.compile(hint) for name, hint in hints.items()}
        for name in self._cls.__required_keys__:
            if name not in value:
                return path, value, Check(f"{self.wanted}, for it lacks the key {name!r}")
        for name, check in self._checks.items():
            if check is not None and name in value:
                fault = check.fault(value[name], f"{path}[{name!r}]", looks)
                if fault is not None:
                    return fault
        return None


def _each(
    check: Check,
    items: Iterable[Any],
    path: Callable[[Any], str],
    looks: Looks,
    keys: Iterable[Any] | None = None,
) -> Fault | None:
    """The first of the items with a fault.  `path` makes one of the key, or the number, of an item."""
    if check.types.issuperset(map(type, items)):
        return None
    wrong = None
    if check.by_type:
        examples = {type(item): item for item in items}
        wrong = {kind for kind, item in examples.items() if check.fault(item, "", looks) is not None}
        if not wrong:
            return None
    for key, item in zip(itertools.count() if keys is None else keys, items, strict=False):
        if wrong is not None and type(item) not in wrong:
            continue
        looks.left -= 1
        if looks.left < 0:
            return None
        fault = check.fault(item, "", looks)
        if fault is not None:
            return path(key) + fault[0], fault[1], fault[2]
    return None


class _Compiler:
    """Makes checks of annotations; `portable` ones only of the types that every serializer keeps."""

    def __init__(self, portable: bool) -> None:
        self._portable = portable
        self._fields: dict[type, Check] = {}

    def compile(self, annotation: Any) -> Check | None:
        """The check of an annotation, or None if it asks for nothing that can be checked."""
        try:
            return self._compile(annotation)
        except Exception:
            return None  # whatever people write into annotations, it does not stop their class

    def _compile(self, annotation: Any) -> Check | None:
        if annotation is None or annotation is type(None):
            return _Instance("None", (type(None),), proxy=False)
        if annotation is typing.LiteralString:
            annotation = str
        origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is None:
            for attribute in ("__supertype__", "__bound__", "__value__"):  # NewType, TypeVar, `type X = ...`
                meant = getattr(annotation, attribute, None)
                if meant is not None and not isinstance(annotation, type):
                    return self.compile(meant)
            constraints = getattr(annotation, "__constraints__", ())
            if constraints and not isinstance(annotation, type):
                return self._union(constraints)
            return self._class(annotation, ()) if isinstance(annotation, type) else None
        if origin is typing.Annotated or origin in (typing.Required, typing.NotRequired, typing.Final):
            return self.compile(inside[0])
        if origin in (typing.Union, types.UnionType):
            return self._union(inside)
        if origin is tuple and not inside and isinstance(annotation, types.GenericAlias):
            return _Tuple("an empty tuple", (list, tuple) if self._portable else (tuple,), [])
        if origin is typing.Literal:
            return _Literal(inside)
        return self._class(origin, inside) if isinstance(origin, type) else None

    def _union(self, options: Iterable[Any]) -> Check | None:
        checks = [self.compile(option) for option in options]
        known = [check for check in checks if check is not None]
        return _Union(known) if len(known) == len(checks) else None

    def _class(self, cls: type, inside: tuple[Any, ...]) -> Check | None:
        if cls is object or getattr(cls, "_is_protocol", False) or issubclass(cls, _UNCHECKED):
            return None
        wanted = _wanted(cls, inside)
        if cls is collections.abc.Callable:  # type: ignore[comparison-overlap]
            return None if self._portable else _Callable(wanted)
        if typing.is_typeddict(cls):
            return _TypedDict(wanted, cls, self)
        container = (
            issubclass(cls, collections.abc.Iterable) and cls.__module__ in _CONTAINERS and cls not in _ATOMS
        )
        if self._portable and not container and cls not in _PORTABLE:
            return None
        isinstance(None, cls)  # raises for a class that cannot be asked, which is then not
        form = form_of(cls)
        if form is not None:
            # (A pydantic model has been checked by its constructor.)
            if issubclass(cls, enum.Enum) or hasattr(cls, "__pydantic_validator__") or not hints_of(cls):
                return _Instance(wanted, (cls,), takes_proxy(cls))
            if cls not in self._fields:
                self._fields[cls] = _Fields(wanted, cls, self)
            return self._fields[cls]
        classes = _WIDER.get(cls, (cls,))
        if cls is not bool:
            # A subclass of a plain type travels as that type.
            classes = (*classes, *(base for base in _PLAIN if base in cls.__mro__[1:]))
        proxy = takes_proxy(cls) or cls.__module__ == "collections.abc"
        if not container:
            return _Instance(wanted, classes, proxy)
        if self._portable and not issubclass(cls, collections.abc.Mapping):
            classes = (*classes, *_ARRAYS)
        if not inside or issubclass(cls, collections.Counter):
            return _Instance(wanted, classes, proxy)
        if issubclass(cls, collections.abc.Mapping):
            key = None if self._portable else self.compile(inside[0])  # JSON's keys are all strings
            item = self.compile(inside[1])
            if key is not None or item is not None:
                return _Mapping(wanted, classes, proxy, key, item)
        elif cls is tuple and inside[-1] is not ...:
            outer = (list, tuple) if self._portable else (tuple,)
            return _Tuple(wanted, outer, [self.compile(item) for item in inside])
        else:
            item = self.compile(inside[0])
            if item is not None:
                return _Items(wanted, classes, proxy, item)
        return _Instance(wanted, classes, proxy)


class Arguments:
    """The check of one member's arguments.

    `accepted` are combinations of types of positional arguments that are known to pass.  `usual` is the last
    of them: whoever finds it again, and no keywords, need not call this.
    """

    def __init__(self, owner: type, name: str, function: Callable[..., Any], bound: bool) -> None:
        """`bound`: the first parameter is the servant, or its class.  ValueError if it has no signature."""
        # What is wrapped may be called with other arguments than those that its wrapper takes.
        signature = inspect.signature(function, follow_wrapped=False)
        parameters = list(signature.parameters.values())[1 if bound else 0 :]
        hints = hints_of(function, owner)
        self.accepted: set[tuple[type, ...]] = set()
        self.usual: list[type] | None = None
        self._what = f"{owner.__name__}.{name}"
        self._hints: dict[str, Any] = {}
        self._positional: list[str] = []
        self._by_keyword: set[str] = set()
        self._rest: str | None = None
        self._others: str | None = None
        self._required: list[str] = []
        for parameter in parameters:
            name, kind = parameter.name, parameter.kind
            if name in hints:
                self._hints[name] = _with_none(hints[name]) if parameter.default is None else hints[name]
            if kind is parameter.VAR_POSITIONAL:
                self._rest = name
            elif kind is parameter.VAR_KEYWORD:
                self._others = name
            else:
                if kind is not parameter.KEYWORD_ONLY:
                    self._positional.append(name)
                if kind is not parameter.POSITIONAL_ONLY:
                    self._by_keyword.add(name)
                if parameter.default is parameter.empty:
                    self._required.append(name)
        self._checks = self._compiled(portable=False)
        self._portable_checks: dict[str, Check] | None = None

    def _compiled(self, portable: bool) -> dict[str, Check]:
        compiler = _Compiler(portable)
        checks = {name: compiler.compile(hint) for name, hint in self._hints.items()}
        return {name: check for name, check in checks.items() if check is not None}

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any], portable: bool) -> None:
        """ArgumentError if they are not what the member takes.

        `portable`: the caller speaks a stock serializer.
        """
        kinds = list(map(type, args))
        if not kwargs and tuple(kinds) in self.accepted:
            self.usual = kinds
            return
        self._fit(args, kwargs)
        checks = self._checks
        if portable:
            if self._portable_checks is None:
                self._portable_checks = self._compiled(portable=True)
            checks = self._portable_checks
        looks = Looks()
        by_type = True
        count = len(self._positional)
        for index, value in enumerate(args):
            name = self._positional[index] if index < count else str(self._rest)
            check = checks.get(name)
            if check is not None and type(value) not in check.types:
                by_type = by_type and check.by_type
                path = "" if index < count else f"[{index - count}]"
                self._raise_for(check.fault(value, path, looks), name)
        for name, value in kwargs.items():
            check = checks.get(name if name in self._by_keyword else str(self._others))
            if check is not None and type(value) not in check.types:
                self._raise_for(check.fault(value, "", looks), name)
        if kwargs or portable or not by_type or len(args) > _ACCEPTED_LENGTH_MAX:
            return
        if len(self.accepted) < ACCEPTED_MAX:
            self.accepted.add(tuple(kinds))
            self.usual = kinds

    def _fit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Whether there are neither too few nor too many."""
        positional = self._positional
        if len(args) > len(positional) and self._rest is None:
            takes = f"{len(positional)} argument{'s' * (len(positional) != 1)}"
            if self._by_keyword.difference(positional):
                takes += " by position"
            raise errors.ArgumentError(f"{self._what} takes {takes}, and got {len(args)}")
        for name in kwargs:
            if name not in self._by_keyword:
                if self._others is None:
                    hint = errors.did_you_mean(name, self._by_keyword)
                    raise errors.ArgumentError(f"{self._what} has no parameter {name[:100]!r}{hint}")
            elif name in positional[: len(args)]:
                raise errors.ArgumentError(f"{self._what}: parameter {name!r} was given twice")
        for name in self._required:
            if name not in kwargs and name not in positional[: len(args)]:
                raise errors.ArgumentError(f"{self._what}: parameter {name!r} is missing")

    def _raise_for(self, fault: Fault | None, name: str) -> None:
        if fault is None:
            return
        path, value, check = fault
        raise errors.ArgumentError(
            f"{self._what}: parameter {name!r}{path} is {_described(value)}, not {check.wanted}"
        )


def _with_none(hint: Any) -> Any:
    """`x: int = None` has always meant that None may be given."""
    with contextlib.suppress(TypeError):
        return typing.Optional[hint]  # noqa: UP045  (`|` does not know all that may stand here)
    return Any


def _described(value: Any) -> str:
    if value is None:
        return "None"
    kind = type(value)
    text = _a(kind.__name__)
    return f"{text} ({repr_of(value)[:60]})" if kind in (bool, bytes, complex, *_PORTABLE) else text


def _a(name: str) -> str:
    return f"an {name}" if name[:1] in "aeiouAEIOU" else f"a {name}"


def _wanted(cls: type, inside: tuple[Any, ...]) -> str:
    """`a list[Point]`, without the modules."""
    if not inside:
        return _a(cls.__name__)
    text = ", ".join("..." if item is ... else getattr(item, "__qualname__", str(item)) for item in inside)
    return _a(f"{cls.__name__}[{_MODULES.sub('', text)}]")
