"""`objserver serve`: host classes, instances or locators of a module, without writing a program.

What can be known to be wrong is said before anything is served: a class that nobody could make, two
objects of one name, a name server that does not answer.

Names in a name server are made after the server serves and removed before it drains, and only if they
still mean this server: somebody may have taken them over meanwhile.  They live as long as the server does.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from objserver import errors
from objserver.cli import log_to_stderr, name_server_proxy, parse_address, until_stopped
from objserver.cli.clustering import Clustering, clustered
from objserver.cli.guarding import Guarding, guarded, read_again_at_hangup
from objserver.cli.processes import (
    HANDOFF,
    REUSEPORT,
    place,
    serving_as_worker,
    supervising,
    worker_options,
)
from objserver.cli.reaching import Names, Shown, reaches_names
from objserver.client.resolve import NobodyAnswers
from objserver.references import DAEMON_ID, Location, Reference

if TYPE_CHECKING:
    from objserver.naming import Registrar
    from objserver.naming.registrar import Same

__all__ = ["load", "load_module", "serve"]

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
_PATIENCE_S = 10.0
"""A name server that needs longer for one call is as good as none."""
WAIT_S = 15.0
"""For a name that a server has which may have died: longer than its lease."""


@click.command(short_help="Serve classes, instances or locators of a module.")
@click.argument("targets", nargs=-1, required=True, metavar="MODULE:NAME...")
@click.option("--name", help="The object's name, instead of that in the module (for a single one).")
@click.option("--activation", type=click.Choice(list(ACTIVATION)), help="Which servant incarnates an object.")
@click.option("--threading", type=click.Choice(list(THREADING)), help="How calls to one servant are ordered.")
@click.option("--store", metavar="URL", help="Where persistent objects are kept, e.g. sqlite:///bank.db.")
@click.option(
    "--address", default="localhost:0", show_default=True, metavar="HOST:PORT", help="0: a free port."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads that run servants.  1: iterative.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that serve, behind the one --address.")
@click.option(
    "--entry",
    type=click.Choice([HANDOFF, REUSEPORT]),
    help="How connections come to --workers: each is handed to who has its object (handoff, the default), or "
    "the kernel deals them out.",
)
@click.option(
    "--nameserver",
    is_flag=False,
    flag_value="",
    metavar="[HOST:PORT,...]",
    help="Register the objects in a name server: the first of these that answers, or the usual one (then "
    "give the option last).",
)
@reaches_names
@clustered
@guarded
@click.option("--verbose", is_flag=True, help="Log to standard error also what is no problem.")
def serve(
    targets: tuple[str, ...],
    name: str | None,
    activation: str | None,
    threading: str | None,
    store: str | None,
    address: str,
    threads: int | None,
    workers: int | None,
    entry: str | None,
    asked: Names,
    clustering: Clustering,
    guarding: Guarding,
    verbose: bool,
) -> None:
    """Serve objects until SIGTERM or Ctrl-C; prints the URI of each, then `ready`.

    NAME is a class, an instance or a function from key to servant; the current directory is searched too.
    SIGHUP reads the files of certificates, keys and rules again: rules for the next call, the others for the
    clients that come from then on.

    \b
    Examples:
      objserver serve bank:Account
      objserver serve bank:Account --activation persistent --store sqlite:///bank.db
      objserver serve bank:Account shop:cart --address localhost:9092 --nameserver
      objserver serve bank:Account --tls-cert s.pem --keys k.toml --rules r.toml --audit a.jsonl
      objserver serve bank:Account --nameserver names.example:9090 --nameserver-tls-ca ca.pem \\
        --nameserver-credentials bank.toml
      objserver serve bank:Account --activation persistent --store sqlite:///bank.db --workers 4
      objserver serve bank:Account --activation persistent --store postgresql://me@host/bank \\
        --cluster bank --node a
    """
    from objserver import adapter
    from objserver.naming import Registrar, load_of
    from objserver.server import ObjectServer

    persistent = activation == "persistent"
    if persistent and store is None:
        raise click.UsageError("persistent objects need a store; add for example --store sqlite:///bank.db")
    if clustering.cluster is not None and store is None:
        raise click.UsageError(
            "the nodes of a cluster share a store; add for example --store postgresql://me@host/bank"
        )
    parse_address(address)
    if asked.addresses is None and asked.shown != Shown():
        raise click.UsageError("what is shown to name servers goes with --nameserver")
    if entry is not None and workers is None:
        raise click.UsageError("--entry goes with --workers")
    labels = _labels(targets, name)
    things = {label: load(target) for label, target in labels.items()}
    for label, thing in things.items():
        _check_can_be_made(label, thing)
    # After the imports: a module that sets up logging itself has the first word.
    log_to_stderr(verbose)
    here = place()
    supervises = workers is not None and here is None
    registers = asked.addresses is not None and here is None
    if registers:
        name_server_proxy(asked.load(), _PATIENCE_S).release()  # one that does not answer is said at once
    with contextlib.ExitStack() as closing:
        server: ObjectServer | None = None
        if not supervises:
            options: dict[str, Any] = {"address": address, "store": store, **clustering.options()}
            if here is not None:
                options |= worker_options(here, address, store, clustering)
            server = ObjectServer(workers=threads, **options, **guarding.options())
            closing.callback(server.stop)
        registrar = None
        if registers:
            registrar = Registrar(asked.load(), load=load_of(server)) if server else Registrar(asked.load())
            closing.callback(registrar.stop)

        node = None if server is None else server.node
        same = None if node is None else lambda: node.entries

        def as_whom() -> Callable[[], None]:
            """Names are registered as the files say by then."""
            given = asked.load()
            if given.tls is not None:
                given.tls.usable_context()
            return lambda: None if registrar is None else setattr(registrar, "name_servers", given)

        if server is not None:
            read_again_at_hangup(server, guarding, as_whom)
        with until_stopped(announced=here is None):
            if server is not None:
                for label, thing in things.items():
                    server.register(
                        thing,
                        label,
                        activation=getattr(adapter, ACTIVATION[activation])() if activation else None,
                        threading=getattr(adapter, THREADING[threading])() if threading else None,
                    )
                server.start()
                location = server.address
            if here is not None and server is not None:
                closing.enter_context(serving_as_worker(here, server, guarding.insecure))
            elif workers is not None:
                supervised = supervising(
                    workers,
                    address=address,
                    store=store,
                    entry=entry or HANDOFF,
                    reads=guarding.tls_cert is None,
                    insecure=guarding.insecure or guarding.asks_who_calls,
                )
                location = closing.enter_context(supervised).address
            if registrar is not None:
                registrar.start()
            for label in things if here is None else ():
                reference = Reference("PYRO", label, Location.parse(location))
                if registrar is not None:
                    _register(registrar, label, reference, same if persistent else None)
                click.echo(f"{label} {reference}")
                if persistent:
                    one = f"PYRO:{label}/KEY@{location}"
                    click.echo(f"{label}: one object is {one}, with a KEY of your choice", err=True)


def _labels(targets: tuple[str, ...], name: str | None) -> dict[str, str]:
    """Name of each object -> its MODULE:NAME."""
    if name is not None and len(targets) > 1:
        raise click.UsageError("--name goes with a single MODULE:NAME")
    if name == "":
        raise click.UsageError("--name is empty; leave it out to use the name in the module")
    if name == DAEMON_ID:
        raise click.UsageError(
            f"the name {name} is reserved: every server describes itself under it; choose another --name"
        )
    labels: dict[str, str] = {}
    for target in targets:
        label = name or target.rpartition(":")[2]
        if label in labels:
            raise click.UsageError(
                f"{label} is given twice, by {labels[label]} and {target}, but a server has one object of a "
                "name; serve the other one with a --name in a process of its own"
            )
        labels[label] = target
    return labels


def load(target: str) -> Any:
    """What MODULE:NAME means; UsageError or RegistrationError if it means nothing."""
    module, colon, path = target.partition(":")
    if not (module and colon and path):
        raise click.UsageError(f"{target!r} is not MODULE:NAME, for example bank:Account")
    thing: Any = load_module(module, path)
    for part in path.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            raise errors.RegistrationError(f"{module} has no {path}") from None
    return thing


def load_module(module: str, path: str = "") -> ModuleType:
    """Import a module, also from the current directory; `path` is what is wanted of it."""
    file = pathlib.PurePath(module)
    if file.suffix == ".py":
        where = f" in the directory {file.parent}" if file.parent.parts else ""
        meant = f"{file.stem}:{path}" if path else file.stem
        raise click.UsageError(f"{module} is a file, not a module; write {meant}{where}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except Exception as problem:
        raise errors.RegistrationError(
            f"cannot import {module}: {type(problem).__name__}: {problem}"
        ) from problem


def _check_can_be_made(label: str, thing: Any) -> None:
    """RegistrationError if the first call could only fail, because the arguments do not fit."""
    is_class = isinstance(thing, type)
    if is_class and getattr(thing, "_pyroInstancing", ("", None))[1] is not None:
        return  # Pyro5's @behavior may bring a function of its own that makes the instance
    if not is_class and not inspect.isroutine(thing):
        return
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return  # written in C, and silent about it
    try:
        signature.bind(*() if is_class else ("key",))
    except TypeError as problem:
        raise errors.RegistrationError(
            f"{label} cannot be served: nobody passes arguments to its __init__ ({problem}); give them "
            "defaults, or serve a function from key to servant"
            if is_class
            else f"{label} cannot be served: a function is called with the key of an object ({problem})"
        ) from None


def _register(registrar: Registrar, label: str, reference: Reference, same: Same | None) -> None:
    try:
        registrar.register(label, reference, same=same)
    except NobodyAnswers:
        raise
    except errors.NamingError as problem:
        # Perhaps this is a server that was killed and is started again.
        click.echo(f"{problem}; waiting {WAIT_S:.0f} s for that", err=True)
        registrar.register(label, reference, wait_s=WAIT_S, same=same)
