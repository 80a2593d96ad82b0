"""Clusters in the simulator: nodes that share a store, and lose each other, it, and their lives.

Everything is as in `objserver.testing.simulator`, but that the servers are nodes of one cluster, with the
production code for that: leases, owners, routes, relays, migrations.  The store that they share is on a host
of its own, and its clock is the world's.  Clients enter at any node; some are stock Pyro5 proxies, on the
simulated sockets.

The faults are those of servers, and: nodes that freeze for longer than their lease, are cut off from the
store or from each other in both directions or in one, are declared dead while they live, stay away for long,
or hand objects over; and a database that fails over.

It is judged as there, and more.  Calls end in time.  When a node is killed at the end, every object answers
at the others within a lease and a second.  And where a plan is `gentle`, so that nothing but what an operator
does on purpose happens to the nodes, no call fails at all, for any client.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any
from unittest import mock

import Pyro5.api
import Pyro5.errors
import Pyro5.socketutil

from objserver import errors
from objserver.client import Proxy
from objserver.cluster import ByHash, LeastLoaded, Placement, PreferLocal
from objserver.machine import machine
from objserver.references import Location
from objserver.server import ObjectServer
from objserver.settings import ServerSettings
from objserver.testing.bank import STUCK, Call
from objserver.testing.faulty_store import Disk, Site, opened
from objserver.testing.linearizability import REFUSED, Outcome
from objserver.testing.network import MemorySocket, Weather
from objserver.testing.simulator import PORT, REST_S, TIMEOUTS_S, Plan, Result, Simulation, simulate
from objserver.testing.world import Process

__all__ = ["ClusterPlan", "ClusterSimulation", "simulate_cluster"]

GENTLE = ("migrate", "restart", "away")
KINDS = (
    *("crash", "silent crash", "pause", "client crash", "client pause", "partition", "one way", "sever"),
    *("freeze", "nodes apart", "store apart", "store one way", "evicted", "failover"),
    *GENTLE,
)
GENTLE_MAX_S = 1.5
"""So long nobody waits for an object that its node hands over: less than the longest of the leases."""
MIGRATIONS_PER_FAULT = 3
AVAILABLE_S = 1.0
"""So long after the lease of a node that was killed its objects answer again."""
STOCK_METHODS = ("deposit", "withdraw", "look", "transfer", "pay", "settle")


@dataclasses.dataclass(frozen=True)
class ClusterPlan(Plan):
    """What a seed decides of a cluster.  `servers` are its nodes, `stock` is the share of stock clients."""

    node_lease_s: float
    placement: Placement
    stock: float

    @classmethod
    def of(cls, random: Random) -> ClusterPlan:
        plan = dataclasses.asdict(Plan.of(random))
        plan |= {
            "servers": random.randint(2, 5),
            "alone": False,
            "clients": random.randint(2, 5),
            "weather": Weather(*plan["weather"]),
            "disk": Disk(*plan["disk"]),
            "kinds": tuple(kind for kind in KINDS if random.random() < 0.5) or KINDS,
        }
        return cls(
            **plan,
            node_lease_s=random.choice((0.5, 1.0, 3.0)),
            placement=random.choice((PreferLocal(), ByHash(), LeastLoaded(within=1.0))),
            stock=random.choice((0.0, 0.3, 0.6)),
        )

    @property
    def gentle(self) -> bool:
        """No call has a reason to fail."""
        return set(self.kinds) <= set(GENTLE) and self.weather == Weather() and self.disk == Disk()


class StockSocket:
    """A simulated socket, as Pyro5's client uses it: with timeouts that are errors of their own."""

    family = socket.AF_INET

    def __init__(self, sock: MemorySocket, timeout_s: float | None) -> None:
        self._sock = sock
        self.settimeout(timeout_s)
        self.close = sock.close
        self.fileno, self.getsockname = sock.fileno, sock.getsockname

    def shutdown(self, how: int) -> None:
        if self._sock.process.alive:  # else it is called by a destructor, which nothing may be raised from
            self._sock.shutdown(how)

    def settimeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._sock.settimeout(timeout_s)

    def gettimeout(self) -> float | None:
        return self._timeout_s

    def recv(self, size: int, flags: int = 0) -> bytes:
        with _in_time():
            return self._sock.recv(size)

    def send(self, data: bytes) -> int:
        with _in_time():
            return self._sock.send(data)

    def sendall(self, data: bytes) -> None:
        with _in_time():
            self._sock.sendall(data)


@contextlib.contextmanager
def _in_time() -> Any:
    try:
        yield
    except BlockingIOError:
        raise TimeoutError("timed out") from None


def _stock_socket(connect: tuple[str, int], timeout: float | None = None, **_: Any) -> StockSocket:
    """In place of Pyro5.socketutil.create_socket."""
    sock: Any = machine.get().connect(Location(*connect), timeout)
    return StockSocket(sock, timeout)


class ClusterSimulation(Simulation):
    """See the module's essay."""

    plans = ClusterPlan
    plan: ClusterPlan

    def __init__(
        self, seed: int, seconds: float, tell: Callable[[str], None] | None, changes: dict[str, Any]
    ) -> None:
        super().__init__(seed, seconds, tell, changes)
        self.site = Site("10.0.3.0")
        self._stays_away: set[int] = set()
        self._long_away = False

    def run(self) -> None:
        with mock.patch.object(Pyro5.socketutil, "create_socket", _stock_socket):
            super().run()

    # -- nodes ---------------------------------------------------------------------------------------

    def _start_servers(self) -> None:
        """Some join later."""
        for number in range(self.plan.servers):
            late = number and self.random.random() < 0.3
            self.world.at(
                self.random.uniform(1.0, 20.0) if late else 0.0, partial(self._start_server, number)
            )

    def _start_server(self, number: int) -> None:
        if number not in self._stays_away:
            super()._start_server(number)

    def _server_live(self, process: Process, number: int) -> None:
        try:
            super()._server_live(process, number)
        except errors.StoreError as problem:  # it could not join
            self.world.note("not joined", process, problem)
            self._crash_server(number, process)

    def _make_live(self, process: Process, number: int) -> ObjectServer:
        plan = self.plan
        return ObjectServer(
            f"{process.host}:{PORT}",
            store=opened(process, self._store, self.disk, self.site),
            settings=ServerSettings(
                workers_max=4,
                handshake_timeout_s=2.0,
                session_lease_s=plan.lease_s,
                node_lease_s=plan.node_lease_s,
            ),
            insecure=True,
            cluster="bank",
            node=f"node-{number}",
            placement=plan.placement,
        )

    def _away_s(self) -> float:
        long, self._long_away = self._long_away, False
        return self.random.uniform(2.0, 15.0) if long else super()._away_s()

    # -- clients -------------------------------------------------------------------------------------

    def _client_live(self, process: Process, proxies: dict[tuple[str, int], Any]) -> None:
        if self.random.random() < self.plan.stock:
            self._stock_live(process)
        else:
            super()._client_live(process, proxies)

    def _timeout_s(self) -> float:
        return max(TIMEOUTS_S) if self.plan.gentle else super()._timeout_s()

    def _stock_live(self, process: Process) -> None:
        """A thread with proxies of its own, as they have to be.  They repeat nothing."""
        random, world = self.random, self.world
        proxies: dict[tuple[str, int], Any] = {}
        while world.now < self.ends:
            process.sleep(random.expovariate(1 / self.plan.think_s))
            name, server = random.choice(self._accounts()), self._entry()
            method, others = random.choice(STOCK_METHODS), [o for o in self._accounts() if o != name]
            if method in ("transfer", "pay") and not others:
                method = "withdraw"
            other = random.choice(others) if method in ("transfer", "pay") else ""
            call = self.ledger.begin(process.name, name, method, random.randrange(1, 10**9), world.now, other)
            if (name, server) not in proxies:
                proxies[name, server] = Pyro5.api.Proxy(self._uri(name, server))
            proxy = proxies[name, server]
            proxy._pyroTimeout = self._timeout_s()
            result, error = Outcome.UNKNOWN, None
            try:
                [result] = self._call_live(proxy, method, [call])
            except (ValueError, RuntimeError, Pyro5.errors.PyroError) as problem:
                error = problem
            process.check()
            if str(error) in (REFUSED, STUCK):
                call.end(world.now, None, error)
            else:
                call.end(world.now, result)
                call.error = f"{type(error).__name__}: {error}" if error is not None else ""
            world.note("stock", call)
        for proxy in proxies.values():
            proxy._pyroRelease()
        del self._working[process.current_thread()]

    def _entry(self) -> int:
        """A node to call; where nothing may fail, one that a stock client may rely on."""
        return 0 if self.plan.gentle else self.random.randrange(self.plan.servers)

    # -- faults --------------------------------------------------------------------------------------

    def _do(self, kind: str, number: int, other: int, seconds: float) -> None:
        random, network, lease_s = self.random, self.world.network, self.plan.node_lease_s
        process, host = self._servers.get(other), f"10.0.0.{other}"
        node = self._objects[process].node if process in self._objects else None
        if kind in GENTLE and self.plan.gentle and kind != "migrate" and other == 0:
            return  # somebody has to be there
        if kind == "freeze" and process is not None:
            process.pause(lease_s * random.uniform(0.8, 2.0))
        elif kind == "nodes apart":
            there = f"10.0.0.{random.randrange(self.plan.servers)}"
            for here, to in ((host, there), (there, host)):
                network.cut(here, to, 2 * seconds)
        elif kind == "store apart":
            for here, to in ((host, self.site.host), (self.site.host, host)):
                network.cut(here, to, lease_s * seconds)
        elif kind == "store one way":
            here, to = random.sample((host, self.site.host), 2)
            network.cut(here, to, lease_s * seconds)
        elif kind == "evicted" and node is not None:
            self._store.leave(node.owner)
        elif kind == "failover":
            self.site.fail_over(self.world.now + seconds)
        elif kind == "away":
            self._long_away = True
            self._stop_server(other)
        elif kind == "migrate":
            for _ in range(MIGRATIONS_PER_FAULT):
                account, target = random.choice(self._accounts()), random.randrange(self.plan.servers)
                for giver in self._servers.values():  # who has it gives it away, the others say where it is
                    if giver in self._objects:
                        giver.start(partial(self._migrate_live, giver, account, target), "migrate")
        else:
            super()._do(kind, number, other, seconds)

    def _migrate_live(self, process: Process, account: str, to: int) -> None:
        type, _, key = account.partition("/")
        try:
            self._objects[process].node.migrate(type, key, f"node-{to}", 2.0)  # type: ignore[union-attr]
        except (errors.ObjServerError, ValueError, KeyError) as problem:
            self.world.note("not migrated", process, problem)
        else:
            self.world.note("migrated", process, account, to)

    # -- the end -------------------------------------------------------------------------------------

    def _audit(self) -> None:
        """When all is well one node is killed, and every account answers at the others in time."""
        world = self.world
        lease_s = self.plan.node_lease_s
        over = max(world.network.cut_last(), self.site.down_until, *(p.paused_until for p in self._objects))
        world.run(max(over, world.now))  # until then one that starts may not get as far as to join
        world.run(world.now + REST_S, lambda: len(self._servers) == self.plan.servers)
        world.run(world.now + lease_s)  # all have seen each other
        if world.failures:
            return
        victim = self.random.randrange(self.plan.servers)
        self._stays_away = {victim}
        world.note("the last kill", victim)
        self._crash_server(victim, self._servers.get(victim), self.random.random() < 0.5)
        until = world.now + lease_s + AVAILABLE_S
        process = world.process("auditor", "10.0.2.1")
        others = [number for number in self._servers if number != victim]
        process.start(partial(self._reach_live, others, until), "main")
        world.run(until + 1.0, lambda: len(self._statements) == self.plan.accounts)
        late = [name for name in self._accounts() if name not in self._statements]
        if late and not world.failures:
            world.fail(f"{lease_s + AVAILABLE_S} s after a node was killed {', '.join(late)} does not answer")

    def _reach_live(self, nodes: list[int], until: float) -> None:
        here = machine.get()
        for name in self._accounts():
            uri = self._uri(name, self.random.choice(nodes))
            # Closed here, and not whenever the collector comes: every run of a seed is the same.
            left_s = max(until - here.monotonic(), 0.01)
            with contextlib.suppress(errors.ObjServerError), Proxy(uri, timeout_s=left_s) as proxy:
                self._statements[name] = proxy.statement()

    def _judge(self) -> Iterable[str]:
        yield from super()._judge()
        for call in self.ledger.calls if self.plan.gentle else ():
            if _failed(call):
                yield f"{call} failed without a reason"
            elif call.ended and call.returned - call.invoked > GENTLE_MAX_S:
                yield f"{call} took {call.returned - call.invoked:.3f} s without a reason"


def _failed(call: Call) -> bool:
    return call.ended and call.result in (Outcome.FAILED, Outcome.UNKNOWN) and bool(call.error)


def simulate_cluster(
    seed: int, seconds: float = 60.0, tell: Callable[[str], None] | None = None, **changes: Any
) -> Result:
    """As `simulate`, of a cluster."""
    return simulate(seed, seconds, tell, ClusterSimulation, **changes)
