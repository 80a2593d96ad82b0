"""`objserver status` and `objserver top`: the nodes of a cluster, once or all the time.

A terminal gets a table, a pipe lines with tabs.  What is known of a node is what it has said when it renewed
its lease last, so looking more often than that shows nothing new, and costs the nodes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import click

from objserver import errors
from objserver.cli import visible
from objserver.cli.cluster import asks_cluster, desk
from objserver.cli.reaching import Shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["status", "top"]

STYLES = {"up": "green", "draining": "yellow", "silent": "bold red", "dead": "dim"}
_WIDTH_OF_PIPES = 160
_SHOWN_S = 20
"""Of the calls in a second, as a curve."""
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = {
    "node": "node",
    "address": "address",
    "state": "state",
    "lease": "lease",
    "owned": "owned",
    "objects": "active",
    "load": "calls/s",
    "waiting": "waiting",
    "connections": "clients",
    "handed_over": "moved",
    "relayed": "relayed",
    "release": "release",
}
"""What is shown of a node, by what the desk calls it."""
_LEFT_OUT = ("release", "relayed", "connections", "handed_over", "lease", "address")
"""... where a terminal is too narrow for all, in this order."""
_OF_NOW = frozenset({"objects", "load", "waiting", "connections"})
_GONE = frozenset({"silent", "dead"})
_TEXTS = frozenset({"node", "address", "state", "release"})


@click.command(short_help="Show the nodes of a cluster.")
@click.option("--json", "as_json", is_flag=True, help="Print an object: the cluster and its nodes.")
@asks_cluster
def status(as_json: bool, at: str, shown: Shown) -> None:
    """Show the nodes of a cluster: a table, or lines with tabs into a pipe.

    \b
    state    up; draining: it hands over what it has; silent: its lease
             has run out; dead: it has stopped
    lease    seconds until others may take over if it stays silent
    owned    stored objects that are at this node
    active   ... of which are in memory right now
    waiting  calls that wait for a busy object
    clients  connections
    moved    objects handed over to others since it began
    relayed  calls made elsewhere for clients that do not go there themselves

    \b
    Examples:
      objserver status --at localhost:9092
      objserver status --at localhost:9092,localhost:9093 --json
    """
    with desk(at, shown) as asked:
        found = asked.status()
        owned = asked.tally()
    for row in found["nodes"]:
        row["owned"] = owned.get(row["node"], 0)
    if as_json:
        click.echo(json.dumps(found))
    elif sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(_heading(found))
        console.print(_table(console, found["nodes"]))
    else:
        for row in found["nodes"]:
            click.echo("\t".join(visible(_cell(row, name)) for name in _COLUMNS))


@click.command(short_help="Watch the nodes of a cluster.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@asks_cluster
def top(interval: float, at: str, shown: Shown) -> None:
    """Watch the nodes of a cluster until q or Ctrl-C; into a pipe, show them once.

    Those that have stopped are left out.

    `objserver status --help` explains the columns.  When the node that is asked ends, another one answers.

    \b
    Examples:
      objserver top --at localhost:9092
      objserver top --at localhost:9092 --interval 0.5
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_PIPES)
    curves: dict[str, deque[float]] = {}
    with desk(at, shown) as asked:
        if not sys.stdout.isatty():  # rich takes FORCE_COLOR for a terminal too
            found = _without_the_dead(asked.status())
            console.print(_heading(found))
            console.print(_table(console, found["nodes"], without=("owned",)))
            return
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        found, trouble, due = _without_the_dead(asked.status()), "", 0.0
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    if (now := time.monotonic()) >= due:
                        _draw(curves, found["nodes"], max(interval, 1.0))
                        due = now + 0.95  # a second, and waits are no shorter than they say
                    last = Text(trouble, "red") if trouble else Text("q quits", "dim")
                    table = _table(console, found["nodes"], curves, without=("owned",))
                    frame = Group(_heading(found), table, Text(), last)
                    live.update(frame, refresh=True)
                    if pressed(interval):
                        break
                    try:
                        found, trouble = _without_the_dead(asked.status()), ""
                    except errors.ObjServerError as problem:
                        trouble = trouble or visible(f"as of {time.strftime('%H:%M:%S')}: {problem}")


def _without_the_dead(found: dict[str, Any]) -> dict[str, Any]:
    """They are remembered for a day."""
    return {**found, "nodes": [row for row in found["nodes"] if row["state"] != "dead"]}


def _draw(curves: dict[str, deque[float]], rows: list[dict[str, Any]], interval_s: float) -> None:
    """One more point of each node's curve."""
    points = max(1, round(_SHOWN_S / interval_s))
    for row in rows:
        curve = curves.setdefault(row["node"], deque(maxlen=points))
        curve.append(0.0 if row["state"] in _GONE else row.get("load", 0.0))


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits so many seconds for a `q`, and says whether it came."""
    if not sys.stdin.isatty():

        def asleep(timeout_s: float) -> bool:
            time.sleep(timeout_s)
            return False

        yield asleep
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left)[0]:
                typed = os.read(descriptor, 64)
                if not typed or b"q" in typed.lower():
                    return True
        return False

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _heading(found: dict[str, Any]) -> Text:
    from rich.text import Text

    here = [row for row in found["nodes"] if row["state"] not in _GONE]
    total, waiting = (sum(row.get(name, 0) for row in here) for name in ("load", "waiting"))
    return Text.assemble(
        ("cluster ", "dim"),
        (visible(found["cluster"]), "bold"),
        (f"   {len(here)} of {len(found['nodes'])} nodes up   {total:,.0f} calls/s   {waiting:,} waiting"),
        (f"   {visible(found['answered'])} has answered", "dim"),
    )


def _table(
    console: Console,
    rows: list[dict[str, Any]],
    curves: dict[str, deque[float]] | None = None,
    without: tuple[str, ...] = (),
) -> Table:
    """As much of it as fits."""
    unbounded = console.options.update(max_width=10 * _WIDTH_OF_PIPES)
    for number in range(len(_LEFT_OUT) + 1):
        table = _whole_table(rows, curves, {*without, *_LEFT_OUT[:number]})
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
    return table


def _whole_table(
    rows: list[dict[str, Any]], curves: dict[str, deque[float]] | None, without: set[str]
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = [name for name in _COLUMNS if name not in without]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in names:
        table.add_column(_COLUMNS[name], justify="left" if name in _TEXTS else "right", no_wrap=True)
    most = 0.0
    if curves is not None:
        table.add_column(f"last {_SHOWN_S} s", no_wrap=True)
        most = max((load for curve in curves.values() for load in curve), default=0.0)
    for row in rows:
        gone = "dim" if row["state"] in _GONE else ""
        styles = {"node": "bold", "state": STYLES.get(row["state"], "")}
        # Text, since nodes choose their names, and those must not be read as markup.
        cells = [Text(visible(_cell(row, name)), styles.get(name, gone)) for name in names]
        if curves is not None:
            cells.append(Text(_curve(curves.get(row["node"], ()), most), "cyan"))
        table.add_row(*cells)
    return table


def _curve(values: Collection[float], most: float) -> str:
    if most <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / most * len(_BARS)))] for value in values)


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "lease":
        return f"{row['lease_s']:.1f}" if row["lease_s"] > 0 else "-"
    value = row.get(name)
    if value is None or (name in _OF_NOW and row["state"] in _GONE):
        return "-"
    if name in _TEXTS:
        return str(value)
    return f"{value:,.0f}"
