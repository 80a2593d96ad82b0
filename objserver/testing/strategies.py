"""Values and frames for Hypothesis: what may travel, what travels as a frame, and frames that are broken.

    @given(values())
    def test_it_comes_back(value):
        assert alike(codec.decode(codec.encode(value)), value)

`values` nests, in any way, what arrives as the type that it was between our peers; strategies for classes of
the application's own are given to it.  `portable_values` is the part of it that a stock serializer gives
back.

Hypothesis is loaded when a strategy is asked for: who only serves has no need of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objserver.references import Location, Reference
from objserver.wire import Flag, FrameType, encode_frame
from objserver.wire.frames import HEADER_SIZE

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["alike", "broken_frames", "frames", "portable_values", "references", "values"]

FRACTION_MAX = 2**64


def references() -> SearchStrategy[Reference]:
    """References to objects at TCP addresses and Unix sockets, and logical ones."""
    from hypothesis import strategies as st

    ids = st.from_regex(r"[A-Za-z~][A-Za-z0-9_./%~-]{0,20}", fullmatch=True)
    hosts = st.sampled_from(["localhost", "127.0.0.1", "::1", "db.lab.example"])
    tcp = st.builds(Location, hosts, st.integers(0, 65535))
    unix = st.builds(lambda name: Location(path=f"/run/{name}"), ids)
    return st.one_of(
        st.builds(Reference, st.just("PYRO"), ids, tcp | unix),
        st.builds(Reference, st.sampled_from(["PYRONAME", "PYROMETA"]), ids, st.none() | tcp),
    )


def _scalars() -> SearchStrategy[Any]:
    """What can be in a set, or the key of a dict."""
    from hypothesis import strategies as st

    zones = st.none() | st.timezones() | st.just(datetime.UTC)
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**500), 2**500),
        st.floats(),
        st.complex_numbers(),
        st.text(),
        st.binary(),
        st.datetimes(timezones=zones, allow_imaginary=False),
        st.dates(),
        st.times(),
        st.timedeltas(),
        st.decimals().filter(lambda number: not number.is_snan()),  # which has no hash
        st.fractions(max_denominator=FRACTION_MAX),
        st.uuids(),
        st.from_regex(r"/?[a-z]{1,8}(/[a-z.\u00e4]{1,8}){0,3}", fullmatch=True).map(Path),
    )


def values(*more: SearchStrategy[Any], max_leaves: int = 20) -> SearchStrategy[Any]:
    """Anything that keeps its type on the way between our peers; `more` are leaves of your own."""
    from hypothesis import strategies as st

    scalars = _scalars()
    hashable = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
        max_leaves=5,
    )
    leaves = st.one_of(scalars, st.binary().map(bytearray), *more)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=5),
            st.lists(inner, max_size=5).map(tuple),
            st.sets(hashable, max_size=5),
            st.frozensets(hashable, max_size=5),
            st.dictionaries(st.text(), inner, max_size=5),
            st.dictionaries(hashable, inner, max_size=5),
        ),
        max_leaves=max_leaves,
    )


def portable_values(serializer: str, max_leaves: int = 20) -> SearchStrategy[Any]:
    """What "serpent", "json", "msgpack" or "marshal" gives back as it was."""
    from hypothesis import strategies as st

    # No stock peer can send a lone surrogate; "__class__" in a dict has a meaning of its own.
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    keys = text.filter(lambda key: key != "__class__")
    numbers = {
        "serpent": st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.complex_numbers(
            allow_nan=False, allow_infinity=False
        ),
        "json": st.integers() | st.floats(),
        "msgpack": st.integers(-(2**63), 2**64 - 1) | st.floats() | st.dates(),
        "marshal": st.integers() | st.floats() | st.complex_numbers(),
    }[serializer]  # fmt: skip
    leaves: SearchStrategy[Any] = st.none() | st.booleans() | text | numbers
    if serializer in ("msgpack", "marshal"):
        leaves |= st.binary()
    hashable = st.integers(-(2**60), 2**60) | text

    def nested(inner: SearchStrategy[Any]) -> SearchStrategy[Any]:
        containers: SearchStrategy[Any] = st.lists(inner, max_size=5)
        containers |= st.dictionaries(keys, inner, max_size=5)
        if serializer in ("serpent", "marshal"):
            containers |= st.lists(inner, max_size=5).map(tuple)
            containers |= st.sets(hashable, min_size=1, max_size=5)  # serpent writes an empty one as ()
        return containers

    return st.recursive(leaves, nested, max_leaves=max_leaves)


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types all through; NaN is like NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return alike(one.real, other.real) and alike(one.imag, other.imag)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, (set, frozenset)):
        return _matched([*one], [*other])
    if isinstance(one, dict):
        return _matched([*one.items()], [*other.items()])
    if isinstance(one, (datetime.datetime, datetime.time)):
        return (one.isoformat(), one.fold) == (other.isoformat(), other.fold)
    if isinstance(one, enum.Enum):
        return one is other
    if dataclasses.is_dataclass(one):
        return alike(vars(one), vars(other))
    if isinstance(one, BaseException):
        return alike(one.args, other.args)
    if type(one).__module__ == "numpy":
        return _form(one) == _form(other)
    return bool(one == other)


def _form(array: Any) -> tuple[Any, ...]:
    return array.dtype, array.shape, array.tobytes()


def _matched(some: list[Any], others: list[Any]) -> bool:
    """Whether each is like one of the others; what is not equal to itself has no better order."""
    for item in some:
        found = next((at for at, other in enumerate(others) if alike(item, other)), None)
        if found is None:
            return False
        del others[found]
    return not others


def frames(payloads: SearchStrategy[bytes] | None = None) -> SearchStrategy[bytes]:
    """Frames as a peer may send them, whatever is in them."""
    from hypothesis import strategies as st

    kinds = (FrameType.CONNECT, FrameType.INVOKE, FrameType.RESULT, FrameType.PING, FrameType.CANCEL)
    names = st.text(st.characters(codec="ascii"), min_size=4, max_size=4)
    flags = (0, 0, Flag.ONEWAY, Flag.BATCH, Flag.EXCEPTION, Flag.KEEP_SERIALIZED, Flag.ITEM_STREAM)
    return st.builds(
        encode_frame,
        st.sampled_from(kinds),
        st.sampled_from([1, 2, 3, 4, 79]),
        st.sampled_from(flags),
        st.integers(0, 0xFFFF),
        st.binary(max_size=200) if payloads is None else payloads,
        st.none() | st.dictionaries(names, st.binary(max_size=50), max_size=5),
    )


def broken_frames(sound: SearchStrategy[bytes] | None = None) -> SearchStrategy[bytes]:
    """Frames to which something has been done: cut, a bit flipped, a length changed, two of them mixed."""
    from hypothesis import strategies as st

    sound = frames() if sound is None else sound
    places = st.integers(0, 10_000)
    lengths = st.integers(0, 2**32 - 1) | st.integers(0, 300)
    changes: list[SearchStrategy[Callable[[bytes], bytes]]] = [
        places.map(lambda at: lambda frame: frame[: at % (len(frame) + 1)]),
        places.map(lambda at: lambda frame: _flipped(frame, at)),
        st.tuples(st.sampled_from([12, 16, HEADER_SIZE + 4]), lengths).map(
            lambda change: (
                lambda frame: frame[: change[0]] + change[1].to_bytes(4, "big") + frame[change[0] + 4 :]
            )
        ),
        st.tuples(places, sound).map(
            lambda mix: (
                lambda frame: frame[: mix[0] % (len(frame) + 1)] + mix[1][mix[0] % (len(mix[1]) + 1) :]
            )
        ),
        st.tuples(places, st.binary(max_size=8)).map(
            lambda more: lambda frame: frame[: more[0] % (len(frame) + 1)] + more[1] + frame[more[0] :]
        ),
    ]

    def changed(frame: bytes, done: list[Callable[[bytes], bytes]]) -> bytes:
        for change in done:
            frame = change(frame)
        return frame

    return st.builds(changed, sound, st.lists(st.one_of(changes), min_size=1, max_size=3))


def _flipped(frame: bytes, bit: int) -> bytes:
    if not frame:
        return frame
    data = bytearray(frame)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(data)
