"""kill -9 under load: what was answered is there, once, and nobody was told anything else.

KILL_CYCLES sets how often servers are killed, on both engines together (`make soak` sets 5,000), KILL_SEED at
which moments.
"""

import os

import pytest

from objserver.testing.kill_server import MOMENTS, OUTSIDE
from objserver.testing.kills import CYCLES_MAX, run_apart
from objserver.testing.postgres import Unavailable, binaries

CYCLES = int(os.environ.get("KILL_CYCLES", "60"))
SEED = os.environ.get("KILL_SEED", "1")


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_every_answered_call_is_there_once_whatever_is_killed(engine):
    if engine == "postgresql":
        try:
            binaries()
        except Unavailable as reason:
            pytest.skip(f"no PostgreSQL: {reason}")
    cycles = CYCLES // 2
    reports, total = run_apart("--engine", engine, "--cycles", str(cycles), "--seed", SEED)
    counts, moments = total["counts"], total["moments"]
    assert [report["wrong"] for report in reports] == [[] for _ in range(-(-cycles // CYCLES_MAX))]
    assert counts["cycles"] >= cycles
    # and it was put to the test
    if cycles >= CYCLES_MAX:
        assert {*MOMENTS, OUTSIDE} == {*moments}
    assert counts["answered"] > 10 * cycles
    for what in ("repeated", "messages", "unknown", "told", "clients killed", "checked, unknown"):
        assert counts[what] > 0, what
    if engine == "postgresql":
        assert counts["crashes of PostgreSQL"] > 0
