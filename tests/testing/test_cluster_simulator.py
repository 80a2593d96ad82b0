"""Runs of clusters in the simulator: `make test` has twelve virtual minutes of them, `make soak` as many
hours as it is told.  A run has two to five nodes."""

import os

import pytest

from objserver.testing.cluster_simulator import (
    GENTLE,
    KINDS,
    ClusterPlan,
    ClusterSimulation,
    simulate_cluster,
)
from objserver.testing.faulty_store import Disk
from objserver.testing.network import Weather
from objserver.testing.simulate import run
from objserver.testing.world import World

HOURS = float(os.environ.get("SIMULATED_HOURS", "0.2"))
PARTS = 2
"""Tests that share the hours, so that they run side by side."""
FIRST_SEED = int(os.environ.get("SIMULATED_FROM", "0"))


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_done_twice_or_left_undone_in_a_cluster(part):
    results = run(FIRST_SEED + part * 100_000, HOURS / PARTS, kind=ClusterSimulation)
    assert [(result.seed, result.failures) for result in results if result.failures] == []
    calls = sum(sum(result.calls.values()) for result in results)
    assert sum(result.calls["answered"] for result in results) > 0.4 * calls  # or it would prove little
    assert sum(result.faults for result in results) > 0.6 * sum(result.virtual_s for result in results)


@pytest.mark.parametrize("seed", range(6))
def test_no_call_fails_while_objects_move_and_nodes_stop_and_join(seed):
    gently = {"kinds": GENTLE, "weather": Weather(), "disk": Disk(), "node_lease_s": 3.0, "stock": 0.5}
    result = simulate_cluster(seed, 30.0, faults_per_s=1.5, **gently)
    assert result.failures == ()
    assert not result.calls.get("unknown")


def test_objects_do_move_in_it():
    lines = []
    simulate_cluster(2, 10.0, lines.append, kinds=("migrate",), faults_per_s=3.0)
    assert any(" migrated <server" in line for line in lines)
    assert any(" release 1" in line for line in lines)


def test_stock_clients_are_relayed_in_it():
    lines = []
    result = simulate_cluster(1, 10.0, lines.append, stock=1.0, kinds=("migrate",))
    assert result.failures == ()
    assert any(" stock client" in line and "deposit" in line for line in lines)


def test_the_same_seed_is_the_same_run_of_a_cluster():
    assert simulate_cluster(4, 10.0) == simulate_cluster(4, 10.0)
    assert simulate_cluster(4, 10.0).trace != simulate_cluster(5, 10.0).trace


def test_every_kind_of_fault_is_planned_for_some_cluster():
    plans = [ClusterPlan.of(World(seed).random) for seed in range(40)]
    assert {kind for plan in plans for kind in plan.kinds} == set(KINDS)
    assert {plan.servers for plan in plans} == {2, 3, 4, 5}
    assert not any(plan.gentle for plan in plans)
