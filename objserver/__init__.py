"""Host Python objects and let any process call them as if they were local.

    from objserver import ObjectServer, Proxy, expose, Persistent

See README.md for the first five minutes and docs/ for the rest.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objserver import errors
    from objserver.adapter import (
        Concurrent,
        PerClient,
        PerRequest,
        Persistent,
        ReadersWriter,
        Reentrant,
        Serial,
        Shared,
        expose,
        idempotent,
        oneway,
        readonly,
    )
    from objserver.client import (
        AsyncProxy,
        Promise,
        Proxy,
        Publisher,
        connect,
        connect_async,
        invoke,
    )
    from objserver.invocation import Call, Interceptor, current
    from objserver.references import Reference, object_id
    from objserver.server import ObjectServer
    from objserver.settings import Limits, ServerSettings

__version__ = "0.1.0"

__all__ = [
    "AsyncProxy",
    "Call",
    "Concurrent",
    "Interceptor",
    "Limits",
    "ObjectServer",
    "PerClient",
    "PerRequest",
    "Persistent",
    "Promise",
    "Proxy",
    "Publisher",
    "ReadersWriter",
    "Reentrant",
    "Reference",
    "Serial",
    "ServerSettings",
    "Shared",
    "connect",
    "connect_async",
    "current",
    "errors",
    "expose",
    "idempotent",
    "invoke",
    "object_id",
    "oneway",
    "readonly",
]


# Each name is loaded when it is first asked for: a client needs no server, and most need no asyncio.
_HOMES = {
    "adapter": (
        "Concurrent PerClient PerRequest Persistent ReadersWriter Reentrant Serial Shared "
        "expose idempotent oneway readonly"
    ),
    "client": "AsyncProxy Promise Proxy Publisher connect connect_async invoke",
    "invocation": "Call Interceptor current",
    "references": "Reference object_id",
    "server": "ObjectServer",
    "settings": "Limits ServerSettings",
}
_home_of = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("objserver.errors")
    if name not in _home_of:
        raise AttributeError(f"module 'objserver' has no attribute {name!r}")
    if name == "ObjectServer":
        importlib.import_module("objserver.cluster")  # it makes nodes of servers
    value = getattr(importlib.import_module(f"objserver.{_home_of[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
