"""Servers that share a store: any of them answers for any object."""

import asyncio
import threading

import Pyro5.api
import Pyro5.errors
import pytest

from objserver import AsyncProxy, ObjectServer, Persistent, Proxy, errors
from objserver.client import pool
from objserver.cluster import ByHash, Pinned
from objserver.cluster.entry import Entry
from tests.cluster.conftest import LEASE_S, SETTINGS, Account, disappear, renewed, where


def uri(node, key):
    return f"PYRO:Account/{key}@{node.address}"


def await_more(counted, more):
    """So many more calls have been answered."""
    enough = len(counted) + more
    while len(counted) < enough:
        threading.Event().wait(0.01)


def test_an_object_is_where_it_was_called_first_and_any_node_answers_for_it(cluster):
    a, b = cluster("a"), cluster("b")
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there:
        assert here.deposit(5) == 5
        assert there.deposit(5) == 10
        assert here.deposit(5) == 15
    assert where(b, "alice") == a.address
    assert b.statistics()["active_objects"] <= 1  # the daemon itself


def test_a_proxy_is_sent_on_once_and_remembers(cluster):
    a, b = cluster("a"), cluster("b")
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there:
        here.deposit(1)
        for _ in range(10):
            there.deposit(1)
        assert b.statistics()["calls_sent_on"] == 1
        assert there._objserver_stub.pool.location == here._objserver_stub.pool.location


def test_a_node_where_an_object_is_not_makes_no_servant_of_it(cluster):
    a, b = cluster("a"), cluster("b")
    with Proxy(uri(a, "alice")) as here:
        here.deposit(1)
    made = Account.made
    with Proxy(uri(b, "alice")) as there:
        there.deposit(1)
    assert Account.made == made


def test_stock_clients_are_relayed_and_never_know(cluster):
    a, b = cluster("a"), cluster("b")
    with Proxy(uri(a, "alice")) as here, Pyro5.api.Proxy(uri(b, "alice")) as stock:
        here.deposit(5)
        assert stock.deposit(5) == 10
        assert stock.deposit(5) == 15
        assert [*stock.entries()] == [*range(15)]
        with pytest.raises(ValueError, match="no"):
            stock.fail()
        with pytest.raises(AttributeError):
            stock.nothing()
        batch = Pyro5.api.BatchProxy(stock)
        batch.deposit(1)
        batch.fail()
        results = batch()
        assert next(results) == 16
        with pytest.raises(ValueError, match="no"):
            next(results)
    assert where(b, "alice") == a.address
    assert b.statistics()["calls_relayed"] >= 5
    assert here is not None


def test_oneway_calls_are_relayed(cluster):
    a, b = cluster("a"), cluster("b")
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice")) as there:
        here.deposit(1)
        with there.batch() as batch:
            batch.deposit(2)
        assert list(batch.results()) == [3]
        batch = there.batch()
        batch.deposit(3)
        batch.send(oneway=True)
        while here.statement() < 6:
            threading.Event().wait(0.01)


def test_calls_of_asyncio_futures_and_streams_follow(cluster):
    a, b = cluster("a"), cluster("b")
    with Proxy(uri(a, "alice")) as here:
        here.deposit(3)

    async def use():
        async with AsyncProxy(uri(b, "alice")) as there:
            together = await asyncio.gather(*(there.deposit(1) for _ in range(20)))
            assert sorted(together) == [*range(4, 24)]
            return [item async for item in there.entries()]

    assert asyncio.run(use()) == [*range(23)]
    with Proxy(uri(b, "alice")) as there:
        assert there.future.deposit(1).result(5) == 24
        assert [*there.entries()] == [*range(24)]


def test_an_object_is_placed_where_the_policy_says(cluster):
    pinned = Pinned({"Account": "b"})
    a, b = cluster("a", placement=pinned), cluster("b", placement=pinned)
    renewed(a, b)
    with Proxy(uri(a, "alice")) as proxy:
        assert proxy.deposit(1) == 1
    assert where(a, "alice") == b.address


def test_hashing_spreads_objects_and_every_node_agrees(cluster):
    a, b = cluster("a", placement=ByHash()), cluster("b", placement=ByHash())
    renewed(a, b)
    homes = []
    for key in range(20):
        with Proxy(uri((a, b)[key % 2], key)) as proxy:
            proxy.deposit(1)
        homes.append(where(a, str(key)))
    assert {a.address, b.address} == set(homes)


def test_when_a_node_dies_its_objects_are_taken_over_after_its_lease(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    with Proxy(uri(a, "alice"), timeout_s=20) as proxy:
        assert proxy.deposit(5) == 5
        disappear(a)
        assert proxy.deposit(5) == 10
    assert where(b, "alice") == b.address


def test_the_address_in_a_uri_may_be_gone_for_a_proxy_that_is_made_later(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    with Proxy(uri(a, "alice"), timeout_s=20) as proxy:
        proxy.deposit(5)
    disappear(a)
    with Proxy(uri(a, "alice"), timeout_s=20) as proxy:
        assert proxy.deposit(5) == 10
    assert where(b, "alice") == b.address


def test_a_stock_client_of_a_node_that_lives_does_not_notice_that_another_dies(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    with Proxy(uri(a, "alice")) as here, Pyro5.api.Proxy(uri(b, "alice")) as stock:
        here.deposit(5)
        assert stock.deposit(5) == 10
        disappear(a)
        assert stock.deposit(5) == 15


def test_a_node_that_stops_hands_over_and_no_call_fails(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    counted, stopping = [], threading.Event()

    def call(n):
        with Proxy(uri((a, b)[n % 2], "alice"), timeout_s=20) as proxy:
            while not stopping.is_set():
                counted.append(proxy.deposit(1))
            counted.append(proxy.deposit(1))

    with Proxy(uri(a, "alice")) as proxy:
        proxy.deposit(1)
    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while len(counted) < 50:
        threading.Event().wait(0.01)
    a.stop()
    stopping.set()
    for thread in threads:
        thread.join(20)
    assert sorted(counted) == [*range(2, len(counted) + 2)]
    assert where(b, "alice") == b.address


def test_an_object_migrates_while_it_is_called_and_callers_see_time_only(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    counted, stopping = [], threading.Event()

    def call():
        with Proxy(uri(a, "alice"), timeout_s=20) as proxy:
            while not stopping.is_set():
                counted.append(proxy.deposit(1))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not counted:
        threading.Event().wait(0.01)
    try:
        for n in range(10):
            source, target = ((a, b), (b, a))[n % 2]
            source.node.migrate("Account", "alice", target.node.name, 10)
            assert where(a, "alice") == target.address
            await_more(counted, 20)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(20)
    assert sorted(counted) == [*range(1, len(counted) + 1)]


def test_an_object_that_rests_migrates_too(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    with Proxy(uri(a, "alice")) as proxy:
        proxy.deposit(5)
        a.node.migrate("Account", "alice", "b", 10)
        assert where(a, "alice") == b.address
        with pytest.raises(errors.Moved):
            a.node.migrate("Account", "alice", "b", 10)
        with pytest.raises(ValueError, match="no node 'c' takes objects now; there are a, b"):
            b.node.migrate("Account", "alice", "c", 10)
        assert proxy.deposit(5) == 10


def test_a_node_whose_life_is_over_begins_another_and_nothing_is_lost(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    before = a.node.owner
    with Proxy(uri(a, "alice"), timeout_s=10) as proxy:
        proxy.deposit(5)
        b._store.leave(before)  # somebody declares it dead
        with Proxy(uri(b, "alice"), timeout_s=10) as there:
            assert there.deposit(5) == 10
        assert where(b, "alice") == b.address
        assert proxy.deposit(5) == 15  # what it had in memory is not what is true
        a.node.renew()
        assert a.node.owner != before
        assert a.statistics()["lives"] == 2
        with Proxy(uri(a, "bob"), timeout_s=10) as bob:
            assert bob.deposit(1) == 1


def test_reads_of_a_deposed_node_are_not_stale(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    with Proxy(uri(a, "alice"), timeout_s=10) as here:
        here.deposit(5)
        b._store.leave(a.node.owner)
        with Proxy(uri(b, "alice"), timeout_s=10) as there:
            there.deposit(5)
        assert here.statement() == 10


def test_fast_reads_ask_the_store_only_when_the_lease_may_be_over(cluster, monkeypatch):
    a = cluster("a", activation=Persistent(fast_reads=True))
    asked = []
    confirm = a._store.confirm
    monkeypatch.setattr(a._store, "confirm", lambda reads: asked.append(reads) or confirm(reads))
    with Proxy(uri(a, "alice")) as proxy:
        proxy.deposit(5)
        assert proxy.statement() == 5
        assert not asked
        monkeypatch.setattr(a.node, "renew", lambda: None)
        a.node._renewed_at -= LEASE_S
        assert proxy.statement() == 5
        assert asked


def test_a_server_outside_the_cluster_takes_nothing_of_it(cluster):
    a = cluster("a")
    with Proxy(uri(a, "alice")) as proxy:
        proxy.deposit(5)
    with ObjectServer(store=cluster.url, settings=SETTINGS) as alone:
        alone.register(Account, "Account", activation=a.adapter._registry.named("Account").activation)
        with Proxy(uri(alone, "alice")) as proxy, pytest.raises(errors.StoreError, match="cluster, at"):
            proxy.deposit(5)


def test_a_cluster_needs_a_store():
    with pytest.raises(errors.RegistrationError, match="needs the store"):
        ObjectServer(cluster="bank")


def test_a_node_whose_lease_may_have_ended_begins_another_life_though_nobody_took_its_place(cluster):
    a = cluster("a")
    with Proxy(uri(a, "alice"), timeout_s=20) as proxy:
        proxy.deposit(5)
        life = a.node.owner
        a.node._renewed_at -= LEASE_S
        a.node.renew()
        assert a.node.owner != life
        assert proxy.deposit(5) == 10


def without_a_store(node, monkeypatch):
    """As when the network between them is cut."""

    def fails(*what, **options):
        raise unreachable

    unreachable = errors.StoreError("cannot reach postgres: nobody there")
    unreachable.away = True
    for name in ("acquire", "commit", "confirm", "renew", "open_session", "renew_sessions", "owners"):
        monkeypatch.setattr(node.node._store, name, fails)


def test_a_call_of_a_node_that_does_not_reach_the_store_is_made_at_another(cluster, monkeypatch):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    with Proxy(uri(a, "alice"), timeout_s=20) as proxy, Pyro5.api.Proxy(uri(a, "bob")) as stock:
        assert proxy.deposit(5) == 5
        without_a_store(a, monkeypatch)
        assert proxy.deposit(5) == 10
        assert stock.deposit(1) == 1
    assert where(b, "alice") == b.address


def test_a_call_waits_while_no_node_reaches_the_store(cluster, monkeypatch):
    a = cluster("a")
    with Proxy(uri(a, "alice"), timeout_s=20) as proxy:
        assert proxy.deposit(5) == 5
        without_a_store(a, monkeypatch)
        with pytest.raises(errors.ServerBusy, match="no server of the cluster had the object in time"):
            proxy.calling(timeout_s=0.2).deposit(1)
        monkeypatch.undo()
        assert proxy.deposit(5) == 10


# -- the entry -----------------------------------------------------------------------------------------


def test_with_a_single_entry_clients_know_one_address_and_it_calls_for_them(cluster):
    a, b = cluster("a"), cluster("b")
    Entry(single=b.address).set(b._store)
    renewed(a, b)
    with Proxy(uri(a, "alice")) as here:
        here.deposit(1)
    with Proxy(uri(b, "alice"), timeout_s=10) as there:
        assert [there.deposit(1) for _ in range(3)] == [2, 3, 4]
        assert there.statement() == 4
        assert [*there.entries()] == [*range(4)]
        with pytest.raises(ValueError, match="no"):
            there.fail()
        assert str(there._objserver_stub.pool.location) == b.address
    assert b.statistics()["calls_sent_on"] == b.statistics()["calls_relayed"] == 6
    assert b.node.entries == a.node.entries == (b.address,)


def test_the_entry_may_change_under_calls_and_then_vanish(cluster, monkeypatch):
    monkeypatch.setattr(pool, "ENTRIES_S", 0.05)
    a, b = cluster("a"), cluster("b")
    Entry(single=b.address).set(b._store)
    renewed(a, b)
    with Proxy(uri(a, "alice")) as here:
        here.deposit(0)
    counted, stopping = [], threading.Event()

    def call():
        with Proxy(uri(b, "alice"), timeout_s=20) as proxy:
            while not stopping.is_set():
                counted.append(proxy.deposit(1))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for entry in (Entry(), Entry(single=b.address), Entry()):
            await_more(counted, 30)
            entry.set(a._store)
            renewed(a, b)
        await_more(counted, 30)
        disappear(b)
        await_more(counted, 30)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(20)
    assert sorted(counted) == [*range(1, len(counted) + 1)]


def test_a_call_that_was_relayed_is_known_where_it_is_made_the_next_time(cluster):
    """The reply is lost between the entry and the client, and the entry is gone."""
    a, b = cluster("a"), cluster("b")
    Entry(single=b.address).set(b._store)
    renewed(a, b)
    with Proxy(uri(a, "alice")) as here:
        here.deposit(0)
    with Proxy(uri(b, "alice"), timeout_s=20) as there:
        there.deposit(1)
        there._objserver_stub.pool._entries.told(there._objserver_stub.pool.location, [b.address, a.address])
        sent = b.adapter._relay

        def relay_and_vanish(invocation, moved):
            sent(invocation, moved)
            disappear(b)
            raise OSError("and its answer is lost")

        b.adapter._relay = relay_and_vanish
        assert there.deposit(1) == 2
        assert there.deposit(1) == 3
    assert a.statistics()["calls_repeated"] == 1


def test_when_the_node_dies_to_which_is_relayed_the_entry_takes_over(cluster):
    a, b = cluster("a"), cluster("b")
    Entry(single=b.address).set(b._store)
    renewed(a, b)
    with Proxy(uri(a, "alice")) as here, Proxy(uri(b, "alice"), timeout_s=20) as there:
        here.deposit(1)
        assert there.deposit(1) == 2
        batch = there.batch()
        batch.deposit(1)
        disappear(a)
        batch.send(oneway=True)  # comes before the next, over the same connection
        assert there.deposit(1) in (3, 4)
        while there.statement() < 4:
            threading.Event().wait(0.01)
    assert where(b, "alice") == b.address


# -- what the simulator of clusters has found ----------------------------------------------------------


def test_a_migration_is_no_error_in_the_log(cluster, caplog):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    with Proxy(uri(a, "alice")) as proxy:
        proxy.deposit(5)
        a.node.migrate("Account", "alice", "b", 10)
    assert where(a, "alice") == b.address
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_migration_that_the_store_did_not_take_says_so_and_is_not_pending(cluster, monkeypatch):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    with Proxy(uri(a, "alice"), timeout_s=20) as proxy:
        proxy.deposit(5)

        def release(*_):
            raise errors.StoreError("the store is away")

        with monkeypatch.context() as patch:
            patch.setattr(a._store, "release", release)
            with pytest.raises(errors.StoreError, match="away"):
                a.node.migrate("Account", "alice", "b", 10)
        assert proxy.deposit(5) == 10
    assert where(a, "alice") == a.address


def test_a_migration_of_what_has_moved_meanwhile_has_happened(cluster, monkeypatch):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    touch = a.adapter.touch

    def called_before(whole, done):
        with Proxy(uri(a, "alice"), timeout_s=20) as other:
            assert other.deposit(5) == 10  # it finds that the object is leaving
        touch(whole, done)

    with Proxy(uri(a, "alice"), timeout_s=20) as proxy:
        proxy.deposit(5)
        monkeypatch.setattr(a.adapter, "touch", called_before)
        a.node.migrate("Account", "alice", "b", 10)
    assert where(a, "alice") == b.address


def test_what_a_node_acquires_is_of_the_life_in_which_it_did(cluster, monkeypatch):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    commit, owners = a._store.commit, []

    def seen(changes):
        owners.extend(change.owner for change in changes)
        return commit(changes)

    monkeypatch.setattr(a._store, "commit", seen)
    with Proxy(uri(a, "alice"), timeout_s=10) as proxy:
        b._store.leave(a.node.owner)
        assert proxy.deposit(5) == 5  # in a life that began while it acquired
    assert owners == [a.node.owner]


def test_a_node_that_is_the_only_one_says_that_the_store_does_not_answer(cluster, monkeypatch):
    a = cluster("a")

    def acquire(*_, **__):
        raise errors.StoreError("the store is away")

    monkeypatch.setattr(a._store, "acquire", acquire)
    with Proxy(uri(a, "alice"), timeout_s=10) as proxy, pytest.raises(errors.StoreError, match="away"):
        proxy.deposit(5)
