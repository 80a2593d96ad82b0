import collections
import datetime
import enum
import pathlib
import types
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction

import ormsgpack
import Pyro5.core
import pytest
from hypothesis import given
from hypothesis import strategies as st
from Pyro5.serializers import SerializerBase

from objserver import errors, references
from objserver.codecs import budget, native
from objserver.codecs.native import NativeCodec
from objserver.references import Reference
from objserver.settings import Limits

codec = NativeCodec(Limits())
stranger = NativeCodec(Limits())
"""... which knows no class, for it never sent one."""

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
    leaves | st.binary(max_size=300).map(bytearray),
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
    assert tuple(codec.decode_call(codec.encode_call("o/1", "m", args, kwargs))) == ("o/1", "m", args, kwargs)
    payload = memoryview(codec.encode_call("o", "m", tuple(args), None))
    assert tuple(codec.decode_call(payload)) == ("o", "m", args, {})


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


def test_other_subclasses_travel_as_their_base():
    text = type("Text", (str,), {})
    again = codec.decode(codec.encode([collections.OrderedDict(a=bytearray(b"x")), text("x")]))
    assert typed(again) == typed([{"a": bytearray(b"x")}, "x"])


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
    unknown = stranger.decode(codec.encode(Odd(1, 2)))
    assert type(unknown) is errors.RemoteError
    assert unknown.type_name.endswith("test_native.Odd")
    assert (unknown.remote_args, unknown.attributes) == ((1,), {"two": 2})
    forwarded = stranger.decode(codec.encode(unknown))
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
    with pytest.raises(
        errors.SerializeError, match=r"result\[0\]\[0\]\[1\] is a object, which cannot travel: .*@expose"
    ):
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


class Mute(Exception):
    def __str__(self):
        raise SystemExit

    __repr__ = __str__


def test_an_exception_that_cannot_be_told_still_arrives():
    error = Mute(object(), 5)
    error.other = Mute()
    error.other.lock = object()
    error.self = error
    again = stranger.decode(codec.encode(error))
    assert again.type_name.endswith("Mute")
    assert again.remote_args[1] == 5


class Registered:
    """Its converters raise what the test says."""


@pytest.fixture
def registered():
    problems = []

    def raising(*_):
        raise problems[0]

    SerializerBase.register_class_to_dict(Registered, raising)
    SerializerBase.register_dict_to_class("fatal", raising)
    yield problems
    SerializerBase.unregister_class_to_dict(Registered)
    SerializerBase.unregister_dict_to_class("fatal")


FATAL = ormsgpack.packb(ormsgpack.Ext(native.REGISTERED, ormsgpack.packb({"__class__": "fatal"})))


@pytest.mark.parametrize("problem", [SystemExit("s"), GeneratorExit("s"), KeyError("s")])
def test_whatever_a_converter_raises_is_a_serialize_error(registered, problem):
    registered.append(problem)
    for encode in (codec.encode, codec.encode_exactly):
        with pytest.raises(errors.SerializeError, match="s"):
            encode([(Registered(),)])
    with pytest.raises(errors.SerializeError, match="s"):
        codec.decode(FATAL)


def test_an_interrupt_passes(registered):
    registered.append(KeyboardInterrupt())
    error = ValueError([Registered()])
    for value in (Registered(), [(Registered(),)], {1: Registered()}, error):
        with pytest.raises(KeyboardInterrupt):
            codec.encode(value)
    with pytest.raises(KeyboardInterrupt):
        codec.encode_call("o", "m", [Registered()], {})
    for value in (Registered(), {1: Registered()}):
        with pytest.raises(KeyboardInterrupt):
            codec.encode_exactly(value)
    with pytest.raises(KeyboardInterrupt):
        codec.decode(FATAL)
    with pytest.raises(KeyboardInterrupt):
        codec.decode_call(FATAL)
    assert codec.encode(("nothing", "is left behind")) == codec.encode(("nothing", "is left behind"))


def test_an_interrupt_in_between_is_not_lost():
    """The hook is asked again by the slow path, where nothing may happen any more."""
    asked = []

    def once(value):
        asked.append(value)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        NativeCodec(Limits(), once).encode(pathlib.PurePosixPath())
    assert len(asked) == 1


# -- exactly -------------------------------------------------------------------------------------------


@given(values)
def test_exactly_is_as_usual_for_what_keeps_its_type(value):
    assert codec.encode_exactly(value) == codec.encode(value)


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Zone(datetime.tzinfo):
    def utcoffset(self, moment):
        return datetime.timedelta(hours=1)


Point = collections.namedtuple("Point", "x y")
Text = type("Text", (str,), {})
Count = type("Count", (int,), {})
Bytes = type("Bytes", (bytes,), {})
Buffer = type("Buffer", (bytearray,), {})

LOSSY = [
    (Color.RED, "Color could not come back after a restart"),
    (Level.LOW, "Level could not come back after a restart"),
    (Point(1, 2), "Point could not come back after a restart"),
    (collections.OrderedDict(a=1), "OrderedDict would come back as a dict"),
    (collections.defaultdict(int), "defaultdict would come back as a dict"),
    (collections.Counter("aa"), "Counter would come back as a dict"),
    (Text("x"), "Text would come back as a str"),
    (Count(5), "Count would come back as a int"),
    (Bytes(b"x"), "Bytes would come back as a bytes"),
    (Buffer(b"x"), "Buffer would come back as a bytearray"),
    (memoryview(b"x"), "memoryview would come back as something else"),
    (ormsgpack.Ext(1, b"\x90"), "Ext would come back as something else"),
    (ormsgpack.Fragment(b"\1"), "Fragment would come back as something else"),
    (ValueError("x"), "ValueError is an exception"),
    (datetime.datetime(2024, 1, 1, tzinfo=Zone()), "Zone, of which only the offset"),
    (datetime.time(1, tzinfo=Zone()), "Zone, of which only the offset"),
    (Pyro5.core.URI("PYRO:a@h:1"), "objserver's own kind"),
    (collections.deque(), "deque is not plain data"),
    (object(), "object is not plain data"),
]


@pytest.mark.parametrize(("value", "sentence"), LOSSY, ids=lambda value: type(value).__name__)
def test_exactly_refuses_what_would_change(value, sentence):
    for whole in (value, [{"a": [value]}], ([value],), {1: value}, {"b": bytearray(b"x"), "v": value}):
        with pytest.raises(errors.SerializeError, match=sentence):
            codec.encode_exactly(whole)
    if getattr(type(value), "__hash__", None) and not isinstance(value, (memoryview, ormsgpack.Fragment)):
        with pytest.raises(errors.SerializeError, match=sentence):
            codec.encode_exactly({value: 1})


def test_exactly_keeps_a_bytearray_and_a_reference(monkeypatch):
    monkeypatch.setattr(references, "_arrival", [lambda *_: "a proxy"])
    reference = Reference.parse("PYRO:s@h:1")
    value = {"b": bytearray(b"\0\xff"), "n": [(bytearray(),), {1: bytearray(b"x")}], "r": (reference,)}
    again = codec.decode(codec.encode_exactly(value))
    assert typed(again) == typed(value)
    assert codec.decode(codec.encode(value))["r"] == ("a proxy",)


def test_exactly_refuses_a_servant_and_takes_a_proxy():
    class Servant:
        pass

    class Proxy:
        _objserver_is_proxy = True
        _objserver_reference = Reference.parse("PYRO:p@h:1")
        _objserver_stub = types.SimpleNamespace(pool=None)

    own = NativeCodec(Limits(), lambda value: Proxy._objserver_reference if type(value) is Servant else None)
    assert own.decode(own.encode_exactly([Proxy()])) == [Proxy._objserver_reference]
    with pytest.raises(errors.SerializeError, match="Servant that is served here"):
        own.encode_exactly([Servant()])


def test_exactly_takes_registered_classes_that_come_back():
    SerializerBase.register_class_to_dict(Odd, lambda odd: {"__class__": "odd", "two": odd.two})
    try:
        with pytest.raises(errors.SerializeError, match="register_dict_to_class does not know 'odd'"):
            codec.encode_exactly([Odd(1, 2)])
    finally:
        SerializerBase.unregister_class_to_dict(Odd)
    SerializerBase.register_class_to_dict(Registered, lambda _: {"__class__": "registered"})
    SerializerBase.register_dict_to_class("registered", lambda *_: Registered())
    try:
        assert type(codec.decode(codec.encode_exactly([Registered()]))[0]) is Registered
    finally:
        SerializerBase.unregister_class_to_dict(Registered)
        SerializerBase.unregister_dict_to_class("registered")


def nested(depth, wrap):
    value = 5
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: (v,), lambda v: {1: v}, lambda v: {"a": v, "b": 1}]
)
@pytest.mark.parametrize("nesting_max", [3, 10, 100])
def test_exactly_refuses_what_decode_would_refuse_for_its_depth(wrap, nesting_max):
    small = NativeCodec(Limits(nesting_max=nesting_max))
    outcomes = set()
    for depth in range(nesting_max // 4, nesting_max + 3):
        value = nested(depth, wrap)
        try:
            decoded = small.decode(codec.encode(value))
        except errors.MessageTooLarge:
            with pytest.raises(errors.MessageTooLarge) as caught:
                small.encode_exactly(value)
            assert caught.value.limit == "nesting_max"
            outcomes.add("refused")
        else:
            assert decoded == small.decode(small.encode_exactly(value))
            outcomes.add("taken")
    assert "refused" in outcomes


def test_exactly_refuses_what_decode_would_refuse_for_its_size():
    small = NativeCodec(Limits(decoded_size_max=10_000))
    for value in ({"v": b"x" * 10_000}, [{}] * 200, ["x"] * 200, {str(n): n for n in range(100)}):
        with pytest.raises(errors.MessageTooLarge, match="decoded_size_max"):
            small.decode(codec.encode(value))
        with pytest.raises(errors.MessageTooLarge) as caught:
            small.encode_exactly(value)
        assert caught.value.limit == "decoded_size_max"
    assert small.decode(small.encode_exactly(list(range(120)))) == list(range(120))


@given(values)
def test_no_byte_costs_more_than_is_assumed(value):
    data = codec.encode(value)
    limits = Limits(decoded_size_max=len(data) * budget.BYTE, nesting_max=1000)
    budget._walk(data, limits, native.NESTED)


def test_the_worst_byte():
    budget._walk(b"\x81\xa0" * 90 + b"\x80", Limits(decoded_size_max=181 * budget.BYTE), native.NESTED)


def test_exactly_refuses_loops():
    loop = []
    loop += [loop, loop]
    with pytest.raises(errors.SerializeError):
        codec.encode_exactly(loop)
