"""Our own codec: MessagePack that gives back the types it was given.

ormsgpack is the fastest serializer that handles no code, and a call is one `packb`.  What MessagePack
lacks travels in Ext values: a tag of one byte, and the data, often MessagePack again.  The encoder first
assumes that dicts have string keys; only when ormsgpack refuses, a slow path in Python wraps the other
dicts into lists of pairs and, if the value is hopeless, says why (ormsgpack swallows what its hooks
raise).  Plain subclasses (namedtuple, OrderedDict, IntEnum) arrive as their base type; a bytearray
arrives as bytes, which ormsgpack decides.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import pathlib
import struct
import uuid
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import ormsgpack
from ormsgpack import Ext, packb, unpackb

from objserver import errors, pyro5, references
from objserver.codecs import budget, exceptions
from objserver.codecs.base import Call, Payload, Substitute, call_of, cannot, proxy_reference
from objserver.references import Reference
from objserver.settings import Limits

__all__ = ["NativeCodec"]

OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
)
# The tags are part of the wire format: never change one, only add.  Those below 64 hold MessagePack.
TUPLE, SET, FROZENSET, PAIRS, FRACTION, DATETIME, TIME, TIMEDELTA = range(1, 9)
EXCEPTION, REGISTERED, WRAPPED = range(9, 12)
BIGINT, COMPLEX, DECIMAL, UUID, PATH, DATE, REFERENCE = range(64, 71)
NESTED = frozenset(range(1, 64))

_PLAIN: tuple[Any, ...] = (tuple, dict, list, str, int, float, bytes, set, frozenset, pathlib.Path)

Pack = Callable[[Any], bytes]


class _Pairs(list[Any]):
    """A dict whose keys are not all strings, on its way into an Ext."""


def _moment(value: datetime.datetime | datetime.time) -> list[Any]:
    zone = value.tzinfo
    return [value.isoformat(), value.fold, zone.key if isinstance(zone, zoneinfo.ZoneInfo) else None]


_ENCODERS: dict[type, tuple[int, Callable[[Any], Any]]] = {
    # type -> tag and what goes inside: bytes as they are, anything else packed
    tuple: (TUPLE, list),
    set: (SET, list),
    frozenset: (FROZENSET, list),
    _Pairs: (PAIRS, list),
    int: (BIGINT, lambda v: v.to_bytes(v.bit_length() // 8 + 1, "big", signed=True)),
    complex: (COMPLEX, lambda v: struct.pack(">dd", v.real, v.imag)),
    Decimal: (DECIMAL, lambda v: str(v).encode()),
    Fraction: (FRACTION, lambda v: [v.numerator, v.denominator]),
    uuid.UUID: (UUID, lambda v: v.bytes),
    type(pathlib.Path()): (PATH, lambda v: str(v).encode("utf-8", "surrogateescape")),
    datetime.datetime: (DATETIME, _moment),
    datetime.time: (TIME, _moment),
    datetime.date: (DATE, lambda v: v.isoformat().encode()),
    datetime.timedelta: (TIMEDELTA, lambda v: [v.days, v.seconds, v.microseconds]),
    Reference: (REFERENCE, lambda v: str(v).encode()),
}


def _zoned(cls: Any, parts: list[Any]) -> Any:
    text, fold, key = parts
    value = cls.fromisoformat(text).replace(fold=fold)
    if key is not None:
        # Where the zone is unknown, the offset in the text still names the right moment.
        with contextlib.suppress(KeyError, ValueError, OSError):
            value = value.replace(tzinfo=zoneinfo.ZoneInfo(key))
    return value


def _registered(value: dict[str, Any]) -> Any:
    name = value["__class__"]
    converter = pyro5.dict_to_class_converter(name)
    if converter is None:
        raise errors.SerializeError(f"unsupported serialized class: {name}")
    return converter(name, value)


_DECODERS: dict[int, Callable[[Any], Any]] = {
    TUPLE: tuple,
    SET: set,
    FROZENSET: frozenset,
    PAIRS: dict,
    FRACTION: lambda v: Fraction(*v),
    DATETIME: lambda v: _zoned(datetime.datetime, v),
    TIME: lambda v: _zoned(datetime.time, v),
    TIMEDELTA: lambda v: datetime.timedelta(*v),
    EXCEPTION: lambda v: exceptions.rebuild(*v),
    REGISTERED: _registered,
    WRAPPED: lambda v: pyro5.ExceptionWrapper(v),
    BIGINT: lambda v: int.from_bytes(v, "big", signed=True),
    COMPLEX: lambda v: complex(*struct.unpack(">dd", v)),
    DECIMAL: lambda v: Decimal(v.decode()),
    UUID: lambda v: uuid.UUID(bytes=v),
    PATH: lambda v: pathlib.Path(v.decode("utf-8", "surrogateescape")),
    DATE: lambda v: datetime.date.fromisoformat(v.decode()),
    REFERENCE: lambda v: references.arrived(Reference.parse(v.decode())),
}


class NativeCodec:
    """The codec between two objserver processes."""

    serializer_id = 79
    name = "objserver"

    def __init__(self, limits: Limits, substitute: Substitute | None = None) -> None:
        self._limits = limits
        self._nesting_max = limits.nesting_max
        self._substitute = substitute
        self._hook = self._ext
        self._pack_hook = self._default

    def encode_call(
        self, object_id: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bytes:
        try:
            return packb([object_id, method, list(args), kwargs], default=self._pack_hook, option=OPTIONS)
        except Exception:
            return self._encode_slowly([object_id, method, list(args), kwargs])

    def encode(self, value: Any) -> bytes:
        try:
            return packb(value, default=self._pack_hook, option=OPTIONS)
        except Exception:
            return self._encode_slowly(value)

    def decode_call(self, payload: Payload) -> Call:
        if len(payload) <= self._nesting_max:
            # The usual call: too small to break a limit, and of the usual types.
            try:
                object_id, method, args, kwargs = unpackb(payload, ext_hook=self._hook)
            except Exception:
                pass  # decode says what is wrong
            else:
                if type(object_id) is type(method) is str and type(args) is list and kwargs == {}:
                    return object_id, method, args, kwargs
        return call_of(self.decode(payload))

    def decode(self, payload: Payload) -> Any:
        # Each level of nesting takes a byte at least: nothing this small can break a limit.
        if len(payload) > self._nesting_max:
            budget.check_msgpack(payload, self._limits, NESTED)
        try:
            return unpackb(payload, ext_hook=self._hook)
        except Exception as problem:
            raise self._explain(payload, problem) from None

    def _pack(self, value: Any) -> bytes:
        return packb(value, default=self._default, option=OPTIONS)

    def _default(self, value: Any) -> Any:
        return self._ext_of(value, self._pack)

    def _ext_of(self, value: Any, pack: Pack) -> Any:
        """What stands for a value that MessagePack has no form for."""
        encoder = _ENCODERS.get(type(value))
        if encoder is not None:
            tag, convert = encoder
            content = convert(value)
            return Ext(tag, content if type(content) is bytes else pack(content))
        reference = proxy_reference(value)
        if reference is None and self._substitute is not None:
            reference = self._substitute(value)
        if reference is not None:
            return Ext(REFERENCE, str(reference).encode())
        if isinstance(value, BaseException):
            return Ext(EXCEPTION, self._exception(value, pack))
        if isinstance(value, pyro5.ExceptionWrapper):
            return Ext(WRAPPED, pack(value.exception))
        stock = pyro5.proxy_state(value)
        if stock is not None:
            return Ext(REFERENCE, str(stock[1][0] if stock[0].endswith("Proxy") else value).encode())
        registered = pyro5.class_to_dict(value)
        if registered is not None:
            name = f"{type(value).__module__}.{type(value).__name__}"
            return Ext(REGISTERED, pack({"__class__": name} | registered))
        if isinstance(value, enum.Enum):
            return value.value
        for base in _PLAIN:
            if isinstance(value, base):
                return base(value)
        if pyro5.is_blob(value):
            raise errors.SerializeError("a SerializedBlob must be the only argument of a call")
        cls = type(value)
        raise errors.SerializeError(
            f"a value of type {cls.__module__}.{cls.__qualname__} cannot travel: send plain data, register"
            " the object to send a reference to it, or register its class with Pyro5's register_class_to_dict"
        )

    def _exception(self, error: BaseException, pack: Pack) -> bytes:
        cls = type(error)
        name, text = f"{cls.__module__}.{cls.__qualname__}", exceptions.text_of(error)
        attributes = exceptions.attributes_of(error)
        try:
            return pack([name, list(error.args), attributes, text])
        except Exception:
            # An error must arrive even if something it carries cannot: that part is sent as its repr.
            def told(value: Any) -> Any:
                try:
                    self._slow_pack([])(value)
                    return value
                except Exception:
                    return repr(value).encode("utf-8", "replace").decode()

            parts = {key: told(value) for key, value in attributes.items()}
            return self._slow_pack([])([name, [told(arg) for arg in error.args], parts, told(text)])

    def _slow_pack(self, problems: list[Exception]) -> Pack:
        """A pack that takes dicts with any keys, and keeps what its hooks raise."""

        def default(value: Any) -> Any:
            try:
                return wrapped(self._ext_of(value, pack))
            except Exception as problem:
                problems.append(problem)
                raise

        def wrapped(value: Any) -> Any:
            kind = type(value)
            if kind is list:
                return [wrapped(item) for item in value]
            if kind is dict:
                if all(type(key) is str for key in value):
                    return {key: wrapped(item) for key, item in value.items()}
                return _Pairs([key, item] for key, item in value.items())
            return value

        def pack(value: Any) -> bytes:
            return packb(wrapped(value), default=default, option=OPTIONS)

        return pack

    def _encode_slowly(self, value: Any) -> bytes:
        problems: list[Exception] = []
        try:
            return self._slow_pack(problems)(value)
        except Exception as problem:
            raise cannot("encode", self.name, problems[0] if problems else problem) from None

    def _ext(self, tag: int, data: bytes) -> Any:
        content = unpackb(data, ext_hook=self._ext) if tag < 64 else data
        return _DECODERS[tag](content)

    def _explain(self, payload: Payload, problem: Exception) -> errors.ProtocolError:
        """Decode again, keeping what the hook raises, because ormsgpack only says that it failed."""
        problems: list[Exception] = []

        def hook(tag: int, data: bytes) -> Any:
            try:
                if tag not in _DECODERS:
                    raise errors.SerializeError(f"MessagePack Ext type {tag} is unknown")
                return _DECODERS[tag](unpackb(data, ext_hook=hook) if tag < 64 else data)
            except Exception as raised:
                problems.append(raised)
                raise

        try:
            unpackb(payload, ext_hook=hook)
        except Exception as again:
            problem = again
        return cannot("decode", self.name, problems[0] if problems else problem)
