import contextlib
import os
import sqlite3
import subprocess
import sys

import pytest

from objserver import errors
from objserver.storage import open_store
from objserver.storage.base import Record
from objserver.storage.sqlite import SqliteStore
from objserver.testing.durable_stores import SqlStoreConformance
from objserver.testing.store_model import change, reply
from objserver.testing.stores import SharedStoreConformance, StoreConformance


class TestFile(SqlStoreConformance):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/a.db"

    def sql(self, url, statement):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
            return db.execute(statement).fetchall()


class TestMemory(StoreConformance):
    @pytest.fixture
    def url(self):
        return "sqlite://"


class TestShared(SharedStoreConformance):
    """As several servers in one process have it."""

    @pytest.fixture
    def url(self):
        return "sqlite://"

    def open(self, url):
        return SqliteStore(url, alone=False)


def test_alone_acquiring_is_loading():
    store = open_store("sqlite://")
    assert store.alone
    store.commit([change("a", owner="old")])
    assert store.acquire([("T", "a")], "new") == {("T", "a"): Record(0, 1, 1, 3, b"s")}
    assert store._connection.execute("SELECT owner FROM object").fetchall() == [("old",)]
    assert store.commit([change("a", 1)])
    store.close()


def test_sessions_end_by_the_clock_that_was_given():
    now = 1000.0
    store = SqliteStore("sqlite://", clock=lambda: now)
    early, late = b"e" * 16, b"l" * 16
    store.open_session(early, 30)
    store.open_session(late, 30)
    now = 1029.0
    assert store.expire_sessions() == []
    assert store.renew_sessions([late], 30) == {late}
    now = 1030.0
    # over, and not ended before somebody says so
    assert store.commit([change("a", replies=[reply(1, early), reply(1, late)])])
    assert store.expire_sessions() == [early]
    assert store.replies("T", "a") == [reply(1, late)]
    now = 1059.0
    assert store.expire_sessions() == [late]
    store.close()


def test_after_an_input_output_error_nothing_is_tried_again():
    store = open_store("sqlite://")
    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    with pytest.raises(errors.StoreError, match="disk failed"), store._using("write"):
        raise failure
    for use in (lambda: store.commit([change("a")]), lambda: store.renew_sessions([], 1), store.types):
        with pytest.raises(errors.StoreError, match=r"disk failed.*restart"):
            use()


def test_pragmas_in_force(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    asked = {
        p: store._connection.execute(f"PRAGMA {p}").fetchone()[0]
        for p in ("synchronous", "journal_mode", "locking_mode")
    }
    store.close()
    assert asked == {"synchronous": 2, "journal_mode": "wal", "locking_mode": "exclusive"}


def test_the_file_is_created_under_synchronous_extra(tmp_path, monkeypatch):
    from objserver.storage import schema

    seen = []
    prepare = schema.prepare

    def spy(connection, *rest):
        seen.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())
        return prepare(connection, *rest)

    monkeypatch.setattr(schema, "prepare", spy)
    open_store(f"sqlite:///{tmp_path}/a.db").close()
    assert seen == [3]


def run(code, *args):
    return subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True)


def test_second_process_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    store = open_store(url)
    code = """
import sys
from objserver import errors, storage
try:
    storage.open_store(sys.argv[1])
except errors.StoreError as error:
    print(error)
"""
    with run(code, url) as other:
        said = other.communicate(timeout=30)[0]
    store.close()
    assert f"{tmp_path}/a.db: another process has it open" in said


def test_not_a_database(tmp_path):
    (tmp_path / "a.db").write_bytes(b"hello, I am text\n" * 1000)
    with pytest.raises(errors.StoreError, match=r"a\.db: it is not an SQLite database"):
        open_store(f"sqlite:///{tmp_path}/a.db")


def test_corrupted_file(tmp_path):
    path = tmp_path / "a.db"
    open_store(f"sqlite:///{path}").close()
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xa5" * 3996
    path.write_bytes(content)
    with pytest.raises(errors.StoreError, match=r"a\.db: it is damaged; restore"):
        open_store(f"sqlite:///{path}")


def test_missing_directory_and_directory_as_file(tmp_path):
    for path in (tmp_path / "none" / "a.db", tmp_path):
        with pytest.raises(errors.StoreError, match="check that its directory exists"):
            open_store(f"sqlite:///{path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_file_without_permission(tmp_path, mode):
    path = tmp_path / "a.db"
    open_store(f"sqlite:///{path}").close()
    path.chmod(mode)
    with pytest.raises(errors.StoreError, match=r"a\.db: this user may not read and write it"):
        open_store(f"sqlite:///{path}")


class FailingCommit:
    """A connection whose COMMIT ends with an error."""

    def __init__(self, connection, code):
        self._connection = connection
        self._code = code

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, statement, *parameters):
        if statement == "COMMIT":
            failure = sqlite3.OperationalError("no answer")
            failure.sqlite_errorcode = self._code
            raise failure
        return self._connection.execute(statement, *parameters)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_FSYNC])
def test_an_error_of_commit_is_in_doubt_unless_there_was_no_room(code):
    store = open_store("sqlite://")
    connection = store._connection
    store._connection = FailingCommit(connection, code)
    with pytest.raises(errors.StoreError, match="no answer") as caught:
        store.commit([change("a")])
    assert caught.value.in_doubt == (code != sqlite3.SQLITE_FULL)
    store._connection = connection
    if code == sqlite3.SQLITE_FULL:
        assert store.commit([change("a")])
    else:
        with pytest.raises(errors.StoreError, match="restart"):
            store.commit([change("a")])
    store.close()
