import datetime
import decimal
import sqlite3
import struct
import uuid

import Pyro5.client
import Pyro5.core
import Pyro5.errors
import pytest
from Pyro5.serializers import SerializerBase, serializers

from objserver import errors, pyro5
from objserver.codecs import Codecs
from objserver.references import Reference
from objserver.settings import Limits

codecs = Codecs(Limits(), marshal=True)
NAMES = ["serpent", "marshal", "json", "msgpack"]
pytestmark = pytest.mark.parametrize("name", NAMES)

VALUES = [
    None,
    True,
    1,
    -1.5,
    "text",
    [],
    {},
    [1, [2]],
    {"a": {"b": [None]}},
    "é'\"\\",
    "x" * 1000,
    2**63,
    2**64 - 1,
]
ANY_VALUES = [
    (1, 2),
    {1, 2},
    {1: 2},
    2**80,
    1 + 2j,
    float("inf"),
    uuid.uuid4(),
    decimal.Decimal("1.5"),
    datetime.datetime(2020, 1, 2, 3),
    datetime.date(2020, 1, 2),
    b"bytes",
]


def test_values_both_ways(name):
    ours, stock = codecs.by_name[name], serializers[name]
    for value in VALUES:
        assert ours.decode(stock.dumps(value)) == value
        assert stock.loads(ours.encode(value)) == value
    for value in ANY_VALUES:
        try:
            data = stock.dumps(value)
            expected = stock.loads(data)
        except Exception:
            continue
        assert ours.decode(data) == expected
        assert stock.loads(ours.encode(value)) == expected


def test_calls_both_ways(name):
    ours, stock = codecs.by_name[name], serializers[name]
    object_id, method, args, kwargs = ours.decode_call(stock.dumpsCall("o", "m", (1, "b"), {"k": [1]}))
    assert (object_id, method, list(args), kwargs) == ("o", "m", [1, "b"], {"k": [1]})
    object_id, method, args, kwargs = stock.loadsCall(ours.encode_call("o", "m", (1, "b"), {"k": [1]}))
    assert (object_id, method, list(args), kwargs) == ("o", "m", [1, "b"], {"k": [1]})
    assert ours.decode_call(ours.encode_call("o", "m", (), None))[3] == {}
    with pytest.raises(errors.SerializeError):
        ours.decode_call(ours.encode([1, 2]))
    with pytest.raises(errors.SerializeError):
        ours.decode_call(stock.dumpsCall(5, "m", (), {}))


def test_exceptions_both_ways(name):
    ours, stock = codecs.by_name[name], serializers[name]
    for error in (
        ValueError("x", 1),
        Pyro5.errors.NamingError("n"),
        struct.error("s"),
        sqlite3.OperationalError("q"),
    ):
        error._pyroTraceback = ["one\n", "two\n"]
        again = ours.decode(stock.dumps(error))
        assert type(again) is type(error)
        assert again.args == error.args
        assert again._pyroTraceback == ["one\n", "two\n"]
        assert "two" in again.__notes__[0]
        again = stock.loads(ours.encode(again))
        assert type(again) is type(error)
        assert again._pyroTraceback == ["one\n", "two\n"]
    assert type(stock.loads(ours.encode(errors.ObjectNotFound("gone")))) is Pyro5.errors.DaemonError
    wrapped = ours.decode(ours.encode(pyro5.ExceptionWrapper(KeyError("k"))))
    assert type(wrapped.exception) is KeyError
    wrapped = stock.loads(ours.encode([pyro5.ExceptionWrapper(KeyError("k"))]))[0]
    assert type(wrapped.exception) is KeyError
    data = ours.encode(
        {"__class__": "shop.OutOfStock", "__exception__": True, "args": ["x"], "attributes": {"n": 1}}
    )
    unknown = ours.decode(data)
    assert (type(unknown), unknown.type_name, unknown.attributes) == (
        errors.RemoteError,
        "shop.OutOfStock",
        {"n": 1},
    )


def test_references_both_ways(name):
    ours, stock = codecs.by_name[name], serializers[name]
    for text in (
        "PYRO:a@h:1",
        "PYRO:a@[::1]:1",
        "PYRO:a@./u:sock",
        "PYRONAME:n",
        "PYRONAME:n@h:2",
        "PYROMETA:a,b@h:2",
    ):
        reference, uri = Reference.parse(text), Pyro5.core.URI(text)
        assert ours.decode(ours.encode([reference])) == [reference]
        assert ours.decode(ours.encode([uri])) == [reference]
        if name != "marshal":
            assert ours.decode(stock.dumps([uri])) == [reference]
        got = stock.loads(ours.encode(reference))
        assert type(got) is Pyro5.core.URI
        assert Reference.parse(str(got)).tags == reference.tags
        assert got.location == uri.location
    with Pyro5.client.Proxy("PYRO:a@h:1") as proxy:
        assert ours.decode(ours.encode({"p": proxy})) == {"p": Reference.parse("PYRO:a@h:1")}
        assert ours.decode(stock.dumps(proxy)) == Reference.parse("PYRO:a@h:1")


class Servant:
    pass


def test_servants_travel_as_proxies(name):
    reference = Reference.parse("PYRO:s@h:1")
    ours = Codecs(
        Limits(), marshal=True, substitute=lambda value: reference if isinstance(value, Servant) else None
    ).by_name[name]
    got = serializers[name].loads(ours.encode([1, Servant()]))[1]
    assert type(got) is Pyro5.client.Proxy
    assert str(got._pyroUri) == "PYRO:s@h:1"


class Thing:
    def __init__(self):
        self.a = [1]


class Slotted:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


class Stated(Thing):
    def __getstate__(self):
        return {"b": 1}


def test_ordinary_objects_as_stock(name):
    ours, stock = codecs.by_name[name], serializers[name]
    for value in (Thing(), Slotted(), Stated()):
        sent, expected = ours.encode(value), stock.dumps(value)
        if name == "msgpack":
            assert len(sent) == len(expected)
        elif name != "marshal":
            assert sent.replace(b" ", b"") in (expected.replace(b" ", b""),) or len(sent) == len(expected)
    for value in (Thing, len, lambda: 1, object()):
        with pytest.raises(errors.SerializeError):
            ours.encode(value)


def test_registered_classes(name):
    ours, stock = codecs.by_name[name], serializers[name]
    SerializerBase.register_class_to_dict(Thing, lambda thing: {"__class__": "thing", "a": thing.a})
    SerializerBase.register_dict_to_class("thing", lambda _, data: ("made", data["a"]))
    try:
        assert ours.decode(stock.dumps(Thing())) == ("made", [1])
        assert stock.loads(ours.encode(Thing())) == ("made", [1])
    finally:
        SerializerBase.unregister_class_to_dict(Thing)
        SerializerBase.unregister_dict_to_class("thing")


@pytest.mark.parametrize(
    "data",
    [
        {"__class__": "os.system"},
        {"__class__": "__main__.X", "__exception__": True, "args": [], "attributes": {}},
        {"__class__": "Pyro5.core.URI", "state": 5},
        {"__class__": "Pyro5.core.URI", "state": [1, 2, 3, 4, 5]},
        {"__class__": "Pyro5.core.URI"},
        {"__class__": "Pyro5.client.Proxy", "state": ["no uri"]},
        {"__class__": "Pyro5.server.Daemon", "state": []},
        {"__class__": "Pyro5.errors.config"},
        {"__class__": 5},
        {"__class__": "builtins.ValueError", "__exception__": True},
        {"__class__": [1]},
        {"__class__": "builtins.ValueError", "__exception__": True, "args": 5},
        {"__class__": "Pyro5.core._ExceptionWrapper"},
        {"__class__": "builtins.eval", "args": ["1"]},
    ],
)
def test_hostile_class_dicts(name, data):
    ours = codecs.by_name[name]
    with pytest.raises(errors.SerializeError):
        ours.decode(ours.encode([data]))


# These are values in MessagePack.
NOISE_OF_MSGPACK = {
    b"[": b"\x91",
    b"\0": b"\x92",
    b"{'a'": b"\x9f",
    b"9" * 5000: b"\xc1",
    b"\xff\xfe": b"\xdd",
}


def test_noise(name):
    for data in (b"", b"\xff\xfe", b"[", b"\0", b"{'a'", b"9" * 5000, b"\xc7\xff"):
        with pytest.raises(errors.ProtocolError):
            codecs.by_name[name].decode(NOISE_OF_MSGPACK.get(data, data) if name == "msgpack" else data)
    loop = []
    loop.append(loop)
    with pytest.raises(errors.SerializeError):
        codecs.by_name[name].encode(loop)


class Fatal:
    def __init__(self, problem):
        self.problem = problem

    def __getstate__(self):
        raise self.problem


@pytest.mark.parametrize("problem", [SystemExit, GeneratorExit, KeyError("k")])
def test_whatever_a_value_raises_is_a_serialize_error(name, problem):
    with pytest.raises(errors.SerializeError):
        codecs.by_name[name].encode([Fatal(problem)])


def test_whatever_a_converter_raises_is_a_serialize_error(name):
    def convert(_, data):
        raise SystemExit

    SerializerBase.register_dict_to_class("fatal", convert)
    try:
        with pytest.raises(errors.SerializeError):
            codecs.by_name[name].decode(codecs.by_name[name].encode({"__class__": "fatal"}))
    finally:
        SerializerBase.unregister_dict_to_class("fatal")


def test_an_interrupt_passes(name):
    with pytest.raises(KeyboardInterrupt):
        codecs.by_name[name].encode([Fatal(KeyboardInterrupt)])
