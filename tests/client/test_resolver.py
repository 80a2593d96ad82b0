"""What a process remembers of names: real name servers and servers, one of each killed or replaced."""

import contextlib
import socket
import threading
import time

import pytest

from objserver import AsyncProxy, ObjectServer, Proxy, Reference, errors, expose
from objserver.client.resolver import Resolver
from objserver.naming import NameServerDaemon

BOUND_S = 20


@expose
class Here:
    def __init__(self, where):
        self._where = where

    def where(self):
        return self._where


class Names:
    """A name server that is a function; it counts lookups, and its news are told by `told`."""

    def __init__(self, **entries):
        self.entries = entries
        self.lookups = 0
        self.listener = None
        self.stock = False

    def __call__(self, server, timeout_s, method, *args):
        if method == "watch":
            if self.stock:
                raise errors.MemberNotFound("no watch")
            self.listener = args[0]
            return None
        if method != "lookup":
            raise errors.MemberNotFound(method)
        self.lookups += 1
        if args[0] not in self.entries:
            raise errors.NamingError(f"unknown name {args[0]!r}")
        return self.entries[args[0]]

    def move(self, name, uri):
        self.entries[name] = uri
        self.listener.names_changed({name: uri})


NAME = Reference.parse("PYRONAME:clock@localhost:5")


def test_from_the_second_time_on_a_name_is_remembered_until_news_come():
    names, resolver = Names(clock="PYRO:a@localhost:7"), Resolver()
    assert [str(resolver.resolve(NAME, names, None)) for _ in range(5)] == ["PYRO:a@localhost:7"] * 5
    assert names.lookups == 2
    names.move("clock", "PYRO:b@localhost:8")
    assert [str(resolver.resolve(NAME, names, None)) for _ in range(5)] == ["PYRO:b@localhost:8"] * 5
    assert names.lookups == 3


def test_news_of_a_name_are_news_of_the_objects_behind_it():
    names, resolver = Names(Account="PYRO:Account@localhost:7"), Resolver()
    alice = Reference.parse("PYRONAME:Account/alice@localhost:5")
    for _ in range(3):
        resolver.resolve(alice, names, None)
    names.move("Accounting", "PYRO:x@localhost:8")
    names.move("Account", "PYRO:Account@localhost:8")
    assert str(resolver.resolve(alice, names, None)) == "PYRO:Account/alice@localhost:8"


def test_who_tells_no_news_is_always_asked():
    names, resolver = Names(clock="PYRO:a@localhost:7"), Resolver()
    names.stock = True
    for _ in range(5):
        resolver.resolve(NAME, names, None)
    assert names.lookups == 5


def test_without_news_it_is_asked_again_after_some_seconds(monkeypatch):
    names, resolver = Names(clock="PYRO:a@localhost:7"), Resolver()
    now = [100.0]
    resolver._monotonic = lambda: now[0]
    for _ in range(3):
        resolver.resolve(NAME, names, None)
    now[0] += 4.9
    resolver.resolve(NAME, names, None)
    assert names.lookups == 2
    now[0] += 0.2
    resolver.resolve(NAME, names, None)
    assert names.lookups == 3


def test_what_is_not_where_it_was_remembered_is_looked_for_again():
    names, resolver = Names(clock="PYRO:a@localhost:7"), Resolver()
    for _ in range(3):
        found = resolver.resolve(NAME, names, None)
    assert resolver.failed(NAME, found.location)
    assert not resolver.failed(NAME, found.location)
    resolver.resolve(NAME, names, None)
    assert names.lookups == 3


@pytest.fixture
def daemon():
    with NameServerDaemon("localhost:0") as daemon:
        yield daemon


def test_a_proxy_finds_an_object_that_has_moved_though_it_remembered_the_old_place(daemon):
    first = ObjectServer().start()
    daemon.names.register("here", first.register(Here("first"), "here"))
    uri = f"PYRONAME:here@{daemon.address}"
    for _ in range(3):
        with Proxy(uri) as proxy:
            assert proxy.where() == "first"
    first.stop()
    with ObjectServer() as second:
        daemon.names.register("here", second.register(Here("second"), "here"), safe=False)
        with Proxy(uri) as proxy:
            assert proxy.where() == "second"


async def _where(uri):
    async with AsyncProxy(uri) as proxy:
        return await proxy.where()


def test_pyrometa_goes_past_a_server_that_is_dead(daemon):
    import asyncio

    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        nobody = f"PYRO:here@localhost:{closed.getsockname()[1]}"
    with ObjectServer() as server:
        daemon.names.register("alive", server.register(Here("alive"), "here"), metadata={"t"})
        daemon.names.register("dead", nobody, metadata={"t"})
        uri = f"PYROMETA:t@{daemon.address}"
        for _ in range(8):
            with Proxy(uri) as proxy:
                assert proxy.where() == "alive"
            assert asyncio.run(_where(uri)) == "alive"


@contextlib.contextmanager
def silent():
    """A name server that accepts and never answers: its process is stopped, say."""
    with socket.create_server(("localhost", 0)) as listener:
        yield f"localhost:{listener.getsockname()[1]}"


def test_another_name_server_is_asked_within_a_second(daemon, monkeypatch):
    with socket.socket() as closed, ObjectServer() as server, silent() as stopped:
        closed.bind(("localhost", 0))
        refusing = f"localhost:{closed.getsockname()[1]}"
        daemon.names.register("here", server.register(Here("here"), "here"))
        servers = f"{refusing},{stopped},{daemon.address}"
        begun = time.monotonic()
        with Proxy(f"PYRONAME:here@{servers}") as proxy:
            assert proxy.where() == "here"
        assert time.monotonic() - begun < 1.0
        with Proxy("PYRONAME:here", name_servers=servers.split(",")) as proxy:
            assert proxy.where() == "here"
            assert str(proxy) == f"PYRONAME:here@{servers}"
        monkeypatch.setenv("OBJSERVER_NAMESERVERS", servers)
        with Proxy("PYRONAME:here") as proxy:
            assert proxy.where() == "here"


def test_nobody_who_answers_is_an_error_that_names_all(monkeypatch):
    with pytest.raises(errors.NamingError, match="no name server answers at localhost:1 or localhost:2"):
        Proxy("PYRONAME:here@localhost:1,localhost:2").where()
    monkeypatch.setenv("OBJSERVER_NAMESERVERS", "localhost:x")
    with pytest.raises(errors.NamingError, match="OBJSERVER_NAMESERVERS"):
        Proxy("PYRONAME:here").where()


def test_a_name_resolved_by_many_threads_is_the_same_for_all(daemon):
    with ObjectServer() as server:
        daemon.names.register("here", server.register(Here("here"), "here"))
        found = []

        def ask():
            with Proxy(f"PYRONAME:here@{daemon.address}") as proxy:
                found.append(proxy.where())

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
        assert found == ["here"] * 16
