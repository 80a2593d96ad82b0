"""Large buffers between two processes of one machine, without the network between them.

The sender writes the bytes into anonymous memory (memfd_create) and says in the message which of its
descriptors that is; the receiver opens `/proc/<sender>/fd/<descriptor>` and maps it.  The bytes are copied
once, by the sender, and what arrives is writable and nobody else's.  The memory has no name in any directory:
the kernel frees it when both sides have let go of it, whichever way they ended.

    greeting  each side of a connection offers one word of a memory of its own; the other side opens it and
              inverts the bits.  Who finds its word inverted knows that the peer can open its memory: same
              machine, same process namespace, sufficient rights.  Each direction is proven for itself.
    lend      the sender copies the bytes; the receiver locks the memory (flock), marks it as taken, maps it.
    reuse     fresh memory costs the kernel more than the copy, so it is used again, once it has been taken
              and nobody holds the lock.  The lock belongs to the receiver's mapping: it ends with it, even
              by SIGKILL, and no message has to say so.

A peer is not believed.  What is opened must be memory of the kernel's own (not a file, a device or huge
pages), bear the token that came through the connection, and be sealed against changes of its size: the
sender could otherwise cut it off under our feet, which is a SIGBUS.  The peer can still change the bytes
while we read; they are data to us, and no length is ever read from them.  Memory that one peer has had is
lent to the next: who may open a descriptor of this process could read all its memory anyway.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from objserver import errors
from objserver.wire.buffers import SHARED_MIN, Claim

__all__ = ["Link", "Offer", "SharedMemory", "is_local"]

PREFIX = "objserver-"
PAGE = mmap.PAGESIZE
PIECE = 256 * 1024
FRESH = 1 << 30
"""Bytes for one system call, which takes no more than 2 GiB."""
WORD = 16
WORDS = 4_096
"""Connections of one process that may use shared memory at a time."""
LOANS_MAX = 256
"""Pieces of memory, each a descriptor, that one process has lent or keeps for the next loan."""
SHARE_PER_LINK = 2
"""One connection may have 1/2 of what all have together: a peer that lets go of nothing leaves some."""
IDLE_S = 10.0
"""How long memory that nobody uses is kept for the next loan."""
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
_TAKEN = b"\x01"

Offer = tuple[int, int, str, int]
"""In a greeting: process id, descriptor, token, and the number of the word."""


def is_local(sock: socket.socket) -> bool:
    """Whether the other end may be on this machine: nobody else is made an offer."""
    if sock.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(sock.getpeername()[0].partition("%")[0]).is_loopback


def _inverted(word: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in word)


class _Memory:
    """A piece of memory to lend.  Its last page holds the mark of whoever took it."""

    __slots__ = ("capacity", "descriptor", "idle_since", "is_used", "link", "mapping", "token")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.token = os.urandom(16).hex()
        self.link: Link | None = None
        self.mapping: mmap.mmap | None = None
        self.is_used = False
        self.idle_since = 0.0
        self.descriptor = os.memfd_create(PREFIX + self.token, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, capacity + PAGE)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(self.descriptor)
            raise

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        size, at = len(view), 0
        if self.mapping is None and self.is_used:
            self.mapping = mmap.mmap(
                self.descriptor, self.capacity, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE
            )
        if self.mapping is not None:
            # The fastest way into pages that exist; in pieces, so that other threads get their turn.
            for at in range(0, size, PIECE):
                self.mapping[at : min(at + PIECE, size)] = view[at : at + PIECE]
        else:
            # ... and this is the fastest into pages that do not yet.
            while at < size:
                at += os.pwrite(self.descriptor, view[at : at + FRESH], at)
        self.is_used = True

    def close(self) -> None:
        if self.mapping is not None:
            self.mapping.close()
        os.close(self.descriptor)

    def give_to(self, link: Link) -> None:
        """From here on it is that link's, until it has been taken and let go of."""
        os.pwrite(self.descriptor, b"\x00", self.capacity)
        self.link = link

    def is_taken(self) -> bool:
        return os.pread(self.descriptor, 1, self.capacity) == _TAKEN

    def is_held(self) -> bool:
        """Whether somebody has it mapped who took it."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return False


class _Borrowed(mmap.mmap):
    """A mapping that counts for as long as it lives."""

    ended: Callable[[], None] | None = None

    def __del__(self) -> None:
        if self.ended is not None:
            self.ended()


class SharedMemory:
    """What one server, or all proxies of a process, lend and borrow, up to `memory_max` bytes of each.

    `buffer_size_max` bounds one buffer that comes.  0 for `memory_max` switches it off.
    """

    def __init__(self, memory_max: int, buffer_size_max: int) -> None:
        self.memory_max = memory_max
        self.buffer_size_max = buffer_size_max
        self.mapped = 0
        self._lock = threading.RLock()  # a garbage collection may end a mapping while it is held
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._memories: list[_Memory] = []
        self._words: _Memory | None = None
        self._free_words: list[int] = []
        self._orphans: list[tuple[float, _Memory]] = []
        """Lent to connections that have ended, with the time until they may still be taken."""
        self._links = 0

    @property
    def lent(self) -> int:
        """Bytes of memory lent, or kept for the next loan."""
        return sum(memory.capacity for memory in self._memories) + sum(m.capacity for _, m in self._orphans)

    def link(self) -> Link | None:
        """For a new connection to a peer on this machine; None if there is nothing to offer it."""
        if not self.memory_max:
            return None
        with self._lock:
            if self._process != os.getpid():
                self._forget()  # after a fork: the memory is the parent's, and so is its process id
            try:
                if self._words is None:
                    self._words = _Memory(WORDS * WORD)
                    self._free_words = list(range(WORDS))
                if not self._free_words:
                    return None
                number = self._free_words.pop()
                word = os.urandom(WORD)
                os.pwrite(self._words.descriptor, word, number * WORD)
            except OSError:
                return None  # no memory or no descriptor left: then without
            self._links += 1
            offer = (self._process, self._words.descriptor, self._words.token, number)
            return Link(self, offer, word)

    @property
    def is_awaited(self) -> bool:
        """Whether something lent has not been taken yet."""
        with self._lock:
            waiting = [memory for memory in self._memories if memory.link is not None]
            return not all(memory.is_taken() for memory in (*waiting, *(m for _, m in self._orphans)))

    def sweep(self) -> None:
        """Give back what is not used any more; to be called now and then."""
        now = time.monotonic()
        with self._lock:
            waiting = []
            for until, memory in self._orphans:
                if now >= until or memory.is_taken():
                    memory.close()
                else:
                    waiting.append((until, memory))
            self._orphans = waiting
            for memory in list(self._memories):
                if self._is_free(memory) and now - memory.idle_since >= IDLE_S:
                    self._drop(memory)
            if not self._links and not self._orphans:
                self._forget()

    def close(self) -> None:
        """Give everything back that can be; what peers have mapped stays theirs."""
        with self._lock:
            self._forget()
            self.memory_max = 0

    def _forget(self) -> None:
        for memory in (*self._memories, *(orphan for _, orphan in self._orphans), self._words):
            if memory is not None:
                memory.close()
        self._reset()

    # -- for the links -------------------------------------------------------------------------------

    def _lend(self, link: Link, data: bytes | memoryview) -> Claim | None:
        size = len(data)
        # Steps of a quarter of a power of two, so that the next buffer of about this size fits as well.
        step = max(PAGE, 1 << max(0, size.bit_length() - 3))
        capacity = -(-size // step) * step
        with self._lock:
            if self.memory_max == 0:
                return None
            self.sweep()
            fitting, own = None, 0
            for memory in self._memories:
                if not self._is_free(memory):
                    own += memory.capacity if memory.link is link else 0
                elif memory.capacity == capacity and fitting is None:
                    fitting = memory
            if own + capacity > self.memory_max // SHARE_PER_LINK:
                return None
            if fitting is None:
                self._make_room(capacity)
                if self.lent + capacity > self.memory_max or len(self._memories) >= LOANS_MAX:
                    return None
                try:
                    fitting = _Memory(capacity)
                except OSError:
                    return None
                self._memories.append(fitting)
            fitting.give_to(link)
        try:
            fitting.write(data)  # its link is set, so nobody else takes it
        except OSError:
            with self._lock:
                self._drop(fitting)
            return None
        return Claim(size, fitting.descriptor, fitting.token)

    def _make_room(self, size: int) -> None:
        for memory in list(self._memories):
            if self.lent + size <= self.memory_max and len(self._memories) < LOANS_MAX:
                return
            if self._is_free(memory):
                self._drop(memory)

    def _is_free(self, memory: _Memory) -> bool:
        if memory.link is not None and memory.is_taken() and not memory.is_held():
            memory.link, memory.idle_since = None, time.monotonic()
        return memory.link is None

    def _drop(self, memory: _Memory) -> None:
        if memory in self._memories:
            self._memories.remove(memory)
            memory.close()

    def _take_back(self, claims: Iterable[Claim]) -> None:
        tokens = {claim.token for claim in claims}
        with self._lock:
            for memory in self._memories:
                if memory.token in tokens:
                    memory.link, memory.idle_since = None, time.monotonic()

    def _end(self, link: Link, linger_s: float) -> None:
        with self._lock:
            if self._process != os.getpid() or not self.memory_max:
                return
            self._free_words.append(link.offer[3])
            self._links -= 1
            for memory in list(self._memories):
                if memory.link is link and not self._is_free(memory):
                    self._memories.remove(memory)
                    if memory.is_taken() or not linger_s:
                        memory.close()  # who has it mapped keeps it
                    else:
                        self._orphans.append((time.monotonic() + linger_s, memory))
            if not self._links and not self._orphans:
                self._forget()

    def _count(self, size: int) -> None:
        with self._lock:
            if size > 0 and self.mapped + size > self.memory_max:
                problem = errors.MessageTooLarge(
                    f"a buffer of {size} bytes in shared memory, where {self.mapped} of {self.memory_max} "
                    "are mapped already (setting shared_memory_max)"
                )
                problem.limit = "shared_memory_max"
                raise problem
            self.mapped += size


class Link:
    """Shared memory between this process and the peer of one connection.

    `offer` goes into our greeting; `accept` takes what stood in the peer's.
    """

    def __init__(self, memory: SharedMemory, offer: Offer, word: bytes) -> None:
        self.offer = offer
        self._memory = memory
        self._word = word
        self._peer = 0
        self._proven = False
        self._closed = False

    def accept(self, offer: Sequence[Any]) -> bool:
        """Prove to the peer that we can open its memory; whether we can."""
        process, descriptor, token, number = offer
        try:
            with _opened(process, descriptor, token) as own:
                word = os.pread(own, WORD, number * WORD)
                if len(word) != WORD or os.pwrite(own, _inverted(word), number * WORD) != WORD:
                    return False
        except (OSError, OverflowError, ValueError, errors.SerializeError):
            return False
        self._peer = process
        return True

    @property
    def is_proven(self) -> bool:
        """Whether the peer has shown that it can open our memory."""
        if not self._proven and not self._closed:
            _, descriptor, _, number = self.offer
            self._proven = os.pread(descriptor, WORD, number * WORD) == _inverted(self._word)
        return self._proven

    def lend(self, data: bytes | memoryview) -> Claim | None:
        """A copy of `data` that the peer can map, or None if it has to travel another way."""
        if self._closed or not self.is_proven:
            return None
        return self._memory._lend(self, data)

    def take_back(self, claims: Iterable[Claim]) -> None:
        """Of these the peer never heard."""
        self._memory._take_back(claims)

    def borrow(self, claim: Claim) -> memoryview:
        """Map what the peer lends: writable, and ours until the last view of it is gone.

        SerializeError if there is no such memory or it is not safe to map, MessageTooLarge over a limit.
        """
        with self._open(claim) as descriptor:
            if not claim.length:
                return memoryview(bytearray())
            # A small one is a mapping too, and a descriptor, of which there are not so many.
            cost = max(claim.length, SHARED_MIN)
            self._memory._count(cost)
            try:
                mapped = _Borrowed(descriptor, claim.length)
            except BaseException as problem:
                self._memory._count(-cost)
                if isinstance(problem, (OSError, ValueError)):
                    raise errors.SerializeError(
                        f"a buffer in shared memory cannot be mapped: {problem}"
                    ) from None
                raise
            mapped.ended = partial(self._memory._count, -cost)
            return memoryview(mapped)

    def read(self, claim: Claim) -> bytes:
        """A copy of what the peer lends."""
        with self._open(claim) as descriptor:
            data = os.pread(descriptor, claim.length, 0)
        if len(data) != claim.length:
            raise errors.SerializeError("a buffer in shared memory could not be read whole")
        return data

    def dismiss(self, claim: Claim) -> None:
        """Nobody here wants what the peer lends."""
        with contextlib.suppress(errors.ProtocolError), self._open(claim):
            pass

    def __del__(self) -> None:
        self.close()

    def close(self, linger_s: float = 0.0) -> None:
        """The connection has ended.  Replies that it still carries are there to be taken for `linger_s`."""
        if not self._closed:
            self._closed = True
            self._memory._end(self, linger_s)

    @contextlib.contextmanager
    def _open(self, claim: Claim) -> Any:
        if not self._peer:
            raise errors.SerializeError("a buffer in shared memory, which this peer did not offer")
        try:
            with _opened(self._peer, claim.descriptor, claim.token) as descriptor:
                size = os.fstat(descriptor).st_size
                if not 0 <= claim.length <= size - PAGE:
                    raise errors.SerializeError("a buffer in shared memory is smaller than announced")
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                os.pwrite(descriptor, _TAKEN, size - PAGE)
                # What is refused has been taken too: the sender has it back at once.
                if claim.length > self._memory.buffer_size_max:
                    problem = errors.MessageTooLarge(
                        f"a buffer of {claim.length} bytes in shared memory, more than "
                        f"{self._memory.buffer_size_max} (setting shared_buffer_size_max)"
                    )
                    problem.limit = "shared_buffer_size_max"
                    raise problem
                yield descriptor
        except (OSError, OverflowError) as reason:
            raise errors.SerializeError(f"a buffer in shared memory cannot be opened: {reason}") from None


@contextlib.contextmanager
def _opened(process: int, descriptor: int, token: str) -> Any:
    """A descriptor of our own for the memory that `process` has under `descriptor`."""
    # First a handle that opens nothing yet: what is there may be a device or a pipe.
    handle = os.open(f"/proc/{process:d}/fd/{descriptor:d}", os.O_PATH | os.O_CLOEXEC)
    try:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if name != f"/memfd:{PREFIX}{token} (deleted)" or os.fstat(handle).st_dev != _kernel_memory():
            raise errors.SerializeError("what was announced as shared memory is something else")
        own = os.open(f"/proc/self/fd/{handle}", FLAGS)
    finally:
        os.close(handle)
    try:
        if fcntl.fcntl(own, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise errors.SerializeError("the shared memory of the peer could change its size under our feet")
        yield own
    finally:
        os.close(own)


_device: int | None = None


def _kernel_memory() -> int:
    """The device on which anonymous memory lives; that of huge pages is another one."""
    global _device
    if _device is None:
        descriptor = os.memfd_create(PREFIX, os.MFD_CLOEXEC)
        try:
            _device = os.fstat(descriptor).st_dev
        finally:
            os.close(descriptor)
    return _device
