"""Where the state of objects outlives the process.

The only room that knows SQL.  Importing it costs nothing: SQLAlchemy, and psycopg for PostgreSQL, are
loaded when a store is opened, so a server without persistent objects does not need them.
"""

from __future__ import annotations

from objserver import errors
from objserver.storage.base import (
    Change,
    Due,
    Elsewhere,
    Message,
    Node,
    Record,
    Reply,
    Store,
    Superseded,
    Timer,
    Unstorable,
)
from objserver.storage.committer import Committer
from objserver.storage.dump import dump, dump_file, load, state_to_json

__all__ = [
    "Change",
    "Committer",
    "Due",
    "Elsewhere",
    "Message",
    "Node",
    "Record",
    "Reply",
    "Store",
    "Superseded",
    "Timer",
    "Unstorable",
    "dump",
    "dump_file",
    "load",
    "open_store",
    "state_to_json",
]


def open_store(url: str, *, create: bool = True) -> Store:
    """Open the store at a URL, creating it if need be; with `create` false it has to be there."""
    scheme, colon, _ = url.partition(":")
    if colon and scheme in ("postgresql", "postgresql+psycopg", "postgres"):
        from objserver.storage.postgres import PostgresStore

        return PostgresStore(url, create=create)
    if not colon or scheme != "sqlite":
        # Of a URL only the scheme is repeated: the rest may hold a password.  Without a colon it is a path.
        hint = f" (did you mean sqlite:///{url}?)" if url and not colon else ""
        raise errors.StoreError(
            f"no store for {scheme + ':' if colon else 'a text without a scheme'}{hint}; supported are "
            "sqlite:///path (a file), sqlite:// (memory) and postgresql://user:password@host/database"
        )
    from objserver.storage.sqlite import SqliteStore

    return SqliteStore(url, create=create)
