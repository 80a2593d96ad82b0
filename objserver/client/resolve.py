"""From a logical reference to the one that says where the object is.

`PYRONAME:` asks a name server for a name, `PYROMETA:` for any object with the given tags.  Where no name
server is given, the one on this machine is asked, at the port that everybody uses (9090, or the environment
variable PYRO_NS_PORT), as Pyro5 does.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from random import Random
from typing import Any

from objserver import errors, pyro5
from objserver.references import NAMESERVER_ID, NAMESERVER_PORT, Location, Reference

__all__ = ["name_server", "resolve"]

_choice = Random().choice
"""Of our own: the application may have seeded the common one, and count on it."""


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
            return _lookup(reference.object_id, lambda name: call(server, timeout_s, "lookup", name))
        found = call(server, timeout_s, "yplookup", sorted(reference.tags), None, False)
    except errors.ConnectFailed as problem:
        raise errors.NamingError(
            f"cannot resolve {reference}: no name server answers at {server.location}; "
            "start one with `objserver nameserver`"
        ) from problem
    if not found:
        raise errors.NamingError(f"no object is registered with all of the tags {sorted(reference.tags)}")
    return Reference.parse(str(_choice(sorted(found.values()))))


def _lookup(name: str, lookup: Callable[[str], Any]) -> Reference:
    """What stands behind `name`, or behind the part of it that is a name, with the rest as the object's key.

    Only `Account` is registered where `Account/alice` is meant: every key exists.
    """
    head, key = name, ""
    while True:
        try:
            found = Reference.parse(str(lookup(head)))
        except pyro5.NamingError:
            head, slash, last = head.rpartition("/")
            if not slash:
                raise
            key = f"/{last}{key}"
        else:
            return dataclasses.replace(found, object_id=found.object_id + key)
