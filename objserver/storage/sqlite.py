"""The embedded store: one SQLite file, one process, one connection.

Loads and commits go to the driver as plain SQL, which is half again as fast as through SQLAlchemy, and leaves
nothing between us and the transaction.  A commit takes many rows with one statement: the driver lets go of
the interpreter for each statement, and under load a thread that runs Python keeps it for milliseconds before
it gives it back.

A simulator, tests, and the workers of one machine let several servers share one store as they would share an
engine on the network.  That is `alone=False`: acquiring then writes the owner and raises the epoch.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

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
from objserver.storage.sqlite_cluster import COLUMNS, LOAD, SqliteCluster, found_records
from objserver.storage.sqlite_file import FAILURES, ROW_FAILURES

__all__ = ["SqliteStore"]

_PAGE = 256
_COPIED = 1000
"""Pages of a snapshot copied at a time: a few milliseconds, after which loads and commits get in between."""
_PAUSE_S = 0.001
"""... in which they do."""
_ROWS_MAX = 256
"""In one statement.  That is 2,304 values, where SQLite takes 32,766; a longer one would save nothing."""
_SESSIONS_ENDED = 100
"""In one transaction; loads and commits get in between."""

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
_MESSAGE = "INSERT INTO message (id, target, payload, type, key, owner) VALUES (?, ?, ?, ?, ?, ?)"
_NO_TIMER = "DELETE FROM timer WHERE type = ? AND key = ? AND name = ?"
_TIMER = "INSERT OR REPLACE INTO timer (type, key, name, due, payload) VALUES (?, ?, ?, ?, ?)"
_TIMERS = "SELECT name, due, payload FROM timer WHERE type = ? AND key = ? ORDER BY name"
# Text is compared as UTF-8 bytes and 0xff occurs in none, so this range is exactly the prefix's.
_KEYS = (
    "SELECT key FROM object WHERE type = ? AND key >= ? AND key < CAST(? AS TEXT) AND NOT deleted"
    " AND (? IS NULL OR key > ?) ORDER BY key LIMIT ?"
)
_COUNT = "SELECT count(*) FROM object WHERE type = ? AND NOT deleted"
_ITEMS = (
    f"SELECT key, {COLUMNS} FROM object WHERE type = ? AND key {{}} ? AND NOT deleted"
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


class SqliteStore(SqliteCluster):
    """See `objserver.storage.base.Store`.  `url` is sqlite:///path, or sqlite:// for memory.

    With `alone=False` several servers may share this store.  `clock` gives the seconds since 1970 by which
    sessions and the leases of nodes end.
    """

    def load(self, type: str, key: str) -> Record | None:
        with self._using("read") as connection:
            row = connection.execute(LOAD, (type, key)).fetchone()
        return None if row is None else Record(*row)

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
                    cursor.executemany(_MESSAGE, [(*message, *name, c.owner) for message in c.messages])
                for timer in c.timers:
                    if timer.due is None:
                        cursor.execute(_NO_TIMER, (*name, timer.name))
                    else:
                        cursor.execute(_TIMER, name + timer)
        return set(names)

    def confirm(self, reads: Sequence[tuple[str, str, int, int]]) -> set[tuple[str, str]]:
        names = [(type, key) for type, key, _, _ in reads]
        with self._using("read") as connection:
            found = found_records(connection.cursor(), names)
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
        except FAILURES as error:  # perhaps of the copy: not a reason to give up the file
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
                except ROW_FAILURES as error:
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
            cursor.execute(_MESSAGE, (*row, "", "", ""))
