"""The commands, and the few things that several of them share.

A server started from the command line prints where it is, then `ready`, and from then on belongs to signals:
SIGTERM and Ctrl-C drain it and end the process with exit code 0.  Standard output is for programs, so hints
and the log go to standard error.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from objserver import errors
from objserver.client import Proxy, name_server
from objserver.references import NAMESERVER_PORT, Location

__all__ = ["log_to_stderr", "name_server_proxy", "parse_address", "until_stopped"]


@contextmanager
def until_stopped() -> Iterator[None]:
    """Announce readiness after the block, then wait for SIGTERM or Ctrl-C, which may also end the block."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
        click.echo("ready")
        # Woken now and then: a signal that arrives just before the wait begins is handled only after it.
        while not threading.Event().wait(1.0):
            pass
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
    finally:
        signal.signal(signal.SIGTERM, previous)


def log_to_stderr(verbose: bool) -> None:
    """Show what goes wrong; with `verbose` also what happens.  A program that logs its own way keeps it."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def parse_address(text: str, default_port: int | None = None) -> Location:
    """Read an address given on the command line."""
    if text.isdecimal():
        # It would be taken for a host, with the default port if there is one.
        raise click.UsageError(f"{text!r} is a port without a host; write localhost:{text}")
    try:
        return Location.parse(text, default_port)
    except ValueError as problem:
        lacking = str(problem).endswith("lacks a port")
        hint = f"; write for example {text or 'localhost'}:9091" if lacking else ""
        raise click.UsageError(f"{problem}{hint}") from None


def name_server_proxy(address: str | None, timeout_s: float) -> Proxy:
    """A proxy of a name server that has answered.

    It is the one at the address; without an address that of PYRO_NS_HOST and PYRO_NS_PORT, or this machine's.
    """
    try:
        reference = name_server(parse_address(address, NAMESERVER_PORT) if address else None)
    except ValueError as problem:
        raise errors.NamingError(f"PYRO_NS_PORT is not a port: {problem}") from None
    directory = Proxy(reference, timeout_s=timeout_s)
    try:
        directory.ping()
    except errors.ConnectFailed as problem:
        raise errors.NamingError(
            f"no name server answers at {reference.location}; start one with `objserver nameserver`"
        ) from problem
    except errors.ObjectNotFound as problem:
        raise errors.NamingError(
            f"the server at {reference.location} is no name server; start one with `objserver nameserver`"
        ) from problem
    return directory
