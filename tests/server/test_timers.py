"""Timers of real servers, that stop, are killed, and share a store."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from objserver import AsyncProxy, ObjectServer, Persistent, Proxy, current, expose, readonly
from objserver.client import books
from objserver.machine import machine
from objserver.storage.sqlite import SqliteStore

BOUND_S = 20


def until(condition):
    pause = threading.Event()
    for _ in range(BOUND_S * 200):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never became true")


@expose
class Tally:
    executed = 0

    def __init__(self):
        self.count = 0

    def add(self) -> int:
        type(self).executed += 1
        self.count += 1
        return self.count

    @readonly
    def read(self) -> int:
        return self.count


@expose
class Ticker:
    tally = ""
    before_its_end = staticmethod(lambda: None)

    def __init__(self):
        self.ticks = []

    def start(self, method: str, after_s: float, every_s: float | None) -> float:
        current.set_timer("tick", method, after_s=after_s, every_s=every_s)
        return current.timers()["tick"]

    def stop(self) -> bool:
        return current.cancel_timer("tick")

    @readonly
    def read(self) -> list:
        return self.ticks

    def _tick(self) -> None:
        now = time.time()
        count = Proxy(self.tally, timeout_s=BOUND_S).add() if self.tally else 0
        self.ticks.append((now, current.timers().get("tick"), count))
        self.before_its_end()

    async def _tick_async(self) -> None:
        async with AsyncProxy(self.tally, timeout_s=BOUND_S) as tally:
            self.ticks.append((time.time(), None, await tally.add()))
        self.before_its_end()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(Tally, "executed", 0)
    monkeypatch.setattr(Ticker, "tally", "")
    machine.get().own(books._Books)._books.clear()


@contextlib.contextmanager
def serving(store, tally=False, **options):
    server = ObjectServer(store=store, **options)
    for cls in (Ticker, Tally):
        server.register(cls, cls.__name__, activation=Persistent())
    if tally:  # before the first timer may fire
        Ticker.tally = f"PYRO:Tally/t@{server.address}"
    with server:
        yield server


def proxy(server, object_id):
    return Proxy(f"PYRO:{object_id}@{server.address}", timeout_s=BOUND_S)


def test_timers_fire_when_they_are_due(tmp_path):
    with serving(f"sqlite:///{tmp_path}/x.db") as server:
        ticker = proxy(server, "Ticker/a")
        due = ticker.start("_tick", 0.05, 0.1)
        until(lambda: len(ticker.read()) >= 3)
        assert ticker.stop()
        for at, following, _ in ticker.read():
            assert due <= at < due + 2
            due = following
        assert server.statistics()["timers_fired"] >= 3


def test_also_with_one_worker(tmp_path):
    with serving(f"sqlite:///{tmp_path}/x.db", workers=1) as server:
        ticker = proxy(server, "Ticker/a")
        ticker.start("_tick", 0.0, 0.02)
        until(lambda: len(ticker.read()) >= 3)


def test_a_restarted_server_fires_what_was_set_before(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    with serving(url) as server:
        due = proxy(server, "Ticker/a").start("_tick", 0.2, None)
        proxy(server, "Ticker/b").start("_tick", 1e9, None)
    with serving(url) as server:
        ticker = proxy(server, "Ticker/a")
        until(ticker.read)
        ((at, following, _),) = ticker.read()
        assert at >= due
        assert following is None
        assert proxy(server, "Ticker/b").read() == []
    with serving(url) as server:
        assert len(proxy(server, "Ticker/a").read()) == 1
        assert proxy(server, "Ticker/b").stop()


@pytest.mark.parametrize("method", ["_tick", "_tick_async"])
def test_a_firing_that_is_run_again_does_not_repeat_its_calls(monkeypatch, method):
    """The first attempt is undone after its nested call, by another server that takes the object."""
    store = SqliteStore("sqlite://", alone=False)
    runs = []

    def steal():
        runs.append(method)
        if len(runs) == 1:
            store.acquire([("Ticker", "a")], "somebody else")

    monkeypatch.setattr(Ticker, "before_its_end", staticmethod(steal))
    with serving(store, tally=True) as server:
        ticker = proxy(server, "Ticker/a")
        ticker.start(method, 0.0, None)
        until(lambda: server.statistics()["timers_fired"])
        assert [count for _, _, count in ticker.read()] == [1]
        assert proxy(server, "Tally/t").read() == 1
        assert (Tally.executed, len(runs)) == (1, 2)
        # its client is an object, which may come back after any time
        ((lease,),) = store._rows("SELECT max(expires_at) FROM session")
        assert lease > time.time() + 10 * 365 * 86_400


def test_a_periodic_timer_leaves_no_records_behind(tmp_path):
    with serving(f"sqlite:///{tmp_path}/x.db", tally=True) as server:
        ticker = proxy(server, "Ticker/a")
        ticker.start("_tick", 0.0, 0.01)
        until(lambda: len(ticker.read()) >= 10)
        ticker.stop()
        assert len(server._store.replies("Tally", "t")) == 1


def test_servers_over_one_store_fire_a_timer_once_between_them():
    store = SqliteStore("sqlite://", alone=False)
    store.close = lambda: None
    with serving(store) as one, serving(store) as other:
        ticker = proxy(one, "Ticker/a")
        due = ticker.start("_tick", 0.0, 0.05)
        until(lambda: len(ticker.read()) >= 10)
        assert ticker.stop()
        ticks = ticker.read()
        until(lambda: _fired(one, other) == len(ticks))
        for at, following, _ in ticks:
            assert due <= at < following
            due = following


def _fired(*servers):
    return sum(server.statistics()["timers_fired"] for server in servers)


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
import importlib.util
spec = importlib.util.spec_from_file_location("timers_under_test", sys.argv[3])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
with tests.serving("sqlite:///" + sys.argv[1], tally=True) as server:
    ticker = tests.proxy(server, "Ticker/a")
    if not ticker.read():
        ticker.start("_tick", 0.0, 0.02)
    tests.until(ticker.read)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_kill_9_at_any_moment_neither_loses_nor_repeats_a_firing(tmp_path):
    """Each tick is as the grid says, and has called the tally once: their counts are the same."""
    path = str(tmp_path / "x.db")
    chance = random.Random(9)
    moment = threading.Event()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for _ in range(10):
        command = [sys.executable, "-c", KILLED, path, root, __file__]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout.readline() == "ready\n"
        moment.wait(chance.uniform(0.0, 0.3))
        server.send_signal(signal.SIGKILL)
        assert server.wait(BOUND_S) == -signal.SIGKILL
        server.stdin.close()
        server.stdout.close()
    with serving(f"sqlite:///{path}", tally=True) as server:
        ticker, tally = proxy(server, "Ticker/a"), proxy(server, "Tally/t")
        seen = len(ticker.read())
        until(lambda: len(ticker.read()) > seen)  # what was under way has been run again
        assert ticker.stop()
        ticks = ticker.read()
        assert tally.read() == len(ticks)
        assert len(ticks) > 10
    assert [count for _, _, count in ticks] == [*range(1, len(ticks) + 1)]
    _, first, _ = ticks[0]
    due = 0.0
    for at, following, _ in ticks:
        steps = (following - first) / 0.02
        assert abs(steps - round(steps)) < 1e-3
        assert due <= at  # not before it was due ...
        assert following - 0.02 <= at  # ... and then on the first place of the grid that was not over
        assert following > due
        due = following
