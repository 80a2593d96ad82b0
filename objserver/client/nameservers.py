"""`NameServers`: where the name servers are, and how they are spoken to.

    names = NameServers("host1:9090,host2:9090", tls=ClientTLS(ca="ca.pem"), credentials=key)
    Proxy("PYRONAME:town.clock", name_servers=names)

Who is shown what: `tls` and `credentials` of a proxy are for the object, and no name server sees them; what
is said here is for the name servers at these addresses, and nobody else sees it.  Addresses are compared as
they stand.  So a URI that names another name server, wherever it came from, has that one asked with nothing.

What a program does not say, its environment says, of the addresses in OBJSERVER_NAMESERVERS (or of the usual
one): OBJSERVER_NAMESERVERS_TLS_CA, _TLS_CERT, _TLS_KEY and _CREDENTIALS are paths of files, read again when
they have changed.  No secret stands in a variable, nor in a URI.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from objserver import errors
from objserver.references import NAMESERVER_ID, NAMESERVER_PORT, Location, Reference
from objserver.security import ClientTLS, Credentials

__all__ = ["ENVIRONMENT", "Contact", "NameServers", "contacts", "usual", "with_name_servers"]

ENVIRONMENT = "OBJSERVER_NAMESERVERS"
_FILES = tuple(f"{ENVIRONMENT}_{what}" for what in ("TLS_CA", "TLS_CERT", "TLS_KEY", "CREDENTIALS"))
_VARIABLES = (ENVIRONMENT, "PYRO_NS_HOST", "PYRO_NS_PORT", *_FILES)
"""Where they are, the last two as Pyro5 has it, and what they are shown."""


@dataclass(frozen=True)
class NameServers:
    """The name servers at `addresses`, a list or a text with commas; the first that answers is believed.

    `tls` encrypts what they are asked, and `credentials` say who asks, to them and to nobody else.  Without
    addresses both are for the name servers that a URI names, or else for the usual ones.  ValueError for
    what is no address.
    """

    addresses: str | Sequence[str] = ()
    tls: ClientTLS | None = field(default=None, kw_only=True)
    credentials: Credentials | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        text = self.addresses if isinstance(self.addresses, str) else ",".join(self.addresses)
        found = Location.parse_list(text, NAMESERVER_PORT) if text else []
        object.__setattr__(self, "addresses", tuple(map(str, found)))

    @classmethod
    def of(cls, given: NameServers | str | Sequence[str]) -> NameServers:
        """What is given where name servers can be: addresses alone will do."""
        return given if isinstance(given, NameServers) else cls(given)

    @property
    def locations(self) -> tuple[Location, ...]:
        """Where they are."""
        return tuple(map(Location.parse, self.addresses))


class Contact(NamedTuple):
    """One name server, and what it is shown."""

    location: Location
    tls: ClientTLS | None = None
    credentials: Credentials | None = None

    @property
    def reference(self) -> Reference:
        """Of the name server itself."""
        return Reference("PYRO", NAMESERVER_ID, self.location)


def contacts(reference: Reference, given: NameServers) -> tuple[Contact, ...]:
    """The name servers that know `reference`, in the order of preference.

    NamingError or ConnectFailed if the environment says something of them that cannot be used.
    """
    environment = tuple(map(os.environ.get, _VARIABLES))
    stamps = tuple(map(_stamp, environment[-len(_FILES) :])) if any(environment[-len(_FILES) :]) else ()
    return _contacts(reference, given, environment, stamps)


@lru_cache(1024)  # it is asked for every connection by name
def _contacts(
    reference: Reference, given: NameServers, environment: tuple[str | None, ...], stamps: tuple[object, ...]
) -> tuple[Contact, ...]:
    if reference.location is not None:
        locations: Sequence[Location] = (reference.location, *reference.others)
    else:
        locations = given.locations or _usual(*environment[:3])

    def contact(location: Location) -> Contact:
        if (given.tls or given.credentials) and location in (given.locations or (location,)):
            return Contact(location, given.tls, given.credentials)
        if stamps and location in _usual(*environment[:3]):
            return Contact(location, *_read(environment[3:], stamps))
        return Contact(location)

    return tuple(map(contact, locations))


def with_name_servers(reference: Reference, given: NameServers) -> Reference:
    """The reference, to be asked for at the addresses of `given` if it says none itself."""
    if reference.protocol == "PYRO" or reference.location is not None or not given.addresses:
        return reference
    first, *others = given.locations
    return Reference(reference.protocol, reference.object_id, first, tuple(others))


def usual() -> tuple[Location, ...]:
    """Where the name servers of the environment are, or that of this machine; NamingError."""
    return _usual(*map(os.environ.get, _VARIABLES[:3]))


def _usual(listed: str | None, host: str | None, port: str | None) -> tuple[Location, ...]:
    if listed:
        try:
            return NameServers(listed).locations
        except ValueError as problem:
            raise errors.NamingError(f"the environment variable {ENVIRONMENT}: {problem}") from None
    if port and not port.isdecimal():
        raise errors.NamingError(f"PYRO_NS_PORT is not a port: {port!r}")
    return (Location(host or "localhost", int(port or NAMESERVER_PORT)),)


def _stamp(path: str | None) -> tuple[int, int] | None:
    """Another one when the file has changed."""
    try:
        found = os.stat(path) if path else None
    except OSError:
        return None  # whoever reads it says so
    return found and (found.st_mtime_ns, found.st_ino)


@lru_cache(8)
def _read(
    paths: tuple[str | None, ...], stamps: tuple[object, ...]
) -> tuple[ClientTLS | None, Credentials | None]:
    ca, certificate, key, credentials = (path or None for path in paths)
    tls = ClientTLS(ca=ca, certificate=certificate, key=key) if ca or certificate else None
    if credentials is None:
        return tls, None
    from objserver.security.files import load_credentials  # few have any

    try:
        return tls, load_credentials(credentials)
    except errors.ConnectFailed as problem:
        raise errors.ConnectFailed(f"the environment variable {_FILES[-1]}: {problem}") from None
