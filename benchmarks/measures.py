"""The four measurements, each a function that returns plain figures.

Latency is compared pinned to one core: waking a process on another core costs more than any of these systems
and measures the machine.  The peers take turns, round after round, so that a slow second hits all of them;
what is reported is the median of the rounds.  Throughput is measured unpinned, with the server's CPU time
per call beside it, since on a small machine eight clients compete with the server for the cores.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import select
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import SERVER_OF, SLEEPERS, Child, children, connect

MICRO = 1e6
CONNECTIONS = 2_000
SLEEP_S = 0.2
CLIENTS = 8
LOADED = ("objserver", "Pyro5 msgpack", "rpyc")


@dataclass(frozen=True)
class Latency:
    peer: str
    median_us: float
    fastest_start_us: float
    slowest_start_us: float
    p99_us: float
    to_raw: float


@dataclass(frozen=True)
class Throughput:
    peer: str
    calls_per_s: float
    cpu_us_per_call: float
    to_pyro5: float


@dataclass(frozen=True)
class Idle:
    connections: int
    served: int
    threads: int
    rss_per_connection_kib: float
    pyro5_served: int
    pyro5_refusal: str


@dataclass(frozen=True)
class Sleeping:
    total_s: float
    idle_us: float
    beside_us: float
    ratio: float
    rounds: tuple[tuple[float, float, float], ...]


def _times(add: Callable[[int, int], object], calls: int) -> list[float]:
    clock, taken = time.perf_counter, []
    for _ in range(calls):
        begin = clock()
        add(2, 3)
        taken.append(clock() - begin)
    taken.sort()
    return taken


def latency(quick: bool) -> list[Latency]:
    """(a) Sequential `add(2, 3)`; clients and servers on one core.

    Where the kernel happens to place two processes in memory decides how well they share one core's caches
    and branch predictor: the same pair is faster by half in one start than in another.  So every round
    starts new processes, and what is reported is the median of the rounds.
    """
    rounds, calls = (5, 1_000) if quick else (15, 3_000)
    medians: dict[str, list[float]] = {peer: [] for peer in SERVER_OF}
    tails: dict[str, list[float]] = {peer: [] for peer in SERVER_OF}
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as client:
        for _ in range(rounds):
            for peer, (median, tail) in client.submit(_latency_of_one_start, calls).result().items():
                medians[peer].append(median)
                tails[peer].append(tail)
    raw = statistics.median(medians["raw socket"])
    return [
        Latency(p, m := statistics.median(medians[p]), min(medians[p]), max(medians[p]),
                statistics.median(tails[p]), m / raw)
        for p in SERVER_OF
    ]  # fmt: skip


def _latency_of_one_start(calls: int) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile in µs of every peer; runs in a process of its own."""
    core = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, core)
    kinds = list(dict.fromkeys(SERVER_OF.values()))
    figures = {}
    with (
        children(*(("serve", kind) for kind in kinds), cores=core) as servers,
        contextlib.ExitStack() as stack,
    ):
        address = {kind: server.first_line for kind, server in zip(kinds, servers, strict=True)}
        adds = {}
        for peer, kind in SERVER_OF.items():
            adds[peer], close = connect(peer, address[kind])
            stack.callback(close)
            _times(adds[peer], 500)
        for peer, add in adds.items():
            taken = _times(add, calls)
            figures[peer] = (taken[calls // 2] * MICRO, taken[calls * 99 // 100] * MICRO)
    return figures


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(quick: bool) -> list[Throughput]:
    """(b) Eight client processes, unpinned."""
    rounds, seconds = (1, 1.0) if quick else (5, 1.5)
    rates: dict[str, list[float]] = {peer: [] for peer in LOADED}
    costs: dict[str, list[float]] = {peer: [] for peer in LOADED}
    with contextlib.ExitStack() as stack:
        servers: dict[str, Child] = {}
        clients: dict[str, list[Child]] = {}
        for peer in LOADED:
            servers[peer] = stack.enter_context(children(("serve", SERVER_OF[peer])))[0]
            load = ("load", peer, servers[peer].first_line, seconds)
            clients[peer] = stack.enter_context(children(*[load] * CLIENTS))
        for _ in range(rounds):
            for peer in LOADED:
                cpu = _cpu_s(servers[peer].pid)
                for client in clients[peer]:
                    client.go()
                calls = sum(int(client.read()) for client in clients[peer])
                rates[peer].append(calls / seconds)
                costs[peer].append((_cpu_s(servers[peer].pid) - cpu) / calls * MICRO)
    base = statistics.median(rates["Pyro5 msgpack"])
    return [
        Throughput(p, r := statistics.median(rates[p]), statistics.median(costs[p]), r / base) for p in LOADED
    ]


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def idle_connections(quick: bool) -> Idle:
    """(c) Connections that are open, each having made a call; and where stock Pyro5 refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, CONNECTIONS + 1_000)), hard))
    with (
        children(("serve", "objserver"), ("serve", "pyro5")) as (ours, stock),
        contextlib.ExitStack() as stack,
    ):
        rss, served, refusal, stock_served = _status(ours.pid, "VmRSS"), 0, "none", 0
        adds = []
        for _ in range(CONNECTIONS):
            add, close = connect("objserver", ours.first_line)
            stack.callback(close)
            served += add(2, 3) == 5
            adds.append(add)
        still = sum(add(2, 3) == 5 for add in adds)  # while all the others are open
        threads, rss = _status(ours.pid, "Threads"), _status(ours.pid, "VmRSS") - rss
        for _ in range(200):
            try:
                add, close = connect("Pyro5 msgpack", stock.first_line)
                stack.callback(close)
                stock_served += add(2, 3) == 5
            except Exception as refused:
                refusal = str(refused)
                break
    return Idle(CONNECTIONS, min(served, still), threads, rss / CONNECTIONS, stock_served, refusal)


def sleeping(quick: bool) -> Sleeping:
    """(d) Thirty servants asleep on distinct objects while another client goes on calling `add`."""
    rounds = 3 if quick else 11
    figures: list[tuple[float, float, float]] = []
    with children(("serve", "objserver")) as (server,):
        with children(("sleepers", server.first_line, SLEEPERS, SLEEP_S)) as (sleepers,):
            add, close = connect("objserver", server.first_line)
            _times(add, 500)
            for _ in range(rounds):
                idle = statistics.median(_times(add, 2_000)) * MICRO
                beside: list[float] = []
                sleepers.go()
                while not _readable(sleepers):
                    beside += _times(add, 50)
                figures.append((float(sleepers.read()), idle, statistics.median(beside) * MICRO))
            close()
    return Sleeping(
        statistics.median(total for total, _, _ in figures),
        statistics.median(idle for _, idle, _ in figures),
        statistics.median(beside for _, _, beside in figures),
        statistics.median(beside / idle for _, idle, beside in figures),
        tuple(figures),
    )


def _readable(child: Child) -> bool:
    assert child._process.stdout is not None
    return bool(select.select([child._process.stdout], [], [], 0)[0])
