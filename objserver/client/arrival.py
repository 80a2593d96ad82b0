"""What a reference becomes when it arrives inside a value: a proxy, of the kind of the one it came through.

A reference to an exported object is leased, and its proxy keeps the lease.  One to an object of a client gets
a proxy that calls on the connection which the client made.

Nothing is connected to because its address stood in a message.  So a lease begins at once only where there
is a connection already, to the client or to the server that sent the reference; elsewhere it begins when the
proxy is first used.
"""

from __future__ import annotations

import os
from functools import cache, partial
from typing import Any

from objserver import references
from objserver.client.leases import LeaseKeeper
from objserver.client.pool import ConnectionPool, LinkPool
from objserver.client.proxy import Proxy, ProxyOptions
from objserver.client.stub import Stub
from objserver.codecs import Types
from objserver.references import LEASED, Find, Origin, Reference

__all__: list[str] = []

_leases = [LeaseKeeper()]
"""One; a fork begins another, for it has no thread that would renew, and holds nothing itself."""
os.register_at_fork(after_in_child=lambda: _leases.__setitem__(0, LeaseKeeper()))
LEASE_TIMEOUT_S = 5.0
"""For telling a server what is still held; it is told again soon."""


def _arrived(reference: Reference, find: Find | None, origin: Any) -> Any:
    """The proxy of a reference that came inside a value; `origin` is the pool of the proxy it came
    through, or where it came to."""
    options: ProxyOptions = {}
    if origin is not None and isinstance(origin.types, Types):
        options["types"] = origin.types
    from_there = False
    if isinstance(origin, (ConnectionPool, Origin)) and reference.location == origin.location is not None:
        # The same server, which has been shown these already; another one is shown nothing.
        from_there = isinstance(origin, ConnectionPool)
        options["handshake"] = origin.handshake
        options["tls"], options["credentials"] = origin.tls, origin.credentials
    proxy = Proxy(reference, **options)
    pool: ConnectionPool | LinkPool
    if find is None:
        pool = proxy._objserver_stub.pool
        assert isinstance(pool, ConnectionPool)
        pool.rule = None if origin is None else origin.rule
    else:
        pool = LinkPool(reference, find)
        proxy.__dict__["_objserver_stub"] = Stub(pool, None)
    if reference.object_id.startswith(LEASED):
        hold = partial(_leases[0].arrived, reference, partial(_ask, find, options))
        if from_there or isinstance(pool, LinkPool):
            pool.lease = hold()
        else:
            pool.begin_lease = cache(hold)
    if isinstance(origin, ConnectionPool) and origin.asynchronous:
        from objserver.client.async_proxy import AsyncProxy

        return AsyncProxy(proxy, **options)
    return proxy


def _ask(find: Find | None, options: ProxyOptions, daemon: Reference, method: str, argument: Any) -> Any:
    if find is not None:
        return Stub(LinkPool(daemon, find), LEASE_TIMEOUT_S).invoke(method, (argument,), {})
    options = {**options, "timeout_s": LEASE_TIMEOUT_S}
    with Proxy(daemon, **options) as proxy:
        return proxy._objserver_stub.invoke(method, (argument,), {})


references.on_arrival(_arrived)
