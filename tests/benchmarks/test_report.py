"""What a run of the benchmarks says: ratios within a start, and no goal that disappears."""

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.measures import Add, Crowd, Spread, Ways


def spread(*starts: float) -> Spread:
    return Spread(starts)


def met(tables: report.Tables, part: str) -> str:
    (row,) = [row for row in tables.goals if part in row[0]]
    return row[2]


ADD = {"raw socket": spread(6, 8), "objserver": spread(11, 15)}
OTHERS = {"objserver, serpent": spread(60, 70), "Pyro5 serpent": spread(80, 80)}


def test_a_ratio_is_taken_within_each_start() -> None:
    assert spread(10, 30).over(spread(5, 10)) == spread(2, 3)


def test_a_spread_shows_its_smallest_and_largest_start() -> None:
    assert spread(1, 4, 2).text(1, "x") == "2.0x (1.0..4.0)"
    assert spread(1500).text(0) == "1,500"


def test_goals_are_met_or_not_by_the_median_over_the_starts() -> None:
    tails = {peer: spread(40, 60) for peer in ADD}
    medians = {**ADD, **OTHERS, "thriftpy2": spread(10, 16), "managers": spread(20, 20)}
    tables = report.add(Add(medians, {**dict.fromkeys(medians, spread(40, 60)), **tails}, {}))
    assert met(tables, "2.0x the raw socket") == "yes"
    assert met(tables, "p99") == "**no**"
    assert met(tables, "faster than managers") == "yes"


def test_a_peer_that_is_not_here_leaves_its_goals_not_measured() -> None:
    medians = {**ADD, **OTHERS}
    result = Add(medians, medians, {"thriftpy2": "No module named 'thriftpy2'"})
    tables = report.add(result)
    assert met(tables, "faster than thriftpy2") == report.NOT_MEASURED
    assert "thriftpy2 (No module named 'thriftpy2')" in tables.sheets[0].note

    few = {"objserver": spread(100.0), "RPyC": spread(50.0)}
    crowd = report.crowd(Crowd(few, few, {}))
    assert met(crowd, "3x the calls/s of Pyro5 msgpack") == report.NOT_MEASURED
    assert met(crowd, "best peer") == "yes"
    assert [row[2] for row in crowd.goals].count(report.NOT_MEASURED) == 3


def test_a_way_of_calling_that_does_not_exist_is_not_measured() -> None:
    rates = {("single", place): spread(10.0) for place in ("pinned", "unpinned")}
    rates |= {("batch", "pinned"): spread(90.0), ("batch", "unpinned"): spread(70.0)}
    tables = report.ways(Ways(rates, {"async": "there is no AsyncProxy yet"}))
    assert [row[1:] for row in tables.goals] == [
        ["9.00x", "yes"],
        ["7.00x", "**no**"],
        ["there is no AsyncProxy yet", report.NOT_MEASURED],
    ]


def test_the_page_begins_with_the_goals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")
    tables = report.imports({"import objserver": spread(70, 80), "import Pyro5.api": spread(50, 50)})
    text = report.write_page(report.sheets([tables]), "python -m benchmarks", Path("plot.svg")).read_text()
    assert "| import objserver: at most 1.5x import Pyro5.api | 1.50x (1.40..1.60) | yes |" in text
    assert text.index("## Goals") < text.index("## Importing it")
