"""Which clients the store remembers: sessions with leases, looked up once and then known here for a while.

A client opens a session before it numbers its calls.  The lease in the store is renewed when a call comes and
half of it has passed, so a client that calls now and then keeps it, and one that is gone loses it.  What is
known here may be outdated, which is no danger: the store refuses to keep a reply for a client that has no
session any more, so at worst a call is refused late.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from objserver import errors
from objserver.storage import Store

__all__ = ["Sessions"]


FOREVER_S = 100 * 365 * 86_400.0
"""The lease of objects that send messages to others: one that was delivered must be known as long as its
sender may come back and send it again."""


class Sessions:
    """Of one server.  Every method may be called from any thread, and may take as long as the store does."""

    def __init__(self, store: Store, lease_s: float, size_max: int) -> None:
        self._store = store
        self._lease_s = lease_s
        self._size_max = size_max
        self._lock = threading.Lock()
        self._fresh_until: OrderedDict[bytes, float] = OrderedDict()
        """By client, until when its lease need not be renewed; earliest first."""

    def __len__(self) -> int:
        return len(self._fresh_until)

    def open(self, client: bytes, now: float, forever: bool = False) -> None:
        """The client's session begins.  ServerBusy if there are too many."""
        with self._lock:
            if len(self._fresh_until) >= self._size_max:
                raise errors.ServerBusy(
                    f"{len(self._fresh_until)} clients have sessions here (setting sessions_max)"
                )
        self._store.open_session(client, FOREVER_S if forever else self._lease_s)
        self._heard(client, now)

    def check(self, client: bytes, now: float) -> None:
        """A call of the client has come; SessionExpired if nobody knows any more what it did before."""
        if now < self._fresh_until.get(client, 0.0):
            return
        if not self._store.renew_sessions([client], self._lease_s):
            raise errors.SessionExpired(
                f"nothing was heard of client {client.hex()} for so long that its calls are forgotten"
            )
        self._heard(client, now)

    def expire(self, now: float) -> list[bytes]:
        """End what is over, in the store and here; the clients whose records are gone."""
        with self._lock:
            while self._fresh_until:
                client, until = next(iter(self._fresh_until.items()))
                if until + self._lease_s > now:
                    break
                del self._fresh_until[client]
        ended = self._store.expire_sessions()
        with self._lock:
            for client in ended:
                self._fresh_until.pop(client, None)
        return ended

    def _heard(self, client: bytes, now: float) -> None:
        with self._lock:
            self._fresh_until[client] = now + self._lease_s / 2
            self._fresh_until.move_to_end(client)
