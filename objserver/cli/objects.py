"""Asking a live object what it offers, for stubs, for `objserver call` without a method, and for completion.

Our servers describe their objects with signatures.  Others tell names only, which every proxy is told when it
connects; the description then has `unsigned` set, and members that take and give anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from objserver import errors
from objserver.client import Proxy, invoke
from objserver.client.pool import ConnectionPool
from objserver.references import DAEMON_ID, Reference

__all__ = ["describe"]

_ANYTHING = [
    {"name": "args", "kind": "var_positional", "type": None, "default": None},
    {"name": "kwargs", "kind": "var_keyword", "type": None, "default": None},
]
_MEMBER = {"kind": str, "doc": str, "unresolved": list, "readonly": bool}
_METHOD = {**_MEMBER, "oneway": bool, "generator": bool, "async": bool, "parameters": list}
_PARAMETER = {"name": str, "kind": str}


def describe(proxy: Proxy) -> dict[str, Any]:
    """What the object behind `proxy` offers, in the form of `adapter.describe`."""
    stub = proxy._objserver_stub
    offered = stub.metadata()
    pool = cast(ConnectionPool, stub.pool)
    object_id, location = pool.object_id, pool.location
    with Proxy(  # at the same server, which is shown the same
        Reference("PYRO", DAEMON_ID, location),
        timeout_s=stub.timeout_s,
        tls=pool.tls,
        credentials=pool.credentials,
    ) as daemon:
        if "describe" not in daemon._objserver_stub.metadata().methods:
            return _names_only(object_id, offered.methods, offered.oneway, offered.attrs)
        told = invoke(daemon, "describe", object_id)
    if not _understood(told):
        raise errors.ProtocolError(
            f"the server at {location} describes {object_id} in a way that is not understood here; "
            "is its objserver newer than this one?"
        )
    return {**told, "members": dict(sorted(told["members"].items()))}


def _names_only(
    object_id: str, methods: frozenset[str], oneway: frozenset[str], attrs: frozenset[str]
) -> dict[str, Any]:
    unknown: dict[str, Any] = {"doc": "", "unresolved": [], "returns": None, "readonly": False}
    members: dict[str, Any] = {name: {"kind": "attribute", **unknown} for name in attrs}
    for name in methods:
        members[name] = {"kind": "method", **unknown, "parameters": _ANYTHING}
        members[name].update({"oneway": name in oneway, "generator": False, "async": False})
    return {
        "name": object_id.partition("/")[0],
        "module": "",
        "doc": "",
        "unsigned": True,
        "members": dict(sorted(members.items())),
    }


def _has(thing: Any, fields: Mapping[str, type]) -> bool:
    return isinstance(thing, dict) and all(isinstance(thing.get(k), t) for k, t in fields.items())


def _understood(told: Any) -> bool:
    """Whether it has the form that is counted on.  Texts in it are looked at when they are used."""
    return (
        _has(told, {"name": str, "module": str, "doc": str, "members": dict})
        and all(type(name) is str for name in told["members"])
        and all(_has(member, _MEMBER) and "returns" in member for member in told["members"].values())
        and all(
            _has(member, _METHOD)
            and all(_has(p, _PARAMETER) and {"type", "default"} <= p.keys() for p in member["parameters"])
            for member in told["members"].values()
            if member["kind"] != "attribute"
        )
        and all(type(text) is str for member in told["members"].values() for text in member["unresolved"])
    )
