"""From a logical reference to the one that says where the object is.

`PYRONAME:` asks a name server for a name, `PYROMETA:` for any object with the given tags.  Where no name
server is given, the one on this machine is asked, at the port that everybody uses (9090, or the environment
variable PYRO_NS_PORT), as Pyro5 does.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from objserver import errors
from objserver.references import NAMESERVER_ID, NAMESERVER_PORT, Location, Reference

__all__ = ["name_server", "resolve"]


def name_server(location: Location | None = None) -> Reference:
    """The reference of the name server at `location`, by default this machine's."""
    if location is None:
        host = os.environ.get("PYRO_NS_HOST", "localhost")
        location = Location(host, int(os.environ.get("PYRO_NS_PORT", NAMESERVER_PORT)))
    return Reference("PYRO", NAMESERVER_ID, location)


def resolve(reference: Reference, call: Callable[..., Any], timeout_s: float | None) -> Reference:
    """The PYRO reference behind `reference`; NamingError if nobody knows it.

    `call(reference, timeout_s, method, *args)` asks a name server.
    """
    if reference.protocol == "PYRO":
        return reference
    server = name_server(reference.location)
    try:
        if reference.protocol == "PYRONAME":
            return Reference.parse(str(call(server, timeout_s, "lookup", reference.object_id)))
        found = call(server, timeout_s, "yplookup", None, sorted(reference.tags), False)
    except errors.ConnectFailed as problem:
        raise errors.NamingError(
            f"cannot resolve {reference}: no name server answers at {server.location}; "
            "start one with `objserver nameserver`"
        ) from problem
    if not found:
        raise errors.NamingError(f"no object is registered with any of the tags {sorted(reference.tags)}")
    return Reference.parse(str(random.choice(sorted(found.values()))))
