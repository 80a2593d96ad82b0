"""A server as a node of a cluster: what it asks of the room above, which knows about clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from objserver import errors
from objserver.adapter import Invocation, Ownership
from objserver.storage import Store

if TYPE_CHECKING:
    from objserver.server.server import ObjectServer

__all__ = ["Found", "Node", "Placement", "found", "on_found"]


class Node(Ownership, Protocol):
    """Of one server, between its `start` and its `stop`."""

    @property
    def entries(self) -> tuple[str, ...]:
        """Addresses that lead to every object of the cluster, for clients to know."""

    def relay(self, invocation: Invocation, moved: errors.Moved) -> Any:
        """Make a call at the server that has the object; see the adapter's Relay."""

    def start(self) -> None:
        """Others may send calls here from now on."""

    def drain(self, deadline: float) -> None:
        """Hand over what it has, until `deadline` on the machine's clock."""

    def stop(self) -> None:
        """What is still this server's is free; the store is about to be closed."""

    def statistics(self) -> dict[str, Any]:
        """Counts, and the bounds they run against."""


class Placement(Protocol):
    """Where an object that nobody has is to live: see `objserver.cluster.placement`."""

    def place(self, type: str, key: str, nodes: Sequence[Any], here: str) -> Any: ...


Found = Callable[["ObjectServer", Store, str], Node]
"""Makes a server of this store a node of the cluster of this name."""

_found: list[Found] = []


def on_found(make: Found) -> None:
    """Register what makes nodes."""
    _found[:] = [make]


def found(server: ObjectServer, store: Store | None, cluster: str) -> Node:
    """The server as a node; RegistrationError if it cannot be one."""
    if store is None:
        raise errors.RegistrationError(
            f"a node of cluster {cluster!r} needs the store that the nodes share: "
            "ObjectServer(store='postgresql://...', cluster=...)"
        )
    if not _found:
        raise errors.RegistrationError("import objserver.cluster before ObjectServer(cluster=...) is made")
    return _found[0](server, store, cluster)
