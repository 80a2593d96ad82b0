"""What a servant written for Pyro5 sees as its daemon.

A stock daemon gives every servant `_pyroDaemon`, and the usual use of it is to make an object, register it,
and return it, so that the caller gets a proxy.  This is as much of a daemon as that takes.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from objserver.references import Reference

if TYPE_CHECKING:
    from objserver.server.server import ObjectServer

__all__ = ["Pyro5Daemon"]


class Pyro5Daemon:
    """Pyro5's names for what an ObjectServer does.  Does not keep the server alive."""

    def __init__(self, server: ObjectServer) -> None:
        self._server = weakref.proxy(server)

    @property
    def locationStr(self) -> str:
        """Where the server listens."""
        return str(self._server.address)

    def register(self, obj_or_class: Any, objectId: str | None = None, force: bool = False) -> Reference:
        """Serve an object, under a made-up id if none is given; `force` takes an id away from another."""
        if force and objectId in self._server.adapter.registered():
            self.unregister(objectId)
        return self._server.register(obj_or_class, objectId)  # type: ignore[no-any-return]

    def unregister(self, objectOrId: Any) -> None:
        """Stop serving it."""
        self._server.unregister(self._id(objectOrId))

    def uriFor(self, objectOrId: Any, nat: bool = True) -> Reference:
        """The reference of something registered."""
        return self._server.reference(self._id(objectOrId))  # type: ignore[no-any-return]

    @staticmethod
    def _id(object_or_id: Any) -> str:
        return object_or_id if isinstance(object_or_id, str) else str(object_or_id._pyroId)
