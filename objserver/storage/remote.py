"""One store for the processes of a machine: one of them owns the file, and commits for the others.

SQLite is fast and safe where one process has the file to itself.  So one has it, and serves it at a Unix
socket (`StoreServer`); to the others `RemoteStore` is a Store like any other.  One thread of the owner reads
from all of them.  While it waits for the disk, commits pile up in the sockets; when it comes back, they
become the next transaction.  So group commit needs no queue and no hand-over between threads, and reads wait
no longer than they would for the lock of the file.

What goes over the socket is MessagePack of plain data, in frames with their length in front: a request, and
its answer.  How the arguments and the result of a method are written and read follows from its annotations
in the Protocol, so a method that is added there is one line here.  Rows of a snapshot come in portions, each
when there is room for it; of large requests the owner receives one at a time.  So what either end holds of
them does not grow with their number.

A connection breaks when the owner dies, and everybody notices at once.  What can be repeated is, when there
is an owner again.  A request that was not sent entirely has certainly not been carried out, and is repeated
too.  A commit that was sent, and not answered, is `in_doubt`.

Who can connect can do everything, so the socket is in a directory that only its user may enter, and either
end asks the kernel who the other is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import logging
import os
import select
import socket
import stat
import struct
import threading
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import (
    Any,
    Concatenate,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import ormsgpack

from objserver import errors
from objserver.logs import escaping
from objserver.machine import machine
from objserver.references import Location
from objserver.storage.base import Change, Record, Row, Store, Superseded, Unstorable
from objserver.storage.committer import BATCH_MAX

__all__ = ["RemoteStore", "StoreServer"]

VERSION = 1
"""Of what is said here; both ends are of one installation, unless it was replaced under a running server."""
FRAME_SIZE_MAX = 256 * 2**20
"""Bytes of a request or an answer, and so of a state: as many as PostgreSQL gets in one transaction."""
LARGE = 2**20
"""Bytes from which requests are received one after the other, whoever sends them."""
PORTION = 256 * 2**10
"""Bytes of rows sent together, from which on they are."""
CONNECTIONS_MAX = 256
"""A process has two, and one more for each snapshot: far more than a machine has use for."""
STREAMS_MAX = 16
"""Of these, how many read or restore everything at a time; each has a thread of the owner."""
CONNECT_TIMEOUT_S = 10.0
"""How long somebody waits for an owner, which may just be starting again."""
ANSWER_TIMEOUT_S = 30.0
"""A request that takes longer waits for a disk that is gone, or for a process that was stopped."""
STREAM_TIMEOUT_S = 600.0
"""... unless it is for everything there is, which begins with a copy of the file."""
_LOOK_S = 0.02
"""How often who waits for an owner looks whether it is there."""

_HEAD = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")
_RESULT, _ERROR, _ROWS, _END, _MORE = range(5)
"""What an answer is, in front of it.  Rows are followed by others, or by the end; who restores is asked for
more of them."""
_ERRORS = {kind.__name__: kind for kind in (errors.StoreError, Superseded, Unstorable)}

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Convert = Callable[[Any], Any]

_log = escaping(logging.getLogger("objserver.storage"))


# -- how values are written and read --------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | set):  # a named tuple, that is
        return list(value)
    raise TypeError(f"a {type(value).__name__} is no plain data")


def _is(value: Any) -> Any:
    return value


def _kinds(hint: Any) -> list[Any]:
    """The classes of a union, without None; no union is a union of one."""
    if get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    return [kind for kind in get_args(hint) if kind is not types.NoneType]


def _reader(hint: Any) -> _Convert:
    """What makes a value of that type of the plain data that came; `_is` if it is what came."""
    if len(kinds := _kinds(hint)) > 1:
        readers = [_reader(kind) for kind in kinds]
        return lambda value: None if value is None else readers[value[0]](value[1])
    read = _reader_of(kinds[0])
    if kinds[0] is hint or read is _is:
        return read
    return lambda value: None if value is None else read(value)


def _reader_of(hint: Any) -> _Convert:
    origin, inner = get_origin(hint), [_reader(each) for each in get_args(hint) if each is not ...]
    if isinstance(hint, type) and hasattr(hint, "_make"):
        fields = [_reader(each) for each in get_type_hints(hint).values()]
        return hint._make if all(f is _is for f in fields) else lambda v: hint._make(_each(fields, v))
    if origin is tuple:
        return tuple if all(f is _is for f in inner) else lambda value: tuple(_each(inner, value))
    if origin is set:
        return lambda value: set(map(inner[0], value))
    if origin is dict:
        return lambda value: {inner[0](key): inner[1](each) for key, each in value}
    if inner and inner[0] is not _is:
        return lambda value: list(map(inner[0], value))
    return _is


def _each(fields: Sequence[_Convert], values: Iterable[Any]) -> list[Any]:
    return [read(value) for read, value in zip(fields, values, strict=True)]


def _writer(hint: Any) -> _Convert:
    """What makes plain data of a value where `_plain` would not do: keys that are tuples, and unions."""
    if len(kinds := _kinds(hint)) > 1:
        places = {get_origin(kind) or kind: place for place, kind in enumerate(kinds)}
        writers = [_writer(kind) for kind in kinds]

        def write(value: Any) -> Any:
            return None if value is None else (place := places[type(value)], writers[place](value))

        return write
    origin, inner = get_origin(kinds[0]), [_writer(each) for each in get_args(kinds[0]) if each is not ...]
    if origin is dict:
        return lambda value: [(inner[0](key), inner[1](each)) for key, each in value.items()]
    if all(f is _is for f in inner):
        return _is
    if origin is tuple:
        return lambda value: _each(inner, value)
    return lambda value: list(map(inner[0], value))


class _Signature:
    """How the arguments and the result of a method of the Protocol travel."""

    def __init__(self, method: Callable[..., Any]) -> None:
        hints = get_type_hints(method)
        result = hints.pop("return")
        self.name = method.__name__
        self.streams = get_origin(result) in (Iterator, Generator)
        if self.streams:
            result = get_args(result)[0]
        names = [name for name in inspect.signature(method).parameters if name != "self"]
        self._readers = {name: _reader(hints[name]) for name in names}
        self._writers = {name: _writer(hints[name]) for name in names}
        self._places = [*self._readers.values()]
        self._plain = all(write is _is for write in self._writers.values())
        self.read, self.write = _reader(result), _writer(result)

    def encode(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
        if not self._plain:
            args = [write(arg) for write, arg in zip(self._writers.values(), args, strict=False)]
            kwargs = {name: self._writers[name](arg) for name, arg in kwargs.items()}
        return _packed((self.name, args, kwargs))

    def arguments(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        read = [read(arg) for read, arg in zip(self._places, args, strict=False)]
        return read, {name: self._readers[name](arg) for name, arg in kwargs.items()}


def _packed(value: Any) -> bytes:
    return ormsgpack.packb(value, default=_plain)


_METHODS = {
    name: _Signature(method)
    for name, method in vars(Store).items()
    if inspect.isfunction(method) and not name.startswith("_") and name not in ("close", "restore")
}
_read_row, _write_row = _reader(Row), _writer(Row)


def _portions(rows: Iterable[Any], write: _Convert) -> Iterator[list[ormsgpack.Fragment]]:
    """The rows as they are sent, in portions; Unstorable tells which cannot be."""
    portion: list[ormsgpack.Fragment] = []
    size = 0
    for number, row in enumerate(rows, 1):
        try:
            packed = _packed(write(row))
            if len(packed) > FRAME_SIZE_MAX - PORTION:
                raise OverflowError(f"it has {len(packed)} bytes, which are too many")
        except (TypeError, OverflowError) as error:
            failure = Unstorable(f"cannot write row {number}: {error}")
            failure.row = number
            raise failure from error
        if size and size + len(packed) > PORTION:
            yield portion
            portion, size = [], 0
        portion.append(ormsgpack.Fragment(packed))
        size += len(packed)
    if portion:
        yield portion


# -- what both ends do with a socket that blocks ---------------------------------------------------------


def _send(sock: socket.socket, body: bytes) -> None:
    sock.sendall(_HEAD.pack(len(body)) + body)


def _receive(sock: socket.socket) -> Any:
    """The next message; ConnectionError if there is none any more."""
    (size,) = _HEAD.unpack(_exactly(sock, _HEAD.size))
    if size > FRAME_SIZE_MAX:
        raise ConnectionError(f"it sends {size} bytes, more than {FRAME_SIZE_MAX}")
    return ormsgpack.unpackb(_exactly(sock, size))


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    with memoryview(data) as view:
        filled = 0
        while filled < size:
            count = sock.recv_into(view[filled:])
            if not count:
                raise ConnectionResetError(errno.ECONNRESET, "the connection broke")
            filled += count
    return data


def _is_user(sock: socket.socket) -> bool:
    """Whether the other end is a process of the same user, or of the administrator."""
    size = _CREDENTIALS.size
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user in (os.geteuid(), 0)


# -- the owner -------------------------------------------------------------------------------------------


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
        if len(self._peers) + len(self._streams) >= CONNECTIONS_MAX or not _is_user(sock):
            _log.warning("a connection to the store at %s was refused", self.path)
            sock.close()
            return
        sock.setblocking(False)
        peer = self._peers[sock.fileno()] = _Peer(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._answer(peer, _RESULT, (VERSION, self._store.url, self._store.id))

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
                data = peer.sock.recv(_HEAD.size - len(peer.head))
            except BlockingIOError:  # the event was for whoever had the descriptor before
                return False
            if not data:
                raise ConnectionResetError
            peer.head += data
            if len(peer.head) < _HEAD.size:
                return False
            (size,) = _HEAD.unpack(peer.head)
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
            peer.body = bytearray(_HEAD.unpack(peer.head)[0])
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
        signature = _METHODS.get(name)
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
            self._answer(peer, _RESULT, result)

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
                self._answer(request.peer, _RESULT, names & accepted)

    def _fail(self, peer: _Peer, error: Exception, in_doubt: bool = False) -> None:
        self._answer(peer, _ERROR, _told(error, in_doubt))

    def _answer(self, peer: _Peer, kind: int, value: Any) -> None:
        self._release(peer)
        body = _packed((kind, value))
        if len(body) > FRAME_SIZE_MAX:
            failure = errors.StoreError(
                f"cannot read {self._store.url}: the answer has {len(body)} bytes, more than {FRAME_SIZE_MAX}"
            )
            body = _packed((_ERROR, _told(failure, False)))
        peer.unsent = memoryview(_HEAD.pack(len(body)) + body)
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
                _send(sock, _packed((_ERROR, _told(error, False))))
        except OSError:
            pass  # nobody wants it any more
        finally:
            del self._streams[sock]
            sock.close()

    def _send_rows(self, name: str, sock: socket.socket, *args: Any) -> None:
        signature = _METHODS[name]
        rows = getattr(self._store, name)(*args)
        try:
            for portion in _portions(rows, signature.write):
                _send(sock, _packed((_ROWS, portion)))
        finally:
            rows.close()
        _send(sock, _packed((_END, None)))

    def _restore(self, sock: socket.socket, id: str, *, replace: bool) -> None:
        def rows() -> Iterator[Row]:
            while True:
                _send(sock, _packed((_MORE, None)))
                kind, portion = _receive(sock)
                if kind == _END:
                    return
                yield from map(_read_row, portion)

        self._store.restore(id, rows(), replace=replace)
        _send(sock, _packed((_RESULT, None)))


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
    kind = next((kind for kind in type(error).__mro__ if kind.__name__ in _ERRORS), None)
    if kind is None:  # of the store itself it is not, and so it tells nothing about the transaction
        _log.error("a request to the store failed", exc_info=error)
        return "StoreError", f"the store failed: {type(error).__name__}: {error}", {"in_doubt": in_doubt}
    facts = {k: v for k, v in vars(error).items() if isinstance(v, bool | int | str | None)}
    return kind.__name__, str(error), facts


# -- the others ------------------------------------------------------------------------------------------


class _Link:
    """A connection, made when it is needed, for one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sock: socket.socket | None = None

    def is_usable(self) -> bool:
        """False if the owner has hung up since the last use."""
        if self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def drop(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class _Lost(errors.StoreError):
    """The connection broke, so the request may be made again."""


def _forwarded(
    method: Callable[Concatenate[Any, _P], _T], *, repeatable: bool = True
) -> Callable[Concatenate[RemoteStore, _P], _T]:
    """The method, carried out by the owner.  `repeatable` says that twice does no harm."""
    signature = _METHODS[method.__name__]

    def forwarded(self: RemoteStore, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        result: _T = self._ask(signature, args, kwargs, repeatable)
        return result

    return forwarded


class RemoteStore:
    """See `objserver.storage.base.Store`: the one that the StoreServer at `path` has.

    Who is there when it is opened, and when the connection breaks, is waited for up to `connect_timeout_s`.
    """

    alone = False

    def __init__(self, path: str, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.path = path
        self.url = f"unix:{path}"
        self._machine = machine.get()
        self._connect_timeout_s = connect_timeout_s
        self._closed = False
        self._writing, self._reading = _Link(), _Link()
        with self._reading.lock:
            self._connected(self._reading)

    load = _forwarded(Store.load)
    acquire = _forwarded(Store.acquire)
    commit = _forwarded(Store.commit, repeatable=False)
    confirm = _forwarded(Store.confirm)
    replies = _forwarded(Store.replies)
    open_session = _forwarded(Store.open_session)
    renew_sessions = _forwarded(Store.renew_sessions)
    expire_sessions = _forwarded(Store.expire_sessions)
    messages = _forwarded(Store.messages)
    delivered = _forwarded(Store.delivered)
    due = _forwarded(Store.due)
    next_due = _forwarded(Store.next_due)
    timers = _forwarded(Store.timers)
    keys = _forwarded(Store.keys)
    count = _forwarded(Store.count)
    types = _forwarded(Store.types)

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        last: str | None = None
        while True:
            before = last
            try:
                for key, record in self._stream(_METHODS["items"], type):
                    if last is None or key > last:  # not before, over a connection that broke
                        last = key
                        yield key, record
                return
            except _Lost:
                if last == before:
                    raise

    def snapshot(self, types: Sequence[str] | None = None) -> Generator[Row, None, None]:
        return self._stream(_METHODS["snapshot"], types)

    def restore(self, id: str, rows: Iterable[Row], *, replace: bool = False) -> None:
        portions = _portions(rows, _write_row)
        link, all_sent = _Link(), False
        try:
            sock = self._connected(link, STREAM_TIMEOUT_S)
            _send(sock, _packed(("restore", (id,), {"replace": replace})))
            while self._answer(sock)[0] == _MORE:
                portion = next(portions, None)
                all_sent = portion is None
                _send(sock, _packed((_END, None) if all_sent else (_ROWS, portion)))
        except OSError as error:
            failure = self._lost(error)
            failure.in_doubt = all_sent
            raise failure from None
        finally:
            link.drop()
        self.id = id

    def close(self) -> None:
        self._closed = True
        for link in (self._writing, self._reading):
            with link.lock:
                link.drop()

    def _ask(
        self, signature: _Signature, args: Sequence[Any], kwargs: dict[str, Any], repeatable: bool
    ) -> Any:
        try:
            request = signature.encode(args, kwargs)
            if len(request) > FRAME_SIZE_MAX:
                raise OverflowError(f"{len(request)} bytes are too many, beyond {FRAME_SIZE_MAX}")
        except (TypeError, OverflowError) as error:
            if signature.name == "commit":
                raise Unstorable(f"cannot write {self.url}: {error}") from error
            raise errors.StoreError(f"cannot ask {self.url} for {signature.name}: {error}") from error
        link = self._reading if repeatable else self._writing
        broken = 0
        with link.lock:
            while True:
                sock, sent = self._connected(link), False
                try:
                    _send(sock, request)
                    sent = True
                    value = self._answer(sock)[1]
                except OSError as error:
                    link.drop()
                    failure = self._lost(error)
                    failure.in_doubt = sent and not repeatable
                    broken += 1
                    if failure.in_doubt or broken > 1 or isinstance(error, TimeoutError):
                        raise failure from None
                    continue
                except errors.StoreError:
                    raise
                except BaseException:  # in the middle of it
                    link.drop()
                    raise
                break
        return signature.read(value)

    def _stream(self, signature: _Signature, *args: Any) -> Generator[Any, None, None]:
        link = _Link()
        try:
            sock = self._connected(link, STREAM_TIMEOUT_S)
            _send(sock, signature.encode(args, {}))
            while True:
                kind, portion = self._answer(sock)
                if kind == _END:
                    return
                yield from map(signature.read, portion)
        except OSError as error:
            raise self._lost(error) from None
        finally:
            link.drop()

    def _answer(self, sock: socket.socket) -> tuple[int, Any]:
        """What the owner says next; its error, if it is one."""
        kind, value = _receive(sock)
        if kind == _ERROR:
            name, text, facts = value
            failure = _ERRORS[name](text)
            for fact, value in facts.items():
                setattr(failure, fact, value)
            raise failure
        return kind, value

    def _lost(self, error: OSError) -> errors.StoreError:
        owner = f"the owner of {self.url}, at {self.path},"
        if isinstance(error, TimeoutError):
            return _Lost(f"{owner} does not answer; see whether it is stopped")
        return _Lost(f"{owner} was lost before it answered: {error}")

    def _connected(self, link: _Link, timeout_s: float = ANSWER_TIMEOUT_S) -> socket.socket:
        """The link's connection, made anew if need be; nothing has been sent if that fails."""
        if link.is_usable():
            assert link.sock is not None
            return link.sock
        link.drop()
        end = self._machine.monotonic() + self._connect_timeout_s
        while True:
            if self._closed:
                raise errors.StoreError(f"cannot reach {self.url}: the store is closed")
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(max(_LOOK_S, end - self._machine.monotonic()))
                sock.connect(self.path)
                if not _is_user(sock):
                    raise errors.StoreError(f"who answers at {self.path} is another user; he gets nothing")
                version, url, id = self._answer(sock)[1]
            except OSError as error:
                sock.close()
                if self._machine.monotonic() >= end:
                    raise errors.StoreError(
                        f"cannot reach the owner of {self.url} at {self.path}: {error}; see that it runs"
                    ) from None
                self._machine.sleep(_LOOK_S)
                continue
            except BaseException:
                sock.close()
                raise
            break
        if version != VERSION:
            sock.close()
            raise errors.StoreError(
                f"the owner of {url}, at {self.path}, is of another release of objserver; restart it"
            )
        self.url, self.id = url, id
        sock.settimeout(timeout_s)
        link.sock = sock
        return sock
