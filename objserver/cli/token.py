"""`objserver token`: make tokens, narrow them, and look at what they say.

A token is a secret: it is read from standard input, since everybody on a machine sees the arguments of its
commands, and written to standard output.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from objserver import errors
from objserver.cli import Failure, visible

__all__ = ["token"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is no time like 30m, 8h or 7d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


def _caveats(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that narrow."""
    for option in (
        click.option("--audience", metavar="NAME", help="Only servers of this name take it."),
        click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Calls per second."),
        click.option("--method", "methods", multiple=True, help="Only these methods; may end in a *."),
        click.option("--object", "objects", multiple=True, help="Only these objects; may end in a *."),
    ):
        command = option(command)
    return command


_KEYS = click.option("--keys", required=True, metavar="FILE", help="The server's keys; see `token key`.")
_FOR = partial(
    click.option, "--for", "seconds", type=_Duration(), metavar="TIME", help="How long: 30m, 8h or 7d."
)


@click.group(short_help="Make, narrow and show tokens.")
def token() -> None:
    """Tokens that expire, and that whoever has one can narrow without asking anybody.

    \b
    Examples:
      objserver token key keys.txt
      objserver token mint alice --keys keys.txt --role teller --for 8h > alice.token
      objserver token attenuate --object Account/alice --rate 5 --for 30m < alice.token > guest.token
      objserver token show < guest.token
    """


@token.command(short_help="Add a new key to a file.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--id", "key_id", help="What the key is called; by default the day.")
def key(file: Path, key_id: str | None) -> None:
    """Add a random key to FILE, which only its owner can read.

    From then on tokens are made with it; those of the older keys are good as long as these are in the file.

    
    Examples:
      objserver token key keys.txt
    """
    from objserver.security import RootKeys

    key_id = key_id or f"k{datetime.now(UTC):%Y%m%d}"
    if not key_id.isprintable() or " " in key_id or key_id.startswith("#"):
        raise click.UsageError(f"{key_id!r} is no id: it has no blanks, and begins with no #")
    if file.exists() and key_id in RootKeys.load(file).ids:
        raise Failure(f"{file} has a key {key_id!r} already; give the new one another --id")
    try:
        with open(
            os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8"
        ) as keys:
            keys.write(f"{key_id} {secrets.token_hex(32)}\n")
    except OSError as problem:
        raise Failure(f"{file} cannot be written: {problem}") from None
    click.echo(f"{file} has a new key {key_id}", err=True)


@token.command(short_help="Make a token.")
@click.argument("principal")
@click.option("--role", "roles", multiple=True, help="May be given several times.")
@_FOR(required=True)
@click.option("--key-id", help="The key to make it with; by default the last of the file.")
@_KEYS
@_caveats
def mint(
    principal: str, roles: tuple[str, ...], seconds: float, key_id: str | None, keys: str, **caveats: Any
) -> None:
    """Make a token for PRINCIPAL and write it to standard output.

    
    Examples:
      objserver token mint alice --keys keys.txt --role teller --for 8h > alice.token
    """
    from objserver.security import RootKeys

    known = RootKeys.load(keys)
    try:
        made = known.mint(
            principal,
            roles,
            expires_at=time.time() + seconds,
            nonce=secrets.token_bytes(16),
            key_id=key_id or known.ids[-1],
        )
        if any(caveats.values()):
            made = made.attenuate(**_as_arguments(caveats))
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    click.echo(made.text)


@token.command(short_help="Narrow a token.")
@_FOR()
@_caveats
def attenuate(seconds: float | None, **caveats: Any) -> None:
    """Read a token from standard input and write one that can do less; needs no key and no server.

    
    Examples:
      objserver token attenuate --object Account/alice --for 30m < alice.token > guest.token
    """
    given = _as_arguments(caveats)
    if seconds is not None:
        given["expires_at"] = time.time() + seconds
    try:
        made = _read().attenuate(**given)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    click.echo(made.text)


@token.command(short_help="Show what a token says.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
def show(as_json: bool) -> None:
    """Read a token from standard input and show what it says.

    That it was made by who says so is only known to a server that has the key.

    
    Examples:
      objserver token show < guest.token
    """
    read = _read()
    fields: dict[str, Any] = {
        "principal": read.principal,
        "roles": sorted(read.roles),
        "key_id": read.key_id,
        "expires_at": read.expires_at,
        "caveats": [[kind, value] for kind, value in read.caveats[1:]],
    }
    if as_json:
        click.echo(json.dumps(fields))
        return
    left = read.expires_at - time.time()
    until = datetime.fromtimestamp(read.expires_at, UTC).isoformat(" ", "seconds")
    click.echo(f"principal  {visible(read.principal)}")
    click.echo(f"roles      {visible(', '.join(sorted(read.roles))) or 'none'}")
    click.echo(f"key        {visible(read.key_id)}")
    click.echo(f"expires    {until}{' (it has)' if left <= 0 else ''}")
    for kind, value in read.caveats[1:]:
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        click.echo(f"only       {kind} {visible(text)}")


def _read() -> Any:
    from objserver.security import Voucher
    from objserver.security.tokens import TEXT_MAX

    try:
        return Voucher.parse(sys.stdin.read(TEXT_MAX + 100).strip())
    except errors.AuthenticationFailed as problem:
        raise Failure(str(problem)) from None


def _as_arguments(caveats: dict[str, Any]) -> dict[str, Any]:
    return {
        "objects": caveats["objects"] or None,
        "methods": caveats["methods"] or None,
        "calls_per_s": caveats["rate"],
        "audience": caveats["audience"],
    }
