"""The options of a command that asks others: what it shows to the servers of objects, and to name servers.

The two are apart, because what is for the one is nobody else's business: `--credentials` for the object,
`--nameserver-credentials` for the name server that says where it is.  Secrets are in files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from objserver.cli import parse_address
from objserver.references import NAMESERVER_PORT

if TYPE_CHECKING:
    from objserver.client import NameServers
    from objserver.security import ClientTLS, Credentials

__all__ = ["NAMESERVER", "Names", "Shown", "reaches_names", "reaches_objects"]

NAMESERVER = click.option(
    "--nameserver",
    metavar="HOST:PORT,...",
    help="The name server to ask: the first of these that answers.  [default: OBJSERVER_NAMESERVERS, or this "
    "machine's]",
)


@dataclass(frozen=True)
class Shown:
    """What is shown to a server: paths of files."""

    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    credentials: str | None = None

    @classmethod
    def taken(cls, given: Mapping[str, Any], prefix: str = "") -> Shown:
        """Of the options with this prefix."""
        return cls(*(given.get(prefix + name) for name in _FILES))

    def load(self) -> tuple[ClientTLS | None, Credentials | None]:
        """For a Proxy; ConnectFailed."""
        from objserver.security import ClientTLS
        from objserver.security.files import load_credentials

        tls = None
        if self.tls_ca or self.tls_cert:
            tls = ClientTLS(ca=self.tls_ca, certificate=self.tls_cert, key=self.tls_key)
        return tls, load_credentials(self.credentials) if self.credentials else None


@dataclass(frozen=True)
class Names:
    """Which name servers, and what they are shown."""

    addresses: str | None = None
    shown: Shown = Shown()

    @classmethod
    def taken(cls, given: Mapping[str, Any]) -> Names:
        """Of the options of a command."""
        return cls(given.get("nameserver"), Shown.taken(given, _NAMES))

    def load(self) -> NameServers:
        """For a Proxy, without addresses the usual ones; UsageError, ConnectFailed."""
        from objserver.client import NameServers

        parts = self.addresses.split(",") if self.addresses else []
        addresses = [str(parse_address(part.strip(), NAMESERVER_PORT)) for part in parts]
        tls, credentials = self.shown.load()
        return NameServers(addresses, tls=tls, credentials=credentials)


_NAMES = "nameserver_"
_FILES = {
    "tls_ca": (
        "OBJSERVER_TLS_CA",
        "Encrypt, and believe servers of this authority.",
        "Encrypt what a name server is asked, and believe those of this authority.",
    ),
    "tls_cert": ("OBJSERVER_CLIENT_CERT", "Your certificate.", "Your certificate for name servers."),
    "tls_key": ("OBJSERVER_CLIENT_KEY", "... and its key.", "... and its key."),
    "credentials": (
        "OBJSERVER_CREDENTIALS",
        "Your shared key or token.",
        "Your shared key or token for name servers; they are shown no other.",
    ),
}
"""By option the variable in its place, and what it is for servers of objects, and for name servers.  The
variables for name servers belong to their addresses, so the library reads them."""


def reaches_objects(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that servers of objects are reached with, as its argument `shown`."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        shown = Shown.taken(given)
        return command(*args, shown=shown, **{k: v for k, v in given.items() if k not in _FILES})

    for name, (variable, help, _) in reversed(_FILES.items()):
        option = f"--{name.replace('_', '-')}"
        run = click.option(option, envvar=variable, show_envvar=True, metavar="FILE", help=help)(run)
    return run


def reaches_names(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that has the option --nameserver what goes with it, as its argument `asked`."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        mine = {"nameserver", *(_NAMES + name for name in _FILES)}
        asked = Names.taken(given)
        return command(*args, asked=asked, **{k: v for k, v in given.items() if k not in mine})

    for name, (_, _, help) in reversed(_FILES.items()):
        option = f"--nameserver-{name.replace('_', '-')}"
        usual = f"{help}  [default: OBJSERVER_NAMESERVERS_{name.upper()}]"
        run = click.option(option, metavar="FILE", help=usual)(run)
    return run
