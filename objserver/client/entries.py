"""Ways into clusters: which addresses lead to the same objects.

A server of a cluster tells in its greeting where the others are.  What one proxy has been told all proxies of
the process use: when the address in a URI no longer answers, another one does, also for a proxy that is made
only then.  An address that failed is tried last for a while, so that not every new connection waits for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from objserver import errors
from objserver.references import Location

__all__ = ["Entries"]

AVOIDED_S = 5.0
"""After a failure; a server that is started again is found by then, through the others, anyhow."""
ADDRESSES_MAX = 10_000
"""Remembered by one process; of one more, what was told longest ago is forgotten."""


class Entries:
    """Of one process.  Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._same: OrderedDict[Location, tuple[Location, ...]] = OrderedDict()
        self._failed: dict[Location, float] = {}

    def told(self, by: Location, entries: Sequence[str]) -> None:
        """The server at `by` says that these addresses, its own among them, lead into its cluster."""
        known = self._same.get(by)
        if known is not None and [*map(str, known)] == [*entries]:
            return
        try:
            all_of_them = tuple(map(Location.parse, entries))
        except ValueError as problem:
            raise errors.ProtocolError(f"{by} names an address that is none: {problem}") from None
        with self._lock:
            for location in (by, *all_of_them):
                self._failed.pop(location, None)
                self._same[location] = all_of_them
                self._same.move_to_end(location)
            while len(self._same) > ADDRESSES_MAX:
                self._failed.pop(self._same.popitem(last=False)[0], None)

    def alone(self, location: Location) -> None:
        """The server there is in no cluster, whatever was there before."""
        if location in self._same:
            with self._lock:
                self._same.pop(location, None)
                self._failed.pop(location, None)

    def failed(self, location: Location, now: float) -> None:
        """Nobody answered there."""
        if location in self._same:
            with self._lock:
                self._failed[location] = now

    def answered(self, location: Location) -> None:
        """Somebody did."""
        if location in self._failed:
            with self._lock:
                self._failed.pop(location, None)

    def of(self, location: Location, now: float) -> Sequence[Location]:
        """Where to try, in this order, to reach what is said to be at `location`: itself, or others first if
        it failed lately."""
        same = self._same.get(location)
        if same is None:
            return (location,)
        failed, least = self._failed, now - AVOIDED_S
        ways = (location, *(other for other in same if other != location))
        if not failed:
            return ways
        return sorted(ways, key=lambda way: failed.get(way, least) > least)
