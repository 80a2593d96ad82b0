"""Values made to harm whoever decodes them.  All of these once stopped a server, most with one frame."""

import time

import ormsgpack
import pytest

from objserver import Proxy, errors, references
from objserver.codecs import Codecs
from objserver.codecs import native as tags
from objserver.settings import Limits

P, Ext = ormsgpack.packb, ormsgpack.Ext
codecs = Codecs(Limits(), marshal=True)
REFERENCE = Ext(tags.REFERENCE, b"PYRO:x@127.0.0.1:1")


@pytest.fixture(autouse=True)
def no_proxy_is_asked(monkeypatch):
    """A reference arrives as a proxy, and whoever unpacks or iterates it makes a connection."""

    def connect(*args):
        raise AssertionError("decoding asked a proxy for something")

    monkeypatch.setattr(references, "_arrival", [lambda reference, find, origin: Proxy(reference)])
    monkeypatch.setattr("objserver.client.stub.ConnectionPool.connect", connect)


def seconds(action):
    before = time.process_time()
    with pytest.raises(errors.ProtocolError):
        action()
    return time.process_time() - before


def test_a_reference_is_a_proxy_where_a_value_may_be():
    assert type(codecs.native.decode(P([REFERENCE]))[0]) is Proxy


@pytest.mark.parametrize("tag", sorted(set(tags._DECODERS) & tags.NESTED - {tags.WRAPPED}))
def test_nothing_is_made_of_a_proxy(tag):
    with pytest.raises(errors.SerializeError):
        codecs.native.decode(P(Ext(tag, P(REFERENCE))))
    with pytest.raises(errors.SerializeError):
        codecs.native.decode_call(P(Ext(tag, P(REFERENCE))))


def test_a_proxy_is_no_call_and_no_pair():
    with pytest.raises(errors.SerializeError):
        codecs.native.decode_call(P(REFERENCE))
    with pytest.raises(errors.SerializeError):
        codecs.native.decode(P(Ext(tags.PAIRS, P([REFERENCE]))))
    for codec in (codecs.serpent, *map(codecs.get, (2, 3, 4))):
        dict_of_proxy = {"__class__": "Pyro5.client.Proxy", "state": ["PYRO:x@h:1", [], [], [], "", None]}
        with pytest.raises(errors.SerializeError):
            codec.decode_call(codec.encode(dict_of_proxy))


@pytest.mark.parametrize("name", ["ExceptionGroup", "SyntaxError", "UnicodeDecodeError", "OSError"])
def test_no_exception_asks_a_proxy(name):
    error = codecs.native.decode(P(Ext(tags.EXCEPTION, P([f"builtins.{name}", ["x", REFERENCE], {}, ""]))))
    assert isinstance(error, errors.RemoteError)
    str(error)


def test_a_unicode_error_does_not_read_beyond_its_data():
    """Its __str__ reads at `start` without looking: a segmentation fault of whoever prints it."""

    def sent(start, attributes):
        args = ["utf-8", b"x", start, start + 1, "r"]
        return codecs.native.decode(
            P(Ext(tags.EXCEPTION, P(["builtins.UnicodeDecodeError", args, attributes, ""])))
        )

    assert "0x78" in str(sent(0, {}))
    assert isinstance(sent(-(10**14), {}), errors.RemoteError)
    assert isinstance(sent(10**6, {}), errors.RemoteError)
    assert "0x78" in str(sent(0, {"start": -(10**14), "object": b""}))


def test_numbers_are_not_computed_from_text():
    assert seconds(lambda: codecs.native.decode(P(Ext(tags.FRACTION, P(["1e9999999999", 1]))))) < 1
    assert seconds(lambda: codecs.native.decode(P(Ext(tags.FRACTION, P(["1e9999999999"]))))) < 1


def test_a_uri_is_read_in_linear_time():
    for text in ("@" * 1_900 + "\n", "@" * 60_000 + "\n", "x" * 100_000 + "@h:1"):
        assert (
            seconds(lambda text=text: codecs.native.decode(P(Ext(tags.REFERENCE, b"PYRO:" + text.encode()))))
            < 1
        )


def colliding(count):
    return [n * (2**61 - 1) for n in range(count)]


def test_equal_hashes_do_not_make_a_set_slow():
    assert hash(colliding(3)[1]) == hash(colliding(3)[2])
    many = [Ext(tags.BIGINT, n.to_bytes(16, "big", signed=True)) for n in colliding(30_000)]
    for tag in (tags.SET, tags.FROZENSET):
        assert seconds(lambda tag=tag: codecs.native.decode(P(Ext(tag, P(many))))) < 3
    assert seconds(lambda: codecs.native.decode(P(Ext(tags.PAIRS, P([[n, 1] for n in many]))))) < 3
    text = b"{" + b",".join(str(n).encode() for n in colliding(30_000)) + b"}"
    assert seconds(lambda: codecs.serpent.decode(text)) < 3
    assert len(codecs.native.decode(codecs.native.encode(set(range(100_000))))) == 100_000
    moments = {"at": [10**18 + n for n in range(5_000)], "values": [n / 7 for n in range(5_000)]}
    assert codecs.serpent.decode(codecs.serpent.encode(moments)) == moments


def test_names_have_a_length():
    for codec in (codecs.native, codecs.serpent):
        with pytest.raises(errors.MessageTooLarge):
            codec.decode_call(codec.encode(("/" * 100_000, "x", [], {})))
        with pytest.raises(errors.MessageTooLarge):
            codec.decode_call(codec.encode(("x", "/" * 100_000, [], {})))


def test_what_becomes_a_proxy_is_paid_for():
    with pytest.raises(errors.MessageTooLarge):
        codecs.native.decode(P([REFERENCE] * 200_000))
