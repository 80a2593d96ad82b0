"""Proxies and what they need: connections, resolution of names.

What needs asyncio is loaded when it is first asked for: most programs call and wait, and start faster
without.
"""

import importlib
from typing import TYPE_CHECKING, Any

import objserver.client.arrival  # noqa: F401  (it says what a reference becomes)
from objserver.client.nameservers import NameServers
from objserver.client.picking import LeastLoaded, PickPolicy, RandomPick, SameHostFirst
from objserver.client.proxy import Batch, ItemStream, Proxy, connect, invoke
from objserver.client.resolve import name_server, name_servers

if TYPE_CHECKING:
    from objserver.client.async_proxy import AsyncItemStream, AsyncProxy, connect_async
    from objserver.client.promises import Promise
    from objserver.client.publisher import Publisher

__all__ = [
    "AsyncItemStream",
    "AsyncProxy",
    "Batch",
    "ItemStream",
    "LeastLoaded",
    "NameServers",
    "PickPolicy",
    "Promise",
    "Proxy",
    "Publisher",
    "RandomPick",
    "SameHostFirst",
    "connect",
    "connect_async",
    "invoke",
    "name_server",
    "name_servers",
]

_LATER = {
    "AsyncItemStream": "async_proxy",
    "AsyncProxy": "async_proxy",
    "Promise": "promises",
    "Publisher": "publisher",
    "connect_async": "async_proxy",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = value
    return value
