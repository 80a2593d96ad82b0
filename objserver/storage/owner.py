"""The process of a machine that owns the store, and commits for the others.

SQLite is fast and safe where one process has the file to itself.  So one has it, and serves it at a Unix
socket.  One thread reads from all the others.  While it waits for the disk, commits pile up in the sockets;
when it comes back, they become the next transaction.  So group commit needs no queue and no hand-over between
threads, and reads wait no longer than they would for the lock of the file.

Rows of a snapshot are sent in portions, each when there is room for it, by a thread of its own; of large
requests one is received at a time.  So what is held of them does not grow with their number.

Who can connect can do everything, so the socket is in a directory that only its user may enter, and the
kernel is asked who the other end is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ormsgpack

from objserver import errors
from objserver.logs import escaping
from objserver.machine import machine
from objserver.references import Location
from objserver.storage.base import Change, Row, Store, Unstorable
from objserver.storage.committer import BATCH_MAX
from objserver.storage.passing import (
    ANSWER_TIMEOUT_S,
    END,
    ERROR,
    ERRORS,
    FRAME_SIZE_MAX,
    HEAD,
    METHODS,
    MORE,
    RESULT,
    ROWS,
    STREAM_TIMEOUT_S,
    VERSION,
    is_user,
    packed,
    portions,
    read_row,
    receive,
    send,
)

__all__ = ["StoreServer"]

LARGE = 2**20
"""Bytes from which requests are received one after the other, whoever sends them."""
CONNECTIONS_MAX = 256
"""A process has two, and one more for each snapshot: far more than a machine has use for."""
STREAMS_MAX = 16
"""Of these, how many read or restore everything at a time; each has a thread of the owner."""

_log = escaping(logging.getLogger("objserver.storage"))


class _Peer:
    """A connection to the owner: what came of its request, and what it has not taken of the answer."""

    __slots__ = ("body", "deadline", "filled", "head", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.body: bytearray | None = None
        self.filled = 0
        self.deadline: float | None = None
        self.unsent = memoryview(b"")


class _Request(NamedTuple):
    peer: _Peer
    changes: list[Change]


def _batches(requests: Iterable[_Request]) -> Iterator[list[_Request]]:
    """Commits that become one transaction: in their order, of no object two changes, and not too many."""
    batch: list[_Request] = []
    names: set[tuple[str, str]] = set()
    for request in requests:
        more = {(change.type, change.key) for change in request.changes}
        if batch and (len(names) + len(more) > BATCH_MAX or not names.isdisjoint(more)):
            yield batch
            batch, names = [], set()
        batch.append(request)
        names |= more
    if batch:
        yield batch


class StoreServer:
    """Serves `store` to other processes of this user at a Unix socket, until it is closed.

    The store must not be `alone`: an SqliteStore is opened with `alone=False`.  It stays open.  The directory
    of `path` has to be one that only this user may enter; StoreError if it is not.  ListenFailed if another
    owner is there.
    """

    def __init__(self, store: Store, path: str) -> None:
        if store.alone:
            raise errors.StoreError(
                f"{store.url} was opened by somebody who thinks that he is alone; to be shared it is opened "
                "with alone=False"
            )
        _check_directory(os.path.dirname(os.path.abspath(path)))
        self.path = path
        self._store = store
        self._machine = machine.get()
        self._listener = self._machine.listen(Location(path=path), True)
        self._peers: dict[int, _Peer] = {}
        self._large: list[_Peer] = []
        """Who sends a large request; it is received of the first."""
        self._streams: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._commits = self._changes = self._requests = self._largest_batch = 0
        self._bell = self._machine.Bell()
        self._epoll = select.epoll()
        for descriptor in (self._bell.fileno(), self._listener.fileno()):
            self._epoll.register(descriptor, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="objserver-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer what has come, then let go of everybody; closing twice is allowed."""
        with self._lock:
            first, self._closing = not self._closing, True
            if first:
                self._bell.ring()
        self._thread.join()
        for sock, thread in list(self._streams.items()):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join()
        if first:
            self._epoll.close()
            self._bell.close()

    def statistics(self) -> dict[str, int]:
        """What it has done, and what it holds beside the limits."""
        return {
            "requests": self._requests,
            "commits": self._commits,
            "changes": self._changes,
            "largest_batch": self._largest_batch,
            "batch_max": BATCH_MAX,
            "connections": len(self._peers),
            "connections_max": CONNECTIONS_MAX,
            "streams": len(self._streams),
            "streams_max": STREAMS_MAX,
        }

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            for peer in list(self._peers.values()):
                self._forget(peer)

    def _turn(self) -> None:
        """Look once, answer what has come, and commit what is to be committed."""
        commits: list[_Request] = []
        for descriptor, _ in self._epoll.poll(1.0 if self._large else None):
            peer = self._peers.get(descriptor)
            if peer is None:
                if descriptor == self._listener.fileno():
                    self._accept()
                continue
            try:
                if peer.unsent:
                    if self._has_taken(peer):
                        self._watch(peer, select.EPOLLIN)
                elif self._has_request(peer):
                    self._begin(peer, commits)
            except (OSError, ValueError, TypeError) as problem:  # of the socket; or what came is no request
                if not isinstance(problem, ConnectionError):
                    _log.warning("a connection to the store at %s is closed: %s", self.path, problem)
                self._forget(peer)
        for batch in _batches(commits):
            self._commit(batch)
        deadline = self._large[0].deadline if self._large else None
        if deadline is not None and self._machine.monotonic() >= deadline:
            _log.warning("a large request to the store at %s came too slowly", self.path)
            self._forget(self._large[0])

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as problem:
            if not isinstance(problem, BlockingIOError):
                _log.error("cannot accept a connection to the store at %s: %s", self.path, problem)
            return
        if len(self._peers) + len(self._streams) >= CONNECTIONS_MAX or not is_user(sock):
            _log.warning("a connection to the store at %s was refused", self.path)
            sock.close()
            return
        sock.setblocking(False)
        peer = self._peers[sock.fileno()] = _Peer(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._answer(peer, RESULT, (VERSION, self._store.url, self._store.id))

    def _forget(self, peer: _Peer) -> None:
        self._release(peer)
        self._epoll.unregister(peer.sock.fileno())
        del self._peers[peer.sock.fileno()]
        peer.sock.close()

    def _watch(self, peer: _Peer, events: int) -> None:
        self._epoll.modify(peer.sock.fileno(), events)

    def _has_request(self, peer: _Peer) -> bool:
        """Receive; whether the request is there, all of it.  Not a byte more is taken than it has."""
        if peer.body is None:
            try:
                data = peer.sock.recv(HEAD.size - len(peer.head))
            except BlockingIOError:  # the event was for whoever had the descriptor before
                return False
            if not data:
                raise ConnectionResetError
            peer.head += data
            if len(peer.head) < HEAD.size:
                return False
            (size,) = HEAD.unpack(peer.head)
            if size > FRAME_SIZE_MAX:
                raise ValueError(f"it sends {size} bytes, more than {FRAME_SIZE_MAX}")
            if size > LARGE:
                self._large.append(peer)
                if self._large[0] is not peer:
                    self._watch(peer, 0)
                    peer.body = bytearray()
                    return False
                peer.deadline = self._machine.monotonic() + ANSWER_TIMEOUT_S
            peer.body = bytearray(size)
        elif not peer.body:  # its turn has come
            peer.body = bytearray(HEAD.unpack(peer.head)[0])
            peer.deadline = self._machine.monotonic() + ANSWER_TIMEOUT_S
        with memoryview(peer.body) as view:
            try:
                count = peer.sock.recv_into(view[peer.filled :])
            except BlockingIOError:
                return False
        if not count:
            raise ConnectionResetError
        peer.filled += count
        return peer.filled == len(peer.body)

    def _release(self, peer: _Peer) -> None:
        """Its request is over: the next one has its turn to be received."""
        peer.head, peer.body, peer.filled, peer.deadline = b"", None, 0, None
        if peer in self._large:
            was_first = self._large[0] is peer
            self._large.remove(peer)
            if was_first and self._large:
                self._watch(self._large[0], select.EPOLLIN)

    def _begin(self, peer: _Peer, commits: list[_Request]) -> None:
        """Do what was asked for, unless it is a commit: these are gathered."""
        assert peer.body is not None
        name, args, kwargs = ormsgpack.unpackb(peer.body)
        peer.body = bytearray()
        self._requests += 1
        signature = METHODS.get(name)
        if name == "restore" or (signature is not None and signature.streams):
            self._stream(peer, name, args, kwargs)
            return
        try:
            if signature is None:
                raise errors.StoreError(f"the owner of {self._store.url} knows no {name!r}; restart it")
            args, kwargs = signature.arguments(args, kwargs)
            if name == "commit":
                commits.append(_Request(peer, args[0]))
                return
            result = signature.write(getattr(self._store, name)(*args, **kwargs))
        except Exception as error:
            self._fail(peer, error)
        else:
            self._answer(peer, RESULT, result)

    def _commit(self, batch: list[_Request]) -> None:
        changes = [change for request in batch for change in request.changes]
        try:
            accepted = self._store.commit(changes)
        except Unstorable as error:
            if len(batch) > 1:  # whose it is
                for request in batch:
                    self._commit([request])
                return
            self._fail(batch[0].peer, error)
        except Exception as error:
            for request in batch:
                self._fail(request.peer, error, in_doubt=True)
        else:
            self._commits += 1
            self._changes += len(accepted)
            self._largest_batch = max(self._largest_batch, len(changes))
            for request in batch:
                names = {(change.type, change.key) for change in request.changes}
                self._answer(request.peer, RESULT, names & accepted)

    def _fail(self, peer: _Peer, error: Exception, in_doubt: bool = False) -> None:
        self._answer(peer, ERROR, _told(error, in_doubt))

    def _answer(self, peer: _Peer, kind: int, value: Any) -> None:
        self._release(peer)
        body = packed((kind, value))
        if len(body) > FRAME_SIZE_MAX:
            failure = errors.StoreError(
                f"cannot read {self._store.url}: the answer has {len(body)} bytes, more than {FRAME_SIZE_MAX}"
            )
            body = packed((ERROR, _told(failure, False)))
        peer.unsent = memoryview(HEAD.pack(len(body)) + body)
        try:
            if not self._has_taken(peer):
                self._watch(peer, select.EPOLLOUT)
        except OSError:
            self._forget(peer)

    def _has_taken(self, peer: _Peer) -> bool:
        """Send what the peer takes of its answer; whether that was all."""
        with contextlib.suppress(BlockingIOError):
            peer.unsent = peer.unsent[peer.sock.send(peer.unsent) :]
        return not peer.unsent

    # -- what takes long has a thread and the connection for itself --------------------------------------

    def _stream(self, peer: _Peer, name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        if len(self._streams) >= STREAMS_MAX:
            self._fail(peer, errors.StoreError(f"{STREAMS_MAX} others read all of it now; try later"))
            return
        sock = peer.sock
        self._release(peer)
        self._epoll.unregister(sock.fileno())
        del self._peers[sock.fileno()]
        sock.settimeout(STREAM_TIMEOUT_S)
        target = self._restore if name == "restore" else functools.partial(self._send_rows, name)
        thread = threading.Thread(
            target=self._streaming, args=(target, sock, args, kwargs), name=f"objserver-{name}", daemon=True
        )
        self._streams[sock] = thread
        thread.start()

    def _streaming(
        self, work: Callable[..., None], sock: socket.socket, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        try:
            try:
                work(sock, *args, **kwargs)
            except OSError:
                raise
            except Exception as error:
                send(sock, packed((ERROR, _told(error, False))))
        except OSError:
            pass  # nobody wants it any more
        finally:
            del self._streams[sock]
            sock.close()

    def _send_rows(self, name: str, sock: socket.socket, *args: Any) -> None:
        signature = METHODS[name]
        rows = getattr(self._store, name)(*args)
        try:
            for portion in portions(rows, signature.write):
                send(sock, packed((ROWS, portion)))
        finally:
            rows.close()
        send(sock, packed((END, None)))

    def _restore(self, sock: socket.socket, id: str, *, replace: bool) -> None:
        def rows() -> Iterator[Row]:
            while True:
                send(sock, packed((MORE, None)))
                kind, portion = receive(sock)
                if kind == END:
                    return
                yield from map(read_row, portion)

        self._store.restore(id, rows(), replace=replace)
        send(sock, packed((RESULT, None)))


def _check_directory(directory: str) -> None:
    try:
        found = os.stat(directory)
    except OSError as problem:
        raise errors.StoreError(f"cannot serve a store in {directory}: {problem.strerror}") from None
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise errors.StoreError(
            f"others may enter {directory}, and would have the whole store; make it private: chmod 700"
        )


def _told(error: Exception, in_doubt: bool) -> Any:
    """An error as it travels: its kind, its words, and what it says besides."""
    kind = next((kind for kind in type(error).__mro__ if kind.__name__ in ERRORS), None)
    if kind is None:  # of the store itself it is not, and so it tells nothing about the transaction
        _log.error("a request to the store failed", exc_info=error)
        return "StoreError", f"the store failed: {type(error).__name__}: {error}", {"in_doubt": in_doubt}
    facts = {k: v for k, v in vars(error).items() if isinstance(v, bool | int | str | None)}
    return kind.__name__, str(error), facts
