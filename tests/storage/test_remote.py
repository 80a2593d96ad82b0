import collections
import contextlib
import itertools
import os
import signal
import socket
import sqlite3
import struct
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
from objserver.testing.served import ServedStore
from objserver.testing.stores import (
    CLIENT,
    LEASE_S,
    SharedStoreConformance,
    SqlStoreConformance,
    change,
    fight,
    race,
    reply,
)


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


@pytest.fixture
def owned(tmp_path):
    """A store in memory, as a recorder of what the owner does with it."""

    class Recorder(SqliteStore):
        batches: list[int] = []

        def commit(self, changes):
            self.batches.append(len(changes))
            return super().commit(changes)

    store = Recorder("sqlite://", alone=False)
    store.batches = []
    yield store
    store.close()


@pytest.fixture
def owner(owned, tmp_path):
    server = StoreServer(owned, f"{tmp_path}/s")
    yield server
    server.close()


@pytest.fixture
def store(owner):
    store = RemoteStore(owner.path)
    yield store
    store.close()


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


def test_commits_of_several_processes_become_one_transaction(owned, owner, store):
    others = [connected(owner) for _ in range(5)]
    owned.batches.clear()
    with ThreadPoolExecutor(5) as pool:
        with owned._lock:  # the owner waits, as for a disk
            first = pool.submit(others[0].commit, [change("first")])
            while owned.batches != [1]:
                pass
            waiting = [pool.submit(o.commit, [change(f"{n}")]) for n, o in enumerate(others[1:])]
            await_bytes(others[1:])
        assert first.result(30) == {("T", "first")}
        assert [w.result(30) for w in waiting] == [{("T", f"{n}")} for n in range(4)]
    assert owned.batches == [1, 4]
    assert owner.statistics()["largest_batch"] == 4
    for other in others:
        other.close()


def connected(owner):
    """With a connection for commits, too."""
    store = RemoteStore(owner.path)
    assert store.commit([]) == set()
    return store


def await_bytes(stores):
    """Until each has sent its request: what was sent, and not read by the other end, is counted."""
    import fcntl
    import termios

    for store in stores:
        while True:
            sock = store._writing.sock
            if sock is not None:
                (unread,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))
                if unread:
                    break


def test_no_object_is_twice_in_a_transaction_and_none_is_too_large():
    requests = [owning._Request(None, [change(key) for key in keys]) for keys in ("ab", "c", "bd", "e", "e")]
    batches = [["".join(c.key for c in r.changes) for r in batch] for batch in owning._batches(requests)]
    assert batches == [["ab", "c"], ["bd", "e"], ["e"]]
    many = [owning._Request(None, [change(f"{n} {m}") for m in range(100)]) for n in range(5)]
    assert [len(batch) for batch in owning._batches(many)] == [2, 2, 1]
    more = [owning._Request(None, [change(f"{n}") for n in range(1000)])]
    assert list(owning._batches(more)) == [more]
    assert list(owning._batches([])) == []


def test_whoever_sends_what_cannot_be_stored_is_told_and_the_others_are_stored(owned, owner, store):
    store.open_session(CLIENT, LEASE_S)
    store.commit([change("a", replies=[reply(1)])])
    good, bad = connected(owner), connected(owner)
    owned.batches.clear()
    with ThreadPoolExecutor(3) as pool:
        with owned._lock:
            first = pool.submit(store.commit, [change("first")])
            while owned.batches != [1]:
                pass
            stored = pool.submit(good.commit, [change("b")])
            refused = pool.submit(bad.commit, [change("a", 1, replies=[reply(1)])])
            await_bytes([good, bad])
        assert first.result(30)
        assert stored.result(30) == {("T", "b")}
        with pytest.raises(Unstorable, match=r"cannot write :memory:.*UNIQUE"):
            refused.result(30)
    good.close()
    bad.close()


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


def test_what_is_not_the_stores_own_error_leaves_a_commit_in_doubt(owned, store):
    def fail(*args):
        raise RuntimeError("a bug")

    owned.commit = owned.types = fail
    with pytest.raises(errors.StoreError, match="RuntimeError: a bug") as caught:
        store.commit([change("a")])
    assert caught.value.in_doubt
    with pytest.raises(errors.StoreError, match="RuntimeError: a bug") as caught:
        store.types()
    assert not caught.value.in_doubt


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


def test_of_large_requests_one_is_received_at_a_time(owner):
    stores = [RemoteStore(owner.path) for _ in range(4)]
    state = bytes(32 * 2**20)
    tracemalloc.start()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: stores[n].commit([change(f"{n}", state=state)]), range(4)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done == [{("T", f"{n}")} for n in range(4)]
    # In this process each client has its request twice; the owner has one, encoded and not.
    assert peak < (4 * 2 + 2 + 1) * len(state)
    assert owner._large == []
    for store in stores:
        store.close()


def test_who_stalls_in_a_large_request_loses_his_turn_and_holds_up_no_small_one(owner, store, monkeypatch):
    monkeypatch.setattr(owning, "ANSWER_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.connect(owner.path)
        passing.receive(stalled)
        stalled.sendall(passing.HEAD.pack(8 * 2**20) + b"x")
        while not owner._large:
            pass
        assert store.types() == []
        assert store.commit([change("a", state=bytes(2**21))])
        stalled.settimeout(30)
        assert stalled.recv(1) == b""


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


def test_too_many_snapshots_are_refused(owner, store, monkeypatch):
    monkeypatch.setattr(owning, "STREAMS_MAX", 1)
    store.commit([change(f"{n}", state=bytes(2**20)) for n in range(10)])
    first = store.snapshot()
    next(first)
    with pytest.raises(errors.StoreError, match="1 others read all of it"):
        next(store.snapshot())
    first.close()


def test_who_sends_nonsense_is_let_go_alone(owner, store):
    bodies = [b"", b"\xc1", b"\x93\x01\x02", b"\x07", b"\x93\x90\x90\x80"]
    for nonsense in [b"\xff" * 4, *(passing.HEAD.pack(len(body)) + body for body in bodies)]:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(owner.path)
            passing.receive(peer)
            peer.sendall(nonsense)
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(30)
            assert peer.recv(1) == b""
    assert store.types() == []


def test_a_method_that_the_owner_does_not_know_is_named(owner):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(owner.path)
        passing.receive(peer)
        passing.send(peer, passing.packed(("close", (), {})))
        assert passing.receive(peer)[1][:2] == [
            "StoreError",
            "the owner of sqlite:// knows no 'close'; restart it",
        ]


def test_a_store_whose_user_thinks_that_he_is_alone_is_not_shared(tmp_path):
    with contextlib.closing(SqliteStore("sqlite://")) as alone:
        with pytest.raises(errors.StoreError, match="alone=False"):
            StoreServer(alone, f"{tmp_path}/s")


def test_a_directory_that_others_may_enter_is_refused(owned, tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(errors.StoreError, match="chmod 700"):
        StoreServer(owned, f"{tmp_path}/s")
    with pytest.raises(errors.StoreError, match="No such file"):
        StoreServer(owned, f"{tmp_path}/none/s")


def test_another_user_gets_nothing_and_gives_nothing(owner, monkeypatch):
    for module in (remote, owning):
        monkeypatch.setattr(module, "is_user", lambda sock: False)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(owner.path)
        peer.settimeout(30)
        assert peer.recv(1) == b""
    with pytest.raises(errors.StoreError, match="is another user"):
        RemoteStore(owner.path)


def test_two_owners_of_one_path_are_refused(owned, owner):
    with pytest.raises(errors.ListenFailed):
        StoreServer(owned, owner.path)


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
    os.kill(process.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        committing = pool.submit(store.commit, [change("a", 1)])
        reading = pool.submit(store.types)
        snapshot = pool.submit(lambda: list(store.snapshot()))
        await_bytes([store])
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
    os.kill(process.process.pid, signal.SIGSTOP)
    for call, in_doubt in ((lambda: store.commit([change("a")]), True), (store.types, False)):
        with pytest.raises(errors.StoreError, match="does not answer") as caught:
            call()
        assert caught.value.in_doubt == in_doubt
    os.kill(process.process.pid, signal.SIGCONT)
    store.close()


def test_a_commit_that_was_not_sent_entirely_is_made_again(process):
    store = RemoteStore(process.path)
    store.commit([])
    os.kill(process.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(store.commit, [change("a", state=bytes(2**24))])  # more than a socket holds
        await_bytes([store])
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
