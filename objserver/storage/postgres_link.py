"""Connections to one PostgreSQL database, and what its errors mean.

A lost connection is made again at the next use.  What can be repeated without harm, and that is everything
but commits, is then repeated.

With each new connection comes a look at whose history it shows: the system's identifier, and the timeline,
which a standby changes when it takes over.  Many a standby has lost nothing; but what it lost, if it did,
nobody can see.  So all that was loaded in another history counts as not loaded, and whoever is to know is
told (`changed`).  The timeline is read from the name of the file that is being written: the control file, of
which `pg_control_checkpoint` tells, has it only from the next checkpoint on.

`?durability=replicated` in the URL demands that no commit is acknowledged before a standby has it.  A
database that is not set up so is refused, whenever a connection is made.

The URL is libpq's, so passwords may as well be in PGPASSWORD or ~/.pgpass, and several hosts are tried until
one accepts writes.  What the errors repeat of it is host and database.
"""

from __future__ import annotations

import contextlib
import logging
import re
import select
import struct
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
import sqlalchemy.exc

from objserver import errors
from objserver.logs import escaping
from objserver.storage import schema

try:
    import psycopg
    from psycopg import IsolationLevel, pq
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.types.numeric import Int8BinaryDumper
except ImportError as missing:
    raise errors.StoreError(
        "a store in PostgreSQL needs psycopg; install it with: pip install 'objserver[postgres]'"
    ) from missing

__all__ = [
    "FAILURES",
    "NOW",
    "PASS_STATES",
    "RETRIES_MAX",
    "Connection",
    "IsolationLevel",
    "Link",
    "PostgresDatabase",
]

_log = escaping(logging.getLogger("objserver.storage"))

CONNECT_TIMEOUT_S = 10
"""For each host; `connect_timeout` in the URL replaces it."""
STATEMENT_TIMEOUT_S = 30
"""A statement that takes longer waits for a lock that somebody forgot, or for a disk that is gone."""
RETRIES_MAX = 20
"""How often a transaction that was undone to let another pass is tried again."""

# Lone surrogates fail in the driver, and so do numbers over 64 bits, but not with its own error.
FAILURES = (psycopg.Error, sqlalchemy.exc.SQLAlchemyError, UnicodeError, OverflowError, struct.error)
PASS_STATES = ("40001", "40P01")
"""The server undid the transaction to let another pass."""

NOW = "extract(epoch FROM clock_timestamp())::float8"
"""Leases are by the database's clock."""

_SETTINGS = f"""
    SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT_S}s', false),
        set_config('default_transaction_isolation', 'read committed', false),
        set_config('enable_seqscan', 'off', false),
        set_config('plan_cache_mode', 'force_generic_plan', false), set_config('jit', 'off', false),
        CASE WHEN current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
            THEN set_config('synchronous_commit', 'on', false) END,
        current_setting('synchronous_standby_names'), current_setting('synchronous_commit'),
        current_setting('server_encoding')""".encode()
_HISTORY = b"""
SELECT (pg_control_system()).system_identifier::text, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"""

_ADVICE = {
    "42501": "give its user the right to create tables and to write there",
    "25006": "it is read-only; name the primary server in the URL",
    "53100": "its disk is full; free some space there",
    "57014": "it took too long; look for locks and for a slow disk there",
}

_T = TypeVar("_T")
Connection = psycopg.Connection[Any]


class Link:
    """A connection, made when it is needed, for one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: Connection | None = None
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


class PostgresDatabase:
    """`url` is the one it was opened at, without password."""

    alone = False

    def __init__(self, url: str, *, create: bool = True) -> None:
        url, self._replicated = _without_durability(url)
        self._target, self.url, self._name, self._secrets = _parsed(url)
        self._closed = False
        self._writing, self._reading, self._keeping = Link(), Link(), Link()
        self.changed: Callable[[str], None] | None = None
        self._history: tuple[str, str] | None = None
        self._histories = 0
        """So many have been replaced by another."""
        self._heeded = {"commit": 0, "confirm": 0}
        try:
            with self._writing.lock:
                self._prepare(self._connected(self._writing, "open"), create)
        except BaseException:
            self.close()
            raise

    def _prepare(self, connection: Connection, create: bool) -> None:
        try:
            connection.autocommit = False
            engine = sa.create_engine(
                "postgresql+psycopg://", creator=lambda: connection, poolclass=sa.StaticPool
            )
            with engine.connect() as outer:
                # Servers that start together would otherwise create the tables at the same time.
                outer.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('objserver.schema'))")
                outer.exec_driver_sql("SET LOCAL statement_timeout = 0")  # what is added may be an index
                self.id = schema.prepare(outer, self._name, create)
                outer.commit()
            connection.autocommit = True
        except FAILURES as error:
            raise self._error("open", error) from None

    def _connected(self, link: Link, what: str) -> Connection:
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
        except FAILURES as error:
            link.drop()
            failure = self._error("open" if what == "open" else "reach", error)
            failure.away = True
            raise failure from None
        if row is None or row[-1] != "UTF8":
            link.drop()
            raise errors.StoreError(
                f"cannot open {self._name}: its encoding is {row and row[-1]}, which does not hold every "
                "text; create the database with: createdb -T template0 -E UTF8"
            )
        *_, standbys, commits, _ = row
        if self._replicated and (not standbys or commits not in ("on", "remote_apply")):
            link.drop()
            raise errors.StoreError(
                f"cannot {what} {self._name}: its URL says durability=replicated, but there "
                f"synchronous_standby_names is {standbys!r} and synchronous_commit is {commits!r}, so a "
                "commit waits for no standby; name the standbys, as in 'ANY 1 (s1, s2)', or take that out of "
                "the URL"
            )
        self._look_at_history(connection)
        return connection

    def _look_at_history(self, connection: Connection) -> None:
        try:
            found = connection.execute(_HISTORY).fetchone()
        except FAILURES as error:
            _log.warning(
                "%s does not show which history it has, so a failover that loses commits is not noticed; let "
                "its user execute pg_control_system and pg_walfile_name (%s)",
                self._name, self._error("read", error),
            )  # fmt: skip
            return
        assert found is not None
        before, self._history = self._history, (found[0], found[1])
        if before is None or before == self._history:
            return
        self._histories += 1
        what = f"timeline {before[1]} before and {found[1]} now"
        if before[0] != found[0]:
            what = f"another database system, {before[0]} before and {found[0]} now"
        sentence = f"{self._name} has another history ({what}): what was loaded before may never have been"
        _log.warning("%s", sentence)
        if self.changed is not None:
            self.changed(sentence)

    def _is_outdated(self, use: str) -> bool:
        """Whether the history has changed since this use was last made, so that what this one is based on may
        never have been."""
        before, self._heeded[use] = self._heeded[use], self._histories
        return before != self._histories

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

    def _do(self, what: str, work: Callable[[Connection], _T], link: Link | None = None) -> _T:
        """What `work` makes of a connection; once more with a new one if that was lost meanwhile.

        `work` can be repeated: it reads, or what it writes it would write again.
        """
        link = link or self._reading
        with link.lock:
            lost = undone = 0
            while True:
                connection = self._connected(link, what)
                link.warning = ""
                try:
                    done = work(connection)
                except FAILURES as error:
                    if connection.closed:
                        lost += 1
                    elif getattr(error, "sqlstate", None) in PASS_STATES:
                        undone += 1
                    else:
                        raise self._error(what, error) from None
                    if lost > 1 or undone > RETRIES_MAX:
                        failure = self._error(what, error)
                        failure.away = lost > 1
                        raise failure from None
                    continue
                if what == "write" and link.warning:
                    raise errors.StoreError(f"cannot {what} {self._name}: {link.warning}")
                return done

    def _rows(self, what: str, statement: bytes, *parameters: Any) -> list[Any]:
        return self._do(
            what, lambda c: c.execute(statement, parameters, prepare=True, binary=True).fetchall()
        )

    def _run(self, statement: bytes, *parameters: Any) -> None:
        self._do("write", lambda c: c.execute(statement, parameters, prepare=True))

    def close(self) -> None:
        for link in (self._writing, self._reading, self._keeping):
            with link.lock:
                self._closed = True
                link.drop()


def _without_durability(url: str) -> tuple[str, bool]:
    """libpq does not know this option."""
    head, mark, options = url.partition("?")
    parts = [part.partition("=") for part in options.split("&")]
    asked = [value for name, _, value in parts if name == "durability"]
    for value in asked:
        if value != "replicated":
            raise errors.StoreError(
                "the URL of the store has a durability that is unknown; write durability=replicated, to have "
                "a database refused that does not replicate every commit, or leave it out"
            )
    rest = "&".join("".join(part) for part in parts if part[0] != "durability")
    return (f"{head}?{rest}" if mark and rest else head) if asked else url, bool(asked)


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
