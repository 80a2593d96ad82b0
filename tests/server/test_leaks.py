"""Whatever goes wrong: the right side is told, the connection goes on, and afterwards all is as before."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from objserver import (
    AsyncProxy,
    Concurrent,
    ObjectServer,
    Proxy,
    Serial,
    ServerSettings,
    current,
    errors,
    expose,
)
from objserver.adapter.invocation import Invocation
from objserver.client.home import home
from objserver.client.multiplexed import MultiplexedConnection
from objserver.client.promises import Promise
from objserver.server.connection import Connection
from objserver.server.conversation import Conversation, PendingReply

BOUND_S = 15
ROUNDS = 12
COUNTED = (Connection, Conversation, Invocation, MultiplexedConnection, PendingReply, Promise)


@expose
class Child:
    def get(self):
        return 1


@expose
class Thing:
    def __init__(self):
        self.go, self.began, self.closed = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
        self.kept = []

    def add(self, a, b):
        return a + b

    def unsendable(self):
        return [Child(), object()]

    def numbers(self):
        try:
            yield from range(1_000)
        finally:
            self.closed.release()

    async def numbers_async(self):
        try:
            for number in range(1_000):
                yield number
        finally:
            self.closed.release()

    def keep(self, listener):
        self.kept.append(listener)

    def call_kept(self):
        return self.kept.pop().heard()

    def wait(self):
        self.began.release()
        assert self.go.wait(BOUND_S)

    def stubborn(self):
        """Goes on although it is cancelled, until the test says so."""
        self.began.release()
        assert self.go.wait(BOUND_S)
        return current.cancelled

    async def stubborn_async(self):
        self.began.release()
        try:
            await asyncio.sleep(BOUND_S * 6)
        except asyncio.CancelledError:
            return "stayed"

    def child(self):
        return Child()

    def boom(self):
        raise ValueError("boom")


@pytest.fixture
def thing():
    thing = Thing()
    yield thing
    thing.go.set()


@pytest.fixture
def server(thing):
    with ObjectServer(settings=ServerSettings(workers_max=4, lease_s=1.5)) as server:
        server.register(thing, "thing", threading=Concurrent())
        yield server
        thing.go.set()


@pytest.fixture
def proxy(server):
    with Proxy(f"PYRO:thing@{server.address}", timeout_s=BOUND_S) as proxy:
        assert proxy.add(1, 1) == 2
        assert proxy.future.add(1, 1).result(BOUND_S) == 2
        with Proxy(f"PYRO:Pyro.Daemon@{server.address}") as daemon:
            daemon.ping()  # it is an active object from its first call on
        until(lambda: server.statistics()["connections"] == 2)
        yield proxy


def counts(server):
    gc.collect()
    statistics = server.statistics()
    names = (
        "exports",
        "streams",
        "active_objects",
        "connections",
        "busy_objects",
        "calls_in_flight",
        "callbacks_waiting",
        "blocked",
        "receiving_bytes",
        "unsent_bytes",
        "invocations_waiting",
    )
    kinds = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in COUNTED)
    # Workers come and go, and an event loop looks names up in threads that stay: more, if two are at once.
    passing = ("objserver-worker", "asyncio_")
    threads = {t.name for t in threading.enumerate() if not t.name.startswith(passing)}
    return {
        **{name: statistics[name] for name in names},
        **{cls.__name__: kinds[cls.__name__] for cls in COUNTED},
        "threads": len(threads),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def until(ask):
    """The pause is how often we look, not what we rely on."""
    pause, end = threading.Event(), time.monotonic() + BOUND_S
    while not ask():
        assert time.monotonic() < end
        pause.wait(0.005)


def forget_kept(server):
    """Results are kept for a time that a test has not."""
    for conversation in list(server.keeping):
        conversation.housekeeping(float("inf"))


def nothing_left(server, proxy, mistake, settle=lambda: None):
    """`mistake()` is made many times, and makes no difference but to the caller."""
    mistake()  # what is begun once, and stays, is begun
    settle()
    pause = threading.Event()

    def quiet():
        forget_kept(server)
        return counts(server)

    end = time.monotonic() + BOUND_S
    before = quiet()
    while before["busy_objects"] or before["calls_in_flight"] or before["exports"] or before["streams"]:
        assert time.monotonic() < end, before
        pause.wait(0.02)
        before = quiet()
    for _ in range(ROUNDS):
        mistake()
    settle()
    assert proxy.add(2, 3) == 5
    assert proxy.future.add(2, 3).result(BOUND_S) == 5
    while True:
        after = quiet()
        more = {name: (before[name], after[name]) for name in before if after[name] > before[name]}
        if not more:
            return
        assert time.monotonic() < end, more
        pause.wait(0.02)


def over(proxy, how, *call):
    """Make the call by a sync proxy, a promise, or an async proxy, of which the error comes."""
    method, *args = call
    if how == "sync":
        return getattr(proxy, method)(*args)
    if how == "promise":
        return getattr(proxy.future, method)(*args).result(BOUND_S)

    async def main():
        async with AsyncProxy(str(proxy), timeout_s=BOUND_S) as asynchronous:
            return await getattr(asynchronous, method)(*args)

    return asyncio.run(main())


HOWS = pytest.mark.parametrize("how", ["sync", "promise", "async"])


@HOWS
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (("add", 1, "x"), TypeError),
        (("add", 1), TypeError),
        (("add", object(), 1), errors.SerializeError),
        (("unsendable",), errors.SerializeError),
        (("boom",), ValueError),
    ],
    ids=["types", "missing", "unsendable argument", "unsendable result", "error"],
)
def test_a_call_that_fails(server, proxy, how, call, error):
    def mistake():
        with pytest.raises(error):
            over(proxy, how, *call)

    def settle():
        server.adapter.release_all()  # of a result that was not sent, its references were counted

    nothing_left(server, proxy, mistake, settle)


@pytest.mark.parametrize("method", ["numbers", "numbers_async"])
def test_a_stream_abandoned_in_the_middle(server, proxy, thing, method):
    def mistake():
        stream = getattr(proxy, method)()
        assert [next(stream), next(stream)] == [0, 1]
        del stream
        assert thing.closed.acquire(timeout=BOUND_S)

    nothing_left(server, proxy, mistake)


@pytest.mark.parametrize("method", ["numbers", "numbers_async"])
def test_a_stream_abandoned_in_the_middle_by_a_task(server, proxy, thing, method):
    def mistake():
        async def main():
            async with AsyncProxy(str(proxy)) as asynchronous:
                async for number in getattr(asynchronous, method)():
                    if number == 3:
                        break
                assert await asyncio.to_thread(thing.closed.acquire, timeout=BOUND_S)

        asyncio.run(main())

    nothing_left(server, proxy, mistake)


@pytest.mark.parametrize("method", ["stubborn", "stubborn_async"])
def test_a_cancelled_call_that_does_not_stop(server, proxy, thing, method):
    def mistake():
        thing.go.clear()
        promise = getattr(proxy.future, method)()
        assert thing.began.acquire(timeout=BOUND_S)
        assert promise.cancel()
        assert proxy.future.add(1, 1).result(BOUND_S) == 2
        thing.go.set()

    nothing_left(server, proxy, mistake)


def test_promises_on_a_failed_call(server, proxy):
    def mistake():
        failed = proxy.future.boom()
        ends = [failed.get(), proxy.future.add(failed, 1), proxy.future.add(1, proxy.future.add(failed, 1))]
        for promise in (failed, *ends):
            with pytest.raises(ValueError, match="boom"):
                promise.result(BOUND_S)

    nothing_left(server, proxy, mistake)


def test_a_chain_of_promises_whose_objects_nobody_keeps(server, proxy):
    def mistake():
        assert proxy.future.child().get().result(BOUND_S) == 1

    nothing_left(server, proxy, mistake)


CLIENT = """
import sys, threading
from objserver import Proxy, expose
@expose
class Listener:
    def heard(self): return 1
proxy = Proxy(sys.argv[1])
listener = Listener()
if sys.argv[2] == "listener":
    proxy.keep(listener)
else:
    held = proxy.child()
    promises = [proxy.future.wait() for _ in range(100)]
print("ready", flush=True)
sys.stdin.readline()
"""


def client(proxy, what):
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(proxy), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end(process):
    process.kill()
    process.communicate(timeout=BOUND_S)


def test_a_callback_to_a_dead_client(server, proxy, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROUNDS", 2)

    def mistake():
        process = client(proxy, "listener")
        end(process)
        with pytest.raises((errors.ConnectFailed, errors.ConnectionLost)):
            proxy.call_kept()

    nothing_left(server, proxy, mistake)


@pytest.mark.parametrize("policy", [Serial(), Concurrent()], ids=str)
def test_a_client_killed_in_the_middle_of_a_hundred_calls(server, proxy, thing, monkeypatch, policy):
    monkeypatch.setattr(sys.modules[__name__], "ROUNDS", 2)
    server.register(thing, "other", threading=policy)
    connections = server.statistics()["connections"]

    def mistake():
        process = client(f"PYRO:other@{server.address}", "calls")
        assert thing.began.acquire(timeout=BOUND_S)
        end(process)
        if policy == Serial():  # a worker is left who notices
            until(lambda: server.statistics()["connections"] == connections)
            until(lambda: not server.statistics()["invocations_waiting"])
        thing.go.set()
        until(lambda: not server.statistics()["busy_objects"])
        if policy == Serial():
            assert not thing.began.acquire(blocking=False)  # of those that waited, none was begun
        thing.go.clear()

    nothing_left(server, proxy, mistake)


def test_a_client_that_gives_objects_away_again_and_again(server, proxy, thing):
    @expose
    class Listener:
        def heard(self):
            return 1

    before = home.adapter.exported

    def mistake():
        proxy.keep(Listener())
        assert proxy.call_kept() == 1

    nothing_left(server, proxy, mistake)
    pause = threading.Event()
    deadline = time.monotonic() + BOUND_S
    while home.adapter.exported > before:
        assert time.monotonic() < deadline
        pause.wait(0.02)


def test_proxies_that_are_dropped_without_a_word(server, proxy):
    def mistake():
        other = Proxy(str(proxy))
        assert other.add(1, 1) == 2
        assert other.future.add(1, 1).result(BOUND_S) == 2
        del other

    nothing_left(server, proxy, mistake)


def test_a_promise_that_is_dropped_and_one_that_times_out(server, proxy, thing):
    def mistake():
        thing.go.clear()
        proxy.future.add(1, 1)
        with pytest.raises(errors.CallTimeout):
            proxy.calling(timeout_s=0.01).future.stubborn().result(BOUND_S)
        thing.go.set()

    nothing_left(server, proxy, mistake)
