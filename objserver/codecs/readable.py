"""What our codec wrote, as JSON that people read and write, and back.

No class is needed for it, and nothing is imported, made or executed: values are rewritten from one notation
into the other.  What JSON has (null, true, numbers, text, lists, objects) stands for itself.  Anything else
is an object with a single key that begins with `$`:

| in JSON | is |
|---|---|
| {"$tuple": [1, 2]}, {"$set": [...]}, {"$frozenset": [...]} | a tuple, a set, a frozenset |
| {"$dict": [[1, "a"], ...]} | a dict whose keys are not all text |
| {"$map": {"$x": 1}} | a dict that would look like one of these |
| {"$bytes": "AAE="}, {"$bytearray": "AAE="} | in base64 |
| {"$int": "36893488147419103232"} | an int of more than 64 bits; if very long, in hexadecimal with 0x |
| {"$float": "nan"} | nan, inf or -inf |
| {"$decimal": "1.5"}, {"$fraction": "1/3"}, {"$complex": [0.0, 1.0]} | numbers |
| {"$date": "2026-11-23"}, {"$uuid": "..."}, {"$path": "/tmp"} | |
| {"$datetime": ["2026-11-23T12:00:00+01:00", 0, "Europe/Amsterdam"]}, {"$time": ...} | ISO 8601, fold, zone |
| {"$timedelta": [1, 2, 3]} | days, seconds, microseconds |
| {"$object": {"class": "bank.Order", "fields": {"item": "tea"}}} | a value of a class, by its fields |
| {"$object": {"class": "bank.Colour", "parts": ["RED"]}} | ... or by its parts: an Enum, a named tuple |
| {"$registered": {"__class__": "bank.Old", ...}} | of a class known to Pyro5's registry |
| {"$proxy": "PYRO:x@host:1"}, {"$reference": "PYRO:x@host:1"} | |
| {"$lent": ["PYRO:x@host:1", [["alice", ...]]]} | a proxy, and by whose rights it is called |
| {"$array": [dtype, shape, order, {"$bytes": ...}]} | of NumPy |
| {"$ext": [99, "AAE="]} | what this release does not know |

Two notations of one value can differ in bytes: who needs the very bytes compares them.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from ormsgpack import Ext, packb, unpackb

from objserver import errors
from objserver.codecs import native
from objserver.codecs.types import Types
from objserver.references import Reference

__all__ = ["from_json", "to_json"]

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_DECIMAL_BITS = 10_000
"""Of an int that is written in decimal: Python converts no more than 4300 digits."""


class _Tagged(NamedTuple):
    """An Ext, when what is inside has been unpacked."""

    tag: int
    content: Any


def to_json(data: bytes) -> Any:
    """What to give to `json.dumps`; SerializeError if this is not what our codec writes."""
    try:
        return _said(unpackb(data, ext_hook=_unpacked))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, struct.error) as problem:
        raise errors.SerializeError(f"the value cannot be shown: {problem}") from None


def from_json(value: Any) -> bytes:
    """What our codec would have written; SerializeError says what in the JSON is wrong."""
    try:
        return packb(_meant(value))
    except RecursionError:
        raise errors.SerializeError("it is nested too deeply") from None
    except (ValueError, TypeError) as problem:  # of ormsgpack: a lone surrogate, say
        raise errors.SerializeError(f"it cannot be encoded: {problem}") from None


def _unpacked(tag: int, data: bytes) -> _Tagged:
    if tag in native.NESTED and tag in _NAMES:
        return _Tagged(tag, unpackb(data, ext_hook=_unpacked))
    return _Tagged(tag, data)


def _said(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        said = {key: _said(item) for key, item in value.items()}
        return {"$map": said} if _looks_tagged(said) else said
    if kind is list:
        return [_said(item) for item in value]
    if kind is bytes:
        return {"$bytes": _base64(value)}
    if kind is float and not math.isfinite(value):
        return {"$float": str(value)}
    if kind is _Tagged:
        name = _NAMES.get(value.tag)
        if name is None:
            return {"$ext": [value.tag, _base64(value.content)]}
        return {name: _TAGS[name][1](value.content)}
    return value


def _meant(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        if not _looks_tagged(value):
            return {key: _meant(item) for key, item in value.items()}
        ((name, content),) = value.items()
        try:
            return _understood(name, content)
        except errors.SerializeError:
            raise
        except Exception as problem:
            raise errors.SerializeError(f"{name} is not followed by what belongs there: {problem}") from None
    if kind is list:
        return [_meant(item) for item in value]
    if kind is int and not _INT_MIN <= value <= _INT_MAX:
        return _long(value)
    return value


def _understood(name: str, content: Any) -> Any:
    if name == "$map":
        return {key: _meant(item) for key, item in _a(dict, content).items()}
    if name == "$bytes":
        return _bytes(content)
    if name == "$float":
        if content not in ("nan", "inf", "-inf"):
            raise ValueError("only nan, inf and -inf are written so")
        return float(content)
    if name == "$ext":
        tag, data = _a(list, content)
        if tag in _NAMES:
            raise ValueError(f"write it as {_NAMES[tag]}")
        return Ext(tag, _bytes(data))
    if name not in _TAGS:
        raise errors.SerializeError(
            f"{name} is unknown{errors.did_you_mean(name, [*_TAGS, '$map', '$bytes', '$float', '$ext'])}; "
            'a dict with this key is written {"$map": {...}}'
        )
    tag, _, meant = _TAGS[name]
    inside = meant(content)
    data = packb(inside) if tag in native.NESTED else inside
    # What whoever reads it would stumble over must not get into a store.
    if tag in _CHECKED or tag not in native.NESTED:
        _stand_in(tag, data)
    return Ext(tag, data)


def _stand_in(tag: int, data: bytes) -> Any:
    """A value inside a value that is checked; of what needs a class, something that can be hashed."""
    if tag in (native.OBJECT, native.REGISTERED, native.ARRAY) or tag not in _NAMES:
        return object()
    return native._made(tag, unpackb(data, ext_hook=_stand_in) if tag in native.NESTED else data, _NO_TYPES)


def _looks_tagged(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} belongs there, not {type(value).__name__}")
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(_a(str, text), validate=True)
    except binascii.Error as problem:
        raise ValueError(f"not base64: {problem}") from None


def _long(value: int) -> Ext:
    return Ext(native.BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _digits(data: bytes) -> str:
    value = int.from_bytes(data, "big", signed=True)
    return str(value) if value.bit_length() < _DECIMAL_BITS else hex(value)


def _int_bytes(text: Any) -> bytes:
    value = int(_a(str, text), 0)
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _list(content: Any) -> list[Any]:
    return [_said(item) for item in _a(list, content)]


def _from_list(content: Any) -> list[Any]:
    return [_meant(item) for item in _a(list, content)]


def _same_keys(content: Any) -> Any:
    return {key: _said(item) for key, item in _a(dict, content).items()}


def _registered(content: Any) -> Any:
    _a(str, _a(dict, content)["__class__"])
    return {key: _meant(item) for key, item in content.items()}


def _fraction(content: Any) -> str:
    numerator, denominator = (
        int.from_bytes(part.content, "big", signed=True) if type(part) is _Tagged else part
        for part in content
    )
    return f"{numerator}/{denominator}"


def _from_fraction(content: Any) -> list[Any]:
    numerator, denominator = map(int, _a(str, content).split("/"))
    return [_meant(numerator), _meant(denominator)]


def _object(content: Any) -> dict[str, Any]:
    name, *parts = content
    names, values = parts[::2], parts[1::2]
    if len(names) == len(values) == len(set(map(str, names))) and all(
        type(field) is str and field.isidentifier() for field in names
    ):
        return {"class": name, "fields": {k: _said(v) for k, v in zip(names, values, strict=True)}}
    return {"class": name, "parts": [_said(part) for part in parts]}


def _from_object(content: Any) -> list[Any]:
    what = set(_a(dict, content))
    name = _a(str, content.get("class"))
    if what == {"class", "fields"}:
        fields = _a(dict, content["fields"])
        return [name, *(part for field, value in fields.items() for part in (field, _meant(value)))]
    if what == {"class", "parts"}:
        return [name, *_from_list(content["parts"])]
    raise ValueError('it has "class", and either "fields" or "parts"')


def _text(data: bytes) -> str:
    return data.decode()


def _from_text(text: Any) -> bytes:
    return _a(str, text).encode()  # type: ignore[no-any-return]


def _reference(text: Any) -> bytes:
    return str(Reference.parse(_a(str, text))).encode()


def _from_lent(content: Any) -> list[Any]:
    uri, marks = _a(list, content)
    return [str(Reference.parse(_a(str, uri))), _from_list(marks)]


def _complex(content: Any) -> bytes:
    return struct.pack(">dd", *(_meant(part) for part in _a(list, content)))


_NO_TYPES = Types()
# name -> tag, how what is inside the Ext is written in JSON, and back
_TAGS: dict[str, tuple[int, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "$tuple": (native.TUPLE, _list, _from_list),
    "$set": (native.SET, _list, _from_list),
    "$frozenset": (native.FROZENSET, _list, _from_list),
    "$dict": (native.PAIRS, _list, _from_list),
    "$fraction": (native.FRACTION, _fraction, _from_fraction),
    "$datetime": (native.DATETIME, _list, _from_list),
    "$time": (native.TIME, _list, _from_list),
    "$timedelta": (native.TIMEDELTA, _list, _from_list),
    "$registered": (native.REGISTERED, _same_keys, _registered),
    "$object": (native.OBJECT, _object, _from_object),
    "$lent": (native.LENT, _list, _from_lent),
    "$array": (native.ARRAY, _list, _from_list),
    "$int": (native.BIGINT, _digits, _int_bytes),
    "$complex": (
        native.COMPLEX,
        lambda v: [_said(part) for part in struct.unpack(">dd", v)],
        _complex,
    ),
    "$decimal": (native.DECIMAL, _text, _from_text),
    "$uuid": (native.UUID, lambda v: str(uuid.UUID(bytes=v)), lambda v: uuid.UUID(_a(str, v)).bytes),
    "$path": (
        native.PATH,
        lambda v: v.decode("utf-8", "surrogateescape"),
        lambda v: _a(str, v).encode("utf-8", "surrogateescape"),
    ),
    "$date": (native.DATE, _text, _from_text),
    "$proxy": (native.REFERENCE, _text, _reference),
    "$bytearray": (native.BYTEARRAY, _base64, _bytes),
    "$reference": (native.HELD_REFERENCE, _text, _reference),
}
_NAMES = {tag: name for name, (tag, _, _) in _TAGS.items()}
_CHECKED = frozenset(
    (
        *(native.SET, native.FROZENSET, native.PAIRS, native.FRACTION),
        *(native.DATETIME, native.TIME, native.TIMEDELTA),
    )
)
