"""A cluster whose nodes die, sleep and are cut off, and whose database fails over: does anybody notice?

    python -m objserver.testing.cluster_faults --kills 40 --pauses 40 --partitions 20 --failovers 3 --seed 1

Nodes are processes over a real PostgreSQL.  Clients of four kinds (`kill_clients`) call accounts by whatever
node their URIs name, wherever the accounts are, and two nodes at a time have something happen to them:

    kill        kill -9, and a new start: at once, or when others have had the time to take over
    pause       SIGSTOP for longer than the lease, then SIGCONT: the node wakes up and does not know
    partition   the node is cut off: from all, from the database only, or from the clients only
    failover    the primary stops replicating, and is killed once a commit waits; a standby is promoted

Partitions are of network namespaces (`lan`), failovers of a primary with two standbys (`PostgresReplicas`).
At the end the accounts are read, and `kill_judge` compares them with what the clients wrote down.  To the
clients that have time nothing may show at all.

A fault is a generator of conditions: it goes on when the last one holds.  What a condition is about, the
database says: whose lease has ended, and who is back.  The seed decides what happens to whom and in which
order; what meets what is decided by the machine.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, NoReturn

import psycopg

from objserver import Proxy
from objserver.testing import kill_clients, kill_server
from objserver.testing.forks import fork
from objserver.testing.kill_clients import HASTY, MORTAL, STEADY, STOCK
from objserver.testing.kill_judge import judge
from objserver.testing.kill_server import MUTANTS, START_AGAIN, Board, reach
from objserver.testing.lan import CLIENTS, DATABASE, Lan
from objserver.testing.postgres import PostgresReplicas, PostgresServer

__all__ = ["CUTS", "FAULTS_MAX", "KINDS", "Campaign", "run"]

KINDS = "kills", "pauses", "partitions", "failovers"
CUTS = "all", "the database", "the clients"
NODES = 4
ACCOUNTS = 12
TOGETHER = 2
"""Nodes that something happens to at a time."""
LEASE_S = 0.5
TAKEN_OVER = 0.5
"""Of the nodes that are away for longer than their lease, so many until something of theirs is taken over."""
PATIENCE_S = 2.0
"""... but no longer: those who would take it over may all be waiting for that very node."""
LINGER_S = 0.3
"""... and then up to so long."""
CUT_S = 1.0
"""A node is cut off from the clients, and keeps its lease, for up to so long."""
PROGRESS_SIZE = 8_000
"""Bytes that the clients write down, some 30 calls, before the next thing happens."""
MORTAL_S = 1.5
"""A client that is killed is, within that time."""
STUCK_S = 60.0
"""For a condition to hold; most take the time of a lease."""
LOOK_S = 0.02
FAULTS_MAX = 50
"""Of one campaign: the next begins with an empty store, so that accounts stay small."""
PORT = 21_919
"""Below those that the system gives to connections: one of them could be to itself."""

Condition = Callable[[], bool]


class _Fault(NamedTuple):
    kind: str
    steps: Iterator[Condition]
    holds: Condition
    """Then it goes on."""
    since: float


class Campaign:
    """One campaign: `report` is what came of it.  `faults` are the names of what happens."""

    def __init__(
        self,
        seed: str,
        faults: list[str],
        directory: str,
        postgres: PostgresServer,
        lan: Lan | None = None,
        mutant: str = "",
    ) -> None:
        self._seed, self._faults, self._directory = seed, faults, directory
        self._postgres, self._lan, self._mutant = postgres, lan, mutant
        self._url = postgres.new_url()
        self._checked = "&durability=replicated" if isinstance(postgres, PostgresReplicas) else ""
        """At the end of the URL that the nodes have."""
        self._board = Board(NODES)
        self._chance = random.Random(seed)
        # Every process has loopback addresses to itself.
        pid = os.getpid()
        hosts = [f"127.{64 + (pid >> 16 & 63)}.{pid >> 8 & 255}.{pid & 255}"] * NODES
        if lan is not None:
            hosts = [lan.address(slot) for slot in range(NODES)]
        self._addresses = [f"{host}:{PORT + slot}" for slot, host in enumerate(hosts)]
        self._uris = [f"PYRO:Account/{n}@{self._addresses[n % NODES]}" for n in range(ACCOUNTS)]
        self._nodes: dict[int, int] = {}
        """By process, the slot."""
        self._doomed: set[int] = set()
        """Processes of nodes that have been killed."""
        self._clients: dict[int, tuple[str, float]] = {}
        """By process: the kind, and when it is killed."""
        self._clients_started = 0
        self._going: dict[int, _Fault] = {}
        """By slot; that of the database is -1."""
        self._written = 0
        """What the clients had written down when the last fault began, in bytes."""
        self._lives: dict[int, str] = {}
        """By slot, of the nodes that are live: what the database said last."""
        self._connection: psycopg.Connection[Any] | None = None
        self._looked = 0.0
        self._counts: collections.Counter[str] = collections.Counter()
        self._wrong: list[str] = []

    def run(self) -> dict[str, Any]:
        """Run it to its end; what came of it."""
        begun = time.monotonic()
        try:
            for slot in range(NODES):
                self._start_node(slot)
            self._until(lambda: len(self._lives) == NODES, "all nodes are there")
            for kind in (STEADY, STEADY, STEADY, HASTY, MORTAL, STOCK):
                self._start_client(kind)
            while (self._faults or self._going) and not self._wrong:
                self._begin_faults()
                self._turn()
                self._go_on()
            if not self._wrong:
                self._finish()
        finally:
            for pid in (*self._nodes, *self._clients):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._counts["repeated"] = sum(self._board.get(slot, "repeated") for slot in range(NODES))
        return {
            "seed": self._seed,
            "seconds": round(time.monotonic() - begun, 1),
            "counts": dict(self._counts),
            "wrong": self._wrong,
        }

    # -- faults --------------------------------------------------------------------------------------

    def _begin_faults(self) -> None:
        written = sum(path.stat().st_size for path in pathlib.Path(self._directory).glob("*.calls"))
        if len(self._going) >= TOGETHER or written < self._written + PROGRESS_SIZE:
            return
        for kind in self._faults:
            slots = [-1] if kind == "failovers" else [*self._lives]
            slots = [slot for slot in slots if slot not in self._going]
            if slots:
                slot = self._chance.choice(slots)
                self._faults.remove(kind)
                steps = self._fail_over() if kind == "failovers" else getattr(self, f"_{kind}")(slot)
                self._going[slot] = _Fault(kind, steps, lambda: True, time.monotonic())
                self._written = written
                return

    def _go_on(self) -> None:
        now = time.monotonic()
        for slot, fault in [*self._going.items()]:
            if fault.holds():
                try:
                    self._going[slot] = fault._replace(holds=next(fault.steps), since=now)
                except StopIteration:
                    del self._going[slot]
                    self._counts[fault.kind] += 1
            elif now > fault.since + STUCK_S:
                self._wrong.append(
                    f"{fault.kind} of node {slot} did not go on in {STUCK_S} s:\n{self._log()}"
                )

    def _kills(self, slot: int) -> Iterator[Condition]:
        life = self._lives[slot]
        pid = self._kill(slot)
        yield lambda: pid not in self._nodes
        if self._chance.random() < 0.5:
            yield from self._is_over(slot, life)
            self._counts["killed for longer than the lease"] += 1
        self._start_node(slot)
        yield self._back(slot, life)

    def _pauses(self, slot: int) -> Iterator[Condition]:
        life = self._lives[slot]
        (pid,) = (pid for pid, of in self._nodes.items() if of == slot)
        os.kill(pid, signal.SIGSTOP)
        yield from self._is_over(slot, life)
        os.kill(pid, signal.SIGCONT)
        yield lambda: slot in self._lives

    def _partitions(self, slot: int) -> Iterator[Condition]:
        assert self._lan is not None
        life, (kind,) = self._lives[slot], self._chance.choices(CUTS, (2, 2, 1))
        self._counts[f"cut off from {kind}"] += 1
        towards = {"all": "", "the database": DATABASE, "the clients": CLIENTS}[kind]
        self._lan.cut(slot, towards)
        if kind == "the clients":
            yield self._later(self._chance.uniform(0, CUT_S))
        else:
            yield from self._is_over(slot, life)
        self._lan.heal(slot, towards)
        yield lambda: slot in self._lives

    def _fail_over(self) -> Iterator[Condition]:
        replicas = self._postgres
        assert isinstance(replicas, PostgresReplicas)
        yield lambda: replicas.followers == 2
        replicas.stop_replicating()
        yield lambda: replicas.commits_waiting > 0
        killed = replicas.fail_over()
        yield lambda: len(self._lives) == NODES - len(self._going) + 1  # they have found the new one
        replicas.begin_again(killed)
        yield replicas.has_begun_again

    def _is_over(self, slot: int, life: str) -> Iterator[Condition]:
        """Steps until the lease of this life has ended, and perhaps others have what it had."""
        yield lambda: self._lives.get(slot) != life
        had = self._owns(life)
        if had and self._chance.random() < TAKEN_OVER:
            patience = self._later(PATIENCE_S)
            yield lambda: self._owns(life) < had or patience()
        yield self._later(self._chance.uniform(0, LINGER_S))

    def _owns(self, life: str) -> int:
        """How many objects the database says this life has; that they cannot be had is not in it."""
        with contextlib.suppress(psycopg.Error):
            return int(self._rows("SELECT count(*) FROM object WHERE owner = %s", life)[0][0])
        return 0

    def _back(self, slot: int, life: str) -> Condition:
        return lambda: self._lives.get(slot, life) != life

    def _later(self, seconds: float) -> Condition:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() >= end

    # -- what the database says ----------------------------------------------------------------------

    def _look(self) -> None:
        """Who is live.  While there is no database, what it said last counts."""
        sql = "SELECT name, life FROM node WHERE state <> 'dead'"
        sql += " AND expires_at > extract(epoch FROM clock_timestamp())"
        with contextlib.suppress(psycopg.Error):
            self._lives = {int(name): life for name, life in self._rows(sql)}

    def _rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._url.replace("+psycopg", ""), autocommit=True)
        return self._connection.execute(sql.encode(), parameters or None).fetchall()

    # -- processes -----------------------------------------------------------------------------------

    def _start_node(self, slot: int) -> None:
        enter: Callable[[], None] = partial(self._lan.enter, slot) if self._lan is not None else lambda: None
        mutant = "" if self._mutant.startswith("clients") else self._mutant
        address, url = self._addresses[slot], self._url + self._checked
        pid = self._fork(kill_server.serve_node, self._board, slot, address, url, LEASE_S, enter, mutant)
        self._nodes[pid] = slot

    def _kill(self, slot: int) -> int:
        (pid,) = (pid for pid, of in self._nodes.items() if of == slot)
        self._doomed.add(pid)
        os.kill(pid, signal.SIGKILL)
        return pid

    def _start_client(self, kind: str) -> None:
        self._clients_started += 1
        number = self._clients_started
        mutant = self._mutant if self._mutant.startswith("clients") else ""
        path = f"{self._directory}/{number}.calls"
        pid = self._fork(kill_clients.call, kind, number, self._uris, self._seed, path, self._board, mutant)
        within = self._chance.uniform(0, MORTAL_S) if kind == MORTAL else float("inf")
        self._clients[pid] = kind, time.monotonic() + within

    def _fork(self, work: Callable[..., NoReturn], *arguments: Any) -> int:
        return fork(f"{self._directory}/log", work, *arguments)

    def _turn(self) -> None:
        """Until a process has ended, or a moment; then look at everything."""
        signal.sigtimedwait({signal.SIGCHLD}, LOOK_S)
        for pid in (*self._nodes, *self._clients):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended and pid in self._nodes:
                self._node_ended(pid, self._nodes.pop(pid), status)
            elif ended:
                self._client_ended(self._clients.pop(pid)[0], status)
        now = time.monotonic()
        for pid, (kind, due) in self._clients.items():
            if now >= due:
                self._clients[pid] = kind, float("inf")
                os.kill(pid, signal.SIGKILL)
        if now >= self._looked + LOOK_S:
            self._look()
            self._looked = now

    def _node_ended(self, pid: int, slot: int, status: int) -> None:
        if pid in self._doomed:
            self._doomed.remove(pid)
        elif os.waitstatus_to_exitcode(status) == START_AGAIN:
            self._counts["started in vain"] += 1
            self._start_node(slot)
        else:
            self._wrong.append(f"node {slot} ended by itself ({status:#x}):\n{self._log()}")

    def _client_ended(self, kind: str, status: int) -> None:
        if os.WIFSIGNALED(status) and kind == MORTAL:
            self._counts["clients killed"] += 1
            if not self._board.over:
                self._start_client(kind)
        elif status or not self._board.over:
            self._wrong.append(f"a {kind} client ended by itself ({status:#x}):\n{self._log()}")

    def _until(self, holds: Condition, what: str) -> None:
        end = time.monotonic() + 2 * STUCK_S
        while not holds() and not self._wrong:
            if time.monotonic() > end:
                self._wrong.append(f"it is not so that {what}:\n{self._log()}")
            self._turn()

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return pathlib.Path(f"{self._directory}/log").read_text(errors="replace")[-6000:]
        return ""

    # -- the end -------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The clients end; the nodes start for the last time, so that nothing is under way that a stock
        client has given up; then it is judged, in another process."""
        self._board.stop()
        self._until(lambda: not self._clients, "all clients come to an end")
        before = dict(self._lives)
        for slot in range(NODES):
            self._kill(slot)
        self._until(lambda: not self._nodes, "the nodes have ended")
        for slot in range(NODES):
            self._start_node(slot)
        self._until(lambda: all(self._back(*old)() for old in before.items()), "all nodes are back")
        if self._wrong:
            return
        self._counts["owners changed"] = int(self._rows("SELECT sum(epoch - 1) FROM object")[0][0])
        found = f"{self._directory}/found"
        _, status = os.waitpid(self._fork(self._judge, found), 0)
        if status:
            self._wrong.append(f"the campaign could not be judged:\n{self._log()}")
            return
        counts, wrong = json.loads(pathlib.Path(found).read_text())
        self._counts.update(counts)
        self._wrong += wrong

    def _judge(self, path: str) -> NoReturn:
        room, end = Proxy(f"PYRO:Room@{self._addresses[0]}", timeout_s=STUCK_S), time.monotonic() + STUCK_S
        while room.messages_waiting():
            if time.monotonic() > end:
                raise AssertionError("messages do not arrive")
            time.sleep(0.01)
        now = time.monotonic_ns()
        accounts = [reach(uri).statement() for uri in self._uris]
        calls = kill_clients.read(f"{self._directory}/{n + 1}.calls" for n in range(self._clients_started))
        found = judge(calls, accounts, now)
        pathlib.Path(path).write_text(json.dumps([found.counts, found.wrong]))
        os._exit(0)


def run(wanted: dict[str, int], seed: int, *, mutant: str = "") -> Iterator[dict[str, Any]]:
    """The reports of as many campaigns as have so many faults of each kind together.

    For a process without threads.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    faults = [kind for kind in KINDS for _ in range(wanted.get(kind, 0))]
    random.Random(seed).shuffle(faults)
    lan = Lan(NODES) if "partitions" in faults else None
    postgres = PostgresReplicas() if "failovers" in faults else PostgresServer(listen=DATABASE if lan else "")
    try:
        for number, at in enumerate(range(0, len(faults), FAULTS_MAX)):
            directory = tempfile.mkdtemp(prefix="objserver-faults-")
            try:
                some = faults[at : at + FAULTS_MAX]
                yield Campaign(f"{seed} {number}", some, directory, postgres, lan, mutant).run()
            finally:
                shutil.rmtree(directory, ignore_errors=True)
    finally:
        postgres.stop()
        if lan is not None:
            lan.close()


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m objserver.testing.cluster_faults",
        description="a cluster with real faults, under load",
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the clients' choices")
    parser.add_argument("--mutant", choices=list(MUTANTS), default="", help="make it wrong on purpose")
    options = parser.parse_args()
    if options.partitions and options.failovers:
        parser.error("partitions are of a network, and the replicas are not in it: run them one by one")
    counts: collections.Counter[str] = collections.Counter()
    wrong = 0
    for report in run({kind: getattr(options, kind) for kind in KINDS}, options.seed, mutant=options.mutant):
        print(json.dumps(report), flush=True)
        counts.update(report["counts"])
        wrong += len(report["wrong"])
    print(json.dumps({"counts": dict(counts), "wrong": wrong}), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(_main())
