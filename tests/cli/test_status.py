"""`objserver status` and `objserver top`, in a pipe and in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import deque

from click.testing import CliRunner

import objserver
from objserver import Proxy
from objserver.cli.main import main
from objserver.cli.status import _curve
from tests.cluster.conftest import cluster, disappear, renewed

__all__ = ["cluster"]


def deposit(node, key):
    with Proxy(f"PYRO:Account/{key}@{node.address}", timeout_s=20) as account:
        account.deposit(1)


def in_terminal(*args, columns=120, stages=()):
    """What the command shows in a terminal.  In each of `stages`, when a text is there, something is done, or
    a key pressed."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "objserver", *args]
    with subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env={**environment, "TERM": "xterm-256color"}
    ) as process:
        os.close(its)
        shown, stages = "", list(stages)
        try:
            while data := os.read(ours, 65536):
                shown += re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", data.decode(errors="replace"))
                if stages and stages[0][0] in shown:
                    _, act = stages.pop(0)
                    os.write(ours, act.encode()) if isinstance(act, str) else act()
        except OSError:  # the other end has closed
            pass
        os.close(ours)
    assert process.returncode == 0, shown
    return shown


def test_lines_with_tabs_and_json(cluster):
    a, b = cluster("a"), cluster("[b]")
    for key in ("ann", "bob"):
        deposit(a, key)
    renewed(a, b)
    lines = CliRunner().invoke(main, ["status", "--at", b.address]).output.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [["[b]", b.address, "up"], ["a", a.address, "up"]]
    assert lines[1].split("\t")[4:6] == ["2", "2"]
    assert lines[1].split("\t")[-1] == objserver.__version__
    found = json.loads(CliRunner().invoke(main, ["status", "--at", b.address, "--json"]).output)
    assert (found["cluster"], found["answered"]) == ("bank", "[b]")
    assert [(row["node"], row["owned"]) for row in found["nodes"]] == [("[b]", 0), ("a", 2)]


def test_a_terminal_gets_a_table_that_fits(cluster):
    a, b = cluster("a"), cluster("[b]")
    disappear(b)
    wide = in_terminal("status", "--at", a.address, columns=120)
    assert "cluster bank   " in wide
    assert re.search(r"node +address +state +lease +owned +active +calls/s", wide)
    assert re.search(rf"\[b\] +{b.address} ", wide)
    narrow = in_terminal("status", "--at", a.address, columns=60)
    assert "…" not in narrow
    assert "release" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_top_goes_on_until_q(cluster):
    a = cluster("a")
    shown = in_terminal("top", "--at", a.address, "--interval", "0.1", stages=[("q quits", "q")])
    assert "last 20 s" in shown


def test_top_shows_itself_once_into_a_pipe(cluster):
    a = cluster("a")
    done = CliRunner().invoke(main, ["top", "--at", a.address])
    assert done.exit_code == 0
    assert done.output.count("cluster bank") == 1
    assert f"{a.address}   up" in done.output


def test_top_is_answered_by_another_node_when_the_one_that_it_asks_ends(cluster):
    a, b = cluster("a"), cluster("b")
    renewed(a, b)
    stages = [("a has answered", a.stop), ("b has answered", "q")]
    in_terminal("top", "--at", a.address, "--interval", "0.1", stages=stages)


def test_the_curve_of_the_most_is_the_highest():
    assert _curve(deque([0.0, 50.0, 100.0]), 100.0) == "▁▅█"
    assert _curve(deque([0.0, 0.0]), 0.0) == "▁▁"
