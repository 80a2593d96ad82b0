"""Figures as tables: on the terminal with rich, in the documentation as Markdown.

Both are made from the same rows, so the page never says anything the run did not.  The first table of the
page holds the goals: each is a sentence, a measured value, and whether it was met; one that was missed says
so, and one that could not be measured says why.

`Tables` is also what `benchmarks.large` returns: its tables and its goals come after the ones of this module.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measures import CLIENTS, Add, Crowd, Idle, Sleeping, Spread, Ways
from benchmarks.peers import SLEEPERS
from benchmarks.tasks import BATCH, IN_FLIGHT

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "benchmarks.md"
NOT_MEASURED = "not measured"
OURS, STOCK = "objserver", "Pyro5 msgpack"


@dataclass
class Sheet:
    """One table."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def print(self, console: Console) -> None:
        table = Table(title=self.title, caption=self.note or None, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", "| " + " | ".join(self.columns) + " |"]
        lines.append("|" + "|".join("---:" if n else "---" for n in range(len(self.columns))) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines + (["", self.note] if self.note else [])) + "\n"


@dataclass
class Tables:
    """What one measurement has to show."""

    sheets: list[Sheet] = field(default_factory=list)
    goals: list[list[str]] = field(default_factory=list)

    def goal(self, sentence: str, value: str, met: bool) -> None:
        self.goals.append([sentence, value, "yes" if met else "**no**"])

    def no_goal(self, sentence: str, why: str) -> None:
        self.goals.append([sentence, why, NOT_MEASURED])

    def at_most(self, sentence: str, value: Spread, limit: float, decimals: int = 2, unit: str = "x") -> None:
        self.goal(sentence, value.text(decimals, unit), value.median <= limit)

    def at_least(self, sentence: str, value: Spread, limit: float) -> None:
        self.goal(sentence, value.text(unit="x"), value.median >= limit)

    def below(self, sentence: str, ours: Spread, theirs: Spread | None) -> None:
        if theirs is None:
            self.no_goal(sentence, "it is not here")
        else:
            self.goal(sentence, f"{(ratio := ours.over(theirs)).text(unit='x')} of it", ratio.median < 1)


def _skipped(skipped: dict[str, str]) -> str:
    return "".join(f" Left out: {peer} ({why})." for peer, why in skipped.items())


def add(result: Add) -> Tables:
    tables, medians = Tables(), result.median_us
    raw, ours = medians["raw socket"], medians[OURS]
    tables.sheets.append(
        Sheet(
            "One sequential client, add(2, 3), everything on one core",
            ["peer", "median µs", "p99 µs", "to raw socket"],
            [
                [peer, us.text(1), result.p99_us[peer].text(1), us.over(raw).text()]
                for peer, us in sorted(medians.items(), key=lambda item: item[1].median)
            ],
            "gRPC without protobuf; pycapnp timed inside its event loop." + _skipped(result.skipped),
        )
    )
    tables.at_most("one client: at most 2.0x the raw socket", ours.over(raw), 2.0)
    for peer in ("thriftpy2", "managers"):
        tables.below(f"one client: faster than {peer}", ours, medians.get(peer))
    tables.at_most("one client: p99 at most 3x its median", result.p99_us[OURS].over(ours), 3)
    serpent, stock = (medians[peer] for peer in ("objserver, serpent", "Pyro5 serpent"))
    tables.below("one client: with serpent, faster than Pyro5 with serpent", serpent, stock)
    return tables


def crowd(result: Crowd) -> Tables:
    tables, rates, costs = Tables(), result.calls_per_s, result.cpu_us
    ours, stock = rates[OURS], rates.get(STOCK)
    tables.sheets.append(
        Sheet(
            f"{CLIENTS} client processes, unpinned",
            ["peer", "calls/s", "server CPU µs/call", "objserver's calls/s to its"],
            [
                [peer, rate.text(0), costs[peer].text(1), ours.over(rate).text()]
                for peer, rate in sorted(rates.items(), key=lambda item: -item[1].median)
            ],
            _skipped(result.skipped).strip(),
        )
    )
    best = [
        max(starts) for starts in zip(*(r.starts for peer, r in rates.items() if peer != OURS), strict=True)
    ]
    sentence = f"{CLIENTS} clients: at least 1.3x the calls/s of the best peer"
    tables.at_least(sentence, ours.over(Spread(tuple(best))), 1.3)
    sentence = f"{CLIENTS} clients: at least 3x the calls/s of {STOCK}"
    if stock is None:
        tables.no_goal(sentence, "it is not here")
    else:
        tables.at_least(sentence, ours.over(stock), 3)
    for peer, its in (("thriftpy2", 16), (STOCK, 49)):
        sentence = f"{CLIENTS} clients: server CPU per call at most 10/{its} of {peer}'s"
        if peer in costs:
            ratio = costs[OURS].over(costs[peer])
            value = f"{costs[OURS].median:.1f} to {costs[peer].median:.1f} µs: {ratio.text(unit='x')}"
            tables.goal(sentence, value, ratio.median <= 10 / its)
        else:
            tables.no_goal(sentence, "it is not here")
    return tables


WAY_SAYS = {
    "single": "one by one",
    "batch": f"in batches of {BATCH:,}",
    "async": f"AsyncProxy, {IN_FLIGHT} in flight",
}
WAY_GOALS = {
    "batch": (f"batches of {BATCH:,}: at least 8x the calls/s of single calls", 8),
    "async": (f"AsyncProxy, {IN_FLIGHT} in flight: at least 3x the calls/s of single calls", 3),
}


def ways(result: Ways) -> Tables:
    tables, rates = Tables(), result.calls_per_s
    rows = []
    for (way, place), rate in rates.items():
        ratio = rate.over(rates["single", place])
        rows.append([f"{WAY_SAYS[way]}, {place}", rate.text(0), ratio.text()])
        if way in WAY_GOALS:
            sentence, limit = WAY_GOALS[way]
            tables.at_least(f"{sentence}, {place}", ratio, limit)
    for way, why in result.skipped.items():
        tables.no_goal(WAY_GOALS[way][0], why)
    title = "One client over one connection: calls in batches, and many in flight"
    tables.sheets.append(
        Sheet(
            title,
            ["calls", "calls/s", "to one by one"],
            rows,
            "Pinned: client and server share one core, so what is saved is work. "
            "Unpinned: single calls also pay for waking a process on another core.",
        )
    )
    return tables


def connections(idle: Idle) -> Tables:
    tables = Tables()
    per = f"{idle.bytes_per_connection / 1000:.1f} kB"
    tables.sheets.append(
        Sheet(
            "Open connections, each of which made a call",
            ["server", "connections served", "threads", "memory (RSS) per connection"],
            [
                ["objserver", f"{idle.served:,} of {idle.connections:,}", str(idle.threads), per],
                ["Pyro5", f"{idle.pyro5_served}, then refused", "-", "-"],
            ],
            f"Pyro5's refusal: {idle.pyro5_refusal}"
            + (f" Ours ended at {idle.connections:,}: {idle.reason}" if idle.reason else ""),
        )
    )
    all_served = idle.served == idle.connections == idle.wanted
    tables.goal(
        f"{idle.wanted:,} idle connections: all served, at most 40 threads",
        f"{idle.served:,} served, {idle.threads} threads",
        all_served and idle.threads <= 40,
    )
    tables.goal(
        f"{idle.wanted:,} idle connections: at most 25 kB each in the server",
        f"{per}, {idle.connections:,} connections",
        all_served and idle.bytes_per_connection <= 25_000,
    )
    return tables


def sleeping(slept: Sleeping) -> Tables:
    tables = Tables()
    ratio = slept.beside_us.over(slept.idle_us)
    tables.sheets.append(
        Sheet(
            f"{SLEEPERS} servants asleep for 0.2 s, another client calling add, unpinned",
            ["all sleeps s", "add, idle server µs", "add, beside them µs", "ratio"],
            [[slept.total_s.text(3), slept.idle_us.text(1), slept.beside_us.text(1), ratio.text()]],
        )
    )
    tables.at_most(f"{SLEEPERS} sleeps of 0.2 s in at most 0.4 s", slept.total_s, 0.4, 3, " s")
    tables.at_most("meanwhile add at most 2x its idle median", ratio, 2)
    return tables


def imports(result: dict[str, Spread]) -> Tables:
    tables = Tables()
    ours, *_, stock = result.values()
    tables.sheets.append(
        Sheet(
            "Importing it, in a new interpreter",
            ["statement", "ms", "to Pyro5.api"],
            [[statement, ms.text(0), ms.over(stock).text()] for statement, ms in result.items()],
            "The start of the interpreter is not counted.",
        )
    )
    tables.at_most("import objserver: at most 1.5x import Pyro5.api", ours.over(stock), 1.5)
    return tables


def run_alone(tables: Callable[[bool], Tables]) -> None:
    """What a module of the benchmarks does that is run by itself, with --quick or without."""
    console = Console()
    result = tables("--quick" in sys.argv)
    for sheet in result.sheets:
        sheet.print(console)
    for goal in result.goals:
        console.print(" | ".join(goal))


TABLES: dict[str, Callable[[Any], Tables]] = {
    "add": add,
    "crowd": crowd,
    "ways": ways,
    "connections": connections,
    "sleeping": sleeping,
    "imports": imports,
}


def sheets(made: list[Tables]) -> list[Sheet]:
    """All tables of a run; the first holds the goals."""
    goals = Sheet("Goals", ["goal", "value", "met"], [row for tables in made for row in tables.goals])
    return [goals, *(sheet for tables in made for sheet in tables.sheets)]


def machine() -> str:
    """The machine in one line."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, CPython {platform.python_version()}"


def write_page(shown: list[Sheet], command: str, plot: Path) -> Path:
    """The documentation page of this run."""
    head = f"""# Benchmarks

Measured {datetime.date.today().isoformat()} with `{command}` on {machine()}.
Written by that command: run it to have the figures of your machine.

![objserver beside its peers]({plot.name})

All peers ran side by side and took turns, so that a slow minute hit all of them. Every measurement was
started anew several times, because where processes land in memory makes a start faster or slower by half. A
figure is the median over the starts, with the smallest and the largest in brackets; a ratio is taken within
each start, so it is not the quotient of two medians. What was not met says **no**.
"""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join([head, *(sheet.markdown() for sheet in shown)]))
    return PAGE
