"""From bytes in any portions to whole frames.

The parser is fed what a socket gave and answers with the frames that are complete.  It never trusts a
length before comparing it with a limit, and never reserves memory for bytes that have not come, so a
peer pays for what it makes us hold.  Only a large payload gets a place of its own that is somewhat ahead of
what has come (`space`), so that its bytes are received where they will stay; `buffered` counts all of it.
After an error the stream has no trustworthy next frame: the
connection must be closed, and every further call raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from objserver import errors
from objserver.settings import Limits
from objserver.wire import buffers
from objserver.wire.frames import (
    CHECK,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    START,
    VERSION,
    Flag,
    Frame,
    inflate,
    plain_frames,
    split_annotations,
    too_large,
)

if TYPE_CHECKING:
    from objserver.wire.shared_memory import Link

__all__ = ["FrameParser"]

SMALL, GATHERED = 4 * 1024, 64 * 1024
"""Bytes of a piece that is gathered with its neighbours, and of such a gathering."""

IN_PLACE = 64 * 1024
"""Bytes of a payload that is received into a place of its own ..."""
AHEAD = 256 * 1024
"""... which has at most so many bytes at first, and doubles when they have come."""

_EMPTY: dict[str, bytes] = {}
_COMPRESSED, _KEEP_SERIALIZED = Flag.COMPRESSED, Flag.KEEP_SERIALIZED


class FrameParser:
    """Feed it with `receive_data`; it answers with whole frames.

    `frame_size_max` may be lowered and raised between frames: a server starts with the small limit of a
    handshake.  `buffered` is the number of bytes held for an unfinished frame.  While a large payload comes,
    `space` says where it may be received, and `received` takes the place of `receive_data`.
    """

    __slots__ = (
        "_chunks", "_failed", "_filled", "_head", "_needed", "_payload", "_space", "buffered",
        "frame_size_max", "inflates", "limits", "link", "parts_in",
    )  # fmt: skip

    def __init__(self, limits: Limits, frame_size_max: int | None = None) -> None:
        self.limits = limits
        self.frame_size_max = limits.frame_size_max if frame_size_max is None else frame_size_max
        self.buffered = 0
        self.inflates = True
        """Compressed frames are given out as what they were; else `unpack` does that, in another thread."""
        self._chunks: list[bytes | bytearray] = []
        self._needed = HEADER_SIZE
        self._failed = False
        self._head: Frame | None = None
        self._payload = bytearray()
        self._filled = 0
        self._space: memoryview | None = None
        self.parts_in = -1
        """Id of the serializer whose payloads may have buffers beside them; none before a peer's greeting."""
        self.link: Link | None = None

    @property
    def missing(self) -> int:
        """How many bytes at least must come before the next frame is whole."""
        return self._needed - (self.buffered if self._head is None else self._filled)

    def space(self) -> memoryview | None:
        """Where to receive what comes next of a large payload, or None: then `receive_data` wants it.

        Valid until the next call of any method.
        """
        if self._head is None:
            return None
        payload, size = self._payload, self._needed
        if self._space is not None:
            self._space.release()
        if self._filled == len(payload):
            payload *= 2
            del payload[size:]
            self.buffered = len(payload)
        self._space = memoryview(payload)[self._filled :]
        return self._space

    def received(self, count: int) -> list[Frame]:
        """So many bytes have been put into `space`; the frame, if it is whole now."""
        frame = self._head
        assert frame is not None
        assert self._space is not None
        self._space.release()
        self._space = None
        self._filled += count
        if self._filled < self._needed:
            return []
        frame.payload, self._payload = self._payload, bytearray()
        self._head = None
        self.buffered = 0
        self._needed = HEADER_SIZE
        try:
            return [self._finished(frame)]
        except errors.ProtocolError:
            self._failed = True
            raise

    def _begin(self, frame: Frame, payload_size: int, data: bytes) -> None:
        """Make room for the payload of `frame`, which begins with `data`."""
        capacity = payload_size
        while capacity > max(AHEAD, len(data)):
            capacity = (capacity + 1) // 2  # so that doubling it leads to the size
        self._payload = bytearray(capacity)
        self._payload[: len(data)] = data
        self._head, self._filled, self._needed, self.buffered = frame, len(data), payload_size, capacity

    def _fill(self, data: bytes) -> list[Frame]:
        """`receive_data` while a large payload comes."""
        rest = memoryview(data)
        while rest:
            space = self.space()
            assert space is not None
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            rest = rest[count:]
            frames = self.received(count)
            if frames:
                return frames + (self.receive_data(bytes(rest)) if rest else [])
        return []

    def _finished(self, frame: Frame) -> Frame:
        return frame if frame.flags & _COMPRESSED and not self.inflates else self.unpack(frame)

    def unpack(self, frame: Frame) -> Frame:
        """Decompress the payload of a whole frame; ProtocolError if that cannot be, or is too much."""
        if frame.flags & _COMPRESSED:
            frame.payload = inflate(frame.payload, self.frame_size_max)
        annotations = frame.annotations
        if (
            buffers.ANNOTATION in annotations
            and frame.serializer_id == self.parts_in
            and not frame.flags & _KEEP_SERIALIZED
        ):
            where = annotations[buffers.ANNOTATION]
            frame.annotations = {name: d for name, d in annotations.items() if name != buffers.ANNOTATION}
            frame.payload = buffers.Arrived(frame.payload, where, self.link)
        return frame

    def receive_data(self, data: bytes) -> list[Frame]:
        """Take `data`; return the frames that it completes, in order.

        ProtocolError (MessageTooLarge over a limit) when the bytes cannot be a frame.  Its attribute
        `header` is then (sequence, serializer id) if these were readable, for an answer.
        """
        frames: list[Frame] = []
        if not self.buffered and not self._failed:
            # What nearly always comes: whole, plain frames.
            frames, end = plain_frames(data, self.frame_size_max)
            if end == len(data):
                return frames
            if frames:
                data = data[end:]
        if self._failed:
            raise errors.ProtocolError("the stream broke the protocol earlier; close the connection")
        try:
            if self._head is not None:
                return self._fill(data)
            if self.buffered:
                self._keep(data)
                self.buffered += len(data)
                if self.buffered < self._needed:
                    self._check_start(b"".join(self._chunks) if self.buffered < HEADER_SIZE else b"")
                    return []
                data = b"".join(self._chunks)
                self._chunks.clear()
                self.buffered = 0
            return frames + self._frames(data) if frames else self._frames(data)
        except errors.ProtocolError:
            self._failed = True
            self._chunks.clear()
            self.buffered = 0
            raise

    def _keep(self, data: bytes) -> None:
        """Small pieces are gathered: an object for every two bytes would cost far more than the bytes."""
        chunks = self._chunks
        if len(data) < SMALL:
            if not chunks or type(chunks[-1]) is bytes or len(chunks[-1]) > GATHERED:
                chunks.append(bytearray())
            chunks[-1] += data
        else:
            chunks.append(data)

    def _frames(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        at, end = 0, len(data)
        while end - at >= HEADER_SIZE:
            (
                magic, version, type_, serializer, flags, sequence, payload_size, annotations_size,
                correlation, _reserved, check,
            ) = HEADER.unpack_from(data, at)  # fmt: skip
            if magic != MAGIC or version != VERSION or check != CHECK:
                self._check_start(data[at : at + 6])
                raise errors.ProtocolError("the frame header is damaged")
            size = HEADER_SIZE + annotations_size + payload_size
            if annotations_size or size > self.frame_size_max:
                try:
                    self._check_sizes(size, annotations_size)
                except errors.MessageTooLarge as problem:
                    problem.header = (sequence, serializer)
                    raise
            come = end - at
            if come < size:
                if payload_size < IN_PLACE:
                    self._needed = size
                    break
                self._needed = HEADER_SIZE + annotations_size
                if come < self._needed:
                    break
            if annotations_size:
                start = at + HEADER_SIZE + annotations_size
                annotations = split_annotations(data[at + HEADER_SIZE : start], self.limits)
                payload = data[start : at + size]
            else:
                annotations = _EMPTY
                payload = data[at + HEADER_SIZE : at + size]
            frame = Frame(type_, serializer, flags, sequence, payload)
            frame.annotations, frame.correlation = annotations, correlation
            if come < size:
                frame.payload = b""
                self._begin(frame, payload_size, payload)
                return frames
            if annotations or flags & _COMPRESSED:
                self._finished(frame)
            frames.append(frame)
            at += size
        else:
            self._needed = HEADER_SIZE
            self._check_start(data[at : at + 6])
        if at < end:
            self._chunks.append(data[at:] if at else data)
            self.buffered = end - at
        return frames

    def _check_start(self, start: bytes) -> None:
        """Refuse what cannot become a header as soon as its first bytes show it."""
        if start[:6] != START[: len(start[:6])]:
            if start[:4] == MAGIC[: len(start[:4])]:
                raise errors.ProtocolError(
                    f"protocol version {int.from_bytes(start[4:6], 'big')} instead of {VERSION}"
                )
            raise errors.ProtocolError(f"this is not Pyro's protocol: {bytes(start[:6])!r}")

    def _check_sizes(self, size: int, annotations_size: int) -> None:
        if annotations_size > self.limits.annotations_size_max:
            raise too_large(
                "annotations_size_max",
                f"{annotations_size} bytes of annotations, more than {self.limits.annotations_size_max}",
            )
        if size > self.frame_size_max:
            raise too_large("frame_size_max", f"a frame of {size} bytes, more than {self.frame_size_max}")
