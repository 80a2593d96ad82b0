"""Our own codec: MessagePack that gives back the types it was given.

ormsgpack is the fastest serializer that handles no code, and a call is one `packb`.  What MessagePack
lacks travels in Ext values: a tag of one byte, and the data, often MessagePack again.  The encoder first
assumes that dicts have string keys; only when ormsgpack refuses, a slow path in Python wraps the other
dicts into lists of pairs and, if the value is hopeless, says where and why (ormsgpack swallows what its
hooks raise).  Values of the application's classes (`types`) arrive as what they were; other subclasses of
plain types (OrderedDict) arrive as their base type.

ormsgpack writes a bytearray as if it were bytes, and asks nobody.  So where the written bytes show that
there may be one, the value is looked through, and if there is one, written slowly.

State is stored more strictly than a call travels: `encode_exactly` refuses whatever would come back as
another type, or not at all.  ormsgpack asks a hook about nearly every type that is not exactly its own; what
it writes unasked (bytearray, memoryview, its own Ext and Fragment) has to be looked for.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import pathlib
import struct
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from threading import get_ident
from typing import Any, Self

import ormsgpack
from ormsgpack import Ext, Fragment, packb, unpackb

from objserver import errors, pyro5, references
from objserver.codecs import arrays, budget, exceptions
from objserver.codecs.base import (
    Call,
    Encoded,
    Payload,
    Substitute,
    call_of,
    cannot,
    pass_on,
    proxy_reference,
    twin,
    where,
)
from objserver.codecs.types import Types, full_name
from objserver.references import Reference
from objserver.settings import Limits
from objserver.wire.buffers import BUFFERS_MAX, Arrived, Parts
from objserver.wire.frames import plain_call

__all__ = ["NativeCodec", "PartsCodec"]

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
EXCEPTION, REGISTERED, WRAPPED, OBJECT, LENT = range(9, 14)
ARRAY, ASIDE = 32, 33
BIGINT, COMPLEX, DECIMAL, UUID, PATH, DATE, REFERENCE, BYTEARRAY, HELD_REFERENCE = range(64, 73)
NESTED = frozenset(range(1, 64))

_PLAIN: tuple[Any, ...] = (tuple, dict, list, str, int, float, bytes, set, frozenset, pathlib.Path)

Pack = Callable[[Any], bytes]
"""One that has an attribute `buffers`, a list, wants large blocks there instead of in its result."""
BYTES_ASIDE_MIN = 64 * 1024
"""Bytes from which an argument or a result that is bytes is not copied into the MessagePack."""


FRACTION_BITS_MAX = 32_768
"""Bits above and below, or as many fewer in one as more in the other: dividing by what they have in common
takes time in the square, inside a single call of C.  Milliseconds for ten thousand digits, hours for a frame
full of them."""


class _Pairs(list[Any]):
    """A dict whose keys are not all strings, on its way into an Ext."""


def _key_of(zone: datetime.tzinfo | None) -> str | None:
    """The name of a zone that is a ZoneInfo."""
    module = sys.modules.get("zoneinfo")  # else there is none of its kind
    return zone.key if module is not None and type(zone) is module.ZoneInfo else None  # type: ignore[union-attr]


def _moment(value: datetime.datetime | datetime.time) -> list[Any]:
    zone = value.tzinfo
    return [value.isoformat(), value.fold, _key_of(zone)]


_ENCODERS: dict[type, tuple[int, Callable[[Any], Any]]] = {
    # type -> tag and what goes inside: bytes as they are, anything else packed
    tuple: (TUPLE, list),
    set: (SET, list),
    frozenset: (FROZENSET, list),
    _Pairs: (PAIRS, list),
    int: (BIGINT, lambda v: v.to_bytes(v.bit_length() // 8 + 1, "big", signed=True)),
    complex: (COMPLEX, lambda v: struct.pack(">dd", v.real, v.imag)),
    Decimal: (DECIMAL, lambda v: str(v).encode()),
    Fraction: (FRACTION, lambda v: _bounded(v.numerator, v.denominator)),
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
            import zoneinfo  # it takes long to load, and few values need it

            value = value.replace(tzinfo=zoneinfo.ZoneInfo(key))
    return value


def _registered(value: dict[str, Any]) -> Any:
    name = value["__class__"]
    converter = pyro5.dict_to_class_converter(name)
    if converter is None:
        raise errors.SerializeError(f"unsupported serialized class: {name}")
    return converter(name, value)


def _made(tag: int, content: Any, types: Types) -> Any:
    """The value of an Ext.  What is inside must be what our encoder puts there.

    Above all no proxy: one that arrived inside would be asked for its items, over the network.
    """
    if tag < 64 and type(content) is not (dict if tag == REGISTERED else list) and tag != WRAPPED:
        raise errors.SerializeError(f"Ext type {tag} holds a {type(content).__name__}")
    return _TYPED[tag](content, types) if tag in _TYPED else _DECODERS[tag](content)


def _fraction(numerator: Any, denominator: Any) -> Fraction:
    if type(numerator) is not int or type(denominator) is not int:
        raise errors.SerializeError("a fraction has two int")  # of a str it would compute 10**exponent
    return Fraction(*_bounded(numerator, denominator))


def _bounded(numerator: int, denominator: int) -> list[int]:
    """The parts of a fraction, unless bringing it to its lowest terms would take for ever."""
    if numerator.bit_length() * denominator.bit_length() > FRACTION_BITS_MAX**2:
        raise errors.SerializeError(
            f"a fraction of {numerator.bit_length()} by {denominator.bit_length()} bits, more than"
            f" {FRACTION_BITS_MAX} by {FRACTION_BITS_MAX}"
        )
    return [numerator, denominator]


def _error_parts(parts: list[Any]) -> tuple[Any, Any, Any, Any]:
    if len(parts) != 4:
        raise errors.SerializeError("an exception has a class, arguments, attributes and a text")
    return tuple(parts)


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise errors.SerializeError("the items of a dict are pairs")
    budget.spread([pair[0] for pair in pairs])
    return {key: value for key, value in pairs}  # noqa: C416  (the keys are known to be spread)


_DECODERS: dict[int, Callable[[Any], Any]] = {
    TUPLE: tuple,
    SET: lambda v: set(budget.spread(v)),
    FROZENSET: lambda v: frozenset(budget.spread(v)),
    PAIRS: lambda v: _dict(v),
    FRACTION: lambda v: _fraction(*v),
    DATETIME: lambda v: _zoned(datetime.datetime, v),
    TIME: lambda v: _zoned(datetime.time, v),
    TIMEDELTA: lambda v: datetime.timedelta(*v),
    REGISTERED: _registered,
    WRAPPED: lambda v: pyro5.ExceptionWrapper(v),
    BIGINT: lambda v: int.from_bytes(v, "big", signed=True),
    COMPLEX: lambda v: complex(*struct.unpack(">dd", v)),
    DECIMAL: lambda v: Decimal(v.decode()),
    UUID: lambda v: uuid.UUID(bytes=v),
    PATH: lambda v: pathlib.Path(v.decode("utf-8", "surrogateescape")),
    DATE: lambda v: datetime.date.fromisoformat(v.decode()),
    REFERENCE: lambda v: v,  # the codec says what becomes of it
    BYTEARRAY: bytearray,
    LENT: lambda v: v,
    # Only in state: in a call, what was a Reference arrives as a proxy.
    HELD_REFERENCE: lambda v: Reference.parse(v.decode()),
}
_TYPED: dict[int, Callable[[Any, Types], Any]] = {
    # ... with the classes that are known
    EXCEPTION: lambda v, types: exceptions.rebuild(*_error_parts(v), types),
    OBJECT: lambda v, types: types.make(v),
}
_DECODERS |= _TYPED  # type: ignore[arg-type]


def _array(header: list[Any], arrived: Arrived | None) -> Any:
    *form, data = header
    if len(form) != 3:
        raise errors.SerializeError("an array is its type, shape, order and data")
    if type(data) is bytes:
        return arrays.restore(form, bytearray(data))
    return arrays.restore(form, _beside(arrived).take(data))


def _bytes_aside(parts: list[Any], arrived: Arrived | None) -> bytes:
    if len(parts) != 1:
        raise errors.SerializeError("bytes beside a message have one number")
    return _beside(arrived).take_bytes(parts[0])


def _beside(arrived: Arrived | None) -> Arrived:
    if arrived is None:
        raise errors.SerializeError("the value refers to a buffer, and none came with it")
    return arrived


_ASIDE: dict[int, Callable[[Any, Arrived | None], Any]] = {ARRAY: _array, ASIDE: _bytes_aside}
"""As `_DECODERS`, of what may stand beside the message."""
_DECODERS |= {
    ARRAY: lambda v: _array(v, None),
    ASIDE: lambda v: _bytes_aside(v, None),
}

_SEQUENCES = frozenset({list, tuple, set, frozenset})
_LEAVES = frozenset({type(None), bool, float, str, bytes, *_ENCODERS}) - _SEQUENCES - {_Pairs, Reference}


def _shallow(value: Any, levels: int) -> bool:
    """Whether `value` is made of common types only, with so few levels of containers.

    Level by level, so that most of the work is done in C; to look into the encoded bytes instead
    (`budget.check_msgpack`) takes ten times as long, and cannot tell a bytearray from bytes.
    """
    level = [value]
    for _ in range(levels):
        if _LEAVES.issuperset(map(type, level)):
            return True
        inner: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                inner += item
                inner += item.values()
            elif kind in _SEQUENCES:
                inner += item
            elif kind not in _LEAVES:
                return False
        level = inner
    return False


_FLAT = frozenset({type(None), bool, int, float, str, bytes, tuple, set})


def _bytearray_in(level: list[Any]) -> bool:
    """Whether there is a bytearray in what ormsgpack wrote unasked: lists and dicts, level by level.

    What its hooks wrote went through `_pack`, which has looked already.
    """
    while True:
        kinds = set(map(type, level))
        if bytearray in kinds:
            return True
        if _FLAT.issuperset(kinds):
            return False
        inner: list[Any] = []
        containers = {kind for kind in kinds if issubclass(kind, (list, dict))}
        for item in level if containers else ():
            if type(item) in containers:
                inner += item.values() if isinstance(item, dict) else item
        level = inner


class _NoForm(Exception):
    """A value of a class that has no form on the wire; never leaves the codec."""

    def __init__(self, cls: type) -> None:
        super().__init__(
            f"{_name(cls)}, which cannot travel: send plain data, values of a class made with dataclass,"
            " Enum, NamedTuple, attrs, msgspec or pydantic, or put @expose on its class to send a reference"
        )


def _name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _lent(reference: Reference, proxy: Any, pack: Pack) -> Ext | None:
    """The form of a proxy that a server calls itself with, and who it came from; None for others."""
    marks = getattr(object.__getattribute__(proxy, "_objserver_stub").pool, "marks", None)
    return None if marks is None else Ext(LENT, pack([str(reference), marks]))


def _lent_parts(content: Any) -> tuple[Reference, list[Any]]:
    if type(content) is not list or len(content) != 2 or type(content[1]) is not list:
        raise errors.SerializeError("a reference that was lent has a URI and those whom it came from")
    return Reference.parse(content[0]), content[1]


def _arrived(reference: Reference, marks: object = None) -> Any:
    """What becomes of a reference where nobody says otherwise."""
    return references.arrived(reference)


class NativeCodec:
    """The codec between two objserver processes."""

    serializer_id = 79
    name = "objserver"
    _leaves_out = False

    def __init__(
        self,
        limits: Limits,
        substitute: Substitute | None = None,
        export: Substitute | None = None,
        arrive: Callable[[Reference], Any] | None = None,
        types: Types | None = None,
    ) -> None:
        self.types = Types() if types is None else types
        self._limits = limits
        self._nesting_max = min(limits.nesting_max, Arrived.LENGTH_MIN - 1)
        self._substitute = substitute
        self._export = export or substitute
        self._arrive: Callable[..., Any] = arrive or _arrived
        self._marks = False
        self._hook = self._ext
        self._pack_hook = self._default
        self._exact_hook = self._exact_default
        self._levels = (limits.nesting_max - 2) // 3
        """Containers in containers that take no more than nesting_max levels of MessagePack: a dict whose
        keys are not strings takes three, a leaf like a datetime two."""
        self._interrupts: dict[int, KeyboardInterrupt] = {}
        """By thread: what came while ormsgpack called a hook of ours.  It would be lost there."""

    def between(
        self, *, arrive: Callable[..., Any], export: Substitute | None = None, marks: bool = False
    ) -> Self:
        """The same, for what is said with one peer.

        `arrive` is given a reference, and the marks that it had if it had any: who it came from, plain data.
        `marks`: the peer is in this process, and gets them too.
        """
        other = twin(self)
        other._arrive, other._marks = arrive, marks
        other._export = export or self._export
        other._hook, other._pack_hook, other._exact_hook = other._ext, other._default, other._exact_default
        return other

    def encode_call(
        self, object_id: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> Encoded:
        call = [object_id, method, list(args), kwargs]
        try:
            data = packb(call, default=self._pack_hook, option=OPTIONS)
        except Exception:
            self._raise_interrupt()
            return self._encode_slowly(call, [("args", args), ("kwargs", kwargs)])
        if (0xC4 in data or (len(data) > 255 and (0xC5 in data or 0xC6 in data))) and _bytearray_in(call):
            return self._encode_slowly(call)
        return data

    def encode(self, value: Any) -> Encoded:
        try:
            data = packb(value, default=self._pack_hook, option=OPTIONS)
        except Exception:
            self._raise_interrupt()
            return self._encode_slowly(value)
        # The heads of bytes.  Shorter ones than 256 have the first; most calls are shorter altogether.
        if (0xC4 in data or (len(data) > 255 and (0xC5 in data or 0xC6 in data))) and _bytearray_in([value]):
            return self._encode_slowly(value)
        return data

    def encode_exactly(self, value: Any) -> bytes:
        """Bytes that `decode` is certain to accept, and to make the very types of `value` from.

        SerializeError names the type for which that cannot be promised, MessageTooLarge the limit.
        """
        data = None
        with contextlib.suppress(Exception):
            data = packb(value, default=self._exact_hook, option=OPTIONS)
        self._raise_interrupt()
        # Asked only once it is packed, so that the value is known to be finite.
        if data is None or not _shallow(value, self._levels):
            data = self._encode_slowly(value, exact=True)
        elif len(data) * budget.BYTE <= self._limits.decoded_size_max:
            return data
        if len(data) > self._nesting_max:
            budget.check_msgpack(data, self._limits, NESTED)
        return data

    def decode_call(self, payload: Any) -> Call:
        if len(payload) <= self._nesting_max:
            # The usual call: too small to break a limit, and of the usual types.
            try:
                call = plain_call(unpackb(payload, ext_hook=self._hook))
                if call is not None:
                    return call  # type: ignore[return-value]
            except Exception:
                self._raise_interrupt()  # of anything else, decode says what is wrong
        return call_of(self.decode(payload))

    def decode(self, payload: Any) -> Any:
        # Each level of nesting takes a byte at least: nothing this small can break a limit.
        if len(payload) > self._nesting_max:
            if type(payload) is Arrived:
                return self._decode_parts(payload)
            budget.check_msgpack(payload, self._limits, NESTED)
        try:
            return unpackb(payload, ext_hook=self._hook)
        except Exception as problem:
            self._raise_interrupt()
            raise self._explain(payload, problem) from None

    def weigh(self, payload: Any) -> int:
        if type(payload) is not Arrived:
            return budget.weigh_msgpack(payload, self._limits, NESTED)
        # What came beside it is left alone: it is to be taken when the value is decoded.
        return len(payload) + budget.weigh_msgpack(payload.open(), self._limits, NESTED)

    def _decode_parts(self, arrived: Arrived) -> Any:
        try:
            data = arrived.open()
            budget.check_msgpack(data, self._limits, NESTED)
            return self._unpack_telling(data, arrived)
        finally:
            arrived.close()

    def _raise_interrupt(self) -> None:
        interrupt = self._interrupts.pop(get_ident(), None)
        if interrupt is not None:
            raise interrupt

    def _pack(self, value: Any) -> bytes:
        data = packb(value, default=self._default, option=OPTIONS)
        if (0xC4 in data or (len(data) > 255 and (0xC5 in data or 0xC6 in data))) and _bytearray_in([value]):
            return self._slow_pack([])(value)
        return data

    def _default(self, value: Any) -> Any:
        try:
            return self._ext_of(value, self._pack)
        except KeyboardInterrupt as interrupt:
            self._interrupts[get_ident()] = interrupt
            raise

    def _exact_pack(self, value: Any) -> bytes:
        return packb(value, default=self._exact_default, option=OPTIONS)

    def _exact_default(self, value: Any) -> Any:
        try:
            return self._exact_ext_of(value, self._exact_pack)
        except KeyboardInterrupt as interrupt:
            self._interrupts[get_ident()] = interrupt
            raise

    def _exact_ext_of(self, value: Any, pack: Pack) -> Any:
        """As `_ext_of`, for a value that it would not turn into something else."""
        kind = type(value)
        name = _name(kind)
        if kind is Reference:
            return Ext(HELD_REFERENCE, str(value).encode())
        if kind in (datetime.datetime, datetime.time):
            zone = value.tzinfo
            if _key_of(zone) is None and type(zone) not in (datetime.timezone, type(None)):
                raise errors.SerializeError(
                    f"the zone of a {name} is a {_name(type(zone))}, of which only the offset would come"
                    " back; use zoneinfo.ZoneInfo"
                )
        if kind in _ENCODERS or arrays.is_numpy(value):
            return self._ext_of(value, pack)
        reference = proxy_reference(value)
        if reference is not None:
            lent = _lent(reference, value, pack)  # or it would be the server's own when it comes back
            return self._ext_of(value, pack) if lent is None else lent
        if self._substitute is not None and self._substitute(value) is not None:
            raise errors.SerializeError(
                f"a {name} that is served here would come back as a proxy; keep a proxy"
            )
        registered = pyro5.class_to_dict(value)
        if registered is not None:
            registered = {"__class__": f"{kind.__module__}.{kind.__name__}"} | registered
            if pyro5.dict_to_class_converter(registered["__class__"]) is None:
                raise errors.SerializeError(
                    f"a {name} could not come back: Pyro5's register_class_to_dict knows its class, but"
                    f" register_dict_to_class does not know {registered['__class__']!r}"
                )
            return Ext(REGISTERED, pack(registered))
        if isinstance(value, (BaseException, pyro5.ExceptionWrapper)):
            raise errors.SerializeError(f"a {name} is an exception, which would not come back whole")
        if pyro5.proxy_state(value) is not None:
            raise errors.SerializeError(
                f"a {name} would come back as objserver's own kind; keep its URI as text"
            )
        form = self.types.form(kind)
        if form is not None:
            if not self.types.allows(kind):
                raise errors.SerializeError(
                    f"a {name} could not come back after a restart, for nothing mentions its class: annotate"
                    f" an attribute or a member with it, or give ObjectServer(types=[{kind.__name__}])"
                )
            lost = form.lost(value)
            if lost:
                raise errors.SerializeError(f"a {name} would come back without {lost}")
            return Ext(OBJECT, pack([form.name, *form.parts(value)]))
        if isinstance(value, enum.Enum):
            raise errors.SerializeError(f"a {name} would come back as its value")
        for base in (*_PLAIN, bytearray):
            if isinstance(value, base):
                raise errors.SerializeError(f"a {name} would come back as a {_name(base)}")
        raise errors.SerializeError(f"a {name} is not plain data")

    def _ext_of(self, value: Any, pack: Pack) -> Any:
        """What stands for a value that MessagePack has no form for."""
        encoder = _ENCODERS.get(type(value))
        if encoder is not None:
            tag, convert = encoder
            content = convert(value)
            return Ext(tag, content if type(content) is bytes else pack(content))
        if arrays.is_numpy(value):
            return self._array_ext(value, pack)
        reference = proxy_reference(value)
        if reference is None:
            if isinstance(value, BaseException):
                return Ext(EXCEPTION, self._exception(value, (), [0]))
            if self._export is not None:
                reference = self._export(value)
        else:
            if reference.object_id.startswith(references.LEASED):
                pass_on(value)
            if self._marks and (lent := _lent(reference, value, pack)) is not None:
                return lent
        if reference is not None and self._marks and proxy_reference(value) is None:
            return Ext(LENT, pack([str(reference), []]))  # nobody's but the server's
        if reference is not None:
            return Ext(REFERENCE, str(reference).encode())
        if isinstance(value, pyro5.ExceptionWrapper):
            return Ext(WRAPPED, pack(value.exception))
        stock = pyro5.proxy_state(value)
        if stock is not None:
            return Ext(REFERENCE, str(stock[1][0] if stock[0].endswith("Proxy") else value).encode())
        registered = pyro5.class_to_dict(value)
        if registered is not None:
            name = f"{type(value).__module__}.{type(value).__name__}"
            return Ext(REGISTERED, pack({"__class__": name} | registered))
        form = self.types.form(type(value))
        if form is not None:
            return Ext(OBJECT, pack([form.name, *form.parts(value)]))
        for base in _PLAIN:
            if isinstance(value, base):
                return base(value)
        if pyro5.is_blob(value):
            raise errors.SerializeError("a SerializedBlob must be the only argument of a call")
        raise _NoForm(type(value))

    def _array_ext(self, value: Any, pack: Pack) -> Ext:
        header, array = arrays.header_of(value)
        if array.nbytes >= arrays.ASIDE_MIN:
            if self._leaves_out and pack == self._pack:
                raise errors.SerializeError("the fast way has no place for what is left out")
            buffers = getattr(pack, "buffers", None)
            if buffers is not None and len(buffers) < BUFFERS_MAX:
                buffers.append(arrays.bytes_of(array))
                return Ext(ARRAY, packb([*header, len(buffers) - 1]))
        return Ext(ARRAY, packb([*header, bytes(arrays.bytes_of(array))]))

    def _exception(self, error: BaseException, above: tuple[BaseException, ...], count: list[int]) -> bytes:
        """An error must arrive even if something it carries cannot: that part is sent as its repr.

        So is an error inside it that it is itself inside of (`above`), one too far down, and one too many.
        """
        count[0] += 1
        above = (*above, error)
        self.types.form(type(error))

        def inner(value: BaseException) -> Any:
            inside = any(outer is value for outer in above)
            if inside or len(above) > exceptions.DEPTH_MAX or count[0] >= exceptions.ERRORS_MAX:
                return exceptions.repr_of(value)
            return Ext(EXCEPTION, self._exception(value, above, count))

        problems: list[BaseException] = []
        pack = self._slow_pack(problems, inner)

        def told(value: Any) -> Any:
            try:
                return Fragment(pack(value))
            except Exception:
                self._raise_interrupt()
                return Fragment(pack(exceptions.repr_of(value)))

        args, attributes = exceptions.taken_apart(error)
        try:
            parts = [told(arg) for arg in args], {name: told(value) for name, value in attributes.items()}
            return pack([full_name(type(error)), *parts, told(exceptions.text_of(error))])
        finally:
            # These functions know each other, and what they know would wait for the collector: the error,
            # with all that is in its frames.
            above = ()
            problems.clear()

    def _slow_pack(
        self,
        problems: list[BaseException],
        inner: Callable[[BaseException], Any] | None = None,
        exact: bool = False,
    ) -> Pack:
        """A pack that takes dicts with any keys, and keeps what its hooks raise.

        `inner` says what becomes of an exception.
        """
        ext_of = self._exact_ext_of if exact else self._ext_of

        def default(value: Any) -> Any:
            try:
                if inner is not None and isinstance(value, BaseException):
                    return inner(value)
                content = ext_of(value, pack)
                return content if type(content) is Ext else wrapped(content)
            except KeyboardInterrupt as interrupt:
                self._interrupts[get_ident()] = interrupt
                raise
            except BaseException as problem:
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
            if kind is bytearray:
                return Ext(BYTEARRAY, bytes(value))
            if exact and kind in (memoryview, Ext, Fragment):
                raise errors.SerializeError(f"a {_name(kind)} would come back as something else")
            return value

        def pack(value: Any) -> bytes:
            return packb(wrapped(value), default=default, option=OPTIONS)

        return pack

    def _encode_slowly(
        self,
        value: Any,
        roots: Sequence[tuple[str, Any]] = (),
        exact: bool = False,
        buffers: list[bytes | memoryview] | None = None,
    ) -> Any:
        """`roots` are what the sentence about a failure calls the parts of the value."""
        problems: list[BaseException] = []
        pack: Any = self._slow_pack(problems, exact=exact)
        if buffers is not None:
            pack.buffers = buffers
        try:
            data = pack(value)
            return Parts(data, buffers) if buffers else data
        except Exception as problem:
            self._raise_interrupt()
            culprit = problems[0] if problems else problem
            path = ""
            if not exact:
                path, found = where(roots or [("result", value)], self._problem_with, self.types)
                culprit = found or culprit
            if isinstance(culprit, _NoForm):
                raise errors.SerializeError(f"{path or 'something in it'} is a {culprit}") from None
            raise cannot("encode", self.name, culprit, path) from None

    def _problem_with(self, value: Any) -> BaseException | None:
        problems: list[BaseException] = []
        try:
            self._slow_pack(problems)(value)
        except Exception as problem:
            self._raise_interrupt()
            return problems[0] if problems else problem
        return None

    def _ext(self, tag: int, data: bytes) -> Any:
        try:
            if tag == REFERENCE:
                return self._arrive(Reference.parse(data.decode()))
            if tag >= 64:
                return _made(tag, data, self.types)
            # An error must arrive even where something it carries is not known.
            hook = self._ext if tag != EXCEPTION else self._lenient_ext
            content = unpackb(data, ext_hook=hook)
            return self._arrive(*_lent_parts(content)) if tag == LENT else _made(tag, content, self.types)
        except KeyboardInterrupt as interrupt:
            self._interrupts[get_ident()] = interrupt
            raise

    def _lenient_ext(self, tag: int, data: bytes) -> Any:
        try:
            if tag >= 64:
                return self._ext(tag, data)
            if tag == LENT:
                return self._ext(tag, data)
            return _made(tag, unpackb(data, ext_hook=self._lenient_ext), self.types)
        except errors.SerializeError:
            if tag != OBJECT:
                raise
            return f"<{str(unpackb(data, ext_hook=self._lenient_ext))[:1000]}, of a class not known here>"

    def _explain(self, payload: Payload, problem: Exception) -> errors.ProtocolError:
        """Decode again, keeping what the hook raises, because ormsgpack only says that it failed."""
        try:
            self._unpack_telling(payload, None)
        except errors.ProtocolError as told:
            return told
        return cannot("decode", self.name, problem)

    def _unpack_telling(self, payload: Payload, arrived: Arrived | None) -> Any:
        """Decode, keeping what the hook raises; blocks come from `arrived`."""
        problems: list[BaseException] = []

        def hook(tag: int, data: bytes) -> Any:
            try:
                if tag not in _DECODERS:
                    raise errors.SerializeError(f"MessagePack Ext type {tag} is unknown")
                if tag == REFERENCE:
                    return self._arrive(Reference.parse(data.decode()))
                if tag in _ASIDE:
                    content = unpackb(data, ext_hook=hook)
                    if type(content) is not list:
                        raise errors.SerializeError(f"Ext type {tag} holds a {type(content).__name__}")
                    return _ASIDE[tag](content, arrived)
                if tag == LENT:
                    return self._arrive(*_lent_parts(unpackb(data, ext_hook=hook)))
                inner = hook if tag != EXCEPTION else self._lenient_ext
                return _made(tag, unpackb(data, ext_hook=inner) if tag < 64 else data, self.types)
            except BaseException as raised:
                problems.append(raised)
                raise

        try:
            return unpackb(payload, ext_hook=hook)
        except Exception as again:
            problem: BaseException = problems[0] if problems else again
        if isinstance(problem, KeyboardInterrupt):
            raise problem
        raise cannot("decode", self.name, problem) from None


class PartsCodec(NativeCodec):
    """The same, towards a peer that has greeted us: large blocks are left out of what is encoded."""

    _leaves_out = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._meets_bytes = False
        """Whether calls with large bytes have been seen.  (A default of the class takes longer to read.)"""

    def encode_call(
        self, object_id: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> Encoded:
        if not self._meets_bytes or not any(type(arg) is bytes for arg in args):
            call = [object_id, method, list(args), kwargs]
            try:
                data = packb(call, default=self._pack_hook, option=OPTIONS)
            except Exception:
                self._raise_interrupt()
            else:
                # (As in NativeCodec.encode; a bytearray is left to `pack`.)
                heads = 0xC4 in data or (len(data) > 255 and (0xC5 in data or 0xC6 in data))
                if not heads or not _bytearray_in(call):
                    if len(data) < BYTES_ASIDE_MIN:
                        return data
                    # Too late for this once, but to look at all arguments of every call would cost all calls.
                    self._meets_bytes = any(type(arg) is bytes for arg in args)
                    if not self._meets_bytes:
                        return data
        pack = _Aside(self)
        # Only in plain sight: what is deeper inside goes to no hook if it is bytes.
        call = [object_id, method, list(map(pack.leave_out, args)), kwargs]
        return self._encode_parts(call, pack, [("args", args), ("kwargs", kwargs)])

    def encode(self, value: Any) -> Encoded:
        if type(value) is bytes and len(value) >= BYTES_ASIDE_MIN:
            pack = _Aside(self)
            return self._encode_parts(pack.leave_out(value), pack)
        try:
            data = packb(value, default=self._pack_hook, option=OPTIONS)
        except Exception:
            self._raise_interrupt()
            return self._encode_parts(value, _Aside(self))
        if (0xC4 in data or (len(data) > 255 and (0xC5 in data or 0xC6 in data))) and _bytearray_in([value]):
            return self._encode_parts(value, _Aside(self))
        return data

    def _encode_parts(self, value: Any, pack: _Aside, roots: Sequence[tuple[str, Any]] = ()) -> Encoded:
        left_out = len(pack.buffers)
        try:
            data = pack(value)
        except Exception:
            self._raise_interrupt()
            del pack.buffers[left_out:]  # of the attempt that failed
            return self._encode_slowly(value, roots, buffers=pack.buffers)
        return Parts(data, pack.buffers) if pack.buffers else data


class _Aside:
    """A pack that leaves large blocks out of its result; they gather in `buffers`."""

    def __init__(self, codec: NativeCodec) -> None:
        self.buffers: list[bytes | memoryview] = []
        self._codec = codec

    def __call__(self, value: Any) -> bytes:
        left_out = len(self.buffers)
        data = packb(value, default=self._default, option=OPTIONS)
        if not _bytearray_in([value]):
            return data
        del self.buffers[left_out:]  # they will be left out again
        pack: Any = self._codec._slow_pack([])
        pack.buffers = self.buffers
        return pack(value)  # type: ignore[no-any-return]

    def leave_out(self, value: Any) -> Any:
        if type(value) is not bytes or len(value) < BYTES_ASIDE_MIN or len(self.buffers) >= BUFFERS_MAX:
            return value
        self.buffers.append(value)
        return Ext(ASIDE, packb([len(self.buffers) - 1]))

    def _default(self, value: Any) -> Any:
        try:
            return self._codec._ext_of(value, self)
        except KeyboardInterrupt as interrupt:
            self._codec._interrupts[get_ident()] = interrupt
            raise
