"""States as JSON, without their classes."""

import dataclasses
import datetime
import enum
import json
import math
import pathlib
import sys
import typing
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import Proxy, Reference, errors
from objserver.codecs import Codecs, Types
from objserver.codecs.native import _DECODERS, ASIDE, EXCEPTION, WRAPPED
from objserver.codecs.readable import _NAMES, from_json, to_json
from objserver.settings import Limits


def lent(uri, marks):
    proxy = Proxy(uri)
    proxy._objserver_stub.pool.marks = marks
    return proxy


class Colour(enum.Enum):
    RED = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Order:
    item: str
    colour: Colour


@dataclasses.dataclass
class Nothing:
    pass


class Pair(typing.NamedTuple):
    a: int
    b: int


CODEC = Codecs(Limits(), types=Types([Colour, Right, Order, Nothing, Pair])).native
HERE = __name__

SHOWN = [
    (None, None),
    ([1, -1, 2**63, 1.5, True, "é"], [1, -1, 2**63, 1.5, True, "é"]),
    ({"a": {}, "b": []}, {"a": {}, "b": []}),
    ((1, (2,)), {"$tuple": [1, {"$tuple": [2]}]}),
    ({7}, {"$set": [7]}),
    (frozenset({(1,)}), {"$frozenset": [{"$tuple": [1]}]}),
    ({1: 2, (1,): []}, {"$dict": [[1, 2], [{"$tuple": [1]}, []]]}),
    ({"$x": 1, "y": 2}, {"$x": 1, "y": 2}),
    ({"$x": {"$y": (1,)}}, {"$map": {"$x": {"$map": {"$y": {"$tuple": [1]}}}}}),
    ({"$map": 1}, {"$map": {"$map": 1}}),
    (b"\x00\x01", {"$bytes": "AAE="}),
    (bytearray(b"\x00\x01"), {"$bytearray": "AAE="}),
    (2**64, {"$int": "18446744073709551616"}),
    (-(2**63) - 1, {"$int": "-9223372036854775809"}),
    (1 << 20_000, {"$int": hex(1 << 20_000)}),
    ([math.inf, -math.inf], [{"$float": "inf"}, {"$float": "-inf"}]),
    (Decimal("1.50"), {"$decimal": "1.50"}),
    (Fraction(1, 3**50), {"$fraction": f"1/{3**50}"}),
    (complex(0, math.inf), {"$complex": [0.0, {"$float": "inf"}]}),
    (datetime.date(2026, 11, 23), {"$date": "2026-11-23"}),
    (datetime.datetime(2026, 11, 23, 1), {"$datetime": ["2026-11-23T01:00:00", 0, None]}),
    (
        datetime.datetime(2026, 11, 23, tzinfo=zoneinfo.ZoneInfo("Europe/Amsterdam")),
        {"$datetime": ["2026-11-23T00:00:00+01:00", 0, "Europe/Amsterdam"]},
    ),
    (datetime.time(1, 2, fold=1), {"$time": ["01:02:00", 1, None]}),
    (datetime.timedelta(1, 2, 3), {"$timedelta": [1, 2, 3]}),
    (uuid.UUID(int=5), {"$uuid": "00000000-0000-0000-0000-000000000005"}),
    (pathlib.Path("/a\udcff"), {"$path": "/a\udcff"}),
    (Reference.parse("PYRO:x@h:1"), {"$reference": "PYRO:x@h:1"}),
    (Proxy("PYRO:x@h:1"), {"$proxy": "PYRO:x@h:1"}),
    (lent("PYRO:x@h:1", []), {"$lent": ["PYRO:x@h:1", []]}),
    (lent("PYRO:x@h:1", [["alice", 1.5, None]]), {"$lent": ["PYRO:x@h:1", [["alice", 1.5, None]]]}),
    (
        Order("tea", Colour.RED),
        {
            "$object": {
                "class": f"{HERE}.Order",
                "fields": {
                    "item": "tea",
                    "colour": {"$object": {"class": f"{HERE}.Colour", "parts": ["RED"]}},
                },
            }
        },
    ),
    (Nothing(), {"$object": {"class": f"{HERE}.Nothing", "fields": {}}}),
    (Pair(1, 2), {"$object": {"class": f"{HERE}.Pair", "parts": [1, 2]}}),
    (Right.READ | Right.WRITE, {"$object": {"class": f"{HERE}.Right", "parts": [3]}}),
    (numpy.array([1, 2], "u1"), {"$array": ["|u1", [2], "C", {"$bytes": "AQI="}]}),
]


@pytest.mark.parametrize(
    ("value", "shown"), SHOWN, ids=[f"{type(value).__name__}-{n}" for n, (value, _) in enumerate(SHOWN)]
)
def test_how_values_are_written(value, shown):
    data = CODEC.encode_exactly(value)
    assert to_json(data) == shown
    text = json.dumps(shown, allow_nan=False)
    assert from_json(json.loads(text)) == data


def test_all_that_can_be_in_a_state_has_a_name():
    assert set(_DECODERS) - set(_NAMES) == {EXCEPTION, WRAPPED, ASIDE}


def test_nan():
    data = CODEC.encode_exactly(math.nan)
    assert to_json(data) == {"$float": "nan"}
    assert from_json({"$float": "nan"}) == data


def test_of_pyro5s_registry():
    data = from_json({"$registered": {"__class__": "bank.Old", "at": {"$date": "2026-11-23"}}})
    assert to_json(data) == {"$registered": {"__class__": "bank.Old", "at": {"$date": "2026-11-23"}}}


PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.decimals(),
        st.fractions(),
        st.complex_numbers(allow_nan=False),
        st.datetimes(timezones=st.just(datetime.UTC)),
        st.dates(),
        st.times(),
        st.timedeltas(),
        st.uuids(),
        st.builds(Pair, st.integers(), st.text()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.sampled_from(["$map", "$x"])), inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(), st.text(), st.tuples(st.integers())), inner, max_size=3),
        st.sets(st.integers(), max_size=3),
        st.frozensets(st.text(), max_size=3),
        st.builds(Order, st.text(), inner),
    ),
)


@given(PLAIN)
def test_it_is_the_same_to_the_byte(value):
    data = CODEC.encode_exactly(value)
    assert from_json(json.loads(json.dumps(to_json(data), allow_nan=False))) == data


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
        st.dictionaries(
            st.sampled_from([*_NAMES.values(), "$map", "$ext", "$float", "$bytes"]), inner, max_size=1
        ),
    ),
)


@given(JSON)
def test_what_anybody_writes_is_refused_or_can_be_read_again(value):
    try:
        data = from_json(value)
    except errors.SerializeError:
        return
    to_json(data)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"$tupel": [1]}, r"\$tupel is unknown; did you mean '\$tuple'\?.*\$map"),
        ({"$set": [[1]]}, r"\$set .*unhashable"),
        ({"$set": [{"$tuple": [[1]]}]}, r"\$set .*unhashable"),
        ({"$date": "2026-13-01"}, r"\$date .*month"),
        ({"$decimal": "x"}, r"\$decimal "),
        ({"$bytes": "?"}, r"\$bytes .*base64"),
        ({"$int": 1}, r"\$int .*str belongs there, not int"),
        ({"$object": {"class": "x"}}, r'\$object .*"fields" or "parts"'),
        ({"$object": {"class": 1, "parts": []}}, r"\$object .*str belongs there"),
        ({"$registered": {}}, r"\$registered .*__class__"),
        ({"$proxy": "nope"}, r"\$proxy .*not a URI"),
        ({"$lent": ["nope", []]}, r"\$lent .*not a URI"),
        ({"$lent": ["PYRO:x@h:1", 5]}, r"\$lent .*list belongs there"),
        ({"$fraction": "1/0"}, r"\$fraction "),
        ({"$dict": [[1]]}, "pairs"),
        ({"$datetime": ["x", 0, None]}, r"\$datetime .*isoformat"),
        ({"$ext": [1, "AAE="]}, r"\$ext .*write it as \$tuple"),
        ({"$map": []}, r"\$map .*dict belongs there"),
        ({"$float": "1.5"}, r"\$float .*only nan"),
        ({"a": ["\ud800"]}, "surrogates"),
    ],
    ids=lambda each: ascii(each)[:30],
)
def test_what_is_wrong_is_said(value, sentence):
    with pytest.raises(errors.SerializeError, match=sentence):
        from_json(value)


def test_too_deep_is_said_and_not_a_crash():
    deep = 1
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(errors.SerializeError, match="deep"):
        from_json(deep)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91", b"\xc7\xff\x01", b"\xd4\x01\xc1"])
def test_what_our_codec_did_not_write_is_an_error(data):
    with pytest.raises(errors.SerializeError):
        to_json(data)


def test_what_this_release_does_not_know_is_kept():
    assert to_json(b"\xd5\x63ab") == {"$ext": [99, "YWI="]}
    assert from_json({"$ext": [99, "YWI="]}) == b"\xd5\x63ab"


def test_nothing_is_imported_or_made():
    before = set(sys.modules)
    shown = {"$object": {"class": "antigravity.Balloon", "fields": {"up": True}}}
    data = from_json(shown)
    assert to_json(data) == shown
    assert "antigravity" not in set(sys.modules) - before
