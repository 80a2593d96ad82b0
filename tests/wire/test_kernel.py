"""What is compiled does the same as the Python that stands in for it."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver.wire import Flag, Frame, FrameType, encode_frame, frames
from objserver.wire.frames import HEADER_SIZE, _pure_plain_frame, _pure_plain_frames, plain_start

PLAIN = st.builds(
    _pure_plain_frame,
    st.builds(plain_start, st.integers(0, 255), st.integers(0, 255)),
    st.integers(0, 0xFFFF),
    st.binary(max_size=60),
)
ANNOTATED = st.builds(
    encode_frame,
    st.just(FrameType.INVOKE),
    st.just(1),
    st.sampled_from([0, 0, Flag.ONEWAY]),
    st.just(7),
    st.binary(max_size=20),
    st.dictionaries(st.sampled_from(["OBJS", "OBJB"]), st.binary(max_size=5000), max_size=2),
)
OTHER = st.one_of(
    st.binary(max_size=90),
    st.builds(
        encode_frame,
        st.just(FrameType.INVOKE),
        st.just(1),
        st.sampled_from([Flag.COMPRESSED, Flag.ONEWAY, Flag.COMPRESSED | Flag.BATCH, 0xFFFD]),
        st.just(7),
        st.binary(max_size=20),
        st.sampled_from([None, {"ABCD": b"x"}]),
    ),
    ANNOTATED,
    ANNOTATED.map(lambda frame: frame[:47] + b"\x01" + frame[48:]),
    ANNOTATED.map(lambda frame: frame[:-1]),
    PLAIN.map(lambda frame: frame[:-1]),
    PLAIN.map(lambda frame: frame[:20] + b"\x01" + frame[21:]),
    PLAIN.map(lambda frame: frame[:12] + b"\xff\xff\xff\xff" + frame[16:]),
)


@pytest.fixture
def kernel():
    if frames.kernel is None:
        pytest.skip("this run is without the compiled part")
    return frames.kernel


def seen(result):
    found, end = result
    names = ("type", "serializer_id", "flags", "sequence", "payload", "annotations", "correlation")
    return [tuple(getattr(frame, name) for name in names) for frame in found], end


def test_it_is_compiled_where_it_can_be():
    header = pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h"
    compiler = shutil.which(os.environ.get("CC", "cc")) and header.exists()
    wanted = compiler and not os.environ.get("OBJSERVER_PURE")
    assert (frames.kernel is not None) == bool(wanted) or not wanted


def test_it_can_be_switched_off():
    code = "from objserver.wire import frames; print(frames.kernel, frames.Frame.__mro__[1].__name__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OBJSERVER_PURE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["None", "_PureFrame"]


@given(
    pieces=st.lists(st.one_of(PLAIN, PLAIN, OTHER), max_size=5), size_max=st.sampled_from([50, 90, 1 << 20])
)
def test_the_same_frames_are_found(pieces, size_max):
    if frames.kernel is None:
        return
    data = b"".join(pieces)
    expected = seen(_pure_plain_frames(data, size_max))
    for form in (data, bytearray(data), memoryview(data)):
        assert seen(frames.kernel.plain_frames(form, size_max)) == expected


@given(st.binary(max_size=100), st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 255))
def test_the_same_frames_are_made(payload, sequence, type_, serializer):
    if frames.kernel is None:
        return
    start = plain_start(type_, serializer)
    expected = _pure_plain_frame(start, sequence, payload)
    for form in (payload, bytearray(payload), memoryview(payload)):
        assert frames.kernel.plain_frame(start, sequence, form) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (b"x" * 10, 1),
        (b"x" * 9, 1, b""),
        ("x" * 10, 1, b""),
        (b"x" * 10, 1, "text"),
        (b"x" * 10, "1", b""),
    ],
)
def test_wrong_arguments_are_refused(kernel, arguments):
    with pytest.raises(TypeError):
        kernel.plain_frame(*arguments)


@pytest.mark.parametrize("sequence", [-1, 0x10000, 1 << 80])
def test_a_sequence_number_has_16_bits(kernel, sequence):
    with pytest.raises(OverflowError):
        kernel.plain_frame(b"x" * 10, sequence, b"")


def test_frames_are_made_from_whole_arguments_only(kernel):
    for arguments in [(), (b"x",), ("text", 5), (b"x", "5"), (b"x", -1)]:
        with pytest.raises((TypeError, OverflowError)):
            kernel.plain_frames(*arguments)
    with pytest.raises(TypeError):
        Frame(1, 2, 3)
    with pytest.raises(TypeError):
        kernel.configure(int, {}, b"")


def test_what_a_frame_holds_is_given_back(kernel):
    payload = b"y" * 1000
    frame = Frame(4, 79, 0, 1, payload)
    count = sys.getrefcount(payload)
    frame.payload = b""
    assert sys.getrefcount(payload) == count - 1
    frame.annotations = {"ABCD": b""}
    del frame
    data = _pure_plain_frame(plain_start(4, 79), 1, b"z")
    assert len(data) == HEADER_SIZE + 1
    before = sys.getallocatedblocks()
    for _ in range(1000):
        kernel.plain_frames(data * 3, 1 << 20)
    assert sys.getallocatedblocks() - before < 100


@given(
    data=st.one_of(PLAIN, OTHER, st.just(_pure_plain_frame(plain_start(4, 79), 3, b"ab"))),
    size_max=st.sampled_from([41, 1 << 20]),
)
def test_the_same_requests_are_plain(data, size_max):
    if frames.kernel is None:
        return
    one, other = frames.kernel.plain_request(data, size_max), frames._pure_plain_request(data, size_max)
    assert (one is None) == (other is None)
    if one is not None:
        assert seen(([one], 0)) == seen(([other], 0))


@given(
    data=st.one_of(PLAIN, OTHER, st.just(_pure_plain_frame(plain_start(5, 79), 3, b"ab"))),
    start=st.sampled_from([plain_start(5, 79), plain_start(4, 79), b"x" * 10]),
    sequence=st.sampled_from([3, 4, 0]),
)
def test_the_same_replies_are_plain(data, start, sequence):
    if frames.kernel is None:
        return
    arguments = data, start, sequence
    assert frames.kernel.plain_reply(*arguments) == frames._pure_plain_reply(*arguments)


def test_a_plain_request_and_a_plain_reply_are_told():
    request = _pure_plain_frame(plain_start(4, 79), 3, b"ab")
    assert frames.plain_request(request, 1 << 20).payload == b"ab"
    assert frames.plain_request(request + b"x", 1 << 20) is None
    ours = encode_frame(FrameType.INVOKE, 1, 0, 7, b"ab", {"OBJS": b"context"})
    for plain_request in (frames.plain_request, frames._pure_plain_request):
        frame = plain_request(ours, 1 << 20)
        assert (frame.payload, frame.annotations) == (b"ab", {"OBJS": b"context"})
        assert plain_request(ours[:-1], 1 << 20) is None
        assert plain_request(ours.replace(b"OBJS", b"PROM"), 1 << 20) is None
    assert frames.plain_request(request, 41) is None
    reply = _pure_plain_frame(plain_start(5, 79), 3, b"ab")
    assert frames.plain_reply(reply, plain_start(5, 79), 3) == b"ab"
    assert frames.plain_reply(reply, plain_start(5, 79), 4) is None
    assert frames.plain_reply(reply[:-1], plain_start(5, 79), 3) is None


@pytest.mark.parametrize("arguments", [(), ("text", 1), (b"x", "1"), (b"x", 1, 2)])
def test_wrong_requests_are_refused(kernel, arguments):
    with pytest.raises(TypeError):
        kernel.plain_request(*arguments)


@pytest.mark.parametrize("arguments", [(), ("text", b"x" * 10, 1), (b"x", b"x", 1), (b"x", b"x" * 10, "1")])
def test_wrong_replies_are_refused(kernel, arguments):
    with pytest.raises(TypeError):
        kernel.plain_reply(*arguments)
