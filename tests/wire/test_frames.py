"""Frames as bytes: the layout of Pyro5, both ways."""

import zlib

import pytest
from Pyro5 import protocol

from objserver import errors
from objserver.settings import Limits
from objserver.wire import Flag, FrameParser, FrameType, encode_frame
from objserver.wire.frames import inflate, split_annotations


def test_pyro5_reads_what_we_write():
    frame = encode_frame(FrameType.INVOKE, 4, Flag.BATCH, 77, b"payload", {"ABCD": b"note"}, b"c" * 16)
    message = protocol.ReceivingMessage(frame[:40], frame[40:])
    assert (message.type, message.serializer_id, message.seq) == (4, 4, 77)
    assert message.flags == Flag.BATCH | Flag.CORRELATION
    assert bytes(message.data) == b"payload"
    assert {name: bytes(data) for name, data in message.annotations.items()} == {"ABCD": b"note"}
    assert message.corr_id == b"c" * 16


def test_we_read_what_pyro5_writes():
    sent = protocol.SendingMessage(protocol.MSG_RESULT, 1, 9, 3, b"x" * 50, {"TEST": b"12"})
    (frame,) = FrameParser(Limits()).receive_data(sent.data)
    assert (frame.type, frame.flags, frame.sequence, frame.serializer_id) == (5, 1, 9, 3)
    assert frame.payload == b"x" * 50
    assert frame.annotations == {"TEST": b"12"}


def test_compressed_payloads_arrive_inflated():
    data = encode_frame(4, 1, Flag.COMPRESSED, 1, zlib.compress(b"a" * 1000, 4))
    assert len(data) < 200
    (frame,) = FrameParser(Limits()).receive_data(data)
    assert frame.payload == b"a" * 1000


@pytest.mark.parametrize("name", ["ABC", "ABCDE", "ÄBCD"])
def test_annotation_names_are_four_ascii_characters(name):
    with pytest.raises(errors.ProtocolError, match="four ASCII"):
        encode_frame(4, 1, 0, 1, b"", {name: b""})


def test_inflating_stops_at_the_limit():
    assert len(inflate(zlib.compress(bytes(1000)), 1000)) == 1000
    with pytest.raises(errors.MessageTooLarge, match="frame_size_max"):
        inflate(zlib.compress(bytes(1001)), 1000)


@pytest.mark.parametrize(
    "damaged", [b"no zlib", zlib.compress(b"whole")[:-3], zlib.compress(b"whole") + b"more"]
)
def test_damaged_compression_is_refused(damaged):
    with pytest.raises(errors.ProtocolError):
        inflate(damaged, 1000)


@pytest.mark.parametrize(
    "data",
    [b"ABCD", b"ABCD\0\0\0\x05four", b"ABCD\xff\xff\xff\xff", b"\xff\xff\xff\xff\0\0\0\0"],
)
def test_malformed_annotations_are_refused(data):
    with pytest.raises(errors.ProtocolError):
        split_annotations(data, Limits())


def test_too_many_annotations_are_refused_by_name_of_the_limit():
    chunks = b"".join(b"A%03d\0\0\0\0" % n for n in range(65))
    with pytest.raises(errors.MessageTooLarge) as caught:
        split_annotations(chunks, Limits())
    assert caught.value.limit == "annotations_max"
