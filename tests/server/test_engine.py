"""The engine alone, over a poller that finds nothing: all work is submitted.

Every wait has a bound and is for an event, so a test that would wait for ever fails instead.  Where the
monitor, or the work that housekeeping submits, could hide what is tested, they are slowed down.
"""

import asyncio
import contextvars
import gc
import itertools
import sys
import threading
import time
from collections import deque
from functools import partial

import pytest

from objserver import ObjectServer, Proxy, errors, expose
from objserver.machine import Machine, machine
from objserver.server import engine as engine_module
from objserver.server.engine import WorkerEngine

BOUND_S = 5.0
NEVER_S = 10 * BOUND_S


class IdlePoller:
    """Wakes are kept as an eventfd keeps them.  `failures` are raised by the next polls."""

    def __init__(self):
        self.asleep = threading.Event()
        self.failures = []
        self._woken = threading.Event()

    def poll(self, wait):
        if self.failures:
            raise self.failures.pop()
        if wait:
            self.asleep.set()
            self._woken.wait()
            self.asleep.clear()
        self._woken.clear()

    def wake(self):
        self._woken.set()


class Busy:
    """Work that says when it runs, where, and goes on when told."""

    def __init__(self, then=lambda: None):
        self.began, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.thread = None
        self.then = then

    def __call__(self):
        self.thread = threading.current_thread()
        self.began.set()
        if self.go.wait(NEVER_S):
            self.then()
        self.ended.set()


def until(condition):
    """Some facts are counts, not events."""
    deadline = time.monotonic() + BOUND_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def is_vacant(engine):
    """Nobody leads, because all places are taken."""
    with engine._lock:
        return engine._vacant


@pytest.fixture
def make(monkeypatch):
    """Makes started engines that do no housekeeping; ends them.  `ready` replaces the queue of work."""
    monkeypatch.setattr(engine_module, "HOUSEKEEPING_S", NEVER_S)
    made = []

    def make(workers_max=4, housekeeping=lambda: None, poller=None, ready=None, **bounds):
        engine = WorkerEngine(poller or IdlePoller(), workers_max, housekeeping, **bounds)
        if ready is not None:
            engine._ready = ready
        made.append(engine)
        engine.start()
        return engine

    yield make
    for engine in made:
        engine.stop(0.2)


@pytest.fixture
def blind(monkeypatch):
    """The monitor looks so seldom that it does not matter; it ends by itself."""
    monkeypatch.setattr(engine_module, "LOOK_S", 2 * BOUND_S)


@pytest.fixture
def looks():
    """The monitor's looks so far, as a callable."""
    count = itertools.count(1)
    last = [0]

    class Counting(Machine):
        @staticmethod
        def sleep(seconds):
            last[0] = next(count)
            time.sleep(seconds)

    before = machine.set(Counting())
    yield lambda: last[0]
    machine.reset(before)


@pytest.fixture
def restless():
    """The interpreter changes threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def submit(engine, *works):
    for work in works:
        engine.submit(work)
    return works


# -- leader, monitor, promotion ----------------------------------------------------------------------


def test_the_leader_runs_work_without_handing_it_over(make, blind):
    engine = make()
    threads = []
    for _ in range(100):
        done = threading.Event()
        engine.submit(lambda done=done: (threads.append(threading.current_thread()), done.set()))
        assert done.wait(BOUND_S)
    assert len(set(threads)) == 1
    assert engine.statistics()["workers"] == 1
    assert engine.statistics()["promotions"] == 0


def test_what_the_leader_enqueues_while_it_works_is_run(make):
    engine = make()
    done = threading.Event()
    engine.submit(lambda: engine.enqueue(done.set))
    assert done.wait(BOUND_S)


def test_another_leads_when_work_blocks(make):
    engine = make()
    stuck, done = Busy(), threading.Event()
    submit(engine, stuck, done.set)
    assert done.wait(BOUND_S)
    assert not stuck.ended.is_set()
    assert engine.statistics()["promotions"] == 1
    stuck.go.set()


def test_a_replaced_leader_sleeps_and_is_promoted_again(make):
    engine = make(workers_max=2)
    first, second, third = Busy(), Busy(), Busy()
    submit(engine, first)
    assert first.began.wait(BOUND_S)
    submit(engine, second)
    assert second.began.wait(BOUND_S)
    first.go.set()
    submit(engine, third)
    assert third.began.wait(BOUND_S)
    assert third.thread is first.thread is not second.thread
    third.go.set()
    second.go.set()
    assert second.ended.wait(BOUND_S)
    assert third.ended.wait(BOUND_S)
    assert until(lambda: engine.statistics()["idle"] == 1)
    assert engine.statistics()["workers"] == 2


def test_a_parked_monitor_is_woken_by_work(make, monkeypatch):
    monkeypatch.setattr(engine_module, "LOOKS_BEFORE_PARKING", 1)
    engine = make()
    for _ in range(5):
        assert until(lambda: engine._is_parked)
        stuck, done = Busy(), threading.Event()
        submit(engine, stuck)
        assert stuck.began.wait(BOUND_S)
        engine.submit(done.set)
        assert done.wait(BOUND_S)
        stuck.go.set()
        assert stuck.ended.wait(BOUND_S)


def test_workers_max_is_respected(make, looks):
    engine = make(workers_max=3)
    works = [Busy() for _ in range(8)]
    submit(engine, *works)
    assert until(lambda: sum(work.began.is_set() for work in works) == 3)
    seen = looks()
    assert until(lambda: looks() > seen + 5 or engine._is_parked)
    assert sum(work.began.is_set() for work in works) == 3
    assert engine.statistics()["workers"] == 3
    assert engine.statistics()["ready"] == 5
    for work in works:
        work.go.set()
    assert all(work.ended.wait(BOUND_S) for work in works)
    assert len({work.thread for work in works}) == 3


def test_a_submission_wakes_a_blocked_poll(make, blind):
    engine = make()
    assert engine._poller.asleep.wait(BOUND_S)
    done = threading.Event()
    engine.submit(done.set)
    assert done.wait(BOUND_S)


@pytest.mark.parametrize("look", [1, 2])
def test_work_added_just_after_a_look_is_not_lost(make, blind, look):
    """The leader looks twice before it polls: `look` is the one after which another thread submits."""
    done = threading.Event()

    class Ready(deque):
        looks_left = 0

        def __bool__(self):
            found = len(self) > 0
            if self.looks_left:
                self.looks_left -= 1
                if not self.looks_left:
                    other = threading.Thread(target=engine.submit, args=(done.set,))
                    other.start()
                    other.join()
            return found

    engine = make(ready=Ready())
    assert engine._poller.asleep.wait(BOUND_S)
    engine._ready.looks_left = look
    engine._poller.wake()
    assert done.wait(BOUND_S)


@pytest.mark.parametrize("workers_max", [1, 4])
def test_no_submission_is_lost(make, restless, workers_max):
    """Each thread submits only when its last work has run, so a lost wake stops it for good."""
    engine = make(workers_max)
    rounds, finished = 3000, []

    def hammer():
        done = threading.Semaphore(0)
        for _ in range(rounds):
            engine.submit(done.release)
            if not done.acquire(timeout=BOUND_S):
                return
        finished.append(True)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(finished) == 3


def test_nothing_is_lost_while_the_lead_changes_hands(make, monkeypatch, restless):
    """The monitor looks so often that it replaces leaders which are just about to finish."""
    monkeypatch.setattr(engine_module, "LOOK_S", 1e-5)
    monkeypatch.setattr(engine_module, "LOOK_AGAIN_S", 1e-5)
    engine = make(workers_max=5)
    done = threading.Semaphore(0)

    def work(number):
        if number % 3 == 0:
            time.sleep(1e-4)
        if number % 5 == 0:
            engine.about_to_block()
            time.sleep(1e-5)
            engine.no_longer_blocked()
        done.release()

    for number in range(2000):
        engine.submit(partial(work, number))
    assert all(done.acquire(timeout=BOUND_S) for _ in range(2000))
    assert engine.statistics()["promotions"] > 0
    # Everyone but the one leader goes to sleep, or ends.
    assert until(lambda: engine.statistics()["idle"] == engine.statistics()["workers"] - 1)
    assert engine.statistics()["workers"] <= 5
    assert engine.statistics()["blocked"] == 0
    assert engine._promotion._value == 0


@pytest.mark.parametrize("workers_max", [1, 3])
def test_housekeeping_is_done_by_a_worker(make, monkeypatch, workers_max):
    monkeypatch.setattr(engine_module, "HOUSEKEEPING_S", 0.01)
    monkeypatch.setattr(engine_module, "LOOKS_BEFORE_PARKING", 2)
    done, threads = threading.Semaphore(0), set()

    def housekeeping():
        threads.add(threading.current_thread().name)
        done.release()

    make(workers_max, housekeeping)
    assert all(done.acquire(timeout=BOUND_S) for _ in range(5))
    assert threads == {"objserver-worker"}


@pytest.mark.parametrize("workers_max", [1, 3])
def test_timed_work_is_done_by_a_worker_in_the_order_of_its_times(make, workers_max):
    """Also while the monitor is parked, or nobody looks."""
    engine = make(workers_max)
    done, ended, threads = [], threading.Event(), set()

    def work(name):
        threads.add(threading.current_thread().name)
        done.append((name, time.monotonic() - begun))
        if len(done) == 3:
            ended.set()

    begun = time.monotonic()
    for name, delay_s in ("late", 0.06), ("soon", 0.02), ("at once", 0.0):
        engine.after(delay_s, partial(work, name))
    assert ended.wait(BOUND_S)
    assert [name for name, _ in done] == ["at once", "soon", "late"]
    assert all(at >= least for (_, at), least in zip(done, (0.0, 0.02, 0.06), strict=True))
    assert threads == {"objserver-worker"}


# -- what fails --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem", [ValueError("wrong"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]
)
def test_work_that_raises_does_not_end_the_server(make, blind, caplog, problem):
    engine = make(workers_max=1)
    done = threading.Event()

    def work():
        raise problem

    submit(engine, work, done.set)
    assert done.wait(BOUND_S)
    assert engine.statistics()["workers"] == 1
    assert [record.exc_info[1] for record in caplog.records] == [problem]


def test_a_poller_that_raises_does_not_end_the_server(make, caplog):
    poller = IdlePoller()
    poller.failures = [OSError("no more watches")]
    engine = make(workers_max=1, poller=poller)
    done = threading.Event()
    engine.submit(done.set)
    assert done.wait(BOUND_S)
    assert "looking for work failed" in caplog.text


def test_a_worker_that_cannot_be_started_is_tried_again(make, monkeypatch, caplog):
    monkeypatch.setattr(engine_module, "HOUSEKEEPING_S", 0.05)
    engine = make(workers_max=2)
    refused = threading.Event()
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "objserver-worker" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    stuck, done = Busy(), threading.Event()
    submit(engine, stuck, done.set)
    assert refused.wait(BOUND_S)
    assert done.wait(BOUND_S)
    assert "cannot start another worker: can't start new thread" in caplog.text
    stuck.go.set()


def test_bounds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="workers_max=0: a server needs at least one worker"):
        WorkerEngine(IdlePoller(), 0, print)
    with pytest.raises(ValueError, match="blocked_max=-1"):
        WorkerEngine(IdlePoller(), 2, print, -1)


# -- work that waits for other objects ---------------------------------------------------------------


class Caller(Busy):
    """Work that calls another object of the same engine: it waits for work submitted behind it."""

    def __init__(self, engine, together):
        super().__init__()
        self.engine, self.together, self.answer = engine, together, threading.Event()
        self.failed = None

    def __call__(self):
        try:
            self.engine.about_to_block()
            try:
                self.together.wait(BOUND_S)
                self.engine.submit(self.answer.set)
                assert self.answer.wait(BOUND_S)
            finally:
                self.engine.no_longer_blocked()
        except BaseException as problem:
            self.failed = problem
        self.ended.set()


def test_about_to_block_lets_another_lead_at_once(make, blind):
    engine = make(workers_max=2)
    done = threading.Event()
    caller = Busy(engine.no_longer_blocked)
    submit(engine, lambda: (engine.about_to_block(), caller()))
    assert caller.began.wait(BOUND_S)
    engine.submit(done.set)
    assert done.wait(BOUND_S)
    assert engine.statistics()["blocked"] == 1
    assert engine.statistics()["promotions"] == 0
    caller.go.set()
    assert caller.ended.wait(BOUND_S)
    assert engine.statistics()["blocked"] == 0
    assert until(lambda: engine.statistics()["idle"] == 1)


@pytest.mark.parametrize("workers_max", [2, 3])
def test_workers_that_wait_do_not_count_against_workers_max(make, workers_max):
    engine = make(workers_max)
    together = threading.Barrier(12)
    callers = submit(engine, *(Caller(engine, together) for _ in range(12)))
    assert all(caller.ended.wait(2 * BOUND_S) for caller in callers)
    assert [caller.failed for caller in callers] == [None] * 12
    # Whoever is too many now ends.
    assert until(lambda: engine.statistics()["workers"] <= workers_max)
    assert until(lambda: engine.statistics()["idle"] == engine.statistics()["workers"] - 1)
    assert engine.statistics()["blocked"] == 0
    assert until(lambda: len(engine._threads) == engine.statistics()["workers"] + 1)


def test_workers_that_wait_leave_their_place_even_when_they_do_not_lead(make):
    """All places are taken, nobody leads; then one of those that run begins to wait."""
    engine = make(workers_max=2)
    first = Busy(lambda: (engine.about_to_block(), waiting.wait(NEVER_S), engine.no_longer_blocked()))
    second, waiting = Busy(), threading.Event()
    submit(engine, first, second)
    assert first.began.wait(BOUND_S)
    assert second.began.wait(BOUND_S)
    assert until(lambda: is_vacant(engine))
    engine.submit(waiting.set)
    first.go.set()
    assert waiting.wait(BOUND_S)
    assert not second.ended.is_set()
    second.go.set()


def test_one_that_comes_back_from_its_wait_is_not_held_up(make):
    """`back` returns to two busy places; what runs there may be waiting for it."""
    engine = make(workers_max=2)
    back = Busy(engine.no_longer_blocked)
    submit(engine, lambda: (engine.about_to_block(), back()))
    assert back.began.wait(BOUND_S)
    others = submit(engine, Busy(), Busy())
    assert all(other.began.wait(BOUND_S) for other in others)
    assert until(lambda: is_vacant(engine))
    assert engine.statistics()["workers"] == 3
    back.go.set()
    assert back.ended.wait(BOUND_S)
    done = threading.Event()
    engine.submit(done.set)
    assert done.wait(BOUND_S)  # by the one that came back
    for other in others:
        other.go.set()
    assert until(lambda: engine.statistics()["workers"] == 2)


def test_waits_have_a_bound(make):
    engine = make(workers_max=2, blocked_max=3)
    waiting = [Busy(engine.no_longer_blocked) for _ in range(3)]
    submit(engine, *((lambda wait=wait: (engine.about_to_block(), wait())) for wait in waiting))
    assert all(wait.began.wait(BOUND_S) for wait in waiting)
    assert engine.statistics()["blocked"] == engine.statistics()["workers_blocked_max"] == 3

    refused = Caller(engine, threading.Barrier(1))
    submit(engine, refused)
    assert refused.ended.wait(BOUND_S)
    assert isinstance(refused.failed, errors.ServerBusy)
    assert str(refused.failed) == (
        "3 servants wait for answers of other objects already (setting workers_blocked_max); try later"
    )
    assert engine.statistics()["blocked"] == 3  # the refused one is not among them, nor did it end a wait

    waiting[0].go.set()
    assert waiting[0].ended.wait(BOUND_S)
    (accepted,) = submit(engine, Caller(engine, threading.Barrier(1)))
    assert accepted.ended.wait(BOUND_S)
    assert accepted.failed is None
    for wait in waiting:
        wait.go.set()


def test_a_wait_within_a_wait_counts_once(make):
    engine = make(workers_max=2, blocked_max=1)
    seen = []
    done = threading.Event()

    def work():
        for step in (engine.about_to_block, engine.about_to_block, *[engine.no_longer_blocked] * 3):
            step()
            seen.append(engine.statistics()["blocked"])
        done.set()

    submit(engine, work)
    assert done.wait(BOUND_S)
    assert seen == [1, 1, 1, 0, 0]


def test_a_wait_ends_with_its_work_at_the_latest(make):
    engine = make(workers_max=2)
    submit(engine, *[engine.about_to_block] * 20)
    assert until(lambda: engine.statistics()["ready"] == engine.statistics()["blocked"] == 0)
    assert until(lambda: engine.statistics()["workers"] <= 2)


def test_one_worker_stays_alone_when_it_waits(make):
    engine = make(workers_max=1, blocked_max=0)
    caller, after = Busy(engine.no_longer_blocked), Busy()
    submit(engine, lambda: (engine.about_to_block(), caller()), after)
    assert caller.began.wait(BOUND_S)
    assert engine.statistics()["blocked"] == 0
    assert engine.statistics()["workers"] == 1
    assert not after.began.is_set()
    caller.go.set()
    assert after.began.wait(BOUND_S)
    assert after.thread is caller.thread
    after.go.set()


def test_threads_that_are_no_workers_may_announce_waits(make, blind):
    engine = make(workers_max=2, blocked_max=0)
    engine.about_to_block()
    assert engine.statistics()["blocked"] == 0
    engine.no_longer_blocked()
    engine.no_longer_blocked()
    outcome, done = [], threading.Event()

    async def on_the_loop():
        engine.about_to_block()
        engine.no_longer_blocked()

    engine.run_coroutine(on_the_loop(), lambda value, error: (outcome.append(error), done.set()))
    assert done.wait(BOUND_S)
    assert outcome == [None]
    assert engine.statistics()["blocked"] == 0
    assert engine.statistics()["workers"] == 1


@pytest.mark.parametrize("connected", [True, False])
def test_servants_that_call_each_other_do_not_use_up_the_workers(connected):
    """The real thing: all workers call the same server at the same time."""
    count = 6
    together = threading.Barrier(count)

    @expose
    class Inner:
        def double(self, number):
            return 2 * number

    @expose
    class Outer:
        def __init__(self, inner):
            self.inner = Proxy(inner, timeout_s=2)
            if connected:
                self.inner.double(1)

        def call(self):
            together.wait(BOUND_S)
            try:
                return self.inner.double(21)
            finally:
                self.inner.release()

    def client(reference):
        with Proxy(reference, timeout_s=2 * BOUND_S) as proxy:
            try:
                results.append(proxy.call())
            except errors.CommunicationError as problem:
                results.append(problem)

    results = []
    with ObjectServer(workers=count) as server:
        inner = server.register(Inner(), "inner")
        outers = [server.register(Outer(inner), f"outer{number}") for number in range(count)]
        threads = [threading.Thread(target=client, args=(outer,)) for outer in outers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.statistics()["blocked"] == 0
    assert results == [42] * count


# -- stop --------------------------------------------------------------------------------------------


def test_stop_ends_all_threads(make):
    engine = make(workers_max=4)
    works = submit(engine, *(Busy() for _ in range(3)))
    assert all(work.began.wait(BOUND_S) for work in works)
    for work in works:
        work.go.set()
    done = threading.Event()

    async def nothing():
        pass

    engine.run_coroutine(nothing(), lambda value, error: done.set())
    assert done.wait(BOUND_S)
    threads = set(engine._threads)
    assert {thread.name for thread in threads} == {
        "objserver-worker",
        "objserver-monitor",
        "objserver-asyncio",
    }
    engine.stop(BOUND_S)
    assert not any(thread.is_alive() for thread in threads)
    assert engine.statistics()["workers"] == engine.statistics()["idle"] == 0


def test_stop_has_one_deadline_for_all_threads(make):
    engine = make(workers_max=6)
    works = submit(engine, *(Busy() for _ in range(6)))
    assert all(work.began.wait(BOUND_S) for work in works)
    began = time.monotonic()
    engine.stop(timeout_s=0.3)
    assert 0.3 <= time.monotonic() - began < 0.6
    assert not any(work.ended.is_set() for work in works)
    for work in works:
        work.go.set()
    engine.stop(BOUND_S)  # a second call waits again
    assert not any(work.thread.is_alive() for work in works)


def test_later_stops_do_not_touch_the_poller(make):
    """By then its descriptors are closed, and their numbers may be somebody else's."""
    engine = make()
    engine.stop(BOUND_S)

    def wake():
        raise OSError("bad file descriptor")

    engine._poller.wake = wake
    engine.stop()
    engine.stop(0)


def test_stop_from_a_worker_does_not_wait_for_itself(make):
    engine = make()
    done = threading.Event()
    engine.submit(lambda: (engine.stop(BOUND_S), done.set()))
    assert done.wait(BOUND_S)


def test_nobody_takes_over_after_stop(make):
    """A thread that is left, and waits, must not start others."""
    engine = make(workers_max=3)
    left = Busy(lambda: (engine.about_to_block(), engine.no_longer_blocked()))
    submit(engine, left)
    assert left.began.wait(BOUND_S)
    engine.stop(0)
    ran, started = threading.Event(), []
    engine._spawn = lambda *thread: started.append(thread)
    engine.submit(ran.set)
    left.go.set()
    engine.stop(BOUND_S)
    assert left.ended.is_set()
    assert not started
    assert not ran.is_set()
    assert engine.statistics()["workers"] == 0


# -- coroutines --------------------------------------------------------------------------------------


class Outcome:
    def __init__(self):
        self.happened = threading.Event()

    def __call__(self, value, error):
        self.value, self.error, self.thread = value, error, threading.current_thread()
        self.happened.set()


def test_a_coroutine_sees_the_context_of_its_caller(make):
    engine = make()
    variable = contextvars.ContextVar("variable", default="default")
    outcomes = []

    async def read():
        await asyncio.sleep(0)
        found = variable.get()
        variable.set("changed inside")
        return found

    def work(value, outcome):
        token = variable.set(value)
        engine.run_coroutine(read(), outcome)
        variable.reset(token)

    for value in ("one", "two"):
        outcomes.append(outcome := Outcome())
        engine.submit(partial(work, value, outcome))
    for outcome in outcomes:
        assert outcome.happened.wait(BOUND_S)
        assert outcome.thread.name == "objserver-asyncio"
    assert [outcome.value for outcome in outcomes] == ["one", "two"]
    assert variable.get() == "default"


@pytest.mark.parametrize("problem", [ValueError("wrong"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_coroutine_raises_is_its_outcome(make, problem):
    engine = make()

    async def fail():
        raise problem

    engine.run_coroutine(fail(), outcome := Outcome())
    assert outcome.happened.wait(BOUND_S)
    assert outcome.error is problem
    engine.run_coroutine(asyncio.sleep(0, "alive"), outcome := Outcome())
    assert outcome.happened.wait(BOUND_S)
    assert outcome.value == "alive"


@pytest.mark.parametrize("problem", [ValueError("wrong"), SystemExit(3)])
def test_an_outcome_that_cannot_be_delivered_is_logged(make, caplog, problem):
    engine = make()

    def refuse(value, error):
        raise problem

    engine.run_coroutine(asyncio.sleep(0), refuse)
    engine.run_coroutine(asyncio.sleep(0, "alive"), outcome := Outcome())
    assert outcome.happened.wait(BOUND_S)
    assert outcome.value == "alive"
    assert [record.exc_info[1] for record in caplog.records] == [problem]


@pytest.mark.parametrize("how", ["exit", "stop"])
def test_a_servant_cannot_end_the_event_loop(make, caplog, how):
    engine = make()
    tasks = []

    async def leave():
        raise SystemExit(3)

    async def start():
        if how == "exit":
            tasks.append(asyncio.create_task(leave()))
        else:
            asyncio.get_running_loop().stop()

    engine.run_coroutine(start(), Outcome())
    assert until(lambda: "tried to end the server's event loop" in caplog.text)
    assert all(isinstance(task.exception(), SystemExit) for task in tasks)
    engine.run_coroutine(asyncio.sleep(0, "alive"), outcome := Outcome())
    assert outcome.happened.wait(BOUND_S)
    assert outcome.value == "alive"


def test_stop_cancels_coroutines_and_refuses_new_ones(make):
    engine = make()

    async def for_ever():
        running.set()
        await asyncio.Event().wait()  # asyncio itself keeps no reference to a task that waits

    running = threading.Event()
    engine.run_coroutine(for_ever(), begun := Outcome())
    assert running.wait(BOUND_S)
    engine.run_coroutine(for_ever(), accepted := Outcome())
    gc.collect()
    engine.stop(BOUND_S)
    assert begun.happened.wait(BOUND_S)
    assert accepted.happened.wait(BOUND_S)
    assert isinstance(begun.error, asyncio.CancelledError)
    assert isinstance(accepted.error, asyncio.CancelledError)
    engine.run_coroutine(for_ever(), late := Outcome())
    assert late.happened.is_set()
    assert isinstance(late.error, errors.ServerBusy)


def test_statistics_show_counts_beside_their_bounds(make):
    engine = make(workers_max=3, blocked_max=7)
    assert engine.statistics() == {
        "workers": 1,
        "workers_max": 3,
        "blocked": 0,
        "workers_blocked_max": 7,
        "idle": 0,
        "promotions": 0,
        "ready": 0,
    }
