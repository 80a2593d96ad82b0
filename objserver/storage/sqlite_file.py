"""The file of an embedded store: one SQLite file, one process, one connection.

The file is held exclusively, so a second server on it is refused instead of being corrupted, no shared
memory is needed, and the WAL-reset bug of SQLite before 3.51.3 (it takes two connections) cannot happen.
WAL with synchronous=FULL means that a commit that returned survives a power failure.  Until the file is in
WAL mode and has its tables, synchronous=EXTRA applies: it syncs the directory too after the rollback journal
is unlinked, so that the journal cannot come back after a power failure.  Our power-loss tests have not found
a file that FULL would have lost there; but EXTRA costs one sync when the file is made, and nothing later.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc

from objserver import errors
from objserver.storage import schema
from objserver.storage.base import Unstorable

__all__ = ["FAILURES", "ROW_FAILURES", "SqliteFile"]

# Keys with a lone surrogate and numbers over 64 bits fail in the driver, but not with its own error.
FAILURES = (sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, UnicodeError, OverflowError)
# Here a change is to blame and not the store: too large a blob, for instance, or what is said above.
ROW_FAILURES = (sqlite3.DataError, sqlite3.IntegrityError, UnicodeError, OverflowError)

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


class SqliteFile:
    """`url` is sqlite:///path, or sqlite:// for memory."""

    def __init__(
        self,
        url: str,
        *,
        alone: bool = True,
        clock: Callable[[], float] = time.time,
        create: bool = True,
    ) -> None:
        self.url = url
        self.alone = alone
        self.changed: Callable[[str], None] | None = None  # a file does not change behind its lock
        self._clock = clock
        path = url.removeprefix("sqlite://").removeprefix("/")
        if url != "sqlite://" and (not url.startswith("sqlite:///") or not path or "?" in path):
            raise errors.StoreError(
                f"{url!r} names no file; write sqlite:///relative/path "
                "or sqlite:////absolute/path, without options"
            )
        self._path = path or ":memory:"
        if not create and not os.path.exists(self._path):
            raise errors.StoreError(f"cannot open {self._path}: there is no such file; check the path")
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
            self._open(create)
        except FAILURES as error:
            self._connection.close()
            raise self._error("open", error) from error
        except BaseException:
            self._connection.close()
            raise

    def _open(self, create: bool) -> None:
        run = self._connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA synchronous = EXTRA")
        mode = run("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal" and self._path != ":memory:":
            raise errors.StoreError(f"{self._path} cannot use a write-ahead log; put it on a local disk")
        engine = sa.create_engine("sqlite://", creator=lambda: self._connection, poolclass=sa.StaticPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            self.id = schema.prepare(connection, self._path, create)
            connection.commit()
        run("PRAGMA synchronous = FULL")

    def _error(self, what: str, error: BaseException) -> errors.StoreError:
        advice = _ADVICE.get(_code(error))
        kind = Unstorable if what == "write" and isinstance(error, ROW_FAILURES) else errors.StoreError
        return kind(f"cannot {what} {self._path}: " + (f"{advice} ({error})" if advice else str(error)))

    def _doubt(self, error: sqlite3.Error) -> errors.StoreError:
        """The error of a COMMIT: what of it reached the disk, the next start may find there.

        But not if there was no room for it: what makes it valid is written last.
        """
        if _code(error) == sqlite3.SQLITE_IOERR:
            self._failed = error
        failure = self._error("write", error)
        failure.in_doubt = _code(error) not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
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
            except FAILURES as error:
                if _code(error) == sqlite3.SQLITE_IOERR:
                    self._failed = error
                raise self._error(what, error) from error
            finally:
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.rollback()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        """What is written in the block is durable after it, all of it; nothing of it if the block raises."""
        with self._using("write") as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection.cursor()
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._doubt(error) from error

    def _rows(self, statement: str, *parameters: Any) -> list[Any]:
        with self._using("read") as connection:
            return connection.execute(statement, parameters).fetchall()
