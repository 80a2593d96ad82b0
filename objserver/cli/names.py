"""`objserver names`: what a name server knows, for people as a table and for programs as JSON."""

from __future__ import annotations

import json

import click

from objserver.cli import name_server_at

__all__ = ["names"]


@click.command()
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("--json", "as_json", is_flag=True, help="Print an object: name -> uri and metadata.")
@click.option("--nameserver", metavar="HOST:PORT", help="The name server to ask.  [default: this machine's]")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=10.0, metavar="SECONDS")
def names(prefix: str, as_json: bool, nameserver: str | None, timeout: float) -> None:
    """List the names in a name server, ours or Pyro5's.

    \b
    Examples:
      objserver names
      objserver names --prefix shop. --json
      objserver names --nameserver localhost:9095
    """
    from objserver.client import Proxy

    with Proxy(name_server_at(nameserver), timeout_s=timeout) as directory:
        found = directory.list(prefix=prefix or None, return_metadata=True)
    rows = {name: (str(uri), sorted(metadata or ())) for name, (uri, metadata) in sorted(found.items())}
    if as_json:
        click.echo(json.dumps({name: {"uri": uri, "metadata": tags} for name, (uri, tags) in rows.items()}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "uri", "metadata")
    for name, (uri, tags) in rows.items():
        # Text, since names come from anybody and must not be read as markup.
        table.add_row(Text(name), Text(uri), Text(" ".join(tags)))
    console = Console()
    # Nobody reads columns folded for a terminal that is not there.
    console.print(table, width=None if console.is_terminal else 400)
