"""`objserver names`: what a name server knows, for people as a table, for programs as lines or as JSON.

A URI is there to be copied, so it is never cut or folded: of a table too wide for the terminal the metadata
are folded, and if that does not help, the lines are left to the terminal to wrap.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from objserver import errors
from objserver.cli import ExitCode, Failure, name_server_proxy, visible
from objserver.cli.completion import complete_name

__all__ = ["names"]

_REST = 20
"""Columns left to the metadata, which may be folded, and to what separates."""


def _asking(command: Any) -> Any:
    """The options of every command that asks a name server."""
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="For each question.",
    )
    nameserver = click.option(
        "--nameserver", metavar="HOST:PORT", help="The name server to ask.  [default: this machine's]"
    )
    return nameserver(timeout(command))


class _ListsByDefault(click.Group):
    """`objserver names --prefix shop.` is `objserver names ls --prefix shop.`"""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["ls", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListsByDefault)
def names() -> None:
    """Ask a name server, ours or Pyro5's; without a command, list the names in it.

    \b
    Examples:
      objserver names
      objserver names ls --prefix shop. --json
      objserver names get shop.cart
      objserver names --nameserver localhost:9095
    """


@names.command()
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("--tag", "tags", multiple=True, help="Only names with this in their metadata; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print an object: name -> uri and metadata.")
@_asking
def ls(prefix: str, tags: tuple[str, ...], as_json: bool, nameserver: str | None, timeout: float) -> None:
    """List the names: a table on a terminal, else a line for each.

    A line has name, URI and metadata, with tabs between.

    \b
    Examples:
      objserver names ls
      objserver names ls --prefix shop. --tag open --json
    """
    with name_server_proxy(nameserver, timeout) as directory:
        if tags:
            found = directory.yplookup(meta_all=sorted(set(tags)), return_metadata=True)
        else:
            found = directory.list(prefix=prefix or None, return_metadata=True)
    rows = {
        name: (str(uri), sorted(metadata or ()))
        for name, (uri, metadata) in sorted(found.items())
        if name.startswith(prefix)
    }
    if as_json:
        click.echo(json.dumps({name: {"uri": uri, "metadata": tags} for name, (uri, tags) in rows.items()}))
        return
    lines = [[visible(text) for text in (name, uri, " ".join(tags))] for name, (uri, tags) in rows.items()]
    if sys.stdout.isatty():
        _show(lines)
        return
    for line in lines:
        click.echo("\t".join(line))


@names.command()
@click.argument("name", shell_complete=complete_name)
@click.option("--json", "as_json", is_flag=True, help="Print an object: name, uri and metadata.")
@_asking
def get(name: str, as_json: bool, nameserver: str | None, timeout: float) -> None:
    """Print the URI behind NAME; the exit code is 3 if nobody has registered it.

    \b
    Examples:
      objserver names get shop.cart
      objserver call "$(objserver names get shop.cart)"
    """
    with name_server_proxy(nameserver, timeout) as directory:
        found = directory.list(prefix=name, return_metadata=True)
        if name not in found:
            hint = errors.did_you_mean(name, directory.list())
            raise Failure(f"nobody has registered the name {name!r}{hint}", code=ExitCode.NOT_CALLED)
    uri, metadata = found[name]
    if as_json:
        click.echo(json.dumps({"name": name, "uri": str(uri), "metadata": sorted(metadata or ())}))
    else:
        click.echo(visible(str(uri)))


def _show(lines: list[list[str]]) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    name_width = max(cell_len(name) for name in ("name", *(line[0] for line in lines)))
    uri_width = max(cell_len(uri) for uri in ("uri", *(line[1] for line in lines)))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("name", width=name_width)
    table.add_column("uri", width=uri_width)
    table.add_column("metadata", overflow="fold")
    for line in lines:
        # Text, since names come from anybody and must not be read as markup.
        table.add_row(*map(Text, line))
    console = Console()
    console.width = max(console.width, name_width + uri_width + _REST)
    console.print(table)
