"""What a subprocess of the benchmarks does: `python -m benchmarks.tasks TASK ARGUMENTS`.

It says that it is ready, then answers each order, a line of standard input, with a line of JSON.  It measures
in here, so that the process that gives the orders is not in the figures.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.peers import PEERS, SERVERS, Times, connect
from benchmarks.processes import FAILED

BATCH = 1_000
IN_FLIGHT = 256
WARM_UP_S = 0.1
ORPHANED_S = 120
"""A forked client that hears nothing for so long has lost its parent, and ends."""


def _orders() -> Iterator[str]:
    """The lines of standard input, after saying that this process is ready."""
    print("ready", flush=True)
    return (line.strip() for line in iter(sys.stdin.readline, ""))


def _warm_up(times: Times) -> None:
    end = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < end:
        times(20)


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def _calls(peer: str, address: str) -> None:
    """For each order make that many calls; answer with the seconds that each took."""
    times = connect(peer, address)
    _warm_up(times)
    for order in _orders():
        _answer([round(taken, 8) for taken in times(int(order))])


def _crowd(peer: str, address: str, clients: int) -> None:
    """So many client processes; for each order all call for that many seconds; answer with their calls.

    They are forked, so that each module is imported once and not once per client.
    """
    if PEERS[peer].module:
        importlib.import_module(PEERS[peer].module)
    context = multiprocessing.get_context("fork")
    begin, counts, seconds = context.Barrier(clients + 1), context.Queue(), context.Value("d", 0.0)

    def client() -> None:
        times = connect(peer, address)
        _warm_up(times)
        counts.put(0)
        while True:
            begin.wait(ORPHANED_S)
            calls, end = 0, time.perf_counter() + seconds.value
            while time.perf_counter() < end:
                calls += len(times(20))
            counts.put(calls)

    for _ in range(clients):
        context.Process(target=client, daemon=True).start()
    for _ in range(clients):
        counts.get()
    for order in _orders():
        seconds.value = float(order)
        begin.wait(ORPHANED_S)
        _answer(sum(counts.get() for _ in range(clients)))


def _ways(address: str) -> None:
    """One client; each order is a way to call and for how many seconds; answer with its calls per second."""
    import objserver

    proxy = objserver.Proxy(f"PYRO:Adder@{address}")

    def single(end: float) -> int:
        add, calls = proxy.add, 0
        while time.perf_counter() < end:
            for _ in range(50):
                add(2, 3)
            calls += 50
        return calls

    def batch(end: float) -> int:
        calls = 0
        while time.perf_counter() < end:
            with proxy.batch() as many:
                for _ in range(BATCH):
                    many.add(2, 3)
            calls += len(list(many.results()))
        return calls

    async def in_flight(end: float) -> int:
        calls = 0
        remote = objserver.AsyncProxy(f"PYRO:Adder@{address}")

        async def caller() -> None:
            nonlocal calls
            while time.perf_counter() < end:
                await remote.add(2, 3)
                calls += 1

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return calls

    ways = {"single": single, "batch": batch, "async": lambda end: asyncio.run(in_flight(end))}
    for order in _orders():
        way, _, seconds = order.partition(" ")
        begin = time.perf_counter()
        calls = ways[way](begin + float(seconds))
        _answer(calls / (time.perf_counter() - begin))


def _idle(address: str, count: int) -> None:
    """Open that many connections and call once on each; an order calls on all again; answer how many did."""
    from objserver import Proxy

    proxies, reason = [], ""
    for _ in _orders():
        served = 0
        try:
            for number in range(count):
                if number == len(proxies):
                    proxies.append(Proxy(f"PYRO:Adder@{address}"))
                served += proxies[number].add(2, 3) == 5
        except Exception as problem:
            reason = str(problem)
        _answer([served, reason])


def _refused(address: str, count: int) -> None:
    """How many connections a stock Pyro5 server serves at the same time, and what it says to the next."""
    import Pyro5.api

    stock: list[Any] = []
    for _ in _orders():
        reason = ""
        try:
            while len(stock) < count:
                proxy = Pyro5.api.Proxy(f"PYRO:Adder@{address}")
                proxy.add(2, 3)
                stock.append(proxy)
        except Exception as problem:
            reason = str(problem)
        _answer([len(stock), reason])


def _sleepers(address: str, count: int, seconds: float) -> None:
    """For each order all servants sleep, called by a thread each; answer how long that took."""
    from objserver import Proxy

    proxies = [Proxy(f"PYRO:Sleeper{number}@{address}") for number in range(count)]
    for proxy in proxies:
        proxy.add(2, 3)
    for _ in _orders():
        threads = [threading.Thread(target=proxy.sleep, args=(seconds,)) for proxy in proxies]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _answer(time.perf_counter() - begin)


def main(arguments: list[str]) -> None:
    try:
        match arguments:
            case ["serve", kind]:
                SERVERS[kind]()
            case ["calls", peer, address]:
                _calls(peer, address)
            case ["crowd", peer, address, clients]:
                _crowd(peer, address, int(clients))
            case ["ways", address]:
                _ways(address)
            case ["idle", address, count]:
                _idle(address, int(count))
            case ["refused", address, count]:
                _refused(address, int(count))
            case ["sleepers", address, count, seconds]:
                _sleepers(address, int(count), float(seconds))
            case _:
                raise SystemExit(f"unknown: {arguments}")
    except ImportError as problem:
        print(FAILED + str(problem), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
