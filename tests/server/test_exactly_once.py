"""Calls of Persistent objects through real servers and real clients: each happens once, whatever breaks."""

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from objserver import (
    AsyncProxy,
    ObjectServer,
    Persistent,
    Proxy,
    Reentrant,
    ServerSettings,
    Shared,
    errors,
    expose,
    idempotent,
    oneway,
    readonly,
)
from objserver.adapter.durability import Durability
from objserver.client import books
from objserver.client.attempts import Attempts
from objserver.machine import machine
from objserver.settings import Limits
from objserver.storage.sqlite import SqliteStore
from objserver.wire import CallContext, Flag, FrameParser, FrameType, encode_frame

BOUND_S = 20


def until(condition):
    pause = threading.Event()
    for _ in range(BOUND_S * 200):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never became true")


@expose
class Account:
    executed = 0

    def __init__(self):
        self.balance = 0
        self.notes = []

    def deposit(self, amount: int) -> int:
        type(self).executed += 1
        self.balance += amount
        return self.balance

    def overdraw(self):
        type(self).executed += 1
        self.balance -= 1
        raise ValueError(f"{self.balance} are left")

    @readonly
    def read(self) -> int:
        return self.balance

    @readonly
    def read_notes(self) -> list:
        return self.notes

    @idempotent
    def close_at(self, balance: int) -> None:
        self.balance = balance

    @oneway
    def note(self, text: str) -> None:
        self.notes.append(text)

    def pay(self, other: str, amount: int) -> int:
        self.balance -= amount
        return Proxy(other).deposit(amount)

    def tell(self, other: str, *texts: str) -> None:
        self.balance += 1
        proxy = Proxy(other)
        for text in texts:
            proxy.note(text)

    def items(self):
        self.balance += 1
        yield from range(3)


@pytest.fixture(autouse=True)
def fresh():
    Account.executed = 0
    machine.get().own(books._Books)._books.clear()


@contextlib.contextmanager
def serving(store, address="localhost:0", **options):
    server = ObjectServer(address, store=store, **options)
    server.register(Account, "Account", activation=Persistent())
    with server:
        yield server


@pytest.fixture
def server(tmp_path):
    with serving(f"sqlite:///{tmp_path}/x.db") as server:
        yield server


class Raw:
    """A client that chooses its frames."""

    def __init__(self, server, object_id="Account/a"):
        self.server, self.object_id = server, object_id
        host, _, port = server.address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), BOUND_S)
        self.parser, self.frames, self.sequence = FrameParser(Limits()), [], 0
        self.codec = server.codecs.native
        greeting = {"handshake": "hello", "object": object_id, "objserver": {"version": 1}}
        self.say(FrameType.CONNECT, greeting)
        self.greeting = self.hear()

    def say(self, kind, value, annotations=None):
        self.sequence += 1
        data = self.codec.encode(value)
        self.sock.sendall(encode_frame(kind, self.codec.serializer_id, 0, self.sequence, data, annotations))

    def hear(self):
        while not self.frames:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.frames += self.parser.receive_data(data)
        frame = self.frames.pop(0)
        self.flags = frame.flags
        return self.codec.decode(frame.payload)

    def ask(self, method, *args, call=None, acked=0, asks=False):
        annotations = None
        if call is not None:
            annotations = {"OBJS": CallContext(None, (), call, acked, asks).encode()}
        payload = self.codec.encode_call(self.object_id, method, args, {})
        self.sequence += 1
        frame = encode_frame(
            FrameType.INVOKE, self.codec.serializer_id, 0, self.sequence, payload, annotations
        )
        self.sock.sendall(frame)

    def call(self, method, *args, **options):
        self.ask(method, *args, **options)
        return self.hear()

    def open_session(self, client):
        payload = self.codec.encode_call("Pyro.Daemon", "open_session", (client,), {})
        self.sequence += 1
        self.sock.sendall(encode_frame(FrameType.INVOKE, self.codec.serializer_id, 0, self.sequence, payload))
        return self.hear()


CLIENT = b"c" * 16


def numbered(number, path=b"", client=CLIENT):
    from objserver.invocation import CallId

    return CallId(client, number, path)


@pytest.fixture
def raw(server):
    raw = Raw(server)
    assert raw.open_session(CLIENT) is None
    yield raw
    raw.sock.close()


# -- what the server remembers -------------------------------------------------------------------------


def test_a_repeated_call_gets_the_reply_of_the_first(raw):
    assert raw.call("deposit", 5, call=numbered(1)) == 5
    assert raw.call("deposit", 5, call=numbered(1)) == 5
    assert raw.call("deposit", 5, call=numbered(2)) == 10
    assert raw.call("deposit", 5, call=numbered(1)) == 5
    assert Account.executed == 2


def test_an_exception_is_repeated_too(raw):
    for _ in range(3):
        answer = raw.call("overdraw", call=numbered(1))
        assert isinstance(answer, ValueError)
        assert str(answer) == "-1 are left"
        assert raw.flags & Flag.EXCEPTION
        assert not raw.flags & Flag.REFUSED
    assert Account.executed == 1


def test_a_repetition_survives_passivation_and_restart(tmp_path):
    store = f"sqlite:///{tmp_path}/x.db"
    for _ in range(3):
        with serving(store) as server:
            raw = Raw(server)
            raw.open_session(CLIENT)
            assert raw.call("deposit", 5, call=numbered(1)) == 5
    assert Account.executed == 1


def test_other_content_under_the_same_number_is_refused(raw):
    assert raw.call("deposit", 5, call=numbered(1)) == 5
    for method, *args in (("deposit", 6), ("overdraw",)):
        answer = raw.call(method, *args, call=numbered(1))
        assert isinstance(answer, errors.ProtocolError)
        assert "other content" in str(answer)
    assert raw.call("read") == 5


def test_what_was_acknowledged_is_forgotten_and_late_requests_of_it_are_refused(raw):
    for number in (1, 2, 3):
        raw.call("deposit", 1, call=numbered(number), acked=number - 1)
    store = raw.server._store
    assert [reply.number for reply in store.replies("Account", "a")] == [3]
    answer = raw.call("deposit", 1, call=numbered(1))
    assert isinstance(answer, errors.SessionExpired)
    assert raw.flags & Flag.REFUSED
    assert raw.call("read") == 3


def test_late_requests_are_refused_after_a_restart_too(tmp_path):
    store = f"sqlite:///{tmp_path}/x.db"
    with serving(store) as server:
        raw = Raw(server)
        raw.open_session(CLIENT)
        for number in (1, 2):
            raw.call("deposit", 1, call=numbered(number), acked=number - 1)
    with serving(store) as server:
        assert isinstance(Raw(server).call("deposit", 1, call=numbered(1)), errors.SessionExpired)
    assert Account.executed == 2


def test_without_a_session_nothing_is_executed(server):
    raw = Raw(server)
    answer = raw.call("deposit", 5, call=numbered(1))
    assert isinstance(answer, errors.SessionExpired)
    assert raw.flags & Flag.REFUSED
    assert Account.executed == 0


def test_a_session_that_ended_takes_its_records_along_and_its_calls_are_refused():
    now = 1000.0
    store = SqliteStore("sqlite://", clock=lambda: now)
    with serving(store, settings=ServerSettings(session_lease_s=10)) as server:
        raw = Raw(server)
        raw.open_session(CLIENT)
        assert raw.call("deposit", 5, call=numbered(1)) == 5
        now += 11
        server.adapter._durability.expire_sessions(server.adapter._active.all(), server.clock.monotonic())
        assert isinstance(raw.call("deposit", 5, call=numbered(1)), errors.SessionExpired)
        assert store.replies("Account", "a") == []
        assert raw.call("read") == 5


def test_two_copies_of_a_call_that_is_under_way_are_one():
    class Slow(SqliteStore):
        gate = threading.Event()

        def commit(self, changes):
            assert self.gate.wait(BOUND_S)
            return super().commit(changes)

    store = Slow("sqlite://")
    with serving(store) as server:
        one, other = Raw(server), Raw(server)
        one.open_session(CLIENT)
        one.ask("deposit", 5, call=numbered(1))
        until(lambda: Account.executed)
        other.ask("deposit", 5, call=numbered(1))
        until(lambda: server.statistics()["calls_repeated"])
        Slow.gate.set()
        assert one.hear() == other.hear() == 5
    assert Account.executed == 1


def test_a_stream_is_not_repeated(raw):
    raw.ask("items", call=numbered(1))
    raw.hear()
    assert raw.flags & Flag.ITEM_STREAM
    answer = raw.call("items", call=numbered(1))
    assert isinstance(answer, errors.OutcomeUnknown)
    assert "not kept" in str(answer)


def test_who_asks_for_the_outcome_settles_it(raw):
    assert raw.call("deposit", 5, call=numbered(1)) == 5
    assert raw.call("<outcome>", call=numbered(1), asks=True) == 5
    assert isinstance(raw.call("<outcome>", call=numbered(2), asks=True), errors.NotExecuted)
    # ... so the call itself, which was late, is not executed any more
    assert isinstance(raw.call("deposit", 5, call=numbered(2)), errors.NotExecuted)
    assert raw.call("read") == 5


def test_what_was_not_stored_says_nothing_of_an_attempt_before():
    """That one may have been in doubt, and be stored yet: found by the simulator, seed 300011."""

    class Full(SqliteStore):
        def commit(self, changes):
            raise errors.StoreError("the disk is full")

    with serving(Full("sqlite://")) as server:
        raw = Raw(server)
        raw.open_session(CLIENT)
        assert isinstance(raw.call("deposit", 5, call=numbered(1)), errors.StoreError)
        assert raw.flags & Flag.REFUSED
    attempts = Attempts("Account/a.deposit", BOUND_S, 0.0, lambda least, most: most)
    attempts.numbered(numbered(1), None)
    attempts.answered = attempts.refused = True
    with pytest.raises(errors.StoreError):
        attempts.pause(errors.StoreError("the disk is full"), 1.0)
    attempts.answered = False
    attempts.pause(errors.ConnectionLost("the server was killed"), 1.0)
    attempts.answered = True
    assert attempts.pause(errors.StoreError("the disk is full"), 2.0) > 0


@pytest.mark.parametrize("size", [15, 17, 0])
def test_a_client_has_16_bytes(server, size):
    assert isinstance(Raw(server).open_session(b"c" * size), ValueError)


def test_there_are_only_so_many_sessions(tmp_path):
    settings = ServerSettings(sessions_max=2)
    with serving(f"sqlite:///{tmp_path}/x.db", settings=settings) as server:
        raw = Raw(server)
        assert [raw.open_session(bytes([n]) * 16) for n in range(2)] == [None, None]
        assert isinstance(raw.open_session(b"z" * 16), errors.ServerBusy)


# -- what the proxy does about it ----------------------------------------------------------------------


class Middle:
    """Passes bytes on between proxies and a server, and breaks connections when told to."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("localhost", 0))
        self.address = f"localhost:{self._listener.getsockname()[1]}"
        self.swallow = 0
        """So many replies are not passed on: the connection breaks instead."""
        self.swallowed = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source, sink, replies):
        with contextlib.suppress(OSError):
            greeted = not replies
            while data := source.recv(65536):
                if greeted and replies and self.swallow:
                    self.swallow -= 1
                    self.swallowed.release()
                    break
                greeted = True
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self):
        self._listener.close()


@pytest.fixture
def middle(server):
    middle = Middle(server.address)
    yield middle
    middle.close()


def test_a_lost_reply_is_asked_for_again(middle):
    proxy = Proxy(f"PYRO:Account/a@{middle.address}", timeout_s=BOUND_S)
    assert proxy.deposit(1) == 1
    middle.swallow = 3
    assert proxy.deposit(1) == 2
    assert Account.executed == 2
    middle.swallow = 2
    with pytest.raises(ValueError, match="1 are left"):
        proxy.overdraw()
    assert Account.executed == 3


def test_also_from_asyncio(middle):
    async def main():
        async with AsyncProxy(f"PYRO:Account/a@{middle.address}", timeout_s=BOUND_S) as proxy:
            assert await proxy.deposit(1) == 1
            middle.swallow = 3
            assert await proxy.deposit(1) == 2
            middle.swallow = 1
            assert sorted(await asyncio.gather(*(proxy.deposit(1) for _ in range(50)))) == [*range(3, 53)]
            assert await proxy.read() == 52

    asyncio.run(main())
    assert Account.executed == 52


def test_what_may_be_repeated_is_and_what_has_no_number_is_not(middle):
    proxy = Proxy(f"PYRO:Account/a@{middle.address}", timeout_s=BOUND_S)
    assert proxy.read() == 0
    middle.swallow = 1
    assert proxy.read() == 0
    middle.swallow = 1
    proxy.close_at(7)
    assert proxy.read() == 7
    stock = Proxy(f"PYRO:Account/a@{middle.address}", timeout_s=BOUND_S, serializer="serpent")
    assert stock.deposit(1) == 8
    middle.swallow = 1
    with pytest.raises(errors.OutcomeUnknown) as caught:
        stock.deposit(1)
    assert caught.value.call is None


def test_a_call_whose_time_is_up_can_be_asked_for(tmp_path):
    class Slow(SqliteStore):
        gate = threading.Event()

        def commit(self, changes):
            assert self.gate.wait(BOUND_S)
            return super().commit(changes)

    with serving(Slow("sqlite://")) as server:
        proxy = Proxy(f"PYRO:Account/a@{server.address}")
        with pytest.raises(errors.CallTimeout) as caught:
            proxy.calling(timeout_s=0.2).deposit(5)
        Slow.gate.set()
        assert proxy.outcome(caught.value.call) == 5
        assert asyncio.run(_outcome(server, caught.value.call)) == 5
        never = numbered(77, client=caught.value.call.client)
        with pytest.raises(errors.NotExecuted, match="not happened"):
            proxy.outcome(never)


def test_an_unknown_outcome_can_be_asked_for_after_other_calls(middle):
    proxy = Proxy(f"PYRO:Account/a@{middle.address}", timeout_s=BOUND_S)
    assert proxy.deposit(1) == 1
    middle.swallow = 10**6
    with pytest.raises(errors.OutcomeUnknown) as caught:
        proxy.calling(timeout_s=0.2).deposit(5)
    middle.swallow = 0
    assert [proxy.deposit(1) for _ in range(3)] == [7, 8, 9]
    assert proxy.outcome(caught.value.call) == 6


def test_what_is_forgotten_is_not_called_not_executed(server):
    proxy = Proxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S)
    assert proxy.deposit(1) == 1
    (book,) = machine.get().own(books._Books)._books.values()
    server._store._clock = lambda: 1e12
    server.adapter._durability.expire_sessions(server.adapter._active.all(), server.clock.monotonic())
    for _ in range(2):
        with pytest.raises(errors.SessionExpired, match="forgotten"):
            proxy.outcome(numbered(1, client=book.client))


def test_what_has_no_number_cannot_be_asked_for(server):
    account = Proxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S)
    with pytest.raises(errors.ArgumentError, match="names no call"):
        account.outcome(None)
    shared = Proxy(server.register(Account(), "shared"), timeout_s=BOUND_S)
    with pytest.raises(errors.ArgumentError, match="is not Persistent"):
        shared.outcome(numbered(1))


async def _outcome(server, call):
    async with AsyncProxy(f"PYRO:Account/a@{server.address}") as proxy:
        return await proxy.outcome(call)


def test_a_forgotten_client_begins_a_new_book(server, monkeypatch):
    proxy = Proxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S)
    assert proxy.deposit(1) == 1
    (before,) = machine.get().own(books._Books)._books.values()
    store = server._store
    store._clock = lambda: 1e12
    server.adapter._durability.expire_sessions(server.adapter._active.all(), server.clock.monotonic())
    assert proxy.deposit(1) == 2
    (after,) = machine.get().own(books._Books)._books.values()
    assert before is not after
    assert Account.executed == 2


def test_but_a_call_in_doubt_is_not_made_under_a_new_number(server, middle):
    proxy = Proxy(f"PYRO:Account/a@{middle.address}", timeout_s=BOUND_S)
    assert proxy.deposit(1) == 1
    expire = server.adapter._durability.expire_sessions

    def forget():
        assert middle.swallowed.acquire(timeout=BOUND_S)
        server._store._clock = lambda: 1e12
        expire(server.adapter._active.all(), server.clock.monotonic())
        server._store._clock = lambda: 0.0
        middle.swallow = 0

    middle.swallow = 10**6
    thread = threading.Thread(target=forget)
    thread.start()
    with pytest.raises(errors.OutcomeUnknown, match="forgotten") as caught:
        proxy.deposit(1)
    thread.join()
    assert caught.value.call is not None
    assert Account.executed == 2


@pytest.mark.parametrize("refused", [True, False])
def test_a_read_in_doubt_is_made_again_also_while_the_store_is_away(refused):
    attempts = Attempts("Account/a.read", BOUND_S, 0.0, lambda least, most: most)
    attempts.repeatable = True
    attempts.pause(errors.ConnectionLost("the server was killed"), 1.0)
    attempts.answered, attempts.refused = True, refused
    assert attempts.pause(errors.StoreError("it is in recovery mode"), 2.0) > 0
    with pytest.raises(errors.OutcomeUnknown):
        attempts.pause(errors.StoreError("it is in recovery mode"), BOUND_S)


@pytest.mark.parametrize("asks", [False, True])
def test_a_task_waits_for_its_server_also_with_a_question(tmp_path, monkeypatch, asks):
    """The connection is gone before the call begins, and the server comes back when the client pauses."""
    url, pause, servers = f"sqlite:///{tmp_path}/x.db", Attempts.pause, contextlib.ExitStack()

    def pauses(self, problem, now):
        monkeypatch.undo()
        servers.enter_context(serving(url, server.address))
        return pause(self, problem, now)

    async def main():
        async with AsyncProxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S) as proxy:
            assert await proxy.deposit(1) == 1
            (book,) = machine.get().own(books._Books)._books.values()
            await asyncio.to_thread(server.stop)
            while proxy._objserver_stub.pool.live is not None:
                await asyncio.sleep(0)
            monkeypatch.setattr(Attempts, "pause", pauses)
            if asks:
                with pytest.raises(errors.NotExecuted):
                    await proxy.outcome(numbered(9, client=book.client))
            assert await proxy.deposit(1) == 2

    with servers:
        server = servers.enter_context(serving(url))
        asyncio.run(main())


# -- calls within calls --------------------------------------------------------------------------------


def test_a_servant_that_is_run_again_does_not_repeat_its_calls(tmp_path):
    """The first attempt of `pay` is undone after its nested call, by another server that took the object."""
    store = SqliteStore("sqlite://", alone=False)
    with serving(store) as server:
        a, b = (f"PYRO:Account/{key}@{server.address}" for key in "ab")
        payer = Proxy(a, timeout_s=BOUND_S)
        assert payer.deposit(10) == 10
        store.acquire([("Account", "a")], "somebody else")
        assert payer.pay(b, 3) == 3
        assert Proxy(b).read() == 3
        assert payer.read() == 7
        assert server.statistics()["calls_unsettled"] >= 1
    assert Account.executed == 2


def test_a_call_within_a_call_survives_a_broken_connection_to_a_store_that_does_not_know_the_client(server):
    with serving("sqlite://") as other:
        middle = Middle(other.address)
        payer = Proxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S)
        assert payer.deposit(10) == 10
        middle.swallow = 1
        assert payer.pay(f"PYRO:Account/b@{middle.address}", 3) == 3
        assert middle.swallow == 0
        assert Proxy(f"PYRO:Account/b@{other.address}").read() == 3
        middle.close()


def test_messages_leave_with_the_change_that_sent_them(server):
    a, b = (f"PYRO:Account/{key}@{server.address}" for key in "ab")
    Proxy(a, timeout_s=BOUND_S).tell(b, "one", "two", "three")
    reader = Proxy(b)
    until(lambda: reader.read_notes() == ["one", "two", "three"])
    until(lambda: not server.statistics()["messages_waiting"])
    assert server._store.messages(10) == []


def test_messages_of_a_call_that_was_undone_are_not_sent():
    store = SqliteStore("sqlite://", alone=False)
    with serving(store) as server:
        a, b = (f"PYRO:Account/{key}@{server.address}" for key in "ab")
        teller, reader = Proxy(a, timeout_s=BOUND_S), Proxy(b)
        assert teller.deposit(1) == 1
        store.acquire([("Account", "a")], "somebody else")
        teller.tell(b, "once")
        until(lambda: server.statistics()["messages_delivered"])
        assert reader.read_notes() == ["once"]


def test_messages_that_were_not_delivered_are_by_the_next_server(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    with serving("sqlite://") as other, serving(url) as server:
        address = other.address
        away = f"PYRO:Account/b@{address}"
        server.adapter._durability.outbox.stop()
        Proxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S).tell(away, "late")
        with pytest.raises(AssertionError):
            assert Proxy(away).read_notes() == ["late"]
        server.stop()
        with serving(url):
            until(lambda: Proxy(away).read_notes() == ["late"])


def test_a_reentrant_object_keeps_what_inner_calls_did_with_the_outer():
    @expose
    class Loop:
        def __init__(self):
            self.steps = []

        def outer(self, me: str) -> list:
            self.steps.append("outer")
            inner = Proxy(me).inner()
            return [*self.steps, inner]

        def inner(self) -> str:
            self.steps.append("inner")
            return "done"

    store = SqliteStore("sqlite://", alone=False)
    with ObjectServer(store=store) as server:
        server.register(Loop, "Loop", activation=Persistent(), threading=Reentrant())
        uri = f"PYRO:Loop/a@{server.address}"
        proxy = Proxy(uri, timeout_s=BOUND_S)
        assert proxy.outer(uri) == ["outer", "inner", "done"]
        assert len(store.replies("Loop", "a")) == 2
        store.acquire([("Loop", "a")], "somebody else")
        assert proxy.outer(uri) == ["outer", "inner", "outer", "inner", "done"]


def test_a_call_within_a_call_is_not_repeated_at_an_object_that_remembers_nothing(server, middle):
    class Till(Account):
        """Shared, so its calls happen at most once, whoever makes them."""

    @expose
    class Customer:
        def pay(self, till: str) -> int:
            return Proxy(till, timeout_s=BOUND_S).deposit(1)

    server.register(Till(), "till")
    server.register(Customer, "Customer", activation=Persistent())
    till = f"PYRO:till@{middle.address}"
    customer = Proxy(f"PYRO:Customer/c@{server.address}", timeout_s=BOUND_S)
    assert customer.pay(till) == 1
    middle.swallow = 1
    with pytest.raises(errors.OutcomeUnknown) as caught:
        customer.pay(till)
    assert caught.value.call is None
    assert Till.executed == 2


def test_an_id_passes_through_objects_that_remember_nothing():
    @expose
    class Till:
        def pay_in(self, account: str, amount: int) -> int:
            return Proxy(account).deposit(amount)

    @expose
    class Customer:
        def __init__(self):
            self.money = 10

        def shop(self, till: str, account: str) -> int:
            self.money -= 1
            return Proxy(till).pay_in(account, 1)

    store = SqliteStore("sqlite://", alone=False)
    with serving(store) as server:
        server.register(Till, "Till", activation=Shared())
        server.register(Customer, "Customer", activation=Persistent())
        till, account = (f"PYRO:{name}@{server.address}" for name in ("Till", "Account/a"))
        customer = Proxy(f"PYRO:Customer/c@{server.address}", timeout_s=BOUND_S)
        assert customer.shop(till, account) == 1
        store.acquire([("Customer", "c")], "somebody else")
        assert customer.shop(till, account) == 2
        assert Proxy(account).read() == 2
    assert Account.executed == 2


def test_a_repetition_is_known_when_the_object_is_persistent_no_more(server, raw):
    assert raw.call("deposit", 5, call=numbered(1)) == 5
    server.register(Account, "Other", activation=Persistent())
    other = Raw(server, "Other")
    assert other.call("deposit", 5, call=numbered(1)) == 5
    server.change_policy("Other", activation=Shared())
    assert other.call("deposit", 5, call=numbered(1)) == 5
    assert other.call("deposit", 5, call=numbered(2)) == 10
    assert Account.executed == 3


def test_a_server_that_stops_does_not_take_back_what_its_committer_is_about_to_tell(monkeypatch):
    about_to, go = threading.Event(), threading.Event()
    let_out = Durability._let_out

    def slowly(self, activation, released):
        if released and released[0].invocation.method == "deposit":
            about_to.set()
            assert go.wait(BOUND_S)
        let_out(self, activation, released)

    monkeypatch.setattr(Durability, "_let_out", slowly)
    with serving(SqliteStore("sqlite://")) as server, ThreadPoolExecutor() as pool:
        call = pool.submit(Proxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S).deposit, 5)
        assert about_to.wait(BOUND_S)
        stopped = pool.submit(server.stop)
        until(lambda: server._committer._closing)
        go.set()
        stopped.result(BOUND_S)
        assert call.result(BOUND_S) == 5


# -- other nodes ---------------------------------------------------------------------------------------


def test_what_a_live_node_owns_is_refused_with_where_it_is_until_that_node_is_gone():
    store = SqliteStore("sqlite://", alone=False)
    store.join("1", "other", "host:1234", 1000, b"")
    store.acquire([("Account", "a")], "other", True)
    with serving(store) as server:
        account = Proxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S)
        with pytest.raises(errors.StoreError, match="is held by a server of a cluster, at host:1234"):
            account.deposit(10)
        store.leave("other")
        assert account.deposit(10) == 10


def test_a_server_takes_up_the_messages_that_came_with_an_object():
    """It has read the store before, so that it would not look for a while."""

    class Kept(SqliteStore):
        def close(self):
            """The next server has it."""

    store = Kept("sqlite://", alone=False)
    with serving(store) as server:
        a, b = (f"PYRO:Account/{key}@{server.address}" for key in "ab")
        assert Proxy(a, timeout_s=BOUND_S).deposit(10) == 10
        server.adapter._durability.outbox.stop()
        Proxy(a, timeout_s=BOUND_S).tell(b, "one")
    store.join("1", "other", "host:1234", 1000, b"")
    assert store.acquire([("Account", "a")], "other", True)
    with serving(store) as server:
        assert Proxy(f"PYRO:Account/b@{server.address}", timeout_s=BOUND_S).read_notes() == []
        assert not server.statistics()["messages_waiting"]
        store.leave("other")
        Proxy(f"PYRO:Account/a@{server.address}", timeout_s=BOUND_S).read()
        until(lambda: server.statistics()["messages_waiting"] == 1)  # for an address where nobody is any more
