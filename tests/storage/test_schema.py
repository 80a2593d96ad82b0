import contextlib
import sqlite3

import pytest
import sqlalchemy as sa

from objserver import errors
from objserver.storage import open_store, schema


def test_a_new_file_has_the_tables_and_its_version(tmp_path):
    open_store(f"sqlite:///{tmp_path}/a.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        names = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
        assert names == set(schema.metadata.tables)
        assert names == {"object", "reply", "session", "message", "timer", "node", "cluster"}
        assert db.execute("select one, schema_version from cluster").fetchall() == [
            (1, schema.SCHEMA_VERSION)
        ]


def test_the_sentence_names_the_database():
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.exec_driver_sql("create table bookmarks(x)")
        with pytest.raises(errors.StoreError, match=r"^that one belongs to another program; give objs"):
            schema.prepare(connection, "that one")
