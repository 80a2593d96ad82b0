"""`objserver migrate` and `objserver cluster`: move an object, drain a node, ask who has what.

All of them call the desk of a node (`objserver.cluster.desk`); which node it is does not matter.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from objserver import errors
from objserver.cli import ExitCode, Failure, parse_address, visible
from objserver.cli.reaching import Shown, reaches_objects
from objserver.client import Proxy
from objserver.references import CLUSTER_ID, Reference, object_id

__all__ = ["asks_cluster", "cluster", "desk", "migrate"]

PATIENCE_S = 10.0
"""A node that needs longer for an answer is as good as none."""
_PAGE = 1_000


def asks_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options by which a cluster is reached, as its arguments `at` and `shown`."""
    option = click.option(
        "--at",
        envvar="OBJSERVER_AT",
        show_envvar=True,
        required=True,
        metavar="HOST:PORT,...",
        help="Any node of the cluster; of several the first that answers.",
    )
    return option(reaches_objects(command))


@contextmanager
def desk(at: str, shown: Shown, timeout_s: float = PATIENCE_S) -> Iterator[Proxy]:
    """A proxy of the cluster's desk.  What the desk refuses, for a reason it can say, ends the command."""
    with _found(at, shown, timeout_s) as proxy:
        try:
            yield proxy
        except ValueError as problem:
            if isinstance(problem, errors.ObjServerError):
                raise
            raise Failure(str(problem), code=ExitCode.NOT_CALLED) from problem


def _found(at: str, shown: Shown, timeout_s: float) -> Proxy:
    tls, credentials = shown.load()
    locations = [parse_address(part.strip()) for part in at.split(",")]
    silence: Exception | None = None
    for location in locations:
        reference = Reference("PYRO", CLUSTER_ID, location)
        proxy = Proxy(reference, timeout_s=timeout_s, tls=tls, credentials=credentials)
        try:
            proxy._objserver_stub.metadata()
            return proxy
        except errors.ObjectNotFound as problem:
            raise Failure(
                f"the server at {location} is no node of a cluster",
                advice="`objserver serve ... --cluster NAME` starts one that is.",
                code=ExitCode.NOT_CALLED,
            ) from problem
        except errors.AuthenticationFailed:
            raise
        except errors.ConnectFailed as problem:
            if len(locations) == 1:
                raise
            silence = problem
    names = " or ".join(map(str, locations))
    raise Failure(f"no server answers at {names}", code=ExitCode.NOT_CALLED) from silence


def _in_time(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="For the calls that run there to end.",
    )(command)


_as_json = functools.partial(click.option, "--json", "as_json", is_flag=True)


@click.command(short_help="Move an object to another node of its cluster.")
@click.argument("object", metavar="NAME/KEY")
@click.option("--to", required=True, metavar="NODE", help="The node that gets it, by its name.")
@_in_time
@_as_json(help="Print an object: object, node and address.")
@asks_cluster
def migrate(object: str, to: str, timeout_s: float, as_json: bool, at: str, shown: Shown) -> None:
    """Move an object to another node; its callers notice nothing but a moment's wait.

    The object is named as in its URI.  What runs in it ends first, what waits goes with it.

    \b
    Examples:
      objserver migrate Account/alice --to b --at localhost:9092
    """
    with desk(at, shown, timeout_s + PATIENCE_S) as asked:
        moved = asked.migrate(object, to, timeout_s)
    _say_where(moved, as_json)


@click.group(short_help="Drain a node, see which has what, change how clients come in.")
def cluster() -> None:
    """Direct a cluster, by asking any of its nodes.

    See also `objserver status`, `objserver top` and `objserver migrate`.

    \b
    Examples:
      objserver cluster drain b --at localhost:9092
      objserver cluster where Account/alice --at localhost:9092
      objserver cluster objects --node b --at localhost:9092
      objserver cluster entry distributed --at localhost:9092
    """


@cluster.command(short_help="Have a node hand over what it has, before it is stopped.")
@click.argument("node")
@_in_time
@asks_cluster
def drain(node: str, timeout_s: float, at: str, shown: Shown) -> None:
    """Have NODE hand over what it has, and take no more: then stop it, and no caller waits for that.

    The exit code is 1 if calls still run there after the timeout; what they run in is handed over when they
    end.  A node that is started again under its name takes objects again.

    \b
    Examples:
      objserver cluster drain b --at localhost:9092
    """
    with desk(at, shown, timeout_s + PATIENCE_S) as asked:
        drained = asked.drain(node, timeout_s)
    if not drained:
        raise Failure(
            f"calls still run at {node} after {timeout_s:g} s",
            advice="It takes nothing any more, and hands over what it has as they end.",
        )
    click.echo(f"{visible(node)} is drained")


@cluster.command(short_help="Say at which node an object is.")
@click.argument("object", metavar="NAME/KEY")
@_as_json(help="Print an object: object, node and address; null: nobody has it.")
@asks_cluster
def where(object: str, as_json: bool, at: str, shown: Shown) -> None:
    """Say at which node an object is.

    \b
    Examples:
      objserver cluster where Account/alice --at localhost:9092
    """
    with desk(at, shown) as asked:
        found = asked.where(object)
    _say_where(found, as_json)


@cluster.command(short_help="Have clients know one address, or all nodes.")
@click.argument("kind", required=False, type=click.Choice(["single", "distributed"]))
@click.option("--address", metavar="HOST:PORT", help="The single one.  [default: that of --at]")
@asks_cluster
def entry(kind: str | None, address: str | None, at: str, shown: Shown) -> None:
    """Say how clients come in, or change it while they call.

    With a single entry they know one address, and who is there calls for them what another node has.
    Distributed, they know all nodes, and each can go.  URIs and proxies made before stay good; proxies that
    are used have learned of a change after a few seconds, and then the entry may be stopped.

    \b
    Examples:
      objserver cluster entry --at localhost:9092
      objserver cluster entry distributed --at localhost:9092
      objserver cluster entry single --address lab.example:9091 --at localhost:9092
    """
    if address is not None and kind != "single":
        raise click.UsageError("--address goes with: entry single")
    with desk(at, shown) as asked:
        if kind is not None:
            single = str(parse_address(address or at)) if kind == "single" else ""
            asked.set_entry(single)
        single = asked.entry()
    click.echo(f"single: {visible(single)}" if single else "distributed")


def _say_where(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
    elif found["node"] is None:
        click.echo(f"{visible(found['object'])} is nobody's: where it is called, it will be")
    else:
        click.echo(f"{visible(found['object'])} is at {visible(found['node'])}, {visible(found['address'])}")


@cluster.command(short_help="List the objects, and which node has them.")
@click.option("--node", metavar="NAME", help="Only this node's.")
@click.option("--limit", type=click.IntRange(min=1), metavar="NUMBER", help="So many of each at most.")
@_as_json(help="Print an object: a list of objects for each node.")
@asks_cluster
def objects(node: str | None, limit: int | None, as_json: bool, at: str, shown: Shown) -> None:
    """List the stored objects that the nodes own, a line each: the node, a tab, the object.

    What is nobody's is in no list: `objserver store ls` has all.

    \b
    Examples:
      objserver cluster objects --at localhost:9092
      objserver cluster objects --node b --limit 20 --at localhost:9092
    """
    with desk(at, shown) as asked:
        if node is None:
            rows = asked.status()["nodes"]
            nodes = [row["node"] for row in rows if row["state"] in ("up", "draining")]
        else:
            nodes = [node]
        owned = {name: _owned(asked, name, limit) for name in nodes}
        if as_json:
            click.echo(json.dumps({name: list(found) for name, found in owned.items()}))
            return
        for name, found in owned.items():
            for each in found:
                click.echo(f"{visible(name)}\t{visible(each)}")


def _owned(asked: Proxy, node: str, limit: int | None) -> Iterator[str]:
    """By pages, as they are printed."""
    after, number = None, 0
    while True:
        size = _PAGE if limit is None else min(_PAGE, limit - number)
        page = asked.objects(node, after, size) if size else []
        for type, key in page:
            yield object_id(type, key) if key else type
        number += len(page)
        if len(page) < max(size, 1):
            return
        after = page[-1]
