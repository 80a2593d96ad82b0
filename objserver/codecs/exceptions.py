"""Exceptions as values: taken apart before they travel, and made again from an allow-list.

The name of a class comes from the peer, so it only ever selects from a table that is computed once:
builtin exceptions, Pyro5's, ours, sqlite3's and struct.error; and of these only subclasses of
`Exception`, for no peer shall end our process with SystemExit.  The application's own classes come from its
`Types`; their constructors are not run, because what an exception has in `args` is seldom what its
constructor takes.  Any other becomes a `RemoteError` that carries the evidence.

The remote traceback stays in `_pyroTraceback`, as in Pyro5, and is added as a note, so that an uncaught error
shows both.  Between our peers the chain (`__cause__`, `__context__`) and the notes travel among the
attributes, under their own names, which readers that do not know them leave out.  The remote traceback
tells of the whole chain; each error in it gets the part that is its own.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import sqlite3
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

from objserver import errors, pyro5
from objserver.codecs.types import Types, is_proxy

__all__ = ["attributes_of", "known", "rebuild", "repr_of", "stock_name", "taken_apart", "text_of"]

DEPTH_MAX = 10
"""Errors inside errors (causes, contexts, groups): each takes four of the levels that a reader allows."""
ERRORS_MAX = 1_000
"""... and all errors of one message: some milliseconds."""
_REMOTE = "Remote traceback:\n"
_BETWEEN = (  # what Python prints between the errors of a chain
    "\nThe above exception was the direct cause of the following exception:\n\n",
    "\nDuring handling of the above exception, another exception occurred:\n\n",
)
_HEAP_TYPE = 1 << 9


def _classes() -> dict[str, type[Exception]]:
    found: dict[str, type[Exception]] = {"struct.error": struct.error}
    spaces = {"builtins": builtins, "Pyro5.errors": pyro5, "objserver.errors": errors, "sqlite3": sqlite3}
    for space, module in spaces.items():
        for name, cls in vars(module).items():
            if not isinstance(cls, type) or not issubclass(cls, Exception):
                continue
            if space == "Pyro5.errors" and cls.__module__ != space:
                continue
            found[f"{space}.{name}"] = cls
            if space in ("builtins", "Pyro5.errors"):
                found.setdefault(name, cls)  # peers without module names, and Python 2's "exceptions"
            if space == "builtins":
                found[f"exceptions.{name}"] = cls
    return found


_KNOWN = _classes()
known = _KNOWN.get


def text_of(value: object) -> str:
    """Its `str()`, or nothing where that raises: `__str__` is somebody else's code."""
    try:
        return str(value)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def repr_of(value: object) -> str:
    """Its `repr()` as text that can be sent, or its type where that raises."""
    try:
        return repr(value).encode("utf-8", "replace").decode()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"<{type(value).__name__}>"


def attributes_of(error: BaseException) -> dict[str, Any]:
    """What the exception carries besides its arguments; __notes__ would repeat the traceback we added."""
    return {name: value for name, value in vars(error).items() if _settable(name)}


def taken_apart(error: BaseException) -> tuple[list[Any], dict[str, Any]]:
    """The arguments and the attributes of an exception as our peers get them, chain and notes included."""
    args = list(error.args)
    if isinstance(error, BaseExceptionGroup):
        args = [error.message, list(error.exceptions)]
    attributes = attributes_of(error)
    if error.__cause__ is not None:
        attributes["__cause__"] = error.__cause__
    # As a rule the context is the cause; and what nobody would see is not worth sending.
    if error.__context__ is not None and not error.__suppress_context__:
        attributes["__context__"] = error.__context__
    if error.__suppress_context__:
        attributes["__suppress_context__"] = True
    notes = getattr(error, "__notes__", None)
    if type(notes) is list:
        notes = [note for note in notes if type(note) is str and not note.startswith(_REMOTE)]
        if notes:
            attributes["__notes__"] = notes
    return args, attributes


def stock_name(error: BaseException) -> str:
    """The name to send to a stock peer: it does not know our classes, but knows one they derive from."""
    cls = type(error)
    if cls.__module__.partition(".")[0] == "objserver":
        cls = next(base for base in cls.__mro__ if base.__module__ in ("builtins", "Pyro5.errors"))
    return f"{cls.__module__}.{cls.__name__}"


def _settable(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("__")


def _is_sound(error: UnicodeError) -> bool:
    """Whether the range it names lies in the data it carries: its __str__ reads there without looking."""
    size = len(getattr(error, "object", ""))
    return 0 <= getattr(error, "start", 0) <= getattr(error, "end", 0) <= size


def rebuild(
    type_name: str, args: Any, attributes: Any, text: str = "", types: Types | None = None
) -> Exception:
    """The exception that a peer sent, or a RemoteError that tells about it."""
    if type(args) not in (list, tuple) or type(attributes) is not dict or type(type_name) is not str:
        raise errors.SerializeError(f"the exception {type_name} came in an unknown form")
    links = {name: value for name, value in attributes.items() if name in _LINKS}
    attributes = {name: value for name, value in attributes.items() if _settable(name)}
    error: Exception | None = None
    if not any(map(is_proxy, args)):
        # (Some constructors ask for the items of what they are given, which a proxy would fetch.)
        error = _made(type_name, args, types)
    if error is None:
        text = (text if type(text) is str else "") or ", ".join(map(text_of, args))
        error = errors.RemoteError(
            f"{type_name}: {text}" if text else type_name,
            type_name=type_name,
            remote_args=tuple(args),
            attributes=attributes,
        )
        attributes = {name: attributes[name] for name in ("_pyroTraceback",) if name in attributes}
    for name, value in attributes.items():
        of_class = inspect.getattr_static(type(error), name, None)
        if callable(of_class) or hasattr(type(of_class), "__set__"):
            continue  # methods stay methods, and what C code reads was checked by the constructor
        with contextlib.suppress(Exception):
            setattr(error, name, value)
    _link(error, links)
    trace = attributes.get("_pyroTraceback")
    if isinstance(trace, (list, tuple)) and trace and all(isinstance(line, str) for line in trace):
        _note(error, trace)
    return error


def _made(type_name: str, args: Any, types: Types | None) -> Exception | None:
    cls: Any = _KNOWN.get(type_name)
    error: Any = None
    # A constructor may refuse arguments that were never its own: UnicodeDecodeError("sorry").
    with contextlib.suppress(Exception):
        if cls is not None:
            error = cls(*args)
        elif types is not None:
            cls = types.find(type_name)
            if cls is not None and issubclass(cls, Exception):
                base: Any = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
                error = base.__new__(cls, *args)
                base.__init__(error, *args)
    if isinstance(error, UnicodeError) and not _is_sound(error):
        error = None
    return error if isinstance(error, Exception) else None


_LINKS = frozenset({"__cause__", "__context__", "__suppress_context__", "__notes__"})


def _link(error: Exception, links: dict[str, Any]) -> None:
    cause, context = links.get("__cause__"), links.get("__context__")
    if isinstance(cause, BaseException):
        error.__cause__ = cause
    if isinstance(context, BaseException):
        error.__context__ = context
    error.__suppress_context__ = links.get("__suppress_context__") is True
    notes = links.get("__notes__")
    if type(notes) is list:
        for note in notes:
            if type(note) is str:
                error.add_note(note)


def _note(error: BaseException, trace: Sequence[str]) -> None:
    """Give each error of a chain its own part of the remote traceback, the last part to the last error."""
    parts: list[list[str]] = [[]]
    for line in trace:
        if line in _BETWEEN:
            parts.append([])
        else:
            parts[-1].append(line)
    while True:
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        last = before is None or len(parts) == 1
        own = "".join(chain.from_iterable(parts) if last else parts.pop())
        error.add_note(_REMOTE + own.rstrip())
        if last or before is None:
            return
        error = before
