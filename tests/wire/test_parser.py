"""The parser, fed whole, byte by byte and with what comes behind."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import errors
from objserver.settings import Limits
from objserver.wire import Flag, FrameParser, FrameType, encode_frame
from objserver.wire.parser import AHEAD

FRAMES = [
    encode_frame(1, 1, 0, 0, b"hello"),
    encode_frame(4, 79, 0, 1, b"", {"OBJS": b"x"}),
    encode_frame(4, 4, 4, 65535, b"z" * 5000, {"ABCD": b"", "EFGH": b"data"}, b"u" * 16),
    encode_frame(6, 42, 0, 2, b"ping"),
]


def summary(frames):
    return [(f.type, f.sequence, f.payload, dict(f.annotations), f.correlation) for f in frames]


WHOLE = summary(FrameParser(Limits()).receive_data(b"".join(FRAMES)))


@given(st.lists(st.integers(1, 5000), max_size=20))
def test_any_portions_give_the_same_frames(cuts):
    data, parser, frames = b"".join(FRAMES), FrameParser(Limits()), []
    for cut in cuts:
        frames += parser.receive_data(data[:cut]) if data else []
        data = data[cut:]
    if data:
        frames += parser.receive_data(data)
    assert summary(frames) == WHOLE
    assert parser.buffered == 0


def test_byte_by_byte_gives_the_same_frames():
    parser, frames = FrameParser(Limits()), []
    for at in range(len(data := b"".join(FRAMES))):
        frames += parser.receive_data(data[at : at + 1])
    assert summary(frames) == WHOLE


def test_the_beginning_of_the_next_frame_is_kept():
    parser = FrameParser(Limits())
    assert len(parser.receive_data(FRAMES[0] + FRAMES[1][:30])) == 1
    assert parser.buffered == 30
    assert len(parser.receive_data(FRAMES[1][30:])) == 1


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\n", b"PYRO\x01\xf7", b"\x16\x03\x01", b"\0"])
def test_what_cannot_be_a_frame_is_refused_with_its_first_bytes(start):
    with pytest.raises(errors.ProtocolError):
        FrameParser(Limits()).receive_data(start)


def test_after_an_error_everything_is_refused():
    parser = FrameParser(Limits())
    with pytest.raises(errors.ProtocolError):
        parser.receive_data(b"garbage")
    with pytest.raises(errors.ProtocolError, match="close the connection"):
        parser.receive_data(FRAMES[0])


def test_a_length_over_the_limit_is_refused_before_its_bytes_come():
    header = bytearray(FRAMES[0][:40])
    header[12:16] = b"\xff\xff\xff\xff"
    with pytest.raises(errors.MessageTooLarge) as caught:
        FrameParser(Limits()).receive_data(bytes(header))
    assert caught.value.limit == "frame_size_max"
    assert caught.value.header == (0, 1)


def test_mutated_frames_give_frames_or_protocol_errors_and_nothing_else():
    chance = random.Random(1)
    limits = Limits(frame_size_max=10_000, annotations_size_max=1000)
    for _ in range(20_000):
        data = bytearray(b"".join(chance.choices(FRAMES, k=2)))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        parser = FrameParser(limits)
        try:
            parser.receive_data(bytes(data[: chance.randint(1, len(data))]))
        except errors.ProtocolError:
            assert parser.buffered == 0
        assert parser.buffered <= len(data)


LARGE_FRAME = encode_frame(4, 79, 0, 9, random.Random(1).randbytes(3 << 20), {"ABCD": b"e" * 100})


@given(st.lists(st.integers(1, 600_000), min_size=1, max_size=50))
def test_a_large_payload_is_received_in_place(cuts):
    parser, data, frames = FrameParser(Limits()), memoryview(FRAMES[0] + LARGE_FRAME + FRAMES[3]), []
    while data:
        cut = cuts.pop() if cuts else 8192
        space = parser.space()
        if space is None:
            cut = min(cut, len(data))
            frames += parser.receive_data(bytes(data[:cut]))
        else:
            cut = min(cut, len(space), len(data))
            space[:cut] = data[:cut]
            frames += parser.received(cut)
        data = data[cut:]
        assert parser.missing > 0
    expected = summary(FrameParser(Limits()).receive_data(FRAMES[0] + LARGE_FRAME + FRAMES[3]))
    assert summary(frames) == expected
    assert parser.buffered == 0


def test_no_more_is_reserved_than_somewhat_ahead_of_what_came():
    parser = FrameParser(Limits())
    parser.receive_data(LARGE_FRAME[:8192])
    assert parser.buffered <= AHEAD
    came = 8192
    while (space := parser.space()) is not None:
        assert parser.buffered <= max(AHEAD, 2 * came)
        came += len(space)
        parser.received(len(space))
    assert came > len(LARGE_FRAME) - 200


def test_a_damaged_large_payload_ends_the_stream():
    parser = FrameParser(Limits())
    data = encode_frame(4, 79, 2, 1, random.Random(1).randbytes(100_000))
    parser.receive_data(data[:8192])
    with pytest.raises(errors.ProtocolError, match="damaged"):
        parser.receive_data(data[8192:])
    with pytest.raises(errors.ProtocolError, match="earlier"):
        parser.receive_data(FRAMES[0])


def test_who_reads_for_many_leaves_decompression_to_others():
    sent = encode_frame(FrameType.INVOKE, 1, Flag.COMPRESSED, 1, zlib.compress(b"x" * 500))
    parser = FrameParser(Limits(frame_size_max=600))
    parser.inflates = False
    [frame] = parser.receive_data(sent)
    assert frame.payload == zlib.compress(b"x" * 500)
    assert parser.unpack(frame).payload == b"x" * 500
    [frame] = parser.receive_data(
        encode_frame(FrameType.INVOKE, 1, Flag.COMPRESSED, 2, zlib.compress(bytes(601)))
    )
    with pytest.raises(errors.MessageTooLarge, match="frame_size_max"):
        parser.unpack(frame)
