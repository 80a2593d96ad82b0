"""What a reference becomes when it arrives inside a value: a proxy, of the kind of the one it came through.

A reference to an exported object is leased, and its proxy keeps the lease.  One to an object of a client gets
a proxy that calls on the connection which the client made.

A server shows its own objects who it is (`Itself`), and a client may name any of them in an argument.  So
where it is known who calls, such a proxy asks before it connects and before each call whether all whom the
reference came from may do that themselves.  What such a call returns came from them too.

Nothing is connected to because its address stood in a message.  So a lease begins at once only where there
is a connection already, to the client or to the server that sent the reference; elsewhere it begins when the
proxy is first used.
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

from objserver import references
from objserver.client.leases import LeaseKeeper
from objserver.client.pool import ConnectionPool, LinkPool
from objserver.client.proxy import Proxy, ProxyOptions
from objserver.client.stub import Stub
from objserver.codecs import Types
from objserver.invocation import Call
from objserver.references import LEASED, Find, Lend, Location, Marks, Origin, Reference

__all__: list[str] = []

_leases = [LeaseKeeper()]
"""One; a fork begins another, for it has no thread that would renew, and holds nothing itself."""
os.register_at_fork(after_in_child=lambda: _leases.__setitem__(0, LeaseKeeper()))
LEASE_TIMEOUT_S = 5.0
"""For telling a server what is still held; it is told again soon."""


def _arrived(reference: Reference, find: Find | None, origin: Any, marks: Marks | None) -> Any:
    """The proxy of a reference that came inside a value; `origin` is the pool of the proxy it came
    through, or where it came to."""
    options: ProxyOptions = {}
    if origin is not None and isinstance(origin.types, Types):
        options["types"] = origin.types
    from_there = False
    home: Origin | None = None
    if (
        isinstance(origin, (ConnectionPool, Origin))
        and reference.location == origin.location is not None
        and reference.protocol == "PYRO"  # a name leads elsewhere, whoever is asked for it
    ):
        # The same server, which has been shown these already; another one is shown nothing.
        from_there = isinstance(origin, ConnectionPool)
        home, marks = _lent(origin, marks)
        if home is None or marks is not None:
            options["handshake"] = origin.handshake
            options["tls"], options["credentials"] = origin.tls, origin.credentials
        if home is not None and home.lend is not None and marks is not None:
            options["interceptors"] = (partial(_ask_first, home.lend, marks),)
    proxy = Proxy(reference, **options)
    pool: ConnectionPool | LinkPool
    if find is None:
        pool = proxy._objserver_stub.pool
        assert isinstance(pool, ConnectionPool)
        pool.rule = None if origin is None else origin.rule
        if home is not None and marks is not None:
            pool.home, pool.marks = home, marks
            pool.rule = partial(_may_connect, home, marks, reference.object_id)
    else:
        pool = LinkPool(reference, find)
        proxy.__dict__["_objserver_stub"] = Stub(pool, None)
    if reference.object_id.startswith(LEASED):
        hold = partial(_leases[0].arrived, _held_as(reference, find), partial(_ask, find, options))
        if from_there or isinstance(pool, LinkPool):
            pool.lease = hold()
        else:
            pool.begin_lease = cache(hold)
    if isinstance(origin, ConnectionPool) and origin.asynchronous:
        from objserver.client.async_proxy import AsyncProxy

        return AsyncProxy(proxy, **options)
    return proxy


def _held_as(reference: Reference, find: Find | None) -> Reference:
    """Under what it is held: another client that says it has the same id is asked about its own objects."""
    whose = getattr(find, "whose", None)
    if not whose or reference.location is None:
        return reference
    location = dataclasses.replace(reference.location, client=f"{reference.location.client} of {whose}")
    return dataclasses.replace(reference, location=location)


def _lent(origin: ConnectionPool | Origin, marks: Marks | None) -> tuple[Origin | None, Marks | None]:
    """The server that lends its rights, if one does; and whom the reference came from, None if nobody
    knows."""
    if isinstance(origin, Origin):
        return (origin, origin.marks) if origin.lend is not None else (None, None)
    if origin.home is None or marks is None:
        return origin.home, None
    before = origin.marks or []
    return origin.home, [*before, *(mark for mark in marks if mark not in before)]


def _ask_first(lend: Lend, marks: Marks, call: Call) -> AbstractContextManager[None]:
    """An interceptor: nothing is called that those may not call whom the reference came from."""
    lend(marks, call.object_id, call.method, call.args)
    return nullcontext()


def _may_connect(home: Origin, marks: Marks, object_id: str, location: Location) -> bool:
    """A rule that also sees to it that nobody learns what there is."""
    assert home.lend is not None
    home.lend(marks, object_id, None, ())
    return home.rule is None or home.rule(location)


def _ask(find: Find | None, options: ProxyOptions, daemon: Reference, method: str, argument: Any) -> Any:
    if find is not None:
        return Stub(LinkPool(daemon, find), LEASE_TIMEOUT_S).invoke(method, (argument,), {})
    options = {**options, "timeout_s": LEASE_TIMEOUT_S}
    with Proxy(daemon, **options) as proxy:
        return proxy._objserver_stub.invoke(method, (argument,), {})


references.on_arrival(_arrived)
