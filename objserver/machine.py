"""What a process gets from the machine it runs on: time, chance, threads and sockets.

Client and server take all of these from here, so that a simulator can put another machine below the same
code: one whose clock is a number, whose threads take turns, and whose network breaks when the dice say so
(`objserver.testing.simulator`).  Locks are not among them.  A lock is never held over anything that waits,
so where threads take turns it is always free.

What a process has once, such as the book in which it numbers its calls, it keeps here too (`own`), and not
in a global: several simulated processes share one interpreter.

Which machine it is, is a context variable: it is looked at when a server, a proxy or a connection is made,
and not at every call.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from random import Random
from typing import Any, TypeVar

from objserver import errors
from objserver.references import Location

__all__ = ["Machine", "machine"]


class Bell:
    """Makes an epoll return, from any thread: an eventfd."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def silence(self) -> None:
        os.eventfd_read(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class _Local(threading.local):
    """Attributes of which each thread has its own; all begin with the values given."""

    def __init__(self, **initial: Any) -> None:
        self.__dict__.update(initial)


def _start(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def _connect(location: Location, timeout_s: float | None) -> socket.socket:
    """A connected socket that blocks; OSError."""
    if location.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(location.path)
        except BaseException:
            sock.close()
            raise
    else:
        sock = socket.create_connection((location.host, location.port), timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(None)
    return sock


def _listen(location: Location, insecure: bool, shared: bool = False) -> socket.socket:
    """A listening socket that does not block; RegistrationError, ListenFailed.

    `insecure` says that other machines may reach it: somebody wants that, or their clients have to prove who
    they are.  `shared`: other processes of this user may listen at the same port, if they say so too.
    """
    if location.path:
        try:
            if stat.S_ISSOCK(os.stat(location.path).st_mode) and not _answers(location.path):
                os.unlink(location.path)  # left behind by a server that was killed
        except FileNotFoundError:
            pass
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        target: Any = location.path
    else:
        try:
            family, _, _, _, target = socket.getaddrinfo(
                location.host, location.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except socket.gaierror as problem:
            raise errors.RegistrationError(f"cannot listen on {location}: {problem}") from None
        if not insecure and not ipaddress.ip_address(target[0]).is_loopback:
            raise errors.RegistrationError(
                f"{location} can be reached from other machines, and anybody there could call every object; "
                "demand a proof of who they are with authentication=... or tls=ServerTLS(client_ca=...), or "
                "pass insecure=True if that is what you want"
            )
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind(target)
        sock.listen(1024)
    except OSError as problem:
        sock.close()
        hint = "; choose another port, or 0 for any free one" if problem.errno == errno.EADDRINUSE else ""
        raise errors.ListenFailed(f"cannot listen on {location}: {problem.strerror}{hint}", problem.errno)
    sock.setblocking(False)
    return sock


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


T = TypeVar("T")
_owning = threading.Lock()


class Machine:
    """The real one.  What it offers is what the standard library does, or is said above."""

    def __init__(self) -> None:
        self._owned: dict[type, Any] = {}

    def own(self, kind: type[T]) -> T:
        """The one object of that kind that this process has; a forked child makes its own."""
        found: T | None = self._owned.get(kind)
        if found is None:
            made = kind()
            with _owning:
                found = self._owned.setdefault(kind, made)
        return found

    monotonic: Callable[[], float] = staticmethod(time.monotonic)
    sleep: Callable[[float], None] = staticmethod(time.sleep)
    uniform: Callable[[float, float], float] = staticmethod(Random().uniform)
    """Of our own: the application may have seeded the common dice, and count on them."""
    random_bytes: Callable[[int], bytes] = staticmethod(os.urandom)
    """That nobody can guess."""

    Condition: Callable[[], Any] = threading.Condition
    Event: Callable[[], Any] = threading.Event
    Semaphore: Callable[[int], Any] = threading.Semaphore
    Local: Callable[..., Any] = _Local
    start: Callable[[Callable[[], None], str], Any] = staticmethod(_start)
    """Run the target in a new thread of that name, which does not keep the process alive."""
    current_thread: Callable[[], Any] = staticmethod(threading.current_thread)

    connect: Callable[[Location, float | None], Any] = staticmethod(_connect)
    listen: Callable[..., Any] = staticmethod(_listen)
    epoll: Callable[[], Any] = select.epoll
    Bell: Callable[[], Any] = Bell

    # The last, since from here on the name is this and not the module.
    time: Callable[[], float] = staticmethod(time.time)


_REAL = Machine()
os.register_at_fork(after_in_child=_REAL._owned.clear)
machine: ContextVar[Machine] = ContextVar("objserver_machine", default=_REAL)
