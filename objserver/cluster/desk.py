"""The desk of a cluster: the object through which people and programs ask it about itself, and direct it.

Every node has one, under the same id, and each answers for the whole cluster.  Who is there and whose an
object is says the store; what a node has to do itself, hand an object over or drain, its own desk is asked
for, by a call like everybody's.  So it does not matter which node is asked, nor whether some are gone.  Who
may call it, the rules say, as for any object.

What the nodes say of themselves (objects, calls, queues) is as old as their last renewal, a third of a lease.

The members that end in `_here` are for desks among each other.  They name the life that is meant: if that has
ended, a proxy finds its way to another node, which must not do it in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ormsgpack

from objserver import errors
from objserver.adapter import expose, idempotent, readonly
from objserver.client import Proxy
from objserver.cluster.entry import Entry
from objserver.machine import machine
from objserver.references import CLUSTER_ID, Location, Reference
from objserver.storage import Elsewhere, Store

if TYPE_CHECKING:
    from objserver.cluster.node import ClusterNode
    from objserver.server import ObjectServer

__all__ = ["Desk"]

PAGE_MAX = 1_000
"""Objects in one answer: some 100 KB."""
PATIENCE_S = 30.0
"""For what runs in an object that is to be handed over: as long as a server that stops gives it."""
LEEWAY_S = 5.0
"""The other node says itself that it took too long; this is for its answer."""
FOLLOWED_MAX = 4
"""An object that has moved on so often, while it was to be moved, is moved by somebody else."""


@expose
class Desk:
    """See the module's essay.  Everything it answers is plain data."""

    def __init__(self, node: ClusterNode, server: ObjectServer, store: Store) -> None:
        self._node = node
        self._server = server
        self._store = store
        self._machine = machine.get()

    # -- asking --------------------------------------------------------------------------------------

    @readonly
    def status(self) -> dict[str, Any]:
        """The name of the `cluster`, which node has `answered`, and its `nodes`, in order of name.

        A node's `state` is "up", "draining", "silent" (its lease is over, and it has not said goodbye) or
        "dead"; `lease_s` are the seconds left.  What it says of itself: Persistent objects that are active
        (`objects`), calls since it began (`calls`) and in a second (`load`), and so on.
        """
        return {
            "cluster": self._node.cluster,
            "answered": self._node.name,
            "nodes": [
                {
                    "node": row.name,
                    "life": row.life,
                    "address": row.address,
                    "state": "silent" if row.left_s <= 0 and row.state != "dead" else row.state,
                    "lease_s": max(0.0, row.left_s),
                    **_facts(row.facts),
                }
                for row in self._store.nodes()
            ],
        }

    @readonly
    def tally(self) -> dict[str, int]:
        """By node, how many objects it owns, active or not.  The store counts them, so it takes a while if
        they are millions."""
        names = {row.life: row.name for row in self._store.nodes()}
        return {names[life]: count for life, count in self._store.tally().items() if life in names}

    @readonly
    def objects(
        self, node: str, after: tuple[str, str] | None = None, limit: int = PAGE_MAX
    ) -> list[tuple[str, str]]:
        """Type and key of the objects that a node owns, in order; only those behind `after`."""
        return self._store.owned(self._live(node).life, max(1, min(limit, PAGE_MAX)), after)

    @readonly
    def where(self, object_id: str) -> dict[str, Any]:
        """At which `node`, and `address`, an object is; both None if nobody has it: then who is called for it
        first takes it, or its placement decides."""
        name = self._server.adapter.stored_name(object_id)
        found = self._store.owners([name]).get(name)
        if found is None:
            return {"object": object_id, "node": None, "address": None}
        names = {row.life: row.name for row in self._store.nodes()}
        return {"object": object_id, "node": names.get(found.life), "address": found.address}

    @readonly
    def entry(self) -> str:
        """The single address that clients know of the cluster; empty where they know all nodes."""
        return Entry.of(self._store).single

    # -- directing -----------------------------------------------------------------------------------

    @idempotent
    def set_entry(self, single: str) -> None:
        """From now on clients know this single address; empty: all nodes.  ValueError if it is no address.

        Calls go on meanwhile.  All nodes have seen it after a third of a lease, and proxies that are used a
        few seconds later; then the address that they knew before may go.
        """
        Entry(single).set(self._store)
        self._node.renew()

    @idempotent
    def migrate(self, object_id: str, to: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Move an object to the node named `to`; the answer is that of `where`.

        What runs in it ends first, what waits follows it.  ObjectNotFound if it was never stored; ValueError
        if no such node takes objects; CallTimeout if what runs in it takes longer than `timeout_s`: then it
        stays.
        """
        name = self._server.adapter.stored_name(object_id)
        if self._store.load(*name) is None:
            raise errors.ObjectNotFound(f"{object_id} was never stored, so there is nothing to move")
        for _ in range(FOLLOWED_MAX):
            found = self._store.owners([name]).get(name)
            if found is None or found.life == self._node.owner:
                settled = self.hand_over_here(self._node.owner, object_id, to, timeout_s)
            else:
                with self._asking(found, timeout_s) as other:
                    settled = other.hand_over_here(found.life, object_id, to, timeout_s)
            if settled:
                return self.where(object_id)
        raise errors.ServerBusy(
            f"{object_id} has moved {FOLLOWED_MAX} times meanwhile; somebody else moves it"
        )

    @idempotent
    def drain(self, node: str, timeout_s: float = PATIENCE_S) -> bool:
        """Have a node hand over what it has, and take no more: then it can be stopped, and nobody waits.

        False if something still runs there after `timeout_s`; it is handed over when it ends.  ValueError if
        there is no such node, or nobody who would take over.
        """
        row = self._live(node)
        if row.life == self._node.owner:
            return self.drain_here(row.life, timeout_s)
        with self._asking(Elsewhere(row.life, row.address), timeout_s) as other:
            return bool(other.drain_here(row.life, timeout_s))

    # -- between desks -------------------------------------------------------------------------------

    @idempotent
    def hand_over_here(self, life: str, object_id: str, to: str, timeout_s: float) -> bool:
        """Hand over an object of this node's; False if it is somewhere else."""
        self._check_meant(life)
        name = self._server.adapter.stored_name(object_id)
        if not any(other.name == to for other in self._node.candidates()):
            self._node.renew()  # it may have come just now
        try:
            with self._waiting():
                self._node.migrate(*name, to, timeout_s)
                if to == self._node.name:  # it may have been nobody's
                    self._node.acquire(*name, sent=True)
        except errors.Moved:
            return False
        return True

    @idempotent
    def drain_here(self, life: str, timeout_s: float) -> bool:
        """Drain this node; False if something still runs."""
        self._check_meant(life)
        self._node.renew()  # who else is there, as of now
        if not any(other.life != life for other in self._node.candidates()):
            raise ValueError(f"nobody would take over from {self._node.name!r}; start another node first")
        with self._waiting():
            self._node.drain(self._machine.monotonic() + timeout_s)
        return not self._server.adapter.has_persistent

    def _check_meant(self, life: str) -> None:
        if life != self._node.owner:
            raise errors.ObjectError(
                f"the node that has to do it does not answer: it has ended, or begun again; this is "
                f"{self._node.name!r}, and has done nothing"
            )

    def _live(self, node: str) -> Any:
        rows = [row for row in self._store.nodes() if row.left_s > 0 and row.state != "dead"]
        for row in rows:
            if row.name == node:
                return row
        names = [row.name for row in rows]
        hint = errors.did_you_mean(node, names)
        raise ValueError(f"no node {node!r} is up; there are {', '.join(names) or 'none'}{hint}")

    @contextmanager
    def _asking(self, where: Elsewhere, timeout_s: float) -> Iterator[Proxy]:
        """The desk of another node, as a client of it."""
        itself = self._server.itself
        with Proxy(
            Reference("PYRO", CLUSTER_ID, Location.parse(where.address)),
            timeout_s=timeout_s + LEEWAY_S,
            tls=itself.tls,
            credentials=itself.credentials,
        ) as other:
            yield other

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """The worker waits for others; one that is alone cannot."""
        if self._server.engine.nobody_else_works:
            raise errors.Deadlock(
                f"node {self._node.name!r} has one worker (workers=1), which cannot wait for what it has to "
                "do itself; stop the node instead, that hands over too"
            )
        self._server.engine.about_to_block()
        try:
            yield
        finally:
            self._server.engine.no_longer_blocked()


def _facts(packed: bytes) -> dict[str, Any]:
    facts = ormsgpack.unpackb(packed) if packed else {}
    return facts if isinstance(facts, dict) else {}
