"""Calls made for those who do not go where an object is: stock clients, calls without an answer, and all
clients where the cluster has a single entry.

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
        self.relayed += 1
        flags = 0  # also for one without an answer: we have to hear where the object is, and nobody waits
        method, args, kwargs = invocation.method, invocation.args, dict(invocation.kwargs)
        if invocation.batch is not None:
            flags |= Flag.BATCH
            method, args = "<batch>", [(name, list(given), named) for name, given, named in invocation.batch]
        elif invocation.member is not None and method in ("__getattr__", "__setattr__"):
            args = (invocation.member.name, *args)  # the adapter has found the attribute, and taken its name
        stub = proxy._objserver_stub
        if invocation.call is None:
            return stub.invoke(method, args, kwargs, flags)
        # The same call, wherever its client makes it the next time.
        stub = proxy.calling(annotations={MOVED: invocation.digest})._objserver_stub
        return stub.pass_on(method, args, kwargs, flags, invocation.call, invocation.acked, invocation.asks)

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
