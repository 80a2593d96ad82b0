"""The JSON of `--json`."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import pathlib
import uuid
from typing import Any

import numpy
import pytest

from objserver import Proxy
from objserver.cli.plain import to_json

Pair = collections.namedtuple("Pair", "a b")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Order:
    item: str
    price: decimal.Decimal


FORMS: list[tuple[Any, Any]] = [
    ([1, 2.5, "x", None, True], [1, 2.5, "x", None, True]),
    (datetime.datetime(2026, 5, 17, 12, 30, tzinfo=datetime.UTC), "2026-05-17T12:30:00+00:00"),
    (datetime.date(2026, 5, 17), "2026-05-17"),
    (datetime.time(12, 30), "12:30:00"),
    (datetime.timedelta(minutes=1, milliseconds=500), 60.5),
    (decimal.Decimal("1.10"), "1.10"),
    (fractions.Fraction(1, 3), "1/3"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (pathlib.PurePosixPath("/tmp/x"), "/tmp/x"),
    (1j, "1j"),
    (b"\x00\xff", "AP8="),
    (bytearray(b"ab"), "YWI="),
    (float("inf"), "inf"),
    ((1, (2,)), [1, [2]]),
    ({10, 9}, [9, 10]),
    (frozenset({"b", 1}), ["b", 1]),
    (numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (Order("tea", decimal.Decimal("2.50")), {"item": "tea", "price": "2.50"}),
    (Pair(1, b"x"), {"a": 1, "b": "eA=="}),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (Proxy("PYRO:x@localhost:1"), "PYRO:x@localhost:1"),
    (ValueError("no"), {"type": "ValueError", "message": "no"}),
    ({datetime.date(2026, 5, 17): {1}, 2: 3}, {"2026-05-17": [1], "2": 3}),
    (object, "<class 'object'>"),
]


@pytest.mark.parametrize(("value", "form"), FORMS, ids=lambda each: type(each).__name__)
def test_every_type_has_its_form(value: object, form: object) -> None:
    assert json.loads(to_json(value)) == form
    assert "NaN" not in to_json(float("nan"))


def test_what_json_cannot_say_is_an_error() -> None:
    with pytest.raises(ValueError, match="keys must be text or numbers, not tuple"):
        to_json({(1, 2): 3})
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        to_json(endless)
