"""Where the state of objects outlives the process.

The only room that knows SQL.  Importing it costs nothing: SQLAlchemy is loaded when a store is opened, so
a server without persistent objects does not need it.
"""

from __future__ import annotations

from objserver import errors
from objserver.storage.base import Change, Record, Store
from objserver.storage.committer import Committer

__all__ = ["Change", "Committer", "Record", "Store", "open_store"]


def open_store(url: str) -> Store:
    """Open the store at a URL, creating it if need be."""
    scheme, colon, _ = url.partition(":")
    if not colon or scheme != "sqlite":
        # Only the scheme is repeated: the rest of a URL may hold a password.
        raise errors.StoreError(
            f"no store for {scheme + ':' if colon else 'a text without a scheme'}; supported are "
            "sqlite:///path (a file) and sqlite:// (memory); postgresql comes with a later release"
        )
    from objserver.storage.sqlite import SqliteStore

    return SqliteStore(url)
