"""The commands, and the few things that several of them share.

A server started from the command line prints where it is, then `ready`, and from then on belongs to signals:
SIGTERM and Ctrl-C drain it and end the process with exit code 0.  Standard output is for programs, so hints
and the log go to standard error.

What fails for a reason that can be said in a sentence is said in one, and the exit code tells a script what
it may conclude: see `ExitCode`.
"""

from __future__ import annotations

import enum
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from objserver import errors
from objserver.client import NameServers, Proxy
from objserver.client.nameservers import Contact, contacts
from objserver.client.resolve import SHOWN_APART, ask_any
from objserver.references import NAMESERVER_ID, Location, Reference

__all__ = [
    "ExitCode",
    "Failure",
    "exit_code",
    "in_options",
    "log_to_stderr",
    "name_server_proxy",
    "parse_address",
    "until_stopped",
    "visible",
]


_IN_OPTIONS = {
    "pass insecure=True": "add --insecure",
    "with authentication=... or tls=ServerTLS(client_ca=...)": "with --keys or --tls-client-ca",
    "connect with tls=ClientTLS(...)": "add --tls-ca",
    "connect with tls=ClientTLS(certificate=...)": "add --tls-cert and --tls-key",
    "give the proxy credentials=SharedKey(...) or Token(...), or tls=ClientTLS(certificate=...)": (
        "add --credentials, or --tls-cert and --tls-key"
    ),
    "choose another address or do without a beacon": "choose another --beacon-address, or add --no-beacon",
}


class ExitCode(enum.IntEnum):
    """What a command's exit code means, the same for all of them."""

    DONE = 0
    FAILED = 1
    """The object raised an exception, or the command could not do its work."""
    USAGE = 2
    """The command line is wrong; nothing was done."""
    NOT_CALLED = 3
    """No such server, name, object or member, or the server refused: the call was certainly not executed."""
    UNKNOWN = 4
    """The call was sent and no answer came: it may have been executed."""


def exit_code(problem: BaseException) -> ExitCode:
    """... of a command that ends with this error of its own (not with one that a servant raised)."""
    if isinstance(problem, errors.OutcomeUnknown):
        return ExitCode.UNKNOWN
    if isinstance(problem, (errors.ConnectFailed, errors.NamingError, errors.ObjectError)):
        return ExitCode.NOT_CALLED
    return ExitCode.FAILED


def in_options(sentence: str) -> str:
    """An error's sentence, which advises programmers, for people at a command line."""
    of_name_server = "the name server at" in sentence
    for python, option in _IN_OPTIONS.items():
        sentence = sentence.replace(
            python, option.replace("--", "--nameserver-") if of_name_server else option
        )
    return sentence.replace(SHOWN_APART, "")


class Failure(click.ClickException):
    """The end of a command: a sentence, perhaps a second one with advice, and the exit code."""

    def __init__(self, sentence: str, *, advice: str = "", code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(sentence)
        self.advice = advice
        self.code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """Where click looks for it."""
        return int(self.code)

    def show(self, file: IO[Any] | None = None) -> None:
        """Colours are left out where standard error is no terminal."""
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {self.message}", file=file, err=True)
        if self.advice:
            click.secho(self.advice, file=file, err=True, dim=True)


@contextmanager
def until_stopped(announced: bool = True) -> Iterator[None]:
    """Announce readiness after the block, then wait for SIGTERM or Ctrl-C, which may also end the block.

    Not `announced`: somebody else does.
    """

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: a second would come in the middle
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
        if announced:
            click.echo("ready")
        # Woken now and then: a signal that arrives just before the wait begins is handled only after it.
        while not threading.Event().wait(1.0):
            pass
    except KeyboardInterrupt:
        if announced:
            click.echo("stopping", err=True)
    finally:
        if announced:  # else its supervisor, and what sees that this is gone, may both say so
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


def name_server_proxy(given: NameServers, timeout_s: float) -> Proxy:
    """A proxy of the first of these name servers that answers; without addresses, of the usual ones."""

    def reach(server: Contact, patience_s: float | None, _: str) -> Proxy:
        directory = Proxy(
            server.reference, timeout_s=patience_s, tls=server.tls, credentials=server.credentials
        )
        try:
            directory._objserver_stub.metadata()  # what may be asked beyond that, rules say
        except errors.ObjectNotFound as problem:
            raise errors.NamingError(
                f"the server at {server.location} is no name server; start one with `objserver nameserver`"
            ) from problem
        return directory.calling(timeout_s=timeout_s)

    found: Proxy = ask_any(contacts(Reference("PYRONAME", NAMESERVER_ID), given), reach, timeout_s)("reach")
    return found


def visible(text: str) -> str:
    """Without what would end a line or steer the terminal: names and docstrings come from anybody."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
