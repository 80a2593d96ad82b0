import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from objserver import errors
from objserver.storage import Change, Record, open_store


def change(key, version=0, state=b"s", *, epoch=0, type="T"):
    return Change(type, key, epoch, version, 1, 3, state)


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    store = open_store("sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/a.db")
    yield store
    store.close()


def test_round_trip(store):
    assert store.load("T", "a") is None
    assert store.commit([change("a", state=b"\0\xff"), change("b", state=b"")]) == {("T", "a"), ("T", "b")}
    assert store.load("T", "a") == Record(0, 1, 1, 3, b"\0\xff")
    assert store.load("T", "b") == Record(0, 1, 1, 3, b"")


def test_only_the_current_epoch_and_version_is_accepted(store):
    store.commit([change("a")])
    for stale in (change("a"), change("a", 2), change("a", 1, epoch=1), change("new", 1)):
        assert store.commit([stale, change("b" + str(stale))]) == {("T", "b" + str(stale))}
    assert store.load("T", "a") == Record(0, 1, 1, 3, b"s")
    assert store.commit([change("a", 1, b"t")]) == {("T", "a")}
    assert store.load("T", "a") == Record(0, 2, 1, 3, b"t")


def test_tombstone_keeps_its_version(store):
    store.commit([change("a")])
    assert store.commit([change("a", 1, None)])
    assert store.load("T", "a") == Record(0, 2, 1, 3, None)
    assert store.keys("T") == []
    assert list(store.items("T")) == []
    assert store.commit([change("a")]) == set()
    assert store.commit([change("a", 2)])
    assert store.load("T", "a") == Record(0, 3, 1, 3, b"s")
    assert store.keys("T") == ["a"]


def test_keys_with_prefix_and_limit(store):
    names = ["", "a", "a%", "a_b", "ab", "a\U0010ffff", "a\U0010ffffz", "a\0", "b", "é"]
    store.commit([change(n) for n in names] + [change("other", type="U")])
    assert store.keys("T") == sorted(names)
    assert store.keys("T", "a") == sorted(n for n in names if n.startswith("a"))
    assert store.keys("T", "a\U0010ffff") == ["a\U0010ffff", "a\U0010ffffz"]
    assert store.keys("T", "a%") == ["a%"]
    assert store.keys("T", limit=2) == ["", "a"]


def test_items_pages_while_commits_go_on(store):
    store.commit([change(f"{n:04}") for n in range(600)])
    seen = []
    for key, record in store.items("T"):
        seen.append(key)
        assert store.commit([change(key, record.version, b"t")])
    assert seen == store.keys("T")
    assert len(seen) == 600


@pytest.mark.parametrize(
    "bad", [change("\ud800"), change("x", 1 << 70), change("x", state=3.5, epoch=0, type=object())]
)
def test_failed_commit_is_rolled_back_and_the_store_goes_on(store, bad):
    with pytest.raises(errors.StoreError, match="cannot write") as caught:
        store.commit([change("a"), bad])
    assert caught.value.__cause__ is not None
    assert store.load("T", "a") is None
    assert store.commit([change("a")])


def test_closed_store_says_so(store):
    store.close()
    store.close()
    for use in (lambda: store.load("T", "a"), lambda: store.commit([]), lambda: store.keys("T")):
        with pytest.raises(errors.StoreError, match="closed"):
            use()


def test_after_an_input_output_error_nothing_is_tried_again(store):
    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    with pytest.raises(errors.StoreError, match="disk failed"), store._using("write"):
        raise failure
    with pytest.raises(errors.StoreError, match=r"disk failed.*restart"):
        store.commit([change("a")])


def test_many_threads(store):
    def work(n):
        for version in range(20):
            assert store.commit([change(str(n), version)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert {r.version for _, r in store.items("T")} == {20}


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

    def spy(connection, name):
        seen.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())
        prepare(connection, name)

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


def test_kill_9_loses_nothing_acknowledged(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    code = """
import itertools, sys
from objserver.storage import Change, open_store
store = open_store(sys.argv[1])
start = store.load("T", "n")
for version in itertools.count(start.version if start else 0):
    assert store.commit([Change("T", "n", 0, version, 1, 1, b"%d" % (version + 1))])
    print(version + 1, flush=True)
"""
    acknowledged = 0
    for _ in range(3):
        with run(code, url) as victim:
            for _ in range(20):
                acknowledged = int(victim.stdout.readline())
            os.kill(victim.pid, signal.SIGKILL)
            for line in victim.stdout:
                if line.endswith("\n"):
                    acknowledged = int(line)
        store = open_store(url)
        record = store.load("T", "n")
        store.close()
        assert record.version >= acknowledged
        assert record.state == b"%d" % record.version
    assert acknowledged >= 60


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
