"""The real machine; what a simulated one does instead is tested in tests/testing."""

import contextvars
import errno
import select
import threading

import pytest

from objserver import ObjectServer, Proxy, errors, expose
from objserver.machine import Machine, machine
from objserver.references import Location

BOUND_S = 10.0


@expose
class Echo:
    def echo(self, value):
        return value


def test_without_another_the_machine_is_the_real_one():
    assert type(contextvars.Context().run(machine.get)) is Machine


def test_a_server_and_its_clients_use_the_machine_that_they_were_made_on():
    asked = []

    class Watched(Machine):
        def __init__(self):
            super().__init__()
            real = Machine()
            self.listen = lambda *args: asked.append("listen") or real.listen(*args)
            self.connect = lambda *args: asked.append("connect") or real.connect(*args)
            self.start = lambda *args: asked.append(f"start {args[1]}") or real.start(*args)

    def run():
        machine.set(Watched())
        with ObjectServer("localhost:0") as server:
            server.register(Echo(), "echo")
            with Proxy(f"PYRO:echo@{server.address}") as proxy:
                return proxy.echo(5)

    assert contextvars.Context().run(run) == 5
    assert asked == ["listen", "start objserver-worker", "start objserver-monitor", "connect"]


def test_a_local_has_its_first_values_in_each_thread():
    local = Machine.Local(value=1)
    local.value = 2
    seen = []
    thread = Machine.start(lambda: seen.append(local.value), "t")
    thread.join(BOUND_S)
    assert (seen, local.value, thread.name, thread.daemon) == ([1], 2, "t", True)


def test_a_bell_wakes_an_epoll_until_it_is_silenced():
    bell, epoll = Machine.Bell(), Machine.epoll()
    epoll.register(bell.fileno(), select.EPOLLIN)
    assert epoll.poll(0) == []
    threading.Thread(target=bell.ring).start()
    assert epoll.poll(BOUND_S) == [(bell.fileno(), select.EPOLLIN)]
    bell.silence()
    assert epoll.poll(0) == []
    epoll.close()
    bell.close()


def test_an_address_in_use_is_refused_with_its_number():
    listener = Machine.listen(Location("127.0.0.1", 0), False)
    port = listener.getsockname()[1]
    with pytest.raises(errors.ListenFailed) as caught:
        Machine.listen(Location("127.0.0.1", port), False)
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()


def test_what_others_can_reach_needs_to_be_asked_for():
    with pytest.raises(errors.RegistrationError, match="insecure=True"):
        Machine.listen(Location("0.0.0.0", 0), False)
    Machine.listen(Location("0.0.0.0", 0), True).close()
