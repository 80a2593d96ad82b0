"""Publishing: in order for each, and nobody waits for who is gone or slow."""

import subprocess
import sys
import threading

import pytest

from objserver import ObjectServer, Proxy, Publisher, ServerSettings, errors, expose
from objserver.server.connection import Connection

BOUND_S = 10


@expose
class Listener:
    def __init__(self, wanted=1):
        self.heard, self._wanted, self.done = [], wanted, threading.Event()

    def changed(self, *values, **more):
        self.heard.append((*values, *more.items()))
        if len(self.heard) >= self._wanted:
            self.done.set()


@expose
class Desk(Publisher):
    """A publisher whose servants publish, in a thread and on the event loop."""

    def tell(self, value):
        return self.publish("changed", value)

    async def tell_from_the_loop(self, value):
        return self.publish("changed", value)


@pytest.fixture
def publisher():
    return Desk(subscribers_max=3)


@pytest.fixture
def server(publisher):
    with ObjectServer(settings=ServerSettings(send_memory_max=1 << 20)) as server:
        server.register(publisher, "news")
        yield server


@pytest.fixture
def proxy(server):
    with Proxy(f"PYRO:news@{server.address}") as proxy:
        yield proxy


def test_every_subscriber_is_told_in_order(proxy, publisher):
    listeners = [Listener(200), Listener(200)]
    for listener in listeners:
        proxy.subscribe(listener)
    for number in range(200):
        assert publisher.publish("changed", number, more=1) == 2
    for listener in listeners:
        assert listener.done.wait(BOUND_S)
        assert listener.heard == [(number, ("more", 1)) for number in range(200)]


def test_published_while_calls_come_in_bursts_it_is_still_in_order(proxy, publisher):
    """What waits to be sent together with replies must not be overtaken."""
    listener = Listener(300)
    proxy.subscribe(listener)
    promises = [proxy.future.tell(number) for number in range(300)]
    for promise in promises:
        assert promise.result(BOUND_S) == 1
    assert listener.done.wait(BOUND_S)
    assert listener.heard == [(number,) for number in range(300)]


@pytest.mark.parametrize("method", ["tell", "tell_from_the_loop"])
def test_a_servant_publishes(proxy, method):
    listener = Listener()
    proxy.subscribe(listener)
    assert getattr(proxy, method)("x") == 1
    assert listener.done.wait(BOUND_S)
    assert listener.heard == [("x",)]


def test_to_subscribe_twice_is_the_same_as_once(proxy, publisher):
    listener = Listener()
    proxy.subscribe(listener)
    proxy.subscribe(listener)
    assert len(publisher) == 1
    proxy.unsubscribe(listener)
    proxy.unsubscribe(listener)
    assert len(publisher) == 0
    assert publisher.publish("changed", 1) == 0


def test_one_too_many_is_refused(proxy):
    listeners = [Listener() for _ in range(4)]
    for listener in listeners[:3]:
        proxy.subscribe(listener)
    with pytest.raises(errors.ServerBusy, match="subscribers_max"):
        proxy.subscribe(listeners[3])


@pytest.mark.parametrize("listener", [None, 5, "PYRO:x@y:1"])
def test_what_cannot_be_called_cannot_subscribe(proxy, listener):
    with pytest.raises(TypeError, match="cannot be called from here"):
        proxy.subscribe(listener)


def test_what_cannot_travel_is_the_publishers_error_and_drops_nobody(proxy, publisher):
    proxy.subscribe(Listener())
    with pytest.raises(errors.SerializeError):
        publisher.publish("changed", object())
    assert len(publisher) == 1


SUBSCRIBER = """
import sys, threading
from objserver import Proxy, expose
@expose
class Listener:
    def changed(self, *values):
        print("heard", flush=True)
proxy = Proxy(sys.argv[1])
listener = Listener()
proxy.subscribe(listener)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_subscriber_that_was_killed_is_dropped(proxy, publisher, server):
    here = Listener(2)
    proxy.subscribe(here)
    other = subprocess.Popen(
        [sys.executable, "-c", SUBSCRIBER, str(proxy)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "ready\n"
        assert publisher.publish("changed", 1) == 2
        assert other.stdout.readline() == "heard\n"
    finally:
        other.kill()
        other.communicate(timeout=BOUND_S)
    pause = threading.Event()
    while server.statistics()["connections"] > 2:  # ours: the proxy's, and the channel
        pause.wait(0.005)
    assert publisher.publish("changed", 2) == 1
    assert here.done.wait(BOUND_S)
    assert here.heard == [(1,), (2,)]


def test_a_subscriber_that_does_not_read_is_dropped(proxy, publisher, server, monkeypatch):
    proxy.subscribe(Listener())
    assert len(publisher) == 1

    def full(connection, data):
        raise BlockingIOError

    for connection in list(server.poller.connections.values()):
        connection._send = full.__get__(connection, Connection)
    message, count = bytes(1 << 20), 0
    while publisher.publish("changed", message):
        count += 1
        assert count < 100
    assert len(publisher) == 0
    assert server.unsent == 0
