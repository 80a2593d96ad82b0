"""`objserver serve` as a process of its own."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

import objserver
from objserver import Proxy
from objserver.cli.main import main
from objserver.naming import NameServerDaemon

# The children run elsewhere, where a relative PYTHONPATH would not find the package.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(objserver.__file__).parents[1])}

MODULE = """
from objserver import expose

@expose
class Counter:
    def __init__(self):
        self.n = 0
    def add(self, k):
        self.n += k
        return self.n
"""


def start(directory: pathlib.Path, *args: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The process, and the first word of each line before `ready` with the last."""
    (directory / "counting.py").write_text(MODULE)
    command = [sys.executable, "-m", "objserver", "serve", "counting:Counter", *args]
    process = subprocess.Popen(command, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = {}
    for line in process.stdout:
        if line == "ready\n":
            return process, said
        said[line.split()[0]] = line.split()[-1]
    raise AssertionError(f"it ended with {process.wait(10)} before it was ready")


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
        daemon.names.register("Counter", "PYRO:other@localhost:1")
        assert end(process) == 0
        assert daemon.names.list(prefix="Counter") == {"Counter": "PYRO:other@localhost:1"}


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["nomodule:X"], 1, "cannot import nomodule"),
        (["json:nothing"], 1, "json has no nothing"),
        (["json"], 2, "MODULE:NAME"),
        (["json:loads", "json:dumps", "--name", "x"], 2, "single"),
        (["json:JSONDecoder"], 1, "exposes nothing"),
    ],
)
def test_what_cannot_be_served_is_said(args: list[str], code: int, sentence: str) -> None:
    result = CliRunner().invoke(main, ["serve", *args])
    assert result.exit_code == code
    assert sentence in result.stderr
