"""`python -m benchmarks`: measure, print the tables, and on demand write the documentation page.

A missed goal is printed, not an error: the exit code says only whether the measuring worked.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from benchmarks import measures, report

MEASUREMENTS = {
    "latency": measures.latency,
    "throughput": measures.throughput,
    "connections": measures.idle_connections,
    "sleeping": measures.sleeping,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="objserver beside its peers")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", choices=MEASUREMENTS, help="one measurement")
    parser.add_argument("--write-docs", action="store_true", help=f"write {report.PAGE.name}")
    options = parser.parse_args()
    if options.write_docs and options.only:
        parser.error("--write-docs needs all measurements, so it does not go with --only")
    console = Console()
    results: dict[str, object] = {}
    for name, measure in MEASUREMENTS.items():
        if options.only in (None, name):
            with console.status(name):
                results[name] = measure(options.quick)
    made = report.sheets(results)
    for sheet in made:
        sheet.print(console)
    if options.write_docs:
        console.print("written:", report.write_page(made, " ".join(["python -m benchmarks", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
