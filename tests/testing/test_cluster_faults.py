"""A cluster of real processes, with real faults, under load: what was answered is there, once, and not stale.

CLUSTER_KILLS, CLUSTER_PAUSES, CLUSTER_PARTITIONS and CLUSTER_FAILOVERS say how many of each there are (`make
soak` sets 2,000, 2,000, 500 and 200), CLUSTER_SEED in which order they meet whom.
"""

import os

import pytest

from objserver.testing import lan
from objserver.testing.kills import run_apart
from objserver.testing.postgres import Unavailable, binaries

MANY = {"kills": 40, "pauses": 40, "partitions": 20, "failovers": 3}
SEED = os.environ.get("CLUSTER_SEED", "1")


def suffer(*kinds):
    """The counts of a run with faults of these kinds, in which nobody noticed anything."""
    try:
        binaries()
    except Unavailable as reason:
        pytest.skip(f"no PostgreSQL: {reason}")
    wanted = {kind: int(os.environ.get(f"CLUSTER_{kind.upper()}", MANY[kind])) for kind in kinds}
    options = [part for kind, count in wanted.items() for part in (f"--{kind}", str(count))]
    reports, total = run_apart(*options, "--seed", SEED, module="cluster_faults")
    counts = total["counts"]
    assert [report["wrong"] for report in reports] == [[] for _ in reports]
    # and it was put to the test
    assert {kind: counts[kind] for kind in kinds} == wanted
    for what in ("owners changed", "repeated", "messages", "clients killed", "checked, unknown"):
        assert counts[what] > 0, what
    assert counts["answered"] > 10 * sum(wanted.values())
    return counts


def test_nobody_notices_that_nodes_are_killed_and_the_database_fails_over():
    assert suffer("kills", "failovers")["killed for longer than the lease"] > 0


def test_nobody_notices_that_nodes_sleep_for_longer_than_their_lease():
    suffer("pauses")


def test_nobody_notices_that_nodes_are_cut_off():
    try:
        lan.check()
    except lan.Unavailable as reason:
        pytest.skip(f"no networks of our own: {reason}")
    counts = suffer("partitions")
    assert counts["cut off from all"] > 0
    assert counts["cut off from the database"] > 0


@pytest.mark.parametrize("mutant", ["replies leave before the commit", "replies are not recorded"])
def test_nodes_that_are_wrong_on_purpose_are_found_out(mutant):
    try:
        binaries()
    except Unavailable as reason:
        pytest.skip(f"no PostgreSQL: {reason}")
    reports, total = run_apart("--kills", "12", "--seed", "1", "--mutant", mutant, module="cluster_faults")
    assert total["wrong"], reports
