"""Host Python objects and let any process call them as if they were local.

    from objserver import ObjectServer, Proxy, expose, Persistent

See README.md for the first five minutes and docs/ for the rest.
"""

from typing import TYPE_CHECKING, Any

from objserver import client, errors
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
from objserver.client import Proxy, Publisher, connect, invoke
from objserver.invocation import Call, Interceptor, current
from objserver.references import Reference, object_id
from objserver.server import ObjectServer
from objserver.settings import Limits, ServerSettings

if TYPE_CHECKING:
    from objserver.client import AsyncProxy, Promise, connect_async

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


def __getattr__(name: str) -> Any:
    """What needs asyncio is loaded when it is first asked for."""
    if name not in ("AsyncProxy", "Promise", "connect_async"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(client, name)
    return value
