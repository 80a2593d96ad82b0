"""The measurements, each a function that returns plain figures.

Where the kernel happens to place two processes in memory decides how well they share a core's caches: the
same pair is faster by half in one start than in another.  And the machine has slow minutes.  So every
measurement has several *starts* with new processes; within a start the peers take turns, round after round;
a ratio is taken within a start, between figures of the same minute; and what is reported is the median over
the starts, with the smallest and the largest beside it.

Latency is compared pinned to one core: waking a process on another core costs more than any of these systems
and measures the machine.  Throughput is measured unpinned, with the server's processor time per call beside
it, since on a small machine eight clients compete with the server for the cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.peers import PEERS, SLEEPERS
from benchmarks.processes import FAILED, Child, children, pin

MICRO = 1e6
CONNECTIONS = 10_000
CONNECTIONS_PER_CLIENT = 2_500
SLEEP_S = 0.2
CLIENTS = 8
CROWDED = tuple(peer for peer in PEERS if peer != "raw socket" and "," not in peer)
WAYS = ("single", "batch", "async")
PLACES = ("pinned", "unpinned")
IMPORTS = ("import objserver", "from objserver import ObjectServer, Proxy", "import Pyro5.api")
"""The second, because what the first leaves for later has to be loaded by who uses it."""


@dataclass(frozen=True)
class Spread:
    """A figure of every start."""

    starts: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.starts)

    def text(self, decimals: int = 2, unit: str = "") -> str:
        low, middle, high = (f"{n:,.{decimals}f}" for n in (min(self.starts), self.median, max(self.starts)))
        return f"{middle}{unit}" if len(self.starts) == 1 else f"{middle}{unit} ({low}..{high})"

    def over(self, other: Spread) -> Spread:
        """The ratio within each start."""
        return Spread(tuple(mine / its for mine, its in zip(self.starts, other.starts, strict=True)))


@dataclass(frozen=True)
class Add:
    """Microseconds of one sequential client's `add`, by peer."""

    median_us: dict[str, Spread]
    p99_us: dict[str, Spread]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Crowd:
    calls_per_s: dict[str, Spread]
    cpu_us: dict[str, Spread]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Ways:
    """Calls per second of one client by (way, place)."""

    calls_per_s: dict[tuple[str, str], Spread]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Idle:
    wanted: int
    connections: int
    served: int
    threads: int
    bytes_per_connection: float
    reason: str
    pyro5_served: int
    pyro5_refusal: str


@dataclass(frozen=True)
class Sleeping:
    total_s: Spread
    idle_us: Spread
    beside_us: Spread


def _by_peer(figures: dict[str, list[float]]) -> dict[str, Spread]:
    return {peer: Spread(tuple(starts)) for peer, starts in figures.items()}


@contextlib.contextmanager
def _both_ends(
    peers: Iterable[str], task: str, *arguments: object
) -> Iterator[tuple[dict[str, Child], dict[str, Child], dict[str, str]]]:
    """New servers and new clients of these peers: both by peer, and why some are left out."""
    kinds = list(dict.fromkeys(PEERS[peer].serve for peer in peers))
    with children(*(("serve", kind) for kind in kinds)) as started:
        servers = dict(zip(kinds, started, strict=True))
        skipped = {
            peer: servers[PEERS[peer].serve].first_line.removeprefix(FAILED)
            for peer in peers
            if servers[PEERS[peer].serve].first_line.startswith(FAILED)
        }
        left = [peer for peer in peers if peer not in skipped]
        with children(
            *((task, peer, servers[PEERS[peer].serve].first_line, *arguments) for peer in left)
        ) as clients:
            able = {}
            for peer, client in zip(left, clients, strict=True):
                if client.first_line.startswith(FAILED):
                    skipped[peer] = client.first_line.removeprefix(FAILED)
                else:
                    able[peer] = client
            yield {peer: servers[PEERS[peer].serve] for peer in able}, able, skipped


def add(quick: bool) -> Add:
    """One sequential client and its server on one core, `add(2, 3)`."""
    starts, rounds, calls, seconds = (2, 2, 800, 0.05) if quick else (11, 5, 2_000, 0.15)
    medians: dict[str, list[float]] = {}
    tails: dict[str, list[float]] = {}
    for _ in range(starts):
        with _both_ends(PEERS, "calls") as (servers, clients, skipped):
            pin([*servers.values(), *clients.values()], {min(os.sched_getaffinity(0))})
            # The slow ones make fewer calls, so that a round of all is short.
            count = {
                peer: min(calls, max(100, int(seconds / statistics.median(json.loads(client.ask(100))))))
                for peer, client in clients.items()
            }
            taken: dict[str, list[float]] = {peer: [] for peer in clients}
            for _ in range(rounds):
                for peer, client in clients.items():
                    taken[peer] += json.loads(client.ask(count[peer]))
        for peer, times in taken.items():
            times.sort()
            medians.setdefault(peer, []).append(times[len(times) // 2] * MICRO)
            tails.setdefault(peer, []).append(times[len(times) * 99 // 100] * MICRO)
    return Add(_by_peer(medians), _by_peer(tails), skipped)


def crowd(quick: bool) -> Crowd:
    """Eight client processes at once, unpinned."""
    starts, rounds, seconds = (1, 2, 0.3) if quick else (5, 3, 1.0)
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    for _ in range(starts):
        with _both_ends(CROWDED, "crowd", CLIENTS) as (servers, clients, skipped):
            made = dict.fromkeys(clients, 0)
            used = dict.fromkeys(clients, 0.0)
            for _ in range(rounds):
                for peer, client in clients.items():
                    cpu = servers[peer].cpu_s()
                    made[peer] += json.loads(client.ask(seconds))
                    used[peer] += servers[peer].cpu_s() - cpu
        for peer, calls in made.items():
            rates.setdefault(peer, []).append(calls / rounds / seconds)
            costs.setdefault(peer, []).append(used[peer] / calls * MICRO)
    return Crowd(_by_peer(rates), _by_peer(costs), skipped)


def ways(quick: bool) -> Ways:
    """One client that calls one by one, in batches, and with many calls in flight on one connection."""
    import objserver

    starts, rounds, seconds = (2, 2, 0.25) if quick else (7, 3, 0.6)
    skipped = {} if hasattr(objserver, "AsyncProxy") else {"async": "there is no AsyncProxy yet"}
    rates: dict[tuple[str, str], list[float]] = {}
    cores = os.sched_getaffinity(0)
    for _ in range(starts):
        with children(("serve", "objserver")) as (server,):
            with children(("ways", server.first_line)) as (client,):
                for place, allowed in zip(PLACES, ({min(cores)}, cores), strict=True):
                    pin([server, client], allowed)
                    of_start: dict[str, list[float]] = {way: [] for way in WAYS if way not in skipped}
                    for _ in range(rounds):
                        for way, measured in of_start.items():
                            measured.append(json.loads(client.ask(f"{way} {seconds}")))
                    for way, measured in of_start.items():
                        rates.setdefault((way, place), []).append(statistics.median(measured))
    return Ways({key: Spread(tuple(of_starts)) for key, of_starts in rates.items()}, skipped)


def connections(quick: bool) -> Idle:
    """Connections that are open and idle, each having made a call; and where stock Pyro5 refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = max(soft, min(hard, CONNECTIONS + 1_000))  # the subprocesses inherit it
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wanted = min(CONNECTIONS, soft - 500)
    shares = [min(CONNECTIONS_PER_CLIENT, wanted - at) for at in range(0, wanted, CONNECTIONS_PER_CLIENT)]
    with children(("serve", "objserver"), ("serve", "pyro5")) as (ours, stock):
        before = ours.status("VmRSS")
        with children(
            *(("idle", ours.first_line, share) for share in shares), ("refused", stock.first_line, 200)
        ) as (*clients, refused):
            for client in clients:
                client.tell()
            opened = [json.loads(client.read()) for client in clients]
            again = [json.loads(client.ask()) for client in clients]  # while all the others are open
            threads, rss = ours.status("Threads"), ours.status("VmRSS") - before
            pyro5_served, refusal = json.loads(refused.ask())
    count = sum(served for served, _ in opened)
    return Idle(
        CONNECTIONS, count, sum(served for served, _ in again), threads, rss * 1024 / count,
        next((reason for _, reason in opened + again if reason), ""), pyro5_served, refusal,
    )  # fmt: skip


def sleeping(quick: bool) -> Sleeping:
    """Thirty servants asleep on distinct objects while another client goes on calling `add`."""
    total: list[float] = []
    idle: list[float] = []
    beside: list[float] = []
    with children(("serve", "objserver")) as (server,):
        with children(
            ("sleepers", server.first_line, SLEEPERS, SLEEP_S), ("calls", "objserver", server.first_line)
        ) as (sleepers, client):
            for _ in range(3 if quick else 11):
                idle.append(statistics.median(json.loads(client.ask(2_000))) * MICRO)
                times: list[float] = []
                sleepers.tell()
                while not sleepers.readable():
                    times += json.loads(client.ask(50))
                total.append(json.loads(sleepers.read()))
                beside.append(statistics.median(times) * MICRO)
    return Sleeping(Spread(tuple(total)), Spread(tuple(idle)), Spread(tuple(beside)))


def imports(quick: bool) -> dict[str, Spread]:
    """Milliseconds that an import takes in a new interpreter, the start of the interpreter not counted.

    Byte code is there, as it is after `pip install`, whatever the environment says about writing it.
    """
    taken: dict[str, list[float]] = {statement: [] for statement in IMPORTS}
    with tempfile.TemporaryDirectory() as byte_code:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": byte_code, "PYTHONDONTWRITEBYTECODE": ""}
        for number in range(-1, 7 if quick else 31):
            for statement in IMPORTS:
                code = f"from time import perf_counter as t; b = t(); {statement}; print((t() - b) * 1e3)"
                command = [sys.executable, "-c", code]
                said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
                if number >= 0:  # the first of each writes the byte code
                    taken[statement].append(float(said))
    return {statement: Spread(tuple(ms)) for statement, ms in taken.items()}
