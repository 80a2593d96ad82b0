"""Large values beside a message instead of inside it.

A codec that meets a large block of bytes (an array, say) does not copy it into its MessagePack.  It makes
`Parts`: the MessagePack, which holds only a number in place of each block, and the blocks.  How they travel
is decided by who has the connection: behind the MessagePack in the same payload, or, between two processes of
one machine, in shared memory.  The annotation `OBJB` says where they are, a MessagePack array:

    [size of the MessagePack, where block 0 is, where block 1 is, ...]

Where a block is: its length, for one in the payload, where each begins at the next multiple of 64; or a
`Claim`, `[length, descriptor, token]`, for one in memory that the sender shares (`shared_memory`).

On arrival nothing is looked at before somebody decodes: then every number is checked, no block may be asked
for twice (a few bytes must not become many), and a block in the payload is handed out in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import ormsgpack

from objserver import errors
from objserver.wire.frames import frame_head

if TYPE_CHECKING:
    from objserver.wire.shared_memory import Link

__all__ = ["ANNOTATION", "BUFFERS_MAX", "Arrived", "Claim", "Parts", "parts_frame"]

ANNOTATION = "OBJB"
ALIGNMENT = 64
"""Of each block from the start of the payload: a cache line, and what vector instructions like best."""
BUFFERS_MAX = 1_000
"""Blocks beside one message; what is more stays inside.  Each in shared memory is a mapping of the process,
which has 65,530."""
SHARED_MIN = 512 * 1024
"""Bytes from which a block goes through shared memory if it can: below it the socket is as fast."""


class Claim(NamedTuple):
    """A block in memory that the sender shares."""

    length: int
    descriptor: int
    token: str


class Parts:
    """A payload of which some bytes are kept apart.  `data` is MessagePack, `buffers` are the blocks."""

    __slots__ = ("buffers", "data")

    def __init__(self, data: bytes | memoryview, buffers: Sequence[bytes | memoryview]) -> None:
        self.data = data
        self.buffers = buffers

    def __len__(self) -> int:
        return len(self.data) + sum(map(len, self.buffers))


class Arrived:
    """Parts as they came, not yet looked at."""

    __slots__ = ("_annotation", "_copied", "_link", "_payload", "_places")

    LENGTH_MIN = 1024
    """What it says its length is at least: these are none of the small payloads that codecs take lightly."""

    def __init__(self, payload: bytes | bytearray | memoryview, annotation: bytes, link: Link | None) -> None:
        self._payload = payload
        self._annotation = annotation
        self._link = link
        self._copied = 0
        self._places: list[memoryview | Claim | None] = []

    def __len__(self) -> int:
        """Bytes that it made this process hold.  What is mapped is counted by who maps it."""
        return max(len(self._payload) + self._copied, self.LENGTH_MIN)

    @property
    def beside(self) -> bytes | bytearray | memoryview:
        """The payload as it came; what is in shared memory is not in it."""
        return self._payload

    def open(self) -> memoryview:
        """The MessagePack; SerializeError if the annotation and the payload do not fit together."""
        try:
            head, *places = ormsgpack.unpackb(self._annotation)
        except (ValueError, TypeError):
            raise errors.SerializeError("the OBJB annotation is malformed") from None
        whole = memoryview(self._payload)
        if type(head) is not int or not 0 <= head <= len(whole) or len(places) > BUFFERS_MAX:
            raise errors.SerializeError("the OBJB annotation is malformed")
        at = head
        found: list[memoryview | Claim | None] = []
        for place in places:
            if type(place) is int:
                at += -at % ALIGNMENT
                if place < 0 or at + place > len(whole):
                    raise errors.SerializeError("a buffer reaches beyond the end of its message")
                found.append(whole[at : at + place])
                at += place
            elif type(place) is list and list(map(type, place)) == [int, int, str]:
                found.append(Claim(*place))
            else:
                raise errors.SerializeError("the OBJB annotation is malformed")
        if at != len(whole):
            raise errors.SerializeError("there is data behind the buffers of a message")
        self._places = found
        return whole[:head]

    def take(self, index: object) -> memoryview:
        """Block number `index`, writable, in place."""
        place = self._place(index)
        if isinstance(place, Claim):
            return self._shared().borrow(place)
        return memoryview(bytearray(place)) if place.readonly else place

    def take_bytes(self, index: object) -> bytes:
        """Block number `index` as bytes."""
        place = self._place(index)
        if not isinstance(place, Claim):
            return bytes(place)
        self._copied += place.length
        return self._shared().read(place)

    def refuse(self) -> None:
        """Give back all that came: nobody will ask for it."""
        try:
            self.open()
        except errors.ProtocolError:
            pass  # it does not say what came
        self.close()

    def close(self) -> None:
        """Give back what nobody has asked for."""
        for place in self._places:
            if isinstance(place, Claim) and self._link is not None:
                self._link.dismiss(place)
        self._places = []

    def _place(self, index: object) -> memoryview | Claim:
        if type(index) is not int or not 0 <= index < len(self._places):
            raise errors.SerializeError("the value refers to a buffer that did not come with it")
        place, self._places[index] = self._places[index], None
        if place is None:
            raise errors.SerializeError("the value refers to the same buffer twice")
        return place

    def _shared(self) -> Link:
        if self._link is None:
            raise errors.SerializeError("a buffer in shared memory, which this connection does not use")
        return self._link


def parts_frame(
    type: int,
    serializer_id: int,
    flags: int,
    sequence: int,
    parts: Parts,
    annotations: Mapping[str, bytes] | None,
    correlation: bytes,
    link: Link | None,
    size_max: int,
) -> bytes:
    """As `encode_frame`, of `parts`: blocks go into the memory of `link` if it has room for them.

    MessageTooLarge if the frame would be larger than `size_max`.  Until the frame is made, nothing is lent.
    """
    pieces: list[bytes | memoryview] = [parts.data]
    places: list[int | Claim] = []
    size = len(parts.data)
    try:
        for buffer in parts.buffers:
            claim = link.lend(buffer) if link is not None and len(buffer) >= SHARED_MIN else None
            if claim is not None:
                places.append(claim)
                continue
            padding = -size % ALIGNMENT
            size += padding + len(buffer)
            pieces += (bytes(padding), buffer)
            places.append(len(buffer))
        where = ormsgpack.packb([len(parts.data), *map(_plain, places)])
        annotations = {**(annotations or {}), ANNOTATION: where}
        head = frame_head(type, serializer_id, flags, sequence, size, annotations, correlation)
        if sum(map(len, head)) + size > size_max:
            problem = errors.MessageTooLarge(
                f"the message takes {size} bytes, more than {size_max} (setting frame_size_max) without the "
                "buffers in shared memory, if there are (settings shared_memory_max, shared_buffer_size_max)"
            )
            problem.limit = "frame_size_max"
            raise problem
        return b"".join((*head, *pieces))
    except BaseException:
        if link is not None:
            link.take_back(place for place in places if isinstance(place, Claim))
        raise


def _plain(place: int | Claim) -> int | list[int | str]:
    return place if isinstance(place, int) else list(place)
