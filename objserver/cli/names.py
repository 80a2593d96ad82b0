"""`objserver names`: what a name server knows, for people as a table, for programs as lines or as JSON.

A URI is there to be copied, so it is never cut or folded: of a table too wide for the terminal the metadata
are folded, and if that does not help, the lines are left to the terminal to wrap.

A name server may have more names than anybody reads.  They are asked for by the page, a terminal is shown
one page and told how to go on, and a program gets all.  Pyro5's own name server knows no pages and no
contexts; what it has is asked for at once, and what can be made of that is.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any

import click

from objserver import errors
from objserver.cli import ExitCode, Failure, name_server_proxy, visible
from objserver.cli.completion import complete_name
from objserver.cli.reaching import NAMESERVER, Names, reaches_names
from objserver.client import Proxy

__all__ = ["names"]

_REST = 20
"""Columns left to the metadata, which may be folded, and to what separates."""
_PAGE = 1_000
"""Names asked for at a time, and shown on a terminal unless told otherwise."""
_SHOWN_PER_CONTEXT = 50
"""... of one context of a tree: enough to see what kind of names they are."""
_WATCH_AGAIN_S = 5.0
"""A connection that broke, or a name server that was started anew, is noticed after that time."""

Rows = dict[str, tuple[str, list[str]]]
"""By name its URI and metadata."""


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
    return NAMESERVER(reaches_names(timeout(command)))


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
      objserver names set shop.till PYRO:till@localhost:9091 --tag open
      objserver names rm shop.till
      objserver names tree bank
      objserver names watch shop.
      objserver names --nameserver localhost:9095,localhost:9096
      objserver names --nameserver lab.example --nameserver-tls-ca ca.pem \\
        --nameserver-credentials me.toml
    """


@names.command()
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("--tag", "tags", multiple=True, help="Only names with this in their metadata; may be repeated.")
@click.option("--after", default="", metavar="NAME", help="Only names behind this one, in their order.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"So many at most.  [default: {_PAGE} on a terminal, else all]",
)
@click.option("--json", "as_json", is_flag=True, help="Print an object: name -> uri and metadata.")
@_asking
def ls(
    prefix: str,
    tags: tuple[str, ...],
    after: str,
    limit: int | None,
    as_json: bool,
    asked: Names,
    timeout: float,
) -> None:
    """List the names: a table on a terminal, else a line for each.

    A line has name, URI and metadata, with tabs between.

    \b
    Examples:
      objserver names ls
      objserver names ls --prefix shop. --tag open --json
      objserver names ls --limit 20 --after shop.cart
    """
    for_people = sys.stdout.isatty() and not as_json
    limit = limit or (_PAGE if for_people else None)
    with name_server_proxy(asked.load(), timeout) as directory:
        found = _entries(directory, prefix, tags, after)
        # One more than is shown, to know whether there are more.
        rows = dict(itertools.islice(found, None if limit is None else limit + 1))
    more = limit is not None and len(rows) > limit
    if more:
        rows.popitem()
    if as_json:
        click.echo(json.dumps({name: {"uri": uri, "metadata": tags} for name, (uri, tags) in rows.items()}))
        return
    lines = [[visible(text) for text in (name, uri, " ".join(tags))] for name, (uri, tags) in rows.items()]
    if not for_people:
        for line in lines:
            click.echo("\t".join(line))
        return
    _show(lines)
    if more:
        click.secho(
            f"There are more: go on with --after {lines[-1][0]}, or narrow it with --prefix.", dim=True
        )


@names.command()
@click.argument("name", shell_complete=complete_name)
@click.option("--json", "as_json", is_flag=True, help="Print an object: name, uri and metadata.")
@_asking
def get(name: str, as_json: bool, asked: Names, timeout: float) -> None:
    """Print the URI behind NAME; the exit code is 3 if nobody has registered it.

    \b
    Examples:
      objserver names get shop.cart
      objserver call "$(objserver names get shop.cart)"
    """
    with name_server_proxy(asked.load(), timeout) as directory:
        _say(name, *_entry(directory, name), as_json)


@names.command("set")
@click.argument("name", shell_complete=complete_name)
@click.argument("uri", required=False)
@click.option("--tag", "tags", multiple=True, help="Its metadata; may be repeated.")
@click.option("--replace", is_flag=True, help="Also if the name stands for something else.")
@click.option("--json", "as_json", is_flag=True, help="Print an object: name, uri and metadata.")
@_asking
def set_(
    name: str,
    uri: str | None,
    tags: tuple[str, ...],
    replace: bool,
    as_json: bool,
    asked: Names,
    timeout: float,
) -> None:
    """Let NAME stand for URI; without a URI, give it other metadata.

    It stays until somebody removes it: a server that is to be forgotten when it ends is served with
    `objserver serve --nameserver`.

    \b
    Examples:
      objserver names set shop.till PYRO:till@localhost:9091 --tag open
      objserver names set shop.till --tag closed
      objserver names set shop.till PYRO:till@localhost:9092 --replace
    """
    with name_server_proxy(asked.load(), timeout) as directory:
        try:
            if uri is None:
                _entry(directory, name)
                directory.set_metadata(name, sorted(set(tags)))
            else:
                safe = False if replace else None if _is_ours(directory) else True
                directory.register(name, uri, safe, sorted(set(tags)))
        except errors.NamingError as problem:
            advice = (
                "Add --replace if it is to stand for another." if "already registered" in str(problem) else ""
            )
            raise Failure(str(problem), advice=advice) from problem
        _say(name, *_entry(directory, name), as_json)


@names.command()
@click.argument("names", nargs=-1, shell_complete=complete_name, metavar="[NAME]...")
@click.option("--prefix", default="", help="All names that begin so.")
@click.option("--yes", is_flag=True, help="Do not ask before removing all with a prefix.")
@click.option("--json", "as_json", is_flag=True, help="Print an object: how many were removed.")
@_asking
def rm(names: tuple[str, ...], prefix: str, yes: bool, as_json: bool, asked: Names, timeout: float) -> None:
    """Forget names; the exit code is 3 if one of them was not there.

    \b
    Examples:
      objserver names rm shop.till shop.cart
      objserver names rm --prefix test. --yes
    """
    if bool(names) == bool(prefix):
        raise click.UsageError("give either names or a --prefix")
    with name_server_proxy(asked.load(), timeout) as directory:
        missing = [name for name in names if not directory.remove(name)]
        removed = len(names) - len(missing)
        if prefix:
            if not yes:
                count = sum(1 for _ in _entries(directory, prefix, (), ""))
                click.confirm(
                    f"Remove {count} names that begin with {visible(prefix)}?", abort=True, err=True
                )
            removed = directory.remove(prefix=prefix)
    if as_json:
        click.echo(json.dumps({"removed": removed}))
    elif prefix:
        click.echo(f"{removed} removed")
    if missing:
        raise Failure(f"nobody had registered {', '.join(map(repr, missing))}", code=ExitCode.NOT_CALLED)


@names.command()
@click.argument("context", default="")
@click.option(
    "--depth", type=click.IntRange(min=1), default=4, show_default=True, help="Contexts to go into."
)
@click.option("--json", "as_json", is_flag=True, help="Print objects in objects; a number: not gone into.")
@_asking
def tree(context: str, depth: int, as_json: bool, asked: Names, timeout: float) -> None:
    """Show the names of a CONTEXT as a tree: in names, `/` is what it is in paths.

    \b
    Examples:
      objserver names tree
      objserver names tree bank/accounts --depth 1
    """
    context = context.strip("/")
    with name_server_proxy(asked.load(), timeout) as directory:
        ask = directory.children if _is_ours(directory) else _children_of(directory)
        if as_json:
            click.echo(json.dumps(_nested(ask, context, depth)))
            return
        from rich.console import Console
        from rich.text import Text
        from rich.tree import Tree

        root = Tree(Text(visible(context) or "names", style="bold"), guide_style="dim")
        _grow(root, ask, context, depth)
    console = Console(soft_wrap=True)
    console.print(root)


@names.command()
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print an object for each change: time, name and uri.")
@_asking
def watch(prefix: str, as_json: bool, asked: Names, timeout: float) -> None:
    """Print changes of names that begin with PREFIX as they happen, until Ctrl-C.

    \b
    Examples:
      objserver names watch
      objserver names watch shop. --json
    """
    from objserver.client.news import NameListener

    news: SimpleQueue[dict[str, str | None]] = SimpleQueue()
    listener = NameListener(lambda changes: news.put(dict(changes)))
    silent = False
    try:
        while True:
            try:
                with name_server_proxy(asked.load(), timeout) as directory:
                    if not _is_ours(directory):
                        raise Failure("Pyro5's own name server tells no news; use `objserver names ls`")
                    directory.watch(listener, prefix)
                silent = False
            except errors.ObjServerError as problem:
                if not silent:
                    click.echo(f"changes may be missed: {problem}", err=True)
                silent = True
            until = time.monotonic() + _WATCH_AGAIN_S
            while (left := until - time.monotonic()) > 0:
                try:
                    changes = news.get(timeout=left)
                except Empty:
                    break
                for name, uri in changes.items():
                    _print_change(name, uri, as_json)
    except KeyboardInterrupt:
        pass


@names.command()
@click.option(
    "--interface",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="IPv4 address of the interface to listen on.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to listen.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of URIs.")
def discover(interface: str, timeout: float, as_json: bool) -> None:
    """Print the name servers that announce themselves by multicast DNS; the exit code is 3 if none does.

    Anybody on a network can announce anything: look before you ask one.

    \b
    Examples:
      objserver names discover
      objserver names discover --interface 192.168.1.7
    """
    from objserver.naming import mdns

    found = [str(reference) for reference in mdns.discover(timeout, [interface])]
    if as_json:
        click.echo(json.dumps(found))
    else:
        for uri in found:
            click.echo(visible(uri))
    if not found:
        raise Failure(
            f"no name server announces itself at {interface}",
            advice="`objserver nameserver --mdns` starts one that does.",
            code=ExitCode.NOT_CALLED,
        )


def _print_change(name: str, uri: str | None, as_json: bool) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if as_json:
        line = json.dumps({"time": now, "name": name, "uri": uri})
    else:
        sign = click.style("-", fg="red") if uri is None else click.style("+", fg="green")
        line = f"{click.style(now[11:19], dim=True)} {sign} {visible(name)} {visible(uri or '')}".rstrip()
    click.echo(line)
    sys.stdout.flush()


def _is_ours(directory: Proxy) -> bool:
    return "page" in dir(directory)


def _entries(
    directory: Proxy, prefix: str, tags: tuple[str, ...], after: str
) -> Iterator[tuple[str, tuple[str, list[str]]]]:
    """Names in order, with URI and metadata; asked for as they are wanted."""
    wanted = sorted(set(tags))
    if not _is_ours(directory):
        if tags:
            found = directory.yplookup(meta_all=wanted, return_metadata=True)
        else:
            found = directory.list(prefix=prefix or None, return_metadata=True)
        yield from _rows({n: f for n, f in found.items() if n.startswith(prefix) and n > after})
        return
    while True:
        page = directory.page(prefix, after, _PAGE, wanted)
        yield from _rows(page)
        if len(page) < _PAGE:
            return
        after = max(page)


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, list[str]]]]:
    for name, (uri, metadata) in sorted(found.items()):
        yield name, (str(uri), sorted(metadata or ()))


def _entry(directory: Proxy, name: str) -> tuple[str, list[str]]:
    if _is_ours(directory):
        try:
            uri, metadata = directory.lookup(name, True)
            return str(uri), sorted(metadata)
        except errors.NamingError:
            pass
    else:
        found = dict(_rows(directory.list(prefix=name, return_metadata=True)))
        if name in found:
            return found[name]
    known = (known for known, _ in itertools.islice(_entries(directory, name[:1], (), ""), _PAGE))
    hint = errors.did_you_mean(name, known)
    raise Failure(f"nobody has registered the name {name!r}{hint}", code=ExitCode.NOT_CALLED)


def _say(name: str, uri: str, metadata: list[str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"name": name, "uri": uri, "metadata": metadata}))
    else:
        click.echo(visible(uri))


def _children_of(directory: Proxy) -> Any:
    """As `children` of ours, of a name server that has none."""
    from objserver.naming.index import Entry, NameIndex

    index = NameIndex()
    index.change({name: Entry(str(uri)) for name, uri in directory.list().items()})
    return index.children


def _nested(ask: Any, context: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, what in _all_children(ask, context):
        inner = f"{context}/{name}".strip("/")
        found[name] = _nested(ask, inner, depth - 1) if name.endswith("/") and depth > 1 else what
    return found


def _all_children(ask: Any, context: str) -> Iterator[tuple[str, Any]]:
    after = ""
    while page := ask(context, after, _PAGE):
        yield from page.items()
        after = list(page)[-1]


def _grow(branch: Any, ask: Any, context: str, depth: int) -> None:
    from rich.text import Text

    for number, (name, what) in enumerate(_all_children(ask, context)):
        inner = f"{context}/{name}".strip("/")
        if number == _SHOWN_PER_CONTEXT:
            prefix = f" --prefix {visible(context)}/" if context else ""
            branch.add(Text(f"... more: objserver names ls{prefix}", style="dim"))
            return
        if name.endswith("/"):
            counted = Text.assemble((visible(name), "bold"), (f" {what:,}", "dim"))
            twig = branch.add(counted)
            if depth > 1:
                _grow(twig, ask, inner, depth - 1)
        else:
            branch.add(Text.assemble(visible(name), " ", (visible(str(what)), "dim")))


def _show(lines: list[list[str]]) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    name_width = max(cell_len(name) for name in ("name", *(line[0] for line in lines)))
    uri_width = max(cell_len(uri) for uri in ("uri", *(line[1] for line in lines)))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("name", width=name_width, style="bold")
    table.add_column("uri", width=uri_width)
    table.add_column("metadata", overflow="fold", style="dim")
    for line in lines:
        # Text, since names come from anybody and must not be read as markup.
        table.add_row(*map(Text, line))
    console = Console()
    console.width = max(console.width, name_width + uri_width + _REST)
    console.print(table)
