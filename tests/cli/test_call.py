"""`objserver call` against a server in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from objserver import Concurrent, ObjectServer, Proxy, expose
from objserver.cli.main import main


class State(enum.Enum):
    OPEN = 1


@dataclasses.dataclass
class Order:
    item: str
    state: State


class Refused(Exception):
    pass


@expose
class Thing:
    def same(self, *args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    def fail(self) -> None:
        """Always.

        Without exception.
        """
        raise ValueError("no\ngood")

    def sleep(self) -> None:
        released.wait(30)

    def fail_elsewhere(self) -> None:
        Proxy("PYRO:x@localhost:1").call()

    calls = 0

    def next(self) -> int:
        self.calls += 1
        return self.calls

    def set(self) -> set[bytes]:
        return {b"x"}

    def count(self) -> Iterator[int]:
        yield from range(3)

    def endless(self) -> Iterator[int]:
        yield from itertools.count()

    def order(self) -> Order:
        return Order("tea", State.OPEN)

    def refuse(self) -> None:
        raise Refused("not today")

    async def wait(self) -> None:
        await asyncio.sleep(30)

    def break_pipe(self) -> None:
        raise BrokenPipeError("of the object")

    def by_pair(self) -> dict[tuple[int, int], int]:
        return {(1, 2): 3}

    @property
    def colour(self) -> str:
        return "red"


@expose
class Unmakeable:
    def __init__(self) -> None:
        raise OSError("no room")

    def method(self) -> None: ...


released = threading.Event()


@pytest.fixture
def uri() -> Iterator[str]:
    released.clear()
    with ObjectServer() as server:
        yield str(server.register(Thing, "Thing", threading=Concurrent()))
        released.set()


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["call", *args])


def test_arguments_mean_what_they_look_like(uri: str) -> None:
    result = run(uri, "same", "5", "-1", "[1, 2]", "true", "alice", "'5'", "n=2.5", "--json")
    assert json.loads(result.output) == [[5, -1, [1, 2], True, "alice", "5"], {"n": 2.5}]
    assert run(uri, "same", "x").output == "[['x'], {}]\n"


def test_attributes_and_streams(uri: str) -> None:
    assert run(uri, "colour").output == "'red'\n"
    assert run(uri, "count").output == "0\n1\n2\n"


def test_a_stream_is_printed_as_it_comes(uri: str) -> None:
    command = [sys.executable, "-m", "objserver", "call", uri, "endless"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        process.kill()


def test_who_has_seen_enough_of_a_stream_hears_no_more(uri: str) -> None:
    command = [sys.executable, "-m", "objserver", "call", uri, "endless"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


def test_values_of_the_servers_own_classes_are_shown(uri: str) -> None:
    assert run(uri, "order").output == "Order(item='tea', state=State.OPEN)\n"
    assert json.loads(run(uri, "order", "--json").output) == {"item": "tea", "state": "OPEN"}


@pytest.mark.parametrize(
    ("args", "code", "shown"),
    [
        (["fail"], 1, "Error: ValueError: no good\nWhere the object raised it: add --traceback.\n"),
        # The object was called, whatever became of its own calls.
        (["fail_elsewhere"], 1, "Error: ConnectFailed: cannot connect to localhost:1: Connection refused\n"),
        (["refuse"], 1, "Error: tests.cli.test_call.Refused: not today\nWhere the object raised it: add"),
        (["break_pipe"], 1, "Error: BrokenPipeError: of the object\n"),
        (["by_pair", "--json"], 1, "Error: JSON cannot say this result: keys must be text or numbers, not"),
        (["coulor"], 3, " has no exposed method or attribute 'coulor'; did you mean 'colour'?\nIts membe"),
        (["colour", "5"], 3, "it is an attribute, which is read and not called\n"),
        (["sleep", "--timeout", "0.2"], 4, "\nIt may have happened: look before you repeat it.\n"),
        # Its server cancels this one, and may say so before this side has given up.
        (["wait", "--timeout", "0.2"], 4, "\nIt may have happened: look before you repeat it.\n"),
    ],
)
def test_an_error_is_a_sentence_with_an_exit_code(uri: str, args: list[str], code: int, shown: str) -> None:
    result = run(uri, *args)
    assert (result.exit_code, shown in result.stderr) == (code, True), result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") <= 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("nonsense", "NamingError: 'nonsense' is not a URI like PYRO:object@host:port or PYRONAME:name"),
        ("PYRO:x@localhost:1", "\nIs the server running, and is this its address?\n"),
        ("PYRONAME:x@localhost:1", "no name server answers at localhost:1"),
    ],
)
def test_nobody_there(uri: str, shown: str) -> None:
    for args in (["x"], []):
        result = run(uri, *args)
        assert (result.exit_code, shown in result.stderr) == (3, True), result.stderr


def test_a_server_that_does_not_answer_the_first_question_was_not_called() -> None:
    with socket.create_server(("localhost", 0)) as silent:
        result = run(f"PYRO:x@localhost:{silent.getsockname()[1]}", "x", "--timeout", "0.2")
    assert result.exit_code == 3


def test_no_such_object(uri: str) -> None:
    result = run(uri.replace("Thing", "Thong"), "x")
    assert (result.exit_code, "unknown object 'Thong'" in result.stderr) == (3, True)


def test_a_refusal_was_no_call() -> None:
    with ObjectServer() as server:
        uri = server.register(Unmakeable, "Unmakeable")
        result = run(str(uri), "method")
    assert (result.exit_code, "ActivationError" in result.stderr) == (3, True), result.stderr


def test_the_traceback_of_the_object_is_shown_when_asked_for(uri: str) -> None:
    result = run(uri, "fail", "--traceback")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert 'raise ValueError("no\\ngood")\n' in result.stderr
    assert result.stderr.endswith("Error: ValueError: no good\n")
    assert "Traceback (most recent" in run("PYRO:x@localhost:1", "x", "--traceback").stderr


@pytest.mark.parametrize("arg", ["[1, 2", "{'a'", "(", "'x", '"x', "name=[", "[print(1)]"])
def test_what_begins_like_a_literal_and_is_none_is_a_slip(uri: str, arg: str) -> None:
    result = run(uri, "same", arg)
    assert (result.exit_code, "is neither a Python literal nor JSON" in " ".join(result.stderr.split())) == (
        2,
        True,
    )


@pytest.mark.parametrize("arg", ["2024-01-01", "10:30", "a[0]", "it's", "1.2.3", "--", "x y"])
def test_other_text_is_text(uri: str, arg: str) -> None:
    assert run(uri, "same", "--", arg).output == f"{[[arg], {}]!r}\n"


def test_the_members_of_an_object(uri: str) -> None:
    result = run(uri)
    assert result.exit_code == 0
    assert "attributes\n  colour: str  (read only)\nmethods\n" in result.output
    assert "  fail() -> None\n      Always.\n" in result.output
    assert "  same(*args: Any, **kwargs: Any) -> Any\n" in result.output
    members = json.loads(run(uri, "--json").output)["members"]
    assert members["count"]["generator"] is True


def test_json_has_a_form_for_everything_documented(uri: str) -> None:
    assert run(uri, "set", "--json").output == '["eA=="]\n'


def test_times_go_to_standard_error(uri: str) -> None:
    result = run(uri, "colour", "--timing")
    assert result.stdout == "'red'\n"
    assert re.fullmatch(r"(connect|call|total) +[\d.]+ ms", result.stderr.splitlines()[1])
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["connect", "call", "total"]


def test_repeated_calls_are_made_and_the_last_result_is_printed(uri: str) -> None:
    result = run(uri, "next", "--repeat", "5")
    assert result.stdout == "5\n"
    assert re.findall(r"^call, (\w+) +[\d.]+ ms$", result.stderr, re.MULTILINE) == ["min", "median", "p99"]
    assert run(uri, "next", "--repeat", "0").exit_code == 2


def test_a_mistyped_option_is_not_sent_as_text(uri: str) -> None:
    result = run(uri, "same", "--timout", "3")
    assert result.exit_code == 2
    assert "there is no option --timout" in result.output
    assert run(uri, "same", '"--timout"').output == "[['--timout'], {}]\n"
