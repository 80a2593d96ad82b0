"""Host Python objects and let any process call them as if they were local.

    from objserver import ObjectServer, Proxy, expose, Persistent

See README.md for the first five minutes and docs/ for the rest.
"""

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
from objserver.client import AsyncProxy, Promise, Proxy, Publisher, connect, connect_async, invoke
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
