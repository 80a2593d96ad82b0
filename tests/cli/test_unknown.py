"""Values of classes that the command line does not have."""

from __future__ import annotations

import collections
import enum
from typing import Any

import pytest

from objserver import ObjectServer, Proxy, errors, expose
from objserver.cli.plain import to_json
from objserver.cli.unknown import ShowingTypes, Unknown

Pair = collections.namedtuple("Pair", "a b")


class Size(enum.Enum):
    SMALL = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


SHOWN: list[tuple[list[Any], str, str]] = [
    (["shop.Order", "item", "tea", "count", 2], "Order(item='tea', count=2)", '{"item": "tea", "count": 2}'),
    (["shop.Shop.Size", "SMALL"], "Size.SMALL", '"SMALL"'),
    (["shop.Access", 3], "Access(3)", "[3]"),
    (["shop.Pair", 1, 2], "Pair(1, 2)", "[1, 2]"),
    (["Pair", 1, 2, 3], "Pair(1, 2, 3)", "[1, 2, 3]"),
    (["Order"], "Order()", "{}"),
    # The peer may have sent anything; it is not to steer the terminal.
    (["x.\x1b[2J"], "\\x1b[2J()", "{}"),
    (["x.y", "\x1b"], "y('\\x1b')", '["\\u001b"]'),
    (["x.y", "\x1b", 1], "y('\\x1b', 1)", '["\\u001b", 1]'),
]


@pytest.mark.parametrize(("content", "text", "json"), SHOWN)
def test_the_parts_say_what_kind_it_was(content: list[Any], text: str, json: str) -> None:
    value = ShowingTypes().make(content)
    assert repr(value) == text
    assert to_json(value) == json


@pytest.mark.parametrize("content", [[], [1], [None, "x"]])
def test_a_class_has_a_name(content: list[Any]) -> None:
    with pytest.raises(errors.SerializeError):
        ShowingTypes().make(content)


def test_they_can_be_keys_whatever_they_hold() -> None:
    first, second = Unknown("A", [[1]]), Unknown("A", [[1]])
    assert {first} == {second}
    assert first != Unknown("A", [[2]])


def test_they_arrive_from_a_server() -> None:
    @expose
    class Thing:
        def several(self) -> Any:
            return [Size.SMALL, Access.READ | Access.WRITE, Pair(1, [Size.SMALL])]

    with ObjectServer() as server, Proxy(server.register(Thing()), types=ShowingTypes()) as thing:
        assert repr(thing.several()) == "[Size.SMALL, Access(3), Pair(1, [Size.SMALL])]"
