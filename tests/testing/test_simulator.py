"""Runs of the simulator: `make test` has nearly five virtual hours of them, which are over 100,000 calls, and
`make soak` a thousand."""

import os
import subprocess
import sys

import pytest

from objserver.client.connection import ClientConnection
from objserver.testing.simulate import run
from objserver.testing.simulator import Plan, simulate
from objserver.testing.world import World

HOURS = float(os.environ.get("SIMULATED_HOURS", "4.7"))
PARTS = 10
"""Tests that share the hours, so that they run side by side."""
FIRST_SEED = int(os.environ.get("SIMULATED_FROM", "0"))


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_done_twice_or_left_undone(part):
    results = run(FIRST_SEED + part * 100_000, HOURS / PARTS)
    assert [(result.seed, result.failures) for result in results if result.failures] == []
    assert sum(result.virtual_s for result in results) >= HOURS / PARTS * 3600
    calls = sum(sum(result.calls.values()) for result in results)
    assert sum(result.calls["answered"] for result in results) > 0.5 * calls  # or it would prove little
    assert sum(result.faults for result in results) > 0.6 * sum(result.virtual_s for result in results)


def test_the_same_seed_is_the_same_run():
    assert simulate(5, 10.0) == simulate(5, 10.0)
    assert simulate(5, 10.0).trace != simulate(6, 10.0).trace


def test_the_same_seed_is_the_same_run_in_every_process():
    code = "from objserver.testing.simulator import simulate; print(simulate(5, 20.0).trace)"
    traces = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert traces == {simulate(5, 20.0).trace}


def test_seeds_plan_differently():
    plans = {Plan.of(World(seed).random) for seed in range(20)}
    assert len(plans) == 20


def test_a_run_tells_what_happens():
    lines = []
    result = simulate(3, 5.0, lines.append)
    assert result.failures == ()
    assert any("deposit" in line for line in lines)
    assert any("bytes on connection" in line for line in lines)
    assert any("disk server-1 commit" in line for line in lines)


def test_a_call_that_never_ends_is_found(monkeypatch):
    def call(self, *args):
        self._monotonic.__self__.sleep(1e9)

    monkeypatch.setattr(ClientConnection, "call", call)
    assert any("never ended" in failure for failure in simulate(1, 5.0).failures)
