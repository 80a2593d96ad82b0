"""The object server: listener, engine, connections."""

from objserver.server.server import ObjectServer

__all__ = ["ObjectServer"]
