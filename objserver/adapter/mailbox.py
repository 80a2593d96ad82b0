"""Mailboxes order the invocations of one servant.

A mailbox is a plain decision object: `offer` says whether an invocation may start now or waits, `leave`
says which of the waiting may start next.  It holds no lock and no thread.  Whoever owns it runs what
it is told to run, so a thread never waits for an object: the invocation does.
"""

from __future__ import annotations

from collections import deque

from objserver import errors
from objserver.adapter.invocation import Invocation
from objserver.adapter.policies import ThreadingPolicy

__all__ = ["Mailbox"]


class Mailbox:
    """Runs as `policy` says once `open`; until then, one invocation at a time (it activates the servant)."""

    __slots__ = ("open", "policy", "running", "size_max", "waiting")

    def __init__(self, policy: ThreadingPolicy, size_max: int) -> None:
        self.policy = policy
        self.size_max = size_max
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
        wait for its own call chain."""
        running = self.running
        if not running and not self.waiting:
            running.append(invocation)
            if invocation.ends:
                self.open = False
            return True
        if (
            self.open
            and not invocation.ends
            and (
                self.policy.overtakes(running, invocation)
                or (not self.waiting and self.policy.admits(running, invocation))
            )
        ):
            running.append(invocation)
            return True
        chain = invocation.chain
        if chain and self.policy.exclusive and any(inside.id in chain for inside in running):
            raise errors.Deadlock(
                f"{invocation.object_id}.{invocation.method} was called from a call that "
                f"{invocation.object_id} itself is waiting for; make it Reentrant or call it oneway"
            )
        if len(self.waiting) >= self.size_max:
            raise errors.ServerBusy(
                f"{len(self.waiting)} invocations already wait for {invocation.object_id} "
                "(setting mailbox_size_max)"
            )
        self.waiting.append(invocation)
        return False

    def leave(self, invocation: Invocation) -> list[Invocation]:
        """`invocation` has ended; the ones to start now."""
        self.running.remove(invocation)
        return self.startable() if self.waiting else _NONE

    def startable(self) -> list[Invocation]:
        """Move those that may start now from `waiting` to `running`."""
        started = []
        while self.waiting:
            alone = not self.open or self.waiting[0].ends
            if not (not self.running if alone else self.policy.admits(self.running, self.waiting[0])):
                break
            invocation = self.waiting.popleft()
            self._start(invocation)
            started.append(invocation)
        return started

    def _start(self, invocation: Invocation) -> None:
        self.running.append(invocation)
        if invocation.ends:
            self.open = False


_NONE: list[Invocation] = []
