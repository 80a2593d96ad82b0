"""Values made to harm whoever decodes them.  All of these once stopped a server, most with one frame."""

import itertools
import marshal
import time
from fractions import Fraction

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

    monkeypatch.setattr(references, "_arrival", [lambda reference, *_: Proxy(reference)])
    monkeypatch.setattr("objserver.client.pool.ConnectionPool.connect", connect)


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


def test_no_tuple_is_the_key_of_a_map():
    """-1 and -2 have the same hash, so all tuples of them do: 500 kB of such keys took 25 s in one call."""
    key = P([[]] * 120)
    for codec in (codecs.native, codecs.by_name["msgpack"]):
        for map_head in (b"\x81", b"\xde\0\x01", b"\xdf\0\0\0\x01"):
            with pytest.raises(errors.SerializeError, match="the key of a MessagePack map is a container"):
                codec.decode(map_head + key + b"\x01")
        assert codec.decode(codec.encode([{"a": {"b": [1, [2] * 120]}}])) == [{"a": {"b": [1, [2] * 120]}}]
    many = [list(key) for key in itertools.product((-1, -2), repeat=12)]
    as_map = b"\xde" + len(many).to_bytes(2, "big") + b"".join(P(key) + b"\x01" for key in many)
    assert seconds(lambda: codecs.by_name["msgpack"].decode(as_map)) < 1
    assert codecs.native.decode(codecs.native.encode({(-1, -2): 1})) == {(-1, -2): 1}


def test_equal_hashes_do_not_make_a_set_in_marshal_slow():
    numbers = [marshal.dumps(n, 2) for n in colliding(30_000)]
    size = len(numbers).to_bytes(4, "little")
    for payload in (
        b"<" + size + b"".join(numbers),
        b">" + size + b"".join(numbers),
        b"{" + b"N".join(numbers) + b"N0",
    ):
        assert seconds(lambda payload=payload: codecs.by_name["marshal"].decode(payload)) < 2


def test_a_fraction_is_not_brought_to_its_lowest_terms_at_any_price():
    """The greatest common divisor of two numbers of 200 kB takes 5 s in one call, of 8 MB hours."""
    for above, below in ((4_000_000, 4_000_000), (8_000_000, 40_000), (5_000, 5_000)):
        parts = [Ext(tags.BIGINT, b"\x7f" * size) for size in (above, below)]
        assert seconds(lambda parts=parts: codecs.native.decode(P(Ext(tags.FRACTION, P(parts))))) < 1
    for value in (Fraction(3**20_000, 2**32_000), Fraction(7**100_000, 3), Fraction(1, 10**9)):
        assert codecs.native.decode(codecs.native.encode(value)) == value
    with pytest.raises(errors.SerializeError, match="a fraction of"):
        codecs.native.encode(Fraction(3**30_000, 2**40_000))


def test_empty_sets_are_read_as_fast_as_other_literals():
    def cpu_s(literal, value):
        before = time.process_time()
        assert codecs.serpent.decode(b"[" + literal * 50_000 + b"]") == [value] * 50_000
        return time.process_time() - before

    assert min(cpu_s(b"set(),", set()) for _ in range(3)) < 20 * min(cpu_s(b"{1},", {1}) for _ in range(3))


def test_names_have_a_length():
    for codec in (codecs.native, codecs.serpent):
        with pytest.raises(errors.MessageTooLarge):
            codec.decode_call(codec.encode(("/" * 100_000, "x", [], {})))
        with pytest.raises(errors.MessageTooLarge):
            codec.decode_call(codec.encode(("x", "/" * 100_000, [], {})))


def test_what_becomes_a_proxy_is_paid_for():
    with pytest.raises(errors.MessageTooLarge):
        codecs.native.decode(P([REFERENCE] * 200_000))
