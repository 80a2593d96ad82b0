"""The object `Pyro.Daemon`, through which a client asks a server about itself.

Its members are those of Pyro5's daemon object, which stock proxies and tools call, and
some of ours: `release_session`, with which our proxies end a session before its idle timeout, and `describe`,
from which stubs are written and a shell shows signatures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from objserver.adapter.describe import describe
from objserver.adapter.exposure import expose, idempotent, oneway, readonly
from objserver.invocation import Client, current, in_progress
from objserver.security.principal import client_of
from objserver.wire.extension import CLIENT_SIZE

if TYPE_CHECKING:
    from objserver.adapter.adapter import ObjectAdapter

__all__ = ["DaemonObject"]


@expose
class DaemonObject:
    """The servant of `Pyro.Daemon`."""

    def __init__(
        self,
        adapter: ObjectAdapter,
        describe: Callable[[], str],
        entries: Callable[[], list[str]] = list,
    ) -> None:
        self._adapter = adapter
        self._describe = describe
        self._entries = entries

    @readonly
    def registered(self) -> list[str]:
        """Names of all registered objects."""
        return self._adapter.registered()

    @readonly
    def ping(self) -> None:
        """Does nothing."""

    @readonly
    def info(self) -> str:
        """A sentence about the server."""
        return self._describe()

    @readonly
    def get_metadata(self, object_id: str) -> dict[str, set[str]]:
        """Exposed `methods`, `oneway` methods and `attrs` of an object."""
        return self._adapter.metadata(object_id, _caller())

    @readonly
    def describe(self, object_id: str) -> dict[str, Any]:
        """What an object offers, with signatures and docstrings, as plain data; see `adapter.describe`."""
        return describe(self._adapter.skeleton(object_id, _caller()).cls)

    @readonly
    def get_entries(self) -> list[str]:
        """Addresses that lead to every object of the cluster; none, if this server is in none."""
        return self._entries()

    def get_next_stream_item(self, stream_id: str) -> Any:
        """Listed for stock clients; the adapter routes the call to the object the stream belongs to."""
        raise AssertionError("routed by the adapter")

    @oneway
    def close_stream(self, stream_id: str) -> None:
        """Forget an item stream."""
        if type(stream_id) is str:
            self._adapter.streams.close(stream_id, _caller())

    def renew(self, object_ids: Any) -> float:
        """The caller's process still holds these exported objects; returns the seconds of its lease."""
        ids = object_ids if type(object_ids) is list else []
        return self._adapter.renew(_holder(), [i for i in ids if type(i) is str])

    @oneway
    def release(self, dropped: Any) -> None:
        """The caller's process got so many references to each of these objects, and has dropped them all."""
        if type(dropped) is dict:
            known = {i: n for i, n in dropped.items() if type(i) is str and type(n) is int and n > 0}
            whose = current.caller.whose if current.caller is not None else ""
            self._adapter.release(_holder(), known, whose)

    @idempotent
    def open_session(self, client: bytes, forever: bool = False) -> None:
        """From now on this client's calls of Persistent objects are remembered, for as long as its lease.

        `forever`: it is an object, which may have something to repeat after any time.
        """
        if len(client) != CLIENT_SIZE:
            raise ValueError(f"a client's id has {CLIENT_SIZE} bytes")
        self._adapter.open_session(client_of(current.caller, client), forever)

    @oneway
    def release_session(self) -> None:
        """End the session of the caller: its PerClient servants are closed."""
        self._adapter.end_session(current.session)


def _caller() -> Client | None:
    facts = in_progress.get()
    return facts.caller if facts is not None else None


def _holder() -> str:
    facts = in_progress.get()
    return facts.caller.holder if facts is not None else ""
