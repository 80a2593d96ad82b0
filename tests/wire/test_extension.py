"""What our own peers add, and what they make of damage."""

import math
import struct

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import errors
from objserver.invocation import CallId
from objserver.wire import CallContext, Extension, Promises


def test_the_greeting_survives_the_handshake():
    sent = Extension(session="abc", frame_size_max=7)
    assert Extension.from_handshake({"handshake": "hello", "objserver": sent.to_data()}) == sent


def test_a_stock_peer_has_no_extension():
    assert Extension.from_handshake({"handshake": "hello", "object": "x"}) is None


@pytest.mark.parametrize("data", [{"session": 5}, {"session": "x" * 300}, {"frame_size_max": "big"}])
def test_a_malformed_greeting_is_refused(data):
    with pytest.raises(errors.ProtocolError):
        Extension.from_handshake({"objserver": data})


def test_the_call_context_survives():
    sent = CallContext(1.5, ("a", "b"))
    assert CallContext.decode(sent.encode()) == sent


def test_later_positions_are_ignored():
    call = [b"c" * 16, 7, b"p" * 16, 3, False]
    context = CallContext(None, ("a",), CallId(b"c" * 16, 7, b"p" * 16), 3)
    assert CallContext.decode(ormsgpack.packb([None, ["a"], *call, 5, "new"])) == context
    assert CallContext.decode(context.encode()) == context


@pytest.mark.parametrize(
    "call",
    [
        [5, "new"],
        [b"c" * 15, 7, b"", 3, False],
        [b"c" * 16, 0, b"", 3, False],
        [b"c" * 16, 1 << 62, b"", 3, False],
        [b"c" * 16, 7, b"p", 3, False],
        [b"c" * 16, 7, b"", -1, False],
        [b"c" * 16, 7, b"", 3, 1],
        [b"c" * 16, True, b"", 3, False],
    ],
)
def test_a_malformed_call_id_is_refused(call):
    with pytest.raises(errors.ProtocolError, match="OBJS"):
        CallContext.decode(ormsgpack.packb([None, [], *call]))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", ormsgpack.packb(5), ormsgpack.packb([None]), ormsgpack.packb([None, [5]]),
             ormsgpack.packb([None, ["x"] * 65]), ormsgpack.packb([-1, []]), ormsgpack.packb([True, []]),
             *(b"\x92\xcb" + struct.pack(">d", odd) + b"\x90" for odd in (math.nan, math.inf))]
)  # fmt: skip
def test_a_malformed_context_is_refused(data):
    with pytest.raises(errors.ProtocolError):
        CallContext.decode(data)


@pytest.mark.parametrize(
    "data", [{"client": 5}, {"client": "x" * 300}, {"session": "", "frame_size_max": -1}]
)
def test_a_malformed_client_is_refused(data):
    with pytest.raises(errors.ProtocolError):
        Extension.from_handshake({"objserver": data})


def test_a_client_that_takes_calls_says_so():
    sent = Extension(session="abc", client="def", multiplexed=True)
    assert Extension.from_handshake({"objserver": sent.to_data()}) == sent
    assert not Extension.from_handshake({"objserver": {"multiplexed": "yes"}}).multiplexed


@pytest.mark.parametrize(
    "sent",
    [Promises(), Promises(7), Promises(None, {0: 1, "name": 2}), Promises(0xFFFF, {3: 3})],
)
def test_promises_survive(sent):
    assert Promises.decode(sent.encode()) == sent


def test_promises_know_what_they_refer_to():
    assert Promises(7, {0: 1, "x": 1, 2: 9}).sequences == {1, 7, 9}
    assert Promises().sequences == set()


def _packed(value):
    return ormsgpack.packb(value, option=ormsgpack.OPT_NON_STR_KEYS)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x92\xc0", *map(_packed, [
        5, None, [], [None], [None, {}, 1], {"a": 1}, [None, []], [None, [1]], ["1", {}], [True, {}],
        [1.0, {}], [None, {0: "1"}], [None, {0: None}], [None, {0: True}], [None, {None: 1}],
        [None, {1.5: 1}], [None, {True: 1}], [{}, {}], [[], {}], [None, {b"x": 1}],
    ])],
)  # fmt: skip
def test_malformed_promises_are_refused(data):
    with pytest.raises(errors.ProtocolError):
        Promises.decode(data)


@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_be_refused(data):
    for what in (Promises, CallContext):
        try:
            what.decode(data)
        except errors.ProtocolError:
            pass


def test_what_a_client_shows_and_what_the_server_proves_survive():
    shown = Extension(session="s", claim=("lab", "ann", "00"), token="t", proof="ff")
    assert Extension.from_handshake({"objserver": shown.to_data()}) == shown
    offered = shown._replace(shared=(1, 2, "word", 3))
    assert Extension.from_handshake({"objserver": offered.to_data()}) == offered


def test_no_repr_shows_a_token():
    assert "hush" not in repr(Extension(token="hush")) + str(Extension(token="hush"))


@pytest.mark.parametrize(
    "data",
    [
        {"key": "lab"},
        {"key": ["lab", "ann"]},
        {"key": ["lab", "ann", b"00"]},
        {"key": ["lab", "ann", "0" * 200]},
        {"token": 5},
        {"token": "t" * 40_000},
        {"proof": b"ff"},
        {"proof": "f" * 300},
    ],
)
def test_malformed_credentials_are_refused(data):
    with pytest.raises(errors.ProtocolError):
        Extension.from_handshake({"objserver": {"version": 1, **data}})
