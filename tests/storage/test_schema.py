import contextlib
import sqlite3

import pytest

from objserver import errors
from objserver.storage import open_store, schema


def test_new_file_has_the_tables_and_its_version(tmp_path):
    open_store(f"sqlite:///{tmp_path}/a.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        names = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
        assert names == {"object", "reply", "cluster"}
        assert db.execute("select one, schema_version from cluster").fetchall() == [
            (1, schema.SCHEMA_VERSION)
        ]


def test_newer_schema_is_refused_with_both_versions(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    open_store(url).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
        db.execute("update cluster set schema_version = 7")
    with pytest.raises(errors.StoreError, match=r"a\.db has schema version 7.* 1; upgrade"):
        open_store(url)


def test_database_of_another_program_is_refused_and_untouched(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
        db.execute("create table bookmarks(x)")
    with pytest.raises(errors.StoreError, match="another program"):
        open_store(f"sqlite:///{tmp_path}/a.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        assert db.execute("select name from sqlite_master").fetchall() == [("bookmarks",)]
