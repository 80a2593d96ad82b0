"""The demo as a user starts it: it must succeed, and say what it did."""

import os
import subprocess
import sys


def test_a_small_demo_succeeds_and_tells_what_it_did(tmp_path):
    command = [sys.executable, "-m", "objserver.cli.demo", "--modules", "20", "--seconds", "1"]
    result = subprocess.run(
        [*command, "--clients", "3", "--keep", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "160"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("bank", "index", "search", "recoveries", "Account/alice", "Account/pyro5", "calls/s", "p50"):
        assert name in result.stdout
    assert "VIOLATED" not in result.stdout
    assert (tmp_path / "demo.db").stat().st_size > 0
