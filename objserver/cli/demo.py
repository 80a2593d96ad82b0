"""`objserver demo`: the main job, on real input, on this machine.

A name server, an object server and several clients run as processes of their own.  First a bank, whose server
is killed (SIGKILL) in the middle of deposits: afterwards every acknowledged deposit must be there, and
those whose outcome the clients could not know are named and settled.  Then a search index over the source
text of Python's standard library, one persistent object a module, checked against the text itself.

The demo fails (exit code 1) if any of this does not hold, so it is a test that people like to watch.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from objserver.cli.demo_objects import STOCK_CLIENT, location_of_modules
from objserver.client import Proxy
from objserver.errors import CommunicationError
from objserver.references import NAMESERVER_ID

__all__ = ["demo"]

_OWNERS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")
_OURS = (sys.executable, "-m", "objserver.cli.demo_objects")
_PATIENCE_S = 120
"""A client that takes longer than this is stuck."""
_WORDS_TO_ASK = ("heapq", "import")
"""Shown is the answer about the first that occurs; a small index has only the second."""


class _Processes:
    """The demo's children.  Leaving the context ends them all, whatever happened."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, label: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to files: a pipe that nobody empties would block it."""
        with open(self.directory / f"{label}.out", "wb") as out:
            with open(self.directory / f"{label}.err", "wb") as err:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.running.append(process)
        return process

    def said(self, label: str, stream: str = "out") -> str:
        return (self.directory / f"{label}.{stream}").read_text(errors="replace")

    def failed(self, label: str) -> click.ClickException:
        return click.ClickException(f"the process {label!r} failed:\n{self.said(label, 'err')[-2000:]}")

    def server(self, label: str, *args: str) -> tuple[subprocess.Popen[bytes], str]:
        """Start an object server; returns when it has said where it listens."""
        process = self.start(label, *_OURS, "serve", *args)
        deadline = time.monotonic() + 20
        while not self.said(label).endswith("\n"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise self.failed(label)
            time.sleep(0.01)
        return process, self.said(label).strip()

    def answers(self, clients: dict[str, subprocess.Popen[bytes]]) -> list[dict[str, Any]]:
        """What the clients report, when all have ended."""
        deadline = time.monotonic() + _PATIENCE_S
        for label, process in clients.items():
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise self.failed(label) from None
            if code:
                raise self.failed(label)
        return [json.loads(self.said(label)) for label in clients]


@click.command(short_help="Watch it work: a bank, and a search index.")
@click.option("--modules", default=400, show_default=True, type=click.IntRange(1), help="Modules to index.")
@click.option(
    "--clients",
    default=4,
    show_default=True,
    type=click.IntRange(2, 64),
    help="Client processes; one is stock.",
)
@click.option(
    "--seconds", default=6.0, show_default=True, type=click.FloatRange(0.5), help="How long the bank runs."
)
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=pathlib.Path), help="Keep store and logs there."
)
def demo(modules: int, clients: int, seconds: float, keep: pathlib.Path | None) -> None:
    """A bank whose server is killed, and a search index over Python's own sources."""
    console = Console()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_leaving_on_sigterm())
        if keep is None:
            directory = pathlib.Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="objserver-demo-"))
            )
        else:
            keep.mkdir(parents=True, exist_ok=True)
            directory = keep.absolute()
        # A second run in the same directory must not find the balances of the first.
        for old in directory.glob("demo.db*"):
            old.unlink()
        processes = stack.enter_context(_Processes(directory))
        problems = _run(console, processes, modules, clients, seconds)
    for problem in problems:
        console.print(f"[bold red]VIOLATED[/] {problem}")
    if problems:
        raise SystemExit(1)


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Make SIGTERM an exception, as Ctrl-C is, so that the contexts inside end what they began."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(console: Console, processes: _Processes, modules: int, clients: int, seconds: float) -> list[str]:
    owners = [_OWNERS[n] if n < len(_OWNERS) else f"owner{n}" for n in range(clients - 1)]
    name_server = _start_name_server(processes)
    serve = (name_server, f"sqlite:///{processes.directory / 'demo.db'}", ",".join([*owners, "pyro5"]))
    server, address = processes.server("server", serve[0], "localhost:0", *serve[1:])
    console.print(f"name server at {name_server}, object server at {address} (pid {server.pid})")
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        accounts, recovery_s = _bank(progress, processes, server, address, serve, owners, seconds)
        listing = _sources(modules)
        filled, fill_s = _index(progress, processes, name_server, listing, clients)
        found, search_s = _search(progress, processes, name_server, listing, clients)
    problems = _settle(console, accounts)
    problems += [f"{word!r}: index and source text disagree" for each in found for word in each["wrong"]]
    with Proxy(f"PYRONAME:Index@{name_server}", timeout_s=30) as index:
        count, words = index.size()
    if count != len(listing):
        problems.append(f"{len(listing)} modules were indexed, but the index knows {count}")

    _ask(console, name_server, count)
    figures = _table("part")
    for heading in ("objects", "calls", "calls/s", "p50"):
        figures.add_column(heading, justify="right")
    for part, objects, reports, lasted_s in (
        ("bank", len(accounts), accounts, seconds),
        ("index", count + 1, filled, fill_s),
        ("search", count + 1, found, search_s),
    ):
        figures.add_row(part, f"{objects:,}", *_speed(reports, lasted_s))
    source, stored = _sum(filled, "source"), _sum(filled, "stored")
    searched, verified = _sum(found, "words"), _sum(found, "verified")
    notes = (
        "",
        f"bank        {_sum(accounts, 'acknowledged')} acknowledged deposits, 1 client stock Pyro5",
        f"index       {source} bytes of source, {words:,} words, {stored} bytes stored",
        f"search      {searched} words, {verified} verified against the source text",
        f"recoveries  1 (kill -9, serving again after {recovery_s:.2f} s)",
    )
    _show(console, "objserver demo: what was done, and how fast", figures, *notes)
    return problems


def _table(*names: str) -> Table:
    """A table that begins with columns of names, which are never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _show(console: Console, title: str, *what: Table | str) -> None:
    console.print(f"\n[bold]{title}[/]", highlight=False)
    for each in what:
        console.print(each, highlight=False, soft_wrap=isinstance(each, str))


def _sum(reports: list[dict[str, Any]], what: str) -> str:
    return f"{sum(each[what] for each in reports):,}"


def _speed(reports: list[dict[str, Any]], lasted_s: float) -> tuple[str, str, str]:
    """How many calls, how many a second, and how long one took in the middle of all."""
    latencies = [latency for each in reports for latency in each["latencies"]]
    middle = f"{statistics.median(latencies) / 1000:.2f} ms" if latencies else "-"
    return f"{len(latencies):,}", f"{len(latencies) / lasted_s:,.0f}", middle


def _start_name_server(processes: _Processes) -> str:
    # The port is chosen here and not read from the command's output, which is for people.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"localhost:{probe.getsockname()[1]}"
    # No beacon: its port may be taken, by a name server that runs here for other reasons.
    options = ("--address", address, "--no-beacon")
    process = processes.start("nameserver", sys.executable, "-m", "objserver", "nameserver", *options)
    deadline = time.monotonic() + 20
    while True:
        try:
            with Proxy(f"PYRO:{NAMESERVER_ID}@{address}", timeout_s=5) as directory:
                directory.ping()
            return address
        except CommunicationError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise processes.failed("nameserver") from None
            time.sleep(0.02)


# -- the bank ----------------------------------------------------------------------------------------


def _bank(
    progress: Progress,
    processes: _Processes,
    server: subprocess.Popen[bytes],
    address: str,
    serve: tuple[str, str, str],
    owners: list[str],
    seconds: float,
) -> tuple[list[dict[str, Any]], float]:
    task = progress.add_task("bank: deposits", total=seconds)
    uri = f"PYRONAME:Account/pyro5@{serve[0]}"
    clients = {
        "bank-pyro5": processes.start("bank-pyro5", sys.executable, "-c", STOCK_CLIENT, uri, str(seconds))
    }
    for owner in owners:
        label = f"bank-{owner}"
        clients[label] = processes.start(label, *_OURS, "bank", serve[0], owner, str(seconds))
    # The kill must meet clients at work, and they take a moment to start.
    with Proxy(f"PYRO:Account/{owners[0]}@{address}", timeout_s=5) as account:
        give_up = time.monotonic() + 20
        while not account.statement() and time.monotonic() < give_up:
            time.sleep(0.02)
    began = time.monotonic()
    _watch(progress, task, began, seconds / 2)
    server.kill()
    server.wait()
    killed = time.monotonic()
    progress.update(task, description="bank: server killed (-9)")
    processes.server("server-again", serve[0], address, *serve[1:])
    recovery_s = time.monotonic() - killed
    progress.update(task, description="bank: server is back")
    _watch(progress, task, began, seconds)
    return processes.answers(clients), recovery_s


def _watch(progress: Progress, task: Any, began: float, until: float) -> None:
    while (passed := time.monotonic() - began) < until:
        progress.update(task, completed=passed)
        time.sleep(0.05)
    progress.update(task, completed=until)


def _settle(console: Console, accounts: list[dict[str, Any]]) -> list[str]:
    """Compare what clients were told with what the accounts hold; the violations."""
    problems = []
    table = _table("account", "client")
    for heading in ("acknowledged", "unknown", "of which done", "balance"):
        table.add_column(heading, justify="right")
    for each in accounts:
        happened = each["balance"] - each["acknowledged"]
        name = f"Account/{each['owner']}"
        figures = (each["acknowledged"], each["unknown"], happened, each["balance"])
        table.add_row(name, each["kind"], *(f"{figure:,}" for figure in figures))
        if not 0 <= happened <= each["unknown"]:
            problems.append(
                f"{name}: balance {each['balance']}, {each['acknowledged']} deposits acknowledged and "
                f"{each['unknown']} unknown"
            )
        if not each["acknowledged"]:
            problems.append(f"{name}: no deposit was acknowledged, so nothing was shown")
    _show(console, "bank: settled after kill -9", table)
    return problems


# -- the search index --------------------------------------------------------------------------------


def _sources(limit: int) -> list[tuple[str, str]]:
    """(module name, path) of the standard library, tests and installed packages left out."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    unwanted = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if unwanted.isdisjoint(inside.parts):
            found.append((".".join(inside.with_suffix("").parts), str(path)))
            if len(found) == limit:
                break
    return found


def _index(
    progress: Progress,
    processes: _Processes,
    name_server: str,
    listing: list[tuple[str, str]],
    clients: int,
) -> tuple[list[dict[str, Any]], float]:
    task = progress.add_task("index: modules", total=len(listing))
    (processes.directory / "modules.json").write_text(json.dumps(listing))
    began = time.monotonic()
    running = _share_out(processes, "fill", name_server, clients)
    with Proxy(f"PYRONAME:Index@{name_server}", timeout_s=30) as index:
        while any(process.poll() is None for process in running.values()):
            progress.update(task, completed=index.size()[0])
            time.sleep(0.1)
    passed = time.monotonic() - began
    progress.update(task, completed=len(listing))
    return processes.answers(running), passed


def _search(
    progress: Progress,
    processes: _Processes,
    name_server: str,
    listing: list[tuple[str, str]],
    clients: int,
) -> tuple[list[dict[str, Any]], float]:
    task = progress.add_task("search: words", total=clients)
    began = time.monotonic()
    running = _share_out(processes, "search", name_server, clients)
    while any(process.poll() is None for process in running.values()):
        progress.update(task, completed=sum(process.poll() is not None for process in running.values()))
        time.sleep(0.05)
    passed = time.monotonic() - began
    progress.update(task, completed=clients)
    return processes.answers(running), passed


def _ask(console: Console, name_server: str, count: int) -> None:
    """One question to the index as a user would put it, and what comes back."""
    where = location_of_modules(name_server)
    with Proxy(f"PYRONAME:Index@{name_server}", timeout_s=30) as index:
        for word in _WORDS_TO_ASK:
            names: list[str] = index.modules_with(word)
            if names:
                break
    lines = {}
    for name in names:
        with where(name) as module:
            lines[name] = module.lines(word)
    most = sorted(names, key=lambda name: (-lines[name], name))[:3]
    answer = f"{len(names)} of {count:,} modules; most lines in " + ", ".join(
        f"{name} ({lines[name]})" for name in most
    )
    _show(console, "search: one query and its answer", f"which modules contain {word!r}?", answer)


def _share_out(
    processes: _Processes, role: str, name_server: str, clients: int
) -> dict[str, subprocess.Popen[bytes]]:
    listing = str(processes.directory / "modules.json")
    return {
        f"{role}-{n}": processes.start(
            f"{role}-{n}", *_OURS, role, name_server, listing, str(n), str(clients)
        )
        for n in range(clients)
    }


if __name__ == "__main__":
    demo()
