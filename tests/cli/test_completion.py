"""The Tab key, pressed in a real bash."""

from __future__ import annotations

import os
import pathlib
import pty
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from objserver import ObjectServer, expose
from objserver.cli import completion
from objserver.cli.main import main
from objserver.naming import NameServerDaemon

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE_S = 60


@expose
class Account:
    def deposit(self, amount: int) -> int:
        return amount

    def withdraw(self, amount: int) -> int:
        return amount


class Bash:
    """An interactive bash in a terminal of its own."""

    def __init__(self, directory: pathlib.Path, nameserver_port: int) -> None:
        program = directory / "bin" / "objserver"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "{directory}/main.py" "$@"\n')
        program.chmod(0o755)
        (directory / "main.py").write_text(
            "import sys\nfrom objserver.cli.main import main\nmain(prog_name='objserver')\n"
        )
        environment = {
            "PATH": f"{program.parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "PYRO_NS_PORT": str(nameserver_port),
            "HOME": str(directory),
            "TERM": "dumb",
            "INPUTRC": "/dev/null",
            "PS1": "",
        }
        self.shown = ""
        self.terminal, its = pty.openpty()
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=its,
            stdout=its,
            stderr=its,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
        os.close(its)
        self.type("PS1=; bind 'set enable-bracketed-paste off'; bind 'set show-all-if-ambiguous on'\n")
        self.type("bind 'set completion-query-items 0'; bind 'set page-completions off'\n")
        self.type("eval \"$(objserver completion bash)\"; stty cols 200; echo rea''dy\n")
        self.read_until(r"ready\r\n")

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def read_until(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self.shown)) is None:
            if not select.select([self.terminal], [], [], deadline - time.monotonic())[0]:
                raise AssertionError(f"{pattern!r} was not shown, but {self.shown!r}")
            self.shown += os.read(self.terminal, 65536).decode()
        self.shown = self.shown[found.end() :]
        return found

    def line_after_tab(self, typed: str, expected: str) -> str:
        """What stands on the line when Tab has shown what is expected."""
        # Not at once: bash takes a Tab for text if more has been typed already.
        self.type(typed + "\t")
        self.read_until(re.escape(expected))
        # `echo` to the beginning of the line, so that the shell itself says what it has become.
        self.type("\x01echo '<'\x05'>'\n")
        return self.read_until(r"\n<([^\n]*)>\r\n")[1]

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.register(Account, "Account")
        yield server


@pytest.fixture(scope="module")
def names(server: ObjectServer) -> Iterator[NameServerDaemon]:
    with NameServerDaemon("localhost:0") as daemon:
        daemon.names.register("Account", f"PYRO:Account@{server.address}")
        daemon.names.register("shop.cart", "PYRO:cart@localhost:1")
        daemon.names.register("shop.till", "PYRO:till@localhost:1")
        daemon.names.register("shop.$(touch owned)", "PYRO:evil@localhost:1")
        yield daemon


@pytest.fixture(scope="module")
def bash(names: NameServerDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bash]:
    shell = Bash(tmp_path_factory.mktemp("bash"), int(names.address.rpartition(":")[2]))
    try:
        yield shell
    finally:
        shell.close()


def test_a_name_is_completed_after_the_colon_where_bash_splits(bash: Bash) -> None:
    assert bash.line_after_tab("objserver call PYRONAME:Ac", "Account ") == "objserver call PYRONAME:Account "


def test_in_quotes_too_where_it_does_not(bash: Bash) -> None:
    line = bash.line_after_tab('objserver call "PYRONAME:Ac', 'PYRONAME:Account"')
    assert line == "objserver call PYRONAME:Account "


def test_what_all_names_have_in_common_is_filled_in(bash: Bash) -> None:
    line = bash.line_after_tab("objserver stubs PYRONAME:s", "shop.till")
    assert line == "objserver stubs PYRONAME:shop."


def test_an_address_is_completed_through_its_at_sign(bash: Bash, server: ObjectServer) -> None:
    line = bash.line_after_tab("objserver call PYRO:Account@local", f"{server.address} ")
    assert line == f"objserver call PYRO:Account@{server.address} "


def test_members_of_the_object_are_completed(bash: Bash, server: ObjectServer) -> None:
    line = bash.line_after_tab("objserver call PYRONAME:Account dep", "deposit ")
    assert line == "objserver call PYRONAME:Account deposit "
    line = bash.line_after_tab(f"objserver call PYRO:Account@{server.address} w", "withdraw ")
    assert line == f"objserver call PYRO:Account@{server.address} withdraw "


def test_registered_names_are_completed(bash: Bash) -> None:
    assert bash.line_after_tab("objserver names get Ac", "Account ") == "objserver names get Account "


def test_commands_and_options_are_completed(bash: Bash) -> None:
    assert bash.line_after_tab("objserver stu", "stubs ") == "objserver stubs "
    assert bash.line_after_tab("objserver call --trace", "--traceback ") == "objserver call --traceback "


def offers(command: str, *, incomplete: str, **params: object) -> list[str]:
    """What the completion functions offer, without a shell."""
    found = {"call": completion.complete_method, "get": completion.complete_name}.get(command)
    context = click.Context(main)
    context.params.update(params)
    complete = found or completion.complete_uri
    return [item.value for item in complete(context, click.Argument(["x"]), incomplete)]


def test_a_name_that_the_shell_would_act_on_is_not_offered(
    names: NameServerDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_NS_PORT", names.address.rpartition(":")[2])
    assert offers("uri", incomplete="PYRONAME:shop.") == ["PYRONAME:shop.cart", "PYRONAME:shop.till"]


def test_who_does_not_answer_offers_nothing_and_takes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("localhost", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("PYRO_NS_PORT", str(port))
        began = time.monotonic()
        assert offers("uri", incomplete="PYRONAME:") == []
        assert offers("call", incomplete="", uri=f"PYRO:Account@localhost:{port}") == []
        assert time.monotonic() - began < 2 * completion.PATIENCE_S + 2


def test_nobody_there_offers_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYRO_NS_PORT", "1")
    assert offers("uri", incomplete="PYRONAME:") == []
    assert offers("get", incomplete="") == []
    assert offers("call", incomplete="", uri="nonsense") == []
    assert offers("uri", incomplete="bank:") == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_OBJSERVER_COMPLETE={shell}_complete" in result.output
