"""Exceptions as values: taken apart before they travel, and made again from an allow-list.

The name of a class comes from the peer, so it only ever selects from a table that is computed once:
builtin exceptions, Pyro5's, ours, sqlite3's and struct.error; and of these only subclasses of
`Exception`, for no peer shall end our process with SystemExit.  Any other becomes a `RemoteError` that
carries the evidence.  The remote traceback stays in `_pyroTraceback`, as in Pyro5, and is added as a note,
so that an uncaught error shows both.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import sqlite3
import struct
from typing import Any

from objserver import errors, pyro5

__all__ = ["attributes_of", "known", "rebuild", "repr_of", "stock_name", "text_of"]


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


def rebuild(type_name: str, args: Any, attributes: Any, text: str = "") -> Exception:
    """The exception that a peer sent, or a RemoteError that tells about it."""
    if type(args) not in (list, tuple) or type(attributes) is not dict or type(type_name) is not str:
        raise errors.SerializeError(f"the exception {type_name} came in an unknown form")
    attributes = {name: value for name, value in attributes.items() if _settable(name)}
    cls = _KNOWN.get(type_name)
    error: Exception | None = None
    if cls is not None and not any(getattr(type(arg), "_objserver_is_proxy", False) for arg in args):
        # (Some constructors ask for the items of what they are given, which a proxy would fetch.)
        # A constructor may refuse arguments that were never its own: UnicodeDecodeError("sorry").
        with contextlib.suppress(Exception):
            error = cls(*args)
        if isinstance(error, UnicodeError) and not _is_sound(error):
            error = None
    if error is None:
        text = text or ", ".join(map(text_of, args))
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
    trace = attributes.get("_pyroTraceback")
    if isinstance(trace, (list, tuple)) and trace and all(isinstance(line, str) for line in trace):
        error.add_note("Remote traceback:\n" + "".join(trace).rstrip())
    return error
