"""A name service that demands TLS and wants to know who asks: over real connections, as two principals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import Pyro5.api
import Pyro5.errors
import pytest

from objserver import AsyncProxy, ObjectServer, Proxy, connect, errors, expose
from objserver.client import NameServers
from objserver.client.resolver import Resolver
from objserver.machine import machine
from objserver.naming import NameServerDaemon, Ownership, Registrar
from objserver.security import (
    ALLOW_AUTHENTICATED,
    AcceptedKey,
    Authentication,
    Authorization,
    ClientTLS,
    Principal,
    Rules,
    ServerTLS,
    SharedKey,
    Token,
)
from objserver.security.files import credentials_text

BOUND_S = 30
URI = "PYRO:thing@localhost:1234"
ALICE, BOB = SharedKey("a", bytes([1]) * 32), SharedKey("b", bytes([2]) * 32)
OWNERSHIP = Ownership(reserved={"bank/": frozenset({"tellers"})})


def read(text: str) -> Principal:
    """A token is a name, something secret, and its expiry."""
    name, _, until = text.split()
    return Principal(name, expires_at=float(until))


def means() -> Authentication:
    keys = {
        "a": AcceptedKey(ALICE.secret, name="alice"),
        "b": AcceptedKey(BOB.secret, name="bob", roles=frozenset({"tellers"})),
    }
    return Authentication(keys=keys, tokens=read)


def serving(lab: pathlib.Path, **options: Any) -> NameServerDaemon:
    tls = ServerTLS(certificate=f"{lab}/server.pem", key=f"{lab}/server.key", client_ca=f"{lab}/ca.pem")
    given = {"authentication": means(), "authorization": ALLOW_AUTHENTICATED, "ownership": OWNERSHIP}
    return NameServerDaemon("localhost:0", tls=tls, **{**given, **options})


@pytest.fixture
def daemon(lab: pathlib.Path) -> Iterator[NameServerDaemon]:
    with serving(lab) as daemon:
        yield daemon


@pytest.fixture
def tls(lab: pathlib.Path) -> ClientTLS:
    return ClientTLS(ca=f"{lab}/ca.pem")


def servers(tls: ClientTLS, credentials: Any, *daemons: NameServerDaemon) -> NameServers:
    return NameServers([daemon.address for daemon in daemons], tls=tls, credentials=credentials)


@expose
class Here:
    def __init__(self, where: str) -> None:
        self._where = where

    def where(self) -> str:
        return self._where


@contextlib.contextmanager
def here(daemon: NameServerDaemon, where: str = "here", **options: Any) -> Iterator[ObjectServer]:
    """A server of an object that is registered as `here`."""
    with ObjectServer(**options) as server:
        reference = server.register(Here(where), "Here")
        daemon.names.register("here", reference, safe=False, metadata={"t"})
        yield server


def who(server: ObjectServer) -> set[str | None]:
    """The names of all principals that are connected."""
    return {each.principal_name for each in server.poller.connections.values()}


# -- every way to use a name ---------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["PYRONAME:here", "PYROMETA:t"])
def test_every_kind_of_proxy_resolves_through_it(daemon: NameServerDaemon, tls: ClientTLS, uri: str) -> None:
    names = servers(tls, ALICE, daemon)

    async def asynchronously() -> str:
        async with AsyncProxy(uri, name_servers=names) as proxy:
            return str(await proxy.where())

    with here(daemon):
        with Proxy(uri, name_servers=names) as proxy:
            assert proxy.where() == "here"
            assert proxy.future.where().result(BOUND_S) == "here"
        assert connect(f"{uri}@{daemon.address}", Here, name_servers=names).where() == "here"
        assert asyncio.run(asynchronously()) == "here"


def test_what_is_for_the_object_is_not_shown_to_the_name_server_nor_the_other_way_round(
    daemon: NameServerDaemon, tls: ClientTLS
) -> None:
    shown: list[tuple[str, str]] = []

    def seen(where: str) -> Authentication:
        def hook(principal: Principal) -> Principal:
            shown.append((where, principal.name))
            return principal

        return Authentication(keys=means().keys, hook=hook)

    daemon.authentication = seen("names")
    protected = {"authentication": seen("object"), "authorization": ALLOW_AUTHENTICATED}
    with here(daemon, **protected):
        given = {"name_servers": servers(tls, ALICE, daemon), "credentials": BOB}
        with Proxy("PYRONAME:here", **given) as proxy:
            assert proxy.where() == "here"
        assert set(shown) == {("names", "alice"), ("object", "bob")}
        shown.clear()
        with pytest.raises(errors.ConnectFailed, match=r"could not be asked: .* speaks TLS only"):
            Proxy(f"PYRONAME:here@{daemon.address}", tls=tls, credentials=BOB).where()
        with pytest.raises(errors.AuthenticationFailed, match="this server wants to know who calls"):
            Proxy("PYRONAME:here", name_servers=given["name_servers"]).where()
        assert ("names", "bob") not in shown
        assert ("object", "alice") not in shown


def test_another_name_server_in_the_uri_is_shown_nothing(daemon: NameServerDaemon, tls: ClientTLS) -> None:
    with serving_plain() as other, here(other):
        names = servers(tls, ALICE, daemon)
        with Proxy(f"PYRONAME:here@{other.address}", name_servers=names) as proxy:
            assert proxy.where() == "here"
        _, port = daemon.address.split(":")
        with pytest.raises(errors.ConnectFailed, match="speaks TLS only"):  # the same one by another name
            Proxy(f"PYRONAME:here@127.0.0.1:{port}", name_servers=names).where()


def serving_plain() -> NameServerDaemon:
    return NameServerDaemon("localhost:0")


def test_names_that_have_moved_are_told_on_a_connection_of_the_same_principal(
    daemon: NameServerDaemon, tls: ClientTLS
) -> None:
    names = servers(tls, ALICE, daemon)
    watched = threading.Event()
    changed = Resolver._changed

    def noted(self: Resolver, names: Any) -> None:
        changed(self, names)
        watched.set()

    with here(daemon, "first") as first, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resolver, "_changed", noted)
        machine.get().own(Resolver)._listener = None  # another, which calls what was put there now
        for _ in range(3):
            with Proxy("PYRONAME:here", name_servers=names) as proxy:
                assert proxy.where() == "first"
        assert len(daemon.names.watchers) == 1
        assert who(daemon) == {"alice"}
        first.stop()
        with here(daemon, "second"):
            assert watched.wait(BOUND_S)
            with Proxy("PYRONAME:here", name_servers=names) as proxy:
                assert proxy.where() == "second"
        machine.get().own(Resolver)._listener = None


def test_what_one_principal_was_told_is_not_told_to_another_in_the_same_process(
    lab: pathlib.Path, tls: ClientTLS
) -> None:
    rules = Rules.parse('[[rule]]\neffect = "allow"\nprincipals = ["alice"]\nobjects = ["Pyro.NameServer"]')
    with serving(lab, authorization=Authorization(rules=rules)) as daemon, here(daemon):
        for _ in range(3):
            with Proxy("PYRONAME:here", name_servers=servers(tls, ALICE, daemon)) as proxy:
                assert proxy.where() == "here"
        with pytest.raises(errors.NotAuthorized, match="'bob' may call nothing of"):
            Proxy("PYRONAME:here", name_servers=servers(tls, BOB, daemon)).where()
        with pytest.raises(errors.ConnectFailed, match="could not be asked"):
            Proxy(f"PYRONAME:here@{daemon.address}").where()


def test_an_unchanged_program_uses_it_as_its_environment_says(
    daemon: NameServerDaemon, lab: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.toml").write_text(credentials_text("a", bytes([1]) * 32))
    (tmp_path / "a.toml").chmod(0o600)
    monkeypatch.setenv("OBJSERVER_NAMESERVERS", daemon.address)
    monkeypatch.setenv("OBJSERVER_NAMESERVERS_TLS_CA", f"{lab}/ca.pem")
    monkeypatch.setenv("OBJSERVER_NAMESERVERS_CREDENTIALS", f"{tmp_path}/a.toml")
    with here(daemon), Registrar() as registrar:
        registrar.register("mine", URI)
        assert daemon.names._index.entries["mine"].owner == "alice"
        for uri in ("PYRONAME:here", f"PYRONAME:here@{daemon.address}"):
            with Proxy(uri) as proxy:
                assert proxy.where() == "here"


def test_a_client_certificate_says_who_asks(daemon: NameServerDaemon, lab: pathlib.Path) -> None:
    ann = ClientTLS(ca=f"{lab}/ca.pem", certificate=f"{lab}/ann.pem", key=f"{lab}/ann.key")
    with Registrar(NameServers(daemon.address, tls=ann)) as registrar:
        registrar.register("mine", URI)
        assert daemon.names._index.entries["mine"].owner == "ann"


# -- whose names they are ------------------------------------------------------------------------------


def test_who_registers_owns_and_nobody_else_changes_it(daemon: NameServerDaemon, tls: ClientTLS) -> None:
    with Registrar(servers(tls, ALICE, daemon)) as alice, Registrar(servers(tls, BOB, daemon)) as bob:
        alice.register("mine", URI)
        bob.register("bank/vault", URI)
        with pytest.raises(errors.NamingError, match="already registered"):
            bob.register("mine", "PYRO:y@localhost:1")
        with pytest.raises(errors.NamingError, match="begin with 'bank/' are reserved, and not for 'alice'"):
            alice.register("bank/till", URI)
        with Proxy(daemon.nameserver, tls=tls, credentials=BOB) as names:
            for change in (
                lambda: names.register("mine", "PYRO:y@localhost:1", safe=False),
                lambda: names.set_metadata("mine", ["t"]),
                lambda: names.remove("mine"),
                lambda: names.remove(prefix="mi"),
            ):
                with pytest.raises(errors.NamingError, match="belongs to 'alice', and not to 'bob'"):
                    change()
            assert set(names.list()) == {"Pyro.NameServer", "bank/vault", "mine"}
    assert set(daemon.names.list()) == {"Pyro.NameServer"}


def test_roles_that_the_rules_give_count_for_reserved_prefixes(lab: pathlib.Path, tls: ClientTLS) -> None:
    rules = Rules.parse('[roles]\ntellers = ["alice"]\nnames = ["dora"]')
    options = Authorization(rules=rules, allow_authenticated=True)
    with serving(lab, authorization=options) as daemon:
        with Registrar(servers(tls, ALICE, daemon)) as alice:
            alice.register("bank/till", URI)
            assert daemon.names._index.entries["bank/till"].owner == "alice"
            keeper = Token("dora hush 99999999999")
            with Proxy(daemon.nameserver, tls=tls, credentials=keeper) as names:
                assert names.remove("bank/till") == 1


def test_a_lease_is_renewed_and_ended_by_who_began_it(daemon: NameServerDaemon, tls: ClientTLS) -> None:
    registrar = Registrar(servers(tls, ALICE, daemon))
    registrar.register("mine", URI)
    lease = registrar._lease
    with Proxy(daemon.nameserver, tls=tls, credentials=BOB) as names:
        assert names.renew_lease(lease) is False
        with pytest.raises(errors.NamingError, match="the lease belongs to 'alice'"):
            names.end_lease(lease)
        with pytest.raises(errors.NamingError, match="the lease belongs to 'alice'"):
            names.register("other", URI, lease=lease)
    registrar.renew()
    assert registrar._lease == lease
    registrar.stop()
    assert set(daemon.names.list()) == {"Pyro.NameServer"}


def test_the_registrar_renews_by_itself(daemon: NameServerDaemon, tls: ClientTLS) -> None:
    renewed = threading.Event()
    leases: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        told = daemon.names._watch.told

        def changes(what: Any) -> None:
            leases.extend(after for _, after in what.values() if after is not None)
            if len(leases) >= 3:
                renewed.set()
            told(what)

        patch.setattr(daemon.names._watch, "told", changes)
        with Registrar(servers(tls, ALICE, daemon), lease_s=1.0) as registrar:
            registrar.register("mine", URI)
            assert renewed.wait(BOUND_S)
            assert {lease.owner for lease in leases} == {"alice"}
            assert [lease.renewals for lease in leases[:3]] == [0, 1, 2]


@pytest.fixture
def pair(lab: pathlib.Path, postgres: Any) -> Iterator[list[NameServerDaemon]]:
    """Two name servers over one store."""
    url = postgres.new_url()
    with serving(lab, store=url) as one, serving(lab, store=url) as two:
        yield [one, two]


def test_another_name_server_over_the_same_store_knows_the_owners_and_the_leases(
    pair: list[NameServerDaemon], tls: ClientTLS
) -> None:
    one, two = pair
    registrar = Registrar(servers(tls, ALICE, one, two))
    with ObjectServer() as server:
        registrar.register("here", server.register(Here("here"), "Here"))
        lease = registrar._lease
        one.stop()
        begun = time.monotonic()
        with Proxy("PYRONAME:here", name_servers=servers(tls, BOB, one, two)) as proxy:
            assert proxy.where() == "here"
        assert time.monotonic() - begun < 1.0
        registrar.renew()
        assert registrar._lease == lease
        with (
            Proxy(two.nameserver, tls=tls, credentials=BOB) as names,
            pytest.raises(errors.NamingError, match="belongs to 'alice', and not to 'bob'"),
        ):
            names.remove("here")
        registrar.stop()
        assert set(two.names.list()) == {"Pyro.NameServer"}


def test_a_key_that_one_name_server_does_not_know_yet_is_shown_to_the_next(
    pair: list[NameServerDaemon], tls: ClientTLS
) -> None:
    one, two = pair
    one.authentication = Authentication(keys={"b": BOB.secret})
    with here(one), Proxy("PYRONAME:here", name_servers=servers(tls, ALICE, one, two)) as proxy:
        assert proxy.where() == "here"
    two.authentication = one.authentication
    with pytest.raises(errors.AuthenticationFailed, match="could not be asked: the key 'a' was not accepted"):
        Proxy("PYRONAME:other", name_servers=servers(tls, ALICE, one, two)).where()


def test_one_that_is_silent_in_its_handshake_costs_less_than_a_second(
    daemon: NameServerDaemon, tls: ClientTLS
) -> None:
    with here(daemon), socket.create_server(("localhost", 0)) as silent:
        addresses = [f"localhost:{silent.getsockname()[1]}", daemon.address]
        begun = time.monotonic()
        with Proxy("PYRONAME:here", name_servers=NameServers(addresses, tls=tls, credentials=BOB)) as proxy:
            assert proxy.where() == "here"
        assert time.monotonic() - begun < 1.0


# -- what has expired ----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.monotonic = time.monotonic

    def time(self) -> float:
        return self.now


def test_an_expired_credential_is_refused_and_a_newer_one_keeps_the_names(
    lab: pathlib.Path, tls: ClientTLS, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with serving(lab, clock=clock) as daemon, here(daemon):
        old = servers(tls, Token("alice hush 1010"), daemon)
        registrar = Registrar(old, lease_s=60)
        registrar.register("mine", URI)
        with Proxy("PYRONAME:here", name_servers=old) as proxy:
            assert proxy.where() == "here"
        clock.now = 1010.0
        with pytest.raises(
            errors.AuthenticationFailed, match="could not be asked: what proves 'alice' has expired"
        ):
            registrar.renew()
        with pytest.raises(errors.AuthenticationFailed, match="what proves 'alice' has expired"):
            Proxy("PYRONAME:here", name_servers=old, timeout_s=BOUND_S).where()
        registrar.name_servers = servers(tls, Token("alice hush 1020"), daemon)
        registrar.renew()
        assert daemon.names._index.entries["mine"].owner == "alice"
        registrar.stop()
    assert "hush" not in caplog.text


def test_a_registrar_whose_credential_has_expired_says_so_once(
    lab: pathlib.Path, tls: ClientTLS, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with serving(lab, clock=clock) as daemon:
        registrar = Registrar(servers(tls, Token("alice hush 1010"), daemon), lease_s=60)
        registrar.register("mine", URI)
        clock.now = 1010.0
        tries = iter([False, False, True])
        registrar._stopping.wait = lambda _=None: next(tries)
        with caplog.at_level(logging.WARNING, "objserver.naming"):
            registrar._run()
    said = [record.getMessage() for record in caplog.records if record.name == "objserver.naming"]
    assert len(said) == 1
    assert said[0].startswith("the names of this server may be lost: the name server at")
    assert "has expired" in said[0]


# -- who is refused ------------------------------------------------------------------------------------


def test_an_unauthenticated_peer_is_told_what_is_lacking(daemon: NameServerDaemon, tls: ClientTLS) -> None:
    at = f"PYRONAME:here@{daemon.address}"
    refusals = {
        "speaks TLS only": Proxy(at),
        "wants to know who calls": Proxy(at, name_servers=NameServers(daemon.address, tls=tls)),
        "the key 'a' was not accepted": Proxy(
            at, name_servers=servers(tls, SharedKey("a", bytes(32)), daemon)
        ),
        "this client cannot use its TLS files .* No such file": Proxy(
            at, name_servers=servers(ClientTLS(ca="nowhere.pem"), ALICE, daemon)
        ),
        "the certificate is not accepted": Proxy(at, name_servers=servers(ClientTLS(), ALICE, daemon)),
    }
    for sentence, proxy in refusals.items():
        with pytest.raises(errors.ConnectFailed, match=sentence) as refused:
            proxy.where()
        assert f"the name server at {daemon.address} could not be asked" in str(refused.value)
    assert who(daemon) <= {None}


def test_who_lacks_a_certificate_is_told_so(lab: pathlib.Path, tls: ClientTLS) -> None:
    with serving(lab, authentication=None) as daemon:
        with pytest.raises(errors.AuthenticationFailed, match=r"connect with tls=ClientTLS\(certificate="):
            Proxy("PYRONAME:here", name_servers=servers(tls, None, daemon)).where()


def test_tls_is_not_given_up_where_the_name_server_speaks_none(tls: ClientTLS) -> None:
    with serving_plain() as plain, pytest.raises(errors.ConnectFailed, match="does the server speak TLS"):
        Proxy("PYRONAME:here", name_servers=servers(tls, None, plain)).where()


def test_a_name_server_that_does_not_know_the_key_is_not_believed() -> None:
    with serving_plain() as plain, here(plain):
        with pytest.raises(errors.AuthenticationFailed, match="did not prove that it knows the key 'a'"):
            Proxy("PYRONAME:here", name_servers=NameServers(plain.address, credentials=ALICE)).where()


def test_a_stock_client_is_refused_in_words() -> None:
    options = {"authentication": means(), "authorization": ALLOW_AUTHENTICATED}
    with NameServerDaemon("localhost:0", **options) as daemon:
        with (
            Pyro5.api.Proxy(str(daemon.nameserver)) as names,
            pytest.raises(Pyro5.errors.CommunicationError, match="wants to know who calls"),
        ):
            names.list()
        host, port = daemon.address.split(":")
        with pytest.raises(Pyro5.errors.NamingError):
            Pyro5.api.locate_ns(host, int(port))
        with (
            Pyro5.api.Proxy(f"PYRONAME:here@{daemon.address}") as proxy,
            pytest.raises(Pyro5.errors.PyroError),
        ):
            proxy.where()


def test_a_stock_client_that_may_not_ask_is_refused_in_words() -> None:
    rules = Rules.parse(
        '[[rule]]\neffect = "allow"\nprincipals = ["tom"]\nobjects = ["*"]\nmethods = ["lookup", "ping"]'
    )
    options = {"authentication": means(), "authorization": Authorization(rules=rules)}
    with NameServerDaemon("localhost:0", **options) as daemon, here(daemon) as server:
        with Pyro5.api.Proxy(str(daemon.nameserver)) as names:
            names._pyroHandshake = "token tom hush 99999999999"
            assert str(names.lookup("here")) == f"PYRO:Here@{server.address}"
            with pytest.raises(Pyro5.errors.SecurityError, match="'tom' may not call remove"):
                names.remove("here")


def test_a_stock_client_without_tls_is_refused_in_words(daemon: NameServerDaemon) -> None:
    with (
        Pyro5.api.Proxy(str(daemon.nameserver)) as names,
        pytest.raises(Pyro5.errors.CommunicationError, match="speaks TLS only"),
    ):
        names.list()


STOCK = """
import sys, Pyro5.api
from Pyro5 import config
lab, host, port = sys.argv[1:]
config.SSL, config.SSL_CACERTS, config.COMMTIMEOUT = True, lab + "/ca.pem", 20
config.SSL_CLIENTCERT, config.SSL_CLIENTKEY = lab + "/ann.pem", lab + "/ann.key"
with Pyro5.api.locate_ns(host, int(port)) as names:
    names.register("stock", "PYRO:x@localhost:1")
    try:
        names.remove("alices")
    except Pyro5.errors.NamingError as problem:
        print(problem)
"""


def test_a_stock_client_with_a_certificate_is_a_principal_like_any(
    daemon: NameServerDaemon, lab: pathlib.Path, tls: ClientTLS
) -> None:
    with Registrar(servers(tls, ALICE, daemon)) as registrar:
        registrar.register("alices", URI)
        command = [sys.executable, "-c", STOCK, str(lab), *daemon.address.split(":")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == "the name 'alices' belongs to 'alice', and not to 'ann'\n", done.stderr
    assert daemon.names._index.entries["stock"].owner == "ann"


# -- secrets -------------------------------------------------------------------------------------------


def test_no_secret_of_a_name_service_is_in_a_log_a_repr_an_error_or_a_copy(
    daemon: NameServerDaemon, tls: ClientTLS, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = "hush-hush"
    with caplog.at_level(logging.DEBUG):
        for credentials in (Token(f"nobody {hidden}"), SharedKey("a", hidden.encode() * 4)):
            given = servers(tls, credentials, daemon)
            proxy = Proxy("PYRONAME:here", name_servers=given)
            with pytest.raises(errors.AuthenticationFailed) as refused:
                proxy.where()
            registrar = Registrar(given)
            shown = repr([refused.value, proxy, given, registrar]) + str(proxy)
            assert hidden not in shown
            assert hidden.encode().hex() not in shown
            assert hidden.encode() not in pickle.dumps(proxy)
    assert hidden not in caplog.text
    assert hidden.encode().hex() not in caplog.text
