"""After a power loss at any moment the store opens and has every acknowledged commit, and no half of one.

A commit is of states, replies, messages and timers; sessions begin and end in between.  What a step must
leave behind is asked of a second store in memory, where it is done first.

POWER_LOSS_POINTS sets how many power losses are tried (`make soak` sets 2,000,000).
"""

import contextlib
import itertools
import os
import pathlib
import random
import re
import sqlite3
import tempfile

import pytest

from objserver import errors
from objserver.storage import Change, Reply, open_store, sqlite
from objserver.storage.base import Message, Timer
from objserver.storage.sqlite import SqliteStore
from objserver.testing import power_loss
from objserver.testing.power_loss import Create, Delete, Disk, Note, Sync, Truncate, Write

POINTS = int(os.environ.get("POWER_LOSS_POINTS", "20000"))
PARTS = 4
"""Seeds; each tries its share of them."""
AGAIN = 0.005
"""Of the power losses, so many are followed by others during the recovery; they are one in ten of all."""
COMMITS = 30
CHECKPOINT_PAGES = 60
"""Of the write-ahead log, instead of SQLite's 1000: as many checkpoints as one wants, and small files.  It
changes how often the log is emptied, not how."""


@pytest.fixture
def directory():
    # In memory if possible: what is certain is known from the log, so real syncs would only take time.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield name


TABLES = ("object", "reply", "session", "message", "timer")
KEYS = [f"k{number}" for number in range(12)]
CLIENTS = [b"client %9d" % number for number in range(3)]


def content(store):
    return {table: store._connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}


NOTHING = {table: [] for table in TABLES}


def next_step(twin, chance, number):
    """What to do next with a store that has what `twin` has: mostly to commit, now and then another thing."""
    match chance.choices(("commit", "open", "expire", "deliver"), (20, 3, 2, 2))[0] if number else "open":
        case "open":
            client, lease_s = chance.choice(CLIENTS), chance.choice((0, 30))
            return lambda store: store.open_session(client, lease_s)
        case "expire":
            return lambda store: store.expire_sessions()
        case "deliver":
            ids = [message.id for message in twin.messages(10)]
            return lambda store: store.delivered(ids)
    clients, changes = sorted(twin.renew_sessions(CLIENTS, 0)), []
    for key in chance.sample(KEYS, chance.randint(1, len(KEYS))):
        old = twin.load("T", key)
        state = None if chance.random() < 0.1 else chance.randbytes(chance.choice((10, 300, 6000)))
        change = Change("T", key, 0, old.version if old else 0, 1, 1, state)
        if clients:
            client, result = chance.choice(clients), chance.randbytes(chance.choice((10, 300)))
            timer = Timer("t", chance.choice((None, float(number))))
            change = change._replace(
                replies=[Reply(client, number, b"", 0, b"digest", 0, result)],
                acked=[(client, number - 3)],
                messages=[Message(f"{key} {number}".encode(), "PYRO:a@b:1", result)],
                timers=[timer],
            )
        changes.append(change)

    def commit(store):
        assert len(store.commit(changes)) == len(changes)

    return commit


def work(log, chance, commits=COMMITS):
    """Change the store in steps, noting before each what it will leave behind, and after it that it did."""
    twin = SqliteStore("sqlite://", clock=lambda: 1000.0)
    store = SqliteStore(f"sqlite:///{log.directory}/a.db", clock=lambda: 1000.0)
    try:
        store._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        log.note(NOTHING)
        for number in range(commits):
            step = next_step(twin, chance, number)
            step(twin)
            log.note([content(twin)])
            step(store)
            log.note(content(store))
    finally:
        store.close()
        twin.close()


def complaint(directory, notes):
    """What is wrong with the store found after a power loss; None if it is as it must be."""
    acknowledged = next((note for note in reversed(notes) if isinstance(note, dict)), NOTHING)
    allowed = [acknowledged]
    if notes and isinstance(notes[-1], list):  # a step had begun: all of it may be there, or nothing
        allowed += notes[-1]
    try:
        store = open_store(f"sqlite:///{directory}/a.db")
    except errors.StoreError as error:
        return f"does not open: {error}"
    try:
        found = content(store)
        if found not in allowed:
            return "lost an acknowledged commit, or has half of one"
        damage = store._connection.execute("PRAGMA integrity_check").fetchall()
        if damage != [("ok",)]:
            return f"is damaged: {damage}"
        # and it goes on from where it was
        last = store.load("T", "k0")
        if not store.commit([Change("T", "k0", 0, last.version if last else 0, 1, 1, b"on")]):
            return "does not accept the next version"
    except errors.StoreError as error:
        return f"fails: {error}"
    finally:
        store.close()
    return None


@contextlib.contextmanager
def place(directory, files):
    """A directory of its own with these files in it."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        for file, data in files.items():
            (pathlib.Path(name) / file).write_bytes(data)
        yield name


def judgements(directory, chance):
    """Work, lose power at every step, judge each time; now and then lose it again during the recovery."""
    with place(directory, {}) as name, power_loss.recording(name) as log:
        work(log, chance)
    for notes, files in power_loss.power_losses(log, chance):
        with place(directory, files) as name:
            wrong = complaint(name, notes)
        yield wrong
        if wrong is None and chance.random() < AGAIN:
            with place(directory, files) as name, power_loss.recording(name) as recovery:
                store = open_store(f"sqlite:///{name}/a.db")
                recovery.note(content(store))  # from now on this is what must be there
                store.close()
            for later, files in power_loss.power_losses(recovery, chance):
                with place(directory, files) as name:
                    wrong = complaint(name, notes + later)
                yield wrong and f"{wrong}, after a second power loss"


def complaints(directory, seed, points, enough):
    """What was wrong after so many power losses, or the first few of it.  The seed decides everything."""
    found, chance = [], random.Random(seed)
    endless = itertools.chain.from_iterable(judgements(directory, chance) for _ in itertools.count())
    for number, wrong in enumerate(itertools.islice(endless, points)):
        if wrong:
            found.append(f"seed {seed}, power loss {number}: the store {wrong}")
            if len(found) == enough:
                break
    else:
        assert number == points - 1
    return found


@pytest.mark.parametrize("seed", range(PARTS))
def test_no_acknowledged_commit_is_lost_or_halved(directory, seed):
    assert complaints(directory, seed, POINTS // PARTS, enough=3) == []


def test_the_workload_fills_and_empties_every_table_but_that_of_the_objects(directory):
    with power_loss.recording(directory) as log:
        work(log, random.Random(0))
    left = [step.value for step in log.steps if isinstance(step, Note) and isinstance(step.value, dict)]
    will = [step.value for step in log.steps if isinstance(step, Note) and isinstance(step.value, list)]
    assert [[one] for one in left[1:]] == will
    for table in TABLES:
        sizes = [len(one[table]) for one in left]
        assert max(sizes) >= 2
        assert sizes != sorted(sizes) or table == "object"


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("synchronous = FULL", "synchronous = NORMAL", "lost an acknowledged commit"),
        ("synchronous = EXTRA", "synchronous = OFF", "does not open"),
        ("BEGIN IMMEDIATE|COMMIT", "SELECT 1", "half of one"),
    ],
)
def test_a_wrong_engine_is_caught(directory, monkeypatch, right, wrong, expected):
    used = set()

    class Connection(sqlite3.Connection):
        def execute(self, sql, *parameters):
            if re.search(right, sql):
                used.add(sql)
            return super().execute(re.sub(right, wrong, sql), *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Connection))
    found = complaints(directory, 0, 2000, enough=100)
    assert used
    assert any(re.search(expected, one) for one in found), found


def test_what_the_layer_writes_down(directory):
    (pathlib.Path(directory) / "old").write_bytes(b"there before")
    with power_loss.recording(directory) as log:
        connection = sqlite3.connect(f"{directory}/a.db", isolation_level=None)
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("CREATE TABLE t (n)")
        log.note("made")
    connection.execute("INSERT INTO t VALUES (1)")  # the recording is over
    connection.close()
    assert log.files == {"old": b"there before"}
    kinds = [(type(step).__name__, *step[:1]) for step in log.steps]
    assert kinds[:2] == [("Create", "a.db"), ("Create", "a.db-journal")]
    assert kinds[-1] == ("Note", "made")
    assert log.steps[-2] == Delete("a.db-journal", True)
    assert [step for step in log.steps if isinstance(step, Sync)] == [
        Sync("a.db-journal", True),  # a new journal's first sync takes the directory with it
        Sync("a.db-journal", False),
        Sync("a.db", False),
    ]
    # played to the end with all certain, the log gives the file as SQLite had left it
    disk = Disk(log.files)
    for step in log.steps:
        disk.play(step)
    files = disk.after_power_loss(random.Random(0))
    assert files.keys() == {"old", "a.db"}
    (pathlib.Path(directory) / "b.db").write_bytes(files["a.db"])
    copy = sqlite3.connect(f"{directory}/b.db")
    assert copy.execute("SELECT name FROM sqlite_schema").fetchall() == [("t",)]
    copy.close()


def test_only_the_recorded_directory_is_written_down(directory, tmp_path):
    with power_loss.recording(directory) as log:
        connection = sqlite3.connect(tmp_path / "elsewhere.db")
        connection.execute("CREATE TABLE t (n)")
        connection.close()
    assert log.steps == []


def test_one_recording_at_a_time(directory, tmp_path):
    with power_loss.recording(directory):
        with pytest.raises(RuntimeError, match="one recording at a time"):
            with power_loss.recording(str(tmp_path)):
                pass
        connection = sqlite3.connect(f"{directory}/a.db")
        connection.close()


def outcomes(*steps, files=None):
    """All the ways in which the files are found after a power loss; a thousand throws find them all."""
    disk = Disk(files or {})
    for step in steps:
        disk.play(step)
    found = [disk.after_power_loss(random.Random(seed)) for seed in range(1000)]
    return {tuple(sorted(files.items())) for files in found}


def test_what_was_synced_is_certain():
    made = Create("a"), Write("a", 0, b"xyz"), Truncate("a", 2), Sync("a", True)
    assert outcomes(*made) == {(("a", b"xy"),)}
    assert outcomes(*made, Note("said")) == {(("a", b"xy"),)}
    assert outcomes(*made, Delete("a", True)) == {()}


def test_what_was_not_synced_may_be_there_or_not():
    old = {"a": b"old"}
    assert outcomes(Write("a", 4, b"new"), files=old) == {(("a", b"old"),), (("a", b"old\0new"),)}
    assert outcomes(Truncate("a", 1), files=old) == {(("a", b"old"),), (("a", b"o"),)}
    assert outcomes(Delete("a", False), files=old) == {(("a", b"old"),), ()}
    # a synced file without an entry in the directory is not found
    assert outcomes(Create("b"), Write("b", 0, b"x"), Sync("b", False)) == {(), (("b", b"x"),)}
    # a file made again under a name that still leads to the deleted one
    again = Delete("a", False), Create("a"), Write("a", 0, b"new"), Sync("a", False)
    assert outcomes(*again, files=old) == {(), (("a", b"old"),), (("a", b"new"),)}


def test_writes_of_one_file_reach_the_disk_in_any_combination():
    found = outcomes(Write("a", 0, b"1"), Write("a", 1, b"2"), files={"a": b"__"})
    assert found == {(("a", b"__"),), (("a", b"1_"),), (("a", b"_2"),), (("a", b"12"),)}


def test_a_write_tears_where_sectors_meet():
    found = outcomes(Write("a", 510, b"ABCD"), files={"a": bytes(514)})
    assert {dict(files)["a"][510:] for files in found} == {b"\0\0\0\0", b"AB\0\0", b"\0\0CD", b"ABCD"}
