"""What our own peers add, and what they make of damage."""

import math
import struct

import ormsgpack
import pytest

from objserver import errors
from objserver.wire import CallContext, Extension


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
    assert CallContext.decode(ormsgpack.packb([None, ["a"], 5, "new"])) == CallContext(None, ("a",))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", ormsgpack.packb(5), ormsgpack.packb([None]), ormsgpack.packb([None, [5]]),
             ormsgpack.packb([None, ["x"] * 65]), ormsgpack.packb([-1, []]), ormsgpack.packb([True, []]),
             *(b"\x92\xcb" + struct.pack(">d", odd) + b"\x90" for odd in (math.nan, math.inf))]
)  # fmt: skip
def test_a_malformed_context_is_refused(data):
    with pytest.raises(errors.ProtocolError):
        CallContext.decode(data)
