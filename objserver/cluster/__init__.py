"""Clusters: servers that share a store, and of which any answers for any object.

Importing this is what lets `ObjectServer(cluster=...)` make nodes; the rest is loaded with the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from objserver.cluster.placement import ByHash, LeastLoaded, Pinned, Placement, PreferLocal
from objserver.server.node import Node, on_found

if TYPE_CHECKING:
    from objserver.server import ObjectServer
    from objserver.storage import Store

__all__ = ["ByHash", "LeastLoaded", "Pinned", "Placement", "PreferLocal"]


def _found(server: ObjectServer, store: Store, cluster: str) -> Node:
    from objserver.cluster.node import ClusterNode

    return ClusterNode(server, store, cluster)


on_found(_found)
