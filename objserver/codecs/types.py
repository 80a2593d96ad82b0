"""The application's own classes as values: which ones may be made here, and of what.

A value of a class travels as the name of the class and its parts.  The name comes from the peer, so it only
ever selects from an allow-list; nothing is imported by name, and no code travels.  A class gets into the list
by `add`, because an exposed signature mentions it (`add_signatures`), or because the application has handed
us one of its instances to send.

A name is `module.qualname`.  The same class often has another module at the other side (`__main__` on one of
them), so a name that is not found is tried without its module, where exactly one class fits.

The parts of a value have been decoded before, and may be anything.  What can be checked without the class's
own code is checked here: names of fields, kinds, and that no proxy is where plain data belongs, since a
constructor which goes through it would make network calls.  Then the constructor decides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import inspect
import pathlib
import sys
import threading
import types
import typing
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from objserver import errors

__all__ = ["Form", "Types", "full_name", "hints_of", "takes_proxy"]

LEARNED_MAX = 10_000
"""Classes known only because an instance was sent; the oldest is forgotten, so that a program which makes
classes as it goes does not fill its memory."""
FLAG_VALUES_MAX = 10_000
"""Combinations of one Flag: Python keeps each for ever, and a peer could send all of them."""
_QUALNAME_PARTS = 5
"""How deep in other classes and functions a class is looked for without its module."""

_MISSING: Any = object()
_DATA = frozenset(
    {
        *(bool, int, float, complex, str, bytes, bytearray, memoryview, type(None), range, slice),
        *(list, tuple, set, frozenset, dict),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
        *(decimal.Decimal, fractions.Fraction, uuid.UUID, pathlib.Path, pathlib.PurePath),
    }
)


def full_name(cls: type) -> str:
    """The name of a class on the wire."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_proxy(value: object) -> bool:
    """Whether it is one of our proxies; nothing is asked of the value itself."""
    return getattr(type(value), "_objserver_is_proxy", False) is True


def takes_proxy(annotation: Any) -> bool:
    """Whether a proxy may stand where `annotation` does: for a class that is not plain data, or anything."""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        if annotation in _DATA or issubclass(annotation, (enum.Enum, tuple, dict)):
            return False
        return annotation.__module__ not in ("collections", "collections.abc")
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return takes_proxy(annotation.__origin__)
    if origin in (typing.Union, types.UnionType):
        return any(map(takes_proxy, typing.get_args(annotation)))
    if origin is typing.Literal or annotation is None:
        return False
    supertype = getattr(annotation, "__supertype__", None)
    if supertype is not None:
        return takes_proxy(supertype)
    return takes_proxy(origin) if isinstance(origin, type) else True


def hints_of(thing: Any, own: type | None = None) -> dict[str, Any]:
    """The annotations of a function or class, resolved; those that cannot be are left out."""
    names = {own.__name__: own} if own is not None else None
    try:
        return typing.get_type_hints(thing, localns=names, include_extras=True)
    except Exception:
        pass
    found: dict[str, Any] = {}
    # A base class's annotations come first, and mean what they mean in its module.
    for place in reversed(thing.__mro__) if isinstance(thing, type) else (thing,):
        if isinstance(thing, type):
            scope = vars(sys.modules.get(place.__module__, typing))
            names = {place.__name__: place}
            annotations = inspect.get_annotations(place)
        else:
            scope, annotations = getattr(thing, "__globals__", {}), getattr(thing, "__annotations__", {})
        for name, annotation in annotations.items():

            def one() -> None: ...

            one.__annotations__ = {name: annotation}
            try:
                found |= typing.get_type_hints(one, scope, names, include_extras=True)
            except Exception:
                found.pop(name, None)
    return found


class Form:
    """How the values of one class are taken apart, and made again of what a peer sent."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.name = full_name(cls)

    def parts(self, value: Any) -> list[Any]:
        """What travels after the name of the class."""
        raise NotImplementedError

    def make(self, parts: list[Any]) -> Any:
        """The value; SerializeError if these are not its parts."""
        raise NotImplementedError

    def fields(self, value: Any) -> Iterable[tuple[str, Any]]:
        """What is inside a value, with the ending of a path that leads to it."""
        return ()

    def lost(self, value: Any) -> str:
        """What of a value does not travel, or nothing."""
        return ""

    def _refuse(self, what: str) -> errors.SerializeError:
        return errors.SerializeError(f"{self.name}: {what}")


class _Member(Form):
    """Of an Enum: by its name, because values change more often."""

    def parts(self, value: Any) -> list[Any]:
        return [value._name_]

    def make(self, parts: list[Any]) -> Any:
        name = parts[0] if len(parts) == 1 else None
        member = self.cls.__members__.get(name) if type(name) is str else None  # type: ignore[attr-defined]
        if member is None:
            raise self._refuse(f"no member of this enum is called {str(name)[:100]!r} here")
        return member


class _FlagValue(Form):
    """Of a Flag: by its number, since combinations have no name."""

    def parts(self, value: Any) -> list[Any]:
        return [value._value_]

    def make(self, parts: list[Any]) -> Any:
        cls: Any = self.cls
        value = parts[0] if len(parts) == 1 else None
        if type(value) is not int:
            raise self._refuse("the value of a flag is an int")
        if value not in cls._value2member_map_ and len(cls._value2member_map_) >= FLAG_VALUES_MAX:
            raise self._refuse(f"more than {FLAG_VALUES_MAX} combinations of this flag are in use")
        return cls(value)


class _NamedTuple(Form):
    def parts(self, value: Any) -> list[Any]:
        return list(value)

    def make(self, parts: list[Any]) -> Any:
        fields = self.cls._fields  # type: ignore[attr-defined]
        if len(parts) != len(fields):
            raise self._refuse(f"it has {len(fields)} fields here, {len(parts)} came")
        return tuple.__new__(self.cls, parts)

    def fields(self, value: Any) -> Iterable[tuple[str, Any]]:
        return zip(("." + name for name in self.cls._fields), value, strict=False)  # type: ignore[attr-defined]


class _Record(Form):
    """Of a dataclass and its like: each field by name, the constructor makes it again."""

    def __init__(self, cls: type, arguments: dict[str, str], others: Iterable[str] = ()) -> None:
        """`arguments` are the fields that the constructor takes, with their names there; `others` are set."""
        super().__init__(cls)
        self._arguments = arguments
        self._names = (*arguments, *others)
        self._no_proxy: frozenset[str] | None = None

    def _values(self, value: Any) -> dict[str, Any]:
        found = [(name, getattr(value, name, _MISSING)) for name in self._names]
        return {name: part for name, part in found if part is not _MISSING}

    def parts(self, value: Any) -> list[Any]:
        return [part for pair in self._values(value).items() for part in pair]

    def make(self, parts: list[Any]) -> Any:
        names, values = parts[::2], parts[1::2]
        if len(names) != len(values) or any(type(name) is not str for name in names):
            raise self._refuse("its fields came in an unknown form")
        fields = dict(zip(names, values, strict=True))
        self._check(fields)
        try:
            return self._made(fields)
        except errors.SerializeError:
            raise
        except Exception as problem:
            what = f"its constructor refused it: {type(problem).__name__}: {problem}"
            raise self._refuse(what) from problem

    def _check(self, fields: dict[str, Any]) -> None:
        for name in fields:
            if name not in self._names:
                raise self._refuse(f"it has no field {name[:100]!r} here; the two sides differ in the class")
        for name, value in fields.items():
            if is_proxy(value):
                if self._no_proxy is None:
                    hints = hints_of(self.cls)
                    self._no_proxy = frozenset(name for name in hints if not takes_proxy(hints[name]))
                if name in self._no_proxy:
                    raise self._refuse(f"its field {name!r} is plain data, a proxy came")

    def _made(self, fields: dict[str, Any]) -> Any:
        arguments = self._arguments
        value = self.cls(**{arguments[name]: part for name, part in fields.items() if name in arguments})
        if len(arguments) < len(self._names):
            for name, part in fields.items():
                if name not in arguments:
                    object.__setattr__(value, name, part)
        return value

    def fields(self, value: Any) -> Iterable[tuple[str, Any]]:
        return [("." + name, part) for name, part in self._values(value).items()]

    def lost(self, value: Any) -> str:
        extra = getattr(value, "__dict__", {}).keys() - set(self._names)
        return f"its attribute {min(extra)!r}, which is no field" if extra else ""


class _Model(_Record):
    """Of pydantic's models, which go through whatever can be gone through."""

    def _values(self, value: Any) -> dict[str, Any]:
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}

    def _check(self, fields: dict[str, Any]) -> None:
        level: list[Any] = [fields]
        while level:
            if any(map(is_proxy, level)):
                raise self._refuse("a proxy came inside it, which pydantic would go through")
            inner: list[Any] = []
            for item in level:
                if type(item) is dict:
                    inner += item
                    inner += item.values()
                elif type(item) in (list, tuple, set, frozenset):
                    inner += item
            level = inner

    def _made(self, fields: dict[str, Any]) -> Any:
        cls: Any = self.cls
        if getattr(cls, "__pydantic_root_model__", False):
            return cls.model_validate(fields["root"])
        return cls.model_validate(fields, by_alias=False, by_name=True)

    def lost(self, value: Any) -> str:
        return "its private attributes" if value.__pydantic_private__ else ""


def form_of(cls: type) -> Form | None:
    """How values of `cls` travel, or None if they do not, as far as we know."""
    if issubclass(cls, BaseException):
        return None
    if issubclass(cls, enum.Enum):
        return _FlagValue(cls) if issubclass(cls, enum.Flag) else _Member(cls)
    if issubclass(cls, tuple):
        named = getattr(cls, "_fields", None)
        return _NamedTuple(cls) if type(named) is tuple else None
    if dataclasses.is_dataclass(cls):
        fields = dataclasses.fields(cls)
        arguments = {field.name: field.name for field in fields if field.init}
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        if any(
            parameter.name not in arguments
            and parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            for parameter in parameters
        ):
            return None  # its constructor asks for what is no field: an InitVar, for one
        return _Record(cls, arguments, [field.name for field in fields if not field.init])
    # The libraries below are never imported by us: who has made a class with one has imported it.
    if "attr" in sys.modules and type(getattr(cls, "__attrs_attrs__", None)) is not type(None):
        attributes: Any = cls.__attrs_attrs__  # type: ignore[attr-defined]
        arguments = {a.name: getattr(a, "alias", None) or a.name.lstrip("_") for a in attributes if a.init}
        return _Record(cls, arguments, [a.name for a in attributes if not a.init])
    struct: Any = getattr(sys.modules.get("msgspec"), "Struct", None)
    if struct is not None and issubclass(cls, struct):
        return _Record(cls, {name: name for name in _attribute(cls, "__struct_fields__")})
    model: Any = getattr(sys.modules.get("pydantic.main"), "BaseModel", None)
    if model is not None and issubclass(cls, model):
        return _Model(cls, {name: name for name in _attribute(cls, "model_fields")})
    return None


def _attribute(cls: Any, name: str) -> Any:
    return getattr(cls, name)


class Types:
    """The classes of which values may be made.  Every method may be called from any thread."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._lock = threading.Lock()
        self._forms: dict[type, Form | None] = {}
        """... None for exceptions, which `exceptions` takes apart."""
        self._learned: dict[type, None] = {}
        self._by_name: dict[str, type] = {}
        self._by_qualname: dict[str, list[type]] = {}
        self._walked: set[type] = set()
        self._signed: set[type] = set()
        for cls in classes:
            self.add(cls)

    def __repr__(self) -> str:
        return f"<Types allowed={len(self._forms) - len(self._learned)} learned={len(self._learned)}>"

    def add(self, cls: type) -> None:
        """Allow a class, and the classes that its fields mention; TypeError if its values cannot travel."""
        if not isinstance(cls, type) or (form_of(cls) is None and not issubclass(cls, BaseException)):
            raise TypeError(
                f"{cls!r} cannot be among the types: give classes of values, made with dataclass, Enum,"
                " NamedTuple, attrs, msgspec or pydantic (InitVar excepted), or exceptions"
            )
        self._walk([cls])

    def add_signatures(self, cls: type) -> None:
        """Allow what the annotations of a class mention: of its attributes, and of its exposed members.

        Where nothing is marked as exposed, as in a Protocol, all public members count.
        """
        if cls in self._signed:
            return
        self._signed.add(cls)
        self._walk(hints_of(cls).values())
        members: list[tuple[Any, bool]] = []
        for name in dir(cls):
            member = inspect.getattr_static(cls, name)
            kind = type(member)  # other attributes may be anything, and are not asked what they are
            functions = [member]
            if issubclass(kind, property):
                functions = [member.fget, member.fset]
            elif issubclass(kind, (staticmethod, classmethod)):
                functions = [member.__func__]
            for function in functions:
                if type(function) is types.FunctionType:
                    exposed = getattr(function, "_pyroExposed", False)
                    if exposed or not name.startswith("_"):
                        members.append((function, exposed))
        marked = any(exposed for _, exposed in members)
        for function, exposed in members:
            if exposed or not marked:
                self._walk(hints_of(inspect.unwrap(function), cls).values())

    def allows(self, cls: type) -> bool:
        """Whether a value of `cls` can be made again after a restart, when nothing has been learned."""
        return cls in self._forms and cls not in self._learned and self._by_name[full_name(cls)] is cls

    def form(self, cls: type) -> Form | None:
        """How to take apart an instance of `cls`, which the application sends: from now on it is known."""
        try:
            return self._forms[cls]
        except KeyError:
            form = form_of(cls)
            if form is not None or issubclass(cls, BaseException):
                self._remember(cls, form, learned=True)
            return form

    def find(self, name: str) -> type | None:
        """The class that a peer means by `name`."""
        cls = self._by_name.get(name)
        if cls is not None:
            return cls
        parts = name.split(".")[-_QUALNAME_PARTS:]
        for first in range(len(parts)):
            same = self._by_qualname.get(".".join(parts[first:]))
            if same:
                return same[0] if len(same) == 1 else None
        return None

    def make(self, content: list[Any]) -> Any:
        """The value of which a peer sent the class's name and the parts."""
        name = content[0] if content else None
        if type(name) is not str:
            raise errors.SerializeError("a value of a class begins with the name of the class")
        cls = self.find(name)
        form = None if cls is None else self._forms.get(cls)
        if form is None:
            name = name[:200]
            short = name.rpartition(".")[2]
            raise errors.SerializeError(
                f"a {name} came, and the class is not known here: Proxy(uri, types=[{short}]), connect(uri,"
                f" cls), ObjectServer(types=[{short}]) or an annotation of an exposed member make it known"
            )
        return form.make(content[1:])

    def _remember(self, cls: type, form: Form | None, *, learned: bool) -> None:
        name = full_name(cls)
        with self._lock:
            if learned and cls not in self._forms:
                self._learned[cls] = None
                if len(self._learned) > LEARNED_MAX:
                    oldest = next(iter(self._learned))
                    del self._learned[oldest], self._forms[oldest]
                    self._unname(oldest)
            elif not learned:
                self._learned.pop(cls, None)
            self._forms[cls] = form
            before = self._by_name.get(name)
            if before is cls or (before is not None and learned and before not in self._learned):
                return  # what was allowed is not displaced by what was only sent
            if before is not None:
                self._unname(before)
            self._by_name[name] = cls
            self._by_qualname[cls.__qualname__] = [*self._by_qualname.get(cls.__qualname__, ()), cls]

    def _unname(self, cls: type) -> None:
        if self._by_name.get(full_name(cls)) is cls:
            del self._by_name[full_name(cls)]
            same = [other for other in self._by_qualname[cls.__qualname__] if other is not cls]
            self._by_qualname[cls.__qualname__] = same
            if not same:
                del self._by_qualname[cls.__qualname__]

    def _walk(self, annotations: Iterable[Any]) -> None:
        """Allow every class in the annotations, and in the fields of those classes."""
        waiting = list(annotations)
        while waiting:
            annotation = waiting.pop()
            if not isinstance(annotation, type) or typing.get_origin(annotation) is not None:
                waiting += _inside(annotation)
            elif annotation not in self._walked and annotation.__module__ != "builtins":
                self._walked.add(annotation)
                form = form_of(annotation)
                if form is not None or issubclass(annotation, BaseException):
                    self._remember(annotation, form, learned=False)
                if form is not None or typing.is_typeddict(annotation):
                    waiting += hints_of(annotation).values()


def _inside(annotation: Any) -> Iterator[Any]:
    """What a generic, a union, a NewType and the like are made of."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield annotation.__origin__
    elif origin is typing.Literal:
        yield from map(type, typing.get_args(annotation))
    else:
        if isinstance(origin, type):
            yield origin
        for inner in typing.get_args(annotation):
            if isinstance(inner, list):  # the parameters of a Callable
                yield from inner
            else:
                yield inner
    for attribute in ("__supertype__", "__bound__", "__value__"):
        inner = None
        with contextlib.suppress(Exception):  # what `type X = ...` stands for is looked up only now
            inner = getattr(annotation, attribute, None)
        if inner is not None:
            yield inner
    yield from getattr(annotation, "__constraints__", ())
