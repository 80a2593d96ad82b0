"""A store that takes time and fails, over one that does not."""

import pytest

from objserver import errors
from objserver.storage import Change, sqlite_cluster
from objserver.storage.sqlite import SqliteStore
from objserver.testing.faulty_store import Disk, Site, opened
from objserver.testing.world import START_S, World

CHANGE = Change("T", "a", 0, 0, 1, 1, b"state")
NAME = ("T", "a")
ALWAYS = 1.0


@pytest.fixture
def store():
    store = SqliteStore("sqlite://")
    yield store
    store.close()


@pytest.fixture
def world():
    world = World(5)
    with world.in_place():
        yield world


def do(world, store, disk, *operations):
    """What the operations return or raise, done one after the other by a process."""
    process = world.process("p", "h")
    mine, came = opened(process, store, [disk]), []

    def run():
        for operation in operations:
            try:
                came.append(operation(mine))
            except errors.StoreError as problem:
                came.append(problem)

    process.start(run, "run")
    world.run(world.now + 100)
    return came


def test_what_is_written_is_there_and_took_its_time(world, store):
    accepted, record = do(
        world, store, Disk(write_s=1.0, slow=0.0), lambda s: s.commit([CHANGE]), lambda s: s.load("T", "a")
    )
    assert (accepted, record.state) == ({("T", "a")}, b"state")
    assert [*do(world, store, Disk(), lambda s: list(s.items("T")))[0]] == [("a", record)]
    assert store.load("T", "a") == record
    assert world.now > START_S


def test_a_disk_that_is_full_writes_nothing_and_is_sure_of_it(world, store):
    (problem,) = do(world, store, Disk(unwritten=ALWAYS), lambda s: s.commit([CHANGE]))
    assert not problem.in_doubt
    assert store.load("T", "a") is None


def test_in_doubt_it_was_written_or_not(world, store):
    written = set()
    for number in range(20):
        change = CHANGE._replace(key=str(number))
        (problem,) = do(world, store, Disk(in_doubt=ALWAYS), lambda s, change=change: s.commit([change]))
        assert problem.in_doubt
        written.add(store.load("T", str(number)) is not None)
    assert written == {True, False}


def test_a_read_that_fails_says_so(world, store):
    (problem,) = do(world, store, Disk(unread=ALWAYS), lambda s: s.load("T", "a"))
    assert "did not answer" in str(problem)


def test_a_crash_comes_before_the_write_or_after_it(store):
    written = set()
    for seed in range(20):
        world = World(seed)
        with world.in_place():
            process = world.process("p", "h")
            mine = opened(process, store, [Disk(write_s=1.0, slow=0.0)])
            came = []
            change = CHANGE._replace(key=str(seed))
            process.start(lambda mine=mine, change=change, came=came: came.append(mine.commit([change])), "c")
            world.at(0.1, process.crash)
            world.run(START_S + 10)
        assert came == []
        written.add(store.load("T", str(seed)) is not None)
    assert written == {True, False}


def test_closing_leaves_it_open_for_the_others(world, store):
    do(world, store, Disk(), lambda s: s.close())
    assert store.load("T", "a") is None


def test_who_released_an_object_can_commit_no_more(world):
    store = SqliteStore("sqlite://", alone=False, clock=lambda: world.now)
    for name, life in (("1", "me"), ("2", "you")):
        store.join(name, life, "h:1", 1000, b"")
    mine = CHANGE._replace(epoch=1, owner="me")
    came = do(
        world,
        store,
        Disk(),
        lambda store: store.acquire([NAME], "me", True),
        lambda store: store.acquire([NAME], "you", True),  # which has it elsewhere, and changes nothing
        lambda store: store.commit([mine]),
        lambda store: store.release([(*NAME, 1)], "me", "you"),
        lambda store: store.commit([mine._replace(version=1)]),
        lambda store: store.commit([mine._replace(version=1, epoch=2, owner="you")]),
    )
    assert came[2:] == [{NAME}, {NAME}, set(), {NAME}]
    assert not world.failures
    # One that would be accepted nevertheless is a failure.
    do(world, store, Disk(), lambda store: store.commit([mine._replace(version=2, epoch=2)]))
    assert world.failures


# -- a store at a site of its own ----------------------------------------------------------------------


def at_site(world, store, site, *operations, host="h"):
    process, came = world.process("p", host), []
    mine = opened(process, store, [Disk()], site)
    mine.changed = came.append

    def run():
        for operation in operations:
            try:
                came.append(operation(mine))
            except errors.StoreError as problem:
                came.append(problem)

    process.start(run, "run")
    world.run(world.now + 100)
    return came


def test_what_is_asked_into_a_partition_did_not_happen(world, store):
    world.network.cut("h", "s", 50.0)
    (problem,) = at_site(world, store, Site("s"), lambda s: s.commit([CHANGE]))
    assert not problem.in_doubt
    assert store.load("T", "a") is None


def test_what_is_answered_into_a_partition_did_happen_and_nobody_knows(world, store):
    world.network.cut("s", "h", 50.0)
    (problem,) = at_site(world, store, Site("s"), lambda s: s.commit([CHANGE]))
    assert problem.in_doubt
    assert store.load("T", "a") is not None


def test_a_short_partition_is_only_time(world, store):
    world.network.cut("h", "s", 0.5)
    assert at_site(world, store, Site("s"), lambda s: s.commit([CHANGE])) == [{("T", "a")}]


def test_after_a_failover_it_is_told_once_and_what_is_based_on_before_is_refused_once(world, store):
    site = Site("s")

    def fail_over(_):
        site.fail_over(world.now + 0.5)

    commit = [lambda s: s.commit([CHANGE])] * 2
    _, told, refused, accepted = at_site(world, store, site, fail_over, *commit)
    assert "another history" in told
    assert (refused, accepted) == (set(), {("T", "a")})


def test_who_acquires_in_a_life_that_is_over_is_found(world, monkeypatch):
    monkeypatch.setattr(sqlite_cluster, "_IS_UP", "SELECT 1 WHERE ? <> '' AND ? > 0")
    shared = SqliteStore("sqlite://", alone=False, clock=lambda: world.now)
    at_site(world, shared, Site("s"), lambda s: s.acquire([("T", "a")], "a life", member=True))
    assert world.failures == ["('T', 'a') was acquired in a life that is over"]


def test_an_owner_that_changes_at_the_same_epoch_is_found(world, monkeypatch):
    give = sqlite_cluster._GIVE.replace(", epoch = epoch + 1", "")
    monkeypatch.setattr(sqlite_cluster, "_GIVE", give)
    shared = SqliteStore("sqlite://", alone=False, clock=lambda: world.now)
    at_site(
        world,
        shared,
        Site("s"),
        lambda s: s.join("n", "a life", "n:1", 1000.0, b""),
        lambda s: s.acquire([("T", "a")], "a life", member=True),
        lambda s: s.release([("T", "a", 1)], "a life", "another"),
    )
    assert world.failures == ["('T', 'a') has another owner at the same epoch, 1"]
