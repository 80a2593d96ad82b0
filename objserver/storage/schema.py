"""The tables, described once for every engine.

`object` holds the state, the pair (epoch, version) that fences it, and whose it is.  `reply` holds what calls
were answered, `session` for which clients, and until when.  `message` and `timer` are what calls set going.
`node` has the servers of a cluster, each in the life it began last, and until when that is live.
`cluster` has one row: which cluster this is and which shape the tables have, so that an older release
refuses what it does not understand, and a newer one knows what to add.

Version 2 has sessions, messages and timers, and other replies.  Databases made as version 1 have an empty
column `owner_inc` beside `owner`; it is left there, because to drop it SQLite would write every object anew.

Version 3 has nodes, and of messages who sent them and whose they are.  A server of a release before may go
on with a database that is brought up to date meanwhile: what it does not know has defaults.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from objserver import errors
from objserver.storage.base import Answered, Due, Message, Record, Reply, Row, Session, Stored, Timer

__all__ = ["FORGET_STRAYS", "SCHEMA_VERSION", "SNAPSHOT", "metadata", "prepare"]

SCHEMA_VERSION = 3

# Names are compared by their code points, in every database and whatever its language.
_NAME = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# What SQLite numbers by itself.
_POSITION = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# PostgreSQL keeps the next version of a row in the same page, if it has room, and leaves the indexes alone.
_ROOM: dict[str, Any] = {"postgresql_with": {"fillfactor": 70}}

metadata = sa.MetaData()

_object = sa.Table(
    "object",
    metadata,
    sa.Column("type", _NAME, primary_key=True),
    sa.Column("key", _NAME, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("codec", sa.SmallInteger, nullable=False),
    sa.Column("state_version", sa.Integer, nullable=False),
    sa.Column("state", sa.LargeBinary),
    sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
    # What a life owns.  (Not partial in SQLite, which would write the index with every state.)
    sa.Index("object_owner", "owner", "type", "key", postgresql_where=sa.text("NOT deleted")),
    **_ROOM,
)

_reply = sa.Table(
    "reply",
    metadata,
    sa.Column("type", _NAME, primary_key=True),
    sa.Column("key", _NAME, primary_key=True),
    sa.Column("client", sa.LargeBinary, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("path", sa.LargeBinary, primary_key=True),
    sa.Column("acked", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("result", sa.LargeBinary),
    sa.Index("reply_client", "client"),  # for the end of a session
)

sa.Table(
    "session",
    metadata,
    sa.Column("client", sa.LargeBinary, primary_key=True),
    sa.Column("expires_at", sa.Double, nullable=False),  # seconds since 1970; not indexed: it changes often
    **_ROOM,
)

_message = sa.Table(
    "message",
    metadata,
    sa.Column("position", _POSITION, sa.Identity(), primary_key=True),
    sa.Column("id", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    # Which object sent it, and who owns that; empty: nobody knows.
    sa.Column("type", _NAME, nullable=False, server_default=""),
    sa.Column("key", _NAME, nullable=False, server_default=""),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Index("message_owner", "owner", "position"),
    sa.Index("message_sender", "type", "key"),
)

sa.Table(
    "timer",
    metadata,
    sa.Column("type", _NAME, primary_key=True),
    sa.Column("key", _NAME, primary_key=True),
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("due", sa.Double, nullable=False),  # seconds since 1970
    sa.Column("payload", sa.LargeBinary, nullable=False),
    # A server asks for its own types, and must not wade through what is due of others.
    sa.Index("timer_due", "type", "due"),
)

sa.Table(
    "node",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("life", sa.Text, nullable=False, unique=True),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # up, draining or dead
    sa.Column("expires_at", sa.Double, nullable=False),  # seconds since 1970, by the database's clock
    sa.Column("facts", sa.LargeBinary, nullable=False),
    **_ROOM,
)

_cluster = sa.Table(
    "cluster",
    metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True, autoincrement=False),
    sa.Column("cluster_id", sa.Uuid, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
)


SNAPSHOT: list[tuple[str, Callable[..., Row]]] = [
    (
        "SELECT type, key, owner, epoch, version, codec, state_version, state FROM object {}"
        " ORDER BY type, key",
        lambda type, key, owner, *record: Stored(type, key, owner, Record(*record)),
    ),
    (
        "SELECT type, key, client, number, path, acked, digest, status, result FROM reply {}"
        " ORDER BY type, key, client, number, path",
        lambda type, key, *reply: Answered(type, key, Reply(*reply)),
    ),
    (
        "SELECT type, key, name, due, payload FROM timer {} ORDER BY type, key, name",
        lambda type, key, *timer: Due(type, key, Timer(*timer)),
    ),
    ("SELECT client, expires_at FROM session ORDER BY client", Session),
    ("SELECT id, target, payload FROM message ORDER BY position", Message),
]
"""How all is read, and what becomes of a row.  {} is the place to choose types.  Messages have none, and are
last."""
FORGET_STRAYS = "DELETE FROM reply WHERE client NOT IN (SELECT client FROM session)"
"""Records whose sessions a snapshot does not have; nobody would ever forget them."""


def prepare(connection: sa.Connection, name: str, create: bool = True) -> str:
    """Create the tables if there are none and `create`, bring older ones up to date, refuse what is not ours.

    All of it inside the caller's transaction.  Returns the id of the cluster.
    """
    tables = sa.inspect(connection).get_table_names()
    if not tables and not create:
        raise errors.StoreError(f"{name} is empty: no server has kept objects there; check the URL")
    if not tables:
        metadata.create_all(connection)
        made = uuid.uuid4()
        row = {"one": 1, "cluster_id": made, "schema_version": SCHEMA_VERSION}
        connection.execute(_cluster.insert().values(row))
        return made.hex
    if _cluster.name not in tables:
        raise errors.StoreError(f"{name} belongs to another program; give objserver a database of its own")
    found, version = connection.execute(sa.select(_cluster.c.cluster_id, _cluster.c.schema_version)).one()
    if version > SCHEMA_VERSION:
        raise errors.StoreError(
            f"{name} has schema version {version}, but this release of objserver knows only versions up to "
            f"{SCHEMA_VERSION}; upgrade objserver, or open a copy made by the older release"
        )
    if version == 1:
        _reply.drop(connection)  # nothing was ever written there
    if version == 2:
        for column in ("type", "key", "owner"):
            text = sa.schema.CreateColumn(_message.c[column]).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE message ADD COLUMN {text}")
        for index in _message.indexes:
            index.create(connection)
    if version < SCHEMA_VERSION:
        for index in _object.indexes:
            index.create(connection)
        metadata.create_all(connection)
        connection.execute(_cluster.update().values(schema_version=SCHEMA_VERSION))
    cluster: uuid.UUID = found
    return cluster.hex
