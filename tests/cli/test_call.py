"""`objserver call` against a server in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from objserver import ObjectServer, expose
from objserver.cli.main import main


@expose
class Thing:
    def same(self, *args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    def fail(self) -> None:
        raise ValueError("no\ngood")

    def count(self) -> Iterator[int]:
        yield from range(3)

    def by_pair(self) -> dict[tuple[int, int], int]:
        return {(1, 2): 3}

    @property
    def colour(self) -> str:
        return "red"


@pytest.fixture
def uri() -> Iterator[str]:
    with ObjectServer() as server:
        yield str(server.register(Thing, "Thing"))


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["call", *args])


def test_arguments_mean_what_they_look_like(uri: str) -> None:
    result = run(uri, "same", "5", "-1", "[1, 2]", "true", "alice", "'5'", "n=2.5", "--json")
    assert json.loads(result.output) == [[5, -1, [1, 2], True, "alice", "5"], {"n": 2.5}]
    assert run(uri, "same", "x").output == "[['x'], {}]\n"


def test_attributes_and_streams(uri: str) -> None:
    assert run(uri, "colour").output == "'red'\n"
    assert run(uri, "count").output == "0\n1\n2\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["fail"], "Error: ValueError: no good\n"),
        (["nothing"], "nothing"),
        (["colour", "5"], "it is an attribute, which is read and not called"),
        (["by_pair", "--json"], "Error: JSON cannot say this result: keys must be"),
    ],
)
def test_errors_are_one_line(uri: str, args: list[str], sentence: str) -> None:
    result = run(uri, *args)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_nobody_there() -> None:
    assert run("nonsense", "x").exit_code == 1
    result = run("PYRO:x@localhost:1", "x", "--timeout", "5")
    assert result.exit_code == 1
    assert "ConnectFailed" in result.stderr


def test_a_mistyped_option_is_not_sent_as_text(uri: str) -> None:
    result = run(uri, "same", "--timout", "3")
    assert result.exit_code == 2
    assert "there is no option --timout" in result.output
    assert run(uri, "same", '"--timout"').output == "[['--timout'], {}]\n"
