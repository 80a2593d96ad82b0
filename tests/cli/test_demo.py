"""The demo as a user starts it: it must succeed, and say what it did."""

import os
import re
import signal
import subprocess
import sys

COMMAND = [sys.executable, "-m", "objserver.cli.demo"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "COLUMNS"}


def test_a_small_demo_succeeds_and_tells_what_it_did(tmp_path):
    result = subprocess.run(
        [*COMMAND, "--modules", "20", "--seconds", "1", "--clients", "3", "--keep", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("bank", "index", "search", "recoveries", "Account/alice", "Account/pyro5", "calls/s", "p50"):
        assert name in result.stdout
    assert "VIOLATED" not in result.stdout
    assert "…" not in result.stdout  # rich's sign for what it cut
    assert re.search(r"which modules contain 'import'\?\n\d+ of 20 modules; most lines in \w", result.stdout)
    assert (tmp_path / "demo.db").stat().st_size > 0


def _runs(pid: int) -> bool:
    """Not one that has ended, and that nobody has taken note of yet."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_sigterm_ends_the_children_too(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "--keep", str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        # The first line comes when the name server and the object server run.
        assert "object server at" in process.stdout.readline()
        children = _children(process.pid)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert len(children) >= 2
    assert process.returncode == 128 + signal.SIGTERM
    assert [pid for pid in children if _runs(pid)] == []


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
