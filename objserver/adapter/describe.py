"""What a class offers, as plain data: signatures, types as text, docstrings.

A client that does not have the class can show its members with this, and write typed stubs of them.  So
nothing here may be more than data that every serializer carries, and a type is a text plus the names in it
that have to be imported: `{"text": "list[bank.Order]", "names": [["bank", "Order"]]}`.  What cannot be
named from outside (a local class, a class of a server's `__main__`, a type variable) is described as `Any`.

Annotations are often strings, and names in them imported for type checkers only.  Those are found in the
source of the module, and described without being imported.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import math
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable
from typing import Any

from objserver.adapter.exposure import _functions
from objserver.adapter.skeleton import Skeleton

__all__ = ["describe"]

_STREAMS = (abc.Iterator, abc.Generator, abc.AsyncIterator, abc.AsyncGenerator)
"""A result of one of these types travels as an item stream."""
_PARAMETERS = {
    "builtins.dict": "[typing.Any, typing.Any]",
    "builtins.tuple": "[typing.Any, ...]",
    "collections.ChainMap": "[typing.Any, typing.Any]",
    "collections.OrderedDict": "[typing.Any, typing.Any]",
    "collections.defaultdict": "[typing.Any, typing.Any]",
    "collections.abc.AsyncGenerator": "[typing.Any, typing.Any]",
    "collections.abc.Callable": "[..., typing.Any]",
    "collections.abc.Coroutine": "[typing.Any, typing.Any, typing.Any]",
    "collections.abc.Generator": "[typing.Any, typing.Any, typing.Any]",
    "collections.abc.ItemsView": "[typing.Any, typing.Any]",
    "collections.abc.Mapping": "[typing.Any, typing.Any]",
    "collections.abc.MutableMapping": "[typing.Any, typing.Any]",
}
"""Generic classes of the standard library with other than one parameter, which `list` has."""


def describe(cls: type) -> dict[str, Any]:
    """`name`, `module` and `doc` of a class, and its exposed `members` by name.  Treat it as read-only.

    A member has `kind` ("method" or "attribute"), `doc`, `returns` (the type of its value; of an item, if
    `generator`), `readonly`, and `unresolved`: annotations that could not be understood.  A method has
    `oneway`, `async`, `generator` and `parameters`, each with `name`, `kind` (as of inspect.Parameter, in
    lower case), `type` and `default`: its source text if it is a literal, else "...".  None means: none.
    """
    return _described(cls)


@functools.lru_cache(maxsize=1024)
def _described(cls: Any) -> dict[str, Any]:
    skeleton = Skeleton.of(cls)
    names = set(skeleton.methods) | set(skeleton.getters) | set(skeleton.setters)
    doc = cls.__doc__ or ""
    return {
        "name": cls.__name__,
        "module": cls.__module__,
        # A dataclass without a docstring is given its constructor's signature, which is not offered.
        "doc": "" if doc.startswith(f"{cls.__name__}(") else inspect.cleandoc(doc),
        "members": {name: _member(skeleton, name) for name in sorted(names)},
    }


def _member(skeleton: Skeleton, name: str) -> dict[str, Any]:
    raw = inspect.getattr_static(skeleton.cls, name)
    function = _functions(raw)[0]
    types_of = _Types(function, skeleton.cls)
    described: dict[str, Any] = {"doc": inspect.cleandoc(function.__doc__ or "")}
    if isinstance(raw, property):
        value_type = types_of.returned() if raw.fget is not None else None
        if value_type is None and raw.fset is not None:
            setter = _Types(raw.fset, skeleton.cls)
            value_type = next((p["type"] for p in _parameters(setter, skip=1)), None)
        described.update(kind="attribute", returns=value_type, readonly=name not in skeleton.setters)
    else:
        member = skeleton.methods[name]
        parameters = _parameters(types_of, skip=0 if isinstance(raw, staticmethod) else 1)
        generator, value_type = types_of.items_or_value()
        described.update(
            kind="method",
            parameters=parameters,
            returns=value_type,
            readonly=member.readonly,
            oneway=member.oneway,
            generator=generator,
        )
        described["async"] = member.asynchronous
    described["unresolved"] = types_of.unresolved
    return described


def _parameters(types_of: _Types, skip: int) -> list[dict[str, Any]]:
    parameters = [*inspect.signature(types_of.function).parameters.values()]
    if parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        del parameters[:skip]
    return [
        {
            "name": parameter.name,
            "kind": parameter.kind.name.lower(),
            "type": types_of.type_of(parameter.annotation),
            "default": None if parameter.default is parameter.empty else _literal(parameter.default) or "...",
        }
        for parameter in parameters
    ]


def _literal(value: object) -> str | None:
    """The source text of a literal; sets have none, since their order is another in every process."""
    if type(value) in (bool, int, str, bytes, complex, types.NoneType):
        return repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else None
    items: Iterable[object] = ()
    if type(value) in (tuple, list):
        items = typing.cast(Iterable[object], value)
    elif type(value) is dict:
        items = (part for pair in value.items() for part in pair)
    else:
        return None
    return repr(value) if all(_literal(item) for item in items) else None


class _Types:
    """The annotations of one function, understood."""

    def __init__(self, function: Callable[..., Any], cls: type) -> None:
        self.function = function
        self.unresolved: list[str] = []
        self._written_in: Any = inspect.unwrap(function)
        self._names = _Names(self._written_in, cls)

    def returned(self) -> dict[str, Any] | None:
        return self.type_of(inspect.signature(self.function).return_annotation)

    def items_or_value(self) -> tuple[bool, dict[str, Any] | None]:
        """Whether the result is a stream, and the type of its items or of itself."""
        annotation = self._evaluated(inspect.signature(self.function).return_annotation)
        origin = typing.get_origin(annotation) or annotation
        makes = inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function)
        if not makes and origin not in _STREAMS:
            return False, self.type_of(annotation)
        items = typing.get_args(annotation)
        return True, self.type_of(items[0]) if items else None

    def type_of(self, annotation: Any) -> dict[str, Any] | None:
        if annotation is inspect.Parameter.empty:
            return None
        names = _Mentions(self._evaluated)
        text = _text(self._evaluated(annotation), names)
        return {"text": text, "names": [list(name) for name in sorted(names)]}

    def _evaluated(self, annotation: Any) -> Any:
        if isinstance(annotation, typing.ForwardRef):
            annotation = annotation.__forward_arg__
        if not isinstance(annotation, str):
            return annotation
        try:
            # What the author of the class wrote, as typing.get_type_hints() evaluates it, but one by one.
            return eval(annotation, getattr(self._written_in, "__globals__", {}), self._names)
        except Exception:
            self.unresolved.append(annotation)
            return Any


class _Mentions(set[tuple[str, str]]):
    """What one annotation mentions, as (module, name); `evaluate` is for strings inside of it."""

    def __init__(self, evaluate: Callable[[Any], Any]) -> None:
        super().__init__()
        self.evaluate = evaluate


class _Names(dict[str, Any]):
    """What the annotations of a function may mention besides the globals of its module."""

    def __init__(self, function: Callable[..., Any], cls: type) -> None:
        super().__init__({p.__name__: Any for p in getattr(function, "__type_params__", ())})
        self._globals = getattr(function, "__globals__", {})
        self._cls = cls

    def __missing__(self, name: str) -> Any:
        if name in self._globals or hasattr(builtins, name):
            raise KeyError(name)
        if name in vars(self._cls):
            return vars(self._cls)[name]
        module, original = _imports(self._globals.get("__name__", ""))[name]
        loaded = sys.modules.get(module)
        if original is None:
            return loaded if loaded is not None else _Unimported(module, "")
        return getattr(loaded, original, None) or _Unimported(module, original)


class _Unimported:
    """Stands for a class, or module, that this process has not imported, in what is evaluated."""

    def __init__(self, module: str, qualname: str) -> None:
        self.module = module
        self.qualname = qualname

    def __getattr__(self, name: str) -> _Unimported:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unimported(self.module, f"{self.qualname}.{name}".lstrip("."))

    def __getitem__(self, arguments: Any) -> Any:
        return types.GenericAlias(typing.cast(type, self), arguments)

    def __or__(self, other: Any) -> Any:
        return typing.Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        return typing.Union[other, self]  # noqa: UP007

    def __call__(self) -> None:
        """typing wants the members of a union to be callable."""


@functools.lru_cache(maxsize=256)
def _imports(module_name: str) -> dict[str, tuple[str, str | None]]:
    """Local name -> (module, name in it), of everything that the source of a module imports, anywhere."""
    module = sys.modules.get(module_name)
    try:
        tree = ast.parse(inspect.getsource(typing.cast(types.ModuleType, module)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    package = (getattr(module, "__package__", None) or "").split(".")
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or whole] = (whole, None)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                found[alias.asname or alias.name] = (source, alias.name)
    return found


def _text(thing: Any, names: _Mentions) -> str:
    """A type as text; what it mentions beyond builtins is added to `names`."""
    if thing is None or thing is types.NoneType:
        return "None"
    if thing is ...:
        return "..."
    if isinstance(thing, (str, typing.ForwardRef)):
        return _text(names.evaluate(thing), names)
    if isinstance(thing, list):  # the parameters of a Callable
        return f"[{', '.join(_text(each, names) for each in thing)}]"
    origin, arguments = typing.get_origin(thing), typing.get_args(thing)
    if origin is None:
        return _name(thing, names)
    if origin is typing.Annotated:
        return _text(arguments[0], names)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_text(each, names) for each in arguments))
    if origin is typing.Literal:
        return f"{_named('typing', 'Literal', names)}[{', '.join(_constant(a, names) for a in arguments)}]"
    base = _class_name(origin, names)
    if base is None:
        return _any(names)
    if not arguments:
        if origin is tuple and isinstance(thing, types.GenericAlias):
            return "tuple[()]"
        return _name(origin, names)
    return f"{base}[{', '.join(_text(each, names) for each in arguments)}]"


def _name(thing: Any, names: _Mentions) -> str:
    """A type that has no arguments; one that should have some gets them, as type checkers ask for."""
    text = _class_name(thing, names)
    if text is None:
        return _any(names)
    module = text if "." in text else f"builtins.{text}"
    if module in _PARAMETERS:
        arguments = _PARAMETERS[module]
    elif parameters := getattr(thing, "__parameters__", ()) if isinstance(thing, type) else ():
        arguments = f"[{', '.join(['typing.Any'] * len(parameters))}]"
    elif (
        isinstance(thing, type)
        and "__class_getitem__" in vars(thing)
        and module.partition(".")[0] in sys.stdlib_module_names
    ):
        arguments = "[typing.Any]"
    else:
        return text
    if "typing.Any" in arguments:
        _any(names)
    return text + arguments


def _class_name(thing: Any, names: _Mentions) -> str | None:
    """The dotted name of a class, NewType, alias or special form; None if nobody else can import it."""
    if isinstance(thing, _Unimported):
        return _named(thing.module, thing.qualname, names)
    if isinstance(thing, (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple)):
        return None
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    name = name or getattr(thing, "_name", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__" or "<" in name:
        return None
    # 3.13 says pathlib._local.Path; the last public package that has it is what people import from.
    while "._" in module and getattr(sys.modules.get(module.rpartition(".")[0]), name, None) is thing:
        module = module.rpartition(".")[0]
    return name if module == "builtins" else _named(module, name, names)


def _named(module: str, qualname: str, names: _Mentions) -> str:
    names.add((module, qualname))
    return f"{module}.{qualname}"


def _any(names: _Mentions) -> str:
    return _named("typing", "Any", names)


def _constant(value: Any, names: _Mentions) -> str:
    name = getattr(value, "name", None)  # of an enum's member
    return repr(value) if name is None else f"{_class_name(type(value), names)}.{name}"
