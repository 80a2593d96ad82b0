"""`objserver names` against a name server in this process."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from objserver import ObjectServer
from objserver.cli.main import main
from objserver.naming import NameServerDaemon
from objserver.naming.daemon import TAG

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


def test_ls_is_what_names_does_without_a_command(daemon: NameServerDaemon) -> None:
    for options in (["--nameserver", daemon.address], ["--nameserver", daemon.address, "--json"]):
        plain, ls = (
            CliRunner().invoke(main, ["names", *command, *options]).output for command in ([], ["ls"])
        )
        assert plain == ls != ""


def test_names_can_be_chosen_by_tags_and_prefix(daemon: NameServerDaemon) -> None:
    daemon.names.register("shop.till", "PYRO:till@localhost:1", metadata={"t", "open"})
    daemon.names.register("bank", "PYRO:bank@localhost:1", metadata={"t", "open"})

    def listed(*options: str) -> list[str]:
        result = CliRunner().invoke(main, ["names", "ls", "--nameserver", daemon.address, *options, "--json"])
        return list(json.loads(result.output))

    assert listed("--tag", "t") == ["bank", "shop.[b]cart", "shop.till"]
    assert listed("--tag", "t", "--tag", "open") == ["bank", "shop.till"]
    assert listed("--tag", "t", "--prefix", "shop.t") == ["shop.till"]
    assert listed("--tag", "nobody") == []


def test_one_name(daemon: NameServerDaemon) -> None:
    def get(*args: str) -> Result:
        return CliRunner().invoke(main, ["names", "get", *args, "--nameserver", daemon.address])

    assert get("shop.[b]cart").output == "PYRO:cart@localhost:1\n"
    assert json.loads(get("shop.[b]cart", "--json").output) == {
        "name": "shop.[b]cart",
        "uri": "PYRO:cart@localhost:1",
        "metadata": ["t"],
    }
    unknown = get("shop.[b]car")
    assert (unknown.exit_code, unknown.stdout) == (3, "")
    assert "nobody has registered the name 'shop.[b]car'; did you mean 'shop.[b]cart'?" in unknown.stderr


def test_a_stock_name_server_can_be_asked() -> None:
    from Pyro5.nameserver import start_ns

    uri, stock, _ = start_ns("127.0.0.1", 0, enableBroadcast=False)
    thread = threading.Thread(target=stock.requestLoop, daemon=True)
    thread.start()
    address = uri.location
    try:
        listed = CliRunner().invoke(main, ["names", "ls", "--tag", TAG, "--nameserver", address])
        got = CliRunner().invoke(main, ["names", "get", "Pyro.NameServer", "--nameserver", address])
    finally:
        stock.shutdown()
        thread.join(10)
        stock.close()
    assert listed.output == f"Pyro.NameServer\t{uri}\t{TAG}\n"
    assert got.output == f"{uri}\n"


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
    assert result.exit_code == 3
    assert result.stderr == (
        "Error: no name server answers at localhost:1; start one with `objserver nameserver`\n"
    )
    assert CliRunner().invoke(main, ["names", "--nameserver", "x:y"]).exit_code == 2
    result = CliRunner().invoke(main, ["names", "--nameserver", "9095"])
    assert (result.exit_code, "write localhost:9095" in result.stderr) == (2, True)


def test_a_server_that_is_no_name_server() -> None:
    with ObjectServer() as server:
        result = CliRunner().invoke(main, ["names", "--nameserver", server.address])
    assert result.exit_code == 3
    assert f"the server at {server.address} is no name server" in result.stderr
