import collections
import contextlib
import itertools
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from objserver import errors
from objserver.storage import Committer, Superseded, Unstorable, passing, remote
from objserver.storage import owner as owning
from objserver.storage.base import Record, Store, Stored
from objserver.storage.owner import StoreServer
from objserver.storage.remote import RemoteStore
from objserver.storage.sqlite import SqliteStore
from objserver.testing.durable_stores import SqlStoreConformance
from objserver.testing.served import ServedStore, await_sent
from objserver.testing.store_model import CLIENT, LEASE_S, change, fight, race, reply
from objserver.testing.stores import SharedStoreConformance


class TestServedFile(SqlStoreConformance, SharedStoreConformance):
    opener = "objserver.testing.served:ServedStore"

    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/a.db"

    def open(self, url):
        return ServedStore(url)

    def sql(self, url, statement):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
            return db.execute(statement).fetchall()


def test_every_method_of_the_protocol_is_forwarded():
    methods = {name for name in vars(Store) if not name.startswith("_")} - {"url", "id", "alone"}
    assert {name for name in methods if name not in vars(RemoteStore)} == set()
    for name, signature in passing.METHODS.items():
        assert signature.name == name


def test_it_is_told_whose_it_is(owner, owned, store):
    assert (store.url, store.id, store.alone) == (owned.url, owned.id, False)
    store.restore("ab" * 16, [])
    assert store.id == owned.id == "ab" * 16
    with contextlib.closing(RemoteStore(owner.path)) as another:
        assert another.id == "ab" * 16


def test_errors_come_as_they_are(owned, store):
    failures = [
        errors.StoreError("the disk is full"),
        Superseded("it is not yours"),
        Unstorable("no"),
        errors.StoreError("perhaps"),
    ]
    failures[2].row = 7
    failures[3].in_doubt = True
    for failure in failures:

        def fail(*args, failure=failure):
            raise failure

        for name, call in (("commit", lambda: store.commit([change("a")])), ("types", store.types)):
            setattr(owned, name, fail)
            with pytest.raises(errors.StoreError) as caught:
                call()
            assert type(caught.value) is type(failure)
            assert str(caught.value) == str(failure)
            assert (caught.value.in_doubt, getattr(caught.value, "row", None)) == (
                failure.in_doubt,
                getattr(failure, "row", None),
            )
            delattr(owned, name)
    assert store.commit([change("a")])


@pytest.mark.parametrize("key", ["\ud800", 1 << 70])
def test_what_cannot_be_written_is_to_blame_and_not_the_store(store, key):
    with pytest.raises(Unstorable):
        store.commit([change("a"), change(key)])
    with pytest.raises(errors.StoreError):
        store.load("T", key)
    assert store.commit([change("a")])


def test_a_state_beyond_the_limit_is_refused_and_named(monkeypatch, owned, store):
    for module in (passing, remote, owning):
        monkeypatch.setattr(module, "FRAME_SIZE_MAX", 2**20)
    with pytest.raises(Unstorable, match="bytes are too many, beyond 1048576"):
        store.commit([change("a", state=bytes(2**20))])
    assert owned.commit([change("a", state=bytes(2**20))])  # by somebody else
    with pytest.raises(errors.StoreError, match="the answer has"):
        store.load("T", "a")
    rows = [Stored("T", f"{n}", "", Record(0, 1, 1, 3, bytes(2**20 * n))) for n in range(3)]
    with pytest.raises(Unstorable, match="cannot write row 2"):
        store.restore(store.id, rows, replace=True)
    assert store.keys("T") == ["a"]


def test_a_snapshot_is_read_as_it_is_wanted(owned, owner, store):
    owned.commit([change(f"{n:03}", state=bytes(2**20)) for n in range(100)])
    tracemalloc.start()
    with contextlib.closing(store.snapshot()) as rows:
        next(rows)
        assert owner.statistics()["streams"] == 1
        assert sum(len(row.record.state) for row in rows) == 99 * 2**20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 2**20
    assert [key for key, _ in itertools.islice(store.items("T"), 3)] == ["000", "001", "002"]


def test_another_user_gets_nothing_and_gives_nothing(owner, monkeypatch):
    for module in (remote, owning):
        monkeypatch.setattr(module, "is_user", lambda sock: False)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(owner.path)
        peer.settimeout(30)
        assert peer.recv(1) == b""
    with pytest.raises(errors.StoreError, match="is another user"):
        RemoteStore(owner.path)


def test_nobody_there_is_said_after_the_time_allowed(tmp_path):
    with pytest.raises(errors.StoreError, match="cannot reach the owner of unix:"):
        RemoteStore(f"{tmp_path}/none", connect_timeout_s=0.05)


def test_an_owner_of_another_release_is_refused(owner, monkeypatch):
    monkeypatch.setattr(remote, "VERSION", 2)
    with pytest.raises(errors.StoreError, match="another release"):
        RemoteStore(owner.path)


def test_after_close_nothing_is_reached(owner, store):
    store.close()
    store.close()
    with pytest.raises(errors.StoreError, match="the store is closed"):
        store.types()
    owner.close()
    owner.close()
    assert not os.path.exists(owner.path)


def test_the_committer_of_a_process_goes_through(store):
    committer, outcomes = Committer(store), list[BaseException | None]()
    store.open_session(CLIENT, LEASE_S)
    for number in range(5):
        committer.submit(change("a", number, replies=[reply(number)]), outcomes.append)
    committer.submit(change("a", 1), outcomes.append)
    committer.close()
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 5 + [Superseded]


def test_several_processes_race_and_fight(owner):
    stores = [RemoteStore(owner.path) for _ in range(3)]
    assert sum(race(stores, rounds=20)) == 20
    stores[0].restore(stores[0].id, [], replace=True)
    with contextlib.closing(SqliteStore("sqlite://", alone=False)) as another:
        directory = os.path.dirname(owner.path)
        with contextlib.closing(StoreServer(another, f"{directory}/t")) as second:
            pair = [RemoteStore(second.path) for _ in range(2)]
            fight(pair, rounds=20)
            for store in pair:
                store.close()
    for store in stores:
        store.close()


# -- owners that die -------------------------------------------------------------------------------------

_OWNER = """
import sys, signal
from objserver.storage.owner import StoreServer
from objserver.storage.sqlite import SqliteStore
server = StoreServer(SqliteStore(sys.argv[1], alone=False), sys.argv[2])
print("ready", flush=True)
signal.pause()
"""


class Owner:
    """Another process that owns a file."""

    def __init__(self, tmp_path):
        self.path = f"{tmp_path}/owner"
        self.arguments = [f"sqlite:///{tmp_path}/a.db", self.path]
        self.start()

    def start(self):
        command = [sys.executable, "-c", _OWNER, *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def suspend(self):
        """It does nothing any more when this returns."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def process(tmp_path):
    owner = Owner(tmp_path)
    yield owner
    owner.kill()


def test_an_owner_that_was_restarted_is_found_again(process):
    store = RemoteStore(process.path)
    assert store.commit([change("a")])
    process.kill()
    process.start()
    assert store.keys("T") == ["a"]
    assert store.commit([change("a", 1)])
    items = store.items("T")
    store.commit([change(f"{n:04}", state=bytes(2000)) for n in range(2000)])
    seen = [next(items)[0]]
    process.kill()
    process.start()
    seen += [key for key, _ in items]
    assert seen == [*(f"{n:04}" for n in range(2000)), "a"]
    store.close()


def test_who_waits_for_an_answer_notices_at_once_that_the_owner_died(process):
    store = RemoteStore(process.path, connect_timeout_s=0.0)
    store.commit([change("a")])
    process.suspend()
    with ThreadPoolExecutor(3) as pool:
        committing = pool.submit(store.commit, [change("a", 1)])
        reading = pool.submit(store.types)
        snapshot = pool.submit(lambda: list(store.snapshot()))
        await_sent([store])
        process.kill()
        with pytest.raises(errors.StoreError, match=r"was lost before it answered") as caught:
            committing.result(5)
        assert caught.value.in_doubt
        for future in (reading, snapshot):
            with pytest.raises(errors.StoreError) as caught:
                future.result(5)
            assert not caught.value.in_doubt
    store.close()


def test_an_owner_that_does_not_answer_is_given_up(process, monkeypatch):
    monkeypatch.setattr(remote.RemoteStore._connected, "__defaults__", (0.1,))
    store = RemoteStore(process.path)
    store.commit([])
    process.suspend()
    for call, in_doubt in ((lambda: store.commit([change("a")]), True), (store.types, False)):
        with pytest.raises(errors.StoreError, match="does not answer") as caught:
            call()
        assert caught.value.in_doubt == in_doubt
    os.kill(process.process.pid, signal.SIGCONT)
    store.close()


def test_a_commit_that_was_not_sent_entirely_is_made_again(process):
    store = RemoteStore(process.path)
    store.commit([])
    process.suspend()
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(store.commit, [change("a", state=bytes(2**24))])  # more than a socket holds
        await_sent([store])
        process.kill()
        process.start()
        assert committing.result(30) == {("T", "a")}
    store.close()


def test_kill_9_of_the_owner_in_the_middle_of_commits_loses_nothing_acknowledged(process):
    """Four processes' worth of commits: each object's version is what was acknowledged, or one that was in
    doubt more."""
    stores = [RemoteStore(process.path) for _ in range(4)]
    versions = collections.Counter()
    doubts, stop = [0] * 4, threading.Event()
    acknowledged = threading.Semaphore(0)

    def work(n):
        key, store = f"{n}", stores[n]
        while not stop.is_set():
            version = versions[key]
            try:
                accepted = store.commit([change(key, version, b"%d" % (version + 1))])
            except errors.StoreError as error:
                doubts[n] += error.in_doubt
                record = store.load("T", key)
                found = 0 if record is None else record.version
                assert found in (version, version + 1)
                versions[key] = found
            else:
                assert accepted
                versions[key] += 1
                acknowledged.release()

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, n) for n in range(4)]
        for _ in range(5):
            for _ in range(50):
                assert acknowledged.acquire(timeout=30)
            process.kill()
            process.start()
        stop.set()
        for each in working:
            each.result(30)
    for n, store in enumerate(stores):
        record = store.load("T", f"{n}")
        assert record.version == versions[f"{n}"]
        assert record.state == b"%d" % record.version
        store.close()
    assert sum(versions.values()) >= 250
    assert sum(doubts) >= 1
