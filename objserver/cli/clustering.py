"""The options of a server that is a node of a cluster: which one, under what name, and what is placed where.

Nodes call each other, with relayed calls for instance, as clients do.  Where clients have to prove who they
are, so have they: `--node-credentials` and its like are what this node shows to the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from objserver.cli.reaching import Shown

__all__ = ["Clustering", "clustered"]

PLACEMENTS = {"local": "PreferLocal", "hash": "ByHash", "least-loaded": "LeastLoaded"}
_NODE = "node_"


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """What these options say."""

    cluster: str | None
    node: str | None
    placement: str | None
    pins: tuple[str, ...]
    shown: Shown

    def __post_init__(self) -> None:
        if self.cluster is None and (self.node or self.placement or self.pins or self.shown != Shown()):
            raise click.UsageError("--node..., --placement and --pin are for a node of a --cluster")
        for pin in self.pins:
            type, _, node = pin.partition("=")
            if not (type and node):
                raise click.UsageError(f"{pin!r} is not TYPE=NODE, for example --pin Account=a")

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the ObjectServer."""
        if self.cluster is None:
            return {}
        from objserver import cluster
        from objserver.security import Itself

        placement = getattr(cluster, PLACEMENTS[self.placement or "local"])()
        if self.pins:
            pinned = dict(pin.split("=", 1) for pin in self.pins)
            placement = cluster.Pinned(pinned, otherwise=placement)
        return {
            "cluster": self.cluster,
            "node": self.node or "",
            "placement": placement,
            "itself": Itself(*self.shown.load()),
        }


def _file(name: str, help: str) -> Any:
    return click.option(name, metavar="FILE", help=help)


_OPTIONS = (
    click.option("--cluster", metavar="NAME", help="Be a node of this cluster: the servers of one --store."),
    click.option("--node", metavar="NAME", help="This node's name in it.  [default: its address]"),
    click.option(
        "--placement",
        type=click.Choice(list(PLACEMENTS)),
        help="Where objects live that nobody has: where they are called first (local, the default), spread "
        "by their names, or where there is least to do.",
    ),
    click.option(
        "--pin",
        "pins",
        multiple=True,
        metavar="TYPE=NODE",
        help="... but those of this type at that node, while it is up; may be repeated.",
    ),
    _file("--node-tls-ca", "Believe other nodes of this authority."),
    _file("--node-tls-cert", "This node's certificate as a client of the others."),
    _file("--node-tls-key", "... and its key."),
    _file("--node-credentials", "This node's shared key or token, for the others."),
)


def clustered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options, as its argument `clustering`."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        shown = Shown.taken(given, _NODE)
        mine = {name: given.pop(name) for name in ("cluster", "node", "placement", "pins")}
        rest = {name: value for name, value in given.items() if not name.startswith(_NODE)}
        return command(*args, clustering=Clustering(**mine, shown=shown), **rest)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run
