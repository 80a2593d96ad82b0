"""What a PostgreSQL database knows of servers that share it: nodes, owners, who is to deliver and to fire.

To acquire is one statement, whatever number of objects it has, which writes only the rows that had another
owner.  First come those that may be taken, by what the statement saw when it began; then the row of the node
that takes them is locked, so that a node that leaves has left or comes later; then they are updated, each if
nobody was faster.  An UPDATE that had to wait looks again only at the row that it waited for.  So whose lives
are live it must have in an array: in a join PostgreSQL would compare the new owner with what it had found for
the old one.  Of those that somebody took meanwhile a second statement says who it was.

A message has, beside its sender, who owns that; whoever acquires or gets an object has its messages too, in
the same statement; and in a second one, if the owner before has committed while the first waited, what that
commit sent.  So the undelivered messages of an object are always with one node, in their order, and a
node finds its own in an index.  Whoever looks first for those of owners that are gone acquires their objects:
else an owner that only slept could commit more of them, and two nodes would send those of one object.

A timer has no owner, since many are set and few of them are due: whose it is, its object tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from objserver import errors
from objserver.storage.base import FORGOTTEN_S, LOOKED_AHEAD, Due, Elsewhere, Message, Node, Record, Timer
from objserver.storage.postgres_link import NOW, RETRIES_MAX, Connection, PostgresDatabase

__all__ = ["COLUMNS", "PostgresCluster"]

# (All lives are above '': there is an index for that, and without one no plan would be cheap here.)
_LIVE = f"life > '' AND state <> 'dead' AND expires_at > {NOW}"
_FORGET = f"DELETE FROM node WHERE expires_at <= {NOW} - {FORGOTTEN_S}".encode()
_JOIN = f"""
INSERT INTO node (name, life, address, state, expires_at, facts)
VALUES (%b::text, %b::text, %b::text, 'up', {NOW} + %b::float8, %b::bytea)
ON CONFLICT (name) DO UPDATE SET life = excluded.life, address = excluded.address, state = 'up',
    expires_at = excluded.expires_at, facts = excluded.facts""".encode()
_NODE = f"name, life, address, state, expires_at - {NOW}, facts"
_RENEW = f"""
WITH me AS (
    UPDATE node SET expires_at = {NOW} + %b::float8, facts = %b::bytea, state = %b::text
    WHERE life = %b::text AND state <> 'dead' RETURNING *)
SELECT {_NODE} FROM me UNION ALL SELECT {_NODE} FROM node WHERE life <> %b::text""".encode()
_LEAVE = (
    f"UPDATE node SET state = 'dead', expires_at = {NOW} WHERE life = %b::text AND state <> 'dead'".encode()
)
_NODES = f"SELECT {_NODE} FROM node".encode()

COLUMNS = "epoch, version, codec, state_version, state"
_THE_COLUMNS = ", ".join("o." + name for name in COLUMNS.split(", "))
_NONE = "NULL::int8, NULL::int8, NULL::int2, NULL::int4, NULL::bytea"
_ACQUIRE = f"""
WITH d AS MATERIALIZED (SELECT DISTINCT * FROM unnest(%b::text[], %b::text[]) AS d(type, key)),
me AS MATERIALIZED (SELECT %b::text AS life, %b::bool AS member),
live AS MATERIALIZED (SELECT life, address FROM node WHERE {_LIVE}),
free AS MATERIALIZED (
    SELECT d.type, d.key, o.version, o.type IS NULL AS new
    FROM d CROSS JOIN me LEFT JOIN object AS o ON o.type = d.type AND o.key = d.key
    WHERE o.type IS NULL AND me.member OR o.type IS NOT NULL AND o.owner IS DISTINCT FROM me.life
        AND coalesce(o.owner <> ALL (ARRAY(SELECT life FROM live)), true)),
up AS MATERIALIZED (
    SELECT 1 FROM node WHERE EXISTS (SELECT 1 FROM free) AND life = %b::text AND state = 'up' AND {_LIVE}
    FOR SHARE),
f AS MATERIALIZED (
    SELECT type, key, version, new FROM free CROSS JOIN me WHERE NOT me.member OR EXISTS (SELECT 1 FROM up)
    ORDER BY type, key),
u AS (
    UPDATE object AS o SET owner = %b::text, epoch = o.epoch + 1 FROM f
    WHERE o.type = f.type AND o.key = f.key AND o.owner IS DISTINCT FROM %b::text
        AND coalesce(o.owner <> ALL (ARRAY(SELECT life FROM live)), true)
    RETURNING o.type, o.key, {_THE_COLUMNS}, o.version <> f.version AS late),
n AS (
    INSERT INTO object AS o (type, key, owner, epoch, codec, state_version, deleted)
    SELECT f.type, f.key, me.life, 1, 0, 1, true FROM f CROSS JOIN me WHERE f.new
    ON CONFLICT DO NOTHING RETURNING o.type, o.key, {_THE_COLUMNS}, false),
m AS (
    UPDATE message SET owner = %b::text FROM u WHERE message.type = u.type AND message.key = u.key),
taken AS (SELECT * FROM u UNION ALL SELECT * FROM n)
SELECT type, key, {COLUMNS}, late, NULL AS life, NULL AS address FROM taken
UNION ALL SELECT o.type, o.key, {_THE_COLUMNS}, false, NULL, NULL
    FROM d JOIN object AS o ON o.type = d.type AND o.key = d.key JOIN me ON o.owner = me.life
UNION ALL SELECT o.type, o.key, {_NONE}, false, live.life, live.address
    FROM d JOIN object AS o ON o.type = d.type AND o.key = d.key JOIN live ON live.life = o.owner
    WHERE o.owner <> (SELECT life FROM me)
UNION ALL SELECT f.type, f.key, {_NONE}, false, NULL, NULL
    FROM f LEFT JOIN taken ON taken.type = f.type AND taken.key = f.key WHERE taken.type IS NULL""".encode()
_FETCH_MESSAGES = b"""
UPDATE message SET owner = %b::text FROM unnest(%b::text[], %b::text[]) AS d(type, key)
WHERE message.type = d.type AND message.key = d.key AND owner <> %b::text"""
_RELEASE = b"""
WITH d AS MATERIALIZED (
    SELECT type, key, max(epoch) AS epoch
    FROM unnest(%b::text[], %b::text[], %b::int8[]) AS d(type, key, epoch)
    GROUP BY type, key ORDER BY type, key),
u AS (
    UPDATE object AS o SET owner = %b::text, epoch = o.epoch + 1 FROM d
    WHERE o.type = d.type AND o.key = d.key AND o.epoch = d.epoch AND o.owner = %b::text
    RETURNING o.type, o.key),
m AS (
    UPDATE message SET owner = coalesce(%b::text, '') FROM u
    WHERE message.type = u.type AND message.key = u.key)
SELECT type, key FROM u
UNION SELECT o.type, o.key FROM d JOIN object AS o ON o.type = d.type AND o.key = d.key
    WHERE o.epoch = d.epoch + 1 AND o.owner IS NOT DISTINCT FROM %b::text"""
_OWNERS = f"""
SELECT o.type, o.key, live.life, live.address
FROM (SELECT DISTINCT * FROM unnest(%b::text[], %b::text[]) AS d(type, key)) AS d
    JOIN object AS o ON o.type = d.type AND o.key = d.key
    JOIN (SELECT life, address FROM node WHERE {_LIVE}) AS live ON live.life = o.owner""".encode()
_OWNED = (
    "SELECT type, key FROM object WHERE owner = %b::text{} AND NOT deleted ORDER BY type, key LIMIT %b::int8"
)
_OWNED_FIRST = _OWNED.format("").encode()
_OWNED_NEXT = _OWNED.format(" AND (type, key) > (%b::text, %b::text)").encode()
_TALLY = f"""
SELECT life, (SELECT count(*) FROM object WHERE owner = life AND NOT deleted)
FROM node WHERE {_LIVE}""".encode()

_MESSAGES = b"SELECT id, target, payload FROM message ORDER BY position LIMIT %b::int8"
# From one owner to the next by the index, instead of over all the messages.  (And from a name to itself: for
# one name PostgreSQL would rather go through all messages in order, hoping to meet enough of it early.)
_MY_MESSAGES = f"""
WITH RECURSIVE o(owner) AS (
    (SELECT owner FROM message ORDER BY owner LIMIT 1) UNION ALL
    SELECT (SELECT m.owner FROM message AS m WHERE m.owner > o.owner ORDER BY m.owner LIMIT 1)
    FROM o WHERE o.owner IS NOT NULL),
may AS MATERIALIZED (
    SELECT 1 WHERE NOT %b::bool OR EXISTS (SELECT 1 FROM node WHERE life = %b::text AND {_LIVE})),
gone AS MATERIALIZED (
    SELECT owner FROM o WHERE owner <> %b::text AND owner <> ALL (ARRAY(SELECT life FROM node WHERE {_LIVE}))
        AND EXISTS (SELECT 1 FROM may)),
orphan AS MATERIALIZED (
    SELECT m.position FROM gone, LATERAL (
        SELECT position FROM message WHERE owner = gone.owner AND (NOT %b::bool OR type = '' OR EXISTS (
            SELECT 1 FROM object AS o
            WHERE o.type = message.type AND o.key = message.key AND o.owner = %b::text))
        ORDER BY position LIMIT %b::int8 FOR UPDATE SKIP LOCKED) AS m),
adopted AS (
    UPDATE message SET owner = %b::text WHERE position = ANY (ARRAY(SELECT position FROM orphan))
    RETURNING position, id, target, payload)
SELECT id, target, payload FROM (
    SELECT * FROM adopted UNION ALL (
        SELECT position, id, target, payload FROM message
        WHERE owner BETWEEN %b::text AND %b::text AND EXISTS (SELECT 1 FROM may)
        ORDER BY owner, position LIMIT %b::int8)) AS mine
ORDER BY position LIMIT %b::int8""".encode()
# Of nodes.  What a plain server finds is its own, whoever sent it.
_ORPHANED = f"""
WITH RECURSIVE o(owner) AS (
    (SELECT owner FROM message ORDER BY owner LIMIT 1) UNION ALL
    SELECT (SELECT m.owner FROM message AS m WHERE m.owner > o.owner ORDER BY m.owner LIMIT 1)
    FROM o WHERE o.owner IS NOT NULL)
SELECT DISTINCT m.type, m.key FROM o, LATERAL (
    SELECT type, key FROM message WHERE owner = o.owner AND type <> '' ORDER BY position LIMIT %b::int8) AS m
WHERE o.owner <> %b::text AND o.owner <> ALL (ARRAY(SELECT life FROM node WHERE {_LIVE}))""".encode()
_DELIVERED = b"DELETE FROM message WHERE id = ANY(%b::bytea[])"
_FIRST_MESSAGES = b"""
SELECT m.id FROM unnest(%b::bytea[]) AS p(prefix), LATERAL (
    SELECT id FROM message WHERE id >= p.prefix ORDER BY id LIMIT 1) AS m
WHERE substr(m.id, 1, length(p.prefix)) = p.prefix"""
# One object for each timer, by its key.  It is another's if a life has it that is live and not mine.
_MINE = f"""
coalesce((SELECT o.owner FROM object AS o WHERE o.type = timer.type AND o.key = timer.key)
    <> ALL (ARRAY(SELECT life FROM node WHERE life <> %b::text AND {_LIVE})), true)"""
# By type, so that each is found in the index.
_DUE = f"""
SELECT t.* FROM unnest(%b::text[]) AS x(type), LATERAL (
    SELECT type, key, name, due, payload FROM timer
    WHERE timer.type = x.type AND due <= %b::float8 AND {_MINE} ORDER BY due LIMIT %b::int8) AS t
ORDER BY t.due LIMIT %b::int8""".encode()
_NEXT_DUE = b"""
SELECT min(t.due) FROM unnest(%b::text[]) AS x(type), LATERAL (
    SELECT min(due) AS due FROM timer WHERE timer.type = x.type AND due > %b::float8) AS t"""
_MY_NEXT_DUE = f"""
SELECT min(coalesce(t.mine, t.later)) FROM unnest(%b::text[]) AS x(type), LATERAL (
    SELECT min(due) FILTER (WHERE is_mine) AS mine,
        CASE count(*) WHEN {LOOKED_AHEAD} THEN max(due) END AS later
    FROM (
        SELECT due, {_MINE} AS is_mine FROM timer WHERE timer.type = x.type AND due > %b::float8
        ORDER BY due LIMIT {LOOKED_AHEAD}) AS ahead) AS t""".encode()


class PostgresCluster(PostgresDatabase):
    """The part of `objserver.storage.base.Store` that is about others."""

    # Nodes: over a connection of their own, so that a lease is not lost while a large answer is on its way.

    def join(self, name: str, life: str, address: str, lease_s: float, facts: bytes) -> None:
        def work(connection: Connection) -> None:
            connection.execute(_FORGET)
            connection.execute(_JOIN, (name, life, address, float(lease_s), facts))

        self._do("write", work, self._keeping)

    def renew(self, life: str, lease_s: float, facts: bytes, state: str = "up") -> list[Node] | None:
        parameters = (float(lease_s), facts, state, life, life)
        nodes = self._nodes("write", _RENEW, *parameters)
        return nodes if any(node.life == life for node in nodes) else None

    def leave(self, life: str) -> None:
        self._do("write", lambda c: c.execute(_LEAVE, (life,)), self._keeping)

    def nodes(self) -> list[Node]:
        return self._nodes("read", _NODES)

    def _nodes(self, what: str, statement: bytes, *parameters: Any) -> list[Node]:
        def work(connection: Connection) -> list[Node]:
            rows = connection.execute(statement, parameters, prepare=True, binary=True)
            return sorted(Node(*row) for row in rows)

        return self._do(what, work, self._keeping)

    # Owners

    def acquire(
        self, names: Sequence[tuple[str, str]], owner: str, member: bool = False
    ) -> dict[tuple[str, str], Record | Elsewhere]:
        found: dict[tuple[str, str], Record | Elsewhere] = {}
        wanted: Sequence[tuple[str, str]] = list(names)
        for _ in range(RETRIES_MAX):
            again, late = [], []
            for type, key, *row, was_late, life, address in self._rows(
                "write", _ACQUIRE, *_columns(wanted), owner, member, owner, owner, owner, owner
            ):
                if life is not None:
                    found[type, key] = Elsewhere(life, address)
                elif row[0] is not None:
                    found[type, key] = Record(*row)
                else:
                    again.append((type, key))
                if was_late:
                    late.append((type, key))
            if late:
                self._run(_FETCH_MESSAGES, owner, *_columns(late), owner)
            if not again:
                return found
            wanted = again
        raise errors.StoreError(
            f"cannot write {self._name}: {RETRIES_MAX} times others acquired {wanted[0][0]} {wanted[0][1]!r}"
        )

    def release(
        self, objects: Sequence[tuple[str, str, int]], owner: str, to: str | None
    ) -> set[tuple[str, str]]:
        epochs = [epoch for _, _, epoch in objects]
        rows = self._rows("write", _RELEASE, *_columns(objects), epochs, to, owner, to, to)
        return {(type, key) for type, key in rows}

    def owners(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Elsewhere]:
        rows = self._rows("read", _OWNERS, *_columns(names))
        return {(type, key): Elsewhere(life, address) for type, key, life, address in rows}

    def owned(self, life: str, limit: int, after: tuple[str, str] | None = None) -> list[tuple[str, str]]:
        if after is None:
            return self._rows("read", _OWNED_FIRST, life, limit)
        return self._rows("read", _OWNED_NEXT, life, *after, limit)

    def tally(self) -> dict[str, int]:
        return dict(self._rows("read", _TALLY))

    # Who is to deliver, and to fire

    def messages(self, limit: int, owner: str | None = None, member: bool = False) -> list[Message]:
        if owner is None:
            rows = self._rows("read", _MESSAGES, limit)
        else:
            if member:
                orphaned = self._rows("read", _ORPHANED, limit, owner)
                if orphaned:
                    self.acquire(orphaned, owner, True)
            rows = self._rows(
                "write",
                _MY_MESSAGES,
                member,
                owner,
                owner,
                member,
                owner,
                limit,
                owner,
                owner,
                owner,
                limit,
                limit,
            )
        return [Message(*row) for row in rows]

    def delivered(self, ids: Sequence[bytes]) -> None:
        self._run(_DELIVERED, list(ids))

    def first_messages(self, prefixes: Sequence[bytes]) -> list[bytes]:
        return [id for (id,) in self._rows("read", _FIRST_MESSAGES, list(set(prefixes)))]

    def due(self, now: float, types: Sequence[str], limit: int, owner: str | None = None) -> list[Due]:
        rows = self._rows("read", _DUE, list(set(types)), float(now), owner, limit, limit)
        return [Due(type, key, Timer(*timer)) for type, key, *timer in rows]

    def next_due(self, after: float, types: Sequence[str], owner: str | None = None) -> float | None:
        if owner is None:
            rows = self._rows("read", _NEXT_DUE, list(set(types)), float(after))
        else:
            rows = self._rows("read", _MY_NEXT_DUE, list(set(types)), owner, float(after))
        due: float | None = rows[0][0]
        return due


def _columns(names: Sequence[tuple[Any, ...]]) -> tuple[list[str], list[str]]:
    return [name[0] for name in names], [name[1] for name in names]
