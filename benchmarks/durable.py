"""Persistent objects over the wire, on an SQLite file: what it costs that a call happens exactly once.

    python -m benchmarks.durable

What a durable call costs depends on the disk, so everything is a ratio within one run, the disk's own speed
stands beside it, and the same is measured on a disk that is made slow: 4 ms for a commit, as in a cloud.
The ways are compared in turns, round after round:

    exactly once     the production server, numbered calls
    at most once     the same, of an @idempotent member: state is stored, replies are not
    commit per call  the same server without its output gate and without group commit: the next call of an
                     object runs when the one before is on the disk, and every commit is of one call

The state is about 250 bytes.  64 clients are threads of two processes, each with its Proxy, or tasks, each
with its AsyncProxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.measures import Spread
from benchmarks.report import Sheet, Tables, run_alone
from objserver import AsyncProxy, ObjectServer, Persistent, Proxy, expose, idempotent, readonly
from objserver.adapter import durability, servants
from objserver.client.connection import ClientConnection
from objserver.references import Reference
from objserver.storage import committer
from objserver.storage.sqlite import SqliteStore
from objserver.wire.frames import NO_CORRELATION

CLIENTS = 64
PROCESSES = 2
SLOW_COMMIT_S = 0.004
ACTIVE, STORED = 10_000, 100_000
BATCH = 1_000
WAYS = ("exactly once", "at most once", "commit per call")
MB = 1e6


@expose
class Account:
    def __init__(self) -> None:
        self.balance = 0
        self.owner = "x" * 230

    def once(self) -> int:
        self.balance += 1
        return self.balance

    @idempotent
    def again(self) -> int:
        self.balance += 1
        return self.balance

    @readonly
    def read(self) -> int:
        return self.balance


class SlowStore(SqliteStore):
    """On a disk that takes its time."""

    def commit(self, changes: Any) -> Any:
        accepted = super().commit(changes)
        time.sleep(SLOW_COMMIT_S)
        return accepted


def _commit_per_call() -> None:
    """Make this process's server hold an object until each call is on the disk."""
    settle, release = durability.Durability.settle, durability.Durability._release

    def settle_and_stay(self: Any, invocation: Any, *rest: Any) -> bool:
        invocation.stays = invocation.begun
        return settle(self, invocation, *rest) and not invocation.stays

    def release_and_leave(self: Any, held: Any) -> None:
        release(self, held)
        if held.invocation.__dict__.get("stays") and not held.invocation.ends:
            self._engine.submit(lambda: self._adapter.leave_and_run(held.invocation))

    durability.Durability.settle = settle_and_stay  # type: ignore[method-assign]
    durability.Durability._release = release_and_leave  # type: ignore[method-assign]
    committer.Committer.__init__.__kwdefaults__["batch_max"] = 1


def _serve(pipe: Connection, directory: str, per_call: bool, slow: bool) -> None:
    """Until told to end; answers with processor time, memory, and how long activations took."""
    if per_call:
        _commit_per_call()
    taken: list[float] = []
    incarnate = servants.ServantManager.incarnate

    def timed(self: Any, activation: Any) -> Any:
        begun = time.perf_counter()
        made = incarnate(self, activation)
        taken.append(time.perf_counter() - begun)
        return made

    servants.ServantManager.incarnate = timed  # type: ignore[method-assign]
    store = (SlowStore if slow else SqliteStore)(f"sqlite:///{directory}/accounts.db")
    with ObjectServer(store=store) as server:
        server.register(Account, "Account", activation=Persistent(capacity=ACTIVE * 2))
        pipe.send(server.address)
        while True:
            match pipe.recv():
                case "memory":
                    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
                    pipe.send(int(fields[0]) * 1024)
                case "taken":
                    pipe.send(list(taken))
                    taken.clear()
                case "passivate":
                    server.adapter.end_all()
                    while server.statistics()["active_objects"] > 1:
                        time.sleep(0.01)
                    pipe.send(True)
                case _:
                    break
    pipe.close()


@contextlib.contextmanager
def _server(
    per_call: bool = False, slow: bool = False, directory: str = ""
) -> Iterator[tuple[str, Connection]]:
    # On the disk that the project is on: /tmp may be memory.
    made = directory or tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parent.parent)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(theirs, made, per_call, slow), daemon=True
    )
    process.start()
    try:
        yield ours.recv(), ours
    finally:
        with contextlib.suppress(OSError):
            ours.send("end")
        process.join(10)
        if process.is_alive():
            process.kill()
        if not directory:
            shutil.rmtree(made, ignore_errors=True)


def _threads(address: str, keys: list[str], method: str, seconds: float, calls: Any) -> None:
    made = [0] * len(keys)
    begin = threading.Barrier(len(keys))

    def client(n: int, key: str) -> None:
        with Proxy(f"PYRO:Account/{key}@{address}") as proxy:
            call = getattr(proxy, method)
            call()
            begin.wait(30)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                call()
                made[n] += 1

    threads = [threading.Thread(target=client, args=pair) for pair in enumerate(keys)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls.put(sum(made))


def _tasks(address: str, keys: list[str], method: str, seconds: float, calls: Any) -> None:
    async def main() -> int:
        async with contextlib.AsyncExitStack() as stack:
            proxies = [
                await stack.enter_async_context(AsyncProxy(f"PYRO:Account/{key}@{address}")) for key in keys
            ]
            for proxy in proxies:
                await getattr(proxy, method)()
            end = time.perf_counter() + seconds

            async def client(proxy: AsyncProxy) -> int:
                call, made = getattr(proxy, method), 0
                while time.perf_counter() < end:
                    await call()
                    made += 1
                return made

            return sum(await asyncio.gather(*map(client, proxies)))

    calls.put(asyncio.run(main()))


CLIENTS_ARE = {"threads": _threads, "tasks": _tasks}


def _rate(address: str, kind: str, hot: bool, method: str, seconds: float) -> float:
    """Calls per second of all clients."""
    context = multiprocessing.get_context("fork")
    calls = context.Queue()
    share = CLIENTS // PROCESSES
    processes = []
    for n in range(PROCESSES):
        keys = ["hot" if hot else f"k{n * share + i}" for i in range(share)]
        arguments = (address, keys, method, seconds, calls)
        processes.append(context.Process(target=CLIENTS_ARE[kind], args=arguments, daemon=True))
        processes[-1].start()
    made = sum(calls.get(timeout=60 + seconds) for _ in processes)
    for process in processes:
        process.join()
    return made / seconds


def fdatasync_ms() -> float:
    """Of the disk the stores are on: the median for one page."""
    with tempfile.NamedTemporaryFile(dir=Path(__file__).parent.parent, prefix=".bench-") as file:
        page = os.urandom(4096)
        os.pwrite(file.fileno(), bytes(1 << 20), 0)
        os.fsync(file.fileno())
        taken = []
        for n in range(300):
            os.pwrite(file.fileno(), page, n % 256 * 4096)
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e3


def _compare(quick: bool, slow: bool) -> dict[tuple[str, bool, str], Spread]:
    """Calls/s by what the clients are, whether all call one hot object, and the way."""
    rounds, seconds = (2, 1.0) if quick else (5, 1.5)
    found: dict[tuple[str, bool, str], list[float]] = {}
    for _ in range(rounds):
        with _server(slow=slow) as (gated, _), _server(per_call=True, slow=slow) as (per_call, _):
            for case in itertools.product(CLIENTS_ARE, (False, True), WAYS):
                kind, hot, way = case
                address = per_call if way == "commit per call" else gated
                method = "again" if way == "at most once" else "once"
                found.setdefault(case, []).append(_rate(address, kind, hot, method, seconds))
    return {name: Spread(tuple(rates)) for name, rates in found.items()}


def _call(address: str) -> Callable[[str, str], Any]:
    """Calls any object of the server on one connection."""
    from objserver.client.pool import ConnectionPool
    from objserver.settings import CLIENT_LIMITS

    reference = Reference.parse(f"PYRO:Account/0@{address}")
    pool = ConnectionPool(reference, lambda r, t: r, serializer=None, session=None, handshake="hello")
    connection = ClientConnection(
        pool.greeting(None), codecs=pool.codecs, timeout_s=None, limits=CLIENT_LIMITS
    )
    codec = connection.codec

    def call(key: str, method: str) -> Any:
        payload = codec.encode_call(f"Account/{key}", method, (), {})
        reply = connection.call(codec, payload, 0, None, NO_CORRELATION, None)
        assert isinstance(reply, bytes)
        return codec.decode(reply)

    return call


def _activations(quick: bool) -> tuple[Spread, Spread, float, float]:
    """One activation in us, batched ones per second, MB of 10,000 active, MB that passivated ones leave."""
    stored = STORED // 10 if quick else STORED
    directory = tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parent.parent)
    try:
        from objserver.adapter import state
        from objserver.codecs import Codecs
        from objserver.settings import Limits
        from objserver.storage import Change

        codecs = Codecs(Limits())
        data = state.capture(Account(), codecs)
        store = SqliteStore(f"sqlite:///{directory}/accounts.db")
        for at in range(0, stored, 5_000):
            store.commit(
                [Change("Account", str(n), 0, 0, state.CODEC, 1, data) for n in range(at, at + 5_000)]
            )
        rates = []
        for at in range(0, 10 * BATCH, BATCH):
            begun = time.perf_counter()
            names = [("Account", str(n)) for n in range(at, at + BATCH)]
            for record in store.acquire(names, "benchmark").values():
                assert record.state is not None
                state.restore(Account(), record.state, record.state_version, codecs)
            rates.append(BATCH / (time.perf_counter() - begun))
        store.close()
        with _server(directory=directory) as (address, pipe):
            call = _call(address)
            for n in range(1_000):  # what the first calls load, and the buffers
                call(str(n), "read")

            def ask(what: str) -> Any:
                pipe.send(what)
                return pipe.recv()

            ask("passivate")
            ask("taken")
            before = ask("memory")
            for n in range(ACTIVE if not quick else ACTIVE // 2):
                call(str(n), "read")
            active = (ask("memory") - before) * (1 if not quick else 2)
            single = ask("taken")

            def pass_all() -> int:
                for n in range(stored):
                    call(str(n), "read")
                ask("passivate")
                ask("taken")
                return int(ask("memory"))

            ask("passivate")
            caches = pass_all()  # what the allocator and SQLite keep of the most that were ever active
            left = pass_all() - caches
        parts = [single[at : at + 1000] for at in range(0, len(single), 1000)]
        p50 = Spread(tuple(statistics.median(part) * 1e6 for part in parts))
        return p50, Spread(tuple(rates)), active / MB, left / MB
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def tables(quick: bool = False) -> Tables:
    """For the page of all benchmarks."""
    made = Tables()
    disk = fdatasync_ms()
    for slow in (False, True):
        rates = _compare(quick, slow)
        where = f"a disk with {SLOW_COMMIT_S * 1e3:.0f} ms more per commit" if slow else "this disk"
        rows = []
        for kind, hot, way in rates:
            rate = rates[kind, hot, way]
            objects = "one hot object" if hot else f"{CLIENTS} objects"
            base = rates[kind, hot, "commit per call"]
            rows.append([f"{objects}, {CLIENTS} {kind}, {way}", rate.text(0), rate.over(base).text()])
        made.sheets.append(
            Sheet(
                f"Durable calls on {where}, SQLite",
                ["calls", "calls/s", "to commit per call"],
                rows,
                f"fdatasync of one page, median of this run: {disk:.2f} ms.",
            )
        )
        for kind in CLIENTS_ARE:
            case = f"{CLIENTS} {kind}, {where}"
            each = f"the calls/s of commit per call, one hot object, {case}"
            once, most = rates[kind, False, "exactly once"], rates[kind, False, "at most once"]
            sentence = f"exactly once: at least 0.7x the calls/s of at most once, {CLIENTS} objects, {case}"
            made.at_least(sentence, once.over(most), 0.7)
            hot_once, hot_each = (rates[kind, True, way] for way in ("exactly once", "commit per call"))
            made.at_least(f"output gate: at least 20x {each}", hot_once.over(hot_each), 20)
            sentence = f"group commit: at least 8x the calls/s of commit per call, {CLIENTS} objects, {case}"
            made.at_least(sentence, once.over(rates[kind, False, "commit per call"]), 8)
    single, batched, active, left = _activations(quick)
    made.sheets.append(
        Sheet(
            "Activating stored objects",
            ["measured", "value"],
            [
                ["one activation in the server, p50", single.text(0, " us")],
                [f"activated and loaded per second, {BATCH:,} names at a time", batched.text(0)],
                [f"memory of {ACTIVE:,} active objects", f"{active:.1f} MB"],
                [f"memory left by another {STORED:,} that were active and passivated", f"{left:.1f} MB"],
            ],
            "State of about 250 bytes; one activation is everything from the store to the servant.",
        )
    )
    made.goal("activation: at most 300 us, median", single.text(0, " us"), single.median <= 300)
    sentence = "activation: at least 20,000 per second in batches"
    made.goal(sentence, batched.text(0), batched.median >= 20_000)
    made.goal(f"{ACTIVE:,} active objects: at most 40 MB", f"{active:.1f} MB", active <= 40)
    return made


if __name__ == "__main__":
    run_alone(tables)
