"""The embedded store: one SQLite file, one process, one connection.

The file is held exclusively, so a second server on it is refused instead of being corrupted, no shared
memory is needed, and the WAL-reset bug of SQLite before 3.51.3 (it takes two connections) cannot happen.
WAL with synchronous=FULL means that a commit that returned survives a power failure.  Until the file is in
WAL mode and has its tables, synchronous=EXTRA applies: it syncs the directory too after the rollback journal
is unlinked, so that the journal cannot come back after a power failure.  Our power-loss tests have not found
a file that FULL would have lost there; but EXTRA costs one sync when the file is made, and nothing later.

SQLAlchemy describes and creates the tables.  Loads and commits go to the driver as plain SQL, which is
half again as fast and leaves nothing between us and the transaction.  A commit takes many rows with one
statement: the driver lets go of the interpreter for each statement, and under load a thread that runs Python
keeps it for milliseconds before it gives it back.

A simulator, and tests, let several servers share one store as they would share an engine on the network.
That is `alone=False`: acquiring then writes the owner and raises the epoch.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc

from objserver import errors
from objserver.storage import schema
from objserver.storage.base import (
    Answered,
    Change,
    Due,
    Message,
    Record,
    Reply,
    Row,
    Session,
    Stored,
    Timer,
    Unstorable,
)

__all__ = ["SqliteStore"]

# Keys with a lone surrogate and numbers over 64 bits fail in the driver, but not with its own error.
_FAILURES = (sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, UnicodeError, OverflowError)
# Here a change is to blame and not the store: too large a blob, for instance, or what is said above.
_ROW_FAILURES = (sqlite3.DataError, sqlite3.IntegrityError, UnicodeError, OverflowError)
_PAGE = 256
_COPIED = 1000
"""Pages of a snapshot copied at a time: a few milliseconds, after which loads and commits get in between."""
_PAUSE_S = 0.001
"""... in which they do."""
_ROWS_MAX = 256
"""In one statement.  That is 2,304 values, where SQLite takes 32,766; a longer one would save nothing."""
_SESSIONS_ENDED = 100
"""In one transaction; loads and commits get in between."""

_COLUMNS = "epoch, version, codec, state_version, state"
_LOAD = f"SELECT {_COLUMNS} FROM object WHERE type = ? AND key = ?"
_TAKE = "UPDATE object SET owner = ?, epoch = epoch + 1 WHERE type = ? AND key = ? AND owner IS NOT ?"
_INSERT = (
    "INSERT INTO object (version, codec, state_version, state, deleted, type, key, owner)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?){} ON CONFLICT DO NOTHING"
)
_UPDATE = (
    "UPDATE object AS o SET version = o.version + v.column1, codec = v.column2, state_version = v.column3,"
    " state = v.column4, deleted = v.column5 FROM (VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?){}) AS v"
    " WHERE o.type = v.column6 AND o.key = v.column7 AND o.epoch = v.column8 AND o.version = v.column9"
)
# The join in this order: for each that is acknowledged, what is there of that client.
_FREE = (
    "DELETE FROM reply WHERE (type, key, client, number, path) IN"
    " (SELECT r.type, r.key, r.client, r.number, r.path FROM (VALUES (?, ?, ?, ?){}) AS v"
    " CROSS JOIN reply AS r ON r.type = v.column1 AND r.key = v.column2 AND r.client = v.column3"
    " AND r.number <= v.column4)"
)
_REPLY = (
    "INSERT INTO reply (type, key, client, number, path, acked, digest, status, result)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?){}"
)
_REPLIES = (
    "SELECT client, number, path, acked, digest, status, result FROM reply WHERE type = ? AND key = ?"
    " ORDER BY client, number, path"
)
_HAS_SESSION = "SELECT 1 FROM session WHERE client = ?"
_OPEN_SESSION = (
    "INSERT INTO session (client, expires_at) VALUES (?, ?)"
    " ON CONFLICT (client) DO UPDATE SET expires_at = max(expires_at, excluded.expires_at)"
)
_RENEW = "UPDATE session SET expires_at = max(expires_at, ?) WHERE client = ?"
_EXPIRED = "SELECT client FROM session WHERE expires_at <= ? LIMIT ?"
_FORGET = "DELETE FROM reply WHERE client = ?"
_END_SESSION = "DELETE FROM session WHERE client = ?"
_MESSAGE = "INSERT INTO message (id, target, payload) VALUES (?, ?, ?)"
_MESSAGES = "SELECT id, target, payload FROM message ORDER BY position LIMIT ?"
_DELIVERED = "DELETE FROM message WHERE id = ?"
_NO_TIMER = "DELETE FROM timer WHERE type = ? AND key = ? AND name = ?"
_TIMER = "INSERT OR REPLACE INTO timer (type, key, name, due, payload) VALUES (?, ?, ?, ?, ?)"
_TIMERS = "SELECT name, due, payload FROM timer WHERE type = ? AND key = ? ORDER BY name"
_DUE = "SELECT type, key, name, due, payload FROM timer WHERE type = ? AND due <= ? ORDER BY due LIMIT ?"
_NEXT_DUE = "SELECT min(due) FROM timer WHERE type = ? AND due > ?"
# Text is compared as UTF-8 bytes and 0xff occurs in none, so this range is exactly the prefix's.
_KEYS = (
    "SELECT key FROM object WHERE type = ? AND key >= ? AND key < CAST(? AS TEXT) AND NOT deleted"
    " AND (? IS NULL OR key > ?) ORDER BY key LIMIT ?"
)
_COUNT = "SELECT count(*) FROM object WHERE type = ? AND NOT deleted"
_ITEMS = (
    f"SELECT key, {_COLUMNS} FROM object WHERE type = ? AND key {{}} ? AND NOT deleted"
    f" ORDER BY key LIMIT {_PAGE}"
)
# From one type to the next by the index, instead of over all the objects.
_TYPES = (
    "WITH RECURSIVE t(type) AS (SELECT min(type) FROM object UNION ALL"
    " SELECT (SELECT min(o.type) FROM object o WHERE o.type > t.type) FROM t WHERE t.type IS NOT NULL)"
    " SELECT type FROM t WHERE type IS NOT NULL"
)

_PUT = (
    "INSERT INTO object (type, key, owner, epoch, version, codec, state_version, state, deleted)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_PUT_SESSION = "INSERT INTO session (client, expires_at) VALUES (?, ?)"
_PUT_TIMER = "INSERT INTO timer (type, key, name, due, payload) VALUES (?, ?, ?, ?, ?)"
_SET_ASIDE = "CREATE TEMP TABLE before AS SELECT type, key, epoch, version, codec, state_version FROM object"
# Epochs and versions only grow: what a server has in memory, or has made ids of, is never valid again.
_FENCE = (
    "UPDATE object SET epoch = max(object.epoch, b.epoch) + 1, version = max(object.version, b.version)"
    " FROM before AS b WHERE object.type = b.type AND object.key = b.key"
)
_BURY = (
    "INSERT INTO object (type, key, epoch, version, codec, state_version, deleted)"
    " SELECT type, key, epoch + 1, version, codec, state_version, true FROM before AS b"
    " WHERE NOT EXISTS (SELECT 1 FROM object AS o WHERE o.type = b.type AND o.key = b.key)"
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
    """See `objserver.storage.base.Store`.  `url` is sqlite:///path, or sqlite:// for memory.

    With `alone=False` several servers may share this store.  `clock` gives the seconds since 1970 by which
    sessions end.
    """

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
        except _FAILURES as error:
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
        kind = Unstorable if what == "write" and isinstance(error, _ROW_FAILURES) else errors.StoreError
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
            except _FAILURES as error:
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

    def load(self, type: str, key: str) -> Record | None:
        with self._using("read") as connection:
            row = connection.execute(_LOAD, (type, key)).fetchone()
        return None if row is None else Record(*row)

    def acquire(self, names: Sequence[tuple[str, str]], owner: str) -> dict[tuple[str, str], Record]:
        if not self.alone:
            with self._transaction() as cursor:
                cursor.executemany(_TAKE, [(owner, type, key, owner) for type, key in names])
                return _found(cursor, names)
        with self._using("read") as connection:
            return _found(connection.cursor(), names)

    def commit(self, changes: Sequence[Change]) -> set[tuple[str, str]]:
        with self._transaction() as cursor:
            clients = {reply[0] for c in changes for reply in c.replies}
            # One whose lease is over counts until `expire_sessions` removes it, and its records.
            gone = {c for c in clients if cursor.execute(_HAS_SESSION, (c,)).fetchone() is None}
            if gone:
                changes = [c for c in changes if not any(reply[0] in gone for reply in c.replies)]
            if _write(cursor, changes) != len(changes):
                # Some are based on what is no longer there.  That is rare: one by one, to see which.
                cursor.execute("ROLLBACK")
                cursor.execute("BEGIN IMMEDIATE")
                changes = [c for c in changes if _write(cursor, [c])]
            names = [(c.type, c.key) for c in changes]
            named = list(zip(names, changes, strict=True))
            _many(cursor, _FREE, [name + pair for name, c in named for pair in c.acked])
            _many(cursor, _REPLY, [name + reply for name, c in named for reply in c.replies])
            for name, c in named:
                if c.messages:
                    cursor.executemany(_MESSAGE, c.messages)
                for timer in c.timers:
                    if timer.due is None:
                        cursor.execute(_NO_TIMER, (*name, timer.name))
                    else:
                        cursor.execute(_TIMER, name + timer)
        return set(names)

    def confirm(self, reads: Sequence[tuple[str, str, int, int]]) -> set[tuple[str, str]]:
        names = [(type, key) for type, key, _, _ in reads]
        with self._using("read") as connection:
            found = _found(connection.cursor(), names)
        now = ((0, 0) if (record := found.get(name)) is None else record[:2] for name in names)
        return {name for name, read, pair in zip(names, reads, now, strict=True) if read[2:] == pair}

    def replies(self, type: str, key: str) -> list[Reply]:
        return [Reply(*row) for row in self._rows(_REPLIES, type, key)]

    def open_session(self, client: bytes, lease_s: float) -> None:
        with self._transaction() as cursor:
            cursor.execute(_OPEN_SESSION, (client, self._clock() + lease_s))

    def renew_sessions(self, clients: Sequence[bytes], lease_s: float) -> set[bytes]:
        with self._transaction() as cursor:
            end = self._clock() + lease_s
            return {client for client in clients if cursor.execute(_RENEW, (end, client)).rowcount}

    def expire_sessions(self) -> list[bytes]:
        now = self._clock()
        ended: list[bytes] = []
        while True:
            with self._transaction() as cursor:
                clients = cursor.execute(_EXPIRED, (now, _SESSIONS_ENDED)).fetchall()
                cursor.executemany(_FORGET, clients)
                cursor.executemany(_END_SESSION, clients)
            ended += [client for (client,) in clients]
            if len(clients) < _SESSIONS_ENDED:
                return ended

    def messages(self, limit: int) -> list[Message]:
        return [Message(*row) for row in self._rows(_MESSAGES, limit)]

    def delivered(self, ids: Sequence[bytes]) -> None:
        with self._transaction() as cursor:
            cursor.executemany(_DELIVERED, [(id,) for id in ids])

    def due(self, now: float, types: Sequence[str], limit: int) -> list[Due]:
        rows = (row for type in set(types) for row in self._rows(_DUE, type, now, limit))
        found = [Due(type, key, Timer(*timer)) for type, key, *timer in rows]
        return sorted(found, key=lambda due: due.timer.due)[:limit]  # type: ignore[arg-type, return-value]

    def next_due(self, after: float, types: Sequence[str]) -> float | None:
        dues = (self._rows(_NEXT_DUE, type, after)[0][0] for type in set(types))
        return min((due for due in dues if due is not None), default=None)

    def timers(self, type: str, key: str) -> list[Timer]:
        return [Timer(*row) for row in self._rows(_TIMERS, type, key)]

    def keys(
        self, type: str, prefix: str = "", limit: int | None = None, *, after: str | None = None
    ) -> list[str]:
        end = prefix.encode("utf-8", "surrogatepass") + b"\xff"  # a lone surrogate the driver refuses
        rows = self._rows(_KEYS, type, prefix, end, after, after, -1 if limit is None else limit)
        return [key for (key,) in rows]

    def count(self, type: str) -> int:
        number: int = self._rows(_COUNT, type)[0][0]
        return number

    def types(self) -> list[str]:
        return [type for (type,) in self._rows(_TYPES)]

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        # By pages, so that neither the lock nor a read transaction is held while the caller works.
        after, last = ">=", ""
        while True:
            rows = self._rows(_ITEMS.format(after), type, last)
            for key, *row in rows:
                yield key, Record(*row)
            if len(rows) < _PAGE:
                return
            after, last = ">", rows[-1][0]

    def snapshot(self, types: Sequence[str] | None = None) -> Generator[Row, None, None]:
        # Of a copy, since the file has room for one connection; what is written meanwhile is copied too.
        copy = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        try:
            with self._lock:
                if self._failed is not None:
                    raise self._error("read", self._failed) from self._failed
                # (Of memory all at once: there each write makes SQLite begin anew.)
                pages = _COPIED if self._path != ":memory:" else -1
                self._connection.backup(copy, pages=pages, progress=self._let_others)
            chosen = ", ".join("?" * len(types or ()))
            for statement, row in schema.SNAPSHOT if types is None else schema.SNAPSHOT[:-1]:
                if types is None or "{}" not in statement:
                    rows = copy.execute(statement.format(""))
                else:
                    rows = copy.execute(statement.format(f"WHERE type IN ({chosen})"), types)
                for columns in rows:
                    yield row(*columns)
        except _FAILURES as error:  # perhaps of the copy: not a reason to give up the file
            raise self._error("read", error) from error
        finally:
            copy.close()

    def _let_others(self, *_: int) -> None:
        self._lock.release()
        time.sleep(_PAUSE_S)
        self._lock.acquire()
        self._connection.total_changes  # noqa: B018  (an error, if it was closed meanwhile)

    def restore(self, id: str, rows: Iterable[Row], *, replace: bool = False) -> None:
        with self._transaction() as cursor:
            before = cursor.execute("SELECT 1 FROM object LIMIT 1").fetchone() is not None
            if before and not replace:
                raise errors.StoreError(
                    f"{self._path} has objects already; give another store, or say that they may be replaced"
                )
            cursor.execute("DROP TABLE IF EXISTS temp.before")
            cursor.execute(_SET_ASIDE)
            for table in ("object", "reply", "timer", "session", "message"):
                cursor.execute(f"DELETE FROM {table}")
            for number, row in enumerate(rows, 1):
                try:
                    _put(cursor, row)
                except _ROW_FAILURES as error:
                    failure = self._error("write", error)
                    if isinstance(failure, Unstorable):
                        failure.row = number
                    raise failure from error
            cursor.execute(schema.FORGET_STRAYS)
            cursor.execute(_FENCE)
            cursor.execute(_BURY)
            cursor.execute("DROP TABLE temp.before")
            cursor.execute("UPDATE cluster SET cluster_id = ?", (id,))
        self.id = id

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _many(cursor: sqlite3.Cursor, statement: str, rows: Sequence[Sequence[Any]]) -> int:
    """Run `statement` with all the rows, in as few turns as there are powers of two in their number, so that
    its texts are few and stay prepared; returns how many rows of the table it changed."""
    changed = at = 0
    while at < len(rows):
        count = min(1 << (len(rows) - at).bit_length() - 1, _ROWS_MAX)
        part = rows[at : at + count]
        more = f", ({', '.join('?' * len(part[0]))})" * (count - 1)
        changed += cursor.execute(statement.format(more), [value for row in part for value in row]).rowcount
        at += count
    return changed


def _write(cursor: sqlite3.Cursor, changes: Sequence[Change]) -> int:
    """Write the states of those that are based on what is there; returns how many these are."""
    new, known = [], []
    for c in changes:
        values = c.calls, c.codec, c.state_version, c.state, c.state is None, c.type, c.key
        if c.epoch == c.version == 0:
            new.append((*values, c.owner))
        else:
            known.append((*values, c.epoch, c.version))
    return _many(cursor, _INSERT, new) + _many(cursor, _UPDATE, known)


def _put(cursor: sqlite3.Cursor, row: Row) -> None:
    match row:
        case Stored(type, key, owner, record):
            cursor.execute(_PUT, (type, key, owner, *record, record.state is None))
        case Answered(type, key, reply):
            _many(cursor, _REPLY, [(type, key, *reply)])
        case Due(type, key, timer):
            cursor.execute(_PUT_TIMER, (type, key, *timer))
        case Session():
            cursor.execute(_PUT_SESSION, row)
        case Message():
            cursor.execute(_MESSAGE, row)


def _found(cursor: sqlite3.Cursor, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
    rows = ((name, cursor.execute(_LOAD, name).fetchone()) for name in names)
    return {name: Record(*row) for name, row in rows if row is not None}
