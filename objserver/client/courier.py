"""The courier: brings the messages of Persistent objects to their targets.

A message is a numbered call of the object that sent it; see `adapter.outbox`.  The servers of a process share
the connections.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from objserver import references
from objserver.client.pool import ConnectionPool
from objserver.client.proxy import Proxy, ProxyOptions
from objserver.invocation import CallId
from objserver.machine import machine
from objserver.references import Origin, Reference

__all__: list[str] = []

TIMEOUT_S = 10.0
"""For one attempt: the outbox makes others."""
TARGETS_MAX = 256
"""Objects that connections are kept to."""


class _Targets:
    """Of one process, the proxies by URI, with the senders that their servers know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._proxies: OrderedDict[Any, tuple[Proxy, set[bytes]]] = OrderedDict()

    def of(self, target: str, origin: Origin | None) -> tuple[Proxy, set[bytes]]:
        options: ProxyOptions = {"timeout_s": TIMEOUT_S}
        reference, home = Reference.parse(target), None
        if origin is not None and origin.location == reference.location and reference.protocol == "PYRO":
            options["tls"], options["credentials"] = origin.tls, origin.credentials
            home = origin if origin.lend is not None else None
        key = target, options.get("tls"), options.get("credentials"), home and home.own
        with self._lock:
            found = self._proxies.pop(key, None)
            if found is None:
                found = Proxy(target, **options), set()
                pool = found[0]._objserver_stub.pool
                assert isinstance(pool, ConnectionPool)
                pool.home = home  # who was to be asked was asked when it was sent
            self._proxies[key] = found
            if len(self._proxies) > TARGETS_MAX:
                self._proxies.popitem(last=False)
        return found


def _deliver(
    target: str, method: str, payload: bytes, call: CallId, acked: int, origin: Origin | None
) -> None:
    proxy, senders = machine.get().own(_Targets).of(target, origin)
    stub = proxy._objserver_stub
    stub.metadata()
    if stub.pool.exactly_once and call.client not in senders:
        stub.open_session(call.client, forever=True)
        senders.add(call.client)
    stub.deliver(method, payload, call, acked)


references.on_delivery(_deliver)
