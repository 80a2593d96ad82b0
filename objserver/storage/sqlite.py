"""The embedded store: one SQLite file, one process, one connection.

The file is held exclusively, so a second server on it is refused instead of being corrupted, no shared
memory is needed, and the WAL-reset bug of SQLite before 3.51.3 (it takes two connections) cannot happen.
WAL with synchronous=FULL means that a commit that returned survives a power failure.  Until the file is in
WAL mode and has its tables, synchronous=EXTRA applies: under FULL an unlinked rollback journal may come
back after a power failure and make half-created files unreadable.

SQLAlchemy describes and creates the tables.  Loads and commits go to the driver as plain SQL, which is
half again as fast and leaves nothing between us and the transaction.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.exc

from objserver import errors
from objserver.storage import schema
from objserver.storage.base import Change, Record, Reply, Unstorable

__all__ = ["SqliteStore"]

# Keys with a lone surrogate and numbers over 64 bits fail in the driver, but not with its own error.
_FAILURES = (sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, UnicodeError, OverflowError)
# Here a change is to blame and not the store: too large a blob, for instance, or what is said above.
_ROW_FAILURES = (sqlite3.DataError, sqlite3.IntegrityError, UnicodeError, OverflowError)
_PAGE = 256

_COLUMNS = "epoch, version, codec, state_version, state"
_LOAD = f"SELECT {_COLUMNS} FROM object WHERE type = ? AND key = ?"
_INSERT = (
    "INSERT INTO object (version, codec, state_version, state, deleted, type, key)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_UPDATE = (
    "UPDATE object SET version = version + ?, codec = ?, state_version = ?, state = ?, deleted = ?"
    " WHERE type = ? AND key = ? AND epoch = ? AND version = ?"
)
_FREE = "DELETE FROM reply WHERE type = ? AND key = ? AND client = ? AND seq <= ?"
_REPLY = "INSERT INTO reply (type, key, client, seq, digest, status, result) VALUES (?, ?, ?, ?, ?, ?, ?)"
_REPLIES = (
    "SELECT client, seq, digest, status, result FROM reply WHERE type = ? AND key = ? ORDER BY client, seq"
)
# Text is compared as UTF-8 bytes and 0xff occurs in none, so this range is exactly the prefix's.
_KEYS = (
    "SELECT key FROM object WHERE type = ? AND key >= ? AND key < CAST(? AS TEXT) AND NOT deleted"
    " ORDER BY key LIMIT ?"
)
_ITEMS = (
    f"SELECT key, {_COLUMNS} FROM object WHERE type = ? AND key {{}} ? AND NOT deleted"
    f" ORDER BY key LIMIT {_PAGE}"
)

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process has it open; stop that server or give this one another file",
    sqlite3.SQLITE_CANTOPEN: "check that its directory exists and that this user may read and write there",
    sqlite3.SQLITE_READONLY: "it is read-only; make the file and its directory writable for this user",
    sqlite3.SQLITE_PERM: "this user may not open it; change its permissions",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; check the path, or restore it from a backup",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a backup",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "the disk failed; check it, then restart the server",
}


def _code(error: BaseException) -> int:
    """SQLite's primary error code, also from inside SQLAlchemy's wrapper; 0 if there is none."""
    return int(getattr(getattr(error, "orig", error), "sqlite_errorcode", 0)) & 0xFF


class SqliteStore:
    """See `objserver.storage.base.Store`.  `url` is sqlite:///path, or sqlite:// for memory."""

    def __init__(self, url: str) -> None:
        self.url = url
        path = url.removeprefix("sqlite://").removeprefix("/")
        if url != "sqlite://" and (not url.startswith("sqlite:///") or not path or "?" in path):
            raise errors.StoreError(
                f"{url!r} names no file; write sqlite:///relative/path "
                "or sqlite:////absolute/path, without options"
            )
        self._path = path or ":memory:"
        if os.path.exists(self._path) and not os.access(self._path, os.R_OK | os.W_OK):
            # SQLite would open it for reading and then report a failed lock as a disk error.
            raise errors.StoreError(
                f"cannot open {self._path}: this user may not read and write it; change its permissions"
            )
        self._lock = threading.Lock()
        self._failed: BaseException | None = None
        try:
            # timeout 0: the holder of the file keeps it as long as it runs, waiting would only delay the news
            self._connection = sqlite3.connect(
                self._path, timeout=0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._error("open", error) from error
        try:
            self._open()
        except _FAILURES as error:
            self._connection.close()
            raise self._error("open", error) from error
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        run = self._connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA synchronous = EXTRA")
        mode = run("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal" and self._path != ":memory:":
            raise errors.StoreError(f"{self._path} cannot use a write-ahead log; put it on a local disk")
        engine = sa.create_engine("sqlite://", creator=lambda: self._connection, poolclass=sa.StaticPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            schema.prepare(connection, self._path)
            connection.commit()
        run("PRAGMA synchronous = FULL")

    def _error(self, what: str, error: BaseException) -> errors.StoreError:
        advice = _ADVICE.get(_code(error))
        kind = Unstorable if what == "write" and isinstance(error, _ROW_FAILURES) else errors.StoreError
        return kind(f"cannot {what} {self._path}: " + (f"{advice} ({error})" if advice else str(error)))

    def _doubt(self, error: sqlite3.Error) -> errors.StoreError:
        """The error of a COMMIT: what of it reached the disk, the next start may find there."""
        if _code(error) == sqlite3.SQLITE_IOERR:
            self._failed = error
        failure = self._error("write", error)
        failure.in_doubt = True
        return failure

    @contextlib.contextmanager
    def _using(self, what: str) -> Iterator[sqlite3.Connection]:
        """The connection for this thread alone; no transaction and no driver error leaves the block."""
        with self._lock:
            # After a failed fsync the kernel may have dropped the pages; a second would report success.
            if self._failed is not None:
                raise self._error(what, self._failed) from self._failed
            try:
                yield self._connection
            except _FAILURES as error:
                if _code(error) == sqlite3.SQLITE_IOERR:
                    self._failed = error
                raise self._error(what, error) from error
            finally:
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.rollback()

    def load(self, type: str, key: str) -> Record | None:
        with self._using("read") as connection:
            row = connection.execute(_LOAD, (type, key)).fetchone()
        return None if row is None else Record(*row)

    def commit(self, changes: Sequence[Change]) -> set[tuple[str, str]]:
        accepted = set()
        with self._using("write") as connection:
            run = connection.execute
            run("BEGIN IMMEDIATE")
            for c in changes:
                values = (c.calls, c.codec, c.state_version, c.state, c.state is None, c.type, c.key)
                if c.epoch == c.version == 0:
                    done = run(_INSERT, values)
                else:
                    done = run(_UPDATE, (*values, c.epoch, c.version))
                if done.rowcount == 1:
                    accepted.add((c.type, c.key))
                    for client, through in c.acked:
                        run(_FREE, (c.type, c.key, client, through))
                    for reply in c.replies:
                        run(_REPLY, (c.type, c.key, *reply))
            try:
                run("COMMIT")
            except sqlite3.Error as error:
                raise self._doubt(error) from error
        return accepted

    def replies(self, type: str, key: str) -> list[Reply]:
        with self._using("read") as connection:
            rows = connection.execute(_REPLIES, (type, key)).fetchall()
        return [Reply(*row) for row in rows]

    def keys(self, type: str, prefix: str = "", limit: int | None = None) -> list[str]:
        with self._using("read") as connection:
            end = prefix.encode() + b"\xff"
            rows = connection.execute(_KEYS, (type, prefix, end, -1 if limit is None else limit)).fetchall()
        return [key for (key,) in rows]

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        # By pages, so that neither the lock nor a read transaction is held while the caller works.
        after, last = ">=", ""
        while True:
            with self._using("read") as connection:
                rows = connection.execute(_ITEMS.format(after), (type, last)).fetchall()
            for key, *row in rows:
                yield key, Record(*row)
            if len(rows) < _PAGE:
                return
            after, last = ">", rows[-1][0]

    def close(self) -> None:
        with self._lock:
            self._connection.close()
