import collections
import datetime
import enum
import pathlib
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import errors
from objserver.codecs.native import NativeCodec
from objserver.references import Reference
from objserver.settings import Limits

codec = NativeCodec(Limits())

keys = st.one_of(
    st.integers(),
    st.text(),
    st.booleans(),
    st.binary(),
    st.tuples(st.integers(), st.text()),
    st.frozensets(st.integers()),
    st.uuids(),
    st.dates(),
    st.decimals(allow_nan=False),
    st.fractions(),
)
leaves = st.one_of(
    keys,
    st.none(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.timedeltas(),
    st.datetimes(),
    st.datetimes(timezones=st.just(datetime.UTC)),
    st.times(),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.text(), inner),
        st.dictionaries(keys, inner),
    ),
    max_leaves=20,
)


def typed(value):
    if isinstance(value, dict):
        return dict, [(typed(k), typed(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    return type(value), value


@given(values)
def test_values_keep_their_types(value):
    assert typed(codec.decode(codec.encode(value))) == typed(value)


@given(st.lists(values), st.dictionaries(st.text(), values))
def test_calls(args, kwargs):
    assert codec.decode_call(codec.encode_call("o/1", "m", args, kwargs)) == ("o/1", "m", args, kwargs)
    payload = memoryview(codec.encode_call("o", "m", tuple(args), None))
    assert codec.decode_call(payload) == ("o", "m", args, {})


def test_further_types():
    zoned = datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    for value in (
        zoned,
        datetime.time(1, 2, tzinfo=zoneinfo.ZoneInfo("UTC")),
        pathlib.Path("/a/b"),
        {1, "x"},
        set(),
        frozenset({(1, 2)}),
        {None: 1, (1, (2,)): {3: 4}},
        [({1: 2},)],
        2**70000,
        -(2**64),
        Fraction(1, 2**80),
        Decimal("1.50"),
        Decimal("-Infinity"),
        uuid.uuid4(),
        Reference.parse("PYRO:a/b@[::1]:5"),
        b"\0\xff",
    ):
        again = codec.decode(codec.encode(value))
        assert typed(again) == typed(value)
    again = codec.decode(codec.encode(zoned))
    assert (again.fold, again.tzinfo) == (1, zoned.tzinfo)


def test_subclasses_travel_as_their_base():
    point = collections.namedtuple("point", "x y")
    number = enum.IntEnum("number", "one two")
    assert codec.decode(codec.encode([point(1, 2), number.two, collections.OrderedDict(a=1)])) == [
        (1, 2),
        2,
        {"a": 1},
    ]


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.two = two


def test_exceptions():
    error = KeyError("k", (1, 2))
    error.extra = {1: 2}
    error._pyroTraceback = ["Traceback...\n", "  line\n"]
    again = codec.decode(codec.encode(error))
    assert type(again) is KeyError
    assert (again.args, again.extra) == (("k", (1, 2)), {1: 2})
    assert again.__notes__ == ["Remote traceback:\nTraceback...\n  line"]
    assert vars(codec.decode(codec.encode(again)))["__notes__"] == again.__notes__
    assert type(codec.decode(codec.encode(errors.ObjectNotFound("x")))) is errors.ObjectNotFound
    unknown = codec.decode(codec.encode(Odd(1, 2)))
    assert type(unknown) is errors.RemoteError
    assert unknown.type_name.endswith("test_native.Odd")
    assert (unknown.remote_args, unknown.attributes) == ((1,), {"two": 2})
    forwarded = codec.decode(codec.encode(unknown))
    assert (forwarded.type_name, forwarded.attributes) == (unknown.type_name, {"two": 2})
    assert type(codec.decode(codec.encode(SystemExit(1)))) is errors.RemoteError
    stuck = ValueError("x", object(), {1: 2})
    stuck.lock = object()
    assert codec.decode(codec.encode({1: stuck}))[1].args[::2] == ("x", {1: 2})


def test_references():
    class Servant(dict):
        pass

    class Proxy:
        _objserver_is_proxy = True
        _objserver_reference = Reference.parse("PYRO:p@h:1")

        def __getattribute__(self, name):
            raise AssertionError(name)

    reference = Reference.parse("PYRO:s@h:1")
    own = NativeCodec(Limits(), lambda value: reference if isinstance(value, Servant) else None)
    assert own.decode(own.encode([Servant(), {1: Proxy()}])) == [
        reference,
        {1: Reference.parse("PYRO:p@h:1")},
    ]


def test_refusals_name_the_reason():
    with pytest.raises(errors.SerializeError, match=r"object .*register"):
        codec.encode([({1: object()},)])
    loop = []
    loop.append(loop)
    with pytest.raises(errors.SerializeError):
        codec.encode(loop)
    with pytest.raises(errors.SerializeError, match="surrogates"):
        codec.encode("\ud800")
    for bad in (
        b"",
        b"\xc1",
        b"\xd4\x63\0",
        b"\xd4\x42x",
        b"\x92\1",
        ormsgpack.packb(ormsgpack.Ext(66, b"x")),
    ):
        with pytest.raises(errors.SerializeError):
            codec.decode(bad)
    with pytest.raises(errors.SerializeError, match="99"):
        codec.decode(b"\xd4\x63\0")
    for bad in ([1, 2], ["a", 1, [], {}], ["a", "b", "c", {}], ["a", "b", [], []], ["a", "b", [], {1: 2}], 5):
        with pytest.raises(errors.SerializeError):
            codec.decode_call(codec.encode(bad))


@given(st.binary(max_size=400))
def test_noise_gives_only_our_errors(data):
    try:
        codec.decode(data)
    except errors.ProtocolError:
        pass
