"""What SECURITY.md promises is held by tests that exist, and its defaults are those of the source."""

import dataclasses
import re
from pathlib import Path

import pytest

from objserver import Limits, ServerSettings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", PAGE)))


def test_tests_are_named():
    assert len(NAMED) > 20
    assert not re.findall(r"::test_\w*\.\.\.", PAGE)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_is_named_exists(file, name):
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)


def test_every_promise_names_a_test():
    promises = PAGE.partition("## What is promised")[2].partition("## What is not")[0]
    for promise in re.split(r"^\d+\. ", promises, flags=re.MULTILINE)[1:]:
        assert "::test_" in promise, promise


def test_every_incident_names_a_test():
    rows = [line for line in PAGE.partition("## What happened to others")[2].splitlines() if line[:2] == "| "]
    assert len(rows) > 8
    assert [row for row in rows[1:] if "::test_" not in row] == []


def test_every_setting_in_the_table_of_defaults_exists():
    table = PAGE.partition("## Defaults")[2].partition("## What happened")[0]
    fields = {field.name for kind in (Limits, ServerSettings) for field in dataclasses.fields(kind)}
    named = {name.removeprefix("Limits.") for row in re.findall(r"^\| (`.*?) \|", table, re.M)
             for name in re.findall(r"`([\w.]+)`", row)}  # fmt: skip
    assert named - fields == {"connects_to"}


def test_the_table_of_the_battery_names_files_that_exist():
    table = (ROOT / "tests/server/test_hostile_input.py").read_text("utf-8").partition('"""\n\nimport')[0]
    numbers = [int(number) for number in re.findall(r"^ ?(\d+)  ", table, re.MULTILINE)]
    assert numbers == [*range(1, 21)]
    for name in re.findall(r"[\w/]+\.py", table):
        assert (ROOT / name).exists() or (ROOT / "tests/server" / name).exists(), name
    battery = (ROOT / "tests/server/test_hostile_input.py").read_text("utf-8")
    for name in re.findall(r"(test_\w+)_\.\.\.", table):
        assert re.search(rf"^def {name}_", battery, re.MULTILINE), name
