"""The outbox: calls without an answer that Persistent objects make of others.

They are stored with the change that made them, and sent afterwards, until the other object has taken them:
also by the next server, if this one is killed.  Each is a numbered call of its sender, so one that is sent
twice happens once.  The messages of one object to another arrive in the order in which they were sent.

    stored -> waiting in its line -> being delivered -> forgotten
                 ^--- after a pause ---+

Where several servers have the store open, a message is of the server that owns the object which sent it, and
goes with that object: who gets it has to look.  So the messages of one object are sent by one server at a
time, and one that is sent by two, while the object goes, happens once as ever.

A message that the other object refuses, or whose servant raises, has arrived: there is nobody to tell but the
log.  One that does not get there is tried again for as long as the store has it.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ormsgpack

from objserver import errors
from objserver.adapter.calling import Engine
from objserver.invocation import CallId
from objserver.logs import escaping
from objserver.storage import Message, Store

__all__ = ["Deliver", "Outbox"]

log = escaping(logging.getLogger("objserver.adapter"))

WAITING_MAX = 10_000
"""Messages in memory; more are in the store, and read when there is room."""
DELIVERED_MAX = 100
"""Messages forgotten together at most: as many as are sent again if the server is killed just then."""
PAUSE_S, PAUSE_MAX_S = 0.5, 30.0
"""Before a message is sent again; twice as long each time."""
LOOK_S = 30.0
"""How often messages of servers that are gone are looked for, where others may have the store open."""
_NOT_THERE = (
    errors.CommunicationError,
    errors.NamingError,
    errors.ObjectNotFound,
    errors.ServerBusy,
    errors.DeadlineExceeded,
    errors.StoreError,
    errors.Unsettled,
    OSError,
)

Deliver = Callable[[str, str, bytes, CallId, int], None]
"""Makes the call: target, method, encoded call, id, acknowledged number.  May take its time."""


class _Line:
    """Messages of one object to another."""

    __slots__ = ("due", "messages", "pause_s", "under_way")

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.under_way = False
        self.due = 0.0
        self.pause_s = PAUSE_S


class Outbox:
    """Of one server.  Every method may be called from any thread; `engine` runs the deliveries.

    `owner` gives the life that the server is in, and whether that is a node's of a cluster.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        deliver: Deliver,
        monotonic: Callable[[], float],
        owner: Callable[[], tuple[str, bool]],
    ) -> None:
        self._store = store
        self._engine = engine
        self._deliver = deliver
        self._monotonic = monotonic
        self._owner = owner
        self._lock = threading.Lock()
        self._lines: dict[tuple[bytes, str], _Line] = {}
        self._known: set[bytes] = set()
        self._more = True
        """There may be messages in the store that are not here.  Newer ones then stay there too, and are read
        in their order."""
        self._looks = 0
        """How often there was a new reason for that: who began to read before does not know of it."""
        self._arrived: OrderedDict[bytes, int] = OrderedDict()
        """By sender, the number of the last message that has arrived since the store was read."""
        self._through: OrderedDict[bytes, int] = OrderedDict()
        """By sender, the number through which all of its messages have arrived, whoever sent them.  Only the
        store can tell: it may hold older ones that are another server's to send."""
        self._look_at = monotonic() + LOOK_S
        self._stopped = False
        self.delivered = 0

    def __len__(self) -> int:
        return len(self._known)

    def add(self, messages: Iterable[Message]) -> None:
        """They are stored, and may be sent."""
        with self._lock:
            if not self._more:
                self._take_in(messages)
                return
            self._looks += 1  # who reads the store just now may have read it before they were there
            if not self._known and not self._stopped:
                self._engine.submit(self._load)

    def look(self) -> None:
        """There may be one in the store that nobody was told of."""
        with self._lock:
            self._more = True
            self._looks += 1

    def _take_in(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if len(self._known) >= WAITING_MAX:
                self._more = True
                return
            if message.id in self._known:
                continue
            self._known.add(message.id)
            sender, _ = _sender(message)
            line = self._lines.setdefault((sender, message.target), _Line())
            line.messages.append(message)
            if not line.under_way and not line.due:
                self._begin(line, (sender, message.target))

    def housekeeping(self, now: float) -> None:
        """Go on with what waits for its time, and with what is only in the store."""
        with self._lock:
            if now >= self._look_at and not self._store.alone:
                self._look_at, self._more = now + LOOK_S, True
            if ((self._more and not self._known) or self._arrived) and not self._stopped:
                self._engine.submit(self._load)
            for name, line in self._lines.items():
                if not line.under_way and line.due and now >= line.due:
                    self._begin(line, name)

    def stop(self) -> None:
        """Begin no more deliveries; the store keeps what is left."""
        self._stopped = True

    def _load(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, OrderedDict()
            looks = self._looks
        owner, member = self._owner()
        try:
            messages = self._store.messages(WAITING_MAX, owner, member)
            # To a node whose lease has ended the store shows none: that does not say that there is none.
            told = bool(messages) or not member or self._is_live(owner)
            first = self._store.first_messages(list(arrived)) if arrived else []
        except errors.StoreError as problem:
            log.warning("messages could not be read: %s", problem)
            return
        with self._lock:
            # Numbers only grow: what is stored after this has greater ones.
            oldest = dict(map(_parts, first))
            for sender, number in arrived.items():
                self._through[sender] = oldest[sender] - 1 if sender in oldest else number
                self._through.move_to_end(sender)
            while len(self._through) > WAITING_MAX:
                self._through.popitem(last=False)
            if self._more and not self._known and looks == self._looks and told:
                self._more = False
                self._take_in(messages)

    def _is_live(self, life: str) -> bool:
        return any(node.life == life and node.left_s > 0 for node in self._store.nodes())

    def _begin(self, line: _Line, name: tuple[bytes, str]) -> None:
        if not self._stopped:
            line.under_way, line.due = True, 0.0
            self._engine.submit(partial(self._run, name, line))

    def _run(self, name: tuple[bytes, str], line: _Line) -> None:
        """Send the messages of a line, one after the other, until one does not get there."""
        sender, target = name
        arrived: list[Message] = []
        problem: BaseException | None = None
        while problem is None and not self._stopped and len(arrived) < DELIVERED_MAX:
            with self._lock:
                if len(arrived) == len(line.messages):
                    break
                message = line.messages[len(arrived)]
                acked = self._through.get(sender, 0)
            number = _sender(message)[1]
            try:
                method, payload = ormsgpack.unpackb(message.payload)
                self._deliver(target, method, payload, CallId(sender, number), acked)
            except _NOT_THERE as failure:
                problem = failure
                break
            except BaseException as failure:
                log.warning(
                    "a message to %s came to nothing: %s: %s", target, type(failure).__name__, failure
                )
            arrived.append(message)
        try:
            if arrived:
                self._store.delivered([message.id for message in arrived])
        except errors.StoreError as failure:
            problem, arrived = failure, []  # they are sent again, and known there
        with self._lock:
            for message in arrived:
                line.messages.popleft()
                self._known.discard(message.id)
                number = _sender(message)[1]
                self._arrived[sender] = max(number, self._arrived.get(sender, number))
            self.delivered += len(arrived)
            line.under_way = False
            if arrived:
                line.pause_s = PAUSE_S
            if problem is not None:
                log.info("messages to %s wait %.1f s: %s", target, line.pause_s, problem)
                line.due = self._monotonic() + line.pause_s
                line.pause_s = min(2 * line.pause_s, PAUSE_MAX_S)
            elif line.messages:
                self._begin(line, name)
            else:
                del self._lines[name]

    def statistics(self) -> dict[str, Any]:
        """Counts, and the bounds they run against."""
        return {
            "messages_waiting": len(self._known),
            "messages_waiting_max": WAITING_MAX,
            "messages_delivered": self.delivered,
        }


def _sender(message: Message) -> tuple[bytes, int]:
    return _parts(message.id)


def _parts(id: bytes) -> tuple[bytes, int]:
    return id[:16], int.from_bytes(id[16:], "big")
