"""Promises: results that are used before they have come."""

import asyncio
import concurrent.futures
import gc
import socket
import subprocess
import sys
import threading
import time

import pytest

from objserver import AsyncProxy, Concurrent, ObjectServer, Promise, Proxy, current, errors, expose, oneway
from objserver.invocation import in_progress

BOUND_S = 10


@expose
class Child:
    def __init__(self, number):
        self.number = number

    def get(self):
        return self.number

    def child(self, more):
        return Child(self.number + more)


@expose
class Thing:
    def __init__(self):
        self.go, self.began, self.ended = threading.Event(), threading.Semaphore(0), threading.Event()
        self.notes = []

    def child(self, number):
        return Child(number)

    def sum(self, *values, **more):
        return sum(values) + sum(more.values())

    def boom(self):
        raise ValueError("boom")

    def wait(self, value=None):
        self.began.release()
        assert self.go.wait(BOUND_S)
        return value

    def let_go(self):
        self.go.set()

    def wait_cancelled(self):
        told = threading.Event()
        current._facts().when_cancelled(told.set)
        self.began.release()
        assert told.wait(BOUND_S)
        self.ended.set()

    def stream(self):
        yield 1

    def stop(self):
        raise StopIteration

    def proxy_of(self, uri):
        return Proxy(uri)

    def ask(self, child):
        return child.get()

    def remaining(self):
        return current.remaining_s

    def many_promises(self, uri, count):
        """How many promises the invocation holds on to after they have all come."""
        other = Proxy(uri)
        for number in range(count):
            assert other.future.sum(number, 1).result(BOUND_S) == number + 1
        return len(current._facts()._when_cancelled)

    def nested(self, uri):
        other = Proxy(uri)
        return other.future.child(1).child(2).get().result(BOUND_S)

    def promise_and_wait(self, uri):
        promise = Proxy(uri).future.wait_cancelled()
        self.began.release()
        promise.result(BOUND_S)

    @oneway
    def note(self, value):
        self.notes.append(value)
        self.ended.set()


@pytest.fixture
def thing():
    thing = Thing()
    yield thing
    thing.go.set()


@pytest.fixture
def server(thing):
    with ObjectServer() as server:
        server.register(thing, "thing", threading=Concurrent())
        yield server
        thing.go.set()


@pytest.fixture
def proxy(server):
    with Proxy(f"PYRO:thing@{server.address}") as proxy:
        yield proxy


class Relay:
    """Between a client and a server: counts how often the direction of what passes changes."""

    def __init__(self, address):
        host, port = address.split(":")
        self.turns = 0
        self._last = None
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self.answers = threading.Event()
        """Answers pass; else they wait until all is sent that is sent without them."""
        self.answers.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(self._target)
            for way, source, sink in (("there", client, server), ("back", server, client)):
                threading.Thread(target=self._pump, args=(way, source, sink), daemon=True).start()

    def _pump(self, way, source, sink):
        while True:
            try:
                data = source.recv(1 << 16)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                with self._lock:
                    self.turns += way == "there" and self._last != "there"
                    self._last = way
                if way == "back":
                    assert self.answers.wait(BOUND_S)
                time.sleep(0.05)  # the network's time, which is what is measured
                sink.sendall(data)
            except OSError:
                return

    def close(self):
        self._listener.close()


def test_a_promise_is_a_future(proxy):
    promise = proxy.future.sum(1, 2)
    assert isinstance(promise, concurrent.futures.Future)
    assert isinstance(promise, Promise)
    assert promise.result(BOUND_S) == 3
    assert promise.done()
    assert promise.exception() is None
    assert repr(promise) == "<Promise of thing.sum finished>"
    done, _ = concurrent.futures.wait([proxy.future.sum(1), promise], BOUND_S)
    assert len(done) == 2


def test_private_names_are_not_promised(proxy):
    with pytest.raises(AttributeError, match="private"):
        proxy.future._secret
    with pytest.raises(AttributeError, match="private"):
        proxy.future.child(1)._secret


def test_a_chain_of_five_takes_one_round_trip(proxy, server):
    relay = Relay(server.address)
    try:
        far = Proxy(f"PYRO:thing@127.0.0.1:{relay.port}")
        assert far.future.sum(1).result(BOUND_S) == 1  # connected
        before = relay.turns
        relay.answers.clear()
        last = far.future.child(1).child(2).child(3).child(4).get()
        relay.answers.set()
        assert last.result(BOUND_S) == 10
        assert relay.turns - before == 1
        before = relay.turns
        relay.answers.clear()
        first = far.future.child(1).get()
        last = far.future.sum(first, first, x=first)
        relay.answers.set()
        assert last.result(BOUND_S) == 3
        assert relay.turns - before == 1
    finally:
        relay.close()


def test_a_promise_as_an_argument(proxy):
    one = proxy.future.sum(1)
    assert proxy.future.sum(one, 5, x=proxy.future.sum(one, one)).result(BOUND_S) == 8


def test_a_promise_that_has_come_is_sent_as_it_is(proxy):
    one = proxy.future.sum(1)
    child = proxy.future.child(5)
    one.result(BOUND_S), child.result(BOUND_S)
    assert proxy.future.sum(one, 1).result(BOUND_S) == 2
    assert child.child(1).get().result(BOUND_S) == 6
    assert child.result().get() == 5


def test_an_error_runs_along_the_chain(proxy):
    boom = proxy.future.boom()
    ends = [proxy.future.sum(boom, 1), boom.child(1).get(), proxy.future.sum(1, x=proxy.future.sum(boom))]
    for promise in (boom, *ends):
        with pytest.raises(ValueError, match="boom"):
            promise.result(BOUND_S)
    with pytest.raises(ValueError, match="boom"):
        proxy.future.sum(boom).result(BOUND_S)  # it had come already


def test_what_is_no_object_cannot_be_called(proxy):
    number = proxy.future.sum(1)
    with pytest.raises(errors.MemberNotFound):
        number.get().result(BOUND_S)
    number.result(BOUND_S)
    with pytest.raises(errors.MemberNotFound):
        number.get().result(BOUND_S)


def test_a_stream_cannot_be_promised_and_is_not_left_open(proxy, server):
    with pytest.raises(errors.ProtocolError, match="cannot be promised"):
        proxy.future.stream().result(BOUND_S)
    assert proxy.sum(1) == 1
    settle(lambda: server.statistics()["streams"] == 0)


def settle(ask):
    """Until `ask()` holds: the pause is how often we look, not what we rely on."""
    pause = threading.Event()
    for _ in range(BOUND_S * 200):
        if ask():
            return
        pause.wait(0.005)
    assert ask()


def test_across_two_servers(proxy, thing):
    """The second server cannot be asked before the first has said which object it is."""
    with ObjectServer() as second:
        second.register(Thing, "other")
        uri = f"PYRO:other@{second.address}"
        assert proxy.future.proxy_of(uri).child(5).get().result(BOUND_S) == 5
        assert proxy.future.proxy_of(uri).sum(1, 2).result(BOUND_S) == 3
        other = Proxy(uri)
        assert other.future.sum(proxy.future.sum(1, 2), 3).result(BOUND_S) == 6
        assert proxy.future.sum(other.future.child(3).get(), 1).result(BOUND_S) == 4
        with pytest.raises(ValueError, match="boom"):
            other.future.sum(proxy.future.boom()).result(BOUND_S)


def test_an_object_of_ours_goes_across_too(proxy):
    """It is given away on the loop, which must not wait for itself."""
    with ObjectServer() as second:
        second.register(Thing, "other")
        other = proxy.future.proxy_of(f"PYRO:other@{second.address}")
        assert other.ask(Child(7)).result(BOUND_S) == 7


def test_cancel_reaches_the_servant(proxy, thing):
    promise = proxy.future.wait_cancelled()
    assert thing.began.acquire(timeout=BOUND_S)
    assert promise.cancel()
    assert thing.ended.wait(BOUND_S)
    with pytest.raises(concurrent.futures.CancelledError):
        promise.result()
    assert proxy.sum(1) == 1


def test_cancelling_what_others_wait_for(proxy, thing):
    first = proxy.future.wait(1)
    second = proxy.future.sum(first, 1)
    assert thing.began.acquire(timeout=BOUND_S)
    assert second.cancel()
    thing.go.set()
    assert first.result(BOUND_S) == 1
    assert not first.cancel()


def test_a_cancelled_promise_cannot_be_used(proxy, thing):
    first = proxy.future.wait(1)
    assert first.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        proxy.future.sum(first).result(BOUND_S)
    thing.go.set()


def test_a_oneway_promise_is_done_when_it_is_sent_and_has_no_result(proxy, thing):
    note = proxy.future.note(1)
    used = proxy.future.sum(note)
    assert note.result(BOUND_S) is None
    assert thing.ended.wait(BOUND_S)
    with pytest.raises((errors.MemberNotFound, TypeError)):
        used.result(BOUND_S)


def test_a_timeout_ends_the_promise_and_tells_the_servant(proxy, thing):
    with pytest.raises(errors.CallTimeout, match=r"thing\.wait_cancelled: no reply"):
        proxy.calling(timeout_s=0.1).future.wait_cancelled().result(BOUND_S)
    assert thing.ended.wait(BOUND_S)


def test_result_waits_no_longer_than_asked(proxy, thing):
    promise = proxy.future.wait(1)
    with pytest.raises(TimeoutError):
        promise.result(0.01)
    thing.go.set()
    assert promise.result(BOUND_S) == 1


def test_an_argument_that_cannot_travel_is_told_at_once(proxy):
    with pytest.raises(errors.SerializeError, match=r"an argument of thing\.sum"):
        proxy.future.sum(object())


def test_awaited(server):
    async def main():
        async with AsyncProxy(f"PYRO:thing@{server.address}") as thing:
            assert await thing.future.child(1).child(2).get() == 3
            with pytest.raises(ValueError, match="boom"):
                await thing.future.boom()

    asyncio.run(main())


def test_cancelling_the_task_that_awaits_cancels_the_promise(server, thing):
    async def main():
        async with AsyncProxy(f"PYRO:thing@{server.address}") as proxy:

            async def wait():
                await proxy.future.wait_cancelled()

            task = asyncio.create_task(wait())
            assert await asyncio.to_thread(thing.began.acquire, timeout=BOUND_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(thing.ended.wait, BOUND_S)

    asyncio.run(main())


def test_waiting_on_the_loop_that_gets_it_is_an_error_and_no_standstill(server, thing):
    async def main():
        async with AsyncProxy(f"PYRO:thing@{server.address}") as proxy:
            await proxy.sum(1)
            promise = proxy.future.wait(1)
            with pytest.raises(RuntimeError, match="await it"):
                promise.result()
            thing.go.set()
            assert await promise == 1

    asyncio.run(main())


def test_an_async_proxy_has_futures_on_its_loop_only(server):
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncProxy(f"PYRO:thing@{server.address}").future.sum(1)


def test_inside_a_servant(proxy, server):
    with ObjectServer() as second:
        uri = str(second.register(Thing, "other"))
        assert proxy.nested(uri) == 3


def test_an_invocation_keeps_no_promise_that_has_come(proxy):
    with ObjectServer() as second:
        assert proxy.many_promises(str(second.register(Thing, "other")), 50) == 0


def test_the_promises_of_a_cancelled_servant_are_cancelled(proxy, thing):
    other = Thing()
    with ObjectServer() as second:
        promise = proxy.future.promise_and_wait(str(second.register(other, "other")))
        assert thing.began.acquire(timeout=BOUND_S)
        assert other.began.acquire(timeout=BOUND_S)
        assert promise.cancel()
        assert other.ended.wait(BOUND_S)


def test_a_call_that_goes_on_later_inherits_the_time_that_is_left(proxy):
    @expose
    class Outer:
        def chain(self, uri, other):
            return Proxy(uri).future.proxy_of(other).remaining().result(BOUND_S)

    with ObjectServer() as second, ObjectServer() as third:
        outer = Proxy(second.register(Outer, "outer"))
        other = third.register(Thing, "other")
        remaining = outer.calling(timeout_s=BOUND_S).chain(str(proxy), str(other))
        assert 0 < remaining < BOUND_S
    assert in_progress.get() is None


def test_dropped_promises_leave_nothing(proxy, thing):
    proxy.future.sum(1).result(BOUND_S)
    before = len([o for o in gc.get_objects() if type(o) is Promise])
    for _ in range(100):
        proxy.future.sum(1)
    assert proxy.future.sum(2).result(BOUND_S) == 2
    gc.collect()
    settle(lambda: gc.collect() >= 0 and len([o for o in gc.get_objects() if type(o) is Promise]) <= before)


def test_a_released_proxy_ends_its_promises(proxy, thing):
    promise = proxy.future.wait(1)
    assert thing.began.acquire(timeout=BOUND_S)
    proxy.release()
    with pytest.raises(errors.ConnectionLost):
        promise.result(BOUND_S)
    thing.go.set()
    assert proxy.future.sum(1).result(BOUND_S) == 1


SCRIPT = """
import sys
from objserver import Proxy, expose
@expose
class Listener:
    def heard(self, x): return x
    def hang(self):
        import time; time.sleep(60)
p = Proxy(sys.argv[1])
f = p.future.wait(1)
g = p.future.sum(f, 1)
p.sum(1)
print("ready")
"""


def test_a_program_that_just_ends_ends_at_once_and_quietly(proxy, thing):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", SCRIPT, str(proxy)],
        capture_output=True,
        text=True,
        timeout=BOUND_S * 3,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")
    assert time.monotonic() - began < BOUND_S


@pytest.mark.parametrize("size", [10, 100_000, 2 << 20], ids=["inside", "beside", "in shared memory"])
def test_a_large_result_can_be_used_by_the_server_and_arrives_too(proxy, size):
    """A block in shared memory is given away once, so what is kept does not go through it."""
    data = bytes(range(256)) * (size // 256) + b"end"
    first = proxy.future.wait(data)
    second = proxy.future.wait(first)
    proxy.let_go()
    assert second.result(BOUND_S) == data
    assert first.result(BOUND_S) == data
