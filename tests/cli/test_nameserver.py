"""`objserver nameserver` as a process of its own."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import Pyro5.api

import objserver

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
