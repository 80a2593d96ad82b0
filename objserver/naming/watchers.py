"""`Watchers`: who wants to know which names change, and what there is to tell them.

Changes are noted by whoever makes them and told by another thread, so that registering a name costs the same
however many watch.  Of a name that changes faster than it is told only the last is told.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from objserver import errors
from objserver.client.proxy import Proxy
from objserver.client.publisher import Publisher

__all__ = ["Watchers"]

TOLD_MAX = 1_000
"""Changes in one message; a thousand are some 100 kB."""


class Watchers:
    """Listeners by the prefix of the names they watch, `watchers_max` at most."""

    def __init__(self, watchers_max: int) -> None:
        self.noted = threading.Event()
        """There is something to tell."""
        self._watchers_max = watchers_max
        self._publishers: dict[str, Publisher] = {}
        self._news: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(map(len, self._publishers.values()))

    def add(self, listener: Proxy, prefix: str) -> None:
        """Tell `listener` of names that begin with `prefix`; ServerBusy for one too many."""
        with self._lock:
            if len(self) >= self._watchers_max:
                self._drop_gone()
            if len(self) >= self._watchers_max:
                raise errors.ServerBusy(f"{len(self)} listeners watch already (watchers_max)")
            publisher = self._publishers.get(prefix)
            if publisher is None:
                publisher = self._publishers[prefix] = Publisher(subscribers_max=self._watchers_max)
            publisher.subscribe(listener)

    def remove(self, listener: Proxy, prefix: str) -> None:
        """No longer."""
        with self._lock:
            publisher = self._publishers.get(prefix)
            if publisher is not None:
                publisher.unsubscribe(listener)
                if not len(publisher):
                    del self._publishers[prefix]

    def note(self, changes: Mapping[str, str | None]) -> None:
        """These names have changed to these URIs; None: removed."""
        if self._publishers:
            with self._lock:
                self._news.update(changes)
            self.noted.set()

    def tell(self) -> None:
        """Tell what was noted; for one thread, so that what is told is in order."""
        self.noted.clear()
        with self._lock:
            news, self._news = self._news, {}
            publishers = list(self._publishers.items()) if news else []
        for prefix, publisher in publishers:
            mine = [(name, uri) for name, uri in news.items() if name.startswith(prefix)]
            for at in range(0, len(mine), TOLD_MAX):
                publisher.publish("names_changed", dict(mine[at : at + TOLD_MAX]))
        with self._lock:
            for prefix, publisher in publishers:
                if not len(publisher):
                    self._publishers.pop(prefix, None)

    def _drop_gone(self) -> None:
        for prefix, publisher in list(self._publishers.items()):
            publisher.drop_gone()
            if not len(publisher):
                del self._publishers[prefix]
