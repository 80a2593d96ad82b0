"""Where the leader looks for work: the listening socket and every client connection, in one epoll set.

Accepting costs the leader one system call per client; the handshake that follows is ordinary, bounded input.
When the process runs out of descriptors, accepting pauses instead of spinning.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from objserver.logs import escaping
from objserver.machine import machine
from objserver.server.connection import Connection

if TYPE_CHECKING:
    from objserver.server.server import ObjectServer

__all__ = ["SocketPoller"]

log = escaping(logging.getLogger("objserver.server"))

EPOLLOUT = select.EPOLLOUT
REFUSED_MAX = 100
"""Connections beyond the bound that are kept for a moment, to tell them why they are refused."""
EVENTS_MAX = 64
"""Connections looked at per poll: the kernel turns through the ready ones, so none starves."""
ACCEPT_BURST = 64
"""Connections taken per look, so that a flood of them does not starve those that are served."""


class SocketPoller:
    """The engine's poller over the sockets of its machine."""

    def __init__(self, server: ObjectServer, listener: socket.socket) -> None:
        self._server = server
        self._listener = listener
        here = machine.get()
        self._epoll = here.epoll()
        self._bell = here.Bell()
        self._wakeup = self._bell.fileno()
        self.wake: Callable[[], None] = self._bell.ring
        """Make a blocked poll return."""
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._listener_fd = listener.fileno()
        self.accepting = True
        self.reading = True
        self.connections: dict[int, Connection] = {}
        self._serials = count(1)

    def poll(self, wait: bool) -> None:
        """See `objserver.server.engine.Poller`."""
        start = self._server.engine.enqueue
        connections = self.connections
        for descriptor, events in self._epoll.poll(None if wait else 0, EVENTS_MAX):
            connection = connections.get(descriptor)
            if connection is not None:
                try:
                    if events & EPOLLOUT:
                        connection.flush()
                    if events & ~EPOLLOUT:
                        connection.receive(start)
                except Exception:
                    log.exception("%s failed; this is a bug of objserver, not of its client", connection)
                    connection.close()
            elif descriptor == self._wakeup:
                self._bell.silence()
            elif descriptor == self._listener_fd:
                try:
                    self._accept()
                except Exception:
                    log.exception("accepting failed")

    def watch(self, connection: Connection) -> None:
        """Look for what the connection is interested in now.  Called with its lock held."""
        read, write = connection.interest
        mask = (select.EPOLLIN if read else 0) | (EPOLLOUT if write else 0)
        self._try(self._epoll.modify, connection.sock.fileno(), mask)

    def forget(self, connection: Connection) -> None:
        """Before the socket closes."""
        descriptor = connection.sock.fileno()
        self.connections.pop(descriptor, None)
        self._try(self._epoll.unregister, descriptor)

    def stop_accepting(self) -> None:
        """No new connections from here on."""
        if self.accepting:
            self.accepting = False
            self._try(self._epoll.unregister, self._listener_fd)

    def pause_reading(self) -> None:
        """No new requests from here on; replies still go out, and those that servants wait for come in."""
        self.reading = False
        for connection in list(self.connections.values()):
            with connection._lock:
                self.watch(connection)

    def resume_accepting(self) -> None:
        """After a pause for lack of descriptors."""
        self._try(self._epoll.modify, self._listener_fd, select.EPOLLIN)

    def close(self) -> None:
        """Give the descriptors back."""
        self._epoll.close()
        self._bell.close()

    def _accept(self) -> None:
        server = self._server
        for _ in range(ACCEPT_BURST):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as problem:
                if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # The descriptor stays ready: looking again at once would burn the processor.
                    log.error("cannot accept more connections: %s", problem)
                    self._try(self._epoll.modify, self._listener_fd, 0)
                return
            connection = self._taken_in(sock, address)
            if connection is not None:
                self._epoll.register(sock.fileno(), select.EPOLLIN)
                if len(self.connections) > server.settings.connections_max:
                    connection.refuse_one_too_many()

    def _taken_in(self, sock: Any, address: Any) -> Connection | None:
        """The connection of a client that is not looked at yet; None if there are far too many."""
        server = self._server
        if len(self.connections) >= server.settings.connections_max + REFUSED_MAX:
            server.refused += 1
            sock.close()
            return None
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = server.accepted(sock, address or None, next(self._serials))
        self.connections[sock.fileno()] = connection
        server.hurried[connection] = None
        return connection

    def adopt(self, sock: socket.socket, data: bytes) -> None:
        """Take in a client that another process accepted, and `data`, which that has read; any thread."""
        try:
            connection = self._taken_in(sock, sock.getpeername()) if self.accepting else None
        except OSError:  # it has gone already
            connection = None
        if connection is None:
            sock.close()
            return
        try:
            if len(self.connections) > self._server.settings.connections_max:
                connection.refuse_one_too_many()
            elif data:
                # Nobody else reads from it before it is registered.
                connection._received(data, None, 0, self._server.engine.submit)
        except Exception:
            log.exception("%s failed; this is a bug of objserver, not of its client", connection)
            connection.close()
        with connection._lock:
            if not connection.closed:
                self._try(self._epoll.register, sock.fileno(), 0)
                self.watch(connection)
        if not self.accepting:  # the server may not have seen it when it let go of all
            connection.close()

    @staticmethod
    def _try(action: Callable[..., Any], *args: Any) -> None:
        """The connection may be closing in another thread; its descriptor is then already gone."""
        try:
            action(*args)
        except (OSError, ValueError):
            pass
