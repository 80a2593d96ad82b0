"""kill -9 under load: is everything that was answered there, once?

    python -m objserver.testing.kills --engine sqlite --cycles 60 --seed 1

Two servers with a store each, on one machine; clients of three kinds call accounts at both, move money within
and between them, and send messages.  Servers are killed at every moment that matters, and again and again,
clients too, and with PostgreSQL now and then one of its processes, after which all of it starts again.  At
the end the accounts are read, and `kill_judge` compares them with what the clients wrote down.

This process has imported all that the others need and never starts a thread, so a new server is a fork:
milliseconds instead of a third of a second.  The seed decides at which moments the servers die, and what
clients call; what meets what is decided by the machine.

A campaign is of some cycles (a cycle is the life of one server) and begins with empty stores, so that
accounts stay small however many cycles are asked for.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from objserver import Proxy, errors
from objserver.testing import kill_clients, kill_server
from objserver.testing.forks import fork
from objserver.testing.kill_clients import KINDS, MORTAL
from objserver.testing.kill_judge import judge
from objserver.testing.kill_server import MOMENTS, MUTANTS, OUTSIDE, Board, reach
from objserver.testing.postgres import PostgresServer

__all__ = ["Campaign", "run", "run_apart"]

CYCLES_MAX = 30
"""Of one campaign."""
ACCOUNTS = 4
"""Of each server."""
OUTSIDE_S = 0.3
"""A server that is killed from outside is, within that time from its start: so also while it starts."""
MORTAL_S = 1.2
"""The same of clients."""
MOMENT_S = 30.0
"""For a moment to come; then the server is killed from outside.  It takes a second or less."""
END_S = 240.0
"""For the clients to end, and for messages to arrive, with servers that are there."""
POSTGRES_CRASHES = 6
"""After so many lives of servers PostgreSQL loses a process."""
PORT = 21_909
"""Below those that the system gives to connections: one of them could be to itself."""


class Campaign:
    """One campaign: `report` is what came of it."""

    def __init__(
        self,
        seed: str,
        cycles: int,
        directory: str,
        urls: list[str],
        *,
        moments: list[str] | None = None,
        mutant: str = "",
        crash: Callable[[random.Random], bool] | None = None,
    ) -> None:
        self._seed, self._cycles, self._directory, self._urls = seed, cycles, directory, urls
        self._mutant = mutant
        self._crash = crash
        self._board = Board(len(urls))
        self._chance = random.Random(f"{seed} outside")
        self._plans = _plans(seed, moments)
        # Every process has a loopback address to itself.
        pid = os.getpid()
        self._addresses = [f"127.{1 + (pid >> 16 & 63)}.{pid >> 8 & 255}.{pid & 255}:{PORT}"]
        self._addresses += [f"./u:{directory}/{slot}.sock" for slot in range(1, len(urls))]
        self._uris = [f"PYRO:Account/{n}@{address}" for address in self._addresses for n in range(ACCOUNTS)]
        self._servers: dict[int, tuple[int, str, float]] = {}
        """By process: the slot, its moment, and when it is killed from outside."""
        self._clients: dict[int, tuple[str, float]] = {}
        """By process: the kind, and when it is killed."""
        self._started = 0
        self._hits: collections.Counter[str] = collections.Counter()
        self._counts: collections.Counter[str] = collections.Counter()
        self._wrong: list[str] = []
        self._over = False

    def run(self) -> dict[str, Any]:
        """Run it to its end; what came of it."""
        begun = time.monotonic()
        try:
            for slot in range(len(self._urls)):
                self._start_server(slot)
            for kind in KINDS:
                self._start_client(kind)
            while self._counts["cycles"] < self._cycles and not self._wrong:
                self._wait()
                self._kill_who_is_due()
            self._finish()
        finally:
            for pid in (*self._servers, *self._clients):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._counts["repeated"] = sum(self._board.get(slot, "repeated") for slot in range(len(self._urls)))
        return {
            "seed": self._seed,
            "seconds": round(time.monotonic() - begun, 1),
            "counts": dict(self._counts),
            "moments": dict(self._hits),
            "wrong": self._wrong,
        }

    # -- processes -----------------------------------------------------------------------------------

    def _start_server(self, slot: int, last: bool = False) -> None:
        moment, count, outside_s = (OUTSIDE, 0, END_S * 10) if last else next(self._plans)
        self._board.put(slot, "ready", 0)
        self._board.put(slot, "moment", 0)
        mutant = "" if self._mutant.startswith("clients") else self._mutant
        address, url = self._addresses[slot], self._urls[slot]
        pid = self._fork(kill_server.serve, self._board, slot, address, url, moment, count, mutant)
        self._servers[pid] = slot, moment, time.monotonic() + outside_s

    def _start_client(self, kind: str) -> None:
        self._started += 1
        mutant = self._mutant if self._mutant.startswith("clients") else ""
        path = f"{self._directory}/{self._started}.calls"
        pid = self._fork(
            kill_clients.call, kind, self._started, self._uris, self._seed, path, self._board, mutant
        )
        within = self._chance.uniform(0, MORTAL_S) if kind == MORTAL else END_S * 10
        self._clients[pid] = kind, time.monotonic() + within

    def _fork(self, work: Callable[..., NoReturn], *arguments: Any) -> int:
        return fork(f"{self._directory}/log", work, *arguments)

    def _wait(self) -> None:
        """Until a process has ended, or a moment."""
        signal.sigtimedwait({signal.SIGCHLD}, 0.005)
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG) if self._servers or self._clients else (0, 0)
            if not pid:
                return
            if pid in self._servers:
                self._server_ended(*self._servers.pop(pid)[:2], status)
            else:
                self._client_ended(self._clients.pop(pid)[0], status)

    def _server_ended(self, slot: int, moment: str, status: int) -> None:
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            self._wrong.append(f"a server ended by itself ({status:#x}):\n{self._log()}")
            return
        hit = self._board.get(slot, "moment")
        self._hits[list(MOMENTS)[hit - 1] if hit else OUTSIDE] += 1
        self._counts["missed"] += not hit and moment != OUTSIDE and not self._over
        self._counts["killed while starting"] += not self._board.get(slot, "ready")
        self._counts["cycles"] += 1
        if self._crash is not None and self._counts["cycles"] % POSTGRES_CRASHES == 0:
            self._counts["crashes of PostgreSQL"] += self._crash(self._chance)
        self._start_server(slot, self._over)

    def _client_ended(self, kind: str, status: int) -> None:
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if killed and kind == MORTAL:
            self._counts["clients killed"] += 1
            if not self._over:
                self._start_client(kind)
        elif status or not self._over:
            self._wrong.append(f"a {kind} client ended by itself ({status:#x}):\n{self._log()}")

    def _kill_who_is_due(self) -> None:
        now = time.monotonic()
        for pid, (slot, moment, due) in self._servers.items():
            if now >= due:
                self._servers[pid] = slot, moment, now + END_S
                os.kill(pid, signal.SIGKILL)
        for pid, (kind, due) in self._clients.items():
            if now >= due:
                self._clients[pid] = kind, now + END_S
                os.kill(pid, signal.SIGKILL)

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return pathlib.Path(f"{self._directory}/log").read_text(errors="replace")[-4000:]
        return ""

    # -- the end -------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The servers start for the last time; the clients end; then it is judged, in another process."""
        self._over = True
        for pid, (slot, moment, _) in self._servers.items():
            self._servers[pid] = slot, moment, 0.0
        self._kill_who_is_due()
        last = self._counts["cycles"] + len(self._servers)
        end = time.monotonic() + END_S
        while self._counts["cycles"] < last and time.monotonic() < end:
            self._wait()
        self._board.stop()
        while self._clients and time.monotonic() < end and not self._wrong:
            self._wait()
        if self._clients:
            stuck = [kind for kind, _ in self._clients.values()]
            self._wrong.append(f"clients did not come to an end: {stuck}\n{self._log()}")
        if self._wrong:
            return
        found = f"{self._directory}/found"
        judging = self._fork(self._judge, found)
        _, status = os.waitpid(judging, 0)
        if status:
            self._wrong.append(f"the campaign could not be judged:\n{self._log()}")
            return
        counts, wrong = json.loads(pathlib.Path(found).read_text())
        self._counts.update(counts)
        self._wrong += wrong

    def _judge(self, path: str) -> NoReturn:
        for address in self._addresses:
            reach(f"PYRO:Account/0@{address}")
            room, end = Proxy(f"PYRO:Room@{address}", timeout_s=END_S), time.monotonic() + END_S
            while _asked_again(room.messages_waiting):
                if time.monotonic() > end:
                    raise AssertionError(f"messages of {address} do not arrive")
                time.sleep(0.01)
        now = time.monotonic_ns()
        accounts = [_asked_again(reach(uri).statement) for uri in self._uris]
        calls = kill_clients.read(f"{self._directory}/{n}.calls" for n in range(1, self._started + 1))
        found = judge(calls, accounts, now, outages=bool(self._counts["crashes of PostgreSQL"]))
        pathlib.Path(path).write_text(json.dumps([found.counts, found.wrong]))
        os._exit(0)


def _asked_again(method: Callable[[], Any]) -> Any:
    """PostgreSQL may just be starting again."""
    end = time.monotonic() + END_S
    while True:
        try:
            return method()
        except errors.StoreError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _plans(seed: str, moments: list[str] | None) -> Iterator[tuple[str, int, float]]:
    """The moment at which each life of a server ends, at which time of passing it, or from outside after
    what time.  All kinds are had before one comes again too often."""
    chance = random.Random(seed)
    kinds = moments or [*MOMENTS, *[OUTSIDE] * 4]
    while True:
        for moment in chance.sample(kinds, len(kinds)):
            if moment == OUTSIDE:
                yield OUTSIDE, 0, chance.uniform(0, OUTSIDE_S)
            else:
                yield moment, chance.randint(1, MOMENTS[moment]), MOMENT_S


def _kill_a_process_of(postgres: PostgresServer) -> Callable[[random.Random], bool]:
    """Kills a process that serves a connection; PostgreSQL then ends all others and recovers."""

    def kill(chance: random.Random) -> bool:
        # Not the first: without that there is no database any more, and its directory says "objserver" too.
        ours = postgres.processes(b"objserver")[1:]
        if not ours:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(ours), signal.SIGKILL)
        return True

    return kill


def run(
    engine: str, cycles: int, seed: int, *, moments: list[str] | None = None, mutant: str = ""
) -> Iterator[dict[str, Any]]:
    """The reports of as many campaigns as have so many cycles together.  `engine`: sqlite or postgresql.

    For a process without threads.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    postgres = PostgresServer() if engine == "postgresql" else None
    try:
        done = number = 0
        while done < cycles:
            wanted = min(CYCLES_MAX, cycles - done)
            directory = tempfile.mkdtemp(prefix="objserver-kills-")
            try:
                if postgres is not None:
                    urls, crash = [postgres.new_url() for _ in range(2)], _kill_a_process_of(postgres)
                else:
                    urls, crash = [f"sqlite:///{directory}/{slot}.db" for slot in range(2)], None
                campaign = Campaign(
                    f"{engine} {seed} {number}", wanted, directory, urls,
                    moments=moments, mutant=mutant, crash=crash,
                )  # fmt: skip
                yield campaign.run()
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            done, number = done + wanted, number + 1
    finally:
        if postgres is not None:
            postgres.stop()


def run_apart(*options: str, module: str = "kills") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The reports and their sum, of a process of its own, with these options of the command line.

    `module`: of what makes them, as `cluster_faults` does too.

    For a process that may have threads, as under pytest.  Prints the command.
    """
    command = [sys.executable, "-m", f"objserver.testing.{module}", *options]
    print("to see it again:", shlex.join(command[1:]))
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    *reports, total = map(json.loads, ended.stdout.splitlines() or ["{}"])
    if ended.returncode != bool(total.get("wrong", -1)):
        raise RuntimeError(f"the campaign itself failed: {ended.stdout[-2000:]}")
    print(json.dumps(total))
    return reports, total


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m objserver.testing.kills", description="kill -9 under load"
    )
    engines = ("sqlite", "postgresql")
    parser.add_argument("--engine", choices=engines, default="sqlite", help="what keeps the objects")
    parser.add_argument("--cycles", type=int, default=60, help="lives of servers (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the clients' choices")
    parser.add_argument("--moment", action="append", choices=[*MOMENTS, OUTSIDE], help="only these")
    parser.add_argument("--mutant", choices=list(MUTANTS), default="", help="make it wrong on purpose")
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    moments: collections.Counter[str] = collections.Counter()
    wrong = 0
    for report in run(
        options.engine, options.cycles, options.seed, moments=options.moment, mutant=options.mutant
    ):
        print(json.dumps(report), flush=True)
        counts.update(report["counts"])
        moments.update(report["moments"])
        wrong += len(report["wrong"])
    print(json.dumps({"counts": dict(counts), "moments": dict(moments), "wrong": wrong}), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(_main())
