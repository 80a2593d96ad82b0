"""The courier: brings the messages of Persistent objects to their targets.

A message is a numbered call of the object that sent it; see `adapter.outbox`.  The servers of a process share
the connections.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from objserver import references
from objserver.client.proxy import Proxy
from objserver.invocation import CallId

__all__: list[str] = []

TIMEOUT_S = 10.0
"""For one attempt: the outbox makes others."""
TARGETS_MAX = 256
"""Objects that connections are kept to."""
_lock = threading.Lock()
_proxies: OrderedDict[str, tuple[Proxy, set[bytes]]] = OrderedDict()
"""By URI, with the senders that its server knows."""


def _deliver(target: str, method: str, payload: bytes, call: CallId, acked: int) -> None:
    with _lock:
        found = _proxies.pop(target, None) or (Proxy(target, timeout_s=TIMEOUT_S), set())
        _proxies[target] = found
        if len(_proxies) > TARGETS_MAX:
            _proxies.popitem(last=False)
    proxy, senders = found
    stub = proxy._objserver_stub
    stub.metadata()
    if stub.pool.exactly_once and call.client not in senders:
        stub.open_session(call.client, forever=True)
        senders.add(call.client)
    stub.deliver(method, payload, call, acked)


references.on_delivery(_deliver)
