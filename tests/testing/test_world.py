"""A world whose time passes only by its events."""

import itertools
import logging
import os
import threading
import uuid
from functools import partial

import pytest

from objserver.machine import machine
from objserver.testing.world import START_S, TURN_S, Crashed, World


@pytest.fixture
def world():
    world = World(7)
    with world.in_place():
        yield world


@pytest.fixture
def process(world):
    return world.process("p", "10.0.0.1")


def live(process, *targets):
    """Run these as threads of the process until nothing happens any more."""
    for target in targets:
        process.start(target, target.__name__)
    process.world.run(START_S + 1000)


def test_an_hour_of_sleep_takes_no_time_and_an_hour(world, process):
    woke = []

    def sleeper():
        process.sleep(3600)
        woke.append(process.monotonic())

    process.start(sleeper, "sleeper")
    world.run(START_S + 4000)
    assert START_S + 3600 <= woke[0] <= START_S + 3601


def test_threads_sleep_beside_each_other(world, process):
    order = []

    def sleeper(seconds):
        process.sleep(seconds)
        order.append(seconds)

    for seconds in (3, 1, 2):
        process.start(partial(sleeper, seconds), "s")
    world.run(START_S + 10)
    assert order == [1, 2, 3]


def test_an_event_wakes_all_and_stays(process):
    event, seen = process.Event(), []

    def wait():
        seen.append(event.wait(5))

    live(process, wait, wait, lambda: (process.sleep(1), event.set()))
    assert seen == [True, True]
    assert event.is_set()


def test_a_wait_ends_with_its_time(process):
    event, seen = process.Event(), []

    def wait():
        seen.append((event.wait(5), round(process.monotonic() - START_S, 2)))

    live(process, wait)
    assert seen == [(False, 5.0)]


def test_a_condition_waits_for_its_predicate(process):
    condition, items, seen = process.Condition(), [], []

    def take():
        with condition:
            condition.wait_for(lambda: items)
            seen.append(items.pop())

    def put():
        for item in (1, 2):
            process.sleep(1)
            with condition:
                items.append(item)
                condition.notify()

    live(process, take, take, put)
    assert sorted(seen) == [1, 2]
    assert not condition.wait_for(lambda: False, 0)


def test_a_semaphore_lets_in_as_many_as_were_released(process):
    semaphore, seen = process.Semaphore(1), []

    def enter():
        semaphore.acquire()
        seen.append(process.monotonic() > START_S + 1)

    live(process, enter, enter, lambda: (process.sleep(2), semaphore.release()))
    assert seen == [False, True]


def test_a_local_is_of_its_thread(process):
    local, seen = process.Local(value=0), []

    def count():
        local.value += 1
        process.sleep(1)
        seen.append(local.value)

    live(process, count, count)
    assert seen == [1, 1]


def test_joining_waits_for_the_end_of_a_thread(process):
    seen = []

    def parent():
        child = process.start(lambda: process.sleep(3), "child")
        child.join()
        seen.append(process.monotonic() - START_S >= 3)

    live(process, parent)
    assert seen == [True]


def test_code_of_a_process_finds_its_machine(process):
    seen = []
    live(process, lambda: seen.append(machine.get()))
    assert seen == [process]
    assert machine.get() is not process


def test_a_process_that_crashes_does_nothing_more(world, process):
    done = []

    def work():
        try:
            process.sleep(10)
            done.append("slept")
        except Crashed:
            done.append("ended")
            process.sleep(1)  # nobody lets it
            done.append("outlived")

    process.start(work, "work")
    process.start(lambda: process.sleep(3600), "never heard of again")
    world.at(5.0, process.crash)
    world.run(START_S + 20)
    assert done == ["ended"]
    assert not process.threads
    with pytest.raises(Crashed):
        process.start(work, "again")


def test_a_paused_process_goes_on_later(world, process):
    seen = []

    def work():
        process.sleep(1)
        seen.append(process.monotonic() - START_S)

    process.start(work, "work")
    world.at(0.5, partial(process.pause, 7.0))
    world.run(START_S + 20)
    assert seen == [7.5]


def test_who_waits_with_a_lock_is_found(world, process):
    lock = threading.Lock()

    def careless():
        with lock:
            process.sleep(1)

    live(process, careless)
    assert world.failures == ["careless of p waits while it holds a lock"]


def test_an_exception_that_ends_a_thread_is_a_failure(world, process):
    live(process, lambda: 1 / 0)
    assert "ZeroDivisionError" in world.failures[0]
    assert isinstance(world.problem, ZeroDivisionError)


def test_an_error_that_is_logged_is_a_failure(world, process):
    live(process, lambda: logging.getLogger("objserver.x").error("a bug: %s", 5))
    assert world.failures == ["logged: a bug: 5"]


def test_others_go_first_now_and_then_where_a_lock_is_taken(process):
    lock, order = threading.Lock(), []

    def work(name):
        for _ in range(2000):
            with lock:
                order.append(name)

    process.start(partial(work, 1), "1")
    process.start(partial(work, 2), "2")
    process.world.run(START_S + 1)
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert 10 < changes < 200


def test_chance_comes_from_the_seed_and_goes_back_to_the_machine():
    before = os.urandom, threading.Lock

    def drawn():
        world = World(3)
        with world.in_place():
            return uuid.uuid4(), os.urandom(4), world.turn()

    assert drawn() == drawn()
    assert (os.urandom, threading.Lock) == before


def test_the_trace_tells_one_run_from_another():
    def traced(seed, seconds):
        world = World(seed)
        process = world.process("p", "h")
        process.start(lambda: (process.sleep(seconds), world.note("slept")), "s")
        world.run(START_S + 60)
        return world.trace()

    assert traced(1, 5) == traced(1, 5)
    assert len({traced(1, 5), traced(2, 5), traced(1, 6)}) == 3


def test_a_turn_is_mostly_short():
    world = World(1)
    turns = sorted(world.turn() for _ in range(1000))
    assert turns[500] < TURN_S
    assert turns[-1] > 10 * TURN_S
