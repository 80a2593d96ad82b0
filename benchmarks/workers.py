"""Several processes with one store, and behind one address: what either costs.

    python -m benchmarks.workers [store] [entry]

Of the store: commits of small states by one process that has the SQLite file to itself, and by 1, 2 and 4
processes through its owner; one commit after the other, and as a server commits, many objects at a time
through a Committer.  What the disk takes for an fdatasync is printed beside them; all are measured in turns.

Of the entry: connecting, greeting and one call, then further calls, of a client that goes straight to the
server's own address, through a front that hands over, and through a shared port.  Client, front and server
have one core, so that what is measured is work and not the waking of another; the three take turns, call by
call.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from objserver import ObjectServer, Proxy, expose
from objserver.server.handoff import Adopter, Front, SharedPort
from objserver.storage import Change, Committer, Store
from objserver.storage.owner import StoreServer
from objserver.storage.remote import RemoteStore
from objserver.storage.sqlite import SqliteStore

ROUNDS = 5
ROUND_S = 1.0
CHAINS = 32
"""Objects that one process changes at a time, as a server does under load."""
STATE = b"x" * 300
CONNECTIONS = 400
CALLS = 20_000


def fdatasync_ms(directory: str) -> float:
    times = []
    with open(f"{directory}/probe", "wb", buffering=0) as file:
        for _ in range(100):
            file.write(STATE)
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


class Chain:
    """Changes of one object, each submitted when the one before is stored."""

    def __init__(self, committer: Committer, key: str, end: float, times: list[float]) -> None:
        self._committer, self._key, self._end, self._times = committer, key, end, times
        self._version = 0
        self.over = threading.Event()

    def go_on(self) -> None:
        self._start = time.perf_counter()
        self._committer.submit(Change("T", self._key, 0, self._version, 1, 1, STATE), self._done)

    def _done(self, error: BaseException | None) -> None:
        now = time.perf_counter()
        if error is not None:
            raise error
        self._times.append(now - self._start)
        self._version += 1
        if now < self._end:
            self.go_on()
        else:
            self.over.set()


def commits(store: Store, prefix: str, chains: int, seconds: float) -> list[float]:
    """How long each commit took."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    if chains == 1:
        version = 0
        while (start := time.perf_counter()) < end:
            assert store.commit([Change("T", prefix, 0, version, 1, 1, STATE)])
            times.append(time.perf_counter() - start)
            version += 1
        return times
    committer = Committer(store)
    all_of_them = [Chain(committer, f"{prefix} {n}", end, times) for n in range(chains)]
    for chain in all_of_them:
        chain.go_on()
    for chain in all_of_them:
        chain.over.wait()
    committer.close()
    return times


def writer(path: str) -> None:
    """Another process: for each line, commits for a while, and says how long they took."""
    store = RemoteStore(path)
    print("ready", flush=True)
    for line in sys.stdin:
        prefix, chains, seconds = line.split()
        print(*(f"{t:.6f}" for t in commits(store, prefix, int(chains), float(seconds))), flush=True)


@contextlib.contextmanager
def child(*arguments: object, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.workers", *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, pass_fds=pass_fds
    ) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.stdin.close()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def measure_store() -> None:
    with tempfile.TemporaryDirectory(dir=".") as directory, contextlib.ExitStack() as stack:
        print(f"fdatasync p50 {fdatasync_ms(directory):.2f} ms")
        direct = SqliteStore(f"sqlite:///{directory}/direct.db")
        owned = SqliteStore(f"sqlite:///{directory}/owned.db", alone=False)
        owner = StoreServer(owned, f"{directory}/owner")
        writers = [stack.enter_context(child("writer", owner.path)) for _ in range(4)]
        for process in writers:
            assert line_of(process) == "ready\n"
        found: dict[tuple[int, int], list[float]] = {}
        batches: dict[tuple[int, int], list[int]] = {}
        for round in range(ROUNDS):
            for chains in (1, CHAINS):
                found.setdefault((chains, 0), []).extend(
                    commits(direct, f"{round}-{chains}", chains, ROUND_S)
                )
                for count in (1, 2, 4):
                    before = owner.statistics()
                    for n, process in enumerate(writers[:count]):
                        assert process.stdin is not None
                        process.stdin.write(f"{round}-{chains}-{count}-{n} {chains} {ROUND_S}\n")
                        process.stdin.flush()
                    times = found.setdefault((chains, count), [])
                    for process in writers[:count]:
                        times += map(float, line_of(process).split())
                    after = owner.statistics()
                    done = batches.setdefault((chains, count), [0, 0])
                    done[0] += after["commits"] - before["commits"]
                    done[1] += after["changes"] - before["changes"]
        for chains, count in sorted(found):
            times = sorted(found[chains, count])
            who = f"{count} processes" if count else "directly"
            done = batches.get((chains, count), [0, 0])
            rate, p50, p99 = (
                len(times) / ROUNDS / ROUND_S,
                times[len(times) // 2],
                times[len(times) * 99 // 100],
            )
            together = f"   {done[1] / max(1, done[0]):.1f} changes in a transaction" if count else ""
            print(
                f"{chains:3} at a time, {who:12} {rate:8,.0f} changes/s   p50 {p50 * 1000:6.2f} ms"
                f"   p99 {p99 * 1000:6.2f} ms{together}"
            )
        owner.close()
        direct.close()
        owned.close()


class Adder:
    @expose
    def add(self, a: int, b: int) -> int:
        return a + b


def server(port: str, channel: str) -> None:
    """Another process: a server at an address of its own, behind a front, and at a shared port."""
    with ObjectServer() as server:
        server.register(Adder, "adder")
        shared = SharedPort(server, port)
        adopter = Adopter(server, socket.socket(fileno=int(channel)))
        print(server.address, flush=True)
        sys.stdin.read()
        adopter.stop()
        shared.stop()


def measure_entry() -> None:
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    front = Front("127.0.0.1:0")
    front.start()
    with SharedPort.reserve("127.0.0.1:0") as reserved, contextlib.ExitStack() as stack:
        port = f"127.0.0.1:{reserved.getsockname()[1]}"
        # One server: to another process its client would have to switch.
        with front.add("one") as end:
            process = stack.enter_context(child("server", port, end.fileno(), pass_fds=(end.fileno(),)))
        entries = {"direct": line_of(process).strip(), "handed over": front.address, "shared port": port}

        def connect(address: str) -> None:
            with Proxy(f"PYRO:adder@{address}") as proxy:
                proxy.add(2, 3)

        report("connection and first call", entries, connect, CONNECTIONS)
        for name, address in entries.items():
            before = processor_s(process.pid)
            for _ in range(CONNECTIONS):
                connect(address)
            used = (processor_s(process.pid) - before) / CONNECTIONS
            print(f"{'processor time of that':26} {name:12} {used * 1e6:.0f} µs")
        proxies: dict[str, Any] = {name: Proxy(f"PYRO:adder@{at}") for name, at in entries.items()}
        for proxy in proxies.values():
            proxy.add(2, 3)
        report("call afterwards", proxies, lambda proxy: proxy.add(2, 3), CALLS)
        for proxy in proxies.values():
            proxy._pyroRelease()
    front.stop()


def processor_s(pid: int) -> float:
    """What this process, which is client and front, and the server have used."""
    return time.process_time() + time.clock_gettime(~pid << 3 | 2)


def report(what: str, over: dict[str, Any], work: Callable[[Any], object], count: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in over}
    turns = list(over.items())
    for _ in range(count):
        turns = turns[1:] + turns[:1]
        for name, each in turns:
            start = time.perf_counter()
            work(each)
            times[name].append(time.perf_counter() - start)
    for name in times:
        best = [statistics.quantiles(times[of], n=20)[0] for of in (name, "direct")]
        middle = [statistics.median(times[of]) for of in (name, "direct")]
        print(
            f"{what:26} {name:12} p5 {best[0] * 1e6:7.1f} µs, {best[0] / best[1]:4.2f} of direct"
            f"   p50 {middle[0] * 1e6:7.1f} µs, {middle[0] / middle[1]:4.2f} of direct"
        )


if __name__ == "__main__":
    kind, *rest = sys.argv[1:] or ["both"]
    if kind == "writer":
        writer(*rest)
    elif kind == "server":
        server(*rest)
    else:
        if kind in ("both", "store"):
            measure_store()
        if kind in ("both", "entry"):
            measure_entry()
