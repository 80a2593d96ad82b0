"""Callbacks: on which connection an object of a client is called, and whether it still may be.

A client's object is called on the connections that the client made.  It says itself which process it is, so
where it is known who calls, a process is a principal *and* an id: who says that he is somebody else's process
is another one.  The reference of a client's object has the id only.  In the client's own message it means the
client's own process; passed on by somebody else, that of the only principal who has one of that id.

An object that was given away is called for as long as its client is there, which may be long after the call
that brought it.  So when the rules have changed, it is asked again whether that call would still be allowed;
as long as it is not, the object is not called.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from objserver import errors
from objserver.adapter import Giver, Invocation
from objserver.adapter.guard import what_of

if TYPE_CHECKING:
    from objserver.adapter import ObjectAdapter
    from objserver.server.connection import Connection
    from objserver.server.conversation import Conversation

__all__ = ["Callbacks", "WayBack"]


class Callbacks:
    """The connections of one server on which clients can be called.  From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: dict[str, dict[str, list[Connection]]] = {}
        """By the id of the client's process, and by whose it is: the oldest first."""

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        """Its client can be called on it, as long as it is open."""
        with self._lock:
            whose = self._connections.setdefault(connection.client, {})
            whose.setdefault(connection.whose, []).append(connection)

    def remove(self, connection: Connection) -> None:
        """It is about to close."""
        with self._lock:
            whose = self._connections.get(connection.client, {})
            connections = whose.get(connection.whose, [])
            if connection in connections:
                connections.remove(connection)
                if not connections:
                    del whose[connection.whose]
                if not whose:
                    del self._connections[connection.client]

    def only(self, client: str) -> str | None:
        """Whose process has this id; None if nobody's, or if several say so."""
        with self._lock:
            known = self._connections.get(client, {})
            return next(iter(known)) if len(known) == 1 else None

    def newest(self, client: str, whose: str | None) -> Connection:
        """The connection to call it on; ConnectFailed if there is none."""
        with self._lock:
            connections = self._connections.get(client, {}).get(whose) if whose is not None else None
            if not connections:
                raise errors.ConnectFailed("the client whose object is to be called has no connection here")
            return connections[-1]


class WayBack:
    """How one object of a client is called: the link of its proxy."""

    __slots__ = ("_adapter", "_brought", "_callbacks", "_client", "_generation", "_giver", "whose")

    def __init__(
        self, callbacks: Callbacks, adapter: ObjectAdapter, client: str, giver: Connection | None
    ) -> None:
        self._callbacks = callbacks
        self._adapter = adapter
        self._client = client
        self._giver = None if giver is None else giver.principal
        self.whose = callbacks.only(client)
        """Whose process it is; None as long as nobody can tell."""
        if giver is not None and giver.client == client:
            self.whose = giver.whose
        self._generation = adapter.generation
        self._brought: tuple[str, str, Sequence[Any]] | None = None
        """Object, method and what else is asked about the call that it came in."""

    def bring(self, invocation: Invocation) -> None:
        """It came in this call."""
        self._brought = (invocation.object_id, *what_of(invocation))

    def __call__(self) -> Conversation:
        if self.whose is None:
            self.whose = self._callbacks.only(self._client)
        connection = self._callbacks.newest(self._client, self.whose)
        if self._generation != self._adapter.generation:
            self._judge(connection)
        return connection.conversation

    def _judge(self, connection: Connection) -> None:
        """ConnectFailed if what brought it would not be allowed any more, or nobody knows what that was."""
        giver, generation = self._giver, self._adapter.generation
        if giver is not None:
            now = connection.principal  # the same, perhaps with a proof that is newer
            if now is not None and now.whose == giver.whose:
                giver = now
            try:
                if self._brought is None:
                    raise errors.NotAuthorized("it came in no call")
                self._adapter.lend([Giver(giver, connection.address)], *self._brought)
            except (errors.NotAuthorized, errors.ObjectNotFound) as problem:
                raise errors.ConnectFailed(
                    f"the client's object is not called: other rules hold than when it came, and {problem}"
                ) from None
        self._generation = generation
