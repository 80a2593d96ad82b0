"""Proxies and what they need: connections, resolution of names."""

from objserver.client.proxy import Batch, ItemStream, Proxy, connect, invoke
from objserver.client.resolve import name_server

__all__ = ["Batch", "ItemStream", "Proxy", "connect", "invoke", "name_server"]
