"""A server as a node of a cluster: its lease, its view of the others, and whose each object is.

A node lives.  It joins with a new life, renews the lease of that life in time, and learns with each renewal
who else there is.  When the store says that its life is over (another has taken its name, or somebody
declared it dead) it begins another: what it had active is given up, and acquired again when it is called.

Whose an object is, the store decides, in one statement.  Everything else here is advice: the view of the
others is as old as the last renewal, routes are as old as a second.  A node that is wrong sends a call to
where it is sent on, or commits what the store refuses.  No clock and no view is part of why nothing is lost
or done twice; the lease only says when somebody may take over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ormsgpack

from objserver import errors
from objserver.cluster.placement import Candidate, Placement, PreferLocal
from objserver.cluster.relay import Relays
from objserver.cluster.routes import ROUTES_MAX, Routes
from objserver.logs import escaping
from objserver.machine import machine
from objserver.references import Location, object_id
from objserver.storage import Elsewhere, Record, Store
from objserver.storage import Node as Row

if TYPE_CHECKING:
    from objserver.server import ObjectServer

__all__ = ["ClusterNode"]

log = escaping(logging.getLogger("objserver.cluster"))

RENEWALS = 3
"""In the time of a lease: one may be late, and one may fail."""


class ClusterNode:
    """See the module's essay, and `objserver.server.node.Node`.  Any thread may call any method."""

    member = True

    def __init__(self, server: ObjectServer, store: Store, cluster: str) -> None:
        self._server = server
        self._store = store
        self.cluster = cluster
        self.address = server.address
        self.name = server.node_name or server.address
        self.placement: Placement = server.placement or PreferLocal()
        self._lease_s = server.settings.node_lease_s
        self._machine = machine.get()
        self.owner = self._new_life()
        self._state = "up"
        self._lock = threading.Lock()
        self._wake = self._machine.Condition()
        self._thread: Any = None
        self._stopping = False
        self._view: Sequence[Row] = ()
        self._routes = Routes()
        self._leaving: dict[tuple[str, str], str] = {}
        """What is being handed over, and the life that gets it."""
        self._relays = Relays(Location.parse(server.address), server.itself)
        self.relay = self._relays.call
        self._moved = self._handed_over = self._lives = self._failed_renewals = 0
        self._counted = self._machine.monotonic(), 0
        """When the calls were counted last, and how many there had been."""

    def __repr__(self) -> str:
        return f"<ClusterNode {self.name} of {self.cluster}, life {self.owner[:8]}, {self._state}>"

    def _new_life(self) -> str:
        return self._machine.random_bytes(16).hex()

    # -- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Join.  StoreError if the store does not let us."""
        self._store.join(self.name, self.owner, self.address, self._lease_s, self._facts())
        self._lives += 1
        self._seen(self._store.nodes())
        self._thread = self._machine.start(self._run, "objserver-node")

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping, self._lease_s / RENEWALS)
                if self._stopping:
                    return
            self.renew()

    def renew(self) -> None:
        """Say that we live, and see who else does; begin another life if this one is over."""
        life = self.owner
        try:
            nodes = self._store.renew(life, self._lease_s, self._facts(), self._state)
            if nodes is None:
                self._begin_again(life)
                nodes = self._store.nodes()
        except errors.StoreError as problem:
            self._failed_renewals += 1
            log.warning("node %s could not renew its lease: %s", self.name, problem)
            return
        self._seen(nodes)

    def _begin_again(self, over: str) -> None:
        with self._lock:
            if self.owner != over or self._stopping:
                return
            self.owner = self._new_life()
        log.warning(
            "node %s was silent for so long that it is taken for dead; it begins again and gives up "
            "what it had active",
            self.name,
        )
        self._store.join(self.name, self.owner, self.address, self._lease_s, self._facts())
        self._lives += 1
        self._server.adapter.passivate_persistent()

    def _facts(self) -> bytes:
        """What the others, and who watches, want to know of us."""
        adapter = self._server.adapter
        now, calls = self._machine.monotonic(), adapter.invocations
        (then, before), self._counted = self._counted, (now, calls)
        load = (calls - before) / (now - then) if now > then else 0.0
        return ormsgpack.packb({"objects": adapter.active, "calls": calls, "load": load})

    def _seen(self, nodes: Sequence[Row]) -> None:
        with self._lock:
            self._view = nodes
            self._routes.keep({node.life for node in nodes if node.left_s > 0})

    @property
    def nodes(self) -> Sequence[Row]:
        """All nodes, as they were at the last renewal."""
        return self._view

    @property
    def entries(self) -> tuple[str, ...]:
        """Addresses of the nodes that take calls: this one, and then the others."""
        others = [n.address for n in self._view if n.left_s > 0 and n.address != self.address]
        return (self.address, *others)

    def candidates(self) -> list[Candidate]:
        """Nodes that may be given objects."""
        found = []
        for row in self._view:
            if row.left_s > 0 and row.state == "up" and (row.life != self.owner or self._state == "up"):
                facts = ormsgpack.unpackb(row.facts) if row.facts else {}
                objects, load = facts.get("objects", 0), facts.get("load", 0.0)
                found.append(Candidate(row.name, row.life, row.address, objects, load))
        return found

    def drain(self, deadline: float) -> None:
        """Hand over what is active here: it is passivated as its calls end, and those that come are sent on.

        Until `deadline` on the machine's clock.
        """
        self._state = "draining"
        self.renew()
        if not any(node.life != self.owner for node in self.candidates()):
            return  # nobody is there to have it
        adapter = self._server.adapter
        adapter.passivate_persistent()
        pause = self._machine.Event()
        while adapter.has_persistent and self._machine.monotonic() < deadline:
            pause.wait(0.002)

    def stop(self) -> None:
        """Leave: what is still ours is free."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
            try:
                self._store.leave(self.owner)
            except errors.StoreError as problem:
                log.warning("node %s left without a word, its lease will end: %s", self.name, problem)
        self._relays.close()

    # -- whose it is ---------------------------------------------------------------------------------

    def look(self, type: str, key: str) -> None:
        """See Ownership."""
        with self._lock:
            where = self._routes.find(type, key, self._machine.monotonic())
        if where is not None:
            raise self._moved_to(type, key, where.address)

    def acquire(self, type: str, key: str, sent: bool) -> tuple[str, Record]:
        """See Ownership.

        A node that the store does not answer sends its callers to another: that may be luckier, and if it is
        not they come back.
        """
        try:
            return self._take(type, key, sent)
        except errors.StoreError as problem:
            others = [node for node in self._view if node.left_s > 0 and node.life != self.owner]
            if not others:
                raise
            other = others[int(self._machine.uniform(0, len(others))) % len(others)]
            raise self._moved_to(type, key, other.address) from problem

    def _take(self, type: str, key: str, sent: bool) -> tuple[str, Record]:
        name = type, key
        to = self._leaving.get(name)
        if to is not None:
            self._hand_over(name, to)
        elif self._state == "draining":
            self._send_away(name)
        elif not sent:
            self._place(name)
        life, found = self._acquire(name)
        if found is None:
            self.renew()  # we were silent for too long
            life, found = self._acquire(name)
        if found is None:
            raise errors.Unsettled(f"{type} {key!r} is not acquired: this node is taken for dead")
        if isinstance(found, Elsewhere):
            self._learn(name, found)
            raise self._moved_to(type, key, found.address)
        with self._lock:
            self._routes.forget(type, key)
        return life, found

    def _acquire(self, name: tuple[str, str]) -> tuple[str, Record | Elsewhere | None]:
        life = self.owner  # it may be over when this returns, and then so is what it has
        return life, self._store.acquire([name], life, member=True).get(name)

    def _place(self, name: tuple[str, str]) -> None:
        """Moved, if the object is better placed elsewhere, and nobody has it yet."""
        nodes = self.candidates()
        if not nodes:
            return
        chosen = self.placement.place(*name, nodes, self.owner)
        if chosen.life == self.owner:
            return
        where = self._store.owners([name]).get(name)
        if where is None:
            raise self._moved_to(*name, chosen.address)
        if where.life != self.owner:
            self._learn(name, where)
            raise self._moved_to(*name, where.address)

    def _send_away(self, name: tuple[str, str]) -> None:
        """While this node drains: whatever it is called for goes to another, if there is one."""
        others = [node for node in self.candidates() if node.life != self.owner]
        if others:
            self._hand_over(name, self.placement.place(*name, others, self.owner).life)

    def _hand_over(self, name: tuple[str, str], to: str) -> None:
        """Moved, to the life that has the object now.  Called where no call runs in it, so its state and the
        replies to its calls are in the store."""
        target = next((node for node in self._view if node.life == to and node.left_s > 0), None)
        if target is None:
            self._leaving.pop(name, None)
            return  # it has gone meanwhile: the object stays
        life, found = self._acquire(name)
        if isinstance(found, Elsewhere):
            target_address = found.address
        else:
            target_address = target.address
            if found is not None:
                self._store.release([(*name, found.epoch)], life, to)
                self._handed_over += 1
        self._leaving.pop(name, None)
        self._learn(name, Elsewhere(to, target_address))
        raise self._moved_to(*name, target_address)

    def _learn(self, name: tuple[str, str], where: Elsewhere) -> None:
        with self._lock:
            self._routes.learn(*name, where, self._machine.monotonic())

    def _moved_to(self, type: str, key: str, address: str) -> errors.Moved:
        self._moved += 1
        moved = errors.Moved(f"{object_id(type, key) if key else type} is at {address}")
        moved.address = address
        return moved

    # -- moving objects ------------------------------------------------------------------------------

    def migrate(self, type: str, key: str, to: str, timeout_s: float) -> None:
        """Hand an object over to the node named `to`; what runs in it ends first, what waits follows it.

        ValueError if there is no such node, or it takes no objects.  If the object is another node's, nothing
        is done: Moved.  CallTimeout if what runs in it does not end in `timeout_s`: then it stays.
        """
        target = next((node for node in self.candidates() if node.name == to), None)
        if target is None:
            names = ", ".join(sorted(node.name for node in self.candidates()))
            raise ValueError(f"no node {to!r} takes objects now; there are {names or 'none'}")
        if target.life == self.owner:
            return
        name = type, key
        where = self._store.owners([name]).get(name)
        if where is not None and where.life != self.owner:
            raise self._moved_to(type, key, where.address)
        self._leaving[name] = target.life
        whole = object_id(type, key) if key else type
        self._server.adapter.passivate(whole)
        # In its turn, after what runs: if nobody else has called it by then, this hands it over.
        touched = self._machine.Event()
        outcome: list[BaseException | None] = []

        def done(problem: BaseException | None) -> None:
            outcome.append(problem)
            touched.set()

        try:
            self._server.adapter.touch(whole, done)
        except errors.ObjServerError as problem:
            done(problem)
        if not touched.wait(timeout_s):
            if self._leaving.pop(name, None) is not None:
                raise errors.CallTimeout(
                    f"{whole} was not handed over to {to}: what runs in it did not end in {timeout_s} s"
                )
            return
        found = outcome.pop()
        if isinstance(found, errors.Moved) and found.__cause__ is None and found.address == target.address:
            return
        self._leaving.pop(name, None)
        raise (found and (found.__cause__ or found)) or errors.ServerBusy(
            f"{whole} was not handed over to {to}: {to} is gone, or a stream of the object is open"
        )

    # -- looking in ----------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counts, and the bounds they run against."""
        return {
            "cluster": self.cluster,
            "node": self.name,
            "node_state": self._state,
            "nodes": len([node for node in self._view if node.left_s > 0]),
            "lives": self._lives,
            "renewals_failed": self._failed_renewals,
            "calls_sent_on": self._moved,
            "calls_relayed": self._relays.relayed,
            "objects_handed_over": self._handed_over,
            "routes": len(self._routes),
            "routes_max": ROUTES_MAX,
        }
