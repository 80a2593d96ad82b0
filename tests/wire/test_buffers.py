"""Blocks beside a message: where they are said to be is checked before they are looked at."""

import ormsgpack
import pytest

from objserver import errors
from objserver.settings import Limits
from objserver.wire import FrameParser
from objserver.wire.buffers import ALIGNMENT, ANNOTATION, Arrived, Parts, parts_frame

DATA, BLOCKS = b"\x92\x00\x01", [b"a" * 100, b"b" * 70_000, b""]


def parsed(data, **attributes):
    parser = FrameParser(Limits())
    parser.parts_in = 79
    for name, value in attributes.items():
        setattr(parser, name, value)
    (frame,) = parser.receive_data(data[:100]) + parser.receive_data(data[100:])
    return frame


def frame_of(parts=None, serializer=79, flags=0, annotations=None, size_max=1 << 20):
    return parts_frame(
        4, serializer, flags, 7, parts or Parts(DATA, BLOCKS), annotations, bytes(16), None, size_max
    )


def test_blocks_arrive_beside_the_message():
    frame = parsed(frame_of(annotations={"USER": b"x"}))
    assert frame.annotations == {"USER": b"x"}
    assert bytes(frame.payload.open()) == DATA
    assert [bytes(frame.payload.take(n)) for n in range(3)] == BLOCKS


def test_blocks_are_aligned_and_writable():
    arrived = parsed(frame_of()).payload
    arrived.open()
    view = arrived.take(1)
    view[0] = 0
    assert arrived._payload.index(b"\0" + b"b" * 10) % ALIGNMENT == 0


@pytest.mark.parametrize(
    ("changed", "made"), [({"parts_in": -1}, {}), ({}, {"serializer": 1}), ({}, {"flags": 32})]
)
def test_from_others_it_is_an_annotation_like_any(changed, made):
    frame = parsed(frame_of(**made), **changed)
    assert ANNOTATION in frame.annotations
    assert not isinstance(frame.payload, Arrived)


@pytest.mark.parametrize(
    "where",
    [
        b"", b"\xc1", ormsgpack.packb(5), ormsgpack.packb([]), ormsgpack.packb([-1]), ormsgpack.packb([1.0]),
        ormsgpack.packb([201]), ormsgpack.packb([100]), ormsgpack.packb([1, -5, 200]),
        ormsgpack.packb([0, 201]),
        ormsgpack.packb([0, 1 << 60]), ormsgpack.packb([200, "x"]), ormsgpack.packb([200, [1, 2]]),
        ormsgpack.packb([200, [1, 2, 3]]), ormsgpack.packb([200, *[0] * 1001]),
    ],
)  # fmt: skip
def test_a_wrong_description_is_refused(where):
    with pytest.raises(errors.SerializeError):
        Arrived(bytes(200), where, None).open()


@pytest.mark.parametrize("index", [3, -1, True, None, "0", 1.0])
def test_a_block_that_did_not_come_is_refused(index):
    arrived = parsed(frame_of()).payload
    arrived.open()
    with pytest.raises(errors.SerializeError, match="did not come"):
        arrived.take(index)


def test_shared_memory_where_none_is_shared_is_refused():
    arrived = Arrived(b"", ormsgpack.packb([0, [5, 3, "token"]]), None)
    arrived.open()
    with pytest.raises(errors.SerializeError, match="shared memory"):
        arrived.take(0)


def test_too_large_is_refused_before_it_is_made():
    with pytest.raises(errors.MessageTooLarge) as caught:
        frame_of(size_max=70_000)
    assert caught.value.limit == "frame_size_max"


class Lender:
    """A link that lends and notes what it got back."""

    def __init__(self):
        self.back = []

    def lend(self, data):
        from objserver.wire.buffers import Claim

        return Claim(len(data), 9, "t")

    def take_back(self, claims):
        self.back += claims


def test_what_was_lent_for_a_frame_that_is_not_made_is_taken_back():
    lender, parts = Lender(), Parts(DATA, [bytes(1 << 20), bytes(1000)])
    with pytest.raises(errors.MessageTooLarge):
        parts_frame(4, 79, 0, 1, parts, None, bytes(16), lender, 900)
    assert [claim.length for claim in lender.back] == [1 << 20]
