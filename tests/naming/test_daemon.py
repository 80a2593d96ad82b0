"""The name server over the network, with stock Pyro5 and with us as its clients."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import Pyro5.api
import Pyro5.errors
import pytest

from objserver import Proxy, errors, expose
from objserver.naming import NameServerDaemon
from objserver.security import Authentication, Authorization, SharedKey


@expose
class Echo:
    def say(self, what: str) -> str:
        return what


@pytest.fixture
def daemon() -> Iterator[NameServerDaemon]:
    with NameServerDaemon("localhost:0") as daemon:
        daemon.names.register("test.echo", daemon.register(Echo, "Echo"), metadata={"echoes"})
        yield daemon


def stock(daemon: NameServerDaemon) -> Pyro5.api.Proxy:
    host, _, port = daemon.address.rpartition(":")
    return Pyro5.api.locate_ns(host, int(port))


def nsc(daemon: NameServerDaemon, *args: str) -> str:
    host, _, port = daemon.address.rpartition(":")
    command = [sys.executable, "-m", "Pyro5.nsc", "-n", host, "-p", port, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stock_clients_use_every_method(daemon: NameServerDaemon) -> None:
    uri = f"PYRO:Echo@{daemon.address}"
    with stock(daemon) as names:
        names.ping()
        assert names.lookup("test.echo") == Pyro5.api.URI(uri)
        assert names.lookup("test.echo", return_metadata=True) == (Pyro5.api.URI(uri), {"echoes"})
        names.register("second", Pyro5.api.URI(uri), metadata={"a", "b"})
        assert names.count() == 3
        assert names.yplookup(meta_all={"a"}) == {"second": (uri, {"a", "b"})}
        names.set_metadata("second", {"c"})
        assert names.list(prefix="sec", return_metadata=True) == {"second": (uri, {"c"})}
        with pytest.raises(Pyro5.errors.NamingError, match="already"):
            names.register("second", uri, safe=True)
        assert names.remove("second") == 1
        with pytest.raises(Pyro5.errors.NamingError, match="unknown name"):
            names.lookup("second")


def test_pyro5_nsc_works(daemon: NameServerDaemon) -> None:
    assert "ping ok" in nsc(daemon, "ping")
    assert "Registered n" in nsc(daemon, "register", "n", "PYRO:n@localhost:1")
    assert "Metadata updated" in nsc(daemon, "setmeta", "n", "tag")
    assert "n --> PYRO:n@localhost:1" in nsc(daemon, "yplookup_any", "tag")
    assert "class:Pyro5.nameserver.NameServer" in nsc(daemon, "list")
    assert "Removed n" in nsc(daemon, "remove", "n")


@pytest.mark.parametrize("uri", ["PYRONAME:test.echo", "PYROMETA:echoes"])
def test_stock_proxies_resolve(daemon: NameServerDaemon, uri: str) -> None:
    with Pyro5.api.Proxy(f"{uri}@{daemon.address}") as proxy:
        assert proxy.say("hello") == "hello"


@pytest.mark.parametrize("uri", ["PYRONAME:test.echo", "PYROMETA:echoes"])
def test_our_proxies_resolve(daemon: NameServerDaemon, uri: str) -> None:
    with Proxy(f"{uri}@{daemon.address}") as proxy:
        assert proxy.say("hello") == "hello"


def test_our_proxies_register_references(daemon: NameServerDaemon) -> None:
    with Proxy(daemon.nameserver) as names:
        names.register("mine", daemon.reference("Echo"))
        assert names.list(prefix="mine") == {"mine": f"PYRO:Echo@{daemon.address}"}
        with pytest.raises(errors.NamingError, match="unknown"):
            names.lookup("nobody")


def test_names_survive_a_restart(tmp_path: pathlib.Path) -> None:
    store = f"sqlite:///{tmp_path}/names.db"
    with NameServerDaemon("localhost:0", store=store) as daemon, stock(daemon) as names:
        names.register("kept", "PYRO:kept@localhost:1", metadata={"t"})
    with NameServerDaemon("localhost:0", store=store) as daemon, stock(daemon) as names:
        assert names.lookup("kept", return_metadata=True) == (Pyro5.api.URI("PYRO:kept@localhost:1"), {"t"})
        assert names.lookup("Pyro.NameServer") == Pyro5.api.URI(str(daemon.nameserver))


@pytest.fixture
def pair(postgres: Any) -> Iterator[list[NameServerDaemon]]:
    """Two name servers over one store."""
    url = postgres.new_url()
    with NameServerDaemon("localhost:0", store=url) as one, NameServerDaemon("localhost:0", store=url) as two:
        yield [one, two]


@expose
class Listener:
    def __init__(self) -> None:
        self.heard: dict[str, Any] = {}
        self.done = threading.Event()

    def names_changed(self, changes: dict[str, Any]) -> None:
        self.heard |= changes
        if self.heard.get("moved", "").endswith(":2") and self.heard.get("removed", "") is None:
            self.done.set()


def test_name_servers_over_one_store_answer_for_each_other(pair: list[NameServerDaemon]) -> None:
    one, two = pair
    with stock(one) as names, stock(two) as others, Proxy(two.nameserver) as watched:
        names.register("moved", "PYRO:x@localhost:1", metadata={"t"})
        names.register("removed", "PYRO:x@localhost:1")
        assert others.lookup("moved", True) == (Pyro5.api.URI("PYRO:x@localhost:1"), {"t"})
        with pytest.raises(Pyro5.errors.NamingError, match="already"):
            others.register("removed", "PYRO:y@localhost:1", safe=True)
        listener = Listener()
        watched.watch(listener)
        names.register("moved", "PYRO:x@localhost:2")
        names.remove("removed")
        assert listener.done.wait(30)
        assert others.list() == {
            "Pyro.NameServer": str(two.nameserver),
            "moved": "PYRO:x@localhost:2",
        }
        assert names.lookup("Pyro.NameServer") == Pyro5.api.URI(str(one.nameserver))


def test_of_many_who_want_a_name_at_several_name_servers_one_gets_it(pair: list[NameServerDaemon]) -> None:
    won: list[int] = []
    begin = threading.Barrier(8)

    def want(n: int) -> None:
        with Proxy(pair[n % 2].nameserver) as names:
            begin.wait(30)
            try:
                names.register("wanted", f"PYRO:x@localhost:{n + 1}")
                won.append(n)
            except errors.NamingError:
                pass

    threads = [threading.Thread(target=want, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == 1
    for daemon in pair:
        daemon.names.tick()
        assert daemon.names.list(prefix="wanted") == {"wanted": f"PYRO:x@localhost:{won[0] + 1}"}


SERVE = """
import sys
from objserver.naming import NameServerDaemon
from objserver.security import Authentication, SharedKey
daemon = NameServerDaemon("localhost:0", store=sys.argv[1]).start()
print(daemon.address, flush=True)
sys.stdin.read()
"""


def test_what_was_registered_when_a_name_server_is_killed_is_there_after_it(tmp_path: pathlib.Path) -> None:
    store = f"sqlite:///{tmp_path}/names.db"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, store], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    told = []
    with Proxy(f"PYRO:Pyro.NameServer@{address}") as names:
        killer = threading.Timer(0.5, os.kill, (process.pid, signal.SIGKILL))
        killer.start()
        try:
            for n in range(1_000_000):
                names.register(f"n{n}", f"PYRO:x@localhost:{n % 60000 + 1}")
                told.append(f"n{n}")
        except errors.CommunicationError:
            pass
    process.communicate()
    with NameServerDaemon("localhost:0", store=store) as daemon:
        kept = set(daemon.names.list())
    assert told
    assert set(told) <= kept
    assert len(kept) <= len(told) + 2  # itself, and perhaps the one whose answer was lost


def test_nobody_else_can_be_the_name_server(daemon: NameServerDaemon) -> None:
    with Proxy(daemon.nameserver) as names:
        with pytest.raises(errors.NamingError, match="is the name server itself"):
            names.register("Pyro.NameServer", "PYRO:evil@localhost:1", safe=False)
        with pytest.raises(errors.NamingError, match="is the name server itself"):
            names.set_metadata("Pyro.NameServer", ["evil"])


def test_a_name_belongs_to_who_has_proven_to_be_somebody() -> None:
    secret = bytes(range(32))
    with NameServerDaemon(
        "localhost:0",
        authentication=Authentication(keys={"lab": secret}),
        authorization=Authorization(allow_authenticated=True),
    ) as daemon:
        alice, bob = (
            Proxy(daemon.nameserver, credentials=SharedKey("lab", secret, name)) for name in ("alice", "bob")
        )
        with alice, bob:
            alice.register("mine", "PYRO:x@localhost:1")
            for change in (
                lambda: bob.register("mine", "PYRO:y@localhost:1", safe=False),
                lambda: bob.remove("mine"),
            ):
                with pytest.raises(errors.NamingError, match="belongs to 'lab/alice', and not to 'lab/bob'"):
                    change()
            assert alice.remove("mine") == 1
