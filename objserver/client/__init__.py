"""Proxies and what they need: connections, resolution of names."""

import objserver.client.arrival  # noqa: F401  (it says what a reference becomes)
from objserver.client.async_proxy import AsyncItemStream, AsyncProxy, connect_async
from objserver.client.promises import Promise
from objserver.client.proxy import Batch, ItemStream, Proxy, connect, invoke
from objserver.client.publisher import Publisher
from objserver.client.resolve import name_server

__all__ = [
    "AsyncItemStream",
    "AsyncProxy",
    "Batch",
    "ItemStream",
    "Promise",
    "Proxy",
    "Publisher",
    "connect",
    "connect_async",
    "invoke",
    "name_server",
]
