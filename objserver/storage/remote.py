"""The store that another process of this machine owns (`objserver.storage.owner`).

A connection breaks when the owner dies, and everybody notices at once.  What can be repeated is, when there
is an owner again.  A request that was not sent entirely has certainly not been carried out, and is repeated
too.  A commit that was sent, and not answered, is `in_doubt`.

There are two connections, one for commits and one for everything else, so that a load does not wait for a
commit; and one for each snapshot, which is read as it is wanted.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from objserver import errors
from objserver.machine import machine
from objserver.storage.base import Record, Row, Store, Unstorable
from objserver.storage.passing import (
    ANSWER_TIMEOUT_S,
    END,
    ERROR,
    ERRORS,
    FRAME_SIZE_MAX,
    METHODS,
    MORE,
    ROWS,
    STREAM_TIMEOUT_S,
    VERSION,
    Signature,
    is_user,
    packed,
    portions,
    receive,
    send,
    write_row,
)

__all__ = ["RemoteStore"]

CONNECT_TIMEOUT_S = 10.0
"""How long somebody waits for an owner, which may just be starting again."""
_LOOK_S = 0.02
"""How often who waits for an owner looks whether it is there."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


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
    signature = METHODS[method.__name__]

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
        self.changed: Callable[[str], None] | None = None
        """Never called: the file that the owner has open is always the same."""
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
    release = _forwarded(Store.release)
    owners = _forwarded(Store.owners)
    owned = _forwarded(Store.owned)
    tally = _forwarded(Store.tally)
    join = _forwarded(Store.join)
    renew = _forwarded(Store.renew)
    leave = _forwarded(Store.leave)
    nodes = _forwarded(Store.nodes)
    first_messages = _forwarded(Store.first_messages)

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        last: str | None = None
        while True:
            before = last
            try:
                for key, record in self._stream(METHODS["items"], type):
                    if last is None or key > last:  # not before, over a connection that broke
                        last = key
                        yield key, record
                return
            except _Lost:
                if last == before:
                    raise

    def snapshot(self, types: Sequence[str] | None = None) -> Generator[Row, None, None]:
        return self._stream(METHODS["snapshot"], types)

    def restore(self, id: str, rows: Iterable[Row], *, replace: bool = False) -> None:
        parts = portions(rows, write_row)
        link, all_sent = _Link(), False
        try:
            sock = self._connected(link, STREAM_TIMEOUT_S)
            send(sock, packed(("restore", (id,), {"replace": replace})))
            while self._answer(sock)[0] == MORE:
                portion = next(parts, None)
                all_sent = portion is None
                send(sock, packed((END, None) if all_sent else (ROWS, portion)))
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
        self, signature: Signature, args: Sequence[Any], kwargs: dict[str, Any], repeatable: bool
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
                    send(sock, request)
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

    def _stream(self, signature: Signature, *args: Any) -> Generator[Any, None, None]:
        link = _Link()
        try:
            sock = self._connected(link, STREAM_TIMEOUT_S)
            send(sock, signature.encode(args, {}))
            while True:
                kind, portion = self._answer(sock)
                if kind == END:
                    return
                yield from map(signature.read, portion)
        except OSError as error:
            raise self._lost(error) from None
        finally:
            link.drop()

    def _answer(self, sock: socket.socket) -> tuple[int, Any]:
        """What the owner says next; its error, if it is one."""
        kind, value = receive(sock)
        if kind == ERROR:
            name, text, facts = value
            failure = ERRORS[name](text)
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
                if not is_user(sock):
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
