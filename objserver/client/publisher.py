"""`Publisher`: tells everybody who wants to know, on the connections that they made.

    prices = Publisher()
    server.register(prices, "prices")
    prices.publish("changed", "ACME", 12.5)       # calls listener.changed("ACME", 12.5) of every subscriber

and in a client

    @expose
    class Listener:
        def changed(self, name, price): ...

    Proxy("PYRO:prices@...").subscribe(Listener())

Publishing waits for nobody: what is sent is oneway, in order for each subscriber.  One that is gone is
dropped when something is published; so is one that does not read what it is told.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from objserver import errors
from objserver.adapter import expose
from objserver.client.pool import LinkPool
from objserver.client.proxy import Proxy
from objserver.logs import escaping
from objserver.wire import Flag

__all__ = ["Publisher"]

log = escaping(logging.getLogger("objserver.client"))


class Publisher:
    """An object to which others subscribe; a servant like any other, or a part of one.

    `subscribers_max` bounds them: ServerBusy for one too many.
    """

    def __init__(self, *, subscribers_max: int = 1_000) -> None:
        self.subscribers_max = subscribers_max
        self._subscribers: list[Proxy] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._subscribers)

    @expose
    def subscribe(self, listener: Any) -> None:
        """Have `listener` called with what is published, until it is gone.  Twice is the same as once."""
        if not isinstance(listener, Proxy):
            raise TypeError(
                f"an object of type {type(listener).__name__} cannot be called from here: "
                "pass one whose class has exposed members"
            )
        with self._lock:
            if listener in self._subscribers:
                return
            if len(self._subscribers) >= self.subscribers_max:
                raise errors.ServerBusy(f"{len(self._subscribers)} have subscribed already (subscribers_max)")
            self._subscribers.append(listener)

    @expose
    def unsubscribe(self, listener: Any) -> None:
        """No longer, if it was."""
        with self._lock:
            self._subscribers = [other for other in self._subscribers if other != listener]

    def publish(self, method: str, *args: Any, **kwargs: Any) -> int:
        """Call `method` of every subscriber; returns how many there are.

        SerializeError if an argument cannot travel.
        """
        with self._lock:
            subscribers = list(self._subscribers)
        for listener in subscribers:
            try:
                listener._objserver_stub.invoke(method, args, kwargs, Flag.ONEWAY)
            except errors.SerializeError:
                raise
            except errors.CommunicationError as problem:
                log.info("%s is dropped from the subscribers: %s", listener, problem)
                self.unsubscribe(listener)
        return len(self._subscribers)

    def drop_gone(self) -> None:
        """Forget the subscribers whose connections have ended, without calling anybody."""
        with self._lock:
            self._subscribers = [listener for listener in self._subscribers if _is_there(listener)]


def _is_there(listener: Proxy) -> bool:
    pool = listener._objserver_stub.pool
    if isinstance(pool, LinkPool):
        try:
            pool.take(None)
        except errors.ConnectFailed:
            return False
    return True
