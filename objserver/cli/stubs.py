"""`objserver stubs`: typed stubs of classes, or of a live object whose class is not on this machine."""

from __future__ import annotations

import inspect
import pathlib
import re
from typing import Any

import click

from objserver import errors
from objserver.cli import Failure
from objserver.cli.completion import complete_uri
from objserver.cli.reaching import NAMESERVER, Names, Shown, reaches_names, reaches_objects
from objserver.cli.serve import load, load_module

__all__ = ["stubs"]

_URI = re.compile(r"PYRO(NAME|META)?:", re.IGNORECASE)


@click.command(short_help="Write typed stubs of classes, or of a live object.")
@click.argument("target", metavar="MODULE[:CLASS]|URI", shell_complete=complete_uri)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=pathlib.Path), help="Write to this file."
)
@click.option("--sync", "kinds", flag_value="sync", help="Only the classes for connect().")
@click.option("--async", "kinds", flag_value="async", help="Only the classes for connect_async().")
@click.option("--both", "kinds", flag_value="both", default="both", help="Both of them.  [default]")
@click.option("--pyi", is_flag=True, help="Write a .pyi; a matter of course if FILE is one.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="For each question to a server.",
)
@reaches_objects
@NAMESERVER
@reaches_names
def stubs(
    target: str,
    output: pathlib.Path | None,
    kinds: str,
    pyi: bool,
    timeout: float,
    shown: Shown,
    asked: Names,
) -> None:
    """Write typed stubs, so that editors and type checkers know what a proxy offers.

    Of a class, of all exposed classes of a module, or of the live object behind a URI, which needs no source
    here.  The exit code is 3 if the object cannot be asked.

    \b
    Examples:
      objserver stubs bank:Account --output account_stubs.py
      objserver stubs bank --async
      objserver stubs PYRONAME:shop --output shop_stubs.pyi
      objserver stubs PYRO:shop@lab.example:9091 --tls-ca ca.pem --credentials lab.toml
    """
    from objserver.cli.stub_source import StubModule

    remote = _URI.match(target) is not None
    descriptions = [_live(target, timeout, shown, asked)] if remote else _local(target)
    text = StubModule(
        descriptions,
        source=target,
        remote=remote,
        sync=kinds != "async",
        asynchronous=kinds != "sync",
        pyi=pyi or (output is not None and output.suffix == ".pyi"),
    ).text()
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as problem:
        raise Failure(f"cannot write {output}: {problem.strerror}") from problem
    click.echo(f"wrote {output}", err=True)


def _live(uri: str, timeout_s: float, shown: Shown, asked: Names) -> dict[str, Any]:
    from objserver.cli.objects import describe
    from objserver.client import Proxy

    tls, credentials = shown.load()
    with Proxy(
        uri, timeout_s=timeout_s, tls=tls, credentials=credentials, name_servers=asked.load()
    ) as proxy:
        return describe(proxy)


def _local(target: str) -> list[dict[str, Any]]:
    from objserver.adapter import describe

    module, colon, _ = target.partition(":")
    if colon:
        cls = load(target)
        if not isinstance(cls, type):
            cls = type(cls)
        described = describe(cls)
        if not described["members"]:
            raise errors.RegistrationError(
                f"{cls.__name__} exposes nothing; decorate it, or some of its methods, with @expose"
            )
        return [described]
    found = [
        described
        for _, cls in sorted(vars(load_module(module)).items())
        if inspect.isclass(cls) and cls.__module__ == module and (described := describe(cls))["members"]
    ]
    if not found:
        raise errors.RegistrationError(
            f"the module {module} has no class that exposes anything; decorate one with @expose, "
            "or name a class of another module with MODULE:CLASS"
        )
    return found
