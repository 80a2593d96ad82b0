"""A cluster of nodes over PostgreSQL: what it costs that an object may be anywhere, and that it may move.

    python -m benchmarks.cluster [--quick] [--plot FILE]

Nodes and the database are processes of this machine, and nothing is pinned.  What is compared is called in
turns.  Calls are of a @readonly member, the cheapest that a Persistent object has: its answer is confirmed by
the database, and not written.  The time of a migration is that of the longest call of each caller that was
under way during it; callers rest for 2 ms after each call.  A killed node's objects are called all the time:
what counts is how long each had no answer.

Size is measured in the database: rows of as many live nodes and owned objects as a cluster would have, and
what each statement of the directory takes beside them.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import Pyro5.api

from benchmarks.durable import fdatasync_ms
from benchmarks.measures import Spread
from benchmarks.report import Sheet, Tables, run_alone
from objserver import Proxy
from objserver.cluster.routes import ROUTES_MAX, Routes
from objserver.settings import ServerSettings
from objserver.storage import Elsewhere, Node, Store, open_store
from objserver.testing.postgres import PostgresServer, Unavailable

LEASE_S = ServerSettings().node_lease_s
OBJECTS = 20
CALLERS, REST_S = 4, 0.002
"""Of an object that is moved, and how long each rests after a call: it is not the load that is measured."""
CLIENTS, PER_CLIENT = 3, 8
SIZES = ((3, 10_000), (10, 30_000), (30, 100_000), (100, 1_000_000))
"""Nodes, and objects that they have."""
STATEMENTS = "renew", "acquire", "acquire_new", "owners", "confirm"
SAYS = {
    "renew": "renew a lease, and learn who else there is",
    "acquire": "acquire an object that nobody has",
    "acquire_new": "acquire one that was never stored",
    "owners": "ask whose an object is",
    "confirm": "confirm a read (every call; the same without a cluster)",
}
NODE = """
import collections, json, sys
from pathlib import Path
from objserver import ObjectServer, Persistent, errors, expose, readonly
from objserver.storage import open_store

class Counting:
    def __init__(self, store):
        self.store, self.counts = store, collections.Counter()
    def __getattr__(self, name):
        found = getattr(self.store, name)
        if not callable(found):
            return found
        def counted(*args, **kwargs):
            self.counts[name] += 1
            return found(*args, **kwargs)
        return counted

@expose
class Account:
    def __init__(self):
        self.balance = 0
        self.owner = "x" * 230
    def deposit(self):
        self.balance += 1
        return self.balance
    @readonly
    def read(self):
        return self.balance

store = Counting(open_store(sys.argv[1]))
server = ObjectServer(store=store, cluster="bench", node=sys.argv[2])
server.register(Account, "Account", activation=Persistent())
server.start()
print(server.address, flush=True)
for line in sys.stdin:
    order, *arguments = json.loads(line)
    if order == "migrate":
        try:
            server.node.migrate("Account", *arguments, 10.0)
            answer = True
        except errors.Moved:
            answer = False
    elif order == "renew":
        answer = server.node.renew()
    elif order == "counts":
        answer = dict(store.counts)
    else:
        answer = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    print(json.dumps(answer), flush=True)
server.stop()
"""


class _Node:
    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODE, url, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def ask(self, *order: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def uri(self, key: object) -> str:
        return f"PYRO:Account/{key}@{self.address}"


@contextlib.contextmanager
def _nodes(url: str, names: str) -> Iterator[list[_Node]]:
    nodes = [_Node(url, name) for name in names]
    try:
        for node in nodes:
            node.ask("renew")  # it knows the others
        yield nodes
    finally:
        for node in nodes:
            node.process.communicate()


def _taken_us(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e6


def _first(uri: str) -> None:
    with Proxy(uri) as proxy:
        proxy.read()


def _forwarding(url: str, quick: bool) -> dict[str, Spread]:
    """Medians in microseconds, by the kind of call."""
    rounds, times = (3, 100) if quick else (5, 400)
    found: dict[str, list[float]] = {}
    with _nodes(url, "ab") as (a, b):
        with (
            Proxy(a.uri("x")) as direct,
            Proxy(b.uri("x")) as forwarded,
            Pyro5.api.Proxy(a.uri("x")) as stock,
            Pyro5.api.Proxy(b.uri("x")) as relayed,
        ):
            kinds: dict[str, tuple[Callable[[], object], int]] = {
                "a call, direct": (direct.read, times),
                "a call, forwarded before": (forwarded.read, times),
                "connect and call, direct": (lambda: _first(a.uri("x")), times // 4),
                "connect and call, forwarded": (lambda: _first(b.uri("x")), times // 4),
                "a stock client's call, direct": (stock.read, times),
                "a stock client's call, relayed": (relayed.read, times),
            }
            for call, _ in kinds.values():
                call()
            for _ in range(rounds):
                taken: dict[str, list[float]] = {kind: [] for kind in kinds}
                for n in range(times):
                    for kind, (call, often) in kinds.items():
                        if n < often:
                            taken[kind].append(_taken_us(call))
                for kind, us in taken.items():
                    found.setdefault(kind, []).append(statistics.median(us))
    return {kind: Spread(tuple(us)) for kind, us in found.items()}


def _calling(
    uri: str, method: str, rest_s: float, over: threading.Event, calls: list[tuple[float, float]]
) -> None:
    with Proxy(uri, timeout_s=60) as proxy:
        call = getattr(proxy, method)
        while not over.is_set():
            begun = time.perf_counter()
            call()
            calls.append((begun, time.perf_counter()))
            if rest_s:
                over.wait(rest_s)


@contextlib.contextmanager
def _called(uris: list[str], method: str, rest_s: float = 0.0) -> Iterator[list[list[tuple[float, float]]]]:
    """Each of them is called all the time, with so long a rest; when each call began and ended."""
    over = threading.Event()
    calls: list[list[tuple[float, float]]] = [[] for _ in uris]
    threads = [
        threading.Thread(target=_calling, args=(uri, method, rest_s, over, its))
        for uri, its in zip(uris, calls, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        while not all(calls):
            time.sleep(0.01)
        yield calls
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _migrations(url: str, quick: bool) -> tuple[list[float], float, float]:
    """In ms: the longest call of a caller during each migration; the median call; the median migration."""
    moves: list[tuple[float, float]] = []
    with _nodes(url, "ab") as nodes:
        with _called([nodes[0].uri("hot")] * CALLERS, "deposit", REST_S) as calls:
            for n in range(60 if quick else 400):
                here, there = nodes[n % 2], nodes[1 - n % 2]
                before = [len(its) for its in calls]
                begun = time.perf_counter()
                assert here.ask("migrate", "hot", there.name)
                moves.append((begun, time.perf_counter()))
                while any(len(its) < count + 3 for its, count in zip(calls, before, strict=True)):
                    time.sleep(0.001)  # all call it where it is now
    pauses = [
        max((end - start) * 1e3 for start, end in its if start < to and end > begun)
        for begun, to in moves
        for its in calls
        if any(start < to and end > begun for start, end in its)
    ]
    usual = statistics.median((end - start) * 1e3 for its in calls for start, end in its)
    return pauses, usual, statistics.median((to - begun) * 1e3 for begun, to in moves)


def _kills(server: PostgresServer, quick: bool) -> list[float]:
    """Seconds that each object of a killed node had no answer."""
    gaps = []
    for _ in range(2 if quick else 8):
        with _nodes(server.new_url(), "abc") as (a, *_):
            with _called([a.uri(key) for key in range(OBJECTS)], "deposit") as calls:
                killed = time.perf_counter()
                a.process.kill()
                while not all(its[-1][0] > killed for its in calls):
                    time.sleep(0.01)
            for its in calls:
                ends = [end for _, end in its]
                gaps.append(next(end for end in ends if end > killed + 0.05) - killed)
    return gaps


def _client(uris: list[str], seconds: float, made: Any) -> None:
    over = threading.Event()
    with _called(uris, "read") as calls:
        before = sum(map(len, calls))
        over.wait(seconds)
        made.put(sum(map(len, calls)) - before)


def _throughput(server: PostgresServer, quick: bool) -> dict[int, float]:
    """Calls per second of all clients, by the number of nodes."""
    seconds = 2.0 if quick else 5.0
    found = {}
    context = multiprocessing.get_context("fork")
    for count in (1, 2, 3):
        with _nodes(server.new_url(), "abc"[:count]) as nodes:
            made = context.Queue()
            uris = [nodes[n % count].uri(n) for n in range(CLIENTS * PER_CLIENT)]
            processes = [
                context.Process(target=_client, args=(uris[n::CLIENTS], seconds, made))
                for n in range(CLIENTS)
            ]
            for process in processes:
                process.start()
            found[count] = sum(made.get(timeout=60 + seconds) for _ in processes) / seconds
            for process in processes:
                process.join()
    return found


def _traffic(url: str, quick: bool) -> tuple[dict[str, float], dict[str, float], float]:
    """Statements of the store per call, with new objects and with active ones; bytes of an active object."""
    count = 500 if quick else 2_000
    with _nodes(url, "ab") as (a, _):

        def run() -> dict[str, float]:
            before, begun = a.ask("counts"), time.perf_counter()
            for key in range(count):
                with Proxy(a.uri(key)) as proxy:
                    proxy.read()
            after, seconds = a.ask("counts"), time.perf_counter() - begun
            found = {name: (after[name] - before.get(name, 0)) / count for name in after}
            found["renew"] = (after["renew"] - before.get("renew", 0)) / seconds  # by time, not by calls
            return found

        memory = a.ask("memory")
        first = run()
        used = (a.ask("memory") - memory) / count
        return first, run(), used


def _fill(server: PostgresServer, url: str, nodes: int, objects: int) -> None:
    server.execute(
        f"""INSERT INTO node (name, life, address, state, expires_at, facts)
        SELECT 'n' || i, 'life' || i, '10.0.0.1:' || i, 'up', extract(epoch FROM now()) + 1e6,
            '\\x83a76f626a656374730aa563616c6c730aa46c6f6164ca00000000'
        FROM generate_series(1, {nodes}) AS i""",
        url,
    )
    # One in ten is free.
    server.execute(
        f"""INSERT INTO object (type, key, owner, epoch, version, codec, state_version, state, deleted)
        SELECT 'Account', i::text, CASE WHEN i % 10 > 0 THEN 'life' || (1 + i % {nodes}) END, 1, 1, 1, 1,
            repeat('x', 250)::bytea, false
        FROM generate_series(1, {objects}) AS i""",
        url,
    )
    server.execute("ANALYZE", url)


def _curve(server: PostgresServer, quick: bool) -> dict[tuple[int, int], dict[str, float]]:
    """Milliseconds of each statement, by size."""
    found = {}
    times = 100 if quick else 300
    for nodes, objects in SIZES[: 3 if quick else None]:
        url = server.new_url()
        store = open_store(url)
        try:
            _fill(server, url, nodes, objects)
            found[nodes, objects] = _statements(store, objects, times)
        finally:
            store.close()
    return found


def _statements(store: Store, objects: int, times: int) -> dict[str, float]:
    step = max(10, objects // times // 10 * 10)
    keys = [str(n * step % objects + 10) for n in range(times)]  # they are free
    asked: dict[str, Callable[[int], object]] = {
        "renew": lambda n: store.renew("life1", 1e6, b""),
        "acquire": lambda n: store.acquire([("Account", keys[n])], "life1", member=True),
        "acquire_new": lambda n: store.acquire([("Account", f"new{n}")], "life1", member=True),
        "owners": lambda n: store.owners([("Account", str(n + 1))]),
        "confirm": lambda n: store.confirm([("Account", str(n + 1), 1, 1)]),
    }
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for n in range(times):
        for name, ask in asked.items():
            taken[name].append(_taken_us(lambda ask=ask, n=n: ask(n)) / 1e3)  # type: ignore[misc]
    return {name: statistics.median(ms[5:]) for name, ms in taken.items()}


def _memory() -> tuple[float, float]:
    """Bytes of a route, and of what a node knows of another."""
    tracemalloc.start()
    routes = Routes()
    for n in range(ROUTES_MAX):
        routes.learn("Account", str(n), Elsewhere("life", "10.0.0.1:1"), 0.0)
    per_route = tracemalloc.get_traced_memory()[0] / ROUTES_MAX
    before = tracemalloc.get_traced_memory()[0]
    view = [Node(f"node{n}", f"{n:032}", f"10.0.0.1:{n}", "up", 1.0 + n, bytes(40)) for n in range(1_000)]
    per_node = (tracemalloc.get_traced_memory()[0] - before) / len(view)
    tracemalloc.stop()
    return per_route, per_node


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def draw(curve: dict[tuple[int, int], dict[str, float]], path: Path) -> Path:
    """The cost of the directory's statements against the size of the cluster."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "objserver", "svg.fonttype": "path", "font.size": 10}):
        figure, panel = plt.subplots(figsize=(8, 4.5), layout="constrained", facecolor="#FBFBF9")
        sizes = [objects for _, objects in curve]
        for name in STATEMENTS:
            panel.plot(sizes, [curve[size][name] for size in curve], marker="o", label=SAYS[name])
        panel.set_xscale("log")
        panel.set_xticks(sizes, [f"{nodes} nodes\n{objects:,} objects" for nodes, objects in curve])
        panel.set_ylim(bottom=0)
        panel.set_ylabel("ms, median")
        panel.grid(axis="y", color="#E2E2DE")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=9)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return path


def tables(quick: bool = False, plot: Path | None = None) -> Tables:
    """For the page of all benchmarks."""
    made = Tables()
    try:
        server = PostgresServer()
    except Unavailable as reason:
        made.no_goal("a cluster", str(reason))
        return made
    try:
        _of_calls(made, server, quick)
        _of_events(made, server, quick)
        _of_size(made, server, quick, plot)
    finally:
        server.stop()
    return made


def _of_calls(made: Tables, server: PostgresServer, quick: bool) -> None:
    us = _forwarding(server.new_url(), quick)
    rows = [[kind, spread.text(0, " µs")] for kind, spread in us.items()]
    made.sheets.append(Sheet("Calls in a cluster of two nodes, medians", ["call", "value"], rows))
    first = us["connect and call, forwarded"].over(us["connect and call, direct"])
    made.at_most("forwarded first call: at most 2x a direct one", first, 2)
    later = us["a call, forwarded before"].over(us["a call, direct"])
    made.at_most("every later call: at most 1.05x a direct one", later, 1.05)
    relayed = us["a stock client's call, relayed"].over(us["a stock client's call, direct"])
    made.at_most("relayed call of a stock client: at most 2.5x a direct one", relayed, 2.5)
    rates = _throughput(server, quick)
    made.sheets.append(
        Sheet(
            f"Calls per second of {CLIENTS} client processes with {PER_CLIENT} threads each",
            ["nodes", "calls/s", "to one node"],
            [[str(n), f"{rate:,.0f}", f"{rate / rates[1]:.2f}"] for n, rate in rates.items()],
            "Nodes, clients and the database share this machine's cores.",
        )
    )


def _of_events(made: Tables, server: PostgresServer, quick: bool) -> None:
    pauses, usual, moving = _migrations(server.new_url(), quick)
    gaps = _kills(server, quick)
    made.sheets.append(
        Sheet(
            "What callers see when objects move, and when a node is killed",
            ["measured", "median", "p99", "of"],
            [
                ["a call that changes the object, otherwise", f"{usual:.1f} ms", "", ""],
                ["a migration", f"{moving:.1f} ms", "", ""],
                [
                    f"the longest call of each of {CALLERS} callers during one",
                    f"{statistics.median(pauses):.1f} ms",
                    f"{_p99(pauses):.1f} ms",
                    f"{len(pauses):,}",
                ],
                [
                    f"no answer of an object of a killed node, lease {LEASE_S:g} s",
                    f"{statistics.median(gaps):.2f} s",
                    f"{_p99(gaps):.2f} s",
                    f"{len(gaps):,}",
                ],
            ],
            f"fdatasync of one page, median of this run: {fdatasync_ms():.2f} ms.",
        )
    )
    pause, gap = _p99(pauses), _p99(gaps)
    made.goal("pause of a migrated object: p99 at most 20 ms", f"{pause:.1f} ms", pause <= 20)
    sentence = f"a killed node's objects answer again: p99 at most the lease ({LEASE_S:g} s) and 1 s"
    made.goal(sentence, f"{gap:.2f} s", gap <= LEASE_S + 1)


def _of_size(made: Tables, server: PostgresServer, quick: bool, plot: Path | None) -> None:
    first, later, per_object = _traffic(server.new_url(), quick)
    per_route, per_node = _memory()
    directory = ("acquire", "owners", "release", "nodes")
    rows = [
        [f"{name}, statements per call", f"{first.get(name, 0):.3f}", f"{later.get(name, 0):.3f}"]
        for name in (*directory, "replies", "timers", "confirm", "commit")
    ]
    rows.append(["renew, per second", f"{first['renew']:.2f}", f"{later['renew']:.2f}"])
    made.sheets.append(
        Sheet(
            "What a node asks of the store",
            ["statement", "first calls of new objects", "later calls"],
            rows,
            f"A node has {per_object:,.0f} bytes for an active object, {per_route:.0f} for a route (at most "
            f"{ROUTES_MAX:,}), {per_node:.0f} for what it knows of another node.",
        )
    )
    traffic = sum(later.get(name, 0) for name in directory)
    made.goal("directory statements of a call to an active object: none", f"{traffic:.3f}", traffic == 0)
    curve = _curve(server, quick)
    made.sheets.append(
        Sheet(
            "The directory's statements against the size of the cluster, ms, medians",
            ["statement", *(f"{nodes} nodes, {objects:,} objects" for nodes, objects in curve)],
            [[SAYS[name], *(f"{ms[name]:.2f}" for ms in curve.values())] for name in STATEMENTS],
            f"A node renews its lease every {LEASE_S / 3:g} s: 100 nodes make 100 renewals per second.",
        )
    )
    if plot is not None:
        draw(curve, plot)


if __name__ == "__main__":
    wanted = sys.argv[sys.argv.index("--plot") + 1] if "--plot" in sys.argv else None
    run_alone(lambda quick: tables(quick, Path(wanted) if wanted else None))
