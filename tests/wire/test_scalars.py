"""Small calls in one step: the bytes are those of the codec, and C and Python do the same."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver.codecs import NativeCodec
from objserver.settings import Limits
from objserver.wire import Frame, FrameType, scalars
from objserver.wire.frames import HEADER_SIZE, _pure_plain_frame, kernel, plain_frames, plain_start

CODEC = NativeCodec(Limits())
CALL, REPLY = plain_start(FrameType.INVOKE, 79), plain_start(FrameType.RESULT, 79)
PURE = (
    scalars._pure_scalar_request,
    scalars._pure_scalar_reply,
    scalars._pure_scalar_call,
    scalars._pure_scalar_value,
)
IN_FRAMES = (scalars.scalar_call_in, scalars._pure_scalar_call_in)
KERNEL = PURE if kernel is None else tuple(getattr(kernel, f.__name__.removeprefix("_pure_")) for f in PURE)

EDGES = sorted(
    {n + d for b in (0, 5, 7, 8, 15, 16, 31, 32, 63, 64) for n in (2**b, -(2**b)) for d in (-1, 0, 1)}
)
INTS = st.one_of(st.integers(-(2**70), 2**70), st.sampled_from(EDGES))
SCALARS = st.one_of(
    st.none(), st.booleans(), INTS, st.floats(), st.text(max_size=40), st.binary(max_size=40),
    st.sampled_from(["x" * n for n in (31, 32, 33, 250, 255, 256)] + [b"x" * n for n in (249, 255, 256)]),
)  # fmt: skip
VALUES = st.one_of(
    SCALARS,
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.just("\ud800"),
    st.just(("x",)),
    st.just(bytearray(b"x")),
)
NAMES = st.one_of(st.text(max_size=20), st.sampled_from(["Adder", "x" * 300, "\udc00"]))
ARGUMENTS = st.one_of(st.lists(VALUES, max_size=17).map(tuple), st.lists(SCALARS, max_size=5))
SEQUENCES = st.integers(0, 0xFFFF)


def seen(call):
    if call is None:
        return None
    *rest, frame = call
    return repr(rest), frame.type, frame.serializer_id, frame.flags, frame.sequence, frame.payload


@given(SEQUENCES, NAMES, NAMES, ARGUMENTS)
def test_a_request_has_the_bytes_of_the_codec_or_is_none(sequence, object_id, method, args):
    made = [request(CALL, sequence, object_id, method, args) for request, *_ in (KERNEL, PURE)]
    assert made[0] == made[1]
    if made[0] is not None:
        payload = CODEC.encode_call(object_id, method, args, {})
        assert made[0] == _pure_plain_frame(CALL, sequence, payload)
        calls = [call(made[0], CALL) for _, _, call, _ in (KERNEL, PURE)]
        assert seen(calls[0]) == seen(calls[1])
        assert repr(calls[0][:3]) == repr((object_id, method, list(args)))
        assert calls[0][3].sequence == sequence
        (frame,), _ = plain_frames(made[0], 1 << 20)
        for call_in in IN_FRAMES:
            *call, same = call_in(frame, CALL)
            assert repr(call) == repr([object_id, method, list(args)])
            assert same is frame


@given(SEQUENCES, VALUES)
def test_a_reply_has_the_bytes_of_the_codec_or_is_none(sequence, value):
    made = [reply(REPLY, sequence, value) for _, reply, *_ in (KERNEL, PURE)]
    assert made[0] == made[1]
    if made[0] is not None:
        assert made[0] == _pure_plain_frame(REPLY, sequence, CODEC.encode(value))
        for *_, read in (KERNEL, PURE):
            back = read(made[0], REPLY, sequence)
            assert type(back) is type(value)
            assert back == value or math.isnan(value)
            assert read(made[0], REPLY, sequence ^ 1) is ...
            assert read(made[0], CALL, sequence) is ...
            assert read(made[0][:-1], REPLY, sequence) is ...
            assert read(made[0] + b"\xc0", REPLY, sequence) is ...


@given(
    st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(lambda rest: b"\x94\xa1x\xa1y\x91" + rest))
)
def test_of_any_payload_c_reads_what_python_reads_or_nothing(payload):
    data = _pure_plain_frame(CALL, 7, payload)
    if (found := KERNEL[2](data, CALL)) is not None:
        assert seen(found) == seen(PURE[2](data, CALL))
    data = _pure_plain_frame(REPLY, 7, payload)
    if (value := KERNEL[3](data, REPLY, 7)) is not ...:
        assert repr(value) == repr(PURE[3](data, REPLY, 7))


@given(st.data())
def test_broken_frames_are_read_as_python_reads_them(data):
    whole = scalars.scalar_request(CALL, 7, "Adder", "add", (2, "three", 4.5, b"five", None))
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    broken = (
        bytes(broken)[: data.draw(st.integers(0, len(broken)))] if data.draw(st.booleans()) else bytes(broken)
    )
    if (found := KERNEL[2](broken, CALL)) is not None:
        assert seen(found) == seen(PURE[2](broken, CALL))
    if (value := KERNEL[3](broken, CALL, 7)) is not ...:
        assert repr(value) == repr(PURE[3](broken, CALL, 7))


@pytest.mark.parametrize(("request_", "reply", "call", "value"), [KERNEL, PURE])
def test_what_is_something_else_is_told(request_, reply, call, value):
    for args in (
        [1, [2]],
        (1, {}),
        (2**63,),
        (True, object()),
        range(3),
        tuple(range(16)),
        ("x" * 256,),
        ("\ud800",),
    ):
        assert request_(CALL, 1, "Adder", "add", args) is None
    for result in ([], (), 2**63, "x" * 255, b"x" * 300, "\ud800", 1j, object()):
        assert reply(REPLY, 1, result) is None
    assert call(b"", CALL) is None
    assert value(b"", REPLY, 1) is ...
    with_keywords = CODEC.encode_call("Adder", "add", (1,), {"b": 2})
    assert call(_pure_plain_frame(CALL, 1, with_keywords), CALL) is None
    assert call(_pure_plain_frame(CALL, 1, CODEC.encode_call("Adder", "add", ([1],), {})), CALL) is None
    whole = request_(CALL, 1, "Adder", "add", (1,))
    assert call(whole, REPLY) is None
    assert call(whole + whole, CALL) is None
    assert call(whole[:20] + b"\x01" + whole[21:], CALL) is None
    assert len(whole) <= scalars.SCALAR_FRAME_MAX


@pytest.mark.parametrize("call_in", IN_FRAMES)
def test_a_frame_with_anything_beside_its_payload_is_no_scalar_call(call_in):
    (frame,), _ = plain_frames(scalars.scalar_request(CALL, 1, "Adder", "add", (1,)), 1 << 20)
    assert call_in(frame, CALL)[:3] == ("Adder", "add", [1])
    assert call_in(frame, REPLY) is None
    for name, value in {
        "flags": 128, "annotations": {"ABCD": b""}, "correlation": b"x" * 16, "type": 5, "serializer_id": 1,
        "payload": bytearray(frame.payload),
    }.items():  # fmt: skip
        other = Frame(4, 79, 0, 1, frame.payload)
        setattr(other, name, value)
        assert call_in(other, CALL) is None
    assert call_in(Frame(4, 79, 0, 1, b""), CALL) is None


def test_the_scalar_in_a_payload_is_told():
    for read in (scalars.scalar_in, scalars._pure_scalar_in):
        assert [read(CODEC.encode(value)) for value in (1, "x", None)] == [1, "x", None]
        assert [read(what) for what in (b"", b"\xc1", b"\x91\x01", "x", None, b"\xd9")] == [...] * 6


def test_subclasses_are_no_scalars():
    class Text(str):
        __slots__ = ()

    for _, reply, *_ in (KERNEL, PURE):
        assert reply(REPLY, 1, Text("x")) is None


@pytest.mark.skipif(kernel is None, reason="this run is without the compiled part")
def test_wrong_arguments_are_refused():
    request, reply, call, value = KERNEL
    for function, arguments in [
        (request, ()),
        (request, (b"x", 1, "a", "b", ())),
        (request, (CALL, "1", "a", "b", ())),
        (reply, (REPLY, 1)),
        (reply, ("text", 1, 1)),
        (call, (b"x",)),
        (call, ("text", CALL)),
        (call, (b"x", b"x")),
        (value, (b"x", REPLY)),
        (value, ("text", REPLY, 1)),
        (value, (b"x", b"x", 1)),
        (value, (b"x", REPLY, "1")),
    ]:
        with pytest.raises(TypeError):
            function(*arguments)
    for sequence in (-1, 0x10000, 1 << 80):
        with pytest.raises(OverflowError):
            reply(REPLY, sequence, 1)


@pytest.mark.skipif(kernel is None, reason="this run is without the compiled part")
def test_nothing_is_left_behind():
    request, reply, call, value = KERNEL
    args = (1000, "text", b"bytes", 1.5, None, True)
    whole = request(CALL, 1, "Adder", "add", args)
    broken = whole[:-3] + b"\xc1\x00\x80"
    unicode = _pure_plain_frame(CALL, 1, b"\x94\xa1x\xa1y\x92\xa1z\xa1\xff\x80")
    before = sys.getallocatedblocks()
    for _ in range(1000):
        request(CALL, 1, "Adder", "add", args)
        assert call(whole, CALL) is not None
        assert call(broken, CALL) is None
        assert call(unicode, CALL) is None
        assert value(reply(REPLY, 1, "text"), REPLY, 1) == "text"
        assert request(CALL, 1, "Adder", "add", (1, [])) is None
    assert sys.getallocatedblocks() - before < 100
    assert len(whole) == HEADER_SIZE + len(CODEC.encode_call("Adder", "add", args, {}))
