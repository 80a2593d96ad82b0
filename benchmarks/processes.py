"""Subprocesses of the benchmarks: started together, pinned, and ended whatever happens.

Every child reads its orders from standard input, a line each, and answers on standard output, a line each.
It ends when its input does, so it never outlives the benchmark, not even one that is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

FAILED = "failed: "
"""How a child begins its first line when it cannot do its part; the reason follows."""


class Child:
    """`python -m benchmarks.tasks ARGUMENTS`; the first line it prints says that it is ready."""

    def __init__(self, *arguments: object) -> None:
        self._name = " ".join(map(str, arguments))
        command = [sys.executable, "-m", "benchmarks.tasks", *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        self.first_line = ""

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the benchmark process {self._name!r} ended early; its error is above")
        return line.strip()

    def readable(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def tell(self, order: object = "go") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()

    def ask(self, order: object = "go") -> str:
        self.tell(order)
        return self.read()

    def cpu_s(self) -> float:
        """The processor time it has used: Linux gives every process a clock, numbered by its pid."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def status(self, field: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise LookupError(field)

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def children(*commands: tuple[object, ...]) -> Iterator[list[Child]]:
    """Subprocesses that are ready; they start at the same time, and are ended whatever happens."""
    started: list[Child] = []
    try:
        for command in commands:
            started.append(Child(*command))
        for child in started:
            child.first_line = child.read()
        yield started
    finally:
        for child in started:
            child.end()


def pin(processes: list[Child], cores: set[int]) -> None:
    """Every thread that these processes have; threads of later inherit it."""
    for process in processes:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cores)
