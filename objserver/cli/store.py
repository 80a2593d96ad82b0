"""`objserver store`: look into a store, write it to a file, load it from one.

States are shown as JSON without their classes, which this program does not have; what JSON lacks is written
as `objserver.codecs.readable` says.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from typing import IO, Any

import click

from objserver import errors
from objserver.cli import ExitCode, Failure, visible
from objserver.references import object_id
from objserver.storage import Store, dump_file, open_store, state_to_json
from objserver.storage import dump as write_dump
from objserver.storage import load as read_dump

__all__ = ["store"]

_WIDTH = 100
"""Characters in a line of a state, if they can be broken."""
_PAGE = 1000
"""Keys asked for at a time."""
_PLURAL = {
    "object": "objects",
    "reply": "replies",
    "timer": "timers",
    "session": "sessions",
    "message": "messages",
}
_BUSY = "another process has it open"
_NEXT_STEP = "Stop that server first, or have it write the file itself: server.dump(path)."


@click.group(short_help="Look into a store, dump it, load it.")
def store() -> None:
    """Look into a store of persistent objects, write it to a file, load it from one.

    URL is what `objserver serve --store` was given, e.g. sqlite:///bank.db or postgresql://user@host/bank.
    A file of SQLite belongs to the server that has it open; a PostgreSQL database can be asked any time.

    \b
    Examples:
      objserver store ls sqlite:///bank.db
      objserver store show sqlite:///bank.db Account/alice
      objserver store dump sqlite:///bank.db bank.jsonl
      objserver store load postgresql://me@host/bank bank.jsonl
    """


@contextlib.contextmanager
def _opened(url: str, create: bool = False) -> Iterator[Store]:
    try:
        opened = open_store(url, create=create)
    except errors.StoreError as problem:
        advice = _NEXT_STEP if _BUSY in str(problem) else ""
        raise Failure(str(problem), advice=advice) from problem
    with contextlib.closing(opened):
        yield opened


@store.command(short_help="List the types, or the keys of a type.")
@click.argument("url")
@click.argument("type", required=False)
@click.option("--prefix", help="Only keys (without TYPE: types) that begin so.", default="")
@click.option("--after", metavar="KEY", help="Only keys behind this one: to go on after --limit.")
@click.option("--limit", type=click.IntRange(min=1), metavar="NUMBER", help="So many at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(url: str, type: str | None, prefix: str, after: str | None, limit: int | None, as_json: bool) -> None:
    """List the types and how many objects each has; with TYPE, the keys of its objects.

    Deleted objects do not count.

    \b
    Examples:
      objserver store ls sqlite:///bank.db
      objserver store ls sqlite:///bank.db Account --prefix a --limit 20
      objserver store ls sqlite:///bank.db Account --after alice --limit 20
    """
    with _opened(url) as opened:
        if type is None:
            if after is not None:
                raise click.UsageError("--after is a key; it needs TYPE")
            found = [name for name in opened.types() if name.startswith(prefix)][:limit]
            counts = {name: opened.count(name) for name in found}
            if as_json:
                click.echo(json.dumps(counts))
            else:
                for name, number in counts.items():
                    click.echo(f"{visible(name)}\t{number}")
            return
        _known(opened, type)
        keys = _keys(opened, type, prefix, after, limit)
        if as_json:
            click.echo(json.dumps(list(keys)))
        else:
            for key in keys:
                click.echo(visible(key))


def _keys(opened: Store, type: str, prefix: str, after: str | None, limit: int | None) -> Iterator[str]:
    """By pages, so that millions of them need no memory."""
    number = 0
    while True:
        size = _PAGE if limit is None else min(_PAGE, limit - number)
        page = opened.keys(type, prefix, size, after=after) if size else []
        yield from page
        number += len(page)
        if not page:
            return
        after = page[-1]


def _known(opened: Store, type: str) -> None:
    types = opened.types()
    if type not in types:
        hint = errors.did_you_mean(type, types)
        raise Failure(f"no object of type {type!r} was ever stored there{hint}", code=ExitCode.NOT_CALLED)


@store.command(short_help="Show the state of an object.")
@click.argument("url")
@click.argument("object", metavar="TYPE/KEY")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on one line.")
def show(url: str, object: str, as_json: bool) -> None:
    """Show the state of an object, and what else the store knows of it.

    The object is named as in its URI: Account/alice, and Account alone is the one whose key is empty.

    \b
    Examples:
      objserver store show sqlite:///bank.db Account/alice
      objserver store show sqlite:///bank.db Account/alice --json
    """
    with _opened(url) as opened:
        type, key = _name(opened, object)
        record = opened.load(type, key)
        if record is None:
            hint = errors.did_you_mean(key, opened.keys(type, limit=_PAGE))
            raise Failure(f"{type!r} has no object with the key {key!r}{hint}", code=ExitCode.NOT_CALLED)
        facts: dict[str, Any] = {
            "type": type,
            "key": key,
            "deleted": record.state is None,
            "epoch": record.epoch,
            "version": record.version,
            "state_version": record.state_version,
            "size": len(record.state or b""),
            "timers": [{"name": timer.name, "due": timer.due} for timer in opened.timers(type, key)],
            "replies": len(opened.replies(type, key)),
        }
    if record.state is not None:
        try:
            facts["state"] = state_to_json(record.codec, record.state)
        except errors.SerializeError as problem:
            facts["unreadable"] = str(problem)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _show(facts)


def _name(opened: Store, text: str) -> tuple[str, str]:
    """The type and the key, divided where a type of this store ends."""
    from urllib.parse import unquote

    types = set(opened.types())
    if text in types:
        return text, ""
    ends = [at for at, character in enumerate(text) if character == "/" and text[:at] in types]
    if not ends:
        _known(opened, text.rpartition("/")[0] or text)
    return text[: ends[-1]], unquote(text[ends[-1] + 1 :])


def _show(facts: dict[str, Any]) -> None:
    lines = [
        ("object", visible(object_id(facts["type"], facts["key"] or None))),
        ("version", f"{facts['version']}, epoch {facts['epoch']}"),
        ("layout", f"state_version {facts['state_version']}"),
        ("size", f"{facts['size']} bytes"),
        ("replies", f"{facts['replies']} remembered"),
    ]
    for timer in facts["timers"]:
        lines.append(("timer", f"{visible(timer['name'])} due {_moment(timer['due'])}"))
    for name, text in lines:
        click.echo(f"{name:8} {text}")
    if facts["deleted"]:
        click.echo("deleted")
        return
    click.echo()
    if "unreadable" in facts:
        raise Failure(facts["unreadable"])
    for line in _folded(facts["state"]):
        click.echo(visible(line))


def _folded(value: Any, before: str = "", after: str = "", level: int = 0) -> Iterator[str]:
    """JSON in lines, of which each has as much as fits."""
    line = "  " * level + before + json.dumps(value, ensure_ascii=False) + after
    if len(line) <= _WIDTH or not isinstance(value, (dict, list)) or not value:
        yield line
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    inside: list[tuple[str, Any]] = [("", item) for item in value]
    if isinstance(value, dict):
        inside = [(json.dumps(name, ensure_ascii=False) + ": ", item) for name, item in value.items()]
    yield "  " * level + before + opening
    for number, (name, item) in enumerate(inside, 1):
        yield from _folded(item, name, "," if number < len(inside) else "", level + 1)
    yield "  " * level + closing + after


def _moment(seconds: float) -> str:
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
    return f"{seconds} s after 1970"


@store.command(short_help="Write everything to a file of text.")
@click.argument("url")
@click.argument("file", default="-", metavar="[FILE]")
@click.option("--type", "types", multiple=True, help="Only objects of this type; may be repeated.")
def dump(url: str, file: str, types: tuple[str, ...]) -> None:
    """Write everything to FILE, or to standard output, as text: JSON, one row a line.

    It is the store as it was at one moment, also while servers go on to write into a PostgreSQL database:
    objects with their versions, deleted ones, remembered replies, timers, sessions of clients, and messages
    that wait.  With --type, objects of this type with their replies and timers, and all sessions.  FILE is
    readable for nobody else, and is there only when it is complete.

    \b
    Examples:
      objserver store dump sqlite:///bank.db bank.jsonl
      objserver store dump postgresql://me@host/bank | gzip > bank.jsonl.gz
      objserver store dump sqlite:///bank.db accounts.jsonl --type Account
    """
    chosen = list(types) or None
    with _opened(url) as opened:
        for type in types:
            _known(opened, type)
        if file == "-":
            counts = write_dump(opened, sys.stdout.buffer, chosen)
        else:
            counts = dump_file(opened, file, chosen)
    click.echo(f"dumped {_told(counts)}", err=True)


@store.command(short_help="Load what `dump` has written.")
@click.argument("url")
@click.argument("file", type=click.File("rb"))
@click.option("--replace", is_flag=True, help="Also into a store that has objects: they are replaced.")
def load(url: str, file: IO[bytes], replace: bool) -> None:
    """Load what `dump` has written, of whatever engine; FILE - is standard input.

    The store becomes the one that was dumped, with its id, versions and remembered replies: clients go on as
    if nothing had happened.  All or nothing is loaded; an error names the line.  States may have been edited.

    \b
    Examples:
      objserver store load sqlite:///copy.db bank.jsonl
      gunzip < bank.jsonl.gz | objserver store load postgresql://me@host/bank -
    """
    with _opened(url, create=True) as opened:
        try:
            counts = read_dump(opened, file, replace=replace)
        except errors.StoreError as problem:
            if "has objects already" not in str(problem):
                raise
            raise Failure(
                f"{str(problem).partition(';')[0]}",
                advice="Nothing was changed.  Give another URL, or add --replace.",
            ) from problem
    click.echo(f"loaded {_told(counts)}", err=True)


def _told(counts: dict[str, int]) -> str:
    told = [
        f"{counts[kind]} {kind if counts[kind] == 1 else plural}"
        for kind, plural in _PLURAL.items()
        if kind in counts
    ]
    return ", ".join(told) or "nothing"
