"""`objserver names` against a name server in this process."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
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
        at = ["--nameserver", address]
        made = CliRunner().invoke(main, ["names", "set", "a/b", "PYRO:x@localhost:1", *at])
        again = CliRunner().invoke(main, ["names", "set", "a/b", "PYRO:x@localhost:1", *at])
        tree = CliRunner().invoke(main, ["names", "tree", *at, "--json"])
        watch = CliRunner().invoke(main, ["names", "watch", *at])
        listed = CliRunner().invoke(main, ["names", "ls", "--tag", TAG, "--nameserver", address])
        got = CliRunner().invoke(main, ["names", "get", "Pyro.NameServer", "--nameserver", address])
    finally:
        stock.shutdown()
        thread.join(10)
        stock.close()
    assert listed.output == f"Pyro.NameServer\t{uri}\t{TAG}\n"
    assert got.output == f"{uri}\n"
    assert (made.exit_code, again.exit_code) == (0, 1)
    assert json.loads(tree.output) == {"Pyro.NameServer": str(uri), "a/": {"b": "PYRO:x@localhost:1"}}
    assert "tells no news" in watch.stderr


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


def run(daemon: NameServerDaemon, *args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["names", *args, "--nameserver", daemon.address])
    assert result.exit_code == code, result.output
    return result.output


def test_a_name_is_set_changed_and_removed(daemon: NameServerDaemon) -> None:
    assert run(daemon, "set", "a", "PYRO:a@localhost:1", "--tag", "t") == "PYRO:a@localhost:1\n"
    refused = run(daemon, "set", "a", "PYRO:b@localhost:1", code=1)
    assert "already registered, for PYRO:a@localhost:1" in refused
    assert "Add --replace" in refused
    run(daemon, "set", "a", "PYRO:b@localhost:1", "--replace")
    shown = json.loads(run(daemon, "set", "a", "--tag", "u", "--json"))
    assert shown == {"name": "a", "uri": "PYRO:b@localhost:1", "metadata": ["u"]}
    assert "nobody has registered" in run(daemon, "set", "b", "--tag", "u", code=3)
    run(daemon, "rm", "a")
    assert "nobody had registered 'a'" in run(daemon, "rm", "a", code=3)


def test_many_are_removed_when_that_was_confirmed(daemon: NameServerDaemon) -> None:
    daemon.names.register_all({f"test.{n}": "PYRO:x@localhost:1" for n in range(3)})
    options = ["names", "rm", "--prefix", "test.", "--nameserver", daemon.address]
    refused = CliRunner().invoke(main, options, input="n\n")
    assert (refused.exit_code, "Remove 3 names that begin with test.?" in refused.stderr) == (1, True)
    assert daemon.names.count() == 5
    assert json.loads(run(daemon, "rm", "--prefix", "test.", "--yes", "--json")) == {"removed": 3}
    assert daemon.names.count() == 2
    assert "give either names or a --prefix" in run(daemon, "rm", code=2)


def test_of_very_many_names_a_program_gets_all_and_a_person_a_page(daemon: NameServerDaemon) -> None:
    daemon.names.register_all({f"n{n:05}": "PYRO:x@localhost:1" for n in range(2500)})
    assert len(run(daemon, "ls", "--prefix", "n").splitlines()) == 2500
    some = json.loads(run(daemon, "ls", "--limit", "2", "--after", "n00100", "--json"))
    assert list(some) == ["n00101", "n00102"]
    shown = in_terminal("names", "--nameserver", daemon.address)
    assert "There are more: go on with --after n00998" in shown
    assert shown.count("PYRO:") == 1000


def test_contexts_are_a_tree(daemon: NameServerDaemon) -> None:
    daemon.names.register_all({f"bank/accounts/{n}": "PYRO:x@localhost:1" for n in range(60)})
    daemon.names.register("bank/[b]vault", "PYRO:v@localhost:1")
    shown = run(daemon, "tree")
    assert re.search(r"bank/ 61\n", shown)
    assert re.search(r"accounts/ 60\n", shown)
    assert "[b]vault PYRO:v@localhost:1" in shown
    assert "... more: objserver names ls --prefix bank/accounts/" in shown
    assert json.loads(run(daemon, "tree", "bank", "--depth", "1", "--json")) == {
        "[b]vault": "PYRO:v@localhost:1",
        "accounts/": 60,
    }
    nested = json.loads(run(daemon, "tree", "--json"))
    assert len(nested["bank/"]["accounts/"]) == 60


def test_changes_are_printed_as_they_happen(daemon: NameServerDaemon) -> None:
    command = [sys.executable, "-u", "-m", "objserver", "names", "watch", "shop.", "--json"]
    with subprocess.Popen(
        [*command, "--nameserver", daemon.address], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not len(daemon.names.watchers):
            threading.Event().wait(0.01)
        daemon.names.register("bank", "PYRO:b@localhost:1")
        daemon.names.register("shop.till", "PYRO:t@localhost:1")
        first = json.loads(process.stdout.readline())
        daemon.names.remove("shop.till")
        second = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert (first["name"], first["uri"]) == ("shop.till", "PYRO:t@localhost:1")
    assert (second["name"], second["uri"]) == ("shop.till", None)


def test_the_first_name_server_that_answers_is_asked(daemon: NameServerDaemon) -> None:
    options = ["names", "get", "shop.[b]cart", "--nameserver", f"localhost:1,{daemon.address}"]
    assert CliRunner().invoke(main, options).output == "PYRO:cart@localhost:1\n"
    nobody = CliRunner().invoke(main, ["names", "--nameserver", "localhost:1,localhost:2"])
    assert "no name server answers at localhost:1 or localhost:2" in nobody.stderr
