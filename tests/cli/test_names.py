"""`objserver names` against a name server in this process."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from objserver import ObjectServer
from objserver.cli.main import main
from objserver.naming import NameServerDaemon

LONG = f"PYRO:obj_{'0123456789abcdef' * 2}@a-host-with-a-long-name.example.org:12345"


@pytest.fixture
def daemon() -> Iterator[NameServerDaemon]:
    with NameServerDaemon("localhost:0") as daemon:
        daemon.names.register("shop.[b]cart", "PYRO:cart@localhost:1", metadata={"t"})
        yield daemon


def in_terminal(*args: str) -> str:
    """What the command shows in a terminal of 80 columns, without the codes for bold and the like."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "objserver", *args]
    with subprocess.Popen(command, stdout=its, env={**os.environ, "COLUMNS": "80"}) as process:
        os.close(its)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # the other end has closed
            pass
        os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[\d*m|\r", "", shown.decode())


def test_names_as_lines_and_as_json(daemon: NameServerDaemon) -> None:
    options = ["names", "--nameserver", daemon.address, "--prefix", "shop"]
    lines = CliRunner().invoke(main, options)
    data = CliRunner().invoke(main, [*options, "--json"])
    assert lines.output == "shop.[b]cart\tPYRO:cart@localhost:1\tt\n"
    assert json.loads(data.output) == {"shop.[b]cart": {"uri": "PYRO:cart@localhost:1", "metadata": ["t"]}}


def test_a_terminal_gets_a_table_that_fits_if_it_can(daemon: NameServerDaemon) -> None:
    daemon.names.register("long", "PYRO:x@localhost:1", metadata={"a-long-tag" * 9})
    shown = in_terminal("names", "--nameserver", daemon.address)
    assert re.search(r"^shop\.\[b\]cart +PYRO:cart@localhost:1 +t *$", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 80


def test_a_uri_is_never_cut(daemon: NameServerDaemon) -> None:
    daemon.names.register("shop.of.a.rather.long.name", LONG)
    options = ("names", "--nameserver", daemon.address)
    assert LONG in CliRunner().invoke(main, options).output
    assert LONG in in_terminal(*options)


def test_a_name_cannot_steer_the_terminal_or_pretend_to_be_two(daemon: NameServerDaemon) -> None:
    daemon.names.register("shop.\x1b[31m\n\t", "PYRO:x@localhost:1")
    options = ["names", "--nameserver", daemon.address, "--prefix", "shop.\x1b"]
    assert CliRunner().invoke(main, options).output == "shop.\\x1b[31m\\n\\t\tPYRO:x@localhost:1\t\n"


def test_no_name_server() -> None:
    result = CliRunner().invoke(main, ["names", "--nameserver", "localhost:1"])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: no name server answers at localhost:1; start one with `objserver nameserver`\n"
    )
    assert CliRunner().invoke(main, ["names", "--nameserver", "x:y"]).exit_code == 2
    result = CliRunner().invoke(main, ["names", "--nameserver", "9095"])
    assert (result.exit_code, "write localhost:9095" in result.stderr) == (2, True)


def test_a_server_that_is_no_name_server() -> None:
    with ObjectServer() as server:
        result = CliRunner().invoke(main, ["names", "--nameserver", server.address])
    assert result.exit_code == 1
    assert f"the server at {server.address} is no name server" in result.stderr
