"""The production code of clusters made wrong on purpose: the simulator must find each mutant within 40 seeds.

As in `test_mutants`: each takes away one part of what keeps an object in one place, or brings back a bug that
the simulator has found.
"""

import pytest

from objserver.adapter import adapter as adapter_module
from objserver.client.attempts import Attempts
from objserver.client.pool import ConnectionPool
from objserver.client.stub import Stub
from objserver.cluster.node import ClusterNode
from objserver.cluster.relay import Relays
from objserver.cluster.routes import Routes
from objserver.storage import Committer, Record, sqlite_cluster
from objserver.storage import sqlite as sqlite_module
from objserver.testing.cluster_simulator import GENTLE, simulate_cluster
from objserver.testing.faulty_store import Disk
from objserver.testing.network import Weather

SEEDS = 40
SECONDS = 30.0
FROM = "first seed"
"""Of those that need many, so that the tests take no longer than they have to."""


def replaced(monkeypatch, module, name, before, after):
    statement = getattr(module, name)
    assert before in statement
    monkeypatch.setattr(module, name, statement.replace(before, after))


# -- whose an object is --------------------------------------------------------------------------------


def a_life_that_is_over_acquires(monkeypatch):
    """The store does not look whether who acquires is still a node."""
    monkeypatch.setattr(sqlite_cluster, "_IS_UP", "SELECT 1 WHERE ? <> '' AND ? > 0")


def lease_only(monkeypatch):
    """Who had the lease when it acquired commits, and nobody looks at the epoch and the version."""
    replaced(monkeypatch, sqlite_module, "_UPDATE", " AND o.epoch = v.column8 AND o.version = v.column9", "")


def no_epoch(monkeypatch):
    """The version alone decides."""
    replaced(monkeypatch, sqlite_module, "_UPDATE", " AND o.epoch = v.column8", "")


def a_lease_is_for_ever(monkeypatch):
    """What a node owned that is gone stays its own."""
    for name in ("_LIVES", "_MINE", "_IS_LIVE"):
        replaced(monkeypatch, sqlite_cluster, name, "expires_at > ?", "(expires_at > 0 OR ? > 0)")


def two_may_make_it(monkeypatch):
    """What was never stored is not reserved: it is whose change comes first."""
    monkeypatch.setattr(sqlite_cluster, "_RESERVE", "SELECT 1 WHERE ? <> '' AND ? <> '' AND ? <> ''")


def hand_over_without_epoch(monkeypatch):
    """Who gives an object away may still commit to it."""
    replaced(monkeypatch, sqlite_cluster, "_GIVE", ", epoch = epoch + 1", "")


def replies_of_the_deposed(monkeypatch):
    """Reads are answered from memory, whoever has the object by now."""
    monkeypatch.setattr(Committer, "confirm", lambda self, read, done: done(None))


def a_life_never_ends(monkeypatch):
    """A node that is taken for dead does not begin again."""
    monkeypatch.setattr(ClusterNode, "_begin_again", lambda self, over: None)


# -- where an object is --------------------------------------------------------------------------------


def routes_are_believed_for_ever(monkeypatch):
    """A node sends calls after an object to where it once was, also those that were sent to it."""
    monkeypatch.setattr(Routes, "keep", lambda self, lives: None)
    monkeypatch.setattr(Routes, "forget", lambda self, type, key: None)
    monkeypatch.setattr(
        Routes, "find", lambda self, type, key, now: self._routes.get((type, key), (None, 0))[0]
    )
    monkeypatch.setattr(Attempts, "moved", property(lambda self: False, lambda self, value: None))


def clients_believe_for_ever(monkeypatch):
    """A proxy asks nobody but the node that it was sent to."""
    ways = ConnectionPool._ways

    def only_there(self, tried):
        found = ways(self, tried) if self._route is None else [self._route]
        return [way for way in found if way not in tried]

    def may_be_elsewhere(self, greeting, tried, problem):
        tried.add(greeting.location)
        return bool(self._ways(tried))

    monkeypatch.setattr(ConnectionPool, "_ways", only_there)
    monkeypatch.setattr(ConnectionPool, "may_be_elsewhere", may_be_elsewhere)


def moved_is_taken_for_an_answer(monkeypatch):
    """Who is told that the object is elsewhere believes that the call was made."""
    again = Stub._again

    def believing(self, method, args, kwargs, flags, call, attempts, problem=None):
        if type(problem).__name__ == "Moved":
            return None
        return again(self, method, args, kwargs, flags, call, attempts, problem)

    monkeypatch.setattr(Stub, "_again", believing)


# -- how an object moves -------------------------------------------------------------------------------


def migration_without_freeze(monkeypatch):
    """An object is given away while calls run in it."""

    def migrate(self, type, key, to, timeout_s):
        target = [node for node in self.candidates() if node.name == to]
        life, found = self._acquire((type, key))
        if isinstance(found, Record) and target:
            self._store.release([(type, key, found.epoch)], life, target[0].life)

    monkeypatch.setattr(ClusterNode, "migrate", migrate)


def queued_calls_do_not_follow(monkeypatch):
    """Those that wait when an object goes are told that it is gone."""
    perform = adapter_module.ObjectAdapter._settle

    def settle(self, invocation, value, error):
        if type(error).__name__ == "Moved" and not invocation.errand:
            error = LookupError("it is not here any more")
        return perform(self, invocation, value, error)

    monkeypatch.setattr(adapter_module.ObjectAdapter, "_settle", settle)


def drained_without_handing_over(monkeypatch):
    """A node that stops says goodbye, and its objects wait for the end of its lease."""
    monkeypatch.setattr(ClusterNode, "drain", lambda self, deadline: None)
    monkeypatch.setattr(sqlite_cluster, "_LEAVE", "SELECT ?, ?")


# -- calls that are made for others --------------------------------------------------------------------


def relays_repeat_without_a_number(monkeypatch):
    """A node that calls for a stock client repeats what may have happened."""
    proxy_of, counts, attempts = Relays._proxy, Stub.counts, Stub.attempts

    def marked(self, *args):
        proxy = proxy_of(self, *args)
        proxy._objserver_stub.pool.of_relay = True
        return proxy

    def repeatable(self, *args):
        made = attempts(self, *args)
        made.repeatable = made.repeatable or hasattr(self.pool, "of_relay")
        return made

    monkeypatch.setattr(Relays, "_proxy", marked)
    monkeypatch.setattr(
        Stub, "counts", lambda self, *args: not hasattr(self.pool, "of_relay") and counts(self, *args)
    )
    monkeypatch.setattr(Stub, "attempts", repeatable)


DEPOSED = {"kinds": ("evicted", "freeze"), "faults_per_s": 1.5, "accounts": 1, "threads": 3, "think_s": 0.3}
"""Owners that do not know yet that they are owners no more, and are asked all the same."""
APART = {
    **DEPOSED,
    "kinds": ("store apart", "evicted", "partition", "client crash"),
    "node_lease_s": 3.0,
    "servers": 2,
    "stock": 0.0,
}
"""Owners that the store does not reach, and some clients do."""
GENTLY = {
    "kinds": GENTLE,
    "weather": Weather(),
    "disk": Disk(),
    "faults_per_s": 1.5,
    "stock": 0.5,
    "node_lease_s": 3.0,
}
"""What operators do, and nothing else.  The lease is longer than anybody may wait then."""
MUTANTS = [
    (a_life_that_is_over_acquires, {}),
    (lease_only, {}),
    (no_epoch, {**DEPOSED, FROM: 10}),
    (a_lease_is_for_ever, {}),
    (two_may_make_it, {}),
    (hand_over_without_epoch, {}),
    (replies_of_the_deposed, {**APART, FROM: 10}),
    (a_life_never_ends, {"kinds": ("evicted",)}),
    (routes_are_believed_for_ever, {}),
    (clients_believe_for_ever, {}),
    (moved_is_taken_for_an_answer, {}),
    (migration_without_freeze, GENTLY),
    (queued_calls_do_not_follow, GENTLY),
    (drained_without_handing_over, GENTLY),
    (relays_repeat_without_a_number, {"stock": 0.8, FROM: 10}),
]


@pytest.mark.parametrize(("mutant", "plan"), MUTANTS)
def test_a_mutant_is_caught(mutant, plan, monkeypatch):
    mutant(monkeypatch)
    plan = {**plan}
    first = plan.pop(FROM, 0)
    for seed in range(first, SEEDS):
        failures = simulate_cluster(seed, SECONDS, **plan).failures
        if failures:
            print(f"seed {seed}: {failures[0]}")
            return
    pytest.fail(f"{SEEDS} seeds found nothing")
