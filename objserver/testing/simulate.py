"""Run seeds of the simulator, or one of them with all that happens in it.

    python -m objserver.testing.simulate --seed 17 --verbose

says of seed 17 what every client called and was answered, every fault, every message and every write to the
disk, in virtual seconds.  It is the same each time, in every process, as its trace says: a SHA-256 of all
of it.

    python -m objserver.testing.simulate --hours 3

runs as many seeds as make up three hours, from `--seed` on.  The first that finds something ends it, with
exit code 1 and the command that shows it.  With `--cluster` they are of clusters of nodes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from objserver.testing.cluster_simulator import ClusterSimulation
from objserver.testing.simulator import Result, Simulation, simulate

__all__ = ["main", "run"]

RUN_S = 60.0
"""Virtual seconds of one run: enough for a fault after the other, and short enough to be read."""


def run(
    first: int, hours: float, seconds: float = RUN_S, kind: type[Simulation] = Simulation
) -> list[Result]:
    """The runs of as many seeds as make up so many virtual hours; ends early with one that has failed."""
    results: list[Result] = []
    while sum(result.virtual_s for result in results) < hours * 3600:
        results.append(simulate(first + len(results), seconds, kind=kind))
        if results[-1].failures:
            break
    return results


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m objserver.testing.simulate",
        description="Production code under simulated faults, on virtual time.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed, or the first of many")
    parser.add_argument("--hours", type=float, default=0.0, help="virtual hours in all; 0 is one run")
    parser.add_argument("--seconds", type=float, default=RUN_S, help="virtual seconds of each run")
    parser.add_argument("--cluster", action="store_true", help="of clusters of nodes that share a store")
    parser.add_argument("--verbose", action="store_true", help="tell everything that happens, in one run")
    options = parser.parse_args(arguments)
    kind = ClusterSimulation if options.cluster else Simulation
    began = time.process_time()
    if options.verbose or not options.hours:
        tell = print if options.verbose else None
        results = [simulate(options.seed, options.seconds, tell, kind)]
        print(f"seed {options.seed}, trace {results[0].trace}")
    else:
        results = run(options.seed, options.hours, options.seconds, kind)
    took = time.process_time() - began
    virtual = sum(result.virtual_s for result in results)
    calls: Counter[str] = Counter()
    for result in results:
        calls.update(result.calls)
    print(
        f"{len(results)} runs, {virtual / 3600:.2f} virtual hours in {took:.1f} s of processor time "
        f"({virtual / took:.0f} times as fast), {sum(r.faults for r in results)} faults, "
        f"{sum(calls.values())} calls: {', '.join(f'{n} {kind}' for kind, n in sorted(calls.items()))}"
    )
    last = results[-1]
    for failure in last.failures:
        print(f"seed {last.seed}: {failure}")
    if last.failures:
        how = " --cluster" if options.cluster else ""
        how += "" if options.seconds == RUN_S else f" --seconds {options.seconds}"
        print(f"to see it: {parser.prog} --seed {last.seed}{how} --verbose")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
