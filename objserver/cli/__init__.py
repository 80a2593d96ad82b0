"""The commands, and the few things that several of them share.

A server started from the command line prints where it is, then `ready`, and from then on belongs to signals:
SIGTERM and Ctrl-C drain it and end the process with exit code 0.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from objserver import errors
from objserver.client.resolve import name_server
from objserver.references import NAMESERVER_PORT, Location, Reference

__all__ = ["name_server_at", "parse_address", "until_stopped"]


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


def parse_address(text: str, default_port: int | None = None) -> Location:
    """Read an address given on the command line."""
    try:
        return Location.parse(text, default_port)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None


def name_server_at(address: str | None) -> Reference:
    """The name server at an address; of this machine, or of PYRO_NS_HOST and PYRO_NS_PORT, without one."""
    try:
        return name_server(parse_address(address, NAMESERVER_PORT) if address else None)
    except ValueError as problem:
        raise errors.NamingError(f"PYRO_NS_PORT is not a port: {problem}") from None
