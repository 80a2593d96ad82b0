"""Names that live as long as their server, whose death is a clock that goes on without renewals."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from objserver import ObjectServer, Proxy, errors, expose
from objserver.naming import NameServer, NameServerDaemon, Registrar, load_of
from objserver.storage.sqlite import SqliteStore
from objserver.testing.clock import ManualClock

URI = "PYRO:thing@localhost:1234"
BOUND_S = 30


class Served:
    """A name server whose time is ours; the daemon's thread is not started, so nothing else ticks."""

    def __init__(self, daemon: NameServerDaemon, clock: ManualClock) -> None:
        self.names, self.clock, self.address = daemon.names, clock, daemon.address

    def passes(self, seconds: int) -> None:
        for _ in range(seconds * 2):
            self.clock.advance(0.5)
            self.names.tick()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(NameServerDaemon, "_tick", lambda self: None)
    clock = ManualClock()
    with NameServerDaemon("localhost:0") as daemon:
        daemon.names._clock = clock
        daemon.names.tick()
        yield Served(daemon, clock)


def test_names_of_a_dead_server_disappear_within_the_lease_time(served: Served) -> None:
    dead, alive = Registrar(served.address, lease_s=10), Registrar(served.address, lease_s=10)
    dead.register("dead", URI)
    alive.register("alive", URI, metadata={"t"})
    served.passes(6)
    alive.renew()
    served.passes(4)
    assert set(served.names.list()) == {"Pyro.NameServer", "alive"}
    alive.stop()
    assert set(served.names.list()) == {"Pyro.NameServer"}


def test_a_server_that_was_thought_dead_registers_again(served: Served) -> None:
    registrar = Registrar(served.address, lease_s=5)
    registrar.register("a", URI, metadata={"t"})
    registrar.register("b", URI)
    served.passes(5)
    assert served.names.count() == 1
    served.names.register("b", "PYRO:other@localhost:1")
    registrar.renew()
    assert served.names.list(return_metadata=True)["a"] == (URI, {"t"})
    assert served.names.list(prefix="b") == {"b": "PYRO:other@localhost:1"}
    served.passes(5)
    registrar.register("c", URI)
    assert set(served.names.list()) == {"Pyro.NameServer", "a", "b", "c"}
    registrar.stop()
    assert set(served.names.list()) == {"Pyro.NameServer", "b"}


def test_a_name_is_not_taken_from_a_living_server_but_awaited_from_a_dead_one(served: Served) -> None:
    first, second = Registrar(served.address, lease_s=3), Registrar(served.address, lease_s=3)
    first.register("a", URI)
    first.register("a", URI)
    with pytest.raises(errors.NamingError, match="already registered, for PYRO:thing"):
        second.register("a", "PYRO:other@localhost:1")
    waiting = threading.Thread(
        target=second.register, args=("a", "PYRO:other@localhost:1"), kwargs={"wait_s": BOUND_S}
    )
    waiting.start()
    served.passes(3)
    waiting.join(BOUND_S)
    assert served.names.list(prefix="a") == {"a": "PYRO:other@localhost:1"}


def test_nodes_of_a_cluster_have_a_name_one_after_the_other(served: Served) -> None:
    nodes = ["localhost:1", "localhost:2"]
    uris = [f"PYRO:thing@{address}" for address in nodes]
    first, second = Registrar(served.address, lease_s=4), Registrar(served.address, lease_s=4)
    first.register("a", uris[0], same=lambda: nodes)
    second.register("a", uris[1], same=lambda: nodes)
    second.renew()
    assert served.names.list(prefix="a") == {"a": uris[0]}
    served.passes(2)
    second.renew()
    served.passes(2)  # the first has died, or is suspended
    second.renew()
    assert served.names.list(prefix="a") == {"a": uris[1]}
    first.renew()
    assert served.names.list(prefix="a") == {"a": uris[1]}
    second.stop()
    assert served.names.list(prefix="a") == {"a": uris[0]}  # handed over
    first.renew()
    served.passes(3)
    first.renew()
    served.passes(3)
    assert served.names.list(prefix="a") == {"a": uris[0]}
    nodes.remove("localhost:2")
    first.stop()
    assert served.names.list(prefix="a") == {}


def test_a_node_that_the_cluster_knows_to_be_gone_loses_its_names_before_its_lease_is_over(
    served: Served,
) -> None:
    nodes = ["localhost:1", "localhost:2"]
    first, second = Registrar(served.address, lease_s=60), Registrar(served.address, lease_s=60)
    first.register("a", "PYRO:thing@localhost:1", same=lambda: nodes)
    second.register("a", "PYRO:thing@localhost:2", same=lambda: nodes)
    nodes.remove("localhost:1")
    second.renew()
    assert served.names.list(prefix="a") == {"a": "PYRO:thing@localhost:2"}


def test_a_name_that_is_handed_over_to_a_node_that_is_gone_too_ends_with_its_lease(served: Served) -> None:
    node = Registrar(served.address, lease_s=3)
    node.register("a", "PYRO:thing@localhost:1", same=lambda: ["localhost:1", "localhost:2"])
    node.stop()
    assert served.names.list(prefix="a") == {"a": "PYRO:thing@localhost:2"}
    served.passes(3)
    assert served.names.list(prefix="a") == {}


def test_a_name_that_stands_for_something_else_is_not_the_clusters(served: Served) -> None:
    served.names.register("a", "PYRO:other@localhost:3")
    node = Registrar(served.address, lease_s=3)
    with pytest.raises(errors.NamingError, match="already registered"):
        node.register("a", "PYRO:thing@localhost:1", same=lambda: ["localhost:1", "localhost:2"])
    assert served.names.list(prefix="a") == {"a": "PYRO:other@localhost:3"}


def test_a_single_name_is_removed_only_if_it_is_still_ours(served: Served) -> None:
    registrar = Registrar(served.address)
    registrar.register("a", URI)
    registrar.register("b", URI)
    served.names.register("b", "PYRO:other@localhost:1", safe=False)
    registrar.unregister("a")
    registrar.unregister("b")
    registrar.unregister("c")
    assert served.names.list(prefix="b") == {"b": "PYRO:other@localhost:1"}
    assert served.names.list(prefix="a") == {}


def test_leases_outlive_the_name_server_and_get_their_whole_time_again() -> None:
    store, clock = SqliteStore("sqlite://", alone=False), ManualClock()
    names = NameServer(store, clock=clock)
    lease = names.open_lease(5.0)
    names.register("a", URI, lease=lease)
    again = NameServer(store, clock=clock)
    for _ in range(8):
        clock.advance(0.5)
        again.tick()
    assert again.renew_lease(lease)
    assert not again.renew_lease("another")
    for _ in range(10):
        clock.advance(0.5)
        again.tick()
    assert again.list() == {}
    names.tick()
    assert names.list() == {}
    with pytest.raises(errors.NamingError, match="the lease has ended"):
        names.register("a", URI, lease=lease)
    store.close()


def test_a_name_that_another_name_server_wrote_under_an_ended_lease_goes_too() -> None:
    store = SqliteStore("sqlite://", alone=False)
    ours, theirs = NameServer(store), NameServer(store)
    lease = ours.open_lease(5.0)
    theirs.register("a", URI, lease=lease)
    ours.end_lease(lease)
    theirs.register("b", URI, lease=lease)  # it has not heard yet
    theirs.tick()
    assert theirs.list() == {}
    store.close()


def test_a_stock_name_server_gets_plain_registrations() -> None:
    from Pyro5.nameserver import start_ns

    uri, stock, _ = start_ns("127.0.0.1", 0, enableBroadcast=False)
    thread = threading.Thread(target=stock.requestLoop, daemon=True)
    thread.start()
    try:
        registrar = Registrar(uri.location)
        registrar.register("a", URI, metadata={"t"})
        registrar.renew()
        with Proxy(str(uri)) as names:
            assert names.list("a", None, True) == {"a": (URI, {"t"})}
            registrar.stop()
            assert names.list("a") == {}
    finally:
        stock.shutdown()
        thread.join(10)
        stock.close()


@expose
class Slow:
    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.begun.set()
        self.end.wait(BOUND_S)


def test_the_load_of_a_server_grows_with_what_runs() -> None:
    slow = Slow()
    with ObjectServer(workers=4) as server:
        load = load_of(server)
        idle = load()
        with Proxy(server.register(slow, "slow")) as proxy:
            calls = [proxy.future.wait() for _ in range(3)]
            assert slow.begun.wait(BOUND_S)
            until = time.monotonic() + BOUND_S  # another thread takes over reading when it notices the wait
            while load() <= idle and time.monotonic() < until:
                threading.Event().wait(0.01)
            assert load() > idle
            slow.end.set()
            for call in calls:
                call.result(BOUND_S)


HOST = """
import sys
from objserver.naming import Registrar
names = Registrar(sys.argv[1], lease_s=1.0).start()
names.register("killed", "PYRO:thing@localhost:1")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_loses_its_names_and_nobody_else_does(tmp_path: pathlib.Path) -> None:
    @expose
    class Listener:
        def __init__(self) -> None:
            self.gone = threading.Event()

        def names_changed(self, changes: dict[str, Any]) -> None:
            if changes.get("killed", "") is None:
                self.gone.set()

    listener = Listener()
    with NameServerDaemon("localhost:0", store=f"sqlite:///{tmp_path}/names.db") as daemon:
        daemon.names.register("stays", URI)
        command = [sys.executable, "-c", HOST, daemon.address]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with Proxy(daemon.nameserver) as names:
            names.watch(listener, "killed")
            assert "killed" in names.list()
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            assert listener.gone.wait(BOUND_S)
            assert set(names.list()) == {"Pyro.NameServer", "stays"}
