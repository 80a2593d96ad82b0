"""`python -m benchmarks`: measure, print the tables, and on demand write the documentation page and its plot.

A missed goal is printed, not an error: the exit code says only whether the measuring worked.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import measures, report

MEASUREMENTS: dict[str, Callable[[bool], Any]] = {
    "add": measures.add,
    "crowd": measures.crowd,
    "ways": measures.ways,
    "connections": measures.connections,
    "sleeping": measures.sleeping,
    "imports": measures.imports,
}
MODULES = ("large", "durable", "secure", "authorized", "hostile", "names", "cluster")
"""Large values, stored objects, TLS, who may call, hostile peers, the name server, clusters: modules
that have `tables(quick) -> report.Tables`."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="objserver beside its peers")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", choices=[*MEASUREMENTS, *MODULES], nargs="+", help="these measurements")
    parser.add_argument("--plot", type=Path, help="write the plot to this file (.svg, .png)")
    parser.add_argument("--write-docs", action="store_true", help=f"write {report.PAGE.name} and its plot")
    options = parser.parse_args()
    if options.write_docs and options.only:
        parser.error("--write-docs needs all measurements, so it does not go with --only")
    if options.plot and options.only and not {"add", "crowd", "ways"} & set(options.only):
        parser.error("--plot shows add, crowd and ways, so it needs one of them")
    # A log is no terminal, and has room for wide tables.
    console = Console(width=None if sys.stdout.isatty() else 130)
    results: dict[str, Any] = {}
    made: list[report.Tables] = []
    for name in [*MEASUREMENTS, *MODULES]:
        if options.only and name not in options.only:
            continue
        begin = time.monotonic()
        with console.status(name):
            if name in MODULES:
                tables = importlib.import_module(f"benchmarks.{name}").tables(options.quick)
            else:
                results[name] = MEASUREMENTS[name](options.quick)
                tables = report.TABLES[name](results[name])
        made.append(tables)
        for sheet in tables.sheets:
            sheet.print(console)
        console.print(f"({name}: {time.monotonic() - begin:.0f} s)\n", style="dim")
    shown = report.sheets(made)
    shown[0].print(console)
    plot = report.PAGE.with_suffix(".svg") if options.write_docs else options.plot
    if plot:
        from benchmarks.plot import draw  # matplotlib, which the rest can do without

        console.print("written:", draw(results, plot))
    if options.write_docs:
        command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
        console.print("written:", report.write_page(shown, command, plot))


if __name__ == "__main__":
    main()
