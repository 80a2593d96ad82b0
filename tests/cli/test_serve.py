"""`objserver serve` as a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

import objserver
from objserver import Proxy, errors
from objserver.cli.main import main
from objserver.naming import NameServerDaemon
from objserver.naming.leases import Lease
from objserver.references import CLUSTER_ID
from objserver.testing.postgres import PostgresServer

# The children run elsewhere, where a relative PYTHONPATH would not find the package.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(objserver.__file__).parents[1])}

MODULE = """
from objserver import expose, oneway

@expose
class Counter:
    def __init__(self):
        self.n = 0
    def add(self, k):
        self.n += k
        return self.n
    @oneway
    def lose(self):
        raise ValueError("lost it")

@expose
class Needy:
    def __init__(self, owner, limit=1):
        self.owner = owner
    def ask(self):
        return self.owner

def make(key, surprise):
    return Counter()
"""


def start(directory: pathlib.Path, *args: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The process, and the first word of each line before `ready` with the last."""
    (directory / "counting.py").write_text(MODULE)
    command = [sys.executable, "-m", "objserver", "serve", "counting:Counter", *args]
    with open(directory / "stderr", "w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            process_group=0,
        )
    assert process.stdout is not None
    said = {}
    for line in process.stdout:
        if line == "ready\n":
            return process, said
        said[line.split()[0]] = line.split()[-1]
    raise AssertionError(f"it ended with {process.wait(10)} before it was ready")


def told(directory: pathlib.Path) -> str:
    """Standard error of the process."""
    return (directory / "stderr").read_text()


def end(process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> int:
    process.send_signal(how)
    process.communicate(timeout=30)
    return process.returncode


def test_state_survives_and_signals_end_it_well(tmp_path: pathlib.Path) -> None:
    options = ["--activation", "persistent", "--threading", "serial", "--store", "sqlite:///c.db"]
    for total, how in ((5, signal.SIGTERM), (10, signal.SIGINT)):
        process, said = start(tmp_path, *options)
        with Proxy(said["Counter"].replace("Counter", "Counter/a")) as counter:
            assert counter.add(5) == total
        assert end(process, how) == 0
        one = said["Counter"].replace("Counter", "Counter/KEY")
        assert f"Counter: one object is {one}, with a KEY of your choice\n" in told(tmp_path)


def test_names_come_and_go(tmp_path: pathlib.Path) -> None:
    with NameServerDaemon("localhost:0") as daemon:
        process, said = start(tmp_path, "--name", "c", "--nameserver", daemon.address)
        try:
            assert daemon.names.list(prefix="c") == {"c": said["c"]}
            with Proxy(f"PYRO:{said['c'].removeprefix('PYRO:')}") as counter:
                assert counter.add(1) == 1
        finally:
            assert end(process) == 0
        assert daemon.names.list(prefix="c") == {}


def test_a_name_taken_over_stays(tmp_path: pathlib.Path) -> None:
    with NameServerDaemon("localhost:0") as daemon:
        process, _ = start(tmp_path, f"--nameserver={daemon.address}")
        daemon.names.register("Counter", "PYRO:other@localhost:1", safe=False)
        assert end(process) == 0
        assert daemon.names.list(prefix="Counter") == {"Counter": "PYRO:other@localhost:1"}


def test_a_server_that_was_killed_gets_its_name_again_when_it_is_restarted(tmp_path: pathlib.Path) -> None:
    with NameServerDaemon("localhost:0") as daemon:
        process, _ = start(tmp_path, f"--nameserver={daemon.address}")
        process.kill()
        process.communicate()
        before = daemon.names.list(prefix="Counter")
        for lease in daemon.names._index.leases():
            daemon.names._leases.change(lambda lease=lease: {lease: Lease(1.0)})
        process, said = start(tmp_path, f"--nameserver={daemon.address}")
        assert daemon.names.list(prefix="Counter") == {"Counter": said["Counter"]} != before
        assert end(process) == 0
        assert daemon.names.list(prefix="Counter") == {}


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["nomodule:X"], 1, "cannot import nomodule"),
        (["json:nothing"], 1, "json has no nothing"),
        (["json"], 2, "MODULE:NAME"),
        (["json.py:loads"], 2, "json.py is a file, not a module; write json:loads\n"),
        (["./shop/json.py:loads"], 2, "write json:loads in the directory shop\n"),
        (["json:loads", "json:dumps", "--name", "x"], 2, "single"),
        (["json:loads", "pickle:loads"], 2, "loads is given twice, by json:loads and pickle:loads"),
        (["json:loads", "--name", ""], 2, "--name is empty"),
        (["json:loads", "--name", "Pyro.Daemon"], 2, "the name Pyro.Daemon is reserved"),
        (["json:loads", "--activation", "persistent"], 2, "add for example --store sqlite:///bank.db"),
        (["json:loads", "--store", "bank.db"], 1, "did you mean sqlite:///bank.db?"),
        (["json:loads", "--address", "9091"], 2, "'9091' is a port without a host; write localhost:9091"),
        (["json:loads", "--address", "::"], 2, "'::' is not host:port"),
        (["json:loads", "--address", "localhost"], 2, "lacks a port; write for example localhost:9091"),
        (["json:loads", "--address", "0.0.0.0:0"], 1, "add --insecure if that is what you want"),
        (["json:JSONDecoder"], 1, "exposes nothing"),
    ],
)
def test_what_cannot_be_served_is_said(args: list[str], code: int, sentence: str) -> None:
    result = CliRunner().invoke(main, ["serve", *args])
    assert result.exit_code == code
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("counting:Needy", "nobody passes arguments to its __init__ (missing a required argument: 'owner')"),
        ("counting:make", "is called with the key of an object (missing a required argument: 'surprise')"),
    ],
)
def test_what_nobody_could_make_is_refused_before_it_is_served(
    tmp_path: pathlib.Path, target: str, sentence: str
) -> None:
    (tmp_path / "counting.py").write_text(MODULE)
    command = [sys.executable, "-m", "objserver", "serve", target]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr


def test_without_a_name_server_nothing_is_served() -> None:
    result = CliRunner().invoke(main, ["serve", "json:loads", "--nameserver", "localhost:1"])
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == (
        "Error: no name server answers at localhost:1; start one with `objserver nameserver`\n"
    )


def test_a_name_that_was_never_made_is_not_said_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Proxy("PYRO:Pyro.NameServer@localhost:1")
    monkeypatch.setattr("objserver.cli.serve.name_server_proxy", lambda address, timeout_s: gone)
    result = CliRunner().invoke(main, ["serve", "json:loads", "--nameserver", "localhost:1"])
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "Error: no name server answers at localhost:1; start one with `objserver nameserver`\n"
    )


def test_rules_are_kept_and_decisions_written_down(tmp_path: pathlib.Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rule]]\neffect = "allow"\nprincipals = "*"\nobjects = "*"\n')
    process, said = start(tmp_path, "--rules", "rules.toml", "--audit", "audit.jsonl")
    with pytest.raises(errors.NotAuthorized), Proxy(said["Counter"]) as counter:
        counter.add(5)
    assert end(process) == 0
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["object"], record["allowed"]) == ("Counter", False)
    assert record["reason"] == "nothing could be allowed here"


def test_failures_are_logged_and_with_verbose_more(tmp_path: pathlib.Path) -> None:
    moment = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    for options in ([], ["--verbose"]):
        process, said = start(tmp_path, *options)
        with Proxy(said["Counter"]) as counter:
            counter.lose()
            counter.add(1)  # serial: when this returns, the other has failed
        with socket.create_connection(("localhost", int(said["Counter"].rpartition(":")[2]))) as stranger:
            stranger.sendall(b"nonsense" * 10)
            stranger.recv(1000)
        assert end(process) == 0
        logged = told(tmp_path)
        assert re.search(rf"{moment} WARNING objserver.adapter: oneway Counter.lose failed$", logged, re.M)
        assert "ValueError: lost it" in logged
        assert (re.search(rf"{moment} INFO objserver.server: ", logged, re.M) is not None) == bool(options)


# -- clusters ----------------------------------------------------------------------------------------


def await_renewal(desk: Proxy, node: int) -> None:
    left = desk.status()["nodes"][node]["lease_s"]
    while (now := desk.status()["nodes"][node]["lease_s"]) <= left:
        left = now


def test_nodes_of_a_cluster_are_started(postgres: PostgresServer, tmp_path: pathlib.Path) -> None:
    """... with a placement, and what is pinned."""
    url = postgres.new_url()
    options = ["--activation", "persistent", "--store", url, "--cluster", "shop", "--placement", "hash"]
    started = []
    try:
        for node in "ab":
            started.append(start(tmp_path, *options, "--node", node, "--pin", "Counter=b"))
        (_, a), (_, b) = started
        addresses = [said["Counter"].partition("@")[2] for said in (a, b)]
        with Proxy(f"PYRO:{CLUSTER_ID}@{addresses[0]}", timeout_s=20) as desk:
            assert [row["address"] for row in desk.status()["nodes"]] == addresses
            await_renewal(desk, 0)  # a knows b now
            with Proxy(f"PYRO:Counter/x@{addresses[0]}", timeout_s=20) as counter:
                assert counter.add(2) == 2
            assert desk.where("Counter/x")["node"] == "b"
    finally:
        for process, _ in started:
            end(process)


def test_nodes_of_a_cluster_share_their_names(postgres: PostgresServer, tmp_path: pathlib.Path) -> None:
    with NameServerDaemon("localhost:0") as daemon:
        options = ["--activation", "persistent", "--store", postgres.new_url(), "--cluster", "shop"]
        options += ["--nameserver", daemon.address]
        a, said = start(tmp_path, *options, "--node", "a")
        b, at_b = start(tmp_path, *options, "--node", "b")
        try:
            assert daemon.names.list(prefix="Counter") == {"Counter": said["Counter"]}
            with Proxy("PYRONAME:Counter/x", timeout_s=20, name_servers=daemon.address) as counter:
                assert counter.add(2) == 2
                with Proxy(f"PYRO:{CLUSTER_ID}@{said['Counter'].partition('@')[2]}", timeout_s=20) as desk:
                    await_renewal(desk, 0)  # a knows b now
                end(a)
                while daemon.names.list(prefix="Counter") != {"Counter": at_b["Counter"]}:
                    assert b.poll() is None
                assert counter.add(2) == 4
        finally:
            end(a)
            end(b)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cluster", "shop"], "the nodes of a cluster share a store"),
        (["--node", "a"], "are for a node of a --cluster"),
        (["--pin", "Counter=a"], "are for a node of a --cluster"),
        (["--node-credentials", "a.toml"], "are for a node of a --cluster"),
        (["--cluster", "shop", "--store", "sqlite://", "--pin", "Counter"], "'Counter' is not TYPE=NODE"),
    ],
)
def test_what_is_amiss_with_a_node_is_said_before_it_serves(options: list[str], says: str) -> None:
    done = CliRunner().invoke(main, ["serve", "json:JSONDecoder", *options])
    assert done.exit_code == 2
    assert says in done.stderr
