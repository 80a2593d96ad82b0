"""The tables, described once for every engine.

`object` holds the state and the pair (epoch, version) that fences it. `owner` and `owner_inc` stay empty
on one node; they are here because a file made today shall be opened by tomorrow's release without being
rewritten. `reply` holds what calls were answered. `cluster` has one row: which cluster this is and which
shape the tables have, so that an older release refuses what it does not understand.
"""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from objserver import errors

__all__ = ["SCHEMA_VERSION", "metadata", "prepare"]

SCHEMA_VERSION = 1

# Names are compared by their code points, in every database and whatever its language.
_NAME = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# PostgreSQL keeps the next version of a row in the same page, if it has room, and leaves the indexes alone.
_ROOM: dict[str, Any] = {"postgresql_with": {"fillfactor": 70}}

metadata = sa.MetaData()

sa.Table(
    "object",
    metadata,
    sa.Column("type", _NAME, primary_key=True),
    sa.Column("key", _NAME, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("owner_inc", sa.BigInteger),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("codec", sa.SmallInteger, nullable=False),
    sa.Column("state_version", sa.Integer, nullable=False),
    sa.Column("state", sa.LargeBinary),
    sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
    **_ROOM,
)

sa.Table(
    "reply",
    metadata,
    sa.Column("type", _NAME, primary_key=True),
    sa.Column("key", _NAME, primary_key=True),
    sa.Column("client", sa.LargeBinary, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("result", sa.LargeBinary),
    **_ROOM,
)

_cluster = sa.Table(
    "cluster",
    metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True, autoincrement=False),
    sa.Column("cluster_id", sa.Uuid, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
)


def prepare(connection: sa.Connection, name: str) -> None:
    """Create the tables if there are none, refuse what is not ours; inside the caller's transaction."""
    tables = sa.inspect(connection).get_table_names()
    if not tables:
        metadata.create_all(connection)
        row = {"one": 1, "cluster_id": uuid.uuid4(), "schema_version": SCHEMA_VERSION}
        connection.execute(_cluster.insert().values(row))
        return
    if _cluster.name not in tables:
        raise errors.StoreError(f"{name} belongs to another program; give objserver a database of its own")
    found = connection.execute(sa.select(_cluster.c.schema_version)).scalar_one()
    if found > SCHEMA_VERSION:
        raise errors.StoreError(
            f"{name} has schema version {found}, but this release of objserver knows only versions up to "
            f"{SCHEMA_VERSION}; upgrade objserver, or open a copy made by the older release"
        )
