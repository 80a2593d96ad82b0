"""`objserver serve --workers N`: several processes that are one server."""

from __future__ import annotations

import os
import pathlib
import signal
import threading

import Pyro5.api
import pytest
from click.testing import CliRunner

from objserver import Proxy
from objserver.cli.main import main
from objserver.references import CLUSTER_ID, Location
from tests.cli.test_serve import start

MORE = """
import os
import objserver

@objserver.expose
class Account(Counter):
    @objserver.readonly
    def pid(self):
        return os.getpid()
"""


@pytest.fixture
def served(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """The address of two workers, and the process that supervises them."""
    monkeypatch.setattr("tests.cli.test_serve.MODULE", f"{start.__globals__['MODULE']}{MORE}")
    options = ["counting:Account", "--activation", "persistent", "--store", f"sqlite:///{tmp_path}/a.db"]
    process, uris = start(tmp_path, *options, "--workers", "2")
    address = uris["Account"].partition("@")[2]
    with Proxy(f"PYRO:{CLUSTER_ID}@{address}", timeout_s=30) as desk:
        while [row["state"] for row in desk.status()["nodes"]] != ["up", "up"]:
            threading.Event().wait(0.05)
    yield address, process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_objects_are_spread_and_each_is_served_by_one(served) -> None:
    address, _ = served
    pids: dict[int, int] = {}
    for key in range(12):
        with Proxy(f"PYRO:Account/{key}@{address}", timeout_s=20) as ours:
            assert ours.add(1) == 1
            pids[key] = ours.pid()
        with Pyro5.api.Proxy(f"PYRO:Account/{key}@{address}") as stock:
            assert stock.add(1) == 2
            assert stock.pid() == pids[key]
    assert len({*pids.values()}) == 2
    with Proxy(f"PYRO:{CLUSTER_ID}@{address}", timeout_s=20) as desk:
        nodes = desk.status()["nodes"]
    assert [row["node"] for row in nodes] == [f"{address}/0", f"{address}/1"]
    assert sum(row["sent_on"] for row in nodes) == 0  # what comes in is there


def test_a_worker_is_killed_and_callers_notice_nothing_but_time(served) -> None:
    address, process = served
    with Proxy(f"PYRO:Account/alice@{address}", timeout_s=30) as alice:
        alice.add(1)
        for n in range(2, 5):
            victim = alice.pid()
            os.kill(victim, signal.SIGKILL)
            assert alice.add(1) == n
            assert alice.pid() != victim
    assert process.poll() is None


def test_the_entry_is_single_until_it_is_said_to_be_distributed(served) -> None:
    address, _ = served

    def entry(*args: str) -> str:
        result = CliRunner().invoke(main, ["cluster", "entry", *args, "--at", address])
        assert result.exit_code == 0, result.output
        return result.output.strip()

    assert entry() == f"single: {address}"
    with Proxy(f"PYRO:Account/alice@{address}", timeout_s=20) as alice:
        alice.add(1)
        assert entry("distributed") == "distributed"
        pool = alice._objserver_stub.pool
        while len(pool._entries.of(Location.parse(address), 0.0)) < 3:
            pool._ask_at = 0.0
            alice.add(1)
            threading.Event().wait(0.05)
    assert entry("single", "--address", address) == f"single: {address}"
    refused = CliRunner().invoke(main, ["cluster", "entry", "--address", "h:1", "--at", address])
    assert refused.exit_code == 2
    assert "--address goes with: entry single" in refused.output


def test_ctrl_c_ends_all_of_it_in_good_order(served, tmp_path: pathlib.Path) -> None:
    address, process = served
    with Proxy(f"PYRO:Account/alice@{address}", timeout_s=20) as alice:
        alice.add(1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 0
    assert "started again" not in (tmp_path / "stderr").read_text()


def test_a_hangup_is_for_all_of_them(served, tmp_path: pathlib.Path) -> None:
    _, process = served
    process.send_signal(signal.SIGHUP)
    while (tmp_path / "stderr").read_text().count("were read again") < 2:
        assert process.poll() is None
        threading.Event().wait(0.05)
