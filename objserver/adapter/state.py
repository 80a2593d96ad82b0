"""The state of a servant as data, and back.

State is what `__getstate__` returns if the class defines one, else the instance's attributes (dataclass
fields and slots included).  It must be plain data: our codec encodes it, nothing executable is ever stored.
A class may number the layout of its state with `state_version` (default 1) and offer
`upgrade_state(state, version)`, a classmethod that turns an older state into today's.
"""

from __future__ import annotations

from typing import Any

from objserver import errors
from objserver.codecs import Codecs

__all__ = ["CODEC", "capture", "restore", "state_version"]

CODEC = 1
"""In the store: which encoding the bytes are in.  1 is our own codec."""


def state_version(servant: object) -> int:
    """The layout number of the servant's class."""
    return int(getattr(type(servant), "state_version", 1))


def capture(servant: object, codecs: Codecs) -> bytes:
    """The state of `servant` as bytes; StateError if it is not plain data."""
    cls = type(servant)
    if cls.__getstate__ is not object.__getstate__:
        state: Any = servant.__getstate__()
    else:
        state = {name: getattr(servant, name) for name in _slots(cls) if hasattr(servant, name)}
        state.update(getattr(servant, "__dict__", {}))
        state.pop("_pyroId", None)
        state.pop("_pyroDaemon", None)  # set by pyro5.introduce
    try:
        return codecs.native.encode(state)
    except errors.SerializeError as problem:
        raise errors.StateError(
            f"the state of {cls.__name__} cannot be stored: {_culprit(state, codecs) or problem}; "
            "keep plain data in its attributes, or define __getstate__ and __setstate__"
        ) from None


def _culprit(state: Any, codecs: Codecs) -> str:
    """Which attribute is no data."""
    for name, value in state.items() if isinstance(state, dict) else ():
        try:
            codecs.native.encode(value)
        except errors.SerializeError:
            return f"its attribute {name!r} is a {type(value).__name__}"
    return ""


def restore(servant: Any, data: bytes, version: int, codecs: Codecs) -> None:
    """Put stored state into a fresh `servant`, upgrading it first if it is older than the class."""
    cls = type(servant)
    state = codecs.native.decode(data)
    wanted = state_version(servant)
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
        state = upgrade(state, version)
    if hasattr(cls, "__setstate__"):
        servant.__setstate__(state)
    else:
        for name, value in state.items():
            object.__setattr__(servant, name, value)


def _slots(cls: type) -> list[str]:
    found: list[str] = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return [name for name in found if name not in ("__dict__", "__weakref__")]
