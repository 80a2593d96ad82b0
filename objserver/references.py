"""References: immutable values that name an object, and the object ids inside them.

The text form is Pyro's URI:  PYRO:<object id>@<location>,  PYRONAME:<name>[@<name server>]  and
PYROMETA:<tag>,<tag>...[@<name server>].  Of the last two several name servers may be given, with commas
between, of which any will do.  A location is `host:port`, `[ipv6]:port`, `./u:path` (a Unix socket)
or `./c:id` (a client's process, which is called on the connections that it made).  An object id is `Name` or
`Name/key`; `object_id()` percent-encodes the few characters of a key that would end the id inside a URI.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import re
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from objserver import errors, pyro5

__all__ = [
    "CLUSTER_ID",
    "DAEMON_ID",
    "LEASED",
    "NAMESERVER_ID",
    "NAMESERVER_PORT",
    "Location",
    "Reference",
    "object_id",
]

DAEMON_ID = "Pyro.Daemon"
NAMESERVER_ID = "Pyro.NameServer"
CLUSTER_ID = "objserver.Cluster"
"""Of the desk that every node of a cluster has."""
NAMESERVER_PORT = 9090
LEASED = "~"
"""Begins the id of an object that is served only as long as somebody holds a reference to it."""

URI_LENGTH_MAX = 2_000
"""Characters of a URI: long before that, nobody reads it any more."""
_URI = re.compile(r"(?P<protocol>PYRO[A-Z]*):(?P<object>[^\s@]+)(@(?P<location>.+))?", re.IGNORECASE)
_TCP = re.compile(r"(\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<host>[^:\[\]]*))(:(?P<port>\d+))?")


def rank(object_id: str, name: str) -> bytes:
    """Of several names, an object falls to the one with the highest rank (rendezvous hashing): the same from
    wherever it is asked, evenly, and when a name comes or goes, only what falls to that changes."""
    whole = f"{name}\0{object_id}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(whole, digest_size=8).digest()


def object_id(name: str, key: object = None) -> str:
    """The id of the object `key` of `name`, safe inside a URI.

    >>> object_id("Account", "alice smith@home")
    'Account/alice%20smith%40home'
    """
    return name if key is None else f"{name}/{urllib.parse.quote(str(key), safe='/:,;=+~!$()*')}"


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a server listens: a TCP host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""
    client: str = ""
    """Id of a client's process: it listens nowhere and is called on the connections that it made."""

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Location:
        """Read `host:port`, `[v6]:port` or `./u:path`; ValueError says what is wrong."""
        if not isinstance(text, str):
            raise ValueError(f"an address is a text like 'localhost:9091', not a {type(text).__name__}")
        return cls._parsed(text, default_port)

    @classmethod
    @functools.lru_cache(1024)  # there are fewer servers than references to objects of theirs
    def _parsed(cls, text: str, default_port: int | None) -> Location:
        if text.startswith("./c:") and text[4:]:
            return cls(client=text[4:])
        if text.startswith("./u:"):
            if not text[4:]:
                raise ValueError(f"{text!r} names no socket path; write ./u:/path/to/socket")
            return cls(path=text[4:])
        match = _TCP.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not host:port, [ipv6]:port or ./u:path")
        port = match["port"] or default_port
        if port is None:
            raise ValueError(f"{text!r} lacks a port")
        if int(port) > 65535:
            raise ValueError(f"port {port} in {text!r} is above 65535")
        return cls(match["v6"] or match["host"] or "localhost", int(port))

    @classmethod
    def parse_list(cls, text: str, default_port: int | None = None) -> list[Location]:
        """Read addresses with commas between; ValueError says what is wrong."""
        parts = [part.strip() for part in text.split(",")]
        if len(parts) > 1 and not all(parts):
            raise ValueError(f"{text!r} has a comma too many")
        return [cls.parse(part, default_port) for part in parts]

    def __str__(self) -> str:
        if self.path:
            return f"./u:{self.path}"
        if self.client:
            return f"./c:{self.client}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, repr=False)
class Reference:
    """Names one object.  `str()` gives its URI, `Reference.parse()` reads one."""

    protocol: str
    object_id: str
    location: Location | None = None
    others: tuple[Location, ...] = ()
    """More name servers, to be asked if that at `location` does not answer."""

    @classmethod
    def parse(cls, uri: str | Reference) -> Reference:
        """Read a PYRO:, PYRONAME: or PYROMETA: URI; NamingError says what is wrong with it."""
        if isinstance(uri, Reference):
            return uri
        if isinstance(uri, str) and len(uri) > URI_LENGTH_MAX:
            raise errors.NamingError(f"a URI has at most {URI_LENGTH_MAX} characters: {uri[:60]!r}...")
        if not isinstance(uri, str):
            raise errors.NamingError(f"{uri!r} is not a URI like PYRO:object@host:port or PYRONAME:name")
        return cls._parsed(uri)

    @classmethod
    @functools.lru_cache(1024)  # the same ones come again and again
    def _parsed(cls, uri: str) -> Reference:
        match = _URI.fullmatch(uri)
        if match is None:
            raise errors.NamingError(f"{uri!r} is not a URI like PYRO:object@host:port or PYRONAME:name")
        protocol = match["protocol"].upper()
        if protocol not in ("PYRO", "PYRONAME", "PYROMETA"):
            raise errors.NamingError(f"{uri!r}: unknown protocol {protocol}; use PYRO, PYRONAME or PYROMETA")
        if match["location"] is None:
            if protocol == "PYRO":
                raise errors.NamingError(f"{uri!r} lacks a location; write PYRO:object@host:port")
            return cls(protocol, match["object"])
        try:
            if protocol == "PYRO":
                return cls(protocol, match["object"], Location.parse(match["location"]))
            first, *others = Location.parse_list(match["location"], NAMESERVER_PORT)
            return cls(protocol, match["object"], first, tuple(others))
        except ValueError as problem:
            raise errors.NamingError(f"{uri!r}: {problem}") from None

    @property
    def tags(self) -> frozenset[str]:
        """The metadata that a PYROMETA reference asks for."""
        return frozenset(tag.strip() for tag in self.object_id.split(","))

    def __repr__(self) -> str:
        return f"Reference({str(self)!r})"

    def __str__(self) -> str:
        at = "@" + ",".join(map(str, (self.location, *self.others))) if self.location else ""
        return f"{self.protocol}:{self.object_id}{at}"


pyro5.travels_as_uri(Reference)

Rule = Callable[[Location], bool]
"""Whether a connection may be made to a place that a peer has named."""
Marks = list[Any]
"""Whom a reference came from to a server that knows who calls, one after the other, as plain data.  Empty: it
is the server's own."""
Lend = Callable[[Marks, str, str | None, Sequence[Any]], None]
"""Raises NotAuthorized unless each of those may call this method of the object with that id."""


class Origin(NamedTuple):
    """Where a reference came to that did not come through a proxy of ours: the types known there, and the
    rule for what its proxy may connect to.

    If that is a server, it is at `location`; `tls`, `credentials` and `handshake` are what its servants call
    its own objects with.  Other servers are shown nothing.  Where it knows who calls, `lend` is asked before
    each of these calls, `marks` are those of a reference that has just come, and `own` is the secret by which
    it knows the connections that its servants make to it.
    """

    types: Any = None
    rule: Rule | None = None
    location: Location | None = None
    tls: Any = None
    credentials: Any = None
    handshake: Any = "hello"
    lend: Lend | None = None
    marks: Marks | None = None
    own: str = ""


Find = Callable[[], Any]
"""Gives the connection on which a client's object is called; ConnectFailed if it is gone."""
Arrival = Callable[[Reference, Find | None, Any, Marks | None], Any]
_arrival: list[Arrival] = []


def on_arrival(make: Arrival) -> None:
    """Say what a reference becomes when it arrives inside a value; the client room makes it a proxy."""
    _arrival[:] = [make]


Deliver = Callable[[str, str, bytes, Any, int, Origin | None], None]
_delivery: list[Deliver] = []


def on_delivery(deliver: Deliver) -> None:
    """Register what makes the calls of `deliver`."""
    _delivery[:] = [deliver]


def deliver(
    target: str, method: str, payload: bytes, call: Any, acked: int, origin: Origin | None = None
) -> None:
    """Call `method` of the object at the URI `target`, as `payload` encodes it, under the id `call`.

    `origin` is the server of the object that sent it.

    Whoever makes calls is above us, and perhaps not loaded in a process that only serves.
    """
    if not _delivery:
        importlib.import_module("objserver.client.courier")
    _delivery[0](target, method, payload, call, acked, origin)


def arrived(
    reference: Reference, find: Find | None = None, origin: Any = None, marks: Marks | None = None
) -> Any:
    """What a reference that came over the wire is handed out as.

    `find` is given for a client's object.  `origin` is an Origin, or the part of a proxy through which it
    came, which has the attributes of one.
    """
    return _arrival[0](reference, find, origin, marks) if _arrival else reference
