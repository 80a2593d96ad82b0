"""`objserver migrate` and `objserver cluster`, against nodes in this process."""

from __future__ import annotations

import json
import threading

from click.testing import CliRunner, Result

from objserver import ObjectServer, Proxy, expose
from objserver.cli.main import main
from tests.cluster.conftest import cluster, disappear, renewed, where

__all__ = ["cluster"]


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def deposit(node, key):
    with Proxy(f"PYRO:Account/{key}@{node.address}", timeout_s=20) as account:
        return account.deposit(1)


def test_an_object_is_moved(cluster):
    a, b = cluster("a"), cluster("b")
    deposit(a, "alice")
    renewed(a, b)
    done = run("migrate", "Account/alice", "--to", "b", "--at", a.address)
    assert (done.exit_code, done.output) == (0, f"Account/alice is at b, {b.address}\n")
    assert where(a, "alice") == b.address
    assert deposit(a, "alice") == 2
    done = run("migrate", "Account/alice", "--to", "a", "--at", a.address, "--json")
    assert json.loads(done.output) == {"object": "Account/alice", "node": "a", "address": a.address}


def test_what_cannot_be_moved_was_not_touched_and_the_exit_code_says_so(cluster):
    a, b = cluster("a"), cluster("b")
    deposit(a, "alice")
    renewed(a, b)
    done = run("migrate", "Account/alice", "--to", "bee", "--at", a.address)
    assert (done.exit_code, done.stderr) == (3, "Error: no node 'bee' takes objects now; there are a, b\n")
    done = run("migrate", "Account/alcie", "--to", "b", "--at", a.address)
    assert done.exit_code == 3
    assert "Account/alcie was never stored" in done.stderr


def test_who_has_what_is_listed(cluster):
    a, b = cluster("a"), cluster("b")
    for node, key in ((a, "ann"), (a, "bob"), (b, "zoe")):
        deposit(node, key)
    at = ("--at", a.address)
    assert run("cluster", "objects", *at).output == "a\tAccount/ann\na\tAccount/bob\nb\tAccount/zoe\n"
    assert run("cluster", "objects", *at, "--node", "b").output == "b\tAccount/zoe\n"
    found = json.loads(run("cluster", "objects", *at, "--limit", "1", "--json").output)
    assert found == {"a": ["Account/ann"], "b": ["Account/zoe"]}
    assert run("cluster", "where", "Account/zoe", *at).output == f"Account/zoe is at b, {b.address}\n"
    assert "is nobody's" in run("cluster", "where", "Account/nobody", *at).output
    nobody = json.loads(run("cluster", "where", "Account/nobody", *at, "--json").output)
    assert nobody == {"object": "Account/nobody", "node": None, "address": None}
    assert run("cluster", "objects", *at, "--node", "c").exit_code == 3


def test_a_node_is_drained(cluster):
    a, b = cluster("a"), cluster("b")
    deposit(b, "alice")
    renewed(a, b)
    done = run("cluster", "drain", "b", "--at", a.address)
    assert (done.exit_code, done.output) == (0, "b is drained\n")
    assert deposit(b, "alice") == 2
    assert where(a, "alice") == a.address
    done = run("cluster", "drain", "a", "--at", a.address)
    assert done.exit_code == 3
    assert "nobody would take over from 'a'" in done.stderr


def test_a_drain_that_takes_too_long_is_a_failure_and_goes_on(cluster):
    begun, end = threading.Event(), threading.Event()

    @expose
    class Slow:
        def __init__(self):
            self.calls = 0

        def deposit(self, amount: int) -> int:
            begun.set()
            assert end.wait(20)
            self.calls += 1
            return self.calls

    a, b = cluster("a", cls=Slow), cluster("b", cls=Slow)
    renewed(a, b)
    caller = threading.Thread(target=deposit, args=(b, "alice"))
    caller.start()
    assert begun.wait(20)
    done = run("cluster", "drain", "b", "--at", a.address, "--timeout", "0.1")
    end.set()
    caller.join()
    assert done.exit_code == 1
    assert "calls still run at b after 0.1 s" in done.stderr


def test_of_several_addresses_the_first_that_answers_is_asked(cluster):
    a, b = cluster("a"), cluster("b")
    deposit(a, "alice")
    gone = b.address
    disappear(b)
    done = run("cluster", "where", "Account/alice", "--at", f"{gone},{a.address}")
    assert done.output == f"Account/alice is at a, {a.address}\n"


def test_a_server_that_is_no_node_and_a_place_where_nobody_is(tmp_path):
    # At a port, this process might remember the node of a test before.
    with ObjectServer(f"./u:{tmp_path}/s") as server:
        done = run("cluster", "drain", "a", "--at", server.address)
        assert done.exit_code == 3
        assert f"the server at {server.address} is no node of a cluster" in done.stderr
        assert "--cluster NAME" in done.stderr
    done = run("cluster", "drain", "a", "--at", server.address)
    assert done.exit_code == 3
    assert server.address in done.stderr
    done = run("cluster", "drain", "a", "--at", f"{server.address},localhost:1")
    assert done.exit_code == 3
    assert done.stderr == f"Error: no server answers at {server.address} or localhost:1\n"
    assert run("status", "--at", "9092").exit_code == 2
