"""`objserver serve`: host classes, instances or locators of a module, without writing a program.

Names in a name server are made after the server serves and removed before it drains, and only if they
still mean this server: somebody may have taken them over meanwhile.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from objserver import errors
from objserver.cli import name_server_at, parse_address, until_stopped

if TYPE_CHECKING:
    from objserver.client import Proxy

__all__ = ["serve"]

ACTIVATION = {
    "per-request": "PerRequest",
    "per-client": "PerClient",
    "persistent": "Persistent",
    "shared": "Shared",
}
THREADING = {
    "serial": "Serial",
    "reentrant": "Reentrant",
    "readers-writer": "ReadersWriter",
    "concurrent": "Concurrent",
}


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="MODULE:NAME...")
@click.option("--name", help="The object's name, instead of that in the module (for a single one).")
@click.option("--activation", type=click.Choice(list(ACTIVATION)), help="Which servant incarnates an object.")
@click.option("--threading", type=click.Choice(list(THREADING)), help="How calls to one servant are ordered.")
@click.option("--store", metavar="URL", help="Where persistent objects are kept, e.g. sqlite:///bank.db.")
@click.option(
    "--address", default="localhost:0", show_default=True, metavar="HOST:PORT", help="0: a free port."
)
@click.option("--workers", type=click.IntRange(min=1), help="Threads that run servants.")
@click.option(
    "--nameserver",
    is_flag=False,
    flag_value="",
    metavar="[HOST:PORT]",
    help="Register the objects in a name server: this one, or the usual one (then give the option last).",
)
@click.option("--insecure", is_flag=True, help="Allow an address that other machines can reach.")
def serve(
    targets: tuple[str, ...],
    name: str | None,
    activation: str | None,
    threading: str | None,
    store: str | None,
    address: str,
    workers: int | None,
    nameserver: str | None,
    insecure: bool,
) -> None:
    """Serve objects until SIGTERM or Ctrl-C; prints the URI of each, then `ready`.

    NAME is a class, an instance or a function from key to servant; the current directory is searched too.

    \b
    Examples:
      objserver serve bank:Account
      objserver serve bank:Account --activation persistent --store sqlite:///bank.db
      objserver serve bank:Account shop:cart --address localhost:9092 --nameserver
    """
    from objserver import adapter
    from objserver.client import Proxy
    from objserver.server import ObjectServer

    if name is not None and len(targets) > 1:
        raise click.UsageError("--name goes with a single MODULE:NAME")
    parse_address(address)
    directory = Proxy(name_server_at(nameserver)) if nameserver is not None else None
    things = [(name or target.rpartition(":")[2], _load(target)) for target in targets]
    server = ObjectServer(address, store=store, workers=workers, insecure=insecure)
    made: dict[str, str] = {}
    try:
        with until_stopped():
            references = {
                label: server.register(
                    thing,
                    label,
                    activation=getattr(adapter, ACTIVATION[activation])() if activation else None,
                    threading=getattr(adapter, THREADING[threading])() if threading else None,
                )
                for label, thing in things
            }
            server.start()
            for label, reference in references.items():
                if directory is not None:
                    # Noted first: a signal between the two must not leave the name behind.
                    made[label] = str(reference)
                    directory.register(label, str(reference))
                click.echo(f"{label} {reference}")
    finally:
        try:
            if directory is not None:
                _forget(directory, made)
        finally:
            server.stop()


def _load(target: str) -> Any:
    module, colon, path = target.partition(":")
    if not (module and colon and path):
        raise click.UsageError(f"{target!r} is not MODULE:NAME, for example bank:Account")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        thing: Any = importlib.import_module(module)
    except Exception as problem:
        raise errors.RegistrationError(
            f"cannot import {module}: {type(problem).__name__}: {problem}"
        ) from problem
    for part in path.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            raise errors.RegistrationError(f"{module} has no {path}") from None
    return thing


def _forget(directory: Proxy, made: dict[str, str]) -> None:
    with directory:
        for label, uri in made.items():
            try:
                if directory.list(prefix=label).get(label) == uri:
                    directory.remove(label)
            except errors.ObjServerError as problem:
                click.echo(f"{label} stays in the name server: {problem}", err=True)
