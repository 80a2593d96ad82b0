"""The server of a kill campaign: a bank in a process that dies where it was told to.

A moment that matters is a place in the code: before the commit, inside it, between it and the reply, between
a delivery and its being forgotten.  At each of them the server tells `Doom`, which counts, and kills the
process at the n-th time.  So the schedule is of events, the same on a slow machine as on a fast one.
Production code knows nothing of it: the moments are those of a store put around the real one, of servants,
and of two methods that are replaced in this process only.

For tests of the campaign itself a server or a client can be made wrong on purpose: see `MUTANTS`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from objserver import (
    Concurrent,
    ObjectServer,
    Persistent,
    Proxy,
    ServerSettings,
    Shared,
    errors,
    expose,
    oneway,
    readonly,
)
from objserver.adapter.durability import Durability
from objserver.adapter.gate import Gate, Held
from objserver.adapter.invocation import Invocation
from objserver.client.attempts import Attempts
from objserver.client.pool import ConnectionPool
from objserver.cluster import ByHash
from objserver.invocation import CallId, Facts
from objserver.storage import Change, Message, Store, open_store
from objserver.storage.sqlite import SqliteStore

__all__ = [
    "MOMENTS",
    "MUTANTS",
    "OUTSIDE",
    "START_AGAIN",
    "Account",
    "Board",
    "Room",
    "reach",
    "serve",
    "serve_node",
]

OUTSIDE = "outside"
"""In place of a moment: killed by another process, at a random time."""
MOMENTS = {
    "in a method": 60,
    "after a nested call": 12,
    "before the commit": 40,
    "in the commit": 40,
    "after the commit": 40,
    "before a reply": 60,
    "after a reply": 60,
    "before a delivery": 12,
    "after a delivery": 12,
    "after forgetting what was delivered": 6,
    "when a session begins": 3,
    "while objects are activated": 3,
    "in the housekeeping": 1,
}
"""With each, at most how often it is passed before the process dies there."""
REFUSAL = "there is not so much in the account"
START_AGAIN = 75
"""How a node ends that could not join, because the database was away."""
PATIENCE_S = 60.0
"""For what another process has to do first; it takes milliseconds."""


class Board:
    """What all processes of a campaign see: memory that they share.  One of each kind of place per slot."""

    _PLACES = ("ready", "moment", "repeated", "messages")

    def __init__(self, slots: int) -> None:
        self._memory = mmap.mmap(-1, 8 * (1 + slots * len(self._PLACES)))

    def _at(self, slot: int, place: str) -> int:
        return 8 * (1 + slot * len(self._PLACES) + self._PLACES.index(place))

    def get(self, slot: int, place: str) -> int:
        """The number at this place."""
        return int(struct.unpack_from("q", self._memory, self._at(slot, place))[0])

    def put(self, slot: int, place: str, value: int) -> None:
        """Write the number; a place has one writer at a time."""
        struct.pack_into("q", self._memory, self._at(slot, place), value)

    @property
    def over(self) -> bool:
        """The clients are to stop."""
        return self._memory[0] != 0

    def stop(self) -> None:
        """Tell the clients to."""
        self._memory[0] = 1


class Doom:
    """Kills this process when `moment` is passed for the `count`-th time."""

    def __init__(self, board: Board, slot: int) -> None:
        self.board, self.slot = board, slot
        self.moment, self._left = OUTSIDE, 0
        self._lock = threading.Lock()

    def plan(self, moment: str, count: int) -> None:
        """From now on."""
        self.moment, self._left = moment, count

    def passes(self, moment: str) -> None:
        """This moment is now."""
        if moment == self.moment and self._counted():
            self.die()

    def _counted(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0

    def die(self) -> NoReturn:
        """Now."""
        self.board.put(self.slot, "moment", 1 + list(MOMENTS).index(self.moment))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a process survived kill -9")

    def die_within(self, moment: str, seconds: float) -> None:
        """At some time in what begins now and takes about so long."""
        if moment == self.moment and self._counted():
            threading.Timer(random.uniform(0, seconds), self.die).start()

    def repeated(self) -> None:
        """A call has been answered from its record."""
        with self._lock:
            self.board.put(self.slot, "repeated", self.board.get(self.slot, "repeated") + 1)


_doom = Doom(Board(1), 0)
_reached: dict[str, Proxy] = {}


def reach(uri: str) -> Proxy:
    """A proxy that has met its server.  One that never has does not know whether there is any."""
    proxy = _reached.get(uri) or Proxy(uri, timeout_s=PATIENCE_S)
    end = time.monotonic() + PATIENCE_S
    while uri not in _reached:
        try:
            proxy.balance()
            _reached[uri] = proxy
        except (errors.ConnectFailed, errors.StoreError):
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
    return _reached[uri]


@expose
class Account:
    """Keeps money, and the entry of every call that changed it: what is lost or doubled can be seen."""

    def __init__(self) -> None:
        self.money = 0
        self.entries: list[int] = []

    def _enter(self, entry: int, amount: int) -> int:
        self.money += amount
        self.entries.append(entry)
        _doom.passes("in a method")
        return self.money

    def deposit(self, entry: int, amount: int) -> int:
        return self._enter(entry, amount)

    def withdraw(self, entry: int, amount: int) -> int:
        if amount > self.money:
            raise ValueError(REFUSAL)
        return self._enter(entry, -amount)

    def pay(self, entry: int, amount: int, to: str) -> list[int]:
        """By a call within this one, which is made again if this one is."""
        there = reach(to).deposit(entry + 1, amount)
        _doom.passes("after a nested call")
        return [self._enter(entry, -amount), there]

    def send(self, entry: int, amount: int, to: str) -> int:
        """By a message, which leaves if and only if this is stored."""
        if amount > self.money:
            raise ValueError(REFUSAL)
        reach(to).credit(entry + 1, amount)
        return self._enter(entry, -amount)

    def tell(self, entry: int, to: str) -> int:
        """Two messages, in order."""
        for part in (1, 2):
            reach(to).credit(entry + part, 0)
        return self._enter(entry, 0)

    @oneway
    def credit(self, entry: int, amount: int) -> None:
        self._enter(entry, amount)

    @readonly
    def balance(self) -> int:
        return self.money

    @readonly
    def statement(self) -> tuple[int, list[int]]:
        return self.money, self.entries


@expose
class Room:
    """What the campaign asks of the server itself."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def messages_waiting(self) -> int:
        return len(self._store.messages(1))


class _Store:
    """The real one, with moments at which to die."""

    def __init__(self, store: Store, doom: Doom) -> None:
        self._store, self._doom = store, doom

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, changes: Sequence[Change]) -> set[tuple[str, str]]:
        self._doom.passes("before the commit")
        if not isinstance(self._store, SqliteStore):
            self._doom.die_within("in the commit", 0.003)
        accepted = self._store.commit(changes)
        self._doom.passes("after the commit")
        return accepted

    def acquire(self, names: Sequence[tuple[str, str]], owner: str, member: bool = False) -> Any:
        found = self._store.acquire(names, owner, member)
        self._doom.passes("while objects are activated")
        return found

    def open_session(self, client: bytes, lease_s: float) -> None:
        self._store.open_session(client, lease_s)
        self._doom.passes("when a session begins")

    def messages(self, limit: int, owner: str | None = None, member: bool = False) -> list[Message]:
        found = self._store.messages(limit, owner, member)
        self._doom.passes("in the housekeeping")
        return found

    def delivered(self, ids: Sequence[bytes]) -> None:
        self._store.delivered(ids)
        self._doom.passes("after forgetting what was delivered")


class _Sqlite(SqliteStore):
    """Dies between what a commit writes and its COMMIT."""

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        with super()._transaction() as cursor:
            yield cursor
            _doom.passes("in the commit")


class _Server(ObjectServer):
    def _deliver(self, *message: Any) -> None:
        _doom.passes("before a delivery")
        super()._deliver(*message)
        _doom.passes("after a delivery")


def serve(
    board: Board, slot: int, address: str, url: str, moment: str, count: int, mutant: str = ""
) -> NoReturn:
    """Serve accounts at `address` until the doom; in a process of its own, which has no threads yet."""
    global _doom
    _doom = Doom(board, slot)
    if mutant:
        MUTANTS[mutant]()
    _replace_methods()
    if moment != OUTSIDE:
        _doom.plan(moment, count)
    store = _opened(url)
    server = _Server(address, store=_Store(store, _doom))
    server.register(Account, "Account", activation=Persistent())
    server.register(Room(store), "Room", activation=Shared(), threading=Concurrent())
    server.start()
    board.put(slot, "ready", os.getpid())
    while True:
        signal.pause()


def serve_node(
    board: Board,
    slot: int,
    address: str,
    url: str,
    lease_s: float,
    enter: Callable[[], None],
    mutant: str = "",
) -> NoReturn:
    """Serve accounts as a node of a cluster, until killed; `enter` moves this process into its network."""
    global _doom
    _doom = Doom(board, slot)
    if mutant:
        MUTANTS[mutant]()
    _replace_methods()
    enter()
    store = _opened(url)
    server = ObjectServer(
        address,
        store=store,
        cluster="bank",
        node=str(slot),
        placement=ByHash(),
        settings=ServerSettings(node_lease_s=lease_s),
        insecure=True,  # a network of its own
    )
    server.register(Account, "Account", activation=Persistent())
    server.register(Room(store), "Room", activation=Shared(), threading=Concurrent())
    try:
        server.start()
    except errors.StoreError:
        os._exit(START_AGAIN)
    while True:
        signal.pause()


def _opened(url: str) -> Store:
    """The store; PostgreSQL may be down just now."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _Sqlite(url) if url.startswith("sqlite") else open_store(url)
        except errors.StoreError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _replace_methods() -> None:
    send, repeat = Durability._send, Durability.repeat

    def sends(invocation: Invocation, reply: bytes) -> None:
        _doom.passes("before a reply")
        send(invocation, reply)
        _doom.passes("after a reply")

    def repeats(self: Durability, *what: Any) -> None:
        _doom.repeated()
        repeat(self, *what)

    Durability._send = staticmethod(sends)  # type: ignore[method-assign]
    Durability.repeat = repeats  # type: ignore[assignment, method-assign]


# -- servers and clients that are wrong on purpose ------------------------------------------------------


def _no_record() -> None:
    record = Durability._record

    def records(self: Durability, invocation: Invocation, held: Held, error: Any) -> None:
        record(self, invocation, held, error)
        held.record = None

    Durability._record = records  # type: ignore[method-assign]


def _reply_first() -> None:
    hold = Gate.hold

    def holds(self: Gate, held: Held) -> None:
        if not held.told and not held.invocation.oneway and held.failure is None:
            held.invocation.caller.send(held.reply)
            held.told = True
        hold(self, held)

    Gate.hold = holds  # type: ignore[method-assign]


def _messages_aside() -> None:
    commit = _Store.commit

    def commits(self: _Store, changes: Sequence[Change]) -> set[tuple[str, str]]:
        return commit(self, [change._replace(messages=()) for change in changes])

    _Store.commit = commits  # type: ignore[method-assign]


def _messages_unnumbered() -> None:
    def delivers(self: _Server, target: str, method: str, payload: bytes, call: CallId, acked: int) -> None:
        _doom.passes("before a delivery")
        ObjectServer._deliver(self, target, method, payload, CallId(os.urandom(16), 1), 0)
        _doom.passes("after a delivery")

    _Server._deliver = delivers  # type: ignore[method-assign]


def _nested_anew() -> None:
    number = Facts.next_call

    def numbers(self: Facts) -> CallId:
        return number(self)._replace(path=os.urandom(16))

    Facts.next_call = numbers  # type: ignore[method-assign]


def _resend_anything() -> None:
    def met(self: ConnectionPool, *what: Any) -> None:
        meet(self, *what)
        self.exactly_once = False

    meet = ConnectionPool.met
    ConnectionPool.met = met  # type: ignore[assignment, method-assign]
    Attempts._may_repeat = lambda self, problem: True  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "replies are not recorded": _no_record,
    "replies leave before the commit": _reply_first,
    "messages are outside of the transaction": _messages_aside,
    "messages are sent again under other ids": _messages_unnumbered,
    "nested calls have random ids": _nested_anew,
    "clients repeat calls without a number": _resend_anything,
}
"""With a name what makes this process wrong."""
