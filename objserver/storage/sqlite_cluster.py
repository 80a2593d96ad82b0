"""What an SQLite file knows of several servers that share it: nodes, owners, who is to deliver and to fire.

They are the workers of one machine, for whom one process has the file open, or the servers of a simulation.
All transactions come one after the other here, so each operation is what it says, step by step.  Leases are
by the clock of the process that has the file.

Where a store is `alone` nobody else is there: whoever owned anything in it is gone, by the lock of the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from objserver.storage.base import FORGOTTEN_S, LOOKED_AHEAD, Due, Elsewhere, Message, Node, Record, Timer
from objserver.storage.sqlite_file import SqliteFile

__all__ = ["COLUMNS", "LOAD", "SqliteCluster", "found_records"]

_LIVE = "state <> 'dead' AND expires_at > ?"
_JOIN = (
    "INSERT INTO node (name, life, address, state, expires_at, facts) VALUES (?, ?, ?, 'up', ?, ?)"
    " ON CONFLICT (name) DO UPDATE SET life = excluded.life, address = excluded.address, state = 'up',"
    " expires_at = excluded.expires_at, facts = excluded.facts"
)
_FORGET = "DELETE FROM node WHERE expires_at <= ?"
_RENEW = "UPDATE node SET expires_at = ?, facts = ?, state = ? WHERE life = ? AND state <> 'dead'"
_LEAVE = "UPDATE node SET state = 'dead', expires_at = ? WHERE life = ? AND state <> 'dead'"
_NODES = "SELECT name, life, address, state, expires_at - ?, facts FROM node ORDER BY name"
_LIVES = f"SELECT life, address FROM node WHERE {_LIVE}"
_IS_UP = f"SELECT 1 FROM node WHERE life = ? AND state = 'up' AND {_LIVE}"
_IS_LIVE = f"SELECT 1 FROM node WHERE life = ? AND {_LIVE}"

COLUMNS = "epoch, version, codec, state_version, state"
LOAD = f"SELECT {COLUMNS} FROM object WHERE type = ? AND key = ?"
_LOAD_OWNED = f"SELECT owner, {COLUMNS} FROM object WHERE type = ? AND key = ?"
_RESERVE = (
    "INSERT INTO object (type, key, owner, epoch, codec, state_version, deleted)"
    " VALUES (?, ?, ?, 1, 0, 1, true)"
)
_GIVE = "UPDATE object SET owner = ?, epoch = epoch + 1 WHERE type = ? AND key = ?"
_GIVE_MESSAGES = "UPDATE message SET owner = ? WHERE type = ? AND key = ?"
_OWNED = (
    "SELECT type, key FROM object WHERE owner = ? AND (type, key) > (?, ?) AND NOT deleted"
    " ORDER BY type, key LIMIT ?"
)
_OWNED_FIRST = "SELECT type, key FROM object WHERE owner = ? AND NOT deleted ORDER BY type, key LIMIT ?"
_TALLY = f"""
SELECT life, (SELECT count(*) FROM object WHERE owner = life AND NOT deleted) FROM node WHERE {_LIVE}"""

_MESSAGES = "SELECT id, target, payload FROM message ORDER BY position LIMIT ?"
_MY_MESSAGES = "SELECT id, target, payload FROM message WHERE owner = ? ORDER BY position LIMIT ?"
# From one owner to the next by the index, instead of over all the messages.
_SENDERS = (
    "WITH RECURSIVE o(owner) AS (SELECT min(owner) FROM message UNION ALL"
    " SELECT (SELECT min(m.owner) FROM message m WHERE m.owner > o.owner) FROM o WHERE o.owner IS NOT NULL)"
    " SELECT owner FROM o WHERE owner IS NOT NULL"
)
_ADOPT = "UPDATE message SET owner = ? WHERE owner = ?"
_ADOPT_OWN = (
    f"{_ADOPT} AND (type = '' OR (SELECT owner FROM object AS o WHERE o.type = message.type"
    " AND o.key = message.key) = ?)"
)
_ORPHANED = "SELECT DISTINCT type, key FROM message WHERE owner = ? AND type <> ''"
_DELIVERED = "DELETE FROM message WHERE id = ?"
_FIRST_MESSAGE = "SELECT min(id) FROM message WHERE id >= ?"
# The timer's object, in the index; it is another's if a life has it that is live and not mine.
_MINE = f"""
coalesce((SELECT owner FROM object AS o WHERE o.type = t.type AND o.key = t.key)
    NOT IN (SELECT life FROM node WHERE life <> ? AND {_LIVE}), true)"""
_DUE = (
    "SELECT type, key, name, due, payload FROM timer AS t"
    f" WHERE type = ? AND due <= ? AND {_MINE} ORDER BY due LIMIT ?"
)
_NEXT_DUE = "SELECT min(due) FROM timer WHERE type = ? AND due > ?"
_MY_NEXT_DUE = f"""
SELECT min(CASE WHEN {_MINE} THEN due END), CASE count(*) WHEN {LOOKED_AHEAD} THEN max(due) END
FROM (SELECT type, key, due FROM timer WHERE type = ? AND due > ? ORDER BY due LIMIT {LOOKED_AHEAD}) AS t"""


class SqliteCluster(SqliteFile):
    """The part of `objserver.storage.base.Store` that is about others."""

    # Nodes

    def join(self, name: str, life: str, address: str, lease_s: float, facts: bytes) -> None:
        with self._transaction() as cursor:
            now = self._clock()
            cursor.execute(_FORGET, (now - FORGOTTEN_S,))
            cursor.execute(_JOIN, (name, life, address, now + lease_s, facts))

    def renew(self, life: str, lease_s: float, facts: bytes, state: str = "up") -> list[Node] | None:
        with self._transaction() as cursor:
            now = self._clock()
            if not cursor.execute(_RENEW, (now + lease_s, facts, state, life)).rowcount:
                return None
            return [Node(*row) for row in cursor.execute(_NODES, (now,))]

    def leave(self, life: str) -> None:
        with self._transaction() as cursor:
            cursor.execute(_LEAVE, (self._clock(), life))

    def nodes(self) -> list[Node]:
        return [Node(*row) for row in self._rows(_NODES, self._clock())]

    # Owners

    def acquire(
        self, names: Sequence[tuple[str, str]], owner: str, member: bool = False
    ) -> dict[tuple[str, str], Record | Elsewhere]:
        if self.alone and not member:
            with self._using("read") as connection:
                return dict(found_records(connection.cursor(), names))
        found: dict[tuple[str, str], Record | Elsewhere] = {}
        with self._transaction() as cursor:
            now = self._clock()
            lives = dict(cursor.execute(_LIVES, (now,)))
            may = not member or cursor.execute(_IS_UP, (owner, now)).fetchone() is not None
            for name in names:
                row = cursor.execute(_LOAD_OWNED, name).fetchone()
                if row is None:
                    if member and may:
                        cursor.execute(_RESERVE, (*name, owner))
                        found[name] = Record(1, 0, 0, 1, None)
                elif row[0] == owner:
                    found[name] = Record(*row[1:])
                elif row[0] in lives:
                    found[name] = Elsewhere(row[0], lives[row[0]])
                elif may:
                    _give(cursor, name, owner)
                    found[name] = Record(row[1] + 1, *row[2:])
        return found

    def release(
        self, objects: Sequence[tuple[str, str, int]], owner: str, to: str | None
    ) -> set[tuple[str, str]]:
        released = set()
        with self._transaction() as cursor:
            for type, key, epoch in objects:
                row = cursor.execute(_LOAD_OWNED, (type, key)).fetchone()
                now = row[:2] if row is not None else None
                if now == (owner, epoch):
                    _give(cursor, (type, key), to)
                    released.add((type, key))
                elif now == (to, epoch + 1):
                    released.add((type, key))
        return released

    def owners(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Elsewhere]:
        with self._using("read") as connection:
            lives = dict(connection.execute(_LIVES, (self._clock(),)))
            rows = ((name, connection.execute(_LOAD_OWNED, name).fetchone()) for name in names)
            return {
                name: Elsewhere(row[0], lives[row[0]])
                for name, row in rows
                if row is not None and row[0] in lives
            }

    def owned(self, life: str, limit: int, after: tuple[str, str] | None = None) -> list[tuple[str, str]]:
        if after is None:
            return self._rows(_OWNED_FIRST, life, limit)
        return self._rows(_OWNED, life, *after, limit)

    def tally(self) -> dict[str, int]:
        return dict(self._rows(_TALLY, self._clock()))

    # Who is to deliver, and to fire

    def messages(self, limit: int, owner: str | None = None, member: bool = False) -> list[Message]:
        if owner is None or (self.alone and not member):
            return [Message(*row) for row in self._rows(_MESSAGES, limit)]
        now = self._clock()
        if member and not self._rows(_IS_LIVE, owner, now):
            return []
        lives = {life for life, _ in self._rows(_LIVES, now)}
        gone = [one for (one,) in self._rows(_SENDERS) if one not in lives and one != owner]
        if gone and member:
            # Else an owner that only slept could commit more, and two nodes would send those of one object.
            self.acquire([name for one in gone for name in self._rows(_ORPHANED, one)], owner, True)
            with self._transaction() as cursor:
                cursor.executemany(_ADOPT_OWN, [(owner, one, owner) for one in gone])
        elif gone:
            with self._transaction() as cursor:
                cursor.executemany(_ADOPT, [(owner, one) for one in gone])
        return [Message(*row) for row in self._rows(_MY_MESSAGES, owner, limit)]

    def delivered(self, ids: Sequence[bytes]) -> None:
        with self._transaction() as cursor:
            cursor.executemany(_DELIVERED, [(id,) for id in ids])

    def first_messages(self, prefixes: Sequence[bytes]) -> list[bytes]:
        found = {prefix: self._rows(_FIRST_MESSAGE, prefix)[0][0] for prefix in prefixes}
        return [id for prefix, id in found.items() if id is not None and id.startswith(prefix)]

    def due(self, now: float, types: Sequence[str], limit: int, owner: str | None = None) -> list[Due]:
        me = None if self.alone else owner
        rows = (r for type in set(types) for r in self._rows(_DUE, type, now, me, self._clock(), limit))
        found = [Due(type, key, Timer(*timer)) for type, key, *timer in rows]
        return sorted(found, key=lambda due: due.timer.due)[:limit]  # type: ignore[arg-type, return-value]

    def next_due(self, after: float, types: Sequence[str], owner: str | None = None) -> float | None:
        dues: list[float | None] = []
        for type in set(types):
            if owner is None or self.alone:
                dues += self._rows(_NEXT_DUE, type, after)[0]
            else:
                dues += self._rows(_MY_NEXT_DUE, owner, self._clock(), type, after)[0]
        return min((due for due in dues if due is not None), default=None)


def _give(cursor: sqlite3.Cursor, name: tuple[str, str], to: str | None) -> None:
    cursor.execute(_GIVE, (to, *name))
    cursor.execute(_GIVE_MESSAGES, (to or "", *name))


def found_records(cursor: sqlite3.Cursor, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
    rows: Any = ((name, cursor.execute(LOAD, name).fetchone()) for name in names)
    return {name: Record(*row) for name, row in rows if row is not None}
