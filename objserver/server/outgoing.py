"""Where a server may connect to because a peer said so.

A reference inside an argument is a proxy for the servant, and whoever calls it connects to an address that
the caller chose: perhaps one that only this machine reaches.  Nothing connects by itself, but a servant that
is asked to call back will.  `ObjectServer(connects_to=...)` says which addresses such proxies may use.  It is
a list of what is allowed, never of what is forbidden, because an address can be written in many ways.

A name is compared with names and an address with addresses: what a name resolves to is the business of
whoever runs the domain, so a network in the list does not admit a name that happens to lie in it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable

from objserver.references import Location, Rule

__all__ = ["rule_of"]

_PATTERN = re.compile(r"(\[(?P<v6>[^\[\]]+)\]|(?P<host>[^\[\]:]+))(:(?P<port>\d{1,5}))?")
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """One entry of the list: a Unix socket, or a name or network with perhaps a port."""

    path: str = ""
    name: str = ""
    network: _Network | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> _Pattern:
        if isinstance(text, str) and text.startswith("./u:") and text[4:]:
            return cls(path=text[4:])
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise _unreadable(text)
        port = int(match["port"]) if match["port"] else None
        try:
            return cls(network=ipaddress.ip_network(match["v6"] or match["host"]), port=port)
        except ValueError:
            name = (match["host"] or "").lower()
        if not name or "/" in name or "*" in name.removeprefix("*."):
            raise _unreadable(text)
        return cls(name=name, port=port)

    def fits(self, location: Location) -> bool:
        if self.path or location.path:
            return self.path == location.path
        if self.port not in (None, location.port):
            return False
        try:
            address = ipaddress.ip_address(location.host)
        except ValueError:
            host = location.host.lower()
            return host.endswith(self.name[1:]) if self.name.startswith("*.") else host == self.name
        return self.network is not None and address in self.network


def _unreadable(text: object) -> ValueError:
    return ValueError(
        f"connects_to has {text!r}; write a name ('db.lab', '*.lab'), an address or network ('10.1.0.0/16', "
        "'[fd00::/8]'), each with a port or without (':9090'), or a Unix socket ('./u:/path')"
    )


def rule_of(connects_to: Iterable[str] | Rule | None) -> Rule | None:
    """The rule that a list of patterns means; a callable is one already, and None allows everything.

    ValueError for a pattern that cannot be read.
    """
    if connects_to is None or callable(connects_to):
        return connects_to
    if isinstance(connects_to, str):
        raise ValueError(f"connects_to is a list: write connects_to=[{connects_to!r}]")
    patterns = [_Pattern.parse(text) for text in connects_to]
    return lambda location: any(pattern.fits(location) for pattern in patterns)
