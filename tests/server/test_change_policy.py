"""Policies changed while clients call: nothing lost, refused or out of order, counted exactly."""

import asyncio
import collections
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from objserver import (
    AsyncProxy,
    Concurrent,
    ObjectServer,
    PerClient,
    PerRequest,
    Persistent,
    Proxy,
    ReadersWriter,
    Reentrant,
    Serial,
    ServerSettings,
    Shared,
    errors,
    expose,
    oneway,
)
from objserver.adapter.change import CONVERSIONS, How
from objserver.references import DAEMON_ID

ROUNDS = 4


@pytest.fixture
def server(tmp_path):
    with ObjectServer(store=f"sqlite:///{tmp_path}/store.db") as server:
        yield server


@expose
class Stateless:
    """What it does is seen outside of it."""

    ledger: list = []

    def note(self, what):
        self.ledger.append(what)
        return what

    @oneway
    def tell(self, what):
        self.ledger.append(what)

    async def wait(self, what):
        await asyncio.sleep(0)
        self.ledger.append(what)
        return what


@expose
class Register:
    def __init__(self):
        self.notes = []

    def note(self, what):
        self.notes.append(what)
        return len(self.notes)

    def all(self):
        return list(self.notes)


def one_of(servants):
    return servants[0]


@expose
class Sequel:
    """Counts every client's calls, which must come in order: 0, 1, 2 and so on."""

    def __init__(self):
        self.next, self.out_of_order = {}, []

    def note(self, what):
        client, number = what
        if number != self.next.get(client, 0):
            self.out_of_order.append((client, number))
        self.next[client] = number + 1

    def seen(self):
        return self.next, self.out_of_order


def join(servants):
    joined = Sequel()
    for servant in servants:
        assert not joined.next.keys() & servant.next.keys()
        joined.next.update(servant.next)
        joined.out_of_order += servant.out_of_order
    return joined


class Storm:
    """Clients that call until told to stop.  Each names its calls (client, number), and none may fail."""

    def __init__(self, uri, *, threads, tasks, methods, in_flight=20):
        self.uri, self.methods, self.in_flight = uri, methods, in_flight
        self.over = threading.Event()
        self.made = []
        self.pool = ThreadPoolExecutor(threads + 1)
        self.clients = [self.pool.submit(self.call, f"thread {n}") for n in range(threads)]
        self.clients.append(self.pool.submit(asyncio.run, self.call_from_tasks(tasks)))

    def call(self, client):
        with Proxy(self.uri) as proxy:
            for number, method in zip(itertools.count(), itertools.cycle(self.methods)):
                if self.over.is_set():
                    return
                self.made.append((client, number))
                getattr(proxy, method)((client, number))

    async def call_from_tasks(self, tasks):
        await asyncio.gather(*(self.call_many(f"task {n}") for n in range(tasks)))

    async def call_many(self, client):
        """Many calls in flight, in order."""
        async with AsyncProxy(self.uri) as proxy:
            numbers = itertools.count()
            while not self.over.is_set():
                names = [(client, next(numbers)) for _ in range(self.in_flight)]
                self.made += names
                await asyncio.gather(
                    *(
                        getattr(proxy, method)(name)
                        for name, method in zip(names, itertools.cycle(self.methods))
                    )
                )

    def go_on(self, calls):
        """Until so many more have been made."""
        enough, pause = len(self.made) + calls, threading.Event()
        while len(self.made) < enough:
            assert not any(client.done() for client in self.clients), "a client has given up"
            pause.wait(0.001)

    def end(self):
        """What was called; whatever a client was told raises here."""
        self.over.set()
        for client in self.clients:
            client.result(30)
        self.pool.shutdown()
        return self.made


WALK = "PerRequest PerClient PerRequest Shared PerRequest Persistent PerRequest PerClient Shared Persistent PerClient Persistent Shared PerRequest"  # noqa: E501
KINDS = {kind.__name__: kind for kind in (PerRequest, PerClient, Shared, Persistent)}


def test_no_call_is_lost_or_refused_on_any_way_between_policies(server):
    Stateless.ledger.clear()
    walk = [KINDS[name] for name in WALK.split()]
    legal = {pair for pair, how in CONVERSIONS.items() if how not in (How.STAY, How.REFUSED)}
    assert set(itertools.pairwise(walk)) == legal
    uri = server.register(Stateless, "S", activation=walk[0]())
    storm = Storm(uri, threads=6, tasks=2, methods=("note", "tell", "wait"))
    try:
        for _ in range(ROUNDS):
            for before, after in itertools.pairwise(walk):
                merge = CONVERSIONS[before, after] in (How.MERGE, How.MERGE_AND_SAVE)
                server.change_policy("S", activation=after(), merge=one_of if merge else None)
                storm.go_on(50)  # each of them is used, too
    finally:
        made = storm.end()
    server.stop()  # after the oneway calls
    assert sorted(Stateless.ledger) == sorted(made)
    assert len(made) > ROUNDS * len(walk) * 50


def test_state_and_order_survive_every_change_that_keeps_them(server):
    uri = server.register(Sequel, "R", activation=PerClient())
    storm = Storm(uri, threads=4, tasks=2, methods=("note",))
    try:
        storm.go_on(50)
        server.change_policy("R", activation=Shared(), merge=join)
        for _ in range(ROUNDS * 3):
            for activation, ordering in (
                (Persistent(), Serial()),
                (Persistent(capacity=5), ReadersWriter()),
                (Shared(), Reentrant()),
                (Shared(), Serial()),
            ):
                server.change_policy("R", activation=activation, threading=ordering)
                assert server.statistics()["policies_by_name"]["R"] == [repr(activation), repr(ordering)]
                storm.go_on(50)
    finally:
        made = storm.end()
    with Proxy(uri) as proxy:
        seen, out_of_order = proxy.seen()
    assert seen == collections.Counter(client for client, _ in made)
    assert out_of_order == []


def test_objects_that_call_each_other_go_on(server):
    @expose
    class Account:
        def __init__(self):
            self.balance = 100

        def take(self, amount):
            self.balance -= amount

        def move(self, amount, uri):
            with Proxy(uri) as other:
                other.take(-amount)
            self.balance -= amount

        def get(self):
            return self.balance

    server.register(Account, "A", activation=Persistent())
    source, target = (f"PYRO:A/{key}@{server.address}" for key in ("a", "b"))
    over = threading.Event()

    def keep_moving():
        moved = 0
        with Proxy(source) as proxy:
            while not over.is_set():
                proxy.move(1, target)
                moved += 1
        return moved

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(keep_moving) for _ in range(3)]
        try:
            for ordering in [ReadersWriter(), Serial(), Reentrant()] * 5:
                server.change_policy("A", threading=ordering)
        finally:
            over.set()
        moved = sum(client.result(30) for client in clients)
    with Proxy(source) as a, Proxy(target) as b:
        assert (a.get(), b.get()) == (100 - moved, 100 + moved)


def test_a_reference_stays_the_same(server):
    reference = server.register(Register, "R", activation=Shared())
    with Proxy(reference) as before:
        before.note("a")
        server.change_policy("R", activation=Persistent())
        assert before.note("b") == 2
        assert str(server.reference("R")) == str(reference)
        with Proxy(reference) as after:
            assert after.all() == ["a", "b"]


def test_what_was_saved_outlives_the_server(tmp_path):
    store = f"sqlite:///{tmp_path}/store.db"
    with ObjectServer(store=store) as server:
        uri = server.register(Register, "R")
        with Proxy(uri) as proxy:
            proxy.note("a")
            server.change_policy("R", activation=Persistent())
    with ObjectServer(store=store) as server:
        with Proxy(server.register(Register, "R", activation=Persistent())) as proxy:
            assert proxy.all() == ["a"]


def test_a_servant_of_another_object_may_ask_for_it(server):
    @expose
    class Admin:
        def change(self, name):
            server.change_policy(name, threading=Concurrent())

    with Proxy(server.register(Admin, "Admin")) as admin:
        server.register(Register, "R")
        admin.change("R")
        with pytest.raises(errors.Deadlock, match="let a thread of its own do it"):
            admin.change("Admin")
    assert server.statistics()["policies_by_name"]["R"][1] == "Concurrent(limit=64)"


def test_the_only_worker_cannot_wait_for_it():
    with ObjectServer(workers=1) as server:

        @expose
        class Admin:
            def change(self):
                server.change_policy("R", threading=Concurrent())

        server.register(Register, "R")
        with Proxy(server.register(Admin, "Admin")) as admin:
            with pytest.raises(errors.Deadlock, match="has the only one"):
                admin.change()
        server.change_policy("R", threading=Concurrent())


def test_before_the_server_is_started_it_is_done_at_once(tmp_path):
    server = ObjectServer(store=f"sqlite:///{tmp_path}/store.db")
    uri = server.register(Register, "R")
    server.change_policy("R", activation=Persistent())
    with server, Proxy(uri) as proxy:
        assert proxy.note(1) == 1
    with pytest.raises(errors.RegistrationError, match="has stopped"):
        server.change_policy("R", activation=Shared())


def test_the_server_itself_stays_as_it_is(server):
    with pytest.raises(errors.RegistrationError, match="the server itself"):
        server.change_policy(DAEMON_ID, threading=Serial())


def test_what_takes_too_long_is_left_as_it_was():
    go_on, inside = threading.Event(), threading.Event()

    @expose
    class Slow:
        def wait(self):
            inside.set()
            go_on.wait(30)
            return id(self)

    with ObjectServer(settings=ServerSettings(drain_timeout_s=0.01)) as server:
        uri = server.register(Slow, "S")
        with ThreadPoolExecutor(2) as pool, Proxy(uri) as proxy:
            first = pool.submit(proxy.wait)
            assert inside.wait(30)
            try:
                for timeout_s in (0.01, None):
                    with pytest.raises(errors.RegistrationError, match=r"S\.wait still running"):
                        server.change_policy("S", activation=PerRequest(), timeout_s=timeout_s)
                second = pool.submit(proxy.wait)
            finally:
                go_on.set()
            assert first.result(30) == second.result(30)


def test_a_stream_is_drawn_to_its_end(server):
    @expose
    class Numbers:
        def upto(self, count):
            yield from range(count)

    with Proxy(server.register(Numbers, "N")) as proxy:
        stream = iter(proxy.upto(100))
        assert next(stream) == 0
        with ThreadPoolExecutor(1) as pool:
            change = pool.submit(server.change_policy, "N", activation=PerRequest(), timeout_s=30)
            assert list(stream) == list(range(1, 100))
            change.result(30)
