"""Deadlocks of several call chains: who waits for whom, asked along the calls.

A call that would wait for its own chain is refused by the mailbox itself.  Two chains can block each other
too: one is inside A and calls B, the other is inside B and calls A.  Nobody sees both ends of that, so
whoever waits asks.  A call made by a servant that has waited for `deadlock_check_s` sends a question to those
inside the object: what do *you* wait for?  An invocation that waits for the reply to a call passes the
question on along that call, to the mailbox where the call waits, or the invocation that it has become.  There
it goes on in the same way.  An invocation that waits for nobody lets it end.  Where it comes back to the call
that asked, there is a cycle.  (Chandy, Misra and Haas, "Distributed deadlock detection", 1983.)

- Calls that wait shorter than that ask nothing, and calls that nobody's servant made wait for nobody's harm.
- A question that comes back has seen each wait at another time.  So the asker asks once more: what both
  rounds have seen did hold in the moment between them.
- Of the calls of a cycle, only the one that waits for the shortest time gets its question through: one that
  has waited longer lets no older question pass, and asks itself instead.  So there is one victim, and
  it is usually the call that closed the cycle.
- Where any of several would set the call free (a place in a `Concurrent` object, one of the calls that a
  servant's threads wait for), all of these ways have to come back.
- A question ends after so many steps, and parts into so many; nothing is kept for those of others.

This module decides; it sends nothing but through the calls that the invocations have left with their facts.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import partial
from itertools import count
from typing import Any

from objserver import errors
from objserver.adapter.calling import Engine
from objserver.adapter.invocation import Invocation
from objserver.clock import Clock
from objserver.wire.probe import SPREAD_MAX, Path, Probe

__all__ = ["Waits", "agree"]

AGAIN_MAX_S = 1.0
"""A call that goes on waiting asks again, after twice the time, up to this: a cycle may close behind it, and
a question may have been lost."""
STARTED_MAX = 100
"""Questions begun in one look, so that a thousand calls that wait for one object do not ask at once."""
LOOK_S = 0.001


def agree(paths: Collection[Path]) -> bool:
    """Whether the question came back on every way that it must, given the paths on which it did."""
    return _back(1, list(paths), frozenset())


def _back(branches: int, rests: list[Path], passed: frozenset[str]) -> bool:
    """Whether it came back on so many ways from here, if it has `passed` these and these are the `rests`.

    Where it comes to one that it has passed it need not go on: it is stuck if that is.
    """
    ways: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for rest in rests:
        if rest:
            ways[rest[0]].append(rest[1:])
    returned = {
        name for (name, on), below in ways.items() if name in passed or _back(on, below, passed | {name})
    }
    return len(returned) + (not all(rests)) >= branches


class _Wait:
    """One call of a servant that waits in a mailbox here."""

    __slots__ = ("asked", "before", "invocation", "paths", "pause_s", "round", "since")

    def __init__(self, invocation: Invocation, now: float, first_s: float) -> None:
        self.invocation = invocation
        self.since = now
        self.pause_s = first_s
        self.asked = now
        """When it last began a round."""
        self.round = 0
        self.paths: set[Path] = set()
        """On which the question of this round came back."""
        self.before: set[Path] | None = None
        """... and that of the round before, if there was a cycle in it."""


class Waits:
    """The calls made by servants that wait in a mailbox of this adapter, and what they ask.

    Every method may be called from any thread.  `refuse` answers one with an error, if it still waits.
    """

    def __init__(
        self,
        first_s: float,
        clock: Clock,
        engine: Engine,
        refuse: Callable[[Invocation, BaseException], bool],
    ) -> None:
        self._first_s = max(first_s, LOOK_S)
        self._now = clock.monotonic
        self._engine = engine
        self._refuse = refuse
        self._waits: dict[Invocation, _Wait] = {}
        self._lock = threading.Lock()
        self._due: list[tuple[float, int, _Wait]] = []
        self._count = count()
        self._next_look = math.inf
        self.sent = 0
        self.deadlocks = 0

    def __len__(self) -> int:
        return len(self._waits)

    def began(self, invocation: Invocation) -> None:
        """It waits in a mailbox from now on; the activation's lock is held."""
        now = self._now()
        wait = _Wait(invocation, now, self._first_s)
        self._waits[invocation] = wait
        with self._lock:
            heapq.heappush(self._due, (now + self._first_s, next(self._count), wait))
            self._look_at(now + self._first_s, now)

    def ended(self, invocation: Invocation) -> None:
        """It waits no longer; the activation's lock is held."""
        self._waits.pop(invocation, None)

    def statistics(self) -> dict[str, Any]:
        """Counts."""
        return {"nested_waiting": len(self), "probes_sent": self.sent, "deadlocks": self.deadlocks}

    # -- asking --------------------------------------------------------------------------------------

    def _look_at(self, at: float, now: float) -> None:
        """See that somebody looks then, or before; the lock is held."""
        if at < self._next_look:
            self._next_look = at
            self._engine.after(at - now, partial(self._look, at))

    def _look(self, at: float) -> None:
        """Have those ask who have waited long enough."""
        now = self._now()
        for wait in self._that_are_due(now):
            self._ask(wait, None)
        with self._lock:
            if self._next_look == at:
                self._next_look = math.inf
            if self._due:
                self._look_at(max(self._due[0][0], now + LOOK_S), now)

    def _that_are_due(self, now: float) -> list[_Wait]:
        due: list[_Wait] = []
        with self._lock:
            while self._due and len(due) < STARTED_MAX:
                at, _, wait = self._due[0]
                if self._waits.get(wait.invocation) is not wait:
                    heapq.heappop(self._due)
                    continue
                if at > now:
                    break
                wait.pause_s = min(2 * wait.pause_s, AGAIN_MAX_S)
                heapq.heapreplace(self._due, (now + wait.pause_s, next(self._count), wait))
                due.append(wait)
        return due

    def _ask(self, wait: _Wait, before: set[Path] | None) -> None:
        """Begin a round."""
        with self._lock:
            wait.round += 1
            wait.asked = self._now()
            wait.paths, wait.before = set(), before
            probe = Probe(wait.round, wait.since, SPREAD_MAX)
        self._to_those_inside(wait.invocation, probe)

    # -- being asked ---------------------------------------------------------------------------------

    def asked(self, invocation: Invocation, probe: Probe) -> None:
        """Who made the call that `invocation` is asks what it waits for."""
        if invocation.activation is None:
            return  # it is not in its place yet
        wait = self._waits.get(invocation)
        if wait is None:
            with invocation.activation.lock:
                runs = invocation in invocation.activation.mailbox.running
            if runs and probe.may_pass(invocation.id):
                self._along_its_calls(invocation, probe)
            return
        asker = probe.path[0][0]
        if asker == invocation.id:
            self._came_back(wait, probe)
        elif (wait.since, invocation.id) < (probe.since, asker):
            self._to_those_inside(invocation, probe)
        elif self._now() - wait.asked >= self._first_s:
            self._ask(wait, None)

    def _to_those_inside(self, invocation: Invocation, probe: Probe) -> None:
        """What waits is set free by who is inside the object: go on to these."""
        with invocation.activation.lock:
            if invocation not in self._waits:
                return
            inside, every = invocation.activation.mailbox.holders()
        asked = [other for other in inside if other.id_if_used]  # or it has called nobody, and is at work
        if every:
            asked = [other for other in asked if probe.may_pass(other.id)][: probe.spread]
        elif len(asked) < len(inside):
            return
        onward = probe.through(invocation.id, 1 if every else len(asked), len(asked))
        if onward is not None:
            for other in asked:
                if onward.may_pass(other.id):
                    self._along_its_calls(other, onward)

    def _along_its_calls(self, invocation: Invocation, probe: Probe) -> None:
        """What runs goes on when the calls that it waits for are answered: ask those."""
        calls = invocation.awaited
        onward = probe.through(invocation.id, len(calls), len(calls))
        question = onward.encode() if onward is not None else b""
        if question:
            self.sent += len(calls)
            for call in calls:
                invocation.ask(call, question)

    def _came_back(self, wait: _Wait, probe: Probe) -> None:
        again = None
        with self._lock:
            if probe.round != wait.round:
                return
            wait.paths.add(probe.path)
            seen = wait.paths if wait.before is None else wait.paths & wait.before
            if not agree(seen):
                return
            if wait.before is None:
                again = partial(self._ask, wait, set(seen))
            wait.round += 1  # nothing of this round counts any more
        if again is not None:
            again()
        elif self._refuse(wait.invocation, _deadlock(min(seen, key=len))):
            self.deadlocks += 1


def _deadlock(path: Path) -> errors.Deadlock:
    names = [name.rpartition(" ")[0] for name, _ in path]
    cycle = (*names[1:], names[0])
    error = errors.Deadlock(
        f"{cycle[-1]} would wait for ever, for a call that waits for it: {' -> '.join((*cycle, cycle[0]))}; "
        "have all callers take the objects in the same order, or make a call oneway"
    )
    error.cycle = cycle
    return error
