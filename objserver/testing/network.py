"""A network in memory, with the faults that a real one has.

Connections are what TCP makes of the network: bytes arrive in order and once, or they do not arrive.  So a
lost packet is a delay, and what can go wrong is that a connection is refused, hangs for ever, breaks at any
byte, or that all that one host sends to another waits until a partition heals.  The sockets have the
methods that production code calls, and answer as Linux does.
"""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from objserver import errors
from objserver.references import Location

if TYPE_CHECKING:
    from objserver.testing.world import Process, Waiter, World

__all__ = ["Bell", "Epoll", "MemorySocket", "Network", "Weather"]

BUFFER_MAX = 64 * 1024
"""Bytes under way in one direction of a connection, or not yet read at its end."""
CONNECT_TIMEOUT_S = 127.0
"""As long as Linux tries, where the caller is more patient."""
SLOW = 20.0
"""How much longer the slow ones of the messages take."""
_TIMEVAL = struct.Struct("ll")


class Weather(NamedTuple):
    """What the network does to messages.  Shares are of all messages, or of all connections."""

    latency_s: float = 0.0005
    slow: float = 0.01
    """Messages that take much longer: what a lost packet comes to."""
    split: float = 0.02
    """Messages that arrive in two parts."""
    broken: float = 0.0
    """Messages after which the connection breaks, at either end's cost."""
    hung: float = 0.0
    """Messages after which nothing on the connection ever arrives."""
    refused: float = 0.0
    """Connections that are refused."""


class Bell:
    """An eventfd."""

    def __init__(self, process: Process) -> None:
        self._descriptor = process.world.network.descriptor(self)
        self.rings = False
        self.epoll: Epoll | None = None

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        self.rings = True
        if self.epoll is not None:
            self.epoll.changed(self._descriptor)

    def silence(self) -> None:
        self.rings = False

    def events(self) -> int:
        return select.EPOLLIN if self.rings else 0

    def close(self) -> None:
        pass


class Epoll:
    """select.epoll, level-triggered, for one thread that waits."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._watched: dict[int, tuple[Any, int]] = {}
        self._candidates: dict[int, None] = {}
        """Descriptors that may be ready."""
        self._waiter: Waiter | None = None

    def register(self, descriptor: int, mask: int) -> None:
        thing = self._process.world.network.descriptors.get(descriptor)
        if thing is None:
            raise OSError(errno.EBADF, "no such descriptor")
        self._watched[descriptor] = thing, mask
        thing.epoll = self
        self.changed(descriptor)

    def modify(self, descriptor: int, mask: int) -> None:
        if descriptor not in self._watched:
            raise FileNotFoundError(errno.ENOENT, "not registered")
        self._watched[descriptor] = self._watched[descriptor][0], mask
        self.changed(descriptor)

    def unregister(self, descriptor: int) -> None:
        if descriptor not in self._watched:
            raise FileNotFoundError(errno.ENOENT, "not registered")
        self._watched.pop(descriptor)[0].epoll = None

    def changed(self, descriptor: int) -> None:
        """It may be ready now."""
        self._candidates[descriptor] = None
        if self._waiter is not None and self._events(descriptor):
            self._waiter.wake()
            self._waiter = None

    def _events(self, descriptor: int) -> int:
        thing, mask = self._watched.get(descriptor, (None, 0))
        return thing.events() & (mask | select.EPOLLERR | select.EPOLLHUP) if thing is not None else 0

    def poll(self, timeout: float | None, maxevents: int) -> list[tuple[int, int]]:
        while True:
            self._process.check()
            ready = []
            for descriptor in list(self._candidates):
                events = self._events(descriptor)
                del self._candidates[descriptor]
                if events:
                    ready.append((descriptor, events))
                    self._candidates[descriptor] = None  # behind the others
                    if len(ready) == maxevents:
                        break
            if ready or timeout == 0:
                return ready
            self._waiter = self._process.waiter()
            self._waiter.wait(timeout)
            self._waiter = None

    def close(self) -> None:
        self._watched.clear()


class Listener:
    """A listening socket that does not block."""

    family = socket.AF_INET

    def __init__(self, process: Process, location: Location) -> None:
        self.process = process
        self._name = location.host, location.port
        self.pending: deque[MemorySocket] = deque()
        self._descriptor = process.world.network.descriptor(self)
        self.epoll: Epoll | None = None

    def fileno(self) -> int:
        return self._descriptor

    def getsockname(self) -> Any:
        return self._name

    def events(self) -> int:
        return select.EPOLLIN if self.pending else 0

    def arrive(self, sock: MemorySocket) -> None:
        self.pending.append(sock)
        if self.epoll is not None:
            self.epoll.changed(self._descriptor)

    def accept(self) -> tuple[MemorySocket, Any]:
        self.process.check()
        if not self.pending:
            raise BlockingIOError(errno.EAGAIN, "nobody is waiting")
        sock = self.pending.popleft()
        return sock, sock.getpeername()

    def close(self) -> None:
        network = self.process.world.network
        if network.listeners.get(self._name) is self:
            del network.listeners[self._name]
        network.descriptors.pop(self._descriptor, None)
        self._descriptor = -1
        for sock in self.pending:
            sock.reset_peer()
        self.pending.clear()


class MemorySocket:
    """One end of a connection."""

    family = socket.AF_INET

    def __init__(self, process: Process, name: Any) -> None:
        self.process = process
        self.peer: MemorySocket
        self.serial = 0
        self._name = name
        self._descriptor = process.world.network.descriptor(self)
        self.epoll: Epoll | None = None
        self._blocks = True
        self._receive_s: float | None = None
        self._send_s: float | None = None
        self.inbox = bytearray()
        self.under_way = 0
        """Bytes sent from here that the peer has not read."""
        self.last = 0.0
        """When what was sent last arrives."""
        self.held: list[bytes | None] | None = None
        """What was sent into a partition; None: there is none in the way."""
        self.hung = False
        self.ended = False
        """The peer sends no more."""
        self.shut = False
        """Nothing more is sent from here."""
        self.broken = False
        self.closed = False
        self._reader: Waiter | None = None
        self._writer: Waiter | None = None

    def __repr__(self) -> str:
        return f"<MemorySocket {self.serial} of {self.process.name}>"

    # -- what sockets do -----------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._descriptor

    def getsockname(self) -> Any:
        return self._name

    def getpeername(self) -> Any:
        return self.peer._name

    def setblocking(self, flag: bool) -> None:
        self._blocks = flag

    def settimeout(self, timeout_s: float | None) -> None:
        self._blocks = timeout_s != 0
        self._receive_s = self._send_s = timeout_s

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            seconds, microseconds = _TIMEVAL.unpack(value)
            timeout_s = seconds + microseconds / 1e6 or None
            if option == socket.SO_RCVTIMEO:
                self._receive_s = timeout_s
            else:
                self._send_s = timeout_s

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._await_bytes(flags)
        data = bytes(self.inbox[:size])
        if not flags & socket.MSG_PEEK:
            self._taken(len(data))
        return data

    def recv_into(self, space: Any) -> int:
        self._await_bytes(0)
        view = memoryview(space).cast("B")
        size = min(len(view), len(self.inbox))
        view[:size] = self.inbox[:size]
        self._taken(size)
        return size

    def send(self, data: Any, flags: int = 0) -> int:
        self._await_room(flags)
        view = memoryview(data).cast("B")
        part = bytes(view[: BUFFER_MAX - self.under_way])
        self.under_way += len(part)
        self.process.world.network.transmit(self, part)
        return len(part)

    def sendall(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            view = view[self.send(view) :]

    def shutdown(self, how: int) -> None:
        self.process.check()
        if self.broken or self.closed:
            raise OSError(errno.ENOTCONN, "not connected")
        self._end()

    def close(self) -> None:
        if self.closed or not self.process.alive:
            return
        self._close()

    def _close(self) -> None:
        self.closed = True
        self.process.world.network.forget(self)
        self._descriptor = -1
        if self.inbox:
            self.reset_peer()  # as Linux does, so that the peer does not believe that it was read
        else:
            self._end()

    # -- what happens to them ------------------------------------------------------------------------

    def events(self) -> int:
        found = 0
        if self.inbox or self.ended:
            found |= select.EPOLLIN
        if self.under_way < BUFFER_MAX:
            found |= select.EPOLLOUT
        if self.broken:
            found |= select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
        elif self.ended and self.shut:
            found |= select.EPOLLHUP
        return found

    def arrived(self, data: bytes | None) -> None:
        """Bytes of the peer have come, or its end."""
        if self.closed:
            if data:
                self.reset_peer()
            return
        if self.broken:
            return
        if data is None:
            self.ended = True
        else:
            self.inbox += data
        self._changed()

    def break_down(self) -> None:
        """The connection does not exist any more."""
        if not self.broken:
            self.broken = True
            self.inbox.clear()
            self._changed()

    def reset_peer(self) -> None:
        """Tell the other end that there is nobody here."""
        network = self.process.world.network
        peer = self.peer
        network.world.at(network.latency(), partial(network.reset, self, peer))

    def _changed(self) -> None:
        for waiter in (self._reader, self._writer):
            if waiter is not None:
                waiter.wake()
        if self.epoll is not None:
            self.epoll.changed(self._descriptor)

    def _end(self) -> None:
        if not self.shut and not self.broken:
            self.shut = True
            self.process.world.network.transmit(self, None)

    def _taken(self, size: int) -> None:
        del self.inbox[:size]
        peer = self.peer
        full = peer.under_way >= BUFFER_MAX
        peer.under_way -= size
        if full:
            peer._changed()

    def _await_bytes(self, flags: int) -> None:
        while True:
            self.process.check()
            if self.closed:
                raise OSError(errno.EBADF, "the socket is closed")
            if self.broken:
                raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            if self.inbox or self.ended:
                return
            if not self._blocks or flags & socket.MSG_DONTWAIT:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            self._reader = waiter = self.process.waiter()
            in_time = waiter.wait(self._receive_s)
            self._reader = None
            if not in_time and not self.inbox:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def _await_room(self, flags: int) -> None:
        while True:
            self.process.check()
            if self.closed:
                raise OSError(errno.EBADF, "the socket is closed")
            if self.broken:
                raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            if self.shut:
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            if self.under_way < BUFFER_MAX:
                return
            if not self._blocks or flags & socket.MSG_DONTWAIT:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            self._writer = waiter = self.process.waiter()
            in_time = waiter.wait(self._send_s)
            self._writer = None
            if not in_time:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


class Network:
    """Who listens, who is connected, and what is in the way."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.weather = Weather()
        self.processes: dict[Process, None] = {}
        self.listeners: dict[Any, Listener] = {}
        self.sockets: dict[MemorySocket, None] = {}
        self.descriptors: dict[int, Any] = {}
        self.faults = 0
        self._cut: dict[tuple[str, str], float] = {}
        """From host to host, until when nothing gets through."""
        self._numbers = itertools.count(1_000_000)
        self._serials = itertools.count(1)
        self._ports = itertools.count(40_000)

    def descriptor(self, thing: Any) -> int:
        """A number under which an epoll finds it."""
        number = next(self._numbers)
        self.descriptors[number] = thing
        return number

    # -- connections ---------------------------------------------------------------------------------

    def listen(self, process: Process, location: Location, insecure: bool) -> Listener:
        process.check()
        name = location.host, location.port
        if name in self.listeners:
            raise errors.ListenFailed(
                f"cannot listen on {location}: Address already in use", errno.EADDRINUSE
            )
        listener = self.listeners[name] = Listener(process, location)
        return listener

    def connect(self, process: Process, location: Location, timeout_s: float | None) -> MemorySocket:
        """A connected socket that blocks; OSError."""
        process.check()
        here, there = process.host, location.host
        patience = CONNECT_TIMEOUT_S if timeout_s is None else timeout_s
        trip = self.latency() + max(0.0, self.cut_until(here, there) - self.world.now)
        if trip > patience:
            process.sleep(patience)
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        process.sleep(trip)
        listener = self.listeners.get((location.host, location.port))
        if listener is None or self.world.random.random() < self.weather.refused:
            process.sleep(self.latency())
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        port = next(self._ports)
        client = MemorySocket(process, (here, port))
        server = MemorySocket(listener.process, (location.host, location.port))
        client.peer, server.peer = server, client
        client.serial = server.serial = next(self._serials)
        self.sockets[client] = self.sockets[server] = None
        listener.arrive(server)
        process.sleep(self.latency())
        return client

    def forget(self, sock: MemorySocket) -> None:
        """It is closed."""
        self.sockets.pop(sock, None)
        self.descriptors.pop(sock._descriptor, None)

    # -- messages ------------------------------------------------------------------------------------

    def latency(self) -> float:
        chance = self.world.random.random()
        slow = SLOW if chance < self.weather.slow else 1.0
        return self.weather.latency_s * (0.2 + 1.6 * self.world.random.random()) * slow

    def transmit(self, sock: MemorySocket, data: bytes | None) -> None:
        """Bytes are sent, or the end."""
        random, weather = self.world.random, self.weather
        if data:
            chance = random.random()
            if chance < weather.split and len(data) > 1:
                middle = random.randrange(1, len(data))
                self._send(sock, data[:middle])
                data = data[middle:]
            elif (chance := chance - weather.split) < weather.broken:
                self.faults += 1
                if random.random() < 0.5:
                    self._send(sock, data[: random.randrange(len(data) + 1)])
                self.world.note("break", sock)
                after_s = max(0.0, sock.last - self.world.now) + self.latency()
                self.world.at(after_s, partial(self.sever, sock))
                return
            elif chance - weather.broken < weather.hung:
                self.faults += 1
                self.world.note("hang", sock)
                sock.hung = sock.peer.hung = True
        self._send(sock, data)

    def _send(self, sock: MemorySocket, data: bytes | None) -> None:
        sock.last = max(sock.last, self.world.now + self.latency())
        self.world.at(sock.last - self.world.now, partial(self._deliver, sock, data))

    def _deliver(self, sock: MemorySocket, data: bytes | None) -> None:
        peer = sock.peer
        if sock.hung or sock.broken:
            return
        if sock.held is not None:
            sock.held.append(data)
        elif (until := self.cut_until(sock.process.host, peer.process.host)) > self.world.now:
            sock.held = [data]
            self.world.at(until - self.world.now, partial(self._heal, sock))
        else:
            self.world.trace_bytes(sock.serial, -1 if data is None else len(data))
            peer.arrived(data)

    def _heal(self, sock: MemorySocket) -> None:
        held, sock.held = sock.held, None
        for data in held or ():
            self._deliver(sock, data)

    def reset(self, sock: MemorySocket, peer: MemorySocket) -> None:
        """`peer` is told that there is nobody at the other end, unless that does not get through."""
        if sock.hung:
            return
        until = self.cut_until(sock.process.host, peer.process.host)
        if until > self.world.now:
            self.world.at(until - self.world.now + self.latency(), partial(self.reset, sock, peer))
        elif not peer.closed:
            peer.break_down()

    # -- faults --------------------------------------------------------------------------------------

    def cut_until(self, here: str, there: str) -> float:
        return self._cut.get((here, there), 0.0)

    def cut_last(self) -> float:
        """When the last of the partitions ends, or has."""
        return max(self._cut.values(), default=0.0)

    def cut(self, here: str, there: str, seconds: float) -> None:
        """Nothing gets from one host to the other for so long."""
        self.faults += 1
        self._cut[here, there] = max(self.cut_until(here, there), self.world.now + seconds)

    def sever(self, sock: MemorySocket) -> None:
        """The connection breaks, at both ends."""
        for end in (sock, sock.peer):
            if not end.closed:
                end.break_down()

    def crashed(self, process: Process, silently: bool) -> None:
        """A process is gone; its kernel tells the peers, unless that is gone too."""
        self.processes.pop(process, None)
        for name, listener in list(self.listeners.items()):
            if listener.process is process:
                del self.listeners[name]
                for sock in listener.pending:
                    sock._close()
        for sock in [sock for sock in self.sockets if sock.process is process]:
            if silently:
                sock.hung = True
                sock.closed = True
                self.forget(sock)
                # Whoever still sends there is told by the machine that comes back.
                self.world.at(self.world.random.uniform(0.5, 5.0), partial(self._gone, sock))
            else:
                sock._close()

    def _gone(self, sock: MemorySocket) -> None:
        sock.hung = False
        if not sock.peer.closed and sock.peer.under_way:
            sock.peer.break_down()

    def calm(self) -> None:
        """No more faults; what they did stays."""
        self.weather = Weather()
