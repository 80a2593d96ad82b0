"""The desk of every node answers for the whole cluster."""

import threading

import Pyro5.api
import pytest

from objserver import Proxy, Shared, errors
from objserver.references import CLUSTER_ID
from objserver.security import Authentication, Authorization, Itself, Rules, SharedKey
from tests.cluster.conftest import Account, disappear, renewed, where


def desk(node, **options):
    return Proxy(f"PYRO:{CLUSTER_ID}@{node.address}", timeout_s=20, **options)


def account(node, key, **options):
    return Proxy(f"PYRO:Account/{key}@{node.address}", timeout_s=20, **options)


def open_accounts(node, *keys):
    for key in keys:
        with account(node, key) as proxy:
            proxy.deposit(1)


def test_any_node_tells_of_all_nodes(cluster):
    a, b = cluster("a"), cluster("b")
    open_accounts(a, "alice", "bob")
    renewed(a, b)
    for node, name in ((a, "a"), (b, "b")):
        with desk(node) as asked:
            status = asked.status()
        assert (status["cluster"], status["answered"]) == ("bank", name)
        assert [row["node"] for row in status["nodes"]] == ["a", "b"]
        assert [row["address"] for row in status["nodes"]] == [a.address, b.address]
        assert {row["state"] for row in status["nodes"]} == {"up"}
        assert all(0 < row["lease_s"] <= 1 for row in status["nodes"])
        assert status["nodes"][0]["calls"] >= 2
        assert status["nodes"][0]["waiting"] == 0


def test_it_tells_a_node_that_is_silent_from_one_that_has_left(cluster):
    a, b, c = cluster("a"), cluster("b"), cluster("c")
    disappear(b)
    c.stop()
    with desk(a) as asked:
        while asked.status()["nodes"][1]["state"] == "up":
            threading.Event().wait(0.05)
        assert [row["state"] for row in asked.status()["nodes"]] == ["up", "silent", "dead"]


def test_it_knows_who_has_what(cluster):
    a, b = cluster("a"), cluster("b")
    open_accounts(a, "ann", "bob", "eve")
    open_accounts(b, "zoe")
    with desk(b) as asked:
        assert asked.tally() == {"a": 3, "b": 1}
        assert asked.where("Account/ann") == {"object": "Account/ann", "node": "a", "address": a.address}
        assert asked.where("Account/nobody") == {"object": "Account/nobody", "node": None, "address": None}
        page = asked.objects("a", limit=2)
        assert page == [("Account", "ann"), ("Account", "bob")]
        assert asked.objects("a", page[-1]) == [("Account", "eve")]
        assert asked.objects("b") == [("Account", "zoe")]


@pytest.mark.parametrize("asked_at", ["owner", "target", "neither"])
def test_any_node_has_an_object_moved(cluster, asked_at):
    a, b, c = cluster("a"), cluster("b"), cluster("c")
    renewed(a, b, c)
    open_accounts(a, "alice")
    with desk({"owner": a, "target": b, "neither": c}[asked_at]) as asked:
        moved = asked.migrate("Account/alice", "b")
        assert moved == {"object": "Account/alice", "node": "b", "address": b.address}
        assert asked.migrate("Account/alice", "b") == moved  # it is there
    assert where(a, "alice") == b.address
    with account(c, "alice") as proxy:
        assert proxy.deposit(1) == 2


def test_an_object_can_be_moved_to_a_node_that_has_just_come(cluster):
    a = cluster("a")
    open_accounts(a, "alice")
    b = cluster("b")
    with desk(a) as asked:
        assert asked.migrate("Account/alice", "b")["address"] == b.address


@pytest.mark.parametrize("to", ["a", "b"])
def test_what_nobody_has_can_be_moved_too(cluster, to):
    a = cluster("a")
    open_accounts(a, "alice")
    a.stop()
    nodes = {"a": cluster("a"), "b": cluster("b")}
    renewed(*nodes.values())
    with desk(nodes["a"]) as asked:
        assert asked.where("Account/alice")["node"] is None
        assert asked.migrate("Account/alice", to)["node"] == to


def test_what_cannot_be_moved_is_said(cluster):
    a, b = cluster("a"), cluster("b")
    a.register(Account, "Till", activation=Shared())
    open_accounts(a, "alice")
    renewed(a, b)
    with desk(a) as asked:
        with pytest.raises(ValueError, match="no node 'bee' takes objects now; there are a, b"):
            asked.migrate("Account/alice", "bee")
        with pytest.raises(errors.ObjectNotFound, match="Account/alcie was never stored"):
            asked.migrate("Account/alcie", "b")
        with pytest.raises(errors.ObjectNotFound, match="'Till' is not Persistent"):
            asked.migrate("Till", "b")
        with pytest.raises(errors.ObjectNotFound, match="unknown object 'Nothing'"):
            asked.where("Nothing")
        with pytest.raises(ValueError, match="no node 'c' is up; there are a, b"):
            asked.objects("c")
    assert where(a, "alice") == a.address


def test_an_object_whose_node_is_gone_is_not_moved_by_another_in_its_place(cluster):
    a, b, c = cluster("a"), cluster("b"), cluster("c")
    renewed(a, b, c)
    open_accounts(b, "alice")
    with desk(a) as asked:
        asked.status()
        disappear(b)
        with pytest.raises((errors.ObjectError, errors.ConnectFailed), match=r"does not answer|connect"):
            asked.migrate("Account/alice", "c")
        while asked.where("Account/alice")["node"] is not None:
            threading.Event().wait(0.05)
        assert asked.migrate("Account/alice", "c")["node"] == "c"


def test_a_node_is_drained_by_asking_any(cluster):
    a, b = cluster("a"), cluster("b")
    open_accounts(b, "alice", "bob")
    renewed(a, b)
    with desk(a) as asked:
        assert asked.drain("b")
        assert [row["state"] for row in asked.status()["nodes"]] == ["up", "draining"]
        with account(b, "alice") as proxy:
            assert proxy.deposit(1) == 2
        assert asked.where("Account/alice")["node"] == "a"
        with pytest.raises(ValueError, match="nobody would take over from 'a'"):
            asked.drain("a")
        with pytest.raises(ValueError, match="no node 'aa' is up; there are a, b; did you mean 'a'"):
            asked.drain("aa")


def test_a_node_that_has_one_worker_says_that_it_cannot_wait_for_itself(cluster):
    a = cluster("a", workers=1)
    cluster("b")
    renewed(a)
    with desk(a) as asked, pytest.raises(errors.Deadlock, match="one worker"):
        asked.drain("a")


def test_stock_clients_may_ask_too(cluster):
    a = cluster("a")
    open_accounts(a, "alice")
    with Pyro5.api.Proxy(f"PYRO:{CLUSTER_ID}@{a.address}") as asked:
        assert [row["node"] for row in asked.status()["nodes"]] == ["a"]
        page = asked.objects("a")
        assert [tuple(name) for name in page] == [("Account", "alice")]
        assert list(asked.objects("a", page[-1])) == []


def test_it_answers_only_to_whom_the_rules_allow_it_and_nodes_ask_each_other_as_themselves(cluster):
    secrets = {name: name.encode() * 32 for name in ("user", "stranger", "node")}
    keys = {name: SharedKey(name, secret) for name, secret in secrets.items()}
    rules = Rules.parse(
        f"""
        [[rule]]
        effect = "allow"
        principals = ["user", "node"]
        objects = ["Account/*", "{CLUSTER_ID}"]
        """
    )
    options = {
        "authentication": Authentication(keys=secrets),
        "authorization": Authorization(rules=rules),
        "itself": Itself(credentials=keys["node"]),
    }
    a, b = cluster("a", **options), cluster("b", **options)
    renewed(a, b)
    with account(b, "alice", credentials=keys["user"]) as proxy:
        proxy.deposit(1)
    with desk(a, credentials=keys["user"]) as asked:
        assert asked.migrate("Account/alice", "a")["node"] == "a"
    with desk(a, credentials=keys["stranger"]) as asked, pytest.raises(errors.NotAuthorized):
        asked.status()
