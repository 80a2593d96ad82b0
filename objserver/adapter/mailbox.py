"""Mailboxes order the invocations of one servant.

A mailbox is a plain decision object: `offer` says whether an invocation may start now or waits, `leave`
says which of the waiting may start next.  It holds no lock and no thread.  Whoever owns it runs what
it is told to run, so a thread never waits for an object: the invocation does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from objserver import errors
from objserver.adapter.invocation import Invocation
from objserver.adapter.policies import ThreadingPolicy

if TYPE_CHECKING:
    from objserver.adapter.waits import Waits

__all__ = ["Mailbox"]


class Mailbox:
    """Runs as `policy` says once `open`; until then, one invocation at a time (it activates the servant).

    `waits` is told of calls made by servants that wait here.
    """

    __slots__ = ("open", "policy", "running", "size_max", "waiting", "waits")

    def __init__(self, policy: ThreadingPolicy, size_max: int, waits: Waits | None = None) -> None:
        self.policy = policy
        self.size_max = size_max
        self.waits = waits
        self.open = False
        self.running: list[Invocation] = []
        self.waiting: deque[Invocation] = deque()

    def __repr__(self) -> str:
        return f"<Mailbox {self.policy} running={len(self.running)} waiting={len(self.waiting)}>"

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def offer(self, invocation: Invocation) -> bool:
        """True: run it now.  False: it waits.  ServerBusy when too many wait, Deadlock when it would
        wait for its own call chain; the adapter's own errands always find room."""
        running = self.running
        if not running and not self.waiting:
            self._start(invocation)
            return True
        if (
            not self.policy.alone
            and self.open
            and not invocation.ends
            and (
                self.policy.overtakes(running, invocation)
                or (not self.waiting and self.policy.admits(running, invocation))
            )
        ):
            running.append(invocation)
            return True
        if invocation.chain and not invocation.oneway and not invocation.errand:
            self._check_chain(invocation)
        if len(self.waiting) >= self.size_max and not invocation.errand:
            raise errors.ServerBusy(
                f"{len(self.waiting)} invocations already wait for {invocation.object_id} "
                "(setting mailbox_size_max)"
            )
        self._keep_waiting(invocation)
        return False

    def _keep_waiting(self, invocation: Invocation) -> None:
        self.waiting.append(invocation)
        if self.waits is not None and invocation.chain and not invocation.oneway:
            self.waits.began(invocation)

    def clear(self) -> list[Invocation]:
        """Nobody waits here any more; those who did."""
        waiting = list(self.waiting)
        for invocation in waiting:
            self.withdraw(invocation)
        return waiting

    def holders(self) -> tuple[list[Invocation], bool]:
        """Those inside, and whether all of them must leave before one that waits can start."""
        return list(self.running), self.policy.exclusive or not self.open

    def _check_chain(self, invocation: Invocation) -> None:
        """Deadlock if `invocation` would wait for a call that waits for it."""
        own = [inside for inside in self.running if inside.id in invocation.chain]
        # Where one place is enough to start, a deadlock takes all places; else one is enough for it.
        if own and (self.policy.exclusive or not self.open or len(own) == len(self.running)):
            start = invocation.chain.index(own[0].id)
            cycle = [link.rpartition(" ")[0] for link in invocation.chain[start:]]
            cycle.append(f"{invocation.object_id}.{invocation.method}")
            error = errors.Deadlock(
                f"{cycle[-1]} would wait for the call it comes from: {' -> '.join(cycle)}; "
                "make the object Reentrant, or the call oneway"
            )
            error.cycle = tuple(cycle)
            raise error

    def rested(self) -> None:
        """Nothing of those that have left is on its way to the store any more."""

    def withdraw(self, invocation: Invocation) -> bool:
        """Take out one that waits; False if it does not.  Afterwards others may be `startable`."""
        try:
            self.waiting.remove(invocation)
        except ValueError:
            return False
        if self.waits is not None and invocation.chain:
            self.waits.ended(invocation)
        return True

    def leave(self, invocation: Invocation) -> list[Invocation]:
        """`invocation` has ended; the ones to start now."""
        self.running.remove(invocation)
        return self.startable() if self.waiting else _NONE

    def startable(self) -> list[Invocation]:
        """Move those that may start now from `waiting` to `running`."""
        started = []
        while self.waiting:
            alone = self.policy.alone or not self.open or self.waiting[0].ends
            if not (not self.running if alone else self.policy.admits(self.running, self.waiting[0])):
                break
            invocation = self.waiting.popleft()
            if self.waits is not None and invocation.chain:
                self.waits.ended(invocation)
            self._start(invocation)
            started.append(invocation)
        return started

    def _start(self, invocation: Invocation) -> None:
        self.running.append(invocation)
        if invocation.ends:
            self.open = False


_NONE: list[Invocation] = []
