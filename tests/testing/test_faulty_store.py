"""A store that takes time and fails, over one that does not."""

import pytest

from objserver import errors
from objserver.storage import Change
from objserver.storage.sqlite import SqliteStore
from objserver.testing.faulty_store import Disk, opened
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
