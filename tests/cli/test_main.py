"""The command as a whole: its help, and what its exit codes promise."""

from __future__ import annotations

import pathlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

import objserver
from objserver import ObjectServer, expose
from objserver.cli import ExitCode
from objserver.cli.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "howto" / "command_line.md").read_text("utf-8")


def commands(group: click.Group = main, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = dict(commands())


def test_version() -> None:
    done = subprocess.run([sys.executable, "-m", "objserver", "--version"], capture_output=True, text=True)
    assert done.stdout.strip().endswith(objserver.__version__)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_what_the_command_needs(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"], terminal_width=200)
    assert result.exit_code == 0
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Argument):
            assert parameter.make_metavar(click.Context(COMMANDS[path])) in result.output
        elif isinstance(parameter, click.Option):
            assert parameter.opts[0] in result.output
            assert parameter.help, f"{parameter.opts[0]} is not explained"
    if path not in {("demo",)}:  # it needs nothing
        assert f"objserver {' '.join(path)}" in result.output.partition("Options:")[0].partition("\n")[2]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_a_terminal(path: tuple[str, ...]) -> None:
    lines = CliRunner().invoke(main, [*path, "--help"], terminal_width=80).output.splitlines()
    assert [line for line in lines if len(line) > 100] == []


def test_importing_the_command_loads_no_database() -> None:
    program = "import sys, objserver.cli.main; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# -- exit codes --------------------------------------------------------------------------------------


@expose
class Thing:
    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self) -> None:
        raise ValueError("no good")


@pytest.fixture
def uri() -> Iterator[str]:
    with ObjectServer() as server:
        yield str(server.register(Thing, "Thing"))


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that hears a call and never answers it."""

    @expose
    class Silent:
        def add(self, a: int, b: int) -> None:
            done.wait(30)

    done = threading.Event()
    with ObjectServer() as server:
        yield str(server.register(Silent, "Silent"))
        done.set()


def code_of(*args: Any) -> int:
    """Of the command as a process, which is what a script sees."""
    command = [sys.executable, "-m", "objserver", *map(str, args)]
    return subprocess.run(command, capture_output=True, cwd=ROOT).returncode


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


def test_the_page_documents_every_exit_code() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d) \|", PAGE, re.MULTILINE)}
    assert documented == set(ExitCode)
    in_help = str(main.help).partition("Exit codes:")[2]
    assert {int(code) for code in re.findall(r"\b(\d)  [a-z]", in_help)} == set(ExitCode)


def test_0_is_done(uri: str) -> None:
    assert code_of("call", uri, "add", 1, 2) == ExitCode.DONE
    assert code_of("call", uri) == ExitCode.DONE
    assert code_of("stubs", uri) == ExitCode.DONE


def test_1_is_failed(uri: str) -> None:
    assert code_of("call", uri, "fail") == ExitCode.FAILED
    assert code_of("serve", "nowhere:Nothing") == ExitCode.FAILED
    assert code_of("stubs", "nowhere") == ExitCode.FAILED


def test_2_is_wrong_usage(uri: str) -> None:
    assert code_of("call") == ExitCode.USAGE
    assert code_of("call", uri, "add", "[1") == ExitCode.USAGE
    assert code_of("nonsense") == ExitCode.USAGE
    assert code_of("names", "get") == ExitCode.USAGE
    assert code_of("stubs", "bank.py") == ExitCode.USAGE
    assert code_of("completion", "tcsh") == ExitCode.USAGE


def test_3_is_certainly_not_called(uri: str) -> None:
    nobody = f"localhost:{free_port()}"
    assert code_of("call", f"PYRO:x@{nobody}", "add") == ExitCode.NOT_CALLED
    assert code_of("call", f"PYRONAME:x@{nobody}", "add") == ExitCode.NOT_CALLED
    assert code_of("call", uri.replace("Thing", "Thong"), "add") == ExitCode.NOT_CALLED
    assert code_of("call", uri, "subtract") == ExitCode.NOT_CALLED
    assert code_of("call", uri, "add", 1, "x") == ExitCode.NOT_CALLED
    assert code_of("names", "--nameserver", nobody) == ExitCode.NOT_CALLED
    assert code_of("stubs", f"PYRO:x@{nobody}") == ExitCode.NOT_CALLED


def test_4_is_that_nobody_knows(silent: str) -> None:
    assert code_of("call", silent, "add", 1, 2, "--timeout", 0.3) == ExitCode.UNKNOWN
