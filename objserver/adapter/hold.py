"""Holding a name: what has begun goes on and ends, all else waits, until it is let go or moved elsewhere.

A hold stands in front of the mailboxes of one registration.  It does not ask anything of a call that finds
no hold: a held activation has another mailbox, that is all.  Behind it the mailbox that was there goes on
with what has begun, and with what that cannot end without: calls of a chain that leads through the name,
which somebody inside waits for, and the items of streams that are open.

    draining   the above may enter; others are kept waiting
    closed     all mailboxes were at rest in one moment, and from then on nothing enters
    over       let go: what was kept waiting is in the mailboxes again
    moved      what was kept waiting is somebody else's, the activations have ended
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable

from objserver import errors
from objserver.adapter.activation import EMPTY, Activation
from objserver.adapter.invocation import Invocation
from objserver.adapter.mailbox import Mailbox
from objserver.adapter.policies import ThreadingPolicy

__all__ = ["HeldMailbox", "Hold", "leads_through"]


class Stage(enum.Enum):
    DRAINING = "draining"
    CLOSED = "closed"
    OVER = "over"
    MOVED = "moved"


class Hold:
    """The activations of `name`, held.  `at_rest` is called, with a lock held, when nothing runs any more.

    Locks are taken in this order: the active object map's, an activation's, the hold's.
    """

    def __init__(self, name: str, at_rest: Callable[[], None], stage: Stage = Stage.DRAINING) -> None:
        self.name = name
        self.at_rest = at_rest
        self._stage = stage
        self._lock = threading.Lock()
        self._busy = 1
        """Mailboxes where something runs, and one for `all_taken` not having been called."""
        self._taken: list[Activation] = []

    @property
    def activations(self) -> list[Activation]:
        """Those taken that have not ended, in the order in which they were."""
        with self._lock:
            return [activation for activation in self._taken if not activation.ended]

    def take(self, activation: Activation) -> bool:
        """Hold an activation.  False: it comes too late, its name is served by other activations now."""
        with activation.lock, self._lock:
            if self._stage is Stage.MOVED:
                return False
            mailbox = activation.mailbox
            if self._stage is not Stage.OVER and not activation.ended and type(mailbox) is Mailbox:
                activation.mailbox = HeldMailbox(mailbox, self)
                self._taken.append(activation)
                self._busy += not mailbox.idle
            return True

    def all_taken(self) -> bool:
        """Whether those that were there, which are taken, are at rest."""
        return self.left()

    def enters(self, invocation: Invocation, mailbox: Mailbox) -> bool:
        """Whether an invocation belongs to what has begun; if so it is counted."""
        with self._lock:
            if self._stage is not Stage.DRAINING or not self.belongs(invocation):
                return False
            self._busy += mailbox.idle
            return True

    def belongs(self, invocation: Invocation) -> bool:
        """Whether what has begun cannot end without it."""
        if invocation.work is not None:
            return True
        return not invocation.oneway and leads_through(invocation.chain, self.name)

    def left(self) -> bool:
        """A mailbox has come to rest; whether all are."""
        with self._lock:
            self._busy -= 1
            return not self._busy

    def close(self, *, streams: bool) -> bool:
        """Let nothing in any more; False if something runs, or a stream is open and `streams` may not be."""
        with self._lock:
            if self._stage is not Stage.DRAINING or self._busy:
                return False
            if not streams and any(a.streams and not a.ended for a in self._taken):
                return False
            if any(a.gate is not None and not a.gate.rests for a in self._taken):
                return False  # who has left may not have been answered; `rested` looks again
            self._stage = Stage.CLOSED
            return True

    def give_up(self) -> bool:
        """Decide to let go instead of closing; False if it is too late for that."""
        with self._lock:
            if self._stage is not Stage.DRAINING:
                return False
            self._stage = Stage.OVER
            return True

    def let_go(self, threading: ThreadingPolicy) -> tuple[list[Invocation], list[Activation]]:
        """Give the mailboxes back, which run as `threading` says from now on.

        What starts now, and the activations that have nothing to stay for.
        """
        with self._lock:
            self._stage = Stage.OVER
            taken = self._taken
        starting: list[Invocation] = []
        ended = []
        for activation in taken:
            with activation.lock:
                if activation.ended:
                    continue
                held = activation.mailbox
                assert isinstance(held, HeldMailbox)
                mailbox = activation.mailbox = held.begun
                mailbox.policy = threading
                mailbox.waiting.extend(held.waiting)
                starting += mailbox.startable()
                over = activation.servant is EMPTY or activation.registration.transient
                if over and mailbox.idle and not activation.streams:
                    activation.ended = True
                    ended.append(activation)
        return starting, ended

    def move(self, forget: Callable[[Activation], None]) -> tuple[list[Activation], list[Invocation]]:
        """End the activations, which `forget` takes off the map; they, and the calls that waited for them.

        Those of each client are in its order, for the object: they waited in one mailbox, or the activations
        were made in that order.  Errands that would have ended a servant have no purpose any more.
        """
        with self._lock:
            self._stage = Stage.MOVED
            taken = [activation for activation in self._taken if not activation.ended]
        calls: list[Invocation] = []
        for activation in taken:
            forget(activation)  # first, or who comes now would find it again and again
            with activation.lock:
                activation.ended = True
                calls += [waiting for waiting in activation.mailbox.clear() if not waiting.ends]
        return taken, calls


class _Waiting(deque[Invocation]):
    """Even when empty it tells the short ways through the adapter that they are none."""

    def __bool__(self) -> bool:
        return True


class HeldMailbox(Mailbox):
    """Keeps waiting whatever the hold does not let in; `begun` is the mailbox behind it."""

    __slots__ = ("_hold", "begun")

    def __init__(self, begun: Mailbox, hold: Hold) -> None:
        self.begun = begun
        self._hold = hold
        self.policy, self.size_max, self.running = begun.policy, begun.size_max, begun.running
        self.waits = begun.waits
        before, begun.waiting = begun.waiting, deque()
        self.waiting = _Waiting()
        for invocation in before:
            (begun.waiting if hold.belongs(invocation) else self.waiting).append(invocation)

    @property
    def open(self) -> bool:
        return self.begun.open

    @open.setter
    def open(self, value: bool) -> None:
        self.begun.open = value

    @property
    def idle(self) -> bool:
        return self.begun.idle and not len(self.waiting)

    def offer(self, invocation: Invocation) -> bool:
        if self._hold.enters(invocation, self.begun):
            return self.begun.offer(invocation)
        if not invocation.errand and len(self.waiting) >= self.size_max:
            raise errors.ServerBusy(
                f"{len(self.waiting)} invocations already wait for {invocation.object_id}, whose policies "
                "are being changed (setting mailbox_size_max)"
            )
        self._keep_waiting(invocation)
        return False

    def withdraw(self, invocation: Invocation) -> bool:
        return super().withdraw(invocation) or self.begun.withdraw(invocation)

    def leave(self, invocation: Invocation) -> list[Invocation]:
        starting = self.begun.leave(invocation)
        if self.begun.idle and self._hold.left():
            self._hold.at_rest()
        return starting

    def rested(self) -> None:
        if self.begun.idle:
            self._hold.at_rest()

    def startable(self) -> list[Invocation]:
        return self.begun.startable()


def leads_through(chain: tuple[str, ...], name: str) -> bool:
    """Whether a call chain leads through an object registered as `name`."""
    for link in chain:
        object_id = link.rpartition(" ")[0].rpartition(".")[0]
        if object_id == name or object_id.startswith(f"{name}/"):
            return True
    return False
