"""Figures as tables: on the terminal with rich, in the documentation as Markdown.

Both are made from the same rows, so the page never says anything the run did not.  The closing table holds
the goals: each is a sentence, a measured value, and whether it was met; one that was missed says so.
"""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measures import CLIENTS, Idle, Latency, Sleeping, Throughput

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "benchmarks.md"


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


def sheets(results: dict[str, object]) -> list[Sheet]:
    """A table for every measurement that was made, and the closing one."""
    made: list[Sheet] = []
    goals = Sheet("Goals", ["goal", "measured", "met"])

    def goal(sentence: str, measured: str, met: bool) -> None:
        goals.rows.append([sentence, measured, "yes" if met else "no"])

    if (rows := results.get("latency")) is not None:
        by_peer: dict[str, Latency] = {row.peer: row for row in rows}  # type: ignore[attr-defined]
        made.append(
            Sheet(
                "One sequential client, add(2, 3), everything on one core",
                ["peer", "median µs", "fastest and slowest start", "p99 µs", "to raw"],
                [
                    [
                        r.peer,
                        f"{r.median_us:.1f}",
                        f"{r.fastest_start_us:.1f} to {r.slowest_start_us:.1f}",
                        f"{r.p99_us:.1f}",
                        f"{r.to_raw:.2f}",
                    ]
                    for r in by_peer.values()
                ],
                note="Medians over starts: where processes land in memory makes some starts slower by half.",
            )
        )
        ours, serpent, stock = (by_peer[p] for p in ("objserver", "objserver, serpent", "Pyro5 serpent"))
        goal("add at most 2.5x the raw socket", f"{ours.to_raw:.2f}x", ours.to_raw <= 2.5)
        goal(
            "serpent faster than stock Pyro5 serpent",
            f"{serpent.median_us:.1f} against {stock.median_us:.1f} µs",
            serpent.median_us < stock.median_us,
        )
    if (loads := results.get("throughput")) is not None:
        rates: list[Throughput] = loads  # type: ignore[assignment]
        made.append(
            Sheet(
                f"{CLIENTS} client processes, unpinned",
                ["peer", "calls/s", "server CPU µs/call", "to Pyro5 msgpack"],
                [
                    [r.peer, f"{r.calls_per_s:,.0f}", f"{r.cpu_us_per_call:.1f}", f"{r.to_pyro5:.2f}"]
                    for r in rates
                ],
            )
        )
        ratio = next(r.to_pyro5 for r in rates if r.peer == "objserver")
        goal("8 clients: at least 2.5x the calls/s of Pyro5 msgpack", f"{ratio:.2f}x", ratio >= 2.5)
    if isinstance(idle := results.get("connections"), Idle):
        made.append(
            Sheet(
                "Open connections, each of which made a call",
                ["server", "connections served", "threads", "RSS per connection"],
                [
                    [
                        "objserver",
                        f"{idle.served} of {idle.connections}",
                        str(idle.threads),
                        f"{idle.rss_per_connection_kib:.1f} KiB",
                    ],
                    ["Pyro5", f"{idle.pyro5_served}, then refused", "-", "-"],
                ],
                note=f"Pyro5's refusal: {idle.pyro5_refusal}",
            )
        )
        goal(
            "2,000 connections: all served, at most 40 threads",
            f"{idle.served} served, {idle.threads} threads",
            idle.served == idle.connections and idle.threads <= 40,
        )
    if isinstance(slept := results.get("sleeping"), Sleeping):
        made.append(
            Sheet(
                "30 servants asleep for 0.2 s, another client calling add, unpinned",
                ["round", "all sleeps s", "add, idle server µs", "add, beside them µs", "ratio"],
                [
                    [str(n), f"{t:.3f}", f"{i:.1f}", f"{b:.1f}", f"{b / i:.2f}"]
                    for n, (t, i, b) in enumerate(slept.rounds, 1)
                ]
                + [
                    [
                        "median",
                        f"{slept.total_s:.3f}",
                        f"{slept.idle_us:.1f}",
                        f"{slept.beside_us:.1f}",
                        f"{slept.ratio:.2f}",
                    ]
                ],
            )
        )
        goal("30 sleeps of 0.2 s in at most 0.4 s", f"{slept.total_s:.3f} s", slept.total_s <= 0.4)
        goal("meanwhile add at most 2x its idle median", f"{slept.ratio:.2f}x", slept.ratio <= 2)
    return [*made, goals]


def machine() -> str:
    """The machine in one line."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, CPython {platform.python_version()}"


def write_page(made: list[Sheet], command: str) -> Path:
    """The documentation page of this run."""
    head = (
        "# Benchmarks\n\n"
        f"Measured {datetime.date.today().isoformat()} with `{command}` on {machine()}. "
        "Written by that command: run it to have the figures of another machine.\n\n"
        "All peers ran in the same few minutes, taking turns; figures are medians of the rounds.\n"
    )
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join([head, made[-1].markdown(), *(sheet.markdown() for sheet in made[:-1])]))
    return PAGE
