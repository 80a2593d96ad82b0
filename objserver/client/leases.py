"""Leases: how long this process keeps the objects that were exported to it.

An exported object lives as long as somebody holds it.  Every proxy of one shares a `Lease`; when the last
of them is gone, so is the lease, and the server is told how many references had come.  A reference that was
passed on, or sent home, holds it a little longer: else the object could be gone before it has arrived, which
is on another connection.  Until then a thread
of the process renews all leases, one call for each server, three times in the time that a server believes
it.  A process that was never given such an object has no such thread.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple

from objserver import errors
from objserver.logs import escaping
from objserver.references import DAEMON_ID, Reference

__all__ = ["Lease", "LeaseKeeper"]

log = escaping(logging.getLogger("objserver.client"))

RENEWALS_PER_LEASE = 3
PASSED_ON_S = 2.0
"""How long an object is held, at least, after a reference to it has been sent to somebody else."""
UNKNOWN_LEASE_S = 10.0
"""How long a server is believed to believe us that could not be asked yet."""
WAIT_MAX_S = 3600.0
"""A server may name a lease that is longer than any clock goes."""


Ask = Callable[[Reference, str, Any], Any]
"""Calls a method of a daemon object, with one argument."""


class Lease:
    """Lives as long as a proxy of the object does; counts the references that came."""

    __slots__ = ("__weakref__", "_keeper", "arrivals", "held_until", "reference")

    def __init__(self, keeper: LeaseKeeper, reference: Reference) -> None:
        self._keeper = keeper
        self.reference = reference
        self.arrivals = 0
        self.held_until = 0.0
        """Whatever becomes of its proxies."""

    def passed_on(self) -> None:
        """A reference to the object is being sent, but not by its owner."""
        now = monotonic()
        if self.held_until < now + PASSED_ON_S:  # not for each of many
            self.held_until = now + 2 * PASSED_ON_S
            self._keeper.events.put(self)

    def __del__(self) -> None:
        # A SimpleQueue may be put to from a destructor, wherever that happens to run.
        self._keeper.events.put(_Dropped(self.reference, self.arrivals))


class _Held(NamedTuple):
    reference: Reference
    ask: Ask


class _Dropped(NamedTuple):
    reference: Reference
    arrivals: int


class LeaseKeeper:
    """Renews and ends the leases of this process."""

    def __init__(self) -> None:
        self.events: SimpleQueue[_Held | _Dropped | Lease] = SimpleQueue()
        self._leases: weakref.WeakValueDictionary[Reference, Lease] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()
        """A destructor may run, and a reference arrive in it, wherever this thread happens to be."""
        self._started = False
        self._holds: dict[Reference, dict[str, int]] = {}
        """By the daemon object of its server: the ids of what is held, and how many leases of each."""
        self._asks: dict[Reference, Ask] = {}
        self._dropped: dict[Reference, Counter[str]] = {}
        self._next: dict[Reference, float] = {}
        self._passed_on: dict[Reference, Lease] = {}

    def arrived(self, reference: Reference, ask: Ask) -> Lease:
        """A reference to an exported object has come; the lease that its proxy keeps."""
        with self._lock:
            lease = self._leases.get(reference)
            if lease is None:
                lease = self._leases[reference] = Lease(self, reference)
                self.events.put(_Held(reference, ask))
                if not self._started:
                    self._started = True
                    threading.Thread(target=self._run, name="objserver-leases", daemon=True).start()
            lease.arrivals += 1
            return lease

    def _run(self) -> None:
        while True:
            try:
                self.take(self.wait_s(monotonic()))
                self.speak(monotonic())
            except BaseException:
                log.exception("renewing leases failed; this is a bug of objserver")

    def wait_s(self, now: float) -> float | None:
        """How long nothing is due; None: until something happens."""
        ends = (lease.held_until for lease in self._passed_on.values())
        due = min((*self._next.values(), *ends), default=None)
        return None if due is None else min(max(0.0, due - now), WAIT_MAX_S)

    def take(self, timeout_s: float | None) -> None:
        """Take in what has happened; waits for something if nothing has."""
        try:
            event = self.events.get(timeout=timeout_s)
            while True:
                daemon = Reference("PYRO", DAEMON_ID, event.reference.location)
                object_id = event.reference.object_id
                holds = self._holds.setdefault(daemon, {})
                if isinstance(event, Lease):
                    self._passed_on[event.reference] = event
                elif isinstance(event, _Held):
                    self._asks[daemon] = event.ask
                    if object_id not in holds:
                        self._next[daemon] = 0.0  # so that the server knows us as a holder
                    holds[object_id] = holds.get(object_id, 0) + 1
                else:
                    self._dropped.setdefault(daemon, Counter())[object_id] += event.arrivals
                    holds[object_id] = holds.get(object_id, 0) - 1
                    if holds[object_id] <= 0:
                        del holds[object_id]
                event = self.events.get_nowait()
        except Empty:
            pass

    def speak(self, now: float) -> None:
        """Tell the servers what is due."""
        for lease in [lease for lease in self._passed_on.values() if lease.held_until <= now]:
            del self._passed_on[lease.reference]
        for daemon, dropped in list(self._dropped.items()):
            gone = {i: n for i, n in dropped.items() if i not in self._holds.get(daemon, {})}
            if gone:
                for object_id in gone:
                    del dropped[object_id]
                self._tell(daemon, "release", gone)
            if not dropped:
                del self._dropped[daemon]
        for daemon, due in list(self._next.items()):
            held = list(self._holds.get(daemon, ()))
            if not held and daemon not in self._dropped:
                self._holds.pop(daemon, None)
                self._asks.pop(daemon, None)
                del self._next[daemon]
            elif due <= now:
                lease_s = self._tell(daemon, "renew", held)
                believed = lease_s if isinstance(lease_s, float) and lease_s > 0 else UNKNOWN_LEASE_S
                self._next[daemon] = now + believed / RENEWALS_PER_LEASE

    def _tell(self, daemon: Reference, method: str, argument: Any) -> Any:
        try:
            return self._asks[daemon](daemon, method, argument)
        except (errors.ObjServerError, OSError) as problem:
            log.info("could not %s %d leases at %s: %s", method, len(argument), daemon.location, problem)
            return None
