"""The store that many servers share: one PostgreSQL database, or whatever speaks its protocol.

A commit is one statement, so it costs one round trip and one fsync, whatever number of objects, replies,
messages and timers it has: arrays of rows go in, the places of the accepted ones come back.  Compare-and-set
needs no more than READ COMMITTED, because an UPDATE that had to wait for a row looks at it again.  To acquire
is one statement too, which writes only the rows that had another owner.

A commit locks the sessions of the clients it answers, as a foreign key would, against being ended meanwhile;
who ends sessions passes over those that are locked.  So none ends between the look at it and the commit, and
whoever ended it sees all the records that there will ever be.  Leases are by the database's clock.

There are three connections: one for commits, one for everything else, so that a load does not wait for a
commit, and one for the leases of nodes, which wait for nothing.  A commit is repeated only if the server says
that it undid it to let another pass.  If the server said that it gave it up, for want of room or time,
nothing was stored.  After any other error the outcome is unknown, and the error says so (`in_doubt`), since
the statement may have been committed before its answer was lost.  A warning counts as an error where
something was written: that is how PostgreSQL says that a synchronous standby did not confirm.
"""

from __future__ import annotations

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
from objserver.storage.postgres_cluster import COLUMNS, PostgresCluster
from objserver.storage.postgres_link import (
    FAILURES,
    NOW,
    PASS_STATES,
    RETRIES_MAX,
    Connection,
    IsolationLevel,
    Link,
)

__all__ = ["PostgresStore"]

TRANSACTION_SIZE_MAX = 256 * 2**20
"""Bytes of state, results and payloads in one commit.  A quarter of what PostgreSQL takes in one message,
beyond which it would not refuse the change but break the connection."""
SESSIONS_ENDED = 100
"""In one transaction, so that nobody waits long for their records."""
_PAGE = 256
FETCHED = 32
"""Rows of a snapshot fetched at a time.  All of them are in memory, and a state may be large."""
RESTORED, RESTORED_SIZE = 256, 8 * 2**20
"""Rows sent together when a snapshot is restored; and their bytes, from which on they are."""

# Data, integrity and program limits: here a change is to blame and not the store.
_ROW_STATES = ("22", "23", "54")
# The server has ended the statement itself, which undoes it: for want of room, rights or time, or because a
# trigger raised something.
_ENDED_STATES = ("25", "42", "53", "55", "57014", "P0")

_LOAD = f"SELECT {COLUMNS} FROM object WHERE type = %s AND key = %s".encode()
_REPLIES = (
    b"SELECT client, number, path, acked, digest, status, result FROM reply WHERE type = %s AND key = %s"
    b" ORDER BY client, number, path"
)
_CONFIRM = b"""
SELECT d.type, d.key
FROM unnest(%b::text[], %b::text[], %b::int8[], %b::int8[]) AS d(type, key, epoch, version)
    LEFT JOIN object AS o ON o.type = d.type AND o.key = d.key
WHERE coalesce(o.epoch, 0) = d.epoch AND coalesce(o.version, 0) = d.version"""
_CHANGES = """
d AS MATERIALIZED (
    SELECT * FROM unnest(%b::text[], %b::text[], %b::int8[], %b::int8[], %b::int8[], %b::int8[], %b::int8[],
            %b::bytea[], %b::text[]) WITH ORDINALITY
        AS d(type, key, epoch, version, calls, codec, state_version, state, owner, i){}),
n AS (
    INSERT INTO object (type, key, version, codec, state_version, state, deleted, owner)
    SELECT type, key, calls, codec, state_version, state, state IS NULL, owner FROM d
    WHERE epoch = 0 AND version = 0 ORDER BY type, key
    ON CONFLICT DO NOTHING RETURNING type, key),
u AS (
    UPDATE object AS o SET version = o.version + d.calls, codec = d.codec, state_version = d.state_version,
        state = d.state, deleted = d.state IS NULL
    FROM d WHERE o.type = d.type AND o.key = d.key AND o.epoch = d.epoch AND o.version = d.version
        AND (d.epoch, d.version) <> (0, 0)
    RETURNING d.i),
a AS (SELECT i FROM u UNION ALL SELECT d.i FROM n JOIN d ON n.type = d.type AND n.key = d.key)"""
# NOT IN wants the whole answer of its subquery, so all the sessions are locked before the first row of an
# object is: who holds a record never waits for a session.
_SESSIONS = """
s AS MATERIALIZED (SELECT client FROM session WHERE client = ANY(%b::bytea[]) FOR KEY SHARE),"""
_ANSWERED = """
    WHERE i NOT IN (
        SELECT x.i FROM unnest(%b::int8[], %b::bytea[]) AS x(i, client)
        WHERE x.client NOT IN (SELECT client FROM s))"""
_WITH_REPLIES = """,
r AS (
    INSERT INTO reply (type, key, client, number, path, acked, digest, status, result)
    SELECT d.type, d.key, x.client, x.number, x.path, x.acked, x.digest, x.status, x.result
    FROM unnest(%b::int8[], %b::bytea[], %b::int8[], %b::bytea[], %b::int8[], %b::bytea[], %b::int8[],
            %b::bytea[])
        AS x(i, client, number, path, acked, digest, status, result) JOIN a USING (i) JOIN d USING (i)),
f AS (
    DELETE FROM reply USING d, a, unnest(%b::int8[], %b::bytea[], %b::int8[]) AS x(i, client, through)
    WHERE x.i = a.i AND x.i = d.i AND reply.type = d.type AND reply.key = d.key
        AND reply.client = x.client AND reply.number <= x.through)"""
_WITH_WORK = """,
m AS (
    INSERT INTO message (id, target, payload, type, key, owner)
    SELECT x.id, x.target, x.payload, d.type, d.key, d.owner
    FROM unnest(%b::int8[], %b::bytea[], %b::text[], %b::bytea[]) WITH ORDINALITY
        AS x(i, id, target, payload, nth) JOIN a USING (i) JOIN d USING (i) ORDER BY x.nth),
t AS (
    INSERT INTO timer (type, key, name, due, payload)
    SELECT d.type, d.key, x.name, x.due, x.payload
    FROM unnest(%b::int8[], %b::text[], %b::float8[], %b::bytea[]) AS x(i, name, due, payload)
        JOIN a USING (i) JOIN d USING (i)
    ON CONFLICT (type, key, name) DO UPDATE SET due = excluded.due, payload = excluded.payload),
c AS (
    DELETE FROM timer USING d, a, unnest(%b::int8[], %b::text[]) AS x(i, name)
    WHERE x.i = a.i AND x.i = d.i AND timer.type = d.type AND timer.key = d.key AND timer.name = x.name)"""
_ACCEPTED = "\nSELECT i FROM a"
_COMMIT_STATES = ("WITH" + _CHANGES.format("") + _ACCEPTED).encode()
_ALL_CHANGES = "WITH" + _SESSIONS + _CHANGES.format(_ANSWERED)
_COMMIT_REPLIES = (_ALL_CHANGES + _WITH_REPLIES + _ACCEPTED).encode()
_COMMIT_ALL = (_ALL_CHANGES + _WITH_REPLIES + _WITH_WORK + _ACCEPTED).encode()
_OPEN_SESSION = (
    f"INSERT INTO session AS s (client, expires_at) VALUES (%b::bytea, {NOW} + %b::float8)"
    " ON CONFLICT (client) DO UPDATE SET expires_at = greatest(s.expires_at, excluded.expires_at)"
).encode()
# In order, so that two servers do not wait for each other.
_RENEW = f"""
WITH s AS MATERIALIZED (
    SELECT client FROM session WHERE client = ANY(%b::bytea[]) ORDER BY client FOR NO KEY UPDATE)
UPDATE session SET expires_at = greatest(expires_at, {NOW} + %b::float8) FROM s
WHERE session.client = s.client RETURNING s.client""".encode()
_END_SESSIONS = f"""
DELETE FROM session WHERE client IN (
    SELECT client FROM session WHERE expires_at <= {NOW}
    ORDER BY client LIMIT {SESSIONS_ENDED} FOR UPDATE SKIP LOCKED)
RETURNING client""".encode()
_FORGET = b"DELETE FROM reply WHERE client = ANY(%b::bytea[])"
_TIMERS = b"SELECT name, due, payload FROM timer WHERE type = %s AND key = %s ORDER BY name"
_KEYS = (
    b"SELECT key FROM object WHERE type = %s AND key >= %s AND (%s::text IS NULL OR key < %s)"
    b" AND NOT deleted AND (%s::text IS NULL OR key > %s) ORDER BY key LIMIT %s"
)
_COUNT = b"SELECT count(*) FROM object WHERE type = %s AND NOT deleted"
_ITEMS = (
    f"SELECT key, {COLUMNS} FROM object WHERE type = %s AND key {{}} %s AND NOT deleted"
    f" ORDER BY key LIMIT {_PAGE}"
)
# From one type to the next by the index, instead of over all the objects.
_TYPES = b"""
WITH RECURSIVE t(type) AS (
    (SELECT type FROM object ORDER BY type LIMIT 1) UNION ALL
    SELECT (SELECT o.type FROM object o WHERE o.type > t.type ORDER BY o.type LIMIT 1)
    FROM t WHERE t.type IS NOT NULL)
SELECT type FROM t WHERE type IS NOT NULL"""
_PUT: dict[type, bytes] = {
    Stored: b"INSERT INTO object (type, key, owner, epoch, version, codec, state_version, state, deleted)"
    b" VALUES (%b, %b, %b, %b, %b, %b, %b, %b, %b)",
    Answered: b"INSERT INTO reply (type, key, client, number, path, acked, digest, status, result)"
    b" VALUES (%b, %b, %b, %b, %b, %b, %b, %b, %b)",
    Due: b"INSERT INTO timer (type, key, name, due, payload) VALUES (%b, %b, %b, %b, %b)",
    Session: b"INSERT INTO session (client, expires_at) VALUES (%b, %b)",
    Message: b"INSERT INTO message (id, target, payload) VALUES (%b, %b, %b)",
}
_SET_ASIDE = """
CREATE TEMP TABLE before ON COMMIT DROP AS
SELECT type, key, epoch, version, codec, state_version FROM object"""
# Epochs and versions only grow: what a server has in memory, or has made ids of, is never valid again.
_FENCE = """
UPDATE object SET epoch = greatest(object.epoch, b.epoch) + 1, version = greatest(object.version, b.version)
FROM before AS b WHERE object.type = b.type AND object.key = b.key"""
_BURY = """
INSERT INTO object (type, key, epoch, version, codec, state_version, deleted)
SELECT type, key, epoch + 1, version, codec, state_version, true FROM before AS b
WHERE NOT EXISTS (SELECT 1 FROM object AS o WHERE o.type = b.type AND o.key = b.key)"""
_FIRST, _NEXT = _ITEMS.format(">=").encode(), _ITEMS.format(">").encode()


class _Undone(Exception):
    """The server undid the transaction for the sake of another; it may be tried again."""


class PostgresStore(PostgresCluster):
    """See `objserver.storage.base.Store`.  `url` is the one it was opened at, without password."""

    def load(self, type: str, key: str) -> Record | None:
        rows = self._rows("read", _LOAD, type, key)
        return Record(*rows[0]) if rows else None

    def confirm(self, reads: Sequence[tuple[str, str, int, int]]) -> set[tuple[str, str]]:
        columns = [[read[column] for read in reads] for column in range(4)]

        def work(connection: Connection) -> set[tuple[str, str]]:
            if self._is_outdated("confirm"):
                return set()
            return set(connection.execute(_CONFIRM, columns, prepare=True, binary=True).fetchall())

        return self._do("read", work)

    def replies(self, type: str, key: str) -> list[Reply]:
        return [Reply(*row) for row in self._rows("read", _REPLIES, type, key)]

    def open_session(self, client: bytes, lease_s: float) -> None:
        self._run(_OPEN_SESSION, client, float(lease_s))

    def renew_sessions(self, clients: Sequence[bytes], lease_s: float) -> set[bytes]:
        return {client for (client,) in self._rows("write", _RENEW, list(clients), float(lease_s))}

    def expire_sessions(self) -> list[bytes]:
        ended: list[bytes] = []
        while True:
            portion = self._do("write", _end_sessions)
            ended += portion
            if len(portion) < SESSIONS_ENDED:
                return ended

    def timers(self, type: str, key: str) -> list[Timer]:
        return [Timer(*row) for row in self._rows("read", _TIMERS, type, key)]

    def commit(self, changes: Sequence[Change]) -> set[tuple[str, str]]:
        # All lock the rows in the same order, so that two servers do not wait for each other.
        changes = sorted(changes, key=lambda c: (c.type, c.key))
        statement, parameters = self._statement(changes)
        with self._writing.lock:
            self._connected(self._writing, "write")
            if self._is_outdated("commit") or not changes:
                return set()
            for _ in range(RETRIES_MAX):
                try:
                    accepted = self._execute(statement, parameters)
                except _Undone as undone:
                    reason = str(undone)
                    continue
                return {(changes[i - 1].type, changes[i - 1].key) for i in accepted}
        raise errors.StoreError(
            f"cannot write {self._name}: {RETRIES_MAX} times others wrote the same objects ({reason})"
        )

    def _statement(self, changes: Sequence[Change]) -> tuple[bytes, list[Any]]:
        size = 0
        for c in changes:
            size += len(c.state or b"") + sum(len(r.result or b"") + len(r.digest or b"") for r in c.replies)
            size += sum(len(m.payload or b"") for m in c.messages)
            size += sum(len(t.payload or b"") for t in c.timers)
        if size > TRANSACTION_SIZE_MAX:
            raise Unstorable(
                f"cannot write {self._name}: {size} bytes are too many for one transaction, which can have "
                f"{TRANSACTION_SIZE_MAX}"
            )
        parameters: list[Any] = [
            [c.type for c in changes],
            [c.key for c in changes],
            [c.epoch for c in changes],
            [c.version for c in changes],
            [c.calls for c in changes],
            [c.codec for c in changes],
            [c.state_version for c in changes],
            [c.state for c in changes],
            [c.owner for c in changes],
        ]
        if not any(c.replies or c.acked or c.messages or c.timers for c in changes):
            return _COMMIT_STATES, parameters
        replies = _columns(8, ((i, *r) for i, c in enumerate(changes, 1) for r in c.replies))
        acked = _columns(3, ((i, *a) for i, c in enumerate(changes, 1) for a in c.acked))
        places, clients = replies[:2]
        parameters = [list(set(clients)), *parameters, places, clients, *replies, *acked]
        if not any(c.messages or c.timers for c in changes):
            return _COMMIT_REPLIES, parameters
        parameters += _columns(4, ((i, *m) for i, c in enumerate(changes, 1) for m in c.messages))
        # Of those of one name the last: a statement changes a row only once.
        timers = {(i, t.name): t for i, c in enumerate(changes, 1) for t in c.timers}.items()
        parameters += _columns(4, ((i, *t) for (i, _), t in timers if t.due is not None))
        parameters += _columns(2, (name for name, t in timers if t.due is None))
        return _COMMIT_ALL, parameters

    def _execute(self, statement: bytes, parameters: list[Any]) -> list[int]:
        """The places, from 1, of the accepted changes."""
        connection = self._connected(self._writing, "write")
        self._writing.warning = ""
        try:
            rows = connection.execute(statement, parameters, prepare=True, binary=True).fetchall()
        except FAILURES as error:
            failure = self._error("write", error)
            state = getattr(error, "sqlstate", None) or ""
            alive = not connection.closed
            if alive and state in PASS_STATES:
                raise _Undone(str(failure)) from None
            # The driver's own errors have no state: it could not even send what it was given.
            if alive and (state[:2] in _ROW_STATES or not state):
                raise Unstorable(str(failure)) from None
            if not alive or not state.startswith(_ENDED_STATES):
                self._writing.drop()
                failure.in_doubt = True
            raise failure from None
        if self._writing.warning:
            failure = errors.StoreError(f"cannot write {self._name}: {self._writing.warning}")
            failure.in_doubt = True
            raise failure
        return [i for (i,) in rows]

    def keys(
        self, type: str, prefix: str = "", limit: int | None = None, *, after: str | None = None
    ) -> list[str]:
        end = _after(prefix)
        rows = self._rows("read", _KEYS, type, prefix, end, end, after, after, limit)
        return [key for (key,) in rows]

    def count(self, type: str) -> int:
        number: int = self._rows("read", _COUNT, type)[0][0]
        return number

    def types(self) -> list[str]:
        return [type for (type,) in self._rows("read", _TYPES)]

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        # By pages, so that no transaction stays open while the caller works.
        statement, last = _FIRST, ""
        while True:
            rows = self._rows("read", statement, type, last)
            for key, *row in rows:
                yield key, Record(*row)
            if len(rows) < _PAGE:
                return
            statement, last = _NEXT, rows[-1][0]

    def snapshot(self, types: Sequence[str] | None = None) -> Generator[Row, None, None]:
        link = Link()
        try:
            connection = self._connected(link, "read")
            connection.read_only = True
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            with connection.transaction():
                for statement, row in schema.SNAPSHOT if types is None else schema.SNAPSHOT[:-1]:
                    some = types is not None and "{}" in statement
                    parameters = (list(types or ()),) if some else ()
                    text = statement.format("WHERE type = ANY(%b::text[])" if some else "")
                    with connection.cursor("snapshot", binary=True) as cursor:
                        cursor.itersize = FETCHED
                        for columns in cursor.execute(text.encode(), parameters):
                            yield row(*columns)
        except FAILURES as error:
            raise self._error("read", error) from None
        finally:
            link.drop()

    def restore(self, id: str, rows: Iterable[Row], *, replace: bool = False) -> None:
        link = Link()
        try:
            connection = self._connected(link, "write")
            run = connection.execute
            run(b"BEGIN")
            # Servers that use it wait until this is over.
            run(b"LOCK TABLE session, object, reply, message, timer IN EXCLUSIVE MODE")
            run(b"SET LOCAL statement_timeout = 0")
            if run(b"SELECT 1 FROM object LIMIT 1").fetchone() is not None and not replace:
                raise errors.StoreError(
                    f"{self._name} has objects already; give another store, or say that they may be replaced"
                )
            run(_SET_ASIDE.encode())
            for table in ("object", "reply", "timer", "session", "message"):
                run(f"DELETE FROM {table}".encode())
            self._put_all(connection, rows)
            run(schema.FORGET_STRAYS.encode())
            run(_FENCE.encode())
            run(_BURY.encode())
            run(b"UPDATE cluster SET cluster_id = %s::uuid", (id,))
            self._finish(connection, link)
        except FAILURES as error:
            raise self._error("write", error) from None
        finally:
            link.drop()
        self.id = id

    def _finish(self, connection: Connection, link: Link) -> None:
        link.warning = ""
        try:
            connection.execute(b"COMMIT")
        except FAILURES as error:
            failure = self._error("write", error)
            failure.in_doubt = True
            raise failure from None
        if link.warning:
            failure = errors.StoreError(f"cannot write {self._name}: {link.warning}")
            failure.in_doubt = True
            raise failure

    def _put_all(self, connection: Connection, rows: Iterable[Row]) -> None:
        """By portions, each of one kind; of one that fails, row by row, to find out which it is."""
        portion: list[Row] = []
        size = done = 0
        for row in rows:
            if portion and (
                len(portion) == RESTORED or size >= RESTORED_SIZE or type(row) is not type(portion[0])
            ):
                self._put(connection, portion, done)
                done += len(portion)
                portion, size = [], 0
            portion.append(row)
            size += len(row.record.state or b"") if type(row) is Stored else 1000
        if portion:
            self._put(connection, portion, done)

    def _put(self, connection: Connection, portion: list[Row], done: int) -> None:
        statement = _PUT[type(portion[0])]
        try:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(statement, [_parameters(row) for row in portion])
        except FAILURES as error:
            state = getattr(error, "sqlstate", None) or ""
            if connection.closed or (state and state[:2] not in _ROW_STATES):
                raise
            if len(portion) > 1:
                for number, row in enumerate(portion):
                    self._put(connection, [row], done + number)
            failure = Unstorable(str(self._error("write", error)))
            failure.row = done + 1
            raise failure from None


def _parameters(row: Row) -> tuple[Any, ...]:
    match row:
        case Stored(type, key, owner, record):
            if len(record.state or b"") > TRANSACTION_SIZE_MAX:
                raise OverflowError(f"a state of {len(record.state or b'')} bytes is too large")
            return (type, key, owner, *record, record.state is None)
        case Answered(type, key, reply):
            return (type, key, *reply)
        case Due(type, key, timer):
            return (type, key, *timer)
    return row


def _columns(number: int, rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """The arrays that `unnest` makes the rows of again."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(number)]


def _end_sessions(connection: Connection) -> list[bytes]:
    """A portion of them.  The second statement sees what was committed until the first had its locks."""
    with connection.transaction():
        ended = [client for (client,) in connection.execute(_END_SESSIONS, binary=True)]
        connection.execute(_FORGET, (ended,))
    return ended


def _after(prefix: str) -> str | None:
    """The least text above all that begin with `prefix`; None if there is none."""
    prefix = prefix.rstrip("\U0010ffff")
    if not prefix:
        return None
    following = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(0xE000 if following == 0xD800 else following)
