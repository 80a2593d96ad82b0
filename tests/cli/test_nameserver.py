"""`objserver nameserver` as a process of its own."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys

import Pyro5.api
from click.testing import CliRunner

import objserver
from objserver.cli.main import main

# The children run elsewhere, where a relative PYTHONPATH would not find the package.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(objserver.__file__).parents[1])}


def test_it_serves_stock_clients_and_keeps_their_names(tmp_path: pathlib.Path) -> None:
    options = ["--address", "localhost:0", "--beacon-address", "localhost:0", "--store", "sqlite:///n.db"]
    for expected in (1, 2):
        command = [sys.executable, "-m", "objserver", "nameserver", *options]
        with subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            said = [process.stdout.readline().split() for _ in range(3)]
            assert [words[0] for words in said] == ["name", "beacon", "ready"]
            with Pyro5.api.Proxy(said[0][-1]) as names:
                assert names.count() == expected
                names.register("n", "PYRO:n@localhost:1")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_what_is_wrong_is_said_in_options() -> None:
    def said(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["nameserver", "--address", "localhost:0", *options])
        return result.exit_code, result.stderr.splitlines()[-1]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        code, sentence = said("--beacon-address", f"localhost:{taken.getsockname()[1]}")
    assert code == 1
    assert sentence.endswith("Address already in use; choose another --beacon-address, or add --no-beacon")
    code, sentence = said("--no-beacon", "--address", "0.0.0.0:0")
    assert code == 1
    assert sentence.endswith("add --insecure if that is what you want")
    assert said("--no-beacon", "--address", "9090") == (
        2,
        "Error: '9090' is a port without a host; write localhost:9090",
    )
    assert said("--beacon-address", "./u:/tmp/x") == (
        2,
        "Error: the beacon answers over UDP, so --beacon-address is HOST:PORT and not ./u:/tmp/x",
    )
