"""Calls made for those who do not know of clusters: stock clients, and calls without an answer.

Their call has come to a node that does not have the object.  It makes the call at the one that has it, as a
client of its own, and passes the result on.  A proxy is kept for each object that is called so, so that the
next call knows the way.  It follows the object as every proxy does.  When the other node dies it waits, and
asks this one, which takes the object over when its time has come.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from objserver import errors
from objserver.adapter import Invocation
from objserver.client import Proxy
from objserver.client.pool import ConnectionPool
from objserver.references import Location, Reference
from objserver.security import Itself
from objserver.wire import Flag
from objserver.wire.extension import MOVED

__all__ = ["Relays"]

RELAYS_MAX = 1_000
"""Proxies kept; each has a connection or two.  Beyond it that used longest ago is closed."""


class Relays:
    """Of one node.  Any thread may call any method."""

    def __init__(self, here: Location, itself: Itself) -> None:
        self._here = here
        self._itself = itself
        self._lock = threading.Lock()
        self._proxies: OrderedDict[str, Proxy] = OrderedDict()
        self.relayed = 0

    def __len__(self) -> int:
        return len(self._proxies)

    def call(self, invocation: Invocation, moved: errors.Moved) -> Any:
        """Make the call where the object is; its result, or what it raises."""
        proxy = self._proxy(invocation.object_id, moved)
        stub = proxy._objserver_stub
        self.relayed += 1
        flags = Flag.ONEWAY if invocation.oneway else 0
        if invocation.batch is not None:
            calls = [(method, list(args), kwargs) for method, args, kwargs in invocation.batch]
            return stub.invoke("<batch>", calls, {}, flags | Flag.BATCH)
        args = invocation.args
        if invocation.member is not None and invocation.method in ("__getattr__", "__setattr__"):
            args = (invocation.member.name, *args)  # the adapter has found the attribute, and taken its name
        return stub.invoke(invocation.method, args, dict(invocation.kwargs), flags)

    def _proxy(self, object_id: str, moved: errors.Moved) -> Proxy:
        with self._lock:
            proxy = self._proxies.get(object_id)
            if proxy is not None:
                self._proxies.move_to_end(object_id)
        if proxy is None:
            # Its own address is where the proxy asks when the other node is gone.
            made = Proxy(
                Reference("PYRO", object_id, self._here),
                tls=self._itself.tls,
                credentials=self._itself.credentials,
            ).calling(annotations={MOVED: b""})
            pool = made._objserver_stub.pool
            assert isinstance(pool, ConnectionPool)
            pool.moved(moved)
            surplus = None
            with self._lock:
                proxy = self._proxies.setdefault(object_id, made)
                if len(self._proxies) > RELAYS_MAX:
                    _, surplus = self._proxies.popitem(last=False)
            for other in (surplus, made if made is not proxy else None):
                if other is not None:
                    other.release()
        return proxy

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            proxies, self._proxies = list(self._proxies.values()), OrderedDict()
        for proxy in proxies:
            proxy.release()
