"""What a node remembers of where objects are, so that it need not ask the store for every call that goes on.

A route is a hint and may be wrong; whoever follows it says so with the call, and is then answered by what the
store says.  It is believed for a moment only, and not longer than the life that it names is known to be live.
"""

from __future__ import annotations

from collections import OrderedDict

from objserver.storage import Elsewhere

__all__ = ["Routes"]

BELIEVED_S = 1.0
"""How long an object that has moved on is still sent after."""
ROUTES_MAX = 10_000
"""Of one node; one more replaces that learned longest ago."""


class Routes:
    """Of one node.  Not synchronized: its owner has a lock."""

    def __init__(self) -> None:
        self._routes: OrderedDict[tuple[str, str], tuple[Elsewhere, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._routes)

    def learn(self, type: str, key: str, where: Elsewhere, now: float) -> None:
        """The store has said where it is."""
        self._routes[type, key] = where, now + BELIEVED_S
        self._routes.move_to_end((type, key))
        if len(self._routes) > ROUTES_MAX:
            self._routes.popitem(last=False)

    def forget(self, type: str, key: str) -> None:
        """It is here, or nobody knows."""
        self._routes.pop((type, key), None)

    def find(self, type: str, key: str, now: float) -> Elsewhere | None:
        """Where it is, if that is known and still believed."""
        found = self._routes.get((type, key))
        if found is None:
            return None
        where, until = found
        if now >= until:
            del self._routes[type, key]
            return None
        return where

    def keep(self, lives: set[str]) -> None:
        """Only these lives are live: what leads to others is forgotten."""
        for name in [name for name, (where, _) in self._routes.items() if where.life not in lives]:
            del self._routes[name]
