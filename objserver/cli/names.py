"""`objserver names`: what a name server knows, for people as a table, for programs as lines or as JSON.

A URI is there to be copied, so it is never cut or folded: of a table too wide for the terminal the metadata
are folded, and if that does not help, the lines are left to the terminal to wrap.
"""

from __future__ import annotations

import json
import sys

import click

from objserver.cli import name_server_proxy

__all__ = ["names"]

_REST = 20
"""Columns left to the metadata, which may be folded, and to what separates."""


@click.command()
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("--json", "as_json", is_flag=True, help="Print an object: name -> uri and metadata.")
@click.option("--nameserver", metavar="HOST:PORT", help="The name server to ask.  [default: this machine's]")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=10.0, metavar="SECONDS")
def names(prefix: str, as_json: bool, nameserver: str | None, timeout: float) -> None:
    """List the names in a name server, ours or Pyro5's.

    What is not written to a terminal has a line for each name: name, URI and metadata with tabs between.

    \b
    Examples:
      objserver names
      objserver names --prefix shop. --json
      objserver names --nameserver localhost:9095
    """
    with name_server_proxy(nameserver, timeout) as directory:
        found = directory.list(prefix=prefix or None, return_metadata=True)
    rows = {name: (str(uri), sorted(metadata or ())) for name, (uri, metadata) in sorted(found.items())}
    if as_json:
        click.echo(json.dumps({name: {"uri": uri, "metadata": tags} for name, (uri, tags) in rows.items()}))
        return
    lines = [[_visible(text) for text in (name, uri, " ".join(tags))] for name, (uri, tags) in rows.items()]
    if not sys.stdout.isatty():
        for line in lines:
            click.echo("\t".join(line))
        return
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


def _visible(text: str) -> str:
    """Without what would end a line or steer the terminal: names come from anybody."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
