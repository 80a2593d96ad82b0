import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from objserver import Proxy, errors
from objserver.cluster.workers import Entry, Place, Workers, pause_s
from objserver.storage import open_store

WORKER = """
import os, signal, sys, threading
from objserver import ObjectServer, Persistent, Shared, expose
from objserver.cluster.workers import Place

@expose
class Who:
    def pid(self) -> int:
        return os.getpid()

@expose
class Count:
    value: int = 0
    def add(self) -> int:
        self.value += 1
        return self.value

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
place = Place.from_environment(os.environ)
server = ObjectServer(store=place.open_store())
server.register(Who, "who", activation=Shared())
if place.store:
    server.register(Count, "count", activation=Persistent())
with server:
    entrance = place.enter(server)
    while not stop.wait(1.0):
        pass
    entrance.stop()
"""
COMMAND = [sys.executable, "-c", WORKER]


def pid(workers):
    with Proxy(f"PYRO:who@{workers.address}", timeout_s=30) as proxy:
        return proxy.pid()


def until(condition):
    for _ in range(10**9):
        if condition():
            return
        os.sched_yield()


def has_ended(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_pauses_grow_to_a_limit():
    pauses = [pause_s(deaths) for deaths in range(10)]
    assert pauses[:4] == [0.0, 0.1, 0.2, 0.4]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pause_s(10**6) == 10.0


def test_who_is_no_worker_has_no_place():
    assert Place.from_environment({}) is None
    assert Place.from_environment({"OBJSERVER_WORKER": '["0", 7, "", "/s"]'}) == Place("0", 7, "", "/s")


@pytest.mark.parametrize("entry", Entry)
def test_workers_serve_and_end_in_good_order(entry):
    with Workers(COMMAND, 2, entry=entry) as workers:
        if entry is Entry.REUSEPORT:
            # Nobody holds connections back until the first is there.
            until(lambda: _answers(workers))
        assert pid(workers) in workers.pids().values()
        until(lambda: len(workers.pids()) == 2)
        pids = workers.pids().values()
    assert all(has_ended(each) for each in pids)
    assert workers.statistics()["deaths"] == 0
    workers.stop()


def _answers(workers):
    with contextlib.suppress(errors.ConnectFailed):
        return pid(workers)


def test_a_worker_that_dies_is_replaced_and_calls_of_persistent_objects_happen_once(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    kills, calls = 4, 60
    done = threading.Semaphore(0)
    with Workers(COMMAND, 2, store=url) as workers:

        def call(n):
            with Proxy(f"PYRO:count/{n}@{workers.address}", timeout_s=60) as proxy:
                for expected in range(1, calls + 1):
                    assert proxy.add() == expected
                    done.release()

        with ThreadPoolExecutor(4) as pool:
            calling = [pool.submit(call, n) for n in range(4)]
            for n in range(kills):
                for _ in range(4 * calls // (kills + 1)):
                    assert done.acquire(timeout=60)
                victim = workers.pids().get(f"{workers.address}/{n % 2}")
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
            for each in calling:
                each.result(60)
        assert workers.statistics()["store"]["changes"] >= 4 * calls
        assert workers.statistics()["deaths"] >= 1
    store = open_store(url)
    assert [record.version for _, record in store.items("count")] == [calls] * 4
    store.close()


def test_workers_end_when_their_supervisor_is_killed():
    code = f"""
import sys
from objserver.cluster.workers import Workers
workers = Workers([sys.executable, "-c", {WORKER!r}], 2).start()
print(workers.address, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as supervisor:
        address = supervisor.stdout.readline().strip()
        with Proxy(f"PYRO:who@{address}", timeout_s=30) as proxy:
            worker = proxy.pid()
        supervisor.kill()
    until(lambda: has_ended(worker))


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="0 workers"):
        Workers(COMMAND, 0)
    with pytest.raises(errors.StoreError, match="only an SQLite file has an owner"):
        Workers(COMMAND, 1, store="postgresql://user:secret@host/db")


def test_a_command_that_cannot_run_is_tried_again_until_it_is_stopped():
    with Workers(["/none"], 1) as workers:
        assert workers.pids() == {}
    with Workers([sys.executable, "-c", "raise SystemExit(3)"], 1) as workers:
        until(lambda: workers.statistics()["deaths"] >= 2)
