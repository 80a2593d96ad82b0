"""One frame of Pyro's protocol, and its bytes.

    offset  format  size  field
    0x00    4s      4     'PYRO'
    0x04    H       2     protocol version, 502
    0x06    B       1     frame type
    0x07    B       1     serializer id
    0x08    H       2     flags
    0x0a    H       2     sequence number: a reply carries that of its request
    0x0c    I       4     payload length
    0x10    I       4     annotations length, all chunks together
    0x14    16s     16    correlation id (a UUID), zero without flag CORRELATION
    0x24    H       2     reserved, 0
    0x26    H       2     magic number 0x4dc5

Then the annotations, each `4s` name, `I` length and that many bytes, and then the payload.  All numbers
are big-endian.  Source: Pyro5/protocol.py of Pyro5 5.17; flag bits 7 to 15 are free there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from objserver import errors
from objserver.compiled import compiled
from objserver.settings import Limits

__all__ = ["HEADER", "HEADER_SIZE", "Flag", "Frame", "FrameType", "encode_frame"]

HEADER = struct.Struct("!4sHBBHHII16sHH")
HEADER_SIZE = HEADER.size
MAGIC = b"PYRO"
VERSION = 502
START = MAGIC + VERSION.to_bytes(2, "big")
CHECK = 0x4DC5
NO_CORRELATION = bytes(16)
_CHUNK = struct.Struct("!4sI")
_NO_ANNOTATIONS: Mapping[str, bytes] = {}


class FrameType:
    """Plain integers: an enum member costs a call each time it is compared with a byte of the wire."""

    CONNECT = 1
    CONNECT_OK = 2
    CONNECT_FAIL = 3
    INVOKE = 4
    RESULT = 5
    PING = 6
    GOODBYE = 17
    """Between our peers only, from a server that stops: no request that has no reply yet was begun, or will
    be."""
    CANCEL = 16
    """Between our peers only: the sender of request `sequence` wants no result any more."""
    PROBE = 18
    """Between our peers only: the sender of request `sequence` asks what that waits for."""
    PROOF = 19
    """Between our peers only, before CONNECT_OK: from the server a challenge, from the client the answer, for
    a client that has claimed to hold a shared key.  The payload is in no serializer."""


class Flag:
    """Bits of the flags field."""

    EXCEPTION = 1
    COMPRESSED = 2
    ONEWAY = 4
    BATCH = 8
    ITEM_STREAM = 16
    KEEP_SERIALIZED = 32
    CORRELATION = 64
    KEEP = 128
    """Between our peers only: keep the result for a while, a later request may refer to it."""
    REFUSED = 256
    """Between our peers only: this answer to a call with an id says nothing of earlier attempts of it, for it
    was refused before any servant was asked."""


class _PureFrame:
    """What the kernel's Frame is, in Python."""

    __slots__ = ("annotations", "correlation", "flags", "payload", "sequence", "serializer_id", "type")

    def __init__(self, type: int, serializer_id: int, flags: int, sequence: int, payload: Any) -> None:
        self.type = type
        self.serializer_id = serializer_id
        self.flags = flags
        self.sequence = sequence
        self.payload: Any = payload
        self.annotations: Mapping[str, bytes] = _NO_ANNOTATIONS
        self.correlation = NO_CORRELATION


kernel = compiled("wire._kernel")
_Base: type[_PureFrame] = _PureFrame if kernel is None else kernel.Frame


class Frame(_Base):  # type: ignore[valid-type, misc]
    """A frame that arrived whole: decompressed, its annotations taken apart.

    `payload` is bytes, of a large one the bytearray it was received into; or what has `Arrived` in parts.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return (
            f"<Frame type={self.type} serializer={self.serializer_id} flags={self.flags:#x} "
            f"sequence={self.sequence} payload={len(self.payload)}B annotations={sorted(self.annotations)}>"
        )


# Nearly all frames are plain: no flags, no annotations, no correlation id.  What is the same in all of them
# is compared, and written, in one piece; and in C, where that has been compiled.
_PLAIN_IN = struct.Struct("!6sBBHHI24s").unpack_from
_PLAIN_OUT = struct.Struct("!10sHI24s").pack
BESIDE_MAX = 4096
"""Bytes of our own annotation in a request that is still plain: the context of a call in a deep chain."""
PLAIN_TAIL = bytes(22) + CHECK.to_bytes(2, "big")


def plain_start(type: int, serializer_id: int) -> bytes:
    """The first ten bytes of every plain frame of that type, made once for `plain_frame`."""
    return START + bytes((type, serializer_id, 0, 0))


def _pure_plain_frame(start: bytes, sequence: int, payload: bytes) -> bytes:
    """The bytes of a plain frame."""
    return _PLAIN_OUT(start, sequence, len(payload), PLAIN_TAIL) + payload


def _pure_plain_frames(data: bytes, size_max: int) -> tuple[list[Frame], int]:
    """The whole plain frames that `data` begins with, and where they end; what comes after is something
    else."""
    frames: list[Frame] = []
    at, end = 0, len(data)
    while end - at >= HEADER_SIZE:
        start, type_, serializer, flags, sequence, payload_size, tail = _PLAIN_IN(data, at)
        size = HEADER_SIZE + payload_size
        if tail != PLAIN_TAIL or start != START or size > end - at or size > size_max:
            break
        if flags & Flag.COMPRESSED:
            break
        frames.append(Frame(type_, serializer, flags, sequence, data[at + HEADER_SIZE : at + size]))
        at += size
    return frames, at


def _pure_plain_request(data: bytes, size_max: int) -> Frame | None:
    """The frame, if `data` is exactly one plain request without flags.

    It may have our own annotation, small, and no other.
    """
    if not HEADER_SIZE <= len(data) <= size_max:
        return None
    start, type_, serializer, flags, sequence, payload_size, tail = _PLAIN_IN(data)
    beside = int.from_bytes(tail[:4], "big")
    if (
        tail[4:] != PLAIN_TAIL[4:]
        or start != START
        or type_ != FrameType.INVOKE
        or flags
        or len(data) != HEADER_SIZE + beside + payload_size
    ):
        return None
    at = HEADER_SIZE + beside
    frame = Frame(type_, serializer, flags, sequence, data[at:])
    if beside:
        name, size = data[HEADER_SIZE : HEADER_SIZE + 4], data[HEADER_SIZE + 4 : HEADER_SIZE + 8]
        if beside < 8 or beside > BESIDE_MAX or name != b"OBJS" or int.from_bytes(size, "big") != beside - 8:
            return None
        frame.annotations = {"OBJS": data[HEADER_SIZE + 8 : at]}
    return frame


def _pure_plain_reply(data: bytes, start: bytes, sequence: int) -> bytes | None:
    """The payload, if `data` is exactly the plain frame that begins with `start` and has that number."""
    if data[:HEADER_SIZE] == _PLAIN_OUT(start, sequence, max(0, len(data) - HEADER_SIZE), PLAIN_TAIL):
        return data[HEADER_SIZE:]
    return None


def _pure_plain_call(value: Any) -> list[Any] | None:
    """`value`, if it is a list of two texts, a list and an empty dict: a call without keywords."""
    if (
        type(value) is list
        and len(value) == 4
        and type(value[0]) is type(value[1]) is str
        and type(value[2]) is list
        and value[3] == {}
        and type(value[3]) is dict
    ):
        return value
    return None


plain_call: Callable[[Any], list[Any] | None] = _pure_plain_call
plain_request: Callable[[bytes, int], Frame | None] = _pure_plain_request
plain_reply: Callable[[bytes, bytes, int], bytes | None] = _pure_plain_reply
plain_frame: Callable[[bytes, int, bytes], bytes] = _pure_plain_frame
plain_frames: Callable[[bytes, int], tuple[list[Frame], int]] = _pure_plain_frames
if kernel is not None:
    kernel.configure(Frame, _NO_ANNOTATIONS, NO_CORRELATION)
    plain_frame, plain_frames = kernel.plain_frame, kernel.plain_frames
    plain_call = kernel.plain_call
    plain_request, plain_reply = kernel.plain_request, kernel.plain_reply


def encode_frame(
    type: int,
    serializer_id: int,
    flags: int,
    sequence: int,
    payload: bytes,
    annotations: Mapping[str, bytes] | None = None,
    correlation: bytes = NO_CORRELATION,
) -> bytes:
    """The bytes of one frame.

    ProtocolError if an annotation's name is not four ASCII characters.
    """
    if correlation is not NO_CORRELATION:
        flags |= Flag.CORRELATION
    if not annotations:
        return (
            HEADER.pack(
                MAGIC, VERSION, type, serializer_id, flags, sequence, len(payload), 0, correlation, 0, CHECK
            )
            + payload
        )
    head = frame_head(type, serializer_id, flags, sequence, len(payload), annotations, correlation)
    return b"".join((*head, payload))


def frame_head(
    type: int,
    serializer_id: int,
    flags: int,
    sequence: int,
    payload_size: int,
    annotations: Mapping[str, bytes],
    correlation: bytes = NO_CORRELATION,
) -> list[bytes]:
    """Pieces that together are what precedes a payload of so many bytes."""
    if correlation is not NO_CORRELATION:
        flags |= Flag.CORRELATION
    chunks = []
    for name, data in annotations.items():
        if len(name) != 4 or not name.isascii():
            raise errors.ProtocolError(f"annotation name {name!r} is not four ASCII characters")
        chunks += [_CHUNK.pack(name.encode(), len(data)), data]
    size = sum(map(len, chunks))
    header = HEADER.pack(
        MAGIC, VERSION, type, serializer_id, flags, sequence, payload_size, size, correlation, 0, CHECK
    )
    return [header, *chunks]


def split_annotations(data: bytes, limits: Limits) -> dict[str, bytes]:
    """Take the annotations of one frame apart; ProtocolError if they are not well formed."""
    found: dict[str, bytes] = {}
    at, end, count = 0, len(data), 0
    while at < end:
        if at + 8 > end:
            raise errors.ProtocolError("an annotation is cut off inside its header")
        name, length = _CHUNK.unpack_from(data, at)
        at += 8
        if at + length > end:
            raise errors.ProtocolError("an annotation is longer than what is left of the frame")
        if not name.isascii():
            raise errors.ProtocolError(f"annotation name {name!r} is not ASCII")
        found[name.decode("ascii")] = data[at : at + length]
        at += length
        count += 1  # chunks, not names: a name may be repeated
        if count > limits.annotations_max:
            raise too_large("annotations_max", f"more than {limits.annotations_max} annotations in one frame")
    return found


def inflate(payload: bytes | bytearray, size_max: int) -> bytes:
    """Decompress without ever holding more than `size_max` bytes of output."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(payload, size_max)
        if not inflater.eof and (inflater.unconsumed_tail or inflater.decompress(b"", 1)):
            raise too_large("frame_size_max", f"the payload inflates to more than {size_max} bytes")
    except zlib.error as problem:
        raise errors.ProtocolError(f"the compressed payload is damaged: {problem}") from None
    if not inflater.eof:
        raise errors.ProtocolError("the compressed payload is cut off")
    if inflater.unused_data:
        raise errors.ProtocolError("there is data behind the compressed payload")
    return data


def too_large(limit: str, sentence: str) -> errors.MessageTooLarge:
    """The error for `sentence`, with the setting that decides as its evidence."""
    problem = errors.MessageTooLarge(f"{sentence} (setting {limit})")
    problem.limit = limit
    return problem
