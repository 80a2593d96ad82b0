"""What belongs to somebody stays his: ids, leases, callbacks, streams, and the rights lent to a servant."""

import asyncio
import contextlib
import gc
import socket
import threading
import time
from functools import partial

import Pyro5.api
import Pyro5.errors
import pytest
from ormsgpack import Ext, packb

from objserver import (
    AsyncProxy,
    Concurrent,
    ObjectServer,
    Persistent,
    Proxy,
    Publisher,
    ServerSettings,
    Shared,
    current,
    errors,
    expose,
    oneway,
    readonly,
)
from objserver.client import arrival, books
from objserver.client.identity import process_id
from objserver.codecs import Codecs
from objserver.codecs.native import LENT, REFERENCE
from objserver.invocation import CallId
from objserver.machine import machine
from objserver.security import (
    ALLOW_AUTHENTICATED,
    AcceptedKey,
    Authentication,
    Authorization,
    Itself,
    Principal,
    Rules,
    SharedKey,
)
from objserver.security.exchange import proof
from objserver.settings import Limits
from objserver.wire import CallContext, FrameParser, FrameType, encode_frame

WAIT_S = 20
SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(("alice", "bob", "server", "lab"))}
ALICE, BOB, SERVER = (SharedKey(name, SECRETS[name]) for name in ("alice", "bob", "server"))
MEANS = Authentication(keys=SECRETS)
codec = Codecs(Limits()).native


@pytest.fixture(autouse=True)
def fresh():
    machine.get().own(books._Books)._books.clear()


@expose
class Account:
    def __init__(self):
        self.balance = 0
        self.friend = None

    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @readonly
    def read(self) -> int:
        return self.balance

    def pay(self, other, amount: int) -> int:
        self.balance -= amount
        return other.deposit(amount)

    def befriend(self, other):
        self.friend = other

    def ask_friend(self):
        return self.friend.who()

    def tell(self, other, text):
        self.balance += 1
        other.hear(text)

    @oneway
    def hear(self, text):
        self.balance += 1000

    def who(self):
        return current.caller and current.caller.name


def serving(tmp_path, *, authorization=ALLOW_AUTHENTICATED, means=MEANS, itself=SERVER, **options):
    options.setdefault("store", f"sqlite:///{tmp_path}/x.db")
    server = ObjectServer(
        authentication=means, authorization=authorization, itself=Itself(None, itself), **options
    )
    server.register(Account, "Account", activation=Persistent())
    return server.start()


@contextlib.contextmanager
def running(tmp_path, **options):
    server = serving(tmp_path, **options)
    try:
        yield server
    finally:
        server.stop()


def proxy_of(server, object_id, who, **options):
    options.setdefault("timeout_s", WAIT_S)
    return Proxy(f"PYRO:{object_id}@{server.address}", credentials=who, **options)


def until(condition):
    pause = threading.Event()
    for _ in range(WAIT_S * 200):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never became true")


class Raw:
    """A client that proves a key and then chooses its frames."""

    def __init__(self, server, who, object_id="Account/a", **extension):
        host, _, port = server.address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), WAIT_S)
        self.parser, self.frames, self.sequence = FrameParser(Limits()), [], 0
        self.object_id = object_id
        claim = (who.id, who.name, "00" * 32)
        greeting = {"version": 1, "key": list(claim), **extension}
        self.say(FrameType.CONNECT, {"handshake": "hello", "object": object_id, "objserver": greeting})
        challenge = bytes(self.hear().payload)
        answer = proof(who.secret, "client", claim, challenge, b"")
        self.sock.sendall(encode_frame(FrameType.PROOF, codec.serializer_id, 0, 0, answer))
        assert self.hear().type == FrameType.CONNECT_OK

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def say(self, kind, value, annotations=None, flags=0):
        self.sequence += 1
        data = encode_frame(kind, codec.serializer_id, flags, self.sequence, codec.encode(value), annotations)
        self.sock.sendall(data)

    def hear(self):
        while not self.frames:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.frames += self.parser.receive_data(data)
        return self.frames.pop(0)

    def call(self, method, *args, number=None, client=bytes(16), asks=False, acked=0, object_id=None):
        """The result, or the exception."""
        context = CallContext(WAIT_S, (), CallId(client, number), acked, asks).encode() if number else None
        self.say(
            FrameType.INVOKE,
            [object_id or self.object_id, method, list(args), {}],
            {"OBJS": context} if context else None,
        )
        return codec.decode(self.hear().payload)

    def open_session(self, client):
        return self.call("open_session", client, object_id="Pyro.Daemon")


# -- numbered calls ------------------------------------------------------------------------------------


def test_who_learned_anothers_id_is_another_client(tmp_path):
    client = b"0123456789abcdef"
    with running(tmp_path) as server, Raw(server, ALICE) as alice, Raw(server, BOB) as bob:
        alice.open_session(client)
        assert alice.call("deposit", 5, number=1, client=client) == 5
        # He is not told what became of it,
        assert isinstance(bob.call("deposit", 5, number=1, client=client), errors.SessionExpired)
        assert isinstance(bob.call("<outcome>", number=1, client=client, asks=True), errors.SessionExpired)
        bob.open_session(client)
        assert isinstance(bob.call("<outcome>", number=1, client=client, asks=True), errors.NotExecuted)
        # nor does he spoil what is to come,
        assert isinstance(bob.call("<outcome>", number=2, client=client, asks=True), errors.NotExecuted)
        assert bob.call("deposit", 100, number=3, client=client, acked=2) == 105
        assert alice.call("deposit", 5, number=2, client=client) == 110
        assert alice.call("deposit", 5, number=3, client=client) == 115
        # and of both each call has happened once.
        assert alice.call("deposit", 5, number=2, client=client) == 110
        assert bob.call("deposit", 100, number=3, client=client) == 105
        assert alice.call("read") == 115


def test_a_call_is_known_again_after_a_restart_and_still_nobody_elses(tmp_path):
    client = b"0123456789abcdef"
    with running(tmp_path) as server, Raw(server, ALICE) as alice:
        alice.open_session(client)
        assert alice.call("deposit", 5, number=1, client=client) == 5
    with running(tmp_path) as server, Raw(server, ALICE) as alice, Raw(server, BOB) as bob:
        assert isinstance(bob.call("deposit", 5, number=1, client=client), errors.SessionExpired)
        assert alice.call("deposit", 5, number=1, client=client) == 5
        assert alice.call("<outcome>", number=1, client=client, asks=True) == 5
        assert alice.call("read") == 5


def test_a_store_of_a_server_that_asks_nobody_stays_what_it_is(tmp_path):
    url, client = f"sqlite:///{tmp_path}/x.db", b"0123456789abcdef"
    with ObjectServer(store=url) as server:
        server.register(Account, "Account", activation=Persistent())
        with Proxy(f"PYRO:Account/a@{server.address}", timeout_s=WAIT_S) as account:
            assert account.deposit(5) == 5
        (book,) = machine.get().own(books._Books)._books.values()
    with ObjectServer(store=url) as server:
        server.register(Account, "Account", activation=Persistent())
        with Proxy(f"PYRO:Account/a@{server.address}", timeout_s=WAIT_S) as account:
            assert account.outcome(CallId(book.client, 1)) == 5
    assert client != book.client


def test_a_process_that_is_two_principals_numbers_the_calls_of_each(tmp_path):
    with running(tmp_path) as server:
        with proxy_of(server, "Account/a", ALICE) as alices, proxy_of(server, "Account/a", BOB) as bobs:
            assert [alices.deposit(1), bobs.deposit(1), alices.deposit(1), bobs.deposit(1)] == [1, 2, 3, 4]

            async def both():
                options = {"timeout_s": WAIT_S}
                uri = f"PYRO:Account/a@{server.address}"
                async with AsyncProxy(uri, credentials=ALICE, **options) as one:
                    async with AsyncProxy(uri, credentials=BOB, **options) as other:
                        return [await one.deposit(1), await other.deposit(1), await one.deposit(1)]

            assert asyncio.run(both()) == [5, 6, 7]
        kept = machine.get().own(books._Books)._books.values()
        assert len({book.client for book in kept}) == 2
        assert server.statistics()["sessions"] == 2


def test_a_call_within_a_call_happens_once_under_the_servers_own_name(tmp_path):
    with running(tmp_path) as server, Raw(server, ALICE) as alice:
        client = b"0123456789abcdef"
        b = proxy_of(server, "Account/b", ALICE)
        alice.open_session(client)
        for _ in range(2):
            assert alice.call("pay", b, 5, number=1, client=client) == 5
        assert alice.call("read") == -5
        assert b.read() == 5


# -- quotas --------------------------------------------------------------------------------------------


def test_another_name_of_the_same_key_is_no_other_share(tmp_path):
    settings = ServerSettings(calls_per_principal_s=1, quota_burst_s=20)
    with running(tmp_path, settings=settings) as server:
        let_in = 0

        def ask(name):
            with proxy_of(server, "Account/a", SharedKey("lab", SECRETS["lab"], name)) as account:
                account.read()

        with contextlib.suppress(errors.QuotaExceeded):
            for number in range(100):
                ask(f"somebody {number}")
                let_in += 1
        with pytest.raises(errors.QuotaExceeded, match="with all who have the key 'lab'"):
            ask("somebody else")
        assert let_in < 50
        with proxy_of(server, "Account/a", ALICE) as account:
            assert account.read() == 0


# -- leases --------------------------------------------------------------------------------------------


@expose
class Thing:
    def value(self):
        return 7


@expose
class Maker:
    def make(self):
        return Thing()


def test_nobody_gives_up_what_another_holds(tmp_path):
    with running(tmp_path) as server:
        server.register(Maker(), "Maker")
        with proxy_of(server, "Maker", ALICE) as maker:
            thing = maker.make()
            object_id = thing._objserver_reference.object_id
            with Raw(server, BOB, client=process_id()) as bob:
                # Before and after she has said that she holds it.
                for _ in range(2):
                    bob.say(
                        FrameType.INVOKE, ["Pyro.Daemon", "release", [{object_id: 10**6}], {}], flags=1 << 2
                    )
                    assert bob.call("ping", object_id="Pyro.Daemon") is None
                    assert server.adapter.exported == 1
                    assert thing.value() == 7
                    until(lambda: server.adapter._exports._exports[object_id].holders)
            assert object_id in str(thing)


# -- callbacks -----------------------------------------------------------------------------------------


@expose
class Listener:
    def __init__(self):
        self.heard = []
        self.callers = []

    @oneway
    def news(self, text):
        self.heard.append(text)
        self.callers.append(current.caller)

    def answer(self):
        self.callers.append(current.caller)
        return 7


@expose
class Board:
    def __init__(self):
        self.publisher = Publisher()
        self.kept = None

    def subscribe(self, listener):
        self.publisher.subscribe(listener)

    def keep(self, listener):
        self.kept = listener

    def ask(self):
        return self.kept.answer()

    def publish(self, text):
        return self.publisher.publish("news", text)

    def who(self):
        return current.caller and current.caller.name


FEED = """
[[rule]]
effect = "allow"
principals = ["alice", "bob", "server"]
objects = "*"
"""
NO_FEED = (
    FEED
    + """
[[rule]]
effect = "deny"
principals = "alice"
objects = "Board"
methods = {methods}
"""
)


def rules(text):
    return Authorization(rules=Rules.parse(text))


def test_who_says_first_that_he_is_another_client_gets_none_of_its_calls(tmp_path):
    with running(tmp_path) as server:
        server.register(Board(), "Board", threading=Concurrent())
        with Raw(server, BOB, "Board", client=process_id(), multiplexed=True):
            with proxy_of(server, "Board", ALICE) as board:
                board.keep(Listener())
                assert board.ask() == 7


def test_who_says_that_he_is_another_client_is_not_asked_about_its_objects(tmp_path):
    with running(tmp_path) as server:
        server.register(Board(), "Board", threading=Concurrent())
        with proxy_of(server, "Board", ALICE) as board:
            board.keep(Listener())
            with Raw(server, BOB, "Board", client=process_id(), multiplexed=True) as bob:
                bobs = Ext(REFERENCE, f"PYRO:~bobs@./c:{process_id()}".encode())
                payload = packb(["Board", "subscribe", [bobs], {}])
                bob.sock.sendall(encode_frame(FrameType.INVOKE, codec.serializer_id, 0, 9, payload))
                keeper = arrival._leases[0]

                def held_by(whose):
                    holds = list(keeper._holds.items())
                    return [list(ids) for daemon, ids in holds if f"of '{whose}'" in str(daemon.location)]

                until(lambda: held_by("bob") == [["~bobs"]])
                assert len(held_by("alice")) == 1
                assert board.ask() == 7


def test_a_subscription_ends_when_other_rules_forbid_what_began_it(tmp_path):
    with running(tmp_path, authorization=rules(FEED)) as server:
        server.register(board := Board(), "Board")
        alice, bob = Listener(), Listener()
        with proxy_of(server, "Board", ALICE) as a, proxy_of(server, "Board", BOB) as b:
            a.subscribe(alice)
            b.subscribe(bob)
            assert board.publish("one") == 2
            server.authorization = rules(NO_FEED.format(methods='["publish"]'))
            assert board.publish("two") == 2
            until(lambda: alice.heard == ["one", "two"] == bob.heard)
            server.authorization = rules(NO_FEED.format(methods='["subscribe"]'))
            assert board.publish("three") == 1
            until(lambda: bob.heard == ["one", "two", "three"])
            assert alice.heard == ["one", "two"]
            assert a.who() == "alice"


def test_a_batch_and_a_pipeline_that_brought_a_callback_are_judged_again(tmp_path):
    with running(tmp_path, authorization=rules(FEED)) as server:
        server.register(Board(), "Board")
        with proxy_of(server, "Board", ALICE) as board, proxy_of(server, "Board", BOB) as bobs:
            with board.batch() as batch:
                batch.keep(Listener())
            assert bobs.ask() == 7
            server.authorization = rules(NO_FEED.format(methods='["keep"]'))
            with pytest.raises(errors.ConnectFailed, match="other rules hold than when it came"):
                bobs.ask()
            server.authorization = rules(FEED)
            assert bobs.ask() == 7
            board.future.keep(board.future.who()).result(WAIT_S)
            board.future.keep(Listener()).result(WAIT_S)
            server.authorization = rules(NO_FEED.format(methods='["keep"]'))
            with pytest.raises(errors.ConnectFailed, match="other rules hold"):
                bobs.ask()


def test_a_callback_that_somebody_else_passed_on_is_called(tmp_path):
    with running(tmp_path) as server:
        server.register(Board(), "Board")
        server.register(Board(), "Other")
        with proxy_of(server, "Board", ALICE) as board, proxy_of(server, "Other", BOB) as other:
            listener = Listener()
            board.keep(listener)
            assert board.ask() == 7
            other.keep(listener)
            assert other.ask() == 7
            assert listener.callers == [None, None]


def test_a_call_that_waits_for_the_result_of_another_is_judged_when_it_goes_on(tmp_path):
    going = threading.Event()

    @expose
    class Slow(Board):
        def first(self):
            going.wait(WAIT_S)
            return 1

        def second(self, one):
            return one + 1

    with running(tmp_path, authorization=rules(FEED)) as server:
        server.register(Slow(), "Board", threading=Concurrent())
        with proxy_of(server, "Board", ALICE) as board:
            one = board.future.first()
            two = board.future.second(one)
            until(lambda: server.statistics()["calls_in_flight"] == 2)
            server.authorization = rules(NO_FEED.format(methods='["second"]'))
            going.set()
            assert one.result(WAIT_S) == 1
            with pytest.raises(errors.NotAuthorized, match="'alice' may not call second"):
                two.result(WAIT_S)


# -- streams -------------------------------------------------------------------------------------------


@expose
class Source:
    def __init__(self):
        self.ended = threading.Event()

    def numbers(self):
        try:
            while True:
                yield current.caller and current.caller.name
        finally:
            self.ended.set()

    async def numbers_later(self):
        try:
            while True:
                await asyncio.sleep(0)
                yield current.caller and current.caller.name
        finally:
            self.ended.set()

    @property
    def endless(self):
        return self.numbers()


SOURCE = """
[[rule]]
effect = "allow"
principals = "alice"
objects = "Source"
methods = {methods}
"""


@pytest.mark.parametrize("method", ["numbers", "numbers_later", "endless"])
def test_an_open_stream_ends_when_other_rules_forbid_it(tmp_path, method):
    allowed = SOURCE.format(methods=f'["{method}", "more"]')
    with running(tmp_path, authorization=rules(allowed)) as server:
        source = Source()
        server.register(source, "Source")
        with proxy_of(server, "Source", ALICE) as proxy:
            items = getattr(proxy, method)
            items = items() if method != "endless" else items
            assert [next(items), next(items)] == ["alice", "alice"]
            server.authorization = rules(allowed.replace('"more"', '"others"'))
            assert next(items) == "alice"
            server.authorization = rules(SOURCE.format(methods='["others"]'))
            with pytest.raises(errors.NotAuthorized, match=f"may not call {method} of 'Source'"):
                next(items)
            assert source.ended.wait(WAIT_S)
            assert server.statistics()["streams"] == 0


def test_a_stream_read_ahead_and_one_of_a_stock_client_end_too(tmp_path):
    allowed = SOURCE.format(methods='"numbers*"')

    def read(token):
        return Principal(token)

    means = Authentication(keys=SECRETS, tokens=read)
    with running(tmp_path, authorization=rules(allowed), means=means) as server:
        server.register(Source(), "Source", threading=Concurrent())
        stock = Pyro5.api.Proxy(f"PYRO:Source@{server.address}")
        stock._pyroTimeout, stock._pyroHandshake = WAIT_S, "token alice"

        async def ahead():
            uri = f"PYRO:Source@{server.address}"
            async with AsyncProxy(uri, credentials=ALICE, timeout_s=WAIT_S) as proxy:
                with stock:
                    theirs, items = stock.numbers(), await proxy.numbers()
                    assert [await anext(items), next(theirs)] == ["alice", "alice"]
                    server.authorization = Authorization()

                    async def read_on():
                        while await anext(items):
                            pass

                    with pytest.raises(errors.NotAuthorized):
                        await read_on()
                    with pytest.raises(Pyro5.errors.SecurityError):
                        next(theirs)

        asyncio.run(ahead())
        until(lambda: server.statistics()["streams"] == 0)


def test_what_expires_ends_its_stream(tmp_path):
    class Clock:
        now = 1000.0
        monotonic = staticmethod(time.monotonic)

        def time(self):
            return self.now

    clock = Clock()
    keys = {"alice": AcceptedKey(SECRETS["alice"], expires_at=1010.0)}
    with running(tmp_path, means=Authentication(keys=keys), clock=clock) as server:
        server.register(Source(), "Source")
        with proxy_of(server, "Source", ALICE) as proxy:
            items = proxy.numbers()
            assert next(items) == "alice"
            clock.now = 1010.0
            with pytest.raises((errors.NotAuthorized, errors.CommunicationError)):
                next(items)


# -- the rights of the server --------------------------------------------------------------------------


@expose
class Front:
    """Does with a reference what it is asked to."""

    def __init__(self):
        self.kept = None

    def call(self, other, method):
        return getattr(other, method)()

    def read(self, other, name):
        return getattr(other, name)

    def write(self, other, name, value):
        setattr(other, name, value)

    def batched(self, other):
        with other.batch() as batch:
            batch.harmless()
            batch.secret()
        return list(batch.results())

    def promised(self, other):
        return other.future.secret().result(WAIT_S)

    def pipelined(self, other):
        return other.future.another().secret().result(WAIT_S)

    def streamed(self, other):
        return list(other.secrets())

    def told(self, other):
        other.heard_secretly("x")

    def pass_on(self, via, other, method):
        return via.call(other, method)

    def fetch(self, via, method):
        return getattr(via.get(), method)()

    def keep(self, other):
        self.kept = other

    def get(self):
        return self.kept

    def use(self, method):
        return getattr(self.kept, method)()

    async def later(self, other):
        return await asyncio.to_thread(other.secret)

    def kind(self, other):
        return type(other).__name__


@expose
class Vault:
    def __init__(self):
        self.value = 1
        self.heard = []

    def secret(self):
        return current.caller.name

    def harmless(self):
        return current.caller.name

    def secrets(self):
        yield from "abc"

    @oneway
    def heard_secretly(self, text):
        self.heard.append(text)

    def another(self):
        return Inner()

    @property
    def open_value(self):
        return self.value

    @property
    def hidden_value(self):
        return self.value

    @hidden_value.setter
    def hidden_value(self, value):
        self.value = value


@expose
class Inner:
    def secret(self):
        return "inner"


DEPUTY = """
[[rule]]
effect = "allow"
principals = "server"
objects = "*"

[[rule]]
effect = "allow"
principals = ["alice", "bob"]
objects = "Front*"

[[rule]]
effect = "allow"
principals = "alice"
objects = "Vault"
methods = ["harmless", "open_value", "another"]

[[rule]]
effect = "allow"
principals = "bob"
objects = "*"
"""


@pytest.fixture
def deputy(tmp_path):
    with running(tmp_path, authorization=rules(DEPUTY)) as server:
        server.register(Vault(), "Vault", threading=Concurrent())
        server.register(Front(), "Front", threading=Concurrent())
        server.register(Front(), "FrontToo", threading=Concurrent())
        server.register(Front, "FrontKept", activation=Persistent())
        yield server


def vault(server):
    return Proxy(f"PYRO:Vault@{server.address}")


def test_a_servant_calls_by_a_reference_what_its_client_may_call_and_as_the_server(deputy):
    with proxy_of(deputy, "Front", ALICE) as front:
        assert front.call(vault(deputy), "harmless") == "server"
        assert front.read(vault(deputy), "open_value") == 1
    with proxy_of(deputy, "Front", BOB) as front:
        assert front.call(vault(deputy), "secret") == "server"
        assert front.streamed(vault(deputy)) == ["a", "b", "c"]
        assert front.promised(vault(deputy)) == "server"
        assert front.pipelined(vault(deputy)) == "inner"
        assert front.batched(vault(deputy)) == ["server", "server"]
        assert front.later(vault(deputy)) == "server"


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("call", ("secret",)),
        ("read", ("hidden_value",)),
        ("write", ("hidden_value", 5)),
        ("batched", ()),
        ("promised", ()),
        ("pipelined", ()),
        ("streamed", ()),
        ("told", ()),
        ("later", ()),
    ],
)
def test_a_servant_calls_by_a_reference_nothing_that_its_client_may_not(deputy, method, args):
    with proxy_of(deputy, "Front", ALICE) as front:
        for _ in range(2):
            with pytest.raises(errors.NotAuthorized, match="'alice' may"):
                getattr(front, method)(vault(deputy), *args)
        assert front.read(vault(deputy), "open_value") == 1


def test_a_reference_to_what_its_client_may_not_know_tells_nothing(deputy):
    deputy.register(Vault(), "Hidden")
    with proxy_of(deputy, "Front", ALICE) as front:
        for object_id in ("Hidden", "Missing", "Vault/x"):
            with pytest.raises(errors.NotAuthorized, match="or there is no such object"):
                front.call(Proxy(f"PYRO:{object_id}@{deputy.address}"), "secret")


def test_a_reference_that_is_passed_on_within_the_server_stays_its_clients(deputy):
    too = Proxy(f"PYRO:FrontToo@{deputy.address}")
    with proxy_of(deputy, "Front", ALICE) as front:
        assert front.pass_on(too, vault(deputy), "harmless") == "server"
        with pytest.raises(errors.NotAuthorized, match="'alice' may not call secret"):
            front.pass_on(too, vault(deputy), "secret")
    with proxy_of(deputy, "Front", BOB) as front:
        assert front.pass_on(too, vault(deputy), "secret") == "server"


def test_a_reference_that_is_fetched_from_where_another_left_it_stays_his(deputy):
    too = Proxy(f"PYRO:FrontToo@{deputy.address}")
    with proxy_of(deputy, "FrontToo", ALICE) as keeper, proxy_of(deputy, "Front", BOB) as front:
        keeper.keep(vault(deputy))
        assert front.fetch(too, "harmless") == "server"
        with pytest.raises(errors.NotAuthorized, match="'alice' may not call secret"):
            front.fetch(too, "secret")


@pytest.mark.parametrize("restarts", [False, True])
def test_a_reference_in_the_state_stays_its_clients(deputy, tmp_path, restarts):
    uri = "FrontKept/a"
    with proxy_of(deputy, uri, ALICE) as front:
        front.keep(vault(deputy))
    if restarts:
        (activation,) = (a for a in deputy.adapter._active.all() if a.object_id == uri)
        deputy.adapter.end(activation)
        until(lambda: not deputy.adapter.is_active(uri))
    with proxy_of(deputy, uri, BOB) as front:
        assert front.use("harmless") == "server"
        with pytest.raises(errors.NotAuthorized, match="'alice' may not call secret"):
            front.use("secret")


def test_a_reference_of_which_nobody_knows_whose_it_is_gets_no_rights(deputy):
    @expose
    class Naive:
        def call(self, via, text):
            return via.call(Proxy(text), "secret")

    deputy.register(Naive(), "FrontNaive", threading=Concurrent())
    with proxy_of(deputy, "FrontNaive", BOB) as front:
        with pytest.raises(errors.AuthenticationFailed, match="wants to know who calls"):
            front.call(Proxy(f"PYRO:Front@{deputy.address}"), str(vault(deputy)))


def test_a_stock_clients_reference_has_its_rights_too(tmp_path):
    means = Authentication(keys=SECRETS, tokens=lambda token: Principal(token))
    with running(tmp_path, authorization=rules(DEPUTY), means=means) as server:
        server.register(Vault(), "Vault", threading=Concurrent())
        server.register(Front(), "Front", threading=Concurrent())
        for serializer in ("serpent", "json", "msgpack"):
            with Pyro5.api.Proxy(f"PYRO:Front@{server.address}") as front:
                front._pyroTimeout, front._pyroHandshake = WAIT_S, "token alice"
                front._pyroSerializer = serializer
                theirs = Pyro5.api.Proxy(f"PYRO:Vault@{server.address}")
                assert front.call(theirs, "harmless") == "server"
                with pytest.raises(Pyro5.errors.SecurityError, match="'alice' may not call secret"):
                    front.call(theirs, "secret")


def test_forged_marks_add_nothing(deputy):
    powerful = Principal("bob").to_data()
    for marks in ([powerful], [], [powerful] * 5):
        with Raw(deputy, ALICE, "Front") as alice:
            content = Ext(LENT, packb([f"PYRO:Vault@{deputy.address}", marks]))
            payload = packb(["Front", "call", [content, "secret"], {}])
            alice.sock.sendall(encode_frame(FrameType.INVOKE, codec.serializer_id, 0, 9, payload))
            refusal = codec.decode(alice.hear().payload)
            assert isinstance(refusal, errors.NotAuthorized)
            assert "'alice' may not call secret" in str(refusal)


@pytest.mark.parametrize(
    "marks",
    [5, [5], [[]], [["x"] * 7], "ab", [[f"n{n}", [], "", None, [], [], ""] for n in range(9)]],
    ids=["number", "numbers", "empty", "texts", "text", "too many"],
)
def test_malformed_marks_are_refused_in_words(deputy, marks):
    with Raw(deputy, ALICE, "Front") as alice:
        content = Ext(LENT, packb([f"PYRO:Vault@{deputy.address}", marks]))
        payload = packb(["Front", "kind", [content], {}])
        alice.sock.sendall(encode_frame(FrameType.INVOKE, codec.serializer_id, 0, 9, payload))
        assert isinstance(codec.decode(alice.hear().payload), errors.SerializeError)
        assert alice.call("ping", object_id="Pyro.Daemon") is None


def test_who_gave_a_reference_is_told_to_no_client(deputy):
    with proxy_of(deputy, "Front", ALICE) as front:
        front.keep(vault(deputy))
    with Raw(deputy, BOB, "Front") as bob:
        bob.say(FrameType.INVOKE, ["Front", "get", [], {}])
        assert b"alice" not in bytes(bob.hear().payload)


def test_what_was_given_away_is_handed_out_to_who_may_call_it(tmp_path):
    text = DEPUTY.replace('objects = "Front*"', 'objects = ["Front*", "Vault"]')
    with running(tmp_path, authorization=rules(text)) as server:
        server.register(Vault(), "Vault", threading=Concurrent())
        server.register(Front(), "Front", threading=Concurrent())
        with proxy_of(server, "Vault", ALICE) as mine, proxy_of(server, "Front", ALICE) as front:
            inner = mine.another()
            assert front.kind(inner) == "Proxy"
            with pytest.raises(errors.NotAuthorized):
                front.call(inner, "secret")
            with proxy_of(server, "Front", BOB) as bobs:
                assert bobs.kind(inner) == "Inner"
            gc.collect()


def test_a_name_that_a_server_returned_is_followed_without_credentials(tmp_path):
    @expose
    class Lure:
        def lure(self, uri):
            return Proxy(uri)

    with running(tmp_path) as server:
        server.register(Lure(), "Lure")
        with proxy_of(server, "Lure", ALICE) as lure:
            for uri, shown in (("PYRO:Lure", ALICE), ("PYRONAME:Lure", None), ("PYROMETA:Lure", None)):
                found = lure.lure(f"{uri}@{server.address}")
                assert found._objserver_stub.pool.credentials == shown


def test_a_name_is_followed_without_the_servers_credentials(tmp_path):
    """A name server may be here, and answer with an address anywhere."""

    @expose
    class Looker:
        def shows(self, other):
            return other._objserver_stub.pool.credentials is not None

    with running(tmp_path) as server:
        server.register(Looker(), "Looker")
        with proxy_of(server, "Looker", ALICE) as looker:
            assert looker.shows(Proxy(f"PYRO:Looker@{server.address}"))
            for uri in ("PYRONAME:Looker", "PYROMETA:Looker"):
                assert not looker.shows(Proxy(f"{uri}@{server.address}"))


# -- current.caller ------------------------------------------------------------------------------------


@expose
class Witness:
    seen = []

    def note(self, where):
        self.seen.append((where, current.caller and current.caller.name))
        return self.seen[-1][1]

    @oneway
    def noted(self, where):
        self.note(where)

    async def note_later(self, where):
        await asyncio.sleep(0)
        return self.note(where)

    @property
    def who(self):
        return self.note("attribute")

    def items(self):
        yield self.note("item")

    async def items_later(self):
        yield self.note("item later")

    def nested(self, other):
        before = self.note("before")
        return before, other.note("nested"), self.note("after")

    def elsewhere(self, uri, headers):
        return Proxy(uri).note("elsewhere")

    def call_back(self, listener):
        return listener.answer()


def test_the_caller_is_who_calls_however_it_is_called(tmp_path):
    Witness.seen.clear()
    with running(tmp_path) as server:
        server.register(Witness(), "Witness", threading=Concurrent())
        server.register(Witness(), "Mine", activation=Shared(), threading=Concurrent())
        for name, key in (("alice", ALICE), ("bob", BOB)):
            with proxy_of(server, "Witness", key) as witness:
                assert witness.note("plain") == name
                assert witness.note_later("async") == name
                assert witness.who == name
                with witness.batch() as batch:
                    batch.note("batch")
                    batch.note_later("batch, async")
                assert list(batch.results()) == [name, name]
                assert witness.future.note("promise").result(WAIT_S) == name
                assert [*witness.items(), *witness.items_later()] == [name, name]
                assert witness.nested(Proxy(f"PYRO:Mine@{server.address}")) == (name, "server", name)
                witness.noted("oneway")
                listener = Listener()
                assert witness.call_back(listener) == 7
                assert listener.callers == [None]
            until(partial(Witness.seen.__contains__, ("oneway", name)))
        assert {who for _, who in Witness.seen} == {"alice", "bob", "server"}


def test_two_callers_at_once_are_not_taken_for_each_other(tmp_path):
    with running(tmp_path) as server:
        server.register(Witness(), "Witness", threading=Concurrent())

        async def calls(key, name):
            uri = f"PYRO:Witness@{server.address}"
            async with AsyncProxy(uri, credentials=key, timeout_s=WAIT_S) as witness:
                for _ in range(20):
                    answers = await asyncio.gather(*(witness.note_later("x") for _ in range(10)))
                    assert answers == [name] * 10

        async def both():
            await asyncio.gather(calls(ALICE, "alice"), calls(BOB, "bob"))

        asyncio.run(both())


def test_messages_of_objects_come_from_the_server(tmp_path):
    with running(tmp_path) as server:
        with proxy_of(server, "Account/a", ALICE) as a, proxy_of(server, "Account/b", ALICE) as b:
            a.tell(b, "x")
            until(lambda: b.read() == 1000)
            assert a.read() == 1


def test_nothing_of_the_caller_reaches_another_server(tmp_path):
    """A relay in between sees every byte."""
    with ObjectServer() as elsewhere, running(tmp_path) as server, Relay(elsewhere) as relay:
        elsewhere.register(Witness(), "Witness")
        server.register(Witness(), "Witness", threading=Concurrent())
        who = SharedKey("lab", SECRETS["lab"], "ann of the lab")
        with proxy_of(server, "Witness", who) as witness:
            assert witness.note("here") == "lab/ann of the lab"
            assert witness.elsewhere(f"PYRO:Witness@{relay.address}", None) is None
        assert b"elsewhere" in relay.seen
        assert b"ann of the lab" not in relay.seen
        assert b"lab" not in relay.seen.replace(b"elsewhere", b"")


class Relay:
    """Passes on what one client says, and remembers it."""

    def __init__(self, server):
        host, _, port = server.address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("localhost", 0))
        self.address = f"localhost:{self._listener.getsockname()[1]}"
        self.seen = b""

    def __enter__(self):
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _run(self):
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        threading.Thread(target=self._back, args=(server, client), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self.seen += data
                server.sendall(data)
        server.close()

    @staticmethod
    def _back(server, client):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
