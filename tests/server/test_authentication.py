"""A server that wants to know who calls: keys, tokens, and what becomes of secrets."""

import asyncio
import contextlib
import io
import logging
import pickle
import socket
import threading
import time

import jwt
import Pyro5.errors
import pytest
from Pyro5.api import Proxy as StockProxy

from objserver import (
    AsyncProxy,
    ObjectServer,
    PerClient,
    Persistent,
    Proxy,
    ServerSettings,
    Shared,
    errors,
    expose,
    oneway,
)
from objserver.client.identity import process_id
from objserver.codecs import Codecs
from objserver.security import (
    ALLOW_AUTHENTICATED,
    AcceptedKey,
    Authentication,
    ClientTLS,
    Itself,
    Principal,
    ServerTLS,
    SharedKey,
    Token,
)
from objserver.security.exchange import Introduction, proof
from objserver.settings import Limits
from objserver.wire import FrameParser, FrameType, encode_frame

WAIT_S = 10
SECRET = bytes(range(32))
LAB = SharedKey("lab", SECRET, "ann")
codecs = Codecs(Limits())


def read(text):
    """A token is a name, something secret or nothing, and its expiry."""
    words, _, expires_at = text.partition(" until ")
    name = words.split()[0]
    if name == "nobody":
        raise errors.AuthenticationFailed(f"{text} names nobody")
    return Principal(name, expires_at=float(expires_at) if expires_at else None)


MEANS = Authentication(keys={"lab": SECRET}, tokens=read)


@expose
class Thing:
    def __init__(self):
        self.n = 0
        self.other = None

    def add(self, a, b):
        return a + b

    def count(self):
        self.n += 1
        return self.n

    def child(self):
        return Child()

    def call_back(self, other):
        return other.value()

    def keep(self, other):
        self.other = other

    def call_other(self):
        return self.other.value()

    def fail(self):
        secret = SECRET  # noqa: F841
        raise ValueError("on purpose")


@expose
class Child:
    def value(self):
        return 7


@contextlib.contextmanager
def serving(means=MEANS, **options):
    options = {"authorization": ALLOW_AUTHENTICATED, **options}
    with ObjectServer(authentication=means, **options) as server:
        server.register(Thing, "Thing", activation=Shared())
        yield server


@pytest.fixture
def server():
    with serving() as server:
        yield server


def uri(server):
    return f"PYRO:Thing@{server.address}"


def principals(server):
    return [connection.principal for connection in server.poller.connections.values()]


class Peer:
    """A raw client."""

    def __init__(self, server):
        host, _, port = server.address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), WAIT_S)
        self.parser = FrameParser(Limits())
        self.frames = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, kind, payload):
        self.sock.sendall(encode_frame(kind, 1, 0, 0, payload))

    def greet(self, extension, handshake="hello", object_id="Thing"):
        data = {"handshake": handshake, "object": object_id, "objserver": {"version": 1, **extension}}
        self.send(FrameType.CONNECT, codecs.serpent.encode(data))
        return self.read()

    def read(self):
        while not self.frames:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.frames += self.parser.receive_data(data)
        return self.frames.pop(0)


# -- shared keys ---------------------------------------------------------------------------------------


def test_the_holder_of_a_key_is_let_in_and_known(server):
    with Proxy(uri(server), credentials=LAB) as thing:
        assert thing.add(2, 3) == 5
        assert principals(server) == [Principal("lab/ann", means="key", key="lab")]


def test_an_async_proxy_proves_its_key(server):
    async def main():
        async with AsyncProxy(uri(server), credentials=LAB) as thing:
            return await thing.add(2, 3), principals(server)

    assert asyncio.run(main()) == (5, [Principal("lab/ann", means="key", key="lab")])


def test_promises_and_callbacks_are_let_in_too(server):
    with Proxy(uri(server), credentials=LAB) as thing:
        assert thing.future.add(2, 3).result(WAIT_S) == 5
        assert thing.call_back(Child()) == 7
        assert {principal.name for principal in principals(server)} == {"lab/ann"}


@pytest.mark.parametrize("wrong", [SharedKey("lab", bytes(32)), SharedKey("other", SECRET)])
def test_a_key_that_is_not_accepted_is_refused_at_once(server, wrong):
    with pytest.raises(errors.AuthenticationFailed, match="was not accepted"):
        Proxy(uri(server), credentials=wrong, timeout_s=WAIT_S).add(1, 1)


def test_who_has_lost_its_place_is_not_tried_again_for_its_whole_time():
    keys = {"lab": AcceptedKey(SECRET)}
    with serving(Authentication(keys=keys)) as server:
        with Proxy(uri(server), credentials=LAB, timeout_s=60) as thing:
            assert thing.add(1, 1) == 2
            keys.clear()
            thing.release()
            begun = time.monotonic()
            with pytest.raises(errors.AuthenticationFailed):
                thing.add(1, 1)
            assert time.monotonic() - begun < WAIT_S


def test_a_server_that_does_not_know_the_key_is_not_called():
    with ObjectServer() as server:
        server.register(Thing, "Thing")
        with pytest.raises(errors.AuthenticationFailed, match="did not prove that it knows the key 'lab'"):
            Proxy(uri(server), credentials=LAB).add(1, 1)


def test_keys_are_rotated_while_the_server_runs():
    keys = {"old": AcceptedKey(SECRET, "lab")}
    with serving(Authentication(keys=keys)) as server:
        keys["new"] = AcceptedKey(bytes(32), "lab")
        for key in (SharedKey("old", SECRET), SharedKey("new", bytes(32))):
            with Proxy(uri(server), credentials=key) as thing:
                assert thing.add(1, 1) == 2
        del keys["old"]
        with pytest.raises(errors.AuthenticationFailed):
            Proxy(uri(server), credentials=SharedKey("old", SECRET)).add(1, 1)


def test_nothing_is_called_before_the_proof(server):
    with Peer(server) as peer:
        assert peer.greet({"key": ["lab", "", "00" * 32]}).type == FrameType.PROOF
        peer.send(FrameType.INVOKE, codecs.serpent.encode_call("Thing", "count", (), {}))
        assert peer.read().type == FrameType.CONNECT_FAIL
    with Proxy(uri(server), credentials=LAB) as thing:
        assert thing.count() == 1


@pytest.mark.parametrize("answer", [b"", bytes(32), bytes(1000)])
def test_a_wrong_answer_is_refused_and_the_next_not_even_read(server, answer):
    with Peer(server) as peer:
        peer.greet({"key": ["lab", "", "00" * 32]})
        peer.send(FrameType.PROOF, answer)
        assert peer.read().type == FrameType.CONNECT_FAIL
        peer.send(FrameType.PROOF, answer)
        with pytest.raises(EOFError):
            peer.read()


def test_a_proof_that_was_overheard_opens_nothing(server):
    with Peer(server) as ann, Peer(server) as thief:
        introduction = Introduction(LAB, bytes(32), b"", True)
        claim = {"key": list(introduction.claim)}
        overheard = introduction.answer(bytes(ann.greet(claim).payload))
        ann.send(FrameType.PROOF, overheard)
        assert ann.read().type == FrameType.CONNECT_OK
        thief.greet(claim)
        thief.send(FrameType.PROOF, overheard)
        assert thief.read().type == FrameType.CONNECT_FAIL


def test_a_proof_without_a_claim_is_refused(server):
    with Peer(server) as peer:
        peer.send(FrameType.PROOF, bytes(32))
        assert peer.read().type == FrameType.CONNECT_FAIL


@pytest.mark.parametrize("claim", [5, [], ["lab"], ["lab", "", 5], ["lab", "", "x" * 1000]])
def test_a_malformed_claim_is_refused(server, claim):
    with Peer(server) as peer:
        assert peer.greet({"key": claim}).type == FrameType.CONNECT_FAIL


def test_a_client_that_never_answers_the_challenge_is_closed_in_time():
    with serving(settings=ServerSettings(handshake_timeout_s=0.2)) as server, Peer(server) as peer:
        peer.greet({"key": ["lab", "", "00" * 32]})
        assert b"no handshake came in the time allowed" in bytes(peer.read().payload)


def test_a_stranger_learns_nothing_of_the_objects(server):
    for name in ("Thing", "Nothing"):
        with pytest.raises(errors.AuthenticationFailed, match="wants to know who calls"):
            Proxy(f"PYRO:{name}@{server.address}").add(1, 1)


def test_a_session_belongs_to_the_principal_that_began_it():
    keys = {"lab": SECRET, "other": bytes(32)}
    with serving(Authentication(keys=keys)) as server:
        server.register(Thing, "Mine", activation=PerClient())
        mine = f"PYRO:Mine@{server.address}"
        counts = []
        for key in (LAB, SharedKey("lab", SECRET, "bob"), SharedKey("other", bytes(32), "ann"), LAB):
            with Proxy(mine, credentials=key, session="shared") as thing:
                counts.append(thing.count())
        assert counts == [1, 1, 1, 2]


def test_who_says_that_it_is_another_client_is_not_called_in_its_place():
    class Spy(Peer):
        def prove(self, client):
            claim = "other", "", "00" * 32
            challenge = self.greet({"key": list(claim), "client": client, "multiplexed": True})
            self.send(FrameType.PROOF, proof(bytes(32), "client", claim, bytes(challenge.payload), b""))
            return self.read().type

    with serving(Authentication(keys={"lab": SECRET, "other": bytes(32)})) as server, Spy(server) as spy:
        with Proxy(uri(server), credentials=LAB) as thing:
            child = Child()
            thing.keep(child)
            assert thing.call_other() == 7
            assert spy.prove(process_id()) == FrameType.CONNECT_OK
            assert thing.call_other() == 7


def test_a_server_with_keys_may_bind_to_every_address():
    with serving(address="0.0.0.0:0"):
        pass


def test_without_authentication_nobody_is_asked(server):
    with ObjectServer() as plain:
        plain.register(Thing, "Thing")
        with Proxy(uri(plain)) as thing:
            assert thing.add(1, 1) == 2
            assert principals(plain) == [None]


# -- tokens --------------------------------------------------------------------------------------------


def test_a_token_says_who_calls(server):
    with Proxy(uri(server), credentials=Token("tom")) as thing:
        assert thing.add(1, 1) == 2
        assert principals(server) == [Principal("tom", means="token")]


def test_a_proxy_that_speaks_as_a_stock_one_shows_its_token(server):
    with Proxy(uri(server), credentials=Token("tom"), serializer="json") as thing:
        assert thing.add(1, 1) == 2


def test_a_proxy_that_speaks_as_a_stock_one_cannot_prove_a_key(server):
    with pytest.raises(ValueError, match="cannot prove a key"):
        Proxy(uri(server), credentials=LAB, serializer="json")


def test_a_jwt_is_verified_by_the_function_that_is_given():
    key = "of the issuer, and 32 bytes long"

    def verify(text):
        claims = jwt.decode(text, key, algorithms=["HS256"], audience="lab")
        return Principal(claims["sub"], frozenset(claims["roles"]), "jwt", claims["exp"])

    claims = {"sub": "ann", "aud": "lab", "roles": ["reader"], "exp": int(time.time()) + 60}
    with serving(Authentication(tokens=verify)) as server:
        with Proxy(uri(server), credentials=Token(jwt.encode(claims, key))) as thing:
            assert thing.add(1, 1) == 2
            assert principals(server) == [Principal("ann", frozenset({"reader"}), "jwt", claims["exp"])]
        for wrong in ({**claims, "aud": "elsewhere"}, {**claims, "exp": 1}):
            with pytest.raises(errors.AuthenticationFailed, match="was not accepted: "):
                Proxy(uri(server), credentials=Token(jwt.encode(wrong, key))).add(1, 1)


def test_what_has_expired_ends_its_connection_and_something_newer_is_let_in():
    class Clock:
        now = 1000.0
        monotonic = staticmethod(time.monotonic)

        def time(self):
            return self.now

    clock = Clock()
    with serving(clock=clock) as server:
        with Proxy(uri(server), credentials=Token("tom until 1010")) as thing:
            assert thing.add(1, 1) == 2
            (connection,) = server.poller.connections.values()
            clock.now = 1010.0
            deadline = time.monotonic() + WAIT_S
            while not connection.closed and time.monotonic() < deadline:
                server._housekeeping()
            assert connection.closed
            thing.release()
            with pytest.raises(errors.AuthenticationFailed, match="'tom' has expired"):
                thing.add(1, 1)
        with Proxy(uri(server), credentials=Token("tom until 1020")) as thing:
            assert thing.add(1, 1) == 2
    assert not server.expiring


# -- stock clients -------------------------------------------------------------------------------------


@contextlib.contextmanager
def stock(reference, handshake="hello"):
    proxy = StockProxy(reference)
    proxy._pyroTimeout, proxy._pyroHandshake = WAIT_S, handshake
    try:
        yield proxy
    finally:
        proxy._pyroRelease()


def test_a_stock_client_that_shows_nothing_is_refused(server):
    with stock(uri(server)) as thing, pytest.raises(Pyro5.errors.CommunicationError, match="wants to know"):
        thing.add(1, 1)


def test_a_stock_client_shows_a_token_in_its_handshake(server):
    with stock(uri(server), "token tom") as thing:
        assert thing.add(1, 1) == 2
        assert principals(server) == [Principal("tom", means="token")]


def test_a_stock_client_with_a_wrong_token_is_refused(server):
    with stock(uri(server), "token nobody until 5") as thing:
        with pytest.raises(Pyro5.errors.CommunicationError, match=r"\.\.\. names nobody"):
            thing.add(1, 1)


# -- secrets -------------------------------------------------------------------------------------------


def test_no_log_and_no_error_holds_a_secret(server, caplog):
    hidden = "hush-hush"
    with caplog.at_level(logging.DEBUG):
        for credentials in (
            Token(f"nobody {hidden}"),
            SharedKey("lab", hidden.encode() * 4),
            Token(f"ann {hidden}"),
        ):
            try:
                Proxy(uri(server), credentials=credentials).fail()
            except Exception as problem:
                text = "".join(getattr(problem, "_pyroTraceback", [])) + repr(problem)
                assert hidden not in text
        for connection in server.poller.connections.values():
            assert hidden not in repr(connection.peer)
    assert "was not let in" in caplog.text
    assert hidden not in caplog.text
    assert hidden.encode().hex() not in caplog.text


def test_a_uri_holds_no_secret(server):
    with Proxy(uri(server), credentials=Token("hush")) as thing:
        assert "hush" not in str(thing) + repr(thing)


def test_a_copy_of_a_proxy_in_another_process_has_no_credentials(server):
    with Proxy(uri(server), credentials=Token("hush")) as thing:
        written = io.BytesIO()
        pickle.dump(thing, written)
    assert b"hush" not in written.getvalue()
    written.seek(0)
    with pytest.raises(errors.AuthenticationFailed):
        pickle.load(written).add(1, 1)


def test_what_a_server_returns_is_called_with_the_same_credentials_there(server):
    with Proxy(uri(server), credentials=LAB) as thing:
        assert thing.child().value() == 7


def test_a_reference_to_another_server_is_followed_without_credentials(server):
    with serving() as other, Proxy(uri(server), credentials=LAB) as thing:
        other.register(Child, "Child")
        with Proxy(f"PYRO:Child@{other.address}", credentials=LAB) as child:
            thing.keep(child)
        with pytest.raises(errors.AuthenticationFailed, match="wants to know who calls"):
            thing.call_other()  # a servant's proxy has none of its caller's


def test_a_proxy_that_comes_back_from_elsewhere_has_no_credentials(server):
    with serving() as other:
        other.register(Child, "Child")

        @expose
        class Bait:
            def reference(self):
                return Proxy(f"PYRO:Child@{other.address}")

        server.register(Bait, "Bait")
        with Proxy(f"PYRO:Bait@{server.address}", credentials=LAB) as bait:
            lured = bait.reference()
            with pytest.raises(errors.AuthenticationFailed, match="wants to know who calls"):
                lured.value()


@expose
class Account:
    def __init__(self):
        self.balance = 0

    def deposit(self, amount):
        self.balance += amount
        return self.balance

    @oneway
    def receive(self, amount):
        self.balance += amount

    def pay(self, other, amount):
        self.balance -= amount
        other.receive(amount)  # waits in the outbox

    def ask(self, other):
        return other.deposit(0)


@contextlib.contextmanager
def bank(lab, tmp_path, itself):
    own = ServerTLS(certificate=str(lab / "server.pem"), key=str(lab / "server.key"))
    means = Authentication(keys={"lab": SECRET, "server": bytes(32)})
    store = f"sqlite:///{tmp_path}/bank.db"
    options = {"authentication": means, "authorization": ALLOW_AUTHENTICATED, "itself": itself}
    with ObjectServer(tls=own, store=store, **options) as server:
        server.register(Account, "Account", activation=Persistent())
        options = {"tls": ClientTLS(ca=str(lab / "ca.pem")), "credentials": LAB}
        with Proxy(f"PYRO:Account/ann@{server.address}", **options) as ann:
            with Proxy(f"PYRO:Account/bob@{server.address}", **options) as bob:
                yield server, ann, bob


def test_objects_of_a_server_call_each_other_as_the_server_itself(lab, tmp_path):
    itself = Itself(ClientTLS(ca=str(lab / "ca.pem")), SharedKey("server", bytes(32)))
    with bank(lab, tmp_path, itself) as (server, ann, bob):
        assert ann.ask(bob) == 0
        ann.pay(bob, 5)
        deadline = time.monotonic() + WAIT_S
        while bob.deposit(0) != 5 and time.monotonic() < deadline:
            pass
        assert bob.deposit(0) == 5
        assert ann.deposit(0) == -5
        assert {principal.name for principal in principals(server)} == {"lab/ann", "server"}


def test_objects_of_a_server_that_is_nobody_itself_do_not(lab, tmp_path):
    itself = Itself(ClientTLS(ca=str(lab / "ca.pem")))
    with bank(lab, tmp_path, itself) as (_, ann, bob):
        with pytest.raises(errors.AuthenticationFailed, match="wants to know who calls"):
            ann.ask(bob)


# -- over TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def tls(lab):
    own = ServerTLS(
        certificate=str(lab / "server.pem"), key=str(lab / "server.key"), client_ca=str(lab / "ca.pem")
    )
    with serving(tls=own) as server:
        yield server, ClientTLS(ca=str(lab / "ca.pem"))


@pytest.mark.parametrize(("credentials", "name"), [(LAB, "lab/ann"), (Token("tom"), "tom")])
def test_where_there_are_other_means_a_certificate_is_not_demanded(tls, credentials, name):
    server, client = tls
    with Proxy(uri(server), tls=client, credentials=credentials) as thing:
        assert thing.add(1, 1) == 2
        assert [principal.name for principal in principals(server)] == [name]


def test_one_of_the_means_is_demanded(tls):
    server, client = tls
    with pytest.raises(errors.AuthenticationFailed, match="wants to know who calls"):
        Proxy(uri(server), tls=client).add(1, 1)


def test_who_sits_in_between_with_a_certificate_of_its_own_gets_no_further(lab, tls):
    """The client believes the one in between, whose certificate is of the same authority."""
    from objserver.security import authority

    server, client = tls
    directory = lab / "between"
    if not directory.exists():
        directory.mkdir()
        for name in ("ca.pem", "ca.key"):
            (directory / name).write_bytes((lab / name).read_bytes())
        authority.issue_server(directory, ["localhost"])
    identity = ServerTLS(certificate=str(directory / "server.pem"), key=str(directory / "server.key")).load(
        True
    )
    listener = socket.create_server(("localhost", 0))
    host, _, port = server.address.rpartition(":")

    def relay():
        with contextlib.suppress(OSError):
            victim = identity.context.wrap_socket(listener.accept()[0], server_side=True)
            onward = client.context.wrap_socket(
                socket.create_connection((host, int(port))), server_hostname="localhost"
            )

            def pump(source, target):
                with contextlib.suppress(OSError):
                    while data := source.recv(65536):
                        target.sendall(data)
                    target.shutdown(socket.SHUT_RDWR)

            threading.Thread(target=pump, args=(onward, victim), daemon=True).start()
            pump(victim, onward)

    threading.Thread(target=relay, daemon=True).start()
    between = f"PYRO:Thing@localhost:{listener.getsockname()[1]}"
    with pytest.raises(errors.AuthenticationFailed, match="somebody sits between client and server"):
        Proxy(between, tls=client, credentials=LAB).add(1, 1)
    listener.close()
