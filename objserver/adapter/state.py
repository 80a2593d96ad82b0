"""The state of a servant as data, and back.

State is what `__getstate__` returns if the class defines one, else the instance's attributes (dataclass
fields and slots included).  It must be plain data: our codec encodes it, nothing executable is ever stored.
What could not be loaded again as it was is refused when it would be saved, while somebody can still be told:
types that our codec would change, and a state beyond the `Limits` that apply when it is read
(decoded_size_max bounds its size, nesting_max its depth).

A class may number the layout of its state with `state_version` (default 1) and offer
`upgrade_state(state, version)`, a classmethod that turns an older state into today's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from objserver import errors
from objserver.codecs import Codecs
from objserver.codecs.exceptions import text_of

__all__ = ["CODEC", "capture", "restore", "state_version"]

CODEC = 1
"""In the store: which encoding the bytes are in.  1 is our own codec."""


def state_version(cls: type) -> int:
    """The layout number of a class of servants."""
    return int(getattr(cls, "state_version", 1))


def capture(servant: object, codecs: Codecs) -> bytes:
    """The state of `servant` as bytes that `restore` is certain to read; StateError if there are none."""
    cls = type(servant)
    state = _call(f"__getstate__ of {cls.__name__}", _state_of, servant)
    try:
        return codecs.native.encode_exactly(state)
    except errors.ProtocolError as problem:
        advice = "keep plain data in its attributes, or define __getstate__ and __setstate__"
        if isinstance(problem, errors.MessageTooLarge):
            advice = f"keep less in one object, or give the server Limits with a larger {problem.limit}"
        raise errors.StateError(
            f"the state of {cls.__name__} cannot be stored: {_culprit(state, codecs)}{problem}; {advice}"
        ) from None


def _state_of(servant: object) -> Any:
    cls = type(servant)
    if cls.__getstate__ is not object.__getstate__:
        return servant.__getstate__()
    names = _slots(cls)  # type: ignore[arg-type]  # mypy takes a class for its instances here
    state = {name: getattr(servant, name) for name in names if hasattr(servant, name)}
    state.update(getattr(servant, "__dict__", {}))
    state.pop("_pyroId", None)
    state.pop("_pyroDaemon", None)  # set by pyro5.introduce
    return state


def _culprit(state: Any, codecs: Codecs) -> str:
    """Which attribute it is that cannot be stored, as the beginning of a sentence that says why."""
    for name, value in state.items() if type(state) is dict else ():
        try:
            codecs.native.encode_exactly(value)
        except errors.ProtocolError:
            return f"its attribute {name!r} is a {type(value).__name__}: "
    return ""


def restore(servant: Any, data: bytes, version: int, codecs: Codecs) -> None:
    """Put stored state into a fresh `servant`, upgrading it first if it is older than the class.

    StateError if that fails, be it in the class's own `upgrade_state` or `__setstate__`.
    """
    cls = type(servant)
    try:
        state = codecs.native.decode(data)
    except errors.ProtocolError as problem:
        raise errors.StateError(f"the stored state of {cls.__name__} cannot be read: {problem}") from problem
    wanted = state_version(cls)
    if version > wanted:
        raise errors.StateError(
            f"the stored state of {cls.__name__} has version {version}, but this program knows only up to "
            f"{wanted}; start the newer program"
        )
    if version < wanted:
        upgrade = getattr(cls, "upgrade_state", None)
        if upgrade is None:
            raise errors.StateError(
                f"the stored state of {cls.__name__} has version {version}, the class has {wanted}; "
                f"give it a classmethod upgrade_state(state, version)"
            )
        state = _call(f"upgrade_state of {cls.__name__}, from version {version},", upgrade, state, version)
    if hasattr(cls, "__setstate__"):
        _call(f"__setstate__ of {cls.__name__}", servant.__setstate__, state)
    else:
        _call(f"setting the attributes of {cls.__name__} from its stored state", _set, servant, state)


def _call(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """What the user's function returns, or StateError."""
    try:
        return function(*args)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        raise errors.StateError(f"{what} failed: {type(problem).__name__}: {text_of(problem)}") from problem


def _set(servant: object, state: dict[str, Any]) -> None:
    for name, value in state.items():
        object.__setattr__(servant, name, value)


@functools.lru_cache(256)
def _slots(cls: type) -> list[str]:
    found: list[str] = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return [name for name in found if name not in ("__dict__", "__weakref__")]
