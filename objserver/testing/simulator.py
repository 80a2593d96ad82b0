"""One seed, one run: production code under faults, on virtual time, and a judgement at its end.

A seed decides everything: how many servers, clients and accounts there are, how long calls may take, which
kinds of faults there are (each is missing from some runs, so that what it hides is seen), and when each of
them happens. The servers are `ObjectServer`s with their adapters, committers, engines and pollers, the
clients are `Proxy`s, the store is an `SqliteStore`; below them is a `World` with its `Network` and a
`FaultyStore`.  Where there are two servers they have the same store open, and both serve every account: an
account wanders with each call.

When the time is over, faults end and everything is let come to rest.  Calls that do not end then have been
lost; so have messages that do not arrive; servers that do not stop hang.  Then the ledger is judged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any
from unittest import mock

from objserver import errors
from objserver.adapter import Persistent, Serial
from objserver.client import Proxy
from objserver.invocation import CallId
from objserver.machine import machine
from objserver.server import ObjectServer, engine
from objserver.settings import ServerSettings
from objserver.storage.sqlite import SqliteStore
from objserver.testing.bank import Account, Call, Ledger, Statement
from objserver.testing.faulty_store import Disk, opened
from objserver.testing.linearizability import Outcome
from objserver.testing.network import Weather
from objserver.testing.world import Process, World

__all__ = ["Plan", "Result", "Simulation", "simulate"]

PORT = 9000
REST_S = 180.0
"""How long everything may take to come to rest once faults have ended."""
LOOK_S = 0.02
"""The engine's monitor looks a little less often: half of all events would be its looks."""
TIMEOUTS_S = (0.5, 2.0, 10.0)
LATE_MAX_S = 1.0
"""How long after its deadline a call may end: what is slow is slow at the end too."""
KINDS = (
    "crash",
    "silent crash",
    "restart",
    "pause",
    "client crash",
    "client pause",
    "partition",
    "one way",
    "servers apart",
    "sever",
)
METHODS = (
    *("deposit", "withdraw", "look", "transfer", "pay", "batch") * 3,
    *("settle", "settle"),
    "forge",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a seed decides before anything happens."""

    servers: int
    alone: bool
    clients: int
    threads: int
    accounts: int
    think_s: float
    lease_s: float
    faults_per_s: float
    kinds: tuple[str, ...]
    weather: Weather
    disk: Disk

    @classmethod
    def of(cls, random: Random) -> Plan:
        def sometimes(share: float) -> float:
            return share if random.random() < 0.6 else 0.0

        servers = random.randint(1, 2)
        return cls(
            servers=servers,
            alone=servers == 1 and random.random() < 0.7,
            clients=random.randint(2, 4),
            threads=random.randint(1, 3),
            accounts=random.randint(1, 4),
            think_s=random.choice((0.5, 1.0, 3.0)),
            lease_s=random.choice((1.0, 3.0, 3600.0, 3600.0)),
            faults_per_s=random.choice((0.3, 0.8, 1.5)),
            kinds=tuple(kind for kind in KINDS if random.random() < 0.6) or KINDS,
            weather=Weather(
                latency_s=random.choice((0.0001, 0.0005, 0.005)),
                slow=sometimes(0.02),
                split=sometimes(0.05),
                broken=sometimes(0.004),
                hung=sometimes(0.001),
                refused=sometimes(0.05),
            ),
            disk=Disk(
                write_s=random.choice((0.0002, 0.002, 0.01)),
                slow=sometimes(0.01),
                unread=sometimes(0.005),
                unwritten=sometimes(0.01),
                in_doubt=sometimes(0.03),
            ),
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.  `trace` is the same for the same seed and time."""

    seed: int
    virtual_s: float
    trace: str
    calls: dict[str, int]
    events: int
    faults: int
    failures: tuple[str, ...]


class Simulation:
    """See the module's essay.  Its methods run on the hub, except those named `_live`."""

    plans: type[Plan] = Plan

    def __init__(
        self, seed: int, seconds: float, tell: Callable[[str], None] | None, changes: dict[str, Any]
    ) -> None:
        self.world = World(seed, tell)
        self.random = self.world.random
        self.plan = dataclasses.replace(self.plans.of(self.random), **changes)
        self.ends = self.world.now + seconds
        self.ledger = Ledger()
        self.disk = [Disk()]
        self.faults = 0
        self._lives = 0
        self._servers: dict[int, Process] = {}
        self._clients: dict[int, Process] = {}
        self._working: dict[Any, None] = {}
        """Threads of clients that have not finished."""
        self._statements: dict[str, Statement] = {}
        self._objects: dict[Process, ObjectServer] = {}
        self._store: SqliteStore

    def run(self) -> None:
        """The whole of it."""
        world, plan = self.world, self.plan
        world.note("plan", plan)
        with world.in_place(), mock.patch.object(engine, "LOOK_S", LOOK_S):
            self._store = SqliteStore("sqlite://", alone=plan.alone, clock=lambda: world.now)
            self._start_servers()
            world.run(world.now + 1.0)
            world.network.weather, self.disk[0] = plan.weather, plan.disk
            for number in range(plan.clients):
                self._start_client(number)
            world.at(self.random.expovariate(plan.faults_per_s), self._strike)
            world.run(self.ends)
            self._heal()
            self._rest()
            self._audit()
            self._stop_all()
            for failure in () if world.failures else self._judge():
                world.fail(failure)
        self._store.close()

    def _judge(self) -> Iterable[str]:
        return self.ledger.judge(self._statements, self.world.now)

    # -- processes -----------------------------------------------------------------------------------

    def _uri(self, name: str, server: int) -> str:
        return f"PYRO:{name}@10.0.0.{server}:{PORT}"

    def _start_servers(self) -> None:
        for number in range(self.plan.servers):
            self._start_server(number)

    def _start_server(self, number: int) -> None:
        if number not in self._servers:
            self._lives += 1
            self._servers[number] = process = self.world.process(f"server-{self._lives}", f"10.0.0.{number}")
            self.world.note("start", process)
            process.start(partial(self._server_live, process, number), "main")

    def _server_live(self, process: Process, number: int) -> None:
        server = self._objects[process] = self._make_live(process, number)
        server.register(
            Account, "Account", activation=Persistent(idle_timeout_s=5.0, capacity=2), threading=Serial()
        )
        server.start()

    def _make_live(self, process: Process, number: int) -> ObjectServer:
        return ObjectServer(
            f"{process.host}:{PORT}",
            store=opened(process, self._store, self.disk),
            settings=ServerSettings(
                workers_max=4, handshake_timeout_s=2.0, session_lease_s=self.plan.lease_s
            ),
            insecure=True,
        )

    def _stop_server(self, number: int) -> None:
        process = self._servers.get(number)
        if process in self._objects:
            assert process is not None
            self.world.note("stop", process)
            process.start(partial(self._stop_live, process, number), "stop")

    def _stop_live(self, process: Process, number: int) -> None:
        self._objects[process].stop()
        self._crash_server(number, process)

    def _crash_server(self, number: int, process: Process | None, silently: bool = False) -> None:
        if process is not None:
            process.crash(silently)
            self._objects.pop(process, None)
            if process is self._servers.get(number):
                del self._servers[number]
                self.world.at(self._away_s(), partial(self._start_server, number))

    def _away_s(self) -> float:
        """How long a server that is gone stays away."""
        return self.random.expovariate(1.0)

    def _start_client(self, number: int) -> None:
        if self.world.now < self.ends:
            self._lives += 1
            process = self.world.process(f"client-{self._lives}", f"10.0.1.{number}")
            self._clients[number] = process
            self.world.note("start", process)
            proxies: dict[tuple[str, int], Any] = {}
            for _ in range(self.plan.threads):
                thread = process.start(partial(self._client_live, process, proxies), "main")
                self._working[thread] = None

    # -- clients -------------------------------------------------------------------------------------

    def _client_live(self, process: Process, proxies: dict[tuple[str, int], Any]) -> None:
        """`proxies` are shared by the threads of the process."""
        random, world = self.random, self.world
        while world.now < self.ends:
            process.sleep(random.expovariate(1 / self.plan.think_s))
            name, server = random.choice(self._accounts()), self._entry()
            proxy = self._proxy_live(proxies, name, server)
            method, others = random.choice(METHODS), [other for other in self._accounts() if other != name]
            if method in ("transfer", "pay") and not others:
                method = "withdraw"
            other = random.choice(others) if method in ("transfer", "pay") else ""
            count = {"batch": random.randint(2, 3), "forge": 2}.get(method, 1)
            calls = [
                self.ledger.begin(
                    process.name,
                    name,
                    "deposit" if method in ("batch", "forge") else method,
                    random.randrange(1, 10**9),
                    world.now,
                    other,
                )
                for _ in range(count)
            ]
            results, error = [], None
            latest = world.now + self._patience(proxy) * proxy._objserver_stub.timeout_s + LATE_MAX_S
            if method == "forge":
                self._forge_live(proxy, *calls)
                continue
            try:
                results = self._call_live(proxy, method, calls)
            except Exception as problem:
                error = problem
                if isinstance(error, errors.OutcomeUnknown) and error.call and random.random() < 0.5:
                    world.note("ask", calls[0])
                    latest += self._patience(proxy) * max(TIMEOUTS_S) + LATE_MAX_S
                    asked = self._proxy_live(proxies, name, self._entry())
                    results, error = self._ask_live(asked, error, method)
            process.check()
            if world.now > max(latest, process.paused_until + LATE_MAX_S):
                world.fail(f"{calls[0]} ended {world.now - latest:.1f} s after its deadline with {error}")
            for call in calls:
                call.end(world.now, results.pop(0) if error is None else None, error)
                world.note(call)
        del self._working[process.current_thread()]

    def _proxy_live(self, proxies: dict[tuple[str, int], Any], name: str, server: int) -> Any:
        at = name, server
        if at not in proxies:
            proxies[at] = Proxy(self._uri(name, server))
        return proxies[at].calling(timeout_s=self._timeout_s())

    def _timeout_s(self) -> float:
        return self.random.choice(TIMEOUTS_S)

    def _patience(self, proxy: Any) -> int:
        """How often a call may have its time: to find out what there is to call is one of its own, and a
        reply that comes in two parts has it once more for the second."""
        return 1 + (proxy._objserver_stub.pool.metadata is None) + bool(self.plan.weather.split)

    def _entry(self) -> int:
        return self.random.randrange(self.plan.servers)

    def _call_live(self, proxy: Any, method: str, calls: list[Call]) -> list[Any]:
        call = calls[0]
        if method == "look":
            return [proxy.look()]
        if method == "batch":
            with proxy.batch() as batch:
                for call in calls:
                    batch.deposit(call.tag, call.amount)
            return list(batch.results())
        to = [self._uri(call.other, self._entry())] if call.other else []
        return [getattr(proxy, method)(call.tag, call.amount, *to)]

    def _forge_live(self, proxy: Any, *calls: Call) -> None:
        """Two calls under one id: the second must not be given the answer of the first."""
        stub, world = proxy._objserver_stub, self.world
        id = CallId(os.urandom(16), 1)
        for call in calls:
            result, error = None, None
            try:
                stub.metadata()
                payload = stub.pool.codecs.native.encode_call(
                    call.account, "deposit", (call.tag, call.amount), {}
                )
                if call is calls[0]:
                    stub.open_session(id.client)
                result = stub.deliver("deposit", payload, id, 0)
            except Exception as problem:
                error = problem
            machine.get().check()  # type: ignore[attr-defined]
            if isinstance(error, (errors.ProtocolError, errors.Moved)):  # the second: no session was opened
                call.result, call.ended = Outcome.FAILED, True
            else:
                call.end(world.now, result, error)
            world.note("forged", call)

    @staticmethod
    def _ask_live(
        proxy: Any, unknown: errors.OutcomeUnknown, method: str
    ) -> tuple[list[Any], Exception | None]:
        """What the object says of the outcome of a call that was unknown; any server may be asked."""
        try:
            outcome = proxy.outcome(unknown.call)
        except errors.NotExecuted as never:
            return [], never
        except (ValueError, RuntimeError) as raised:
            return [], raised
        except Exception:
            return [], unknown
        return outcome if method == "batch" else [outcome], None

    def _accounts(self) -> list[str]:
        return [f"Account/{number}" for number in range(self.plan.accounts)]

    # -- faults --------------------------------------------------------------------------------------

    def _strike(self) -> None:
        """A fault, and the next one later."""
        random, world = self.random, self.world
        if world.now >= self.ends:
            return
        world.at(random.expovariate(self.plan.faults_per_s), self._strike)
        kind = random.choice(self.plan.kinds)
        number, other = random.choice(list(self._clients)), random.randrange(self.plan.servers)
        seconds = random.expovariate(1.0)
        self.faults += 1
        world.note("fault", kind, number, other, seconds)
        self._do(kind, number, other, seconds)

    def _do(self, kind: str, number: int, other: int, seconds: float) -> None:
        """The fault of this kind, to this client or this server, for so long."""
        random, world, network = self.random, self.world, self.world.network
        server, client, host = self._servers.get(other), self._clients[number], f"10.0.0.{other}"
        if kind == "crash":
            self._crash_server(other, server)
        elif kind == "silent crash":
            self._crash_server(other, server, silently=True)
        elif kind == "restart":
            self._stop_server(other)
        elif kind == "pause" and server is not None:
            server.pause(seconds)
        elif kind == "client crash" and client.alive:
            for thread in client.threads:
                self._working.pop(thread, None)
            client.crash(random.random() < 0.3)
            world.at(seconds, partial(self._start_client, number))
        elif kind == "client pause":
            client.pause(seconds)
        elif kind == "partition":
            network.cut(client.host, host, seconds)
            network.cut(host, client.host, seconds)
        elif kind == "one way":
            here, there = random.sample((client.host, host), 2)
            network.cut(here, there, seconds)
        elif kind == "servers apart":
            network.cut("10.0.0.0", "10.0.0.1", seconds)
            network.cut("10.0.0.1", "10.0.0.0", seconds)
        elif kind == "sever":
            for sock in [sock for sock in network.sockets if random.random() < 0.5]:
                network.sever(sock)

    def _heal(self) -> None:
        self.world.note("healed")
        self.world.network.calm()
        self.disk[0] = Disk()

    # -- the end -------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Every call ends, and every message arrives."""
        world = self.world
        world.run(world.now + REST_S, lambda: not self._working)
        living = {process.name for process in self._clients.values()} if self._working else set()
        for call in self.ledger.calls if not world.failures else ():
            if not call.ended and call.client in living:
                world.fail(f"{call}, called at {call.invoked - 1000:.6f}, never ended")
        end = world.now + REST_S
        while not world.failures and self._store.messages(1):
            world.run(world.now + 1.0)
            if world.now > end:
                world.fail(f"{len(self._store.messages(1000))} messages do not arrive")

    def _audit(self) -> None:
        """What each account says at last."""
        world = self.world
        process = world.process("auditor", "10.0.2.1")
        process.start(self._audit_live, "main")
        world.run(world.now + REST_S, lambda: len(self._statements) == self.plan.accounts)
        if not world.failures and len(self._statements) < self.plan.accounts:
            world.fail("the accounts do not answer any more")

    def _audit_live(self) -> None:
        here = machine.get()
        for name in self._accounts():
            while name not in self._statements:
                with contextlib.suppress(errors.ConnectFailed):  # the server may not be back yet
                    self._statements[name] = Proxy(self._uri(name, 0), timeout_s=60.0).statement()
                here.sleep(0.1)

    def _stop_all(self) -> None:
        world = self.world
        processes = list(self._servers.values())
        for number in list(self._servers) if not world.failures else ():
            self._stop_server(number)
        world.run(world.now + REST_S, lambda: not any(process.alive for process in processes))
        for process in processes:
            if process.alive and not world.failures:
                world.fail(f"{process} does not stop")


def simulate(
    seed: int,
    seconds: float = 60.0,
    tell: Callable[[str], None] | None = None,
    kind: type[Simulation] = Simulation,
    **changes: Any,
) -> Result:
    """Run one seed for so many virtual seconds; `tell` gets a line for everything that happens.

    `changes` are what shall be otherwise than the seed's `Plan` says.
    """
    simulation = kind(seed, seconds, tell, changes)
    simulation.run()
    world = simulation.world
    return Result(
        seed=seed,
        virtual_s=seconds,
        trace=world.trace(),
        calls=simulation.ledger.outcomes(),
        events=world.events,
        faults=simulation.faults + world.network.faults,
        failures=tuple(world.failures),
    )
