"""The object adapter: policies, active objects, mailboxes, skeletons and invocations."""

from objserver.adapter.adapter import ObjectAdapter
from objserver.adapter.calling import Engine, not_begun
from objserver.adapter.change import Merge
from objserver.adapter.daemon import DaemonObject
from objserver.adapter.describe import describe
from objserver.adapter.exposure import expose, idempotent, oneway, readonly
from objserver.adapter.guard import Giver
from objserver.adapter.invocation import EMPTY, Caller, Invocation
from objserver.adapter.ownership import Ownership
from objserver.adapter.policies import (
    ActivationPolicy,
    Concurrent,
    PerClient,
    PerRequest,
    Persistent,
    ReadersWriter,
    Reentrant,
    Serial,
    Shared,
    ThreadingPolicy,
)
from objserver.adapter.replies import Answering

__all__ = [
    "EMPTY",
    "ActivationPolicy",
    "Answering",
    "Caller",
    "Concurrent",
    "DaemonObject",
    "Engine",
    "Giver",
    "Invocation",
    "Merge",
    "ObjectAdapter",
    "Ownership",
    "PerClient",
    "PerRequest",
    "Persistent",
    "ReadersWriter",
    "Reentrant",
    "Serial",
    "Shared",
    "ThreadingPolicy",
    "describe",
    "expose",
    "idempotent",
    "not_begun",
    "oneway",
    "readonly",
]
