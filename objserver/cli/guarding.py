"""The options of a command that serves: how the server proves who it is, whom it lets in, and what it allows.

They are paths of files; no secret stands on a command line.  SIGHUP has the files read again, all or none: as
long as one of them is broken everything stays as it was.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from objserver import errors

if TYPE_CHECKING:
    from objserver.security import Authentication, Authorization
    from objserver.server import ObjectServer

__all__ = ["Guarding", "guarded", "read_again_at_hangup"]


@dataclass(frozen=True, kw_only=True)
class Guarding:
    """What these options say."""

    tls_cert: str | None
    tls_key: str | None
    tls_client_ca: str | None
    keys_file: str | None
    rules: str | None
    allow_authenticated: bool
    audit: str | None
    insecure: bool

    def __post_init__(self) -> None:
        if self.tls_cert is None and (self.tls_key or self.tls_client_ca):
            raise click.UsageError(
                "--tls-key and --tls-client-ca go with --tls-cert, the server's certificate"
            )

    @property
    def asks_who_calls(self) -> bool:
        """Whether clients have to prove who they are."""
        return bool(self.keys_file or self.tls_client_ca)

    @property
    def allows_something(self) -> bool:
        """... and may then do something beyond what their roles allow."""
        return bool(self.rules or self.allow_authenticated)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the ObjectServer; RegistrationError.  The audit log begins."""
        from objserver.security import ServerTLS, write_audit

        tls = None
        if self.tls_cert is not None:
            tls = ServerTLS(certificate=self.tls_cert, key=self.tls_key, client_ca=self.tls_client_ca)
        found = {
            "tls": tls,
            "authentication": self._authentication(),
            "authorization": self._authorization(),
            "insecure": self.insecure,
        }
        if self.audit is not None:
            try:
                write_audit(self.audit)
            except OSError as problem:
                raise errors.RegistrationError(f"{self.audit} cannot be written: {problem}") from None
        return found

    def read_again(self, server: ObjectServer) -> None:
        """Have the server go by the files as they are now; RegistrationError: nothing has changed."""
        authentication, authorization = self._authentication(), self._authorization()
        server.reload_tls()  # the last that can fail
        if authentication is not None:
            server.authentication = authentication
        if authorization is not None:
            server.authorization = authorization

    def _authentication(self) -> Authentication | None:
        if self.keys_file is None:
            return None
        from objserver.security import Authentication
        from objserver.security.files import load_keys

        try:
            return Authentication(keys=load_keys(self.keys_file))
        except errors.RegistrationError:
            raise
        except ValueError as problem:
            raise errors.RegistrationError(f"{self.keys_file}: {problem}") from None

    def _authorization(self) -> Authorization | None:
        if not self.allows_something:
            return None
        from objserver.security import Authorization, Rules

        rules = Rules.load(self.rules) if self.rules is not None else Rules()
        return Authorization(rules=rules, allow_authenticated=self.allow_authenticated)


def _file(name: str, help: str, *, envvar: str | None = None, to: str | None = None) -> Any:
    names = (name, to) if to else (name,)
    return click.option(*names, envvar=envvar, show_envvar=envvar is not None, metavar="FILE", help=help)


_OPTIONS = (
    _file("--tls-cert", "Encrypt: the server's certificate.", envvar="OBJSERVER_TLS_CERT"),
    _file("--tls-key", "... and its key, if that is in another file.", envvar="OBJSERVER_TLS_KEY"),
    _file(
        "--tls-client-ca",
        "Clients prove who they are by certificates of this authority.",
        envvar="OBJSERVER_TLS_CLIENT_CA",
    ),
    _file(
        "--keys", "Clients prove who they are by these shared keys.", envvar="OBJSERVER_KEYS", to="keys_file"
    ),
    _file("--rules", "Who may call what: a file of rules (TOML)."),
    click.option(
        "--allow-authenticated",
        is_flag=True,
        help="Whoever has proven who he is may call all that has no roles.",
    ),
    _file("--audit", "Add every decision to this file, a JSON object in a line."),
    click.option("--insecure", is_flag=True, help="Allow an address that other machines can reach."),
)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options, as its argument `guarding`."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        mine = {field.name: given.pop(field.name) for field in fields(Guarding)}
        return command(*args, guarding=Guarding(**mine), **given)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def read_again_at_hangup(
    server: ObjectServer, guarding: Guarding, first: Callable[[], Callable[[], None]] = lambda: lambda: None
) -> None:
    """From now on SIGHUP has the files read again; the outcome is one line on standard error.

    `first` reads what else there is to be read, and returns what puts that in force.
    """

    def read_again(*_: object) -> None:
        try:
            put_in_force = first()
            guarding.read_again(server)
            put_in_force()
            click.echo("certificates, keys and rules were read again", err=True)
        except Exception as problem:  # whatever it is: no server ends because a file is wrong
            sentence = " ".join(str(problem).split())
            click.echo(f"certificates, keys and rules stay as they were: {sentence}", err=True)

    signal.signal(signal.SIGHUP, read_again)
