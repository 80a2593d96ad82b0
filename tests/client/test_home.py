"""Objects that a client gives away: called on connections that the client made, as long as they are held."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest

from objserver import (
    AsyncProxy,
    Concurrent,
    ObjectServer,
    Proxy,
    ServerSettings,
    current,
    errors,
    expose,
    oneway,
)
from objserver.client.home import home
from objserver.client.identity import process_id

BOUND_S = 10


@expose
class Listener:
    def __init__(self, server_uri=None):
        self.heard_all = []
        self.said = threading.Semaphore(0)
        self.go, self.began = threading.Event(), threading.Semaphore(0)
        self._uri = server_uri
        self.outcome = None

    def heard(self, value):
        self.heard_all.append(value)
        self.said.release()
        return ("heard", value)

    async def heard_async(self, value):
        await asyncio.sleep(0)
        return ("heard", value)

    async def blocks_the_loop(self):
        return Proxy(self._uri).use(self)

    async def sleep(self):
        self.began.release()
        try:
            await asyncio.sleep(BOUND_S * 6)
        except asyncio.CancelledError:
            self.outcome = "cancelled"
            raise
        finally:
            self.said.release()

    def boom(self):
        raise ValueError("boom at home")

    async def boom_async(self):
        raise ValueError("boom at home")

    def wait(self):
        self.began.release()
        assert self.go.wait(BOUND_S)

    def deeper(self, depth):
        return Proxy(self._uri).deeper(Listener(self._uri), depth - 1) if depth else current.call_chain

    def calls_itself(self):
        return Proxy(self._uri).call(self, "heard", 1)

    def is_me(self, other):
        return other is self

    def numbers(self, count):
        yield from range(count)

    def unsendable(self):
        return object()

    @oneway
    def note(self, value):
        self.heard(value)


@expose
class Thing:
    def __init__(self):
        self.kept = []
        self.outcome = []
        self.began, self.ended = threading.Semaphore(0), threading.Semaphore(0)

    def call(self, listener, method, *args):
        return getattr(listener, method)(*args)

    def call_in_time(self, listener, timeout_s):
        return listener.calling(timeout_s=timeout_s).wait()

    def keep(self, listener):
        self.kept.append(listener)

    def drop(self):
        self.kept.clear()

    def tell_later(self, value):
        self.teller = threading.Thread(target=self.kept[0].heard, args=(value,))
        self.teller.start()

    def told(self):
        self.teller.join()

    def call_kept(self, method, *args):
        try:
            return getattr(self.kept[0], method)(*args)
        except BaseException as problem:
            self.outcome.append(problem)
            raise
        finally:
            self.ended.release()

    def kept_uris(self):
        return [str(listener) for listener in self.kept]

    def give_back(self):
        return self.kept[0]

    def use(self, listener):
        return listener.heard("used")

    def deeper(self, listener, depth):
        return listener.deeper(depth)

    def draw(self, listener, count):
        return list(listener.numbers(count))

    def is_me(self, other):
        return other is self

    def ping(self):
        return "pong"


@pytest.fixture
def thing():
    return Thing()


@pytest.fixture
def settings():
    return ServerSettings()


@pytest.fixture
def server(thing, settings):
    with ObjectServer(settings=settings) as server:
        server.register(thing, "thing", threading=Concurrent())
        yield server


@pytest.fixture
def proxy(server):
    with Proxy(f"PYRO:thing@{server.address}") as proxy:
        yield proxy


@pytest.fixture
def listener(proxy):
    listener = Listener(str(proxy))
    yield listener
    listener.go.set()


def settle(ask, bound_s=BOUND_S):
    """Until `ask()` holds: the pause is how often we look, not what we rely on."""
    pause = threading.Event()
    end = time.monotonic() + bound_s
    while time.monotonic() < end:
        if ask():
            return
        pause.wait(0.005)
    assert ask()


def exported():
    return home.adapter.exported


def test_called_back_during_the_call(proxy, listener):
    assert proxy.call(listener, "heard", 7) == ("heard", 7)
    assert proxy.call(listener, "heard_async", 8) == ("heard", 8)


def test_called_back_after_the_call(proxy, listener):
    proxy.keep(listener)
    proxy.tell_later("later")
    assert listener.said.acquire(timeout=BOUND_S)
    assert listener.heard_all == ["later"]
    proxy.told()  # its reply has arrived: the server does not stop before
    proxy.drop()


def test_called_back_over_an_async_proxy_on_its_loop(proxy, listener):
    async def main():
        async with AsyncProxy(str(proxy)) as thing:
            assert await thing.call(listener, "heard", 1) == ("heard", 1)
            assert await thing.call(listener, "heard_async", 2) == ("heard", 2)

    asyncio.run(main())


@pytest.mark.parametrize("method", ["boom", "boom_async"])
def test_an_exception_comes_with_its_traceback(proxy, listener, method):
    with pytest.raises(ValueError, match="boom at home") as caught:
        proxy.call(listener, method)
    assert f"in {method}" in "".join(caught.value._pyroTraceback)
    assert "test_home.py" in "".join(traceback.format_exception(caught.value))


def test_a_member_that_is_not_exposed_is_no_member(proxy, listener):
    with pytest.raises(errors.MemberNotFound):
        proxy.call(listener, "nothing")


def test_a_result_that_cannot_be_sent_is_the_callers_error(proxy, listener):
    with pytest.raises(errors.SerializeError, match="unsendable"):
        proxy.call(listener, "unsendable")
    assert proxy.call(listener, "heard", 1) == ("heard", 1)


def test_calls_there_and_back_nest(proxy, listener):
    chain = proxy.deeper(listener, 5)
    assert len(chain) == 12
    assert sum(link.startswith("thing.deeper") for link in chain) == 6


def test_a_call_there_and_back_that_waits_for_itself_is_a_deadlock(proxy, listener):
    with pytest.raises(errors.Deadlock, match="calls_itself -> thing"):
        proxy.call(listener, "calls_itself")


def test_a_stream_of_a_client(proxy, listener):
    assert proxy.draw(listener, 40) == list(range(40))
    assert proxy.call(listener, "heard", 1) == ("heard", 1)


def test_the_time_allowed_for_a_callback(proxy, listener):
    with pytest.raises(errors.CallTimeout, match="no reply from the client"):
        proxy.call_in_time(listener, 0.1)
    listener.go.set()
    assert proxy.ping() == "pong"


def test_a_cancelled_servant_cancels_its_callback(proxy, listener):
    promise = proxy.future.call(listener, "sleep")
    assert listener.began.acquire(timeout=BOUND_S)
    promise.cancel()
    assert listener.said.acquire(timeout=BOUND_S)
    assert listener.outcome == "cancelled"
    assert proxy.call(listener, "heard", 1) == ("heard", 1)


def test_waiting_on_the_loop_of_callbacks_is_an_error_and_no_standstill(proxy, listener):
    with pytest.raises(RuntimeError, match="event loop"):
        proxy.call(listener, "blocks_the_loop")
    assert proxy.call(listener, "heard", 1) == ("heard", 1)


def test_the_same_object_has_one_id(proxy, listener):
    proxy.keep(listener)
    proxy.keep(listener)
    first, second = proxy.kept_uris()
    assert first == second
    assert f"./c:{process_id()}" in first
    proxy.drop()


def test_an_object_that_comes_home_is_itself(proxy, listener):
    proxy.keep(listener)
    assert proxy.give_back() is listener
    assert proxy.call(listener, "is_me", listener) is True
    assert proxy.is_me(proxy) is True
    proxy.drop()


def test_what_nobody_holds_is_collected_at_once(proxy, listener):
    before = exported()
    proxy.keep(listener)
    assert exported() == before + 1
    proxy.drop()
    settle(lambda: exported() <= before)


def test_a_callback_to_a_client_that_has_gone_fails_quickly(server, proxy, thing):
    with killed(server, "keep") as client:
        began = time.monotonic()
        client.kill()
        client.wait(BOUND_S)
        with pytest.raises((errors.ConnectFailed, errors.ConnectionLost)):
            proxy.call_kept("heard", 1)
        assert time.monotonic() - began < BOUND_S
    assert proxy.ping() == "pong"


def test_a_client_that_is_killed_while_it_is_called_is_a_lost_connection(server, proxy, thing):
    with killed(server, "keep") as client:
        promise = proxy.future.call_kept("hang")
        assert client.stdout.readline() == "hanging\n"
        client.kill()
        with pytest.raises(errors.ConnectionLost):
            promise.result(BOUND_S)
    assert proxy.ping() == "pong"
    settle(lambda: not server.statistics()["callbacks_waiting"] and not server.statistics()["blocked"])


CLIENT = """
import os, sys, time, threading
from objserver import Proxy, expose
from objserver.client.home import home
from objserver.client.identity import process_id
@expose
class Listener:
    def heard(self, x): return ("child heard", x, os.getpid())
    def hang(self):
        print("hanging", flush=True)
        time.sleep(60)
proxy = Proxy(sys.argv[1])
what = sys.argv[2]
listener = Listener()
if what == "keep":
    proxy.keep(listener)
    print("ready", flush=True)
    sys.stdin.readline()
elif what == "hold":
    held = proxy.child()
    print("ready", flush=True)
    sys.stdin.readline()
elif what == "hang":
    threading.Thread(target=proxy.call, args=(listener, "hang"), daemon=True).start()
    sys.stdin.readline()
elif what == "fork":
    proxy.keep(listener)
    parent = os.getpid()
    if os.fork() == 0:
        print("ready", flush=True)
        sys.stdin.readline()
        own = Listener()
        assert Proxy(sys.argv[1]).call(own, "heard", 5) == ("child heard", 5, os.getpid())
        assert proxy.ping() == "pong"
        assert proxy.future.ping().result(10) == "pong"
        print("done", flush=True)
        os._exit(0)
    os.wait()
    print("parent", proxy.call_kept("heard", 6)[2] == parent, flush=True)
elif what == "orphan":
    proxy.keep(listener)
    if os.fork() == 0:
        print("ready", flush=True)
        sys.stdin.readline()
        os._exit(0)
    os._exit(0)
"""


@contextlib.contextmanager
def killed(server, what, *options):
    client = subprocess.Popen(
        [sys.executable, *options, "-c", CLIENT, f"PYRO:thing@{server.address}", what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if what not in ("hang",):
            line = client.stdout.readline()
            assert line == "ready\n", client.stderr.read()
        yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            client.send_signal(signal.SIGKILL)
        client.communicate(timeout=BOUND_S)


def test_a_program_with_objects_given_away_ends_at_once_and_quietly(server, proxy):
    with killed(server, "keep") as client:
        assert proxy.call_kept("heard", 1)[:2] == ("child heard", 1)
        began = time.monotonic()
        _, noise = client.communicate("\n", timeout=BOUND_S)
        assert (client.returncode, noise) == (0, "")
        assert time.monotonic() - began < BOUND_S / 2


def test_a_program_ends_although_it_is_being_called(server, proxy):
    with killed(server, "hang") as client:
        assert client.stdout.readline() == "hanging\n"
        _, noise = client.communicate("\n", timeout=BOUND_S)
        assert (client.returncode, noise) == (0, "")


def test_a_fork_speaks_for_itself_only(server):
    with killed(server, "fork") as client:
        said, noise = client.communicate("\n", timeout=BOUND_S * 2)
        assert said == "done\nparent True\n", noise


def test_a_fork_does_not_keep_its_parents_connections_open(server, proxy):
    """Or the server would wait for a parent that is dead."""
    with killed(server, "orphan"):
        settle(lambda: home_of_dead(proxy))


def home_of_dead(proxy):
    try:
        proxy.call_kept("heard", 1)
    except (errors.ConnectFailed, errors.ConnectionLost):
        return True
    return False


# -- leases in real time ------------------------------------------------------------------------------

LEASE_S = 0.6


@expose
class Parent:
    def child(self):
        return Child()

    def keep(self, listener):
        self.kept = listener


@expose
class Child:
    def get(self):
        return 1


@pytest.fixture
def leasing():
    with ObjectServer(settings=ServerSettings(lease_s=LEASE_S)) as server:
        server.register(Parent, "thing")
        yield server


def test_what_is_held_is_renewed_over_many_leases(leasing):
    child = Proxy(f"PYRO:thing@{leasing.address}").child()
    end = time.monotonic() + 4 * LEASE_S
    while time.monotonic() < end:
        assert child.get() == 1
        assert leasing.statistics()["exports"] == 1
        threading.Event().wait(0.05)  # time has to pass: that is what is tested
    del child
    settle(lambda: not leasing.statistics()["exports"], LEASE_S / 2)


def test_a_killed_client_frees_what_it_held_within_the_lease(leasing):
    with killed(leasing, "hold") as client:
        assert leasing.statistics()["exports"] == 1
        client.kill()
        client.wait(BOUND_S)
        settle(lambda: not leasing.statistics()["exports"], LEASE_S + 2)


def test_a_copy_of_a_proxy_keeps_the_object(leasing):
    child = Proxy(f"PYRO:thing@{leasing.address}").child()
    view = child.calling(timeout_s=5)
    del child
    threading.Event().wait(2 * LEASE_S)  # time has to pass: that is what is tested
    assert view.get() == 1

    async def main(asynchronous):
        assert await asynchronous.get() == 1
        await asynchronous.release()

    asynchronous = AsyncProxy(view)
    del view
    asyncio.run(main(asynchronous))
    del asynchronous
    settle(lambda: not leasing.statistics()["exports"])


def test_the_ids_of_exports_are_collected_and_made_anew(leasing):
    """An object that is passed on again after it was collected is served again."""
    parent = Proxy(f"PYRO:thing@{leasing.address}")
    for _ in range(30):
        child = parent.child()
        assert child.get() == 1
        del child
    settle(lambda: not leasing.statistics()["exports"])
