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
import math
import threading
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import ormsgpack

import objserver
from objserver import errors
from objserver.adapter import Concurrent, Shared
from objserver.cluster.balance import Given, gives
from objserver.cluster.desk import Desk
from objserver.cluster.entry import Entry
from objserver.cluster.placement import Candidate, Placement, PreferLocal
from objserver.cluster.relay import Relays
from objserver.cluster.routes import ROUTES_MAX, Routes
from objserver.logs import escaping
from objserver.machine import machine
from objserver.references import CLUSTER_ID, Location, object_id
from objserver.storage import Elsewhere, Record, Store
from objserver.storage import Node as Row

if TYPE_CHECKING:
    from objserver.server import ObjectServer

__all__ = ["ClusterNode"]

log = escaping(logging.getLogger("objserver.cluster"))

RENEWALS = 3
"""In the time of a lease: one may be late, and one may fail."""
GIVING_S = 1.0
"""How long is waited for one object that is to be given away: another will do."""
CLOCKS_DIFFER = 0.1
"""By what part of a lease this machine's clock may be slower than the database's, before fast reads are
stale."""


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
        self._renewed_at = -math.inf
        """When the last renewal that succeeded was sent: the lease lasts from then on, at least."""
        self._view: Sequence[Row] = ()
        self._entry = Entry()
        self._routes = Routes()
        self._leaving: dict[tuple[str, str], str] = {}
        """What is being handed over, and the life that gets it."""
        self._relays = Relays(Location.parse(server.address), server.itself)
        self.relay = self._relays.call
        self._moved = self._handed_over = self._lives = self._failed_renewals = 0
        self._given = Given()
        self._is_giving = False
        self._giving: Any = None
        """The thread that gives objects away."""
        self._objects_given = 0
        self._balanced_at = 0
        """How many calls there had been then."""
        self._counted = self._machine.monotonic(), 0
        """When the calls were counted last, and how many there had been."""

    def __repr__(self) -> str:
        return f"<ClusterNode {self.name} of {self.cluster}, life {self.owner[:8]}, {self._state}>"

    def _new_life(self) -> str:
        return self._machine.random_bytes(16).hex()

    # -- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Join.  StoreError if the store does not let us."""
        self._server.adapter.register(
            Desk(self, self._server, self._store), CLUSTER_ID, Shared(), Concurrent()
        )
        self._join()
        self._entry = Entry.of(self._store)
        self._seen(self._store.nodes())
        self._thread = self._machine.start(self._run, "objserver-node")

    def _run(self) -> None:
        for turn in count(1):
            with self._wake:
                self._wake.wait_for(lambda: self._stopping, self._lease_s / RENEWALS)
                if self._stopping:
                    return
            self.renew()
            if turn % RENEWALS == 0:
                self.balance()  # not every time: what was given before shows in what the others say now

    def renew(self) -> None:
        """Say that we live, and see who else does; begin another life if this one is over.

        It is also over if its lease may have ended, though nobody has taken anything yet: others were free to
        send our messages, and must not meet with those that the same life sends later.
        """
        life, sent_at = self.owner, self._machine.monotonic()
        try:
            nodes = self._store.renew(life, self._lease_s, self._facts(), self._state)
            if nodes is None or self._machine.monotonic() - self._renewed_at > self._lease_s:
                self._begin_again(life)
                nodes = self._store.nodes()
            else:
                self._renewed_at = sent_at
            self._entry = Entry.of(self._store)
        except errors.StoreError as problem:
            self._failed_renewals += 1
            log.warning("node %s could not renew its lease: %s", self.name, problem)
            return
        self._seen(nodes)

    def _join(self) -> None:
        sent_at = self._machine.monotonic()
        self._store.join(self.name, self.owner, self.address, self._lease_s, self._facts())
        self._lives += 1
        self._renewed_at = sent_at

    @property
    def trusted(self) -> bool:
        """Whether our lease runs: nobody can have acquired what is ours.  A pause between this and the reply
        is harmless, since what was read was true when it was asked."""
        return self._machine.monotonic() < self._renewed_at + self._lease_s * (1 - CLOCKS_DIFFER)

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
        self._join()
        self._server.adapter.passivate_persistent()

    def _facts(self) -> bytes:
        """What the others, and who watches, want to know of us."""
        adapter = self._server.adapter
        now, calls = self._machine.monotonic(), adapter.invocations
        (then, before), self._counted = self._counted, (now, calls)
        load = (calls - before) / (now - then) if now > then else 0.0
        return ormsgpack.packb(
            {
                "objects": adapter.active_persistent,
                "calls": calls,
                "load": load,
                "running": adapter.busy,
                "waiting": adapter.waiting,
                "connections": len(self._server.poller.connections),
                "sent_on": self._moved,
                "relayed": self._relays.relayed,
                "handed_over": self._handed_over,
                "release": objserver.__version__,
                "states": adapter.state_versions(),
            }
        )

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
        """Addresses that clients are to know: the single entry; or this node's, and then the others'."""
        if self._entry.single:
            return (self._entry.single,)
        others = [n.address for n in self._view if n.left_s > 0 and n.address != self.address]
        return (self.address, *others)

    @property
    def sends_on(self) -> bool:
        """Not where clients know a single address."""
        return not self._entry.single

    def candidates(self) -> list[Candidate]:
        """Nodes that may be given objects."""
        found = []
        for row in self._view:
            if row.left_s > 0 and row.state == "up" and (row.life != self.owner or self._state == "up"):
                facts = ormsgpack.unpackb(row.facts) if row.facts else {}
                objects, load = facts.get("objects", 0), facts.get("load", 0.0)
                states = facts.get("states", {})
                if row.life == self.owner:
                    states = self._server.adapter.state_versions()  # what was registered since counts at once
                found.append(Candidate(row.name, row.life, row.address, objects, load, states))
        return found

    def _able(self, type: str, version: int | None = None) -> list[Candidate]:
        """... of this type: those that know the layout, or without one ours, so that what has come to a newer
        node during an upgrade does not go back."""
        if version is None:
            version = self._server.adapter.state_versions().get(type, 0)
        return [node for node in self.candidates() if node.can_have(type, version)]

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
        self.balanced()
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
        """See Ownership."""
        name = type, key
        to = self._leaving.get(name)
        if to is not None:
            self._hand_over(name, to)
        elif self._state == "draining":
            self._send_away(name)
        elif not sent:
            self.look(type, key)  # who waited behind what was handed over need not ask the store again
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
        nodes = self._able(name[0])
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
        others = [node for node in self._able(name[0]) if node.life != self.owner]
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

    def pass_on(self, type: str, key: str, owner: str, record: Record) -> None:
        """See Ownership."""
        able = self._able(type, record.state_version)
        if not able:
            self._seen(self._store.nodes())  # one may have come since the last renewal
            able = self._able(type, record.state_version)
        to = self.placement.place(type, key, able, self.owner) if able else None
        self._store.release([(type, key, record.epoch)], owner, to.life if to is not None else None)
        if to is not None:
            self._handed_over += 1
            self._learn((type, key), Elsewhere(to.life, to.address))
            raise self._moved_to(type, key, to.address)

    def _learn(self, name: tuple[str, str], where: Elsewhere) -> None:
        with self._lock:
            self._routes.learn(*name, where, self._machine.monotonic())

    def _moved_to(self, type: str, key: str, address: str) -> errors.Moved:
        self._moved += 1
        moved = errors.Moved(f"{object_id(type, key) if key else type} is at {address}")
        moved.address = address
        return moved

    def instead(self, problem: errors.StoreError) -> BaseException:
        """See Ownership.  Another node may reach it, or this one a little later."""
        self._moved += 1
        ways = self.entries[1:] or self.entries
        moved = errors.Moved(f"node {self.name} does not reach the store of {self.cluster}: {problem}")
        moved.address = ways[int(self._machine.uniform(0, len(ways)))]
        return moved

    # -- moving objects ------------------------------------------------------------------------------

    def migrate(self, type: str, key: str, to: str, timeout_s: float) -> None:
        """Hand an object over to the node named `to`; what runs in it ends first, what waits follows it.

        ValueError if there is no such node, or it takes no objects.  If the object is another node's, nothing
        is done: Moved.  CallTimeout if what runs in it does not end in `timeout_s`: then it stays.
        """
        able = self._able(type)
        target = next((node for node in able if node.name == to), None)
        if target is None:
            if any(node.name == to for node in self.candidates()):
                raise ValueError(f"node {to!r} cannot have it: its class of {type} is older, or missing")
            names = ", ".join(sorted(node.name for node in able))
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

    def balance(self) -> None:
        """Begin to give objects to nodes that have fewer, if there are some, in a thread of its own."""
        if self._is_giving:
            return
        adapter, now = self._server.adapter, self._machine.monotonic()
        since, self._balanced_at = self._balanced_at, adapter.invocations
        shown = {node.life: node.objects for node in self.candidates()}
        objects = {life: self._given.estimate(life, n, now) for life, n in shown.items()}
        if self.owner in objects:
            objects[self.owner] = adapter.active_persistent
        wanted = gives(
            objects, self.owner, self._server.settings.rebalanced_per_lease_max, self._machine.uniform
        )
        if wanted:
            self._is_giving = True
            self._giving = self._machine.start(partial(self._give, wanted, shown, since), "objserver-balance")

    def balanced(self) -> None:
        """Wait until what `balance` has begun is done."""
        if self._giving is not None:
            self._giving.join()

    def _give(self, wanted: dict[str, int], shown: dict[str, int], since: int) -> None:
        try:
            self._give_some(wanted, shown, since)
        except errors.StoreError as problem:
            log.warning("node %s gives no more objects away for now: %s", self.name, problem)
        finally:
            self._is_giving = False

    def _give_some(self, wanted: dict[str, int], shown: dict[str, int], since: int) -> None:
        able: dict[str, list[Candidate]] = {}
        for type, key in self._server.adapter.called_since(since):
            if not wanted or self._stopping or self._state != "up":
                return
            if type not in able:
                able[type] = self._able(type)
            nodes = able[type]
            neediest = max(wanted, key=lambda life: wanted[life])
            if not any(node.life == neediest for node in nodes):
                continue
            # It goes where it would stay if it were asked for there.
            to = self.placement.place(type, key, nodes, neediest)
            if to.life not in wanted:
                continue
            try:
                self.migrate(type, key, to.name, GIVING_S)
            except errors.StoreError:
                raise
            except (errors.ObjServerError, ValueError):
                continue  # it is busy, or not here any more
            self._objects_given += 1
            self._given.add(to.life, 1, shown[to.life], self._machine.monotonic())
            wanted[to.life] -= 1
            if not wanted[to.life]:
                del wanted[to.life]

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
            "objects": self._server.adapter.active_persistent,
            "objects_handed_over": self._handed_over,
            "objects_given": self._objects_given,
            "rebalanced_per_lease_max": self._server.settings.rebalanced_per_lease_max,
            "routes": len(self._routes),
            "routes_max": ROUTES_MAX,
        }
