"""The store that many servers share: one PostgreSQL database, or whatever speaks its protocol.

A commit is one statement, so it costs one round trip and one fsync, whatever number of objects and replies it
has: arrays of rows go in, the places of the accepted ones come back.  Compare-and-set needs no more
than READ COMMITTED, because an UPDATE that had to wait for a row looks at it again.

There are two connections, one for commits and one for everything else, so that a load does not wait for the
disk.  A lost connection is made again at the next use.  Reads are then repeated.  A commit is repeated only
if the server says that it undid it to let another pass; after any other error its outcome is unknown, and
the error says so (`in_doubt`), since the statement may have been committed before its answer was lost.  A
warning counts as an error there: that is how PostgreSQL says that a synchronous standby did not confirm.

The URL is libpq's, so passwords may as well be in PGPASSWORD or ~/.pgpass, and several hosts are tried until
one accepts writes.  What the errors repeat of it is host and database.
"""

from __future__ import annotations

import contextlib
import re
import select
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
import sqlalchemy.exc

from objserver import errors
from objserver.storage import schema
from objserver.storage.base import Change, Record, Reply, Unstorable

try:
    import psycopg
    from psycopg import pq
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.types.numeric import Int8BinaryDumper
except ImportError as missing:
    raise errors.StoreError(
        "a store in PostgreSQL needs psycopg; install it with: pip install 'objserver[postgres]'"
    ) from missing

__all__ = ["PostgresStore"]

CONNECT_TIMEOUT_S = 10
"""For each host; `connect_timeout` in the URL replaces it."""
STATEMENT_TIMEOUT_S = 30
"""A statement that takes longer waits for a lock that somebody forgot, or for a disk that is gone."""
TRANSACTION_SIZE_MAX = 256 * 2**20
"""Bytes of state and results in one commit.  A quarter of what PostgreSQL takes in one message, beyond which
it would not refuse the change but break the connection."""
RETRIES_MAX = 20
"""How often a commit that was undone to let another pass is tried again."""
_PAGE = 256

# Lone surrogates fail in the driver, and so do numbers over 64 bits, but not with its own error.
_FAILURES = (psycopg.Error, sqlalchemy.exc.SQLAlchemyError, UnicodeError, OverflowError, struct.error)
# Data, integrity and program limits: here a change is to blame and not the store.
_ROW_STATES = ("22", "23", "54")
_PASS_STATES = ("40001", "40P01")

_COLUMNS = "epoch, version, codec, state_version, state"
_SETTINGS = f"""
    SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT_S}s', false),
        set_config('default_transaction_isolation', 'read committed', false),
        set_config('enable_seqscan', 'off', false),
        set_config('plan_cache_mode', 'force_generic_plan', false),
        CASE WHEN current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
            THEN set_config('synchronous_commit', 'on', false) END,
        current_setting('server_encoding')""".encode()
_LOAD = f"SELECT {_COLUMNS} FROM object WHERE type = %s AND key = %s".encode()
_REPLIES = (
    b"SELECT client, seq, digest, status, result FROM reply WHERE type = %s AND key = %s ORDER BY client, seq"
)
_COMMIT = """
WITH d AS MATERIALIZED (
    SELECT * FROM unnest(%b::text[], %b::text[], %b::int8[], %b::int8[], %b::int8[], %b::int8[], %b::int8[],
        %b::bytea[]) WITH ORDINALITY AS d(type, key, epoch, version, calls, codec, state_version, state, i)),
n AS (
    INSERT INTO object (type, key, version, codec, state_version, state, deleted)
    SELECT type, key, calls, codec, state_version, state, state IS NULL FROM d
    WHERE epoch = 0 AND version = 0 ORDER BY type, key
    ON CONFLICT DO NOTHING RETURNING type, key),
u AS (
    UPDATE object AS o SET version = o.version + d.calls, codec = d.codec, state_version = d.state_version,
        state = d.state, deleted = d.state IS NULL
    FROM d WHERE o.type = d.type AND o.key = d.key AND o.epoch = d.epoch AND o.version = d.version
        AND (d.epoch, d.version) <> (0, 0)
    RETURNING d.i),
a AS (SELECT i FROM u UNION ALL SELECT d.i FROM n JOIN d ON n.type = d.type AND n.key = d.key)"""
_WITH_REPLIES = """,
r AS (
    INSERT INTO reply (type, key, client, seq, digest, status, result)
    SELECT d.type, d.key, x.client, x.seq, x.digest, x.status, x.result
    FROM unnest(%b::int8[], %b::bytea[], %b::int8[], %b::bytea[], %b::int8[], %b::bytea[])
        AS x(i, client, seq, digest, status, result) JOIN a USING (i) JOIN d USING (i)),
f AS (
    DELETE FROM reply USING d, a, unnest(%b::int8[], %b::bytea[], %b::int8[]) AS x(i, client, through)
    WHERE x.i = a.i AND x.i = d.i AND reply.type = d.type AND reply.key = d.key
        AND reply.client = x.client AND reply.seq <= x.through)"""
_ACCEPTED = "\nSELECT i FROM a"
_COMMIT_STATES = (_COMMIT + _ACCEPTED).encode()
_COMMIT_ALL = (_COMMIT + _WITH_REPLIES + _ACCEPTED).encode()
_KEYS = (
    b"SELECT key FROM object WHERE type = %s AND key >= %s AND (%s::text IS NULL OR key < %s)"
    b" AND NOT deleted ORDER BY key LIMIT %s"
)
_ITEMS = (
    f"SELECT key, {_COLUMNS} FROM object WHERE type = %s AND key {{}} %s AND NOT deleted"
    f" ORDER BY key LIMIT {_PAGE}"
)
_FIRST, _NEXT = _ITEMS.format(">=").encode(), _ITEMS.format(">").encode()

_ADVICE = {
    "42501": "give its user the right to create tables and to write there",
    "25006": "it is read-only; name the primary server in the URL",
    "53100": "its disk is full; free some space there",
    "57014": "it took too long; look for locks and for a slow disk there",
}

_T = TypeVar("_T")
_Connection = psycopg.Connection[Any]


class _Undone(Exception):
    """The server undid the transaction for the sake of another; it may be tried again."""


class _Link:
    """A connection, made when it is needed, for one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: _Connection | None = None
        self.warning = ""

    def is_usable(self) -> bool:
        """False if the server has hung up since the last use, or that use was interrupted."""
        if self.connection is None or self.connection.closed:
            return False
        pg = self.connection.pgconn
        if pg.transaction_status != pq.TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(pg.socket, select.POLLIN)
        for _ in range(3):  # what it said, and that it hung up, are read one after the other
            if not poll.poll(0):
                return pg.status == pq.ConnStatus.OK
            try:
                pg.consume_input()
            except psycopg.Error:
                return False
        return False

    def drop(self) -> None:
        if self.connection is not None:
            with contextlib.suppress(psycopg.Error):
                self.connection.close()
            self.connection = None

    def heed(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warning = notice.message_primary or "a warning without words"


class PostgresStore:
    """See `objserver.storage.base.Store`.  `url` is the one it was opened at, without password."""

    def __init__(self, url: str) -> None:
        self._target, self.url, self._name, self._secrets = _parsed(url)
        self._closed = False
        self._writing, self._reading = _Link(), _Link()
        try:
            with self._writing.lock:
                self._prepare(self._connected(self._writing, "open"))
        except BaseException:
            self.close()
            raise

    def _prepare(self, connection: _Connection) -> None:
        try:
            connection.autocommit = False
            engine = sa.create_engine(
                "postgresql+psycopg://", creator=lambda: connection, poolclass=sa.StaticPool
            )
            with engine.connect() as outer:
                # Servers that start together would otherwise create the tables at the same time.
                outer.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('objserver.schema'))")
                schema.prepare(outer, self._name)
                outer.commit()
            connection.autocommit = True
        except _FAILURES as error:
            raise self._error("open", error) from None

    def _connected(self, link: _Link, what: str) -> _Connection:
        """The link's connection, made anew if need be; nothing has been sent if that fails."""
        if self._closed:
            raise errors.StoreError(f"cannot {what} {self._name}: the store is closed")
        if link.is_usable():
            assert link.connection is not None
            return link.connection
        link.drop()
        try:
            connection = psycopg.connect(self._target, autocommit=True)
            link.connection = connection
            connection.adapters.register_dumper(int, Int8BinaryDumper)  # one type, so one prepared statement
            connection.add_notice_handler(link.heed)
            row = connection.execute(_SETTINGS).fetchone()
        except _FAILURES as error:
            link.drop()
            raise self._error("open" if what == "open" else "reach", error) from None
        if row is None or row[-1] != "UTF8":
            link.drop()
            raise errors.StoreError(
                f"cannot open {self._name}: its encoding is {row and row[-1]}, which does not hold every "
                "text; create the database with: createdb -T template0 -E UTF8"
            )
        return connection

    def _error(self, what: str, error: BaseException) -> errors.StoreError:
        """One sentence, without secrets; never chained, since the driver's own is not so careful."""
        inner = getattr(error, "orig", None) or error
        state = getattr(inner, "sqlstate", None) or ""
        # Of the server's words only the first: the others show the row, which is nobody else's affair.
        diagnosis = getattr(inner, "diag", None)
        words = " ".join(str((diagnosis and diagnosis.message_primary) or inner).split())
        for secret in self._secrets:
            words = words.replace(secret, "***")
        advice = _ADVICE.get(state)
        words = f"{advice} ({words})" if advice else words
        return errors.StoreError(f"cannot {what} {self._name}: {words}")

    def _read(self, read: Callable[[_Connection], _T]) -> _T:
        """What `read` makes of a connection; once more with a new one if that was lost meanwhile."""
        with self._reading.lock:
            for last in (False, True):
                connection = self._connected(self._reading, "read")
                try:
                    return read(connection)
                except _FAILURES as error:
                    if last or not connection.closed:
                        raise self._error("read", error) from None
            raise AssertionError("unreachable")

    def load(self, type: str, key: str) -> Record | None:
        row = self._read(lambda c: c.execute(_LOAD, (type, key), prepare=True, binary=True).fetchone())
        return None if row is None else Record(*row)

    def replies(self, type: str, key: str) -> list[Reply]:
        rows = self._read(lambda c: c.execute(_REPLIES, (type, key), prepare=True, binary=True).fetchall())
        return [Reply(*row) for row in rows]

    def commit(self, changes: Sequence[Change]) -> set[tuple[str, str]]:
        # All lock the rows in the same order, so that two servers do not wait for each other.
        changes = sorted(changes, key=lambda c: (c.type, c.key))
        statement, parameters = self._statement(changes)
        with self._writing.lock:
            if not changes:
                self._connected(self._writing, "write")
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
        ]
        if not any(c.replies or c.acked for c in changes):
            return _COMMIT_STATES, parameters
        replies = [(i, *r) for i, c in enumerate(changes, 1) for r in c.replies]
        acked = [(i, *a) for i, c in enumerate(changes, 1) for a in c.acked]
        parameters += [[row[column] for row in replies] for column in range(6)]
        parameters += [[row[column] for row in acked] for column in range(3)]
        return _COMMIT_ALL, parameters

    def _execute(self, statement: bytes, parameters: list[Any]) -> list[int]:
        """The places, from 1, of the accepted changes."""
        connection = self._connected(self._writing, "write")
        self._writing.warning = ""
        try:
            rows = connection.execute(statement, parameters, prepare=True, binary=True).fetchall()
        except _FAILURES as error:
            failure = self._error("write", error)
            state = getattr(error, "sqlstate", None) or ""
            alive = not connection.closed
            if alive and state in _PASS_STATES:
                raise _Undone(str(failure)) from None
            # The driver's own errors have no state: it could not even send what it was given.
            if alive and (state[:2] in _ROW_STATES or not state):
                raise Unstorable(str(failure)) from None
            self._writing.drop()
            failure.in_doubt = True
            raise failure from None
        if self._writing.warning:
            failure = errors.StoreError(f"cannot write {self._name}: {self._writing.warning}")
            failure.in_doubt = True
            raise failure
        return [i for (i,) in rows]

    def keys(self, type: str, prefix: str = "", limit: int | None = None) -> list[str]:
        end = _after(prefix)
        rows = self._read(lambda c: c.execute(_KEYS, (type, prefix, end, end, limit)).fetchall())
        return [key for (key,) in rows]

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        # By pages, so that no transaction stays open while the caller works.
        statement, last = _FIRST, ""
        while True:
            rows = self._read(partial(self._page, statement, (type, last)))
            for key, *row in rows:
                yield key, Record(*row)
            if len(rows) < _PAGE:
                return
            statement, last = _NEXT, rows[-1][0]

    def _page(self, statement: bytes, after: tuple[str, str], connection: _Connection) -> list[Any]:
        return connection.execute(statement, after, binary=True).fetchall()

    def close(self) -> None:
        for link in (self._writing, self._reading):
            with link.lock:
                self._closed = True
                link.drop()


def _after(prefix: str) -> str | None:
    """The least text above all that begin with `prefix`; None if there is none."""
    prefix = prefix.rstrip("\U0010ffff")
    if not prefix:
        return None
    following = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(0xE000 if following == 0xD800 else following)


def _parsed(url: str) -> tuple[str, str, str, list[str]]:
    """What libpq gets; the URL without secrets; a name for sentences; what must not appear in any."""
    rest = re.sub(r"^postgres(ql)?(\+psycopg)?://", "", url)
    user, at, place = rest.rpartition("@")
    if rest == url or (at and re.search(r"[@/?#\[\]\s]", user)):
        # Not repeated: which part of it is the password nobody can tell.
        raise errors.StoreError(
            "the URL of the store is not clear; write postgresql://user:password@host:port/database, "
            "with %40 for @, %2F for / and so on inside user and password"
        )
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "target_session_attrs": "read-write",
        "application_name": "objserver",
        "client_encoding": "utf8",
        # A server that vanished without a word is noticed after as long as a statement may take.
        "tcp_user_timeout": STATEMENT_TIMEOUT_S * 1000,
        "keepalives_idle": STATEMENT_TIMEOUT_S,
    }
    try:
        found = conninfo_to_dict(f"postgresql://{rest}")
        target = psycopg.conninfo.make_conninfo(f"postgresql://{rest}", **{**options, **found})
    except psycopg.Error:
        raise errors.StoreError(
            "the URL of the store is not understood; write postgresql://user:password@host:port/database, "
            "with options of libpq behind a ?"
        ) from None
    names, _, password = user.partition(":")
    secrets = {str(found.get(option) or "") for option in ("password", "sslpassword")} | {password}
    plain = re.sub(r"([?&](ssl)?password=)[^&]*", r"\1***", f"postgresql://{names}{at}{place}")
    name = f"{found.get('dbname') or 'the default database'} at {found.get('host') or 'the local socket'}"
    return target, plain, name, sorted((s for s in secrets if s), key=len, reverse=True)
