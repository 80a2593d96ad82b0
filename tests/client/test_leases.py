"""The keeper of leases, with servers that are asked only in the test, and time that is told."""

import gc

import pytest

from objserver import errors
from objserver.client.leases import RENEWALS_PER_LEASE, UNKNOWN_LEASE_S, WAIT_MAX_S, LeaseKeeper
from objserver.references import DAEMON_ID, Location, Reference

LEASE_S = 30.0
HERE = Location("localhost", 1)
THERE = Location("localhost", 2)


def reference(name, location=HERE):
    return Reference("PYRO", f"~{name}", location)


class Servers:
    """Remember what they are told; those in `dead` cannot be reached."""

    def __init__(self):
        self.said = []
        self.dead = set()
        self.lease = LEASE_S

    def ask(self, daemon, method, argument):
        assert daemon.object_id == DAEMON_ID
        if daemon.location in self.dead:
            raise errors.ConnectFailed("nobody listens")
        self.said.append((daemon.location.port, method, argument))
        return self.lease if method == "renew" else None

    def heard(self):
        said, self.said = self.said, []
        return said


@pytest.fixture
def servers():
    return Servers()


@pytest.fixture
def keeper(monkeypatch):
    keeper = LeaseKeeper()
    keeper._started = True  # the test is its thread
    return keeper


def turn(keeper, now):
    keeper.take(0)
    keeper.speak(now)


@pytest.mark.parametrize("lease", [1e300, float("inf")])
def test_a_lease_without_end_is_waited_for_no_longer_than_a_clock_goes(keeper, servers, lease):
    assert keeper.wait_s(0.0) is None
    servers.lease = lease
    held = keeper.arrived(reference("a"), servers.ask)
    turn(keeper, 100.0)
    keeper.take(0)
    assert keeper.wait_s(100.0) == WAIT_MAX_S
    del held


def test_what_arrives_is_renewed_at_once(keeper, servers):
    lease = keeper.arrived(reference("a"), servers.ask)
    turn(keeper, 100.0)
    assert servers.heard() == [(1, "renew", ["~a"])]
    assert lease.arrivals == 1


def test_it_is_renewed_three_times_in_a_lease(keeper, servers):
    lease = keeper.arrived(reference("a"), servers.ask)
    for now in range(31):
        turn(keeper, float(now))
    assert len(servers.heard()) == 1 + RENEWALS_PER_LEASE
    assert lease is not None


def test_two_of_one_server_are_renewed_in_one_call(keeper, servers):
    leases = [keeper.arrived(reference(name), servers.ask) for name in "ab"]
    leases.append(keeper.arrived(reference("c", THERE), servers.ask))
    turn(keeper, 0.0)
    assert sorted(servers.heard()) == [(1, "renew", ["~a", "~b"]), (2, "renew", ["~c"])]


def test_the_same_reference_twice_is_one_lease(keeper, servers):
    first, second = (keeper.arrived(reference("a"), servers.ask) for _ in range(2))
    assert first is second
    assert first.arrivals == 2


def test_the_last_to_drop_it_releases_all_that_came(keeper, servers):
    first, second = (keeper.arrived(reference("a"), servers.ask) for _ in range(2))
    turn(keeper, 0.0)
    servers.heard()
    del first
    turn(keeper, 1.0)
    assert servers.heard() == []
    del second
    gc.collect()
    turn(keeper, 2.0)
    assert servers.heard() == [(1, "release", {"~a": 2})]


def test_after_that_the_server_is_not_spoken_to(keeper, servers):
    lease = keeper.arrived(reference("a"), servers.ask)
    turn(keeper, 0.0)
    del lease
    turn(keeper, 1.0)
    servers.heard()
    for now in range(2, 100):
        turn(keeper, float(now))
    assert servers.heard() == []
    assert not keeper._holds
    assert not keeper._asks
    assert not keeper._dropped
    assert not keeper._next


def test_dropped_and_come_again_before_anybody_was_told(keeper, servers):
    """The server must not be told to release what is held again; the count goes with the last."""
    first = keeper.arrived(reference("a"), servers.ask)
    del first
    second = keeper.arrived(reference("a"), servers.ask)
    turn(keeper, 0.0)
    assert servers.heard() == [(1, "renew", ["~a"])]
    del second
    turn(keeper, 1.0)
    assert servers.heard() == [(1, "release", {"~a": 2})]


def test_dropped_at_once_is_released_without_a_renewal(keeper, servers):
    lease = keeper.arrived(reference("a"), servers.ask)
    del lease
    turn(keeper, 0.0)
    assert servers.heard() == [(1, "release", {"~a": 1})]


def test_a_server_that_cannot_be_asked_is_asked_again_and_holds_up_nobody(keeper, servers):
    leases = [keeper.arrived(reference("a"), servers.ask), keeper.arrived(reference("b", THERE), servers.ask)]
    servers.dead = {HERE}
    turn(keeper, 0.0)
    assert servers.heard() == [(2, "renew", ["~b"])]
    servers.dead = set()
    turn(keeper, UNKNOWN_LEASE_S / RENEWALS_PER_LEASE + 0.1)
    assert servers.heard() == [(1, "renew", ["~a"])]
    assert leases


@pytest.mark.parametrize("answer", [None, "soon", -1.0, 0.0, True])
def test_a_server_that_answers_nonsense_is_asked_again_soon(keeper, servers, answer):
    servers.lease = answer
    lease = keeper.arrived(reference("a"), servers.ask)
    turn(keeper, 0.0)
    servers.heard()
    turn(keeper, UNKNOWN_LEASE_S / RENEWALS_PER_LEASE + 0.1)
    assert servers.heard() == [(1, "renew", ["~a"])]
    assert lease


def test_a_release_that_cannot_be_told_is_left_to_the_lease(keeper, servers):
    lease = keeper.arrived(reference("a"), servers.ask)
    servers.dead = {HERE}
    turn(keeper, 0.0)
    del lease
    turn(keeper, 1.0)
    servers.dead = set()
    turn(keeper, 50.0)
    assert servers.heard() == []
    assert not keeper._dropped


def test_the_thread_begins_with_the_first_lease(servers):
    keeper = LeaseKeeper()
    assert not keeper._started
    lease = keeper.arrived(reference("a"), servers.ask)
    assert keeper._started
    assert lease
