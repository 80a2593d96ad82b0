"""A call ends at its deadline, whatever its time was spent on.  On a simulated machine: time is exact."""

import pytest

from objserver import ObjectServer, Persistent, Proxy, errors, expose
from objserver.machine import machine
from objserver.references import Location
from objserver.storage.sqlite import SqliteStore
from objserver.testing.network import MemorySocket
from objserver.testing.world import World

TIMEOUT_S = 2.0
HERE = Location("10.0.0.1", 9000)


@expose
class Thing:
    def f(self):
        return "fine"

    def large(self):
        return "x" * 1000

    def endless(self):
        machine.get().sleep(50.0)


@pytest.fixture
def world():
    world = World(7)
    with world.in_place():
        yield world


def serving(world, answering=lambda: None):
    """A process that serves; `answering` happens before."""
    process = world.process("server", HERE.host)
    store = SqliteStore("sqlite://", clock=lambda: world.now)

    def serve():
        server = ObjectServer(str(HERE), store=store, insecure=True)
        server.register(Thing, "thing", activation=Persistent())
        server.start()

    process.start(serve, "main")
    world.run(world.now + 1.0)
    return process


def silent(world):
    """A process in its place that takes connections, and says nothing."""
    process = world.process("silent", HERE.host)
    process.listen(HERE, True)


def client(world, work):
    """How long `work` took in a client, and what it returned or raised."""
    process, came = world.process("client", "10.0.1.1"), []

    def run():
        began = world.now
        try:
            came.append(work(process))
        except errors.ObjServerError as problem:
            came.append(problem)
        came.append(world.now - began)

    process.start(run, "main")
    world.run(world.now + 100.0)
    assert not world.failures
    return came


def test_a_server_that_says_nothing_has_the_time_of_the_call_once(world):
    server = serving(world)

    def work(process):
        proxy = Proxy(f"PYRO:thing@{HERE}", timeout_s=TIMEOUT_S)
        assert proxy.f() == "fine"  # from now on it is known what is there
        server.crash()
        silent(world)
        return began_anew(process, proxy)

    problem, _ = client(world, work)
    assert problem == pytest.approx(TIMEOUT_S, abs=0.1)


def began_anew(process, proxy):
    process.sleep(1.0)
    began = process.monotonic()
    with pytest.raises(errors.ConnectFailed):
        proxy.f()
    return process.monotonic() - began


def test_to_connect_and_to_be_greeted_is_of_the_same_time(world):
    silent(world)
    world.network.cut("10.0.1.1", HERE.host, 0.75 * TIMEOUT_S)
    problem, took_s = client(world, lambda _: Proxy(f"PYRO:thing@{HERE}", timeout_s=TIMEOUT_S).f())
    assert isinstance(problem, errors.ConnectFailed)
    assert took_s == pytest.approx(TIMEOUT_S, abs=0.1)


def test_a_call_has_what_connecting_has_left_of_its_time(world):
    serving(world)

    def work(process):
        proxy = Proxy(f"PYRO:thing@{HERE}", timeout_s=TIMEOUT_S)
        proxy.f()
        for _ in proxy._objserver_stub.pool.drain():
            pass
        world.network.cut("10.0.1.1", HERE.host, 0.75 * TIMEOUT_S)
        began = process.monotonic()
        with pytest.raises(errors.OutcomeUnknown):
            proxy.endless()
        return process.monotonic() - began

    took_s, _ = client(world, work)
    assert took_s == pytest.approx(TIMEOUT_S, abs=0.1)


def test_a_reply_that_comes_in_drops_does_not_have_the_time_for_each(world, monkeypatch):
    serving(world)
    send = MemorySocket.send

    def in_drops(self, data, flags=0):
        """Of the large reply some first bytes, each after a while."""
        if len(data) < 900:
            return send(self, data, flags)
        for at in range(5):
            part = bytes(data[at : at + 1])
            world.at(0.9 * TIMEOUT_S * (at + 1), lambda part=part: self.peer.arrived(part))
        return len(data)

    monkeypatch.setattr(MemorySocket, "send", in_drops)

    def work(process):
        proxy = Proxy(f"PYRO:thing@{HERE}", timeout_s=TIMEOUT_S)
        proxy.f()
        began = process.monotonic()
        with pytest.raises(errors.CallTimeout):
            proxy.large()
        return process.monotonic() - began

    took_s, _ = client(world, work)
    assert took_s <= 2 * TIMEOUT_S + 0.1
