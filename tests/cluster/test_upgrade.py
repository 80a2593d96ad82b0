"""A class is replaced by a newer one, whose state looks different, node by node."""

import threading
from collections import Counter
from typing import ClassVar

import Pyro5.api
import pytest

from objserver import Proxy, errors, expose, readonly
from objserver.cluster import ByHash, Pinned
from tests.cluster.conftest import Account, renewed, where
from tests.cluster.test_node import uri


@expose
class Newer:
    """An Account that counts in cents."""

    state_version = 2
    upgraded: ClassVar[Counter] = Counter()

    def __init__(self):
        self.cents = 0
        self.id = None

    @classmethod
    def upgrade_state(cls, state, version):
        assert version == 1
        cls.upgraded["all"] += 1
        return {"cents": 100 * state["balance"], "id": None}

    def deposit(self, amount: int) -> int:
        self.cents += 100 * amount
        return self.cents // 100

    @readonly
    def statement(self) -> int:
        return self.cents // 100


@pytest.fixture(autouse=True)
def count_anew():
    Newer.upgraded.clear()


def layout(node, key):
    """Of the state that is stored."""
    return node._store.load("Account", key).state_version


def test_clients_go_on_calling_while_all_nodes_are_upgraded_one_by_one(cluster):
    nodes = {name: cluster(name, placement=ByHash()) for name in "abc"}
    renewed(*nodes.values())
    keys = [f"k{n}" for n in range(12)]
    counted = {key: [] for key in keys}
    failed, stopping = [], threading.Event()
    first = nodes["a"]

    def call(own):
        proxies = {key: Proxy(uri(first, key), timeout_s=30) for key in own}
        try:
            while not stopping.is_set():
                for key, proxy in proxies.items():
                    counted[key].append(proxy.deposit(1))
                    if proxy.statement() < counted[key][-1]:
                        failed.append(f"{key} forgot")
        except BaseException as problem:
            failed.append(problem)
        for proxy in proxies.values():
            proxy.release()

    threads = [threading.Thread(target=call, args=(keys[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()

    def more():
        enough = {key: len(counted[key]) + 3 for key in keys}
        while not failed and any(len(counted[key]) < enough[key] for key in keys):
            threading.Event().wait(0.01)

    for name in "abc":
        more()
        nodes[name].stop()
        more()
        nodes[name] = cluster(name, placement=ByHash(), cls=Newer, address=nodes[name].address)
        renewed(*nodes.values())
    more()
    stopping.set()
    for thread in threads:
        thread.join(30)
    assert not failed
    for key in keys:
        assert counted[key] == [*range(1, len(counted[key]) + 1)]
        assert layout(nodes["c"], key) == 2
    assert Newer.upgraded["all"] == len(keys)


def test_an_older_node_hands_on_what_has_been_upgraded(cluster):
    old, new = cluster("old"), cluster("new", cls=Newer)
    renewed(old, new)
    with Proxy(uri(new, "alice")) as proxy:
        assert proxy.deposit(5) == 5
    new.adapter.passivate("Account/alice")
    epoch = new._store.load("Account", "alice").epoch
    new._store.release([("Account", "alice", epoch)], new.node.owner, None)
    made = Account.made
    with Proxy(uri(old, "alice")) as proxy, Pyro5.api.Proxy(uri(old, "alice")) as stock:
        assert proxy.deposit(1) == 6
        assert stock.deposit(1) == 7
    assert where(old, "alice") == new.address
    assert Account.made == made


def test_it_is_handed_on_to_a_node_that_came_after_the_last_renewal(cluster):
    old = cluster("old")
    with Proxy(uri(old, "alice")) as proxy:
        proxy.deposit(5)
        old.adapter.passivate("Account/alice")
        new = cluster("new", cls=Newer)
        new.node.renew()
        new._store.release(
            [("Account", "alice", new._store.load("Account", "alice").epoch)], old.node.owner, new.node.owner
        )
        with Proxy(uri(new, "alice")) as there:
            assert there.deposit(5) == 10
        record = new._store.load("Account", "alice")
        new.adapter.passivate("Account/alice")
        new._store.release([("Account", "alice", record.epoch)], new.node.owner, old.node.owner)
        old.node._routes.keep(set())
        assert proxy.deposit(5) == 15
    assert where(old, "alice") == new.address
    assert Newer.upgraded["all"] == 1


def test_an_older_node_alone_says_what_it_cannot_do_and_leaves_the_object_as_it_is(cluster):
    new = cluster("new", cls=Newer)
    with Proxy(uri(new, "alice")) as proxy:
        proxy.deposit(5)
    new.stop()
    old = cluster("old")
    with Proxy(uri(old, "alice"), timeout_s=5) as proxy:
        with pytest.raises(errors.StateError, match=r"has version 2.* start the newer program"):
            proxy.deposit(5)
        assert where(old, "alice") is None
        newer = cluster("newer", cls=Newer)
        assert proxy.deposit(5) == 10
    assert where(old, "alice") == newer.address


def test_what_is_upgraded_by_a_call_that_only_reads_is_upgraded_once(cluster):
    old = cluster("old")
    with Proxy(uri(old, "alice")) as proxy:
        proxy.deposit(5)
    old.stop()
    new = cluster("new", cls=Newer)
    with Proxy(uri(new, "alice")) as proxy:
        assert proxy.statement() == 5
        new.adapter.passivate("Account/alice")
        assert proxy.statement() == 5
    assert layout(new, "alice") == 2
    assert Newer.upgraded["all"] == 1


def test_a_newer_node_places_nothing_on_an_older_one(cluster):
    pinned = Pinned({"Account": "old"}, ByHash())
    old, new = cluster("old", placement=pinned), cluster("new", placement=pinned, cls=Newer)
    renewed(old, new)
    with Proxy(uri(new, "alice")) as proxy:
        proxy.deposit(5)
    with Proxy(uri(old, "bob")) as proxy:
        proxy.deposit(5)
    assert (where(old, "alice"), where(old, "bob")) == (new.address, old.address)
    with pytest.raises(ValueError, match="node 'old' cannot have it: its class of Account is older"):
        new.node.migrate("Account", "alice", "old", 5)


def test_nodes_that_do_not_serve_a_type_get_none_of_it(cluster):
    a, b = cluster("a", placement=Pinned({"Other": "b"})), cluster("b")
    a.register(Account, "Other", activation=a.adapter._registry.named("Account").activation)
    renewed(a, b)
    with Proxy(f"PYRO:Other/x@{a.address}") as proxy:
        assert proxy.deposit(5) == 5
