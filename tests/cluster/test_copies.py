"""Reads of what another node has, answered by a copy of what was stored a moment ago."""

import threading
import time

import Pyro5.api
import pytest

from objserver import ObjectServer, Persistent, Proxy, ReadersWriter, errors, expose, readonly
from tests.cluster.conftest import SETTINGS, Account, renewed, where
from tests.cluster.test_node import uri
from tests.cluster.test_upgrade import Newer

LONG = Persistent(stale_reads_s=3600)
SHORT = Persistent(stale_reads_s=0.05)


@expose
class Sheet(Account):
    """An account with more to read, which says what is done with it."""

    seen: list = []

    def on_activate(self):
        Sheet.seen.append("activated")

    def on_passivate(self):
        self.balance = -1
        Sheet.seen.append("passivated")

    @property
    def total(self) -> int:
        return self.balance

    @readonly
    def lines(self):
        yield from range(self.balance)

    @readonly
    def itself(self):
        return self


@pytest.fixture
def two(cluster):
    """Nodes a, which has alice with 5, and b; by the policy and the class that are asked for."""

    def start(activation=LONG, cls=Account, **options):
        a, b = (cluster(name, activation=activation, cls=cls, **options) for name in "ab")
        renewed(a, b)
        with Proxy(uri(a, "alice")) as here:
            here.deposit(5)
        return a, b

    return start


def copies(node):
    figures = node.statistics()
    return figures["copies"], figures["copies_loaded"], figures["calls_of_copies"]


def test_a_node_that_does_not_have_the_object_answers_reads_by_a_copy(two):
    a, b = two()
    with Proxy(uri(b, "alice")) as there:
        assert [there.statement() for _ in range(10)] == [5] * 10
        assert there._objserver_stub.pool.location.port == int(b.address.rpartition(":")[2])
    assert copies(b) == (1, 1, 10)
    assert copies(a) == (0, 0, 0)
    assert where(b, "alice") == a.address


def test_stock_clients_read_copies_and_nothing_is_relayed_for_them(two):
    _, b = two(cls=Sheet)
    with Pyro5.api.Proxy(uri(b, "alice")) as stock:
        assert stock.statement() == 5
        assert stock.total == 5
        assert [*stock.lines()] == [0, 1, 2, 3, 4]
        batch = Pyro5.api.BatchProxy(stock)
        batch.statement()
        batch.statement()
        assert [*batch()] == [5, 5]
        assert b.statistics()["calls_relayed"] == 0
        batch = Pyro5.api.BatchProxy(stock)
        batch.statement()
        batch.deposit(1)
        assert [*batch()] == [5, 6]
        with pytest.raises(AttributeError):
            stock.nothing()
        assert b.statistics()["calls_relayed"] >= 1


def test_a_copy_is_as_old_as_the_policy_allows_and_then_loaded_anew(two, monkeypatch):
    a, b = two()
    now = [100.0]
    monkeypatch.setattr(b.adapter._copies, "_monotonic", lambda: now[0])
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there:
        assert there.statement() == 5
        here.deposit(5)
        now[0] += 3599.9
        assert there.statement() == 5
        now[0] += 0.1
        assert there.statement() == 10
    assert copies(b) == (1, 2, 3)


def test_the_age_counts_from_before_the_store_is_asked(two, monkeypatch):
    a, b = two()
    now = [100.0]
    monkeypatch.setattr(b.adapter._copies, "_monotonic", lambda: now[0])
    load = b._store.load

    def slowly(*name):
        found = load(*name)
        now[0] += 3600
        return found

    monkeypatch.setattr(b._store, "load", slowly)
    with Proxy(uri(b, "alice")) as there:
        assert there.statement() == 5
        assert there._objserver_stub.pool.location.port == int(a.address.rpartition(":")[2])
    assert copies(b)[2] == 0


def test_who_waited_until_the_copy_was_too_old_reads_the_next(two, monkeypatch):
    @expose
    class Slow(Account):
        entered, go = threading.Event(), threading.Event()

        @readonly
        def wait(self) -> int:
            self.entered.set()
            assert self.go.wait(10)
            return self.balance

    a, b = two(cls=Slow)
    now = [100.0]
    monkeypatch.setattr(b.adapter._copies, "_monotonic", lambda: now[0])
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there, Proxy(uri(b, "alice")) as other:
        first = there.future.wait()
        assert Slow.entered.wait(10)
        second = other.future.statement()
        while b.statistics()["invocations_waiting"] == 0:
            threading.Event().wait(0.005)
        here.deposit(5)
        now[0] += 3600
        Slow.go.set()
        assert (first.result(10), second.result(10)) == (5, 10)


def test_writes_go_to_the_owner_and_their_client_stays_there(two):
    a, b = two()
    with Proxy(uri(b, "alice")) as there:
        assert there.statement() == 5
        assert there.deposit(5) == 10
        assert there.statement() == 10
    assert copies(b)[2] == 1
    assert where(b, "alice") == a.address


def test_nothing_is_saved_of_a_copy(two):
    a, b = two(cls=Sheet, activation=SHORT)
    before = b._store.load("Account", "alice")
    Sheet.seen.clear()
    with Proxy(uri(b, "alice")) as there:
        while Sheet.seen.count("passivated") < 3:
            assert there.statement() == 5
    assert b._store.load("Account", "alice") == before
    with Proxy(uri(a, "alice")) as here:
        assert here.deposit(1) == 6


def test_streams_of_a_copy_go_on_after_it_was_replaced(two, monkeypatch):
    a, b = two(cls=Sheet)
    now = [100.0]
    monkeypatch.setattr(b.adapter._copies, "_monotonic", lambda: now[0])
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there:
        items = iter(there.lines())
        assert next(items) == 0
        here.deposit(5)
        now[0] += 3600
        assert there.statement() == 10
        assert [*items] == [1, 2, 3, 4]


def test_a_reference_to_a_copy_is_one_to_the_object(two):
    _, b = two(cls=Sheet)
    with Proxy(uri(b, "alice")) as there, there.itself() as found:
        assert found._pyroUri.object_id == "Account/alice"
        assert found.deposit(1) == 6


def test_what_nobody_has_stored_yet_is_asked_of_its_owner(cluster):
    a, b = cluster("a", activation=LONG), cluster("b", activation=LONG)
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there:
        assert here.statement() == 0
        assert there.statement() == 0
    assert copies(b) == (0, 0, 0)
    assert where(b, "alice") == a.address


def test_states_of_another_layout_are_left_to_their_owner(cluster):
    a, b = cluster("a", activation=LONG), cluster("b", activation=LONG, cls=Newer)
    Newer.upgraded.clear()
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there:
        here.deposit(5)
        assert there.statement() == 5
    assert copies(b) == (0, 0, 0)
    assert not Newer.upgraded


def test_a_free_object_is_acquired_by_who_reads_it(two):
    a, b = two()
    a.stop()
    with Proxy(uri(b, "alice")) as there:
        assert there.statement() == 5
    assert where(b, "alice") == b.address
    assert copies(b) == (0, 0, 0)


def test_readers_are_together_in_a_copy(two):
    @expose
    class Meeting(Account):
        meeting = threading.Barrier(3)

        @readonly
        def meet(self) -> int:
            self.meeting.wait(10)
            return self.balance

    a, b = two(cls=Account)
    for node in (a, b):
        node.register(Meeting, "Meeting", activation=LONG, threading=ReadersWriter())
    renewed(a, b)
    with Proxy(f"PYRO:Meeting/x@{a.address}") as here:
        here.deposit(5)
    proxies = [Proxy(f"PYRO:Meeting/x@{b.address}") for _ in range(3)]
    assert [each.result(10) for each in [proxy.future.meet() for proxy in proxies]] == [5, 5, 5]
    for proxy in proxies:
        proxy.release()


def test_copies_are_bounded_and_idle(two):
    a, b = two(activation=Persistent(stale_reads_s=3600, capacity=4, idle_timeout_s=1000))
    for n in range(10):
        with Proxy(uri(a, n)) as here, Proxy(uri(b, n)) as there:
            here.deposit(n)
            assert there.statement() == n
    while copies(b)[0] > 4:
        threading.Event().wait(0.005)
    later = time.monotonic()
    while copies(b)[0]:
        later += 2000  # again, for one may have been on its way out of its last call
        b.adapter.housekeeping(later)
        threading.Event().wait(0.005)


def test_a_class_that_is_no_longer_registered_has_no_copies(two):
    _, b = two()
    with Proxy(uri(b, "alice")) as there:
        assert there.statement() == 5
        b.unregister("Account")
        with pytest.raises(errors.ObjectNotFound):
            there.statement()
    while any(activation.registration.copied for activation in b.adapter._active.all()):
        threading.Event().wait(0.005)


def test_another_policy_has_other_copies_or_none(two):
    a, b = two()
    with Proxy(uri(b, "alice")) as there:
        assert there.statement() == 5
        b.change_policy("Account", activation=Persistent())
        with Proxy(uri(a, "alice")) as here:
            here.deposit(5)
        assert there.statement() == 10


def test_when_the_store_has_another_history_no_copy_of_the_old_is_read(two):
    a, b = two()
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there:
        assert there.statement() == 5
        here.deposit(5)
        b._store.changed("a backup was restored")
        assert there.statement() == 10


def test_without_a_cluster_the_policy_changes_nothing(tmp_path):
    with ObjectServer(store=f"sqlite:///{tmp_path}/x.db", settings=SETTINGS) as alone:
        alone.register(Account, "Account", activation=LONG)
        with Proxy(uri(alone, "alice")) as proxy:
            proxy.deposit(5)
            assert proxy.statement() == 5
        assert copies(alone) == (0, 0, 0)


def test_an_age_of_nothing_is_refused():
    with pytest.raises(ValueError, match="stale_reads_s"):
        Persistent(stale_reads_s=0)


def test_attributes_of_what_is_elsewhere_are_relayed_too(two):
    _, b = two(cls=Sheet, activation=Persistent())
    with Pyro5.api.Proxy(uri(b, "alice")) as stock:
        b.node._routes.keep(set())
        assert stock.total == 5
        assert stock.total == 5
