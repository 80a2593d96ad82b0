"""One address for the servers of several processes of a machine: connections are handed over, not relayed.

    front, in one process                                    worker, in each of the others
    accept -> read the connect frame -> choose a worker ==>  say that it is here -> adopt -> serve

What goes to the worker is the socket itself, with the bytes that were read from it, so the front has no part
in what is said later.  Which worker it is, a pure function decides (`Choose`) of the object that the connect
frame names; by default all that call one object go to one worker.  It is a hint.  Any worker may be asked for
any object, and a front that cannot know the object gives the connection to whom has the fewest: with TLS it
stands inside, where the front does not look (`reads=False`).

The front has one thread, which never waits for anybody, so peers that are slow to say what they want delay
nobody.  Each has the time of a handshake; where there are too many, who has been here longest goes.

A worker says that it has a socket before it writes a byte to it, and the front keeps the socket until then.
So whichever end dies, a connection is served once, or by nobody: what a worker had not taken when it died, or
did not take in time, goes to others, and of it the worker is told to take no more, in one step: from then on
what it says fails.  The clients of a worker that died make their connections again.

The alternative without a front is `SharedPort`: the kernel deals the connections out, to anybody.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from objserver import errors
from objserver.codecs import Codecs
from objserver.logs import escaping
from objserver.machine import machine
from objserver.references import DAEMON_ID, Location, rank
from objserver.settings import ServerSettings
from objserver.wire import Frame, FrameParser, FrameType, encode_frame

if TYPE_CHECKING:
    from objserver.server.server import ObjectServer

__all__ = ["Adopter", "Choose", "Front", "SharedPort", "Standing", "by_object", "fewest"]

GUESTS_MAX = 2_000
"""Connections that the front has at a time, those that say nothing included.  A connect frame takes one round
trip; nobody who is not slow on purpose notices the bound."""
PENDING_MAX = 64
"""Sockets sent to a worker that it has not taken.  They are lost to others until it is given up, so few; but
enough that it never waits for the front."""
TAKE_TIMEOUT_S = 5.0
"""A worker that takes nothing for so long has been stopped, or hangs; its Adopter has nothing else to do.
Less would give up who computes something, for seconds, without letting go of the interpreter."""
ACCEPT_BURST = 64
"""Connections taken per look, so that a flood of them does not hold up those that said what they want."""
PAUSE_S = 0.1
"""Until it is tried again to accept, where the process or the system has too many open files."""
LOOKED_AT_MAX = 8 * 1024
"""Bytes of a connect frame's content in which the object's id is looked for.  Decoding more would take time
from all others; it goes to anybody, who has threads for that."""
READ_SIZE = 8 * 1024
"""Bytes asked for at a time, so that with all of a connect frame a message stays below what a pair takes."""

_HAVE = struct.Struct("!I")
"""What a worker says at first, and for each socket that it takes: how many connections it has."""
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
_GIVEN = b"\0"
"""In front of the bytes that go with a socket: nothing at all would be the end."""

log = escaping(logging.getLogger("objserver.server"))


class Standing(NamedTuple):
    """A worker, as who chooses sees it: its name, and how many connections it has or is about to get."""

    name: str
    connections: int


Choose = Callable[[str, Frame | None, Sequence[Standing]], str]
"""Of the id of the object that is wanted, "" if nobody knows, the connect frame, if there is one, and the
workers: the name of one of them.  It may be called in any thread, and must not wait."""


def fewest(object_id: str, connect: Frame | None, workers: Sequence[Standing]) -> str:
    """Whoever has the fewest connections; of several the first."""
    return min(workers, key=lambda worker: worker.connections).name


def by_object(object_id: str, connect: Frame | None, workers: Sequence[Standing]) -> str:
    """For one object always the same worker, as long as that lives (rendezvous hashing).

    When a worker goes, only its objects move.  The server itself is everywhere, so that goes to whom has the
    fewest connections, and so does what nobody knows.
    """
    if object_id in ("", DAEMON_ID):
        return fewest(object_id, connect, workers)
    return max(workers, key=lambda worker: rank(object_id, worker.name)).name


# -- the front -------------------------------------------------------------------------------------------


class _Guest:
    """A connection that has no worker yet, and what it said."""

    __slots__ = ("connect", "data", "deadline", "object_id", "parser", "sock")

    def __init__(self, sock: socket.socket, parser: FrameParser, deadline: float) -> None:
        self.sock = sock
        self.parser = parser
        self.deadline = deadline
        self.data = b""
        self.object_id = ""
        self.connect: Frame | None = None


class _Worker:
    """What the front knows of a worker."""

    __slots__ = ("channel", "connections", "is_there", "name", "pending", "since", "waiting")

    def __init__(self, name: str, channel: socket.socket) -> None:
        self.name = name
        self.channel = channel
        self.connections = 0
        self.is_there = False
        """It has said so; it may take its time to start."""
        self.pending: deque[_Guest] = deque()
        """Sent, and not taken."""
        self.waiting: deque[_Guest] = deque()
        """Not sent, since too many are pending."""
        self.since = 0.0
        """When it last took one, or had none to take."""


class Front:
    """Accepts connections at `address` and hands each to one of the workers.

    `reads` false: without looking at what they say, as with TLS.  `insecure` as for an ObjectServer, whose
    `settings` say how long and how large a handshake may be.  Raises what listening raises.
    """

    def __init__(
        self,
        address: str,
        *,
        choose: Choose = by_object,
        reads: bool = True,
        insecure: bool = False,
        settings: ServerSettings | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self._choose = choose
        self._reads = reads
        self._codecs = Codecs(self.settings.limits)
        self._machine = machine.get()
        location = Location.parse(address)
        self._listener = self._machine.listen(location, insecure)
        if not location.path:
            location = Location(location.host, self._listener.getsockname()[1])
        self.location = location
        self._workers: dict[int, _Worker] = {}
        self._greeting: OrderedDict[int, _Guest] = OrderedDict()
        """Who has not said what he wants, by descriptor; who came first, first."""
        self._homeless: deque[_Guest] = deque()
        """Who is for a worker while there is none."""
        self._orders: deque[Callable[[], None]] = deque()
        self._accepting = True
        self._resume_at: float | None = None
        self._closing = False
        self._guests = self._handed_over = self._given_again = self._dropped = 0
        self._bell = self._machine.Bell()
        self._epoll = select.epoll()
        for descriptor in (self._bell.fileno(), self._listener.fileno()):
            self._epoll.register(descriptor, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="objserver-front", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens, as it stands in URIs."""
        return str(self.location)

    def start(self) -> None:
        """Begin to accept, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more.  Who has no worker yet is let go; workers see that there is no front."""
        if self._thread.ident is None:
            self._end()
            return
        if not self._closing:
            self._order(self._end)
        self._thread.join()

    def add(self, name: str) -> socket.socket:
        """A new worker, which replaces one of the same name; what is returned is for its Adopter.

        It is given nothing before the Adopter is there.  Whoever passes that on to another process closes it
        here, or the front does not notice its death.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._order(functools.partial(self._begin, _Worker(name, ours)))
        return theirs

    def remove(self, name: str) -> None:
        """Give no more to this worker; what it has, it keeps, and what it has not taken goes to others."""
        self._order(functools.partial(self._retire_named, name))

    def statistics(self) -> dict[str, int]:
        """What it has done, and what it holds beside the limits."""
        return {
            "workers": sum(worker.is_there for worker in list(self._workers.values())),
            "guests": self._guests,
            "guests_max": GUESTS_MAX,
            "greeting": len(self._greeting),
            "handed_over": self._handed_over,
            "given_again": self._given_again,
            "dropped": self._dropped,
        }

    def _order(self, work: Callable[[], None]) -> None:
        self._orders.append(work)
        self._bell.ring()

    def _run(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except Exception:
                log.exception("handing a connection over failed; this is a bug of objserver")

    def _turn(self) -> None:
        listener, bell = self._listener.fileno(), self._bell.fileno()
        for descriptor, _ in self._epoll.poll(self._patience()):
            if descriptor == listener:
                self._accept()
            elif descriptor == bell:
                self._bell.silence()
                while self._orders:
                    self._orders.popleft()()
            elif (worker := self._workers.get(descriptor)) is not None:
                if not self._has_taken(worker):
                    log.warning("worker %s is gone", worker.name)
                    self._retire(worker)
            elif (guest := self._greeting.get(descriptor)) is not None:
                self._read(guest)
        if not self._closing:
            self._expire(self._machine.monotonic())

    def _patience(self) -> float | None:
        """Seconds until somebody has waited too long."""
        ends = [guest.deadline for guest in self._homeless]
        ends += [guest.deadline for guest in list(self._greeting.values())[:1]]
        ends += [worker.since + TAKE_TIMEOUT_S for worker in self._workers.values() if worker.pending]
        ends += [] if self._resume_at is None else [self._resume_at]
        return max(0.0, min(ends) - self._machine.monotonic()) if ends else None

    def _expire(self, now: float) -> None:
        if self._resume_at is not None and self._resume_at <= now:
            self._resume_at = None
            self._accept_more(True)
        while self._greeting and (guest := next(iter(self._greeting.values()))).deadline <= now:
            self._refuse(guest, "no connect frame came in the time allowed")
        while self._homeless and self._homeless[0].deadline <= now:
            self._refuse(self._homeless.popleft(), "no process of this server is there now; try again")
        for worker in list(self._workers.values()):
            if worker.pending and worker.since + TAKE_TIMEOUT_S <= now:
                log.error("worker %s takes no connections; it gets no more", worker.name)
                self._retire(worker)

    # -- those who come ----------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(ACCEPT_BURST):
            if self._guests >= GUESTS_MAX:
                if not self._greeting:
                    self._accept_more(False)  # all of them wait for workers
                    return
                self._refuse(next(iter(self._greeting.values())), "too many others want to connect")
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as problem:
                log.error("cannot accept a connection: %s", problem)
                self._accept_more(False)  # or it would be tried again at once
                self._resume_at = self._machine.monotonic() + PAUSE_S
                return
            sock.setblocking(False)
            self._guests += 1
            limits = self.settings.limits
            deadline = self._machine.monotonic() + self.settings.handshake_timeout_s
            guest = _Guest(sock, FrameParser(limits, limits.handshake_size_max), deadline)
            if self._reads:
                self._greeting[sock.fileno()] = guest
                self._epoll.register(sock.fileno(), select.EPOLLIN)
            else:
                self._place(guest)

    def _accept_more(self, wanted: bool) -> None:
        if wanted != self._accepting:
            self._accepting = wanted
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN if wanted else 0)

    def _read(self, guest: _Guest) -> None:
        """Read on; when it is known what is wanted, or that nobody will ever know, a worker gets it."""
        try:
            data = guest.sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._leave(guest)
            self._over(guest)
            return
        guest.data += data
        try:
            frames = guest.parser.receive_data(data)
            if not frames:
                return
            guest.connect = frames[0]
            guest.object_id = self._wanted(frames[0])
        except errors.ProtocolError:
            pass  # a worker says what is wrong
        self._leave(guest)
        self._place(guest)

    def _wanted(self, frame: Frame) -> str:
        """The id of the object that a connect frame names, "" if it names none."""
        if frame.type != FrameType.CONNECT or len(frame.payload) > LOOKED_AT_MAX:
            return ""
        data = self._codecs.get(frame.serializer_id).decode(frame.payload)
        wanted = data.get("object") if isinstance(data, dict) else None
        return wanted if isinstance(wanted, str) else ""

    def _leave(self, guest: _Guest) -> None:
        self._epoll.unregister(guest.sock.fileno())
        del self._greeting[guest.sock.fileno()]

    def _over(self, guest: _Guest) -> None:
        """The front has nothing more to do with it."""
        guest.sock.close()
        self._guests -= 1
        self._accept_more(True)

    def _refuse(self, guest: _Guest, why: str) -> None:
        if self._greeting.get(guest.sock.fileno()) is guest:
            self._leave(guest)
        self._dropped += 1
        codec = self._codecs.serpent
        answer = encode_frame(FrameType.CONNECT_FAIL, codec.serializer_id, 0, 0, codec.encode(why))
        if self._reads:
            with contextlib.suppress(OSError):
                guest.sock.send(answer)
        self._over(guest)

    # -- those who serve ---------------------------------------------------------------------------------

    def _begin(self, worker: _Worker) -> None:
        self._retire_named(worker.name)
        self._workers[worker.channel.fileno()] = worker
        self._epoll.register(worker.channel.fileno(), select.EPOLLIN)

    def _place_again(self, guests: deque[_Guest]) -> None:
        for _ in range(len(guests)):
            self._place(guests.popleft())

    def _place(self, guest: _Guest) -> None:
        """Give it to a worker."""
        workers = {worker.name: worker for worker in self._workers.values() if worker.is_there}
        if not workers:
            self._homeless.append(guest)
            return
        standings = [
            Standing(w.name, w.connections + len(w.pending) + len(w.waiting)) for w in workers.values()
        ]
        try:
            chosen = workers[self._choose(guest.object_id, guest.connect, standings)]
        except Exception:
            log.exception("no worker could be chosen for %r; the one with the fewest has it", guest.object_id)
            chosen = workers[fewest("", None, standings)]
        chosen.waiting.append(guest)
        self._send(chosen)

    def _send(self, worker: _Worker) -> None:
        """Send what waits, as far as the worker takes it."""
        if not worker.pending:
            worker.since = self._machine.monotonic()
        while worker.waiting and len(worker.pending) < PENDING_MAX:
            guest = worker.waiting[0]
            try:
                socket.send_fds(worker.channel, [_GIVEN + guest.data], [guest.sock.fileno()])
            except OSError as problem:
                if problem.errno in _FULL and worker.pending:
                    return  # it goes on when it takes one of these
                log.warning("worker %s cannot be given a connection: %s", worker.name, problem)
                self._retire(worker)
                return
            worker.pending.append(worker.waiting.popleft())

    def _has_taken(self, worker: _Worker) -> bool:
        """Let go of what the worker has taken; False if it is gone."""
        while True:
            try:
                said = worker.channel.recv(_HAVE.size)
            except (BlockingIOError, InterruptedError):
                self._send(worker)
                return True
            except OSError:
                return False
            if len(said) != _HAVE.size or (worker.is_there and not worker.pending):
                return False
            (worker.connections,) = _HAVE.unpack(said)
            if worker.is_there:
                worker.since = self._machine.monotonic()
                self._handed_over += 1
                self._over(worker.pending.popleft())
            else:
                worker.is_there = True
                self._place_again(self._homeless)

    def _retire_named(self, name: str) -> None:
        for worker in list(self._workers.values()):
            if worker.name == name:
                self._retire(worker)

    def _retire(self, worker: _Worker) -> None:
        """It takes nothing from now on; what it has not taken until now goes to others."""
        if self._workers.pop(worker.channel.fileno(), None) is None:
            return
        self._epoll.unregister(worker.channel.fileno())
        with contextlib.suppress(OSError):
            worker.channel.shutdown(socket.SHUT_RDWR)  # what it says from here on fails; what it said is read
        guests, worker.waiting = worker.waiting, deque()
        self._has_taken(worker)
        worker.channel.close()
        self._given_again += len(worker.pending)
        guests.extendleft(reversed(worker.pending))
        self._place_again(guests)

    def _end(self) -> None:
        self._closing = True
        guests = [*self._greeting.values(), *self._homeless]
        for worker in self._workers.values():
            with contextlib.suppress(OSError):
                worker.channel.shutdown(socket.SHUT_RDWR)
            waiting, worker.waiting = worker.waiting, deque()
            self._has_taken(worker)
            worker.channel.close()
            guests += [*worker.pending, *waiting]
        for guest in guests:
            guest.sock.close()
        self._workers.clear()
        self._listener.close()
        if self.location.path:
            with contextlib.suppress(OSError):
                os.unlink(self.location.path)
        self._epoll.close()
        self._bell.close()


# -- the workers -----------------------------------------------------------------------------------------


class Adopter:
    """Takes the sockets that a front sends through `channel`, and has `server` adopt them.

    `lost` is called, in its thread, when there is no front any more or the front has given this worker up.
    """

    def __init__(
        self, server: ObjectServer, channel: socket.socket, lost: Callable[[], None] = lambda: None
    ) -> None:
        self._server = server
        self._channel = channel
        self._channel.setblocking(True)
        self._lost = lost
        self._stopping = False
        self._message_max = len(_GIVEN) + server.settings.limits.handshake_size_max + READ_SIZE
        self._thread = threading.Thread(target=self._run, name="objserver-adopter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more; what was sent and not taken, the front gives to others."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        with self._channel, contextlib.suppress(OSError):
            self._channel.send(_HAVE.pack(len(self._server.poller.connections)))
            while self._take():
                pass
        if not self._stopping:
            self._lost()

    def _take(self) -> bool:
        """Take one socket; False if there will be no more."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, self._message_max, 1)
        except OSError as problem:
            log.error("no more connections can be taken: %s", problem)
            return False
        if not data:
            return False
        if not descriptors:
            # Received without its descriptor, of which this process has too many; the client sees it closed.
            log.error("a connection was lost, since this process has too many open files")
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(fileno=descriptor)) for descriptor in descriptors]
            try:
                self._channel.send(_HAVE.pack(len(self._server.poller.connections) + len(socks)))
            except OSError:
                return True  # the front has given it to another meanwhile
            stack.pop_all()
        for sock in socks:
            try:
                self._server.adopt(sock, data[len(_GIVEN) :])
            except ValueError as problem:
                log.error("a connection was closed: %s", problem)
        return True


class SharedPort:
    """Accepts at a port at which other processes accept too, for a `server` that adopts what comes.

    The kernel gives each connection to one of them, by the addresses of its two ends (SO_REUSEPORT).  So
    one object's calls come in anywhere; and what waits to be accepted when a process ends, is reset.
    `reserve` finds a free port first, and keeps it for them.
    """

    def __init__(self, server: ObjectServer, address: str, *, insecure: bool = False) -> None:
        self._server = server
        self._listener = machine.get().listen(Location.parse(address), insecure, True)
        self._listener.setblocking(True)
        self._thread = threading.Thread(target=self._run, name="objserver-shared-port", daemon=True)
        self._thread.start()

    @staticmethod
    def reserve(address: str) -> socket.socket:
        """A socket that is bound there, and listens to nobody; `getsockname` tells the port."""
        location = Location.parse(address)
        family, _, _, _, target = socket.getaddrinfo(
            location.host, location.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(target)
        return sock

    def stop(self) -> None:
        """Accept no more here; the others go on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        with self._listener:
            while True:
                try:
                    sock, _ = self._listener.accept()
                except ConnectionAbortedError:
                    continue
                except OSError as problem:
                    if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        log.error("cannot accept more connections: %s", problem)
                        machine.get().sleep(PAUSE_S)  # it would fail again at once
                        continue
                    return
                self._server.adopt(sock)
