"""Values as JSON, for `--json`.

JSON has few words.  What it lacks is written so that a person recognizes it and a program can read it back:

| value | in JSON |
|---|---|
| datetime, date, time | ISO 8601 text |
| timedelta | seconds |
| Decimal, Fraction, UUID, Path, complex | text |
| bytes, bytearray | base64 text |
| nan, inf, -inf | text |
| tuple, set, frozenset, array | a list; sets are sorted |
| dataclass, namedtuple | an object of its fields |
| Enum | its value |
| a reference or proxy | its URI |
| an exception | an object with `type` and `message` |
| of a class that is not known here | an object of its fields, a list, or the name of an Enum's member |
| anything else | text |

The keys of an object are text, numbers, booleans or null, which JSON makes texts of; others are refused.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import json
import math
from collections.abc import Mapping
from typing import Any

from objserver.cli.unknown import Unknown
from objserver.client import Proxy

__all__ = ["to_json"]


def to_json(value: Any) -> str:
    """One line of JSON; ValueError, TypeError or RecursionError if it cannot say the value."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, (str, bool, int, float)) and not isinstance(value, enum.Enum)):
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    if isinstance(value, Proxy):  # before anything that would ask the object
        return str(value)
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        items = [_plain(each) for each in value]
        try:
            return sorted(items)
        except TypeError:  # not all of one type
            return sorted(items, key=repr)
    if isinstance(value, Mapping):
        return {_key(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Unknown):
        if value.member is not None:
            return value.member
        return _plain(value.parts if value.fields is None else value.fields)
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value)}
    if hasattr(value, "tolist"):  # an array, without importing NumPy to know
        return _plain(value.tolist())
    return str(value)


def _key(key: Any) -> Any:
    plain = _plain(key)
    if plain is not None and not isinstance(plain, (str, int, float)):
        raise ValueError(f"keys must be text or numbers, not {type(key).__name__}")
    return plain
