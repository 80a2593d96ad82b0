"""The name server over the network, with stock Pyro5 and with us as its clients."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import Pyro5.api
import Pyro5.errors
import pytest

from objserver import Proxy, errors, expose
from objserver.naming import NameServerDaemon


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
