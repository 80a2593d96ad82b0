"""The name server with 100,000 names in it.

    python -m benchmarks.names

The name server and its clients are processes of their own, and nothing is pinned.  A lookup is compared, in
turns, with a plain call to an object that the same server hosts, of which the client has a proxy too.  There
are two: `resolve`, which answers text and is what a PYRONAME: proxy asks, and Pyro5's `lookup`, which answers
a reference, of which our client makes a proxy; that is counted.  A stock client is measured too.  Names are
asked for at random: any of them, or, as a client has its names, any of a hundred.  A restart
is measured from the start of the process, interpreter and imports included, until it has answered a lookup.

For the failover two name servers share one PostgreSQL.  The one that a client asks first is killed, or
stopped so that it accepts and never answers; what is measured is a new proxy's first call, which has to be
resolved.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import Pyro5.api

from benchmarks.measures import Spread
from benchmarks.report import Sheet, Tables, run_alone
from objserver import Proxy
from objserver.testing.postgres import PostgresServer, Unavailable

NAMES = 100_000
PER_CONTEXT = 100
SERVERS = 200
"""They are objects of so many."""
BATCH = 1_000
SERVER = """
import sys
from objserver import expose
from objserver.naming import NameServerDaemon

@expose
class Plain:
    def call(self, name: str) -> str:
        return name

daemon = NameServerDaemon("localhost:0", store=sys.argv[1])
daemon.register(Plain, "plain")
daemon.start()
print(daemon.address, flush=True)
sys.stdin.read()
daemon.stop()
"""


@contextlib.contextmanager
def _serving(store: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-c", SERVER, store]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGCONT)
        process.communicate()


def _names(address: str) -> Any:
    return Proxy(f"PYRO:Pyro.NameServer@{address}")


def _name(n: int) -> str:
    return f"lab/{n // PER_CONTEXT:04}/instrument-{n:06}"


def _median_us(call: Callable[[], Any], times: int) -> float:
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e6


def _fill(address: str) -> float:
    """Names registered per second, in batches."""
    begun = time.perf_counter()
    with _names(address) as names:
        for at in range(0, NAMES, BATCH):
            uris = {_name(n): f"PYRO:obj_{n}@localhost:{n % SERVERS + 1024}" for n in range(at, at + BATCH)}
            names.register_all(uris, metadata=["kind:instrument"])
    return NAMES / (time.perf_counter() - begun)


def _restart_s(store: str) -> float:
    begun = time.perf_counter()
    with _serving(store) as (address, _), _names(address) as names:
        names.lookup(_name(NAMES // 2))
        return time.perf_counter() - begun


def _asked(address: str, rounds: int, times: int) -> dict[str, Spread]:
    """Medians in microseconds, by what was asked."""
    found: dict[str, list[float]] = {}
    with (
        _names(address) as names,
        Proxy(f"PYRO:plain@{address}") as plain,
        Pyro5.api.Proxy(f"PYRO:Pyro.NameServer@{address}") as stock_names,
        Pyro5.api.Proxy(f"PYRO:plain@{address}") as stock_plain,
    ):
        dice = Random(1)
        name = _name(NAMES // 3)
        context = name.rpartition("/")[0]
        assert len(names.list(prefix=context + "/")) == PER_CONTEXT
        asked: dict[str, tuple[Callable[[], Any], int]] = {
            "a plain call": (lambda: plain.call(_name(dice.randrange(NAMES))), times),
            "resolve": (lambda: names.resolve(_name(dice.randrange(NAMES))), times),
            "lookup": (lambda: names.lookup(_name(dice.randrange(NAMES))), times),
            "lookup of one in a hundred": (lambda: names.lookup(_name(dice.randrange(100))), times),
            "stock client: a plain call": (
                lambda: stock_plain.call(_name(dice.randrange(NAMES))),
                times // 4,
            ),
            "stock client: lookup": (lambda: stock_names.lookup(_name(dice.randrange(NAMES))), times // 4),
            "list by prefix": (lambda: names.list(prefix=context + "/"), times // 10),
            "page of 1,000": (lambda: names.page("lab/", context), times // 20),
            "children of lab": (lambda: names.children("lab"), times // 20),
            "resolve PYRONAME, connect and call": (lambda: _resolved(address), times // 20),
        }
        count = iter(range(10**9))
        asked["register"] = lambda: names.register(f"new/{next(count)}", "PYRO:x@localhost:1"), times // 20
        names.register("plain", f"PYRO:plain@{address}")
        for _ in range(rounds):
            for what, (call, often) in asked.items():
                call()
                found.setdefault(what, []).append(_median_us(call, often))
    return {what: Spread(tuple(us)) for what, us in found.items()}


def _resolved(address: str) -> None:
    with Proxy(f"PYRONAME:plain@{address}") as proxy:
        proxy.call("x")


FAILOVER = """
import sys, time
from objserver import Proxy
begun = time.perf_counter()
with Proxy(f"PYRONAME:plain@{sys.argv[1]}") as proxy:
    proxy.call("x")
print(time.perf_counter() - begun)
"""


def _failover_s(url: str, signal_: signal.Signals | None) -> float:
    """A new process's first call by name, after a signal to the name server that it asks first."""
    with _serving(url) as (first, process), _serving(url) as (second, _):
        with _names(second) as names:
            names.register("plain", f"PYRO:plain@{second}", safe=False)
        if signal_ is not None:
            os.kill(process.pid, signal_)
        command = [sys.executable, "-c", FAILOVER, f"{first},{second}"]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _stores(directory: str, server: PostgresServer | None) -> dict[str, str]:
    found = {"SQLite": f"sqlite:///{directory}/names.db"}
    if server is not None:
        found["PostgreSQL"] = server.new_url()
    return found


def tables(quick: bool = False) -> Tables:
    """For the page of all benchmarks."""
    made = Tables()
    rounds, times = (3, 400) if quick else (5, 2_000)
    # On the disk that the project is on: /tmp may be memory.
    directory = tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parent.parent)
    try:
        server: PostgresServer | None = PostgresServer()
    except Unavailable:
        server = None
    rows: dict[str, list[str]] = {}
    stores = _stores(directory, server)
    try:
        for engine, url in stores.items():
            with _serving(url) as (address, _):
                rate = _fill(address)
                us = _asked(address, rounds, times)
            restarts = Spread(tuple(_restart_s(url) for _ in range(rounds)))
            rows.setdefault(f"registered per second, {BATCH:,} at a time", []).append(f"{rate:,.0f}")
            for what, spread in us.items():
                rows.setdefault(f"{what}, us", []).append(spread.text(0))
            rows.setdefault("restart until the first answer, s", []).append(restarts.text())
            for what in ("resolve", "lookup", "lookup of one in a hundred", "stock client: lookup"):
                plain = "stock client: a plain call" if what.startswith("stock") else "a plain call"
                made.at_most(f"{engine}: {what} at most 1.5x a plain call", us[what].over(us[plain]), 1.5)
            listed = Spread(tuple(each / 1e3 for each in us["list by prefix"].starts))
            sentence = f"{engine}: list of {PER_CONTEXT} by prefix among {NAMES:,} names within 5 ms"
            made.at_most(sentence, listed, 5.0, 2, " ms")
            made.at_most(f"{engine}: restart with {NAMES:,} names under 2 s", restarts, 2.0, 2, " s")
        made.sheets.append(
            Sheet(
                f"A name server with {NAMES:,} names, medians",
                ["measured", *stores],
                [[what, *values] for what, values in rows.items()],
            )
        )
        if server is None:
            made.no_goal("failover to another name server under 1 s", "there is no PostgreSQL")
            return made
        fails: list[list[str]] = []
        for how, signal_ in (("alive", None), ("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
            taken = Spread(tuple(_failover_s(server.new_url(), signal_) for _ in range(rounds)))
            fails.append([how, taken.text(3)])
            if signal_ is not None:
                sentence = f"failover from a name server that was {how}: under 1 s"
                made.goal(sentence, taken.text(3, " s"), max(taken.starts) < 1.0)
        made.sheets.append(
            Sheet("A new client's first call by name", ["the first of two name servers", "s"], fails)
        )
        return made
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    run_alone(tables)
