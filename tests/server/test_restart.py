"""Servers that stop and come back, as their clients see it."""

import threading

import pytest

from objserver import ObjectServer, Proxy, errors, expose, idempotent, readonly


class Counter:
    """Counts in the class: it outlives the servers."""

    count = 0
    entered = threading.Event()
    leave = threading.Event()

    @expose
    def add(self):
        Counter.count += 1
        return Counter.count

    @expose
    @readonly
    def value(self):
        return Counter.count

    @expose
    @idempotent
    def put(self, n):
        Counter.count = n

    @expose
    def wait(self):
        Counter.entered.set()
        assert Counter.leave.wait(10)
        return self.add()


@pytest.fixture(autouse=True)
def fresh():
    Counter.count = 0
    Counter.entered, Counter.leave = threading.Event(), threading.Event()


def serve(address="localhost:0"):
    server = ObjectServer(address)
    server.register(Counter, "C")
    return server.start()


def test_callers_ride_through_restarts_and_nothing_is_done_twice_or_lost():
    server = serve()
    done = threading.Event()
    made = []

    def call():
        n = 0
        while not done.is_set():
            proxy.add()
            n += 1
        made.append(n)

    proxy = Proxy(f"PYRO:C@{server.address}", timeout_s=30)
    proxy.value()
    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    address = server.address
    for _ in range(8):
        before = Counter.count
        server.stop()
        server = serve(address)
        while Counter.count <= before + 3:  # they go on
            assert any(caller.is_alive() for caller in callers)
    done.set()
    for caller in callers:
        caller.join(30)
    server.stop()
    assert sum(made) == Counter.count
    assert len(made) == 3


def test_the_call_in_progress_is_answered_and_the_one_behind_it_is_made_at_the_next_server():
    server = serve()
    one, other = (Proxy(f"PYRO:C@{server.address}", timeout_s=20) for _ in range(2))
    assert other.value() == 0
    results = []
    first = threading.Thread(target=lambda: results.append(one.wait()))
    first.start()
    assert Counter.entered.wait(10)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    while server.poller.reading:  # from here on requests are not read any more
        pass
    second = threading.Thread(target=lambda: results.append(other.add()))
    second.start()
    Counter.leave.set()
    first.join(10)
    stopping.join(10)
    with serve(server.address):
        second.join(20)
    assert results == [1, 2]


def test_without_a_time_a_call_that_was_not_begun_says_so():
    server = serve()
    proxy = Proxy(f"PYRO:C@{server.address}")
    proxy.add()
    server.stop()
    with pytest.raises(errors.ConnectFailed):
        proxy.add()
    assert Counter.count == 1


def test_clients_are_told_what_may_be_repeated():
    with serve() as server:
        proxy = Proxy(f"PYRO:C@{server.address}")
        assert proxy._objserver_stub.metadata().repeatable == {"value", "put"}
        stock = Proxy(f"PYRO:C@{server.address}", serializer="serpent")
        assert stock._objserver_stub.metadata().repeatable == set()
