"""How long a server that is not heard of any more keeps its names: decisions, and no clock.

A lease is renewed by its server, at whichever name server; the number of its renewals is in the store.  A
name server that has not seen that number change for the time of the lease ends it.  So the clocks of
several name servers are never compared, and one that is started anew gives every lease its whole time.

Only time in which somebody looked counts.  A name server that was stopped, or cut off from its store, has
not seen any renewals, and must not take that for the death of all servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Lease", "LeaseWatch"]

GAP_S = 1.0
"""Longer between two looks is not looking."""


class Lease(NamedTuple):
    """A server's, in the store.  `load` is what it said last: 0 idle, 1 as much as it can do."""

    lease_s: float
    owner: str = ""
    load: float = 0.0
    renewals: int = 0


class LeaseWatch:
    """Which leases are over.  `now` are seconds that only grow."""

    def __init__(self) -> None:
        self._watched_s = 0.0
        self._looked_at: float | None = None
        self._ends: dict[str, float] = {}
        """In watched seconds."""

    def __len__(self) -> int:
        return len(self._ends)

    def look(self, now: float) -> None:
        """Somebody looks, and has seen whatever was changed before."""
        if self._looked_at is not None:
            self._watched_s += min(GAP_S, max(0.0, now - self._looked_at))
        self._looked_at = now

    def told(self, changes: Mapping[str, tuple[Lease | None, Lease | None]]) -> None:
        """Leases were begun, renewed or ended."""
        for id, (_, lease) in changes.items():
            if lease is None:
                self._ends.pop(id, None)
            else:
                self._ends[id] = self._watched_s + lease.lease_s

    def over(self) -> list[str]:
        """The leases that nobody has renewed in their time."""
        return [id for id, end in self._ends.items() if end <= self._watched_s]
