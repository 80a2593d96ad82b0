"""Timers on a clock that the test moves, with an engine and a committer that it cranks: nothing waits."""

import asyncio
import collections
import contextvars
import itertools
import math

import Pyro5.api
import pytest

from objserver import (
    PerRequest,
    Persistent,
    Reentrant,
    Serial,
    ServerSettings,
    Shared,
    current,
    errors,
    expose,
    readonly,
)
from objserver.adapter import Invocation, ObjectAdapter, timers
from objserver.adapter.calling import Nobody
from objserver.codecs import Codecs
from objserver.invocation import in_progress
from objserver.storage import Superseded
from objserver.storage.sqlite import SqliteStore
from objserver.testing.clock import ManualClock

START = 1000.0


class Engine:
    """Runs what was submitted when told to, and what was ordered for later when the clock is there."""

    def __init__(self, clock):
        self.clock = clock
        self.ready = collections.deque()
        self.later = []
        self.coroutines = []
        self.blocked = 0

    def submit(self, work):
        self.ready.append(work)

    def after(self, delay_s, work):
        assert delay_s > 0
        self.later.append((self.clock.monotonic() + delay_s, work))

    def about_to_block(self):
        self.blocked += 1

    def no_longer_blocked(self):
        self.blocked -= 1

    def run_coroutine(self, coroutine, done, timeout_s=None):
        self.coroutines.append((coroutine, done, contextvars.copy_context()))
        return lambda: None

    def run(self):
        now = self.clock.monotonic()
        due = [entry for entry in self.later if entry[0] <= now + 1e-9]
        self.later = [entry for entry in self.later if entry not in due]
        self.ready.extend(work for _, work in due)
        while self.ready:
            self.ready.popleft()()

    def finish_coroutines(self):
        loop = asyncio.new_event_loop()
        for coroutine, done, context in self.coroutines:
            done(context.run(loop.run_until_complete, coroutine), None)
        self.coroutines = []
        loop.close()


class Committer:
    """Commits when told to, or fails."""

    def __init__(self, store):
        self.store = store
        self.queue = []

    @property
    def has_more(self):
        return bool(self.queue)

    def submit(self, change, done):
        self.queue.append((change, done))

    def confirm(self, read, done):
        done(None if self.store.confirm([read]) else Superseded("it is not so any more"))

    def commit(self):
        queue, self.queue = self.queue, []
        for change, done in queue:
            done(None if self.store.commit([change]) else Superseded("another server has it"))

    def fail(self):
        queue, self.queue = self.queue, []
        for _, done in queue:
            done(errors.StoreError("the disk is full"))


class Caller(Nobody):
    def __init__(self):
        self.replies = []

    def encode_result(self, invocation, value):
        return value

    def encode_error(self, invocation, error):
        return error

    def send(self, reply):
        self.replies.append(reply)


class House:
    """An adapter and all that is around it."""

    def __init__(self, store=None, clock=None, *, interceptors=(), **settings):
        self.store = store or SqliteStore("sqlite://")
        self.clock = clock or ManualClock(START)
        self.engine = Engine(self.clock)
        self.committer = Committer(self.store)
        self.adapter = ObjectAdapter(
            codecs=Codecs(ServerSettings().limits),
            engine=self.engine,
            settings=ServerSettings(**settings),
            clock=self.clock,
            store=self.store,
            committer=self.committer,
            interceptors=interceptors,
        )

    def register(self, cls, name="O", threading=None):
        self.adapter.register(cls, name, Persistent(), threading)
        return self

    def begin(self, object_id, method, *args):
        caller = Caller()
        invocation = Invocation(caller, object_id, method, args)
        if self.adapter.admit(invocation):
            self.engine.submit(lambda: self.adapter.run(invocation))
        return caller

    def call(self, object_id, method, *args):
        caller = self.begin(object_id, method, *args)
        self.settle()
        (reply,) = caller.replies
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def settle(self):
        while self.engine.ready or self.committer.queue:
            self.engine.run()
            self.committer.commit()

    def pass_time(self, seconds, step=0.25):
        """... with housekeeping twice a second, and whatever was ordered in between."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end - 1e-9:
            ordered = [at for at, _ in self.engine.later if at > self.clock.monotonic()]
            to = min([end, self.clock.monotonic() + step, *ordered])
            self.clock.advance(to - self.clock.monotonic())
            self.adapter.housekeeping(self.clock.monotonic())
            self.engine.run()
            self.settle()

    @property
    def figures(self):
        return self.adapter.statistics()


class Recorder:
    """Notes what its timers call, and when."""

    clock: ManualClock
    executed: list = []

    def __init__(self):
        self.calls = []

    def note(self, *args, **kwargs):
        self.executed.append(args)
        self.calls.append((self.clock.time(), *args, *kwargs.values()))

    @expose
    def start(self, name, method, args=(), after_s=None, every_s=None, kwargs=None):
        current.set_timer(name, method, *args, after_s=after_s, every_s=every_s, **(kwargs or {}))

    @expose
    def stop(self, name):
        return current.cancel_timer(name)

    @expose
    @readonly
    def when(self):
        return current.timers()

    @expose
    @readonly
    def seen(self):
        return self.calls

    @expose
    @readonly
    def start_readonly(self):
        current.set_timer("t", "note", after_s=1)

    @expose
    def start_and_raise(self):
        current.set_timer("t", "note", after_s=1)
        raise ValueError("not well")

    @expose
    def start_and_spoil(self):
        self.calls.append(object())
        current.set_timer("t", "note", after_s=1)

    @expose
    def put(self, *calls):
        self.calls += calls

    def fail(self):
        self.note("fail")
        raise ValueError("not well")

    def spoil(self):
        self.executed.append(("spoil",))
        self.calls.append(object())

    def again(self, left):
        self.note(left, dict(current.timers()))
        if left:
            current.set_timer("t", "again", left - 1, after_s=0)

    def stop_itself(self):
        self.note(current.cancel_timer("t"))

    async def later(self, word):
        self.note(word, current.method, current.object_id)

    @staticmethod
    def static(word):
        Recorder.executed.append((word,))

    @classmethod
    def of_class(cls, word):
        cls.executed.append((word, cls.__name__))

    def items(self):
        yield 1

    @property
    def length(self):
        return len(self.calls)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(Recorder, "executed", [])
    monkeypatch.setattr(Recorder, "clock", None, raising=False)


@pytest.fixture
def house(monkeypatch):
    house = House()
    monkeypatch.setattr(Recorder, "clock", house.clock)
    house.register(Recorder)
    house.settle()
    yield house
    house.store.close()


def next_life(house, **options):
    """The server was killed, and another has the store."""
    other = House(house.store, house.clock, **options)
    other.register(Recorder)
    other.settle()
    return other


# -- setting -------------------------------------------------------------------------------------------


def test_a_timer_fires_once_when_its_time_has_come(house):
    house.call("O/a", "start", "t", "note", [1, (2, 3)], 10.0, None, {"word": "x"})
    assert house.call("O/a", "when") == {"t": START + 10}
    house.pass_time(9.9)
    assert house.call("O/a", "seen") == []
    house.pass_time(20)
    assert house.call("O/a", "seen") == [(START + 10, 1, (2, 3), "x")]
    assert house.call("O/a", "when") == {}
    assert house.store.timers("O", "a") == []
    assert house.figures["timers_fired"] == 1


def test_also_of_the_object_whose_key_is_empty_and_of_keys_that_have_to_be_quoted(house):
    for object_id in ("O", "O/R&D%20%40home/%25"):
        house.call(object_id, "start", "t", "note", [1], 1.0)
    house.pass_time(1)
    assert [house.call(object_id, "seen") for object_id in ("O", "O/R&D%20%40home/%25")] == [
        [(START + 1, 1)]
    ] * 2
    assert house.store.keys("O") == ["", "R&D @home/%"]


def test_a_timer_is_stored_with_its_call_or_not_at_all(house):
    house.begin("O/a", "start", "t", "note", [], 1.0)
    house.engine.run()
    assert house.store.timers("O", "a") == []
    house.committer.fail()
    house.engine.run()
    assert house.call("O/a", "when") == {}
    house.pass_time(5)
    assert Recorder.executed == []
    house.call("O/a", "start", "t", "note", [], 1.0)
    assert [timer.name for timer in house.store.timers("O", "a")] == ["t"]


def test_a_call_that_raises_keeps_its_timers_as_its_state(house):
    with pytest.raises(ValueError, match="not well"):
        house.call("O/a", "start_and_raise")
    house.pass_time(1)
    assert house.call("O/a", "seen") == [(START + 1,)]


def test_a_call_whose_state_cannot_be_stored_keeps_none(house):
    with pytest.raises(errors.StateError):
        house.call("O/a", "start_and_spoil")
    assert house.store.timers("O", "a") == []
    assert house.call("O/a", "when") == {}


def test_a_timer_replaces_that_of_the_same_name(house):
    house.call("O/a", "start", "t", "note", ["first"], 1.0)
    house.call("O/a", "start", "u", "note", ["other"], 3.0)
    house.call("O/a", "start", "t", "note", ["second"], 2.0)
    house.pass_time(5)
    assert house.call("O/a", "seen") == [(START + 2, "second"), (START + 3, "other")]


def test_a_cancelled_timer_does_not_fire(house):
    house.call("O/a", "start", "t", "note", [], 1.0)
    assert house.call("O/a", "stop", "t") is True
    assert house.call("O/a", "stop", "t") is False
    assert house.store.timers("O", "a") == []
    house.pass_time(3)
    assert Recorder.executed == []


def test_one_that_is_cancelled_after_it_was_due_and_before_its_turn_does_not_fire(house):
    house.call("O/a", "start", "t", "note", [], 1.0)
    house.clock.advance(1)
    house.begin("O/a", "stop", "t")
    house.engine.run()  # cancelled in memory, not in the store
    house.adapter.housekeeping(house.clock.monotonic())
    house.engine.run()
    assert house.figures["timers_under_way"] == 1
    assert Recorder.executed == []
    house.committer.fail()  # and not cancelled, after all
    house.settle()
    house.pass_time(2)
    assert Recorder.executed == [()]


def test_one_that_was_set_anew_before_its_turn_fires_at_its_new_time(house):
    house.call("O/a", "start", "t", "note", ["old"], 1.0)
    house.clock.advance(1)
    house.begin("O/a", "start", "t", "note", ["new"], 1.0)
    house.engine.run()
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert Recorder.executed == []
    house.pass_time(2)
    assert house.call("O/a", "seen") == [(START + 2, "new")]


def test_a_timer_that_is_stored_while_the_store_is_asked_is_not_overlooked(house, monkeypatch):
    house.call("O/a", "start", "t", "note", ["a"], 1.0)
    house.begin("O/b", "start", "t", "note", ["b"], 2.0)
    house.engine.run()
    next_due = house.store.next_due

    def answer_late(*question):
        answer = next_due(*question)
        house.committer.commit()
        return answer

    monkeypatch.setattr(house.store, "next_due", answer_late)
    house.clock.advance(1)
    house.adapter.housekeeping(house.clock.monotonic())
    house.engine.run()
    assert house.store.timers("O", "b") != []
    house.store.next_due = next_due
    house.settle()
    house.pass_time(1)
    assert Recorder.executed == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("", "note", [], 1.0), ValueError, "no name"),
        (("n" * 201, "note", [], 1.0), ValueError, "1 to 200"),
        (("a\0b", "note", [], 1.0), ValueError, "printable"),
        (("\ud800", "note", [], 1.0), ValueError, "printable"),
        ((7, "note", [], 1.0), TypeError, "a text, not a int"),
        (("t", "note", []), TypeError, "needs after_s"),
        (("t", "note", [], -1.0), ValueError, "after_s=-1"),
        (("t", "note", [], math.nan), ValueError, "finite"),
        (("t", "note", [], math.inf), ValueError, "finite"),
        (("t", "note", [], 1.0, 0.001), ValueError, "every_s=0.001"),
        (("t", "noted", [], 1.0), AttributeError, "no method 'noted'.*did you mean 'note'"),
        (("t", "length", [], 1.0), AttributeError, "no method 'length'"),
        (("t", "executed", [], 1.0), AttributeError, "no method 'executed'"),
        (("t", "items", [], 1.0), TypeError, "generator"),
        (("t", "fail", [1], 1.0), TypeError, "cannot be called.*too many positional"),
        (("t", "static", [], 1.0), TypeError, "missing a required argument: 'word'"),
        (("t", "note", [{1}, object()], 1.0), errors.StateError, "arguments of timer 't' cannot be stored"),
        (("t", "note", ["x" * 70_000], 1.0), errors.StateError, "at most 65536"),
    ],
)
def test_what_can_never_fire_is_refused_when_it_is_set(house, arguments, error, words):
    with pytest.raises(error, match=words):
        house.call("O/a", "start", *arguments)
    assert house.call("O/a", "when") == {}


def test_an_object_has_only_so_many_timers(monkeypatch):
    house = House(timers_per_object_max=2).register(Recorder)
    for name in "tut":
        house.call("O/a", "start", name, "note", [], 1.0)
    with pytest.raises(errors.ServerBusy, match="timers_per_object_max"):
        house.call("O/a", "start", "v", "note", [], 1.0)
    house.call("O/b", "start", "v", "note", [], 1.0)
    house.call("O/a", "stop", "t")
    house.call("O/a", "start", "v", "note", [], 1.0)
    assert list(house.call("O/a", "when")) == ["u", "v"]


def test_outside_of_a_servant_there_are_none():
    for use in (
        lambda: current.set_timer("t", "m", after_s=1),
        lambda: current.cancel_timer("t"),
        current.timers,
    ):
        with pytest.raises(LookupError, match="no invocation"):
            use()


def test_a_readonly_member_sets_none(house):
    with pytest.raises(RuntimeError, match=r"O/a.start_readonly is @readonly"):
        house.call("O/a", "start_readonly")


def test_an_object_that_is_not_persistent_has_none(house):
    for name, policy in (("S", Shared()), ("R", PerRequest())):
        house.adapter.register(Recorder, name, policy, None)
        for method, *arguments in (("start", "t", "note", [], 1.0), ("stop", "t"), ("when",)):
            with pytest.raises(RuntimeError, match=f"{name} has no timers.*Persistent"):
                house.call(name, method, *arguments)


def test_hooks_set_none(house, caplog):
    class Hooked(Recorder):
        def on_activate(self):
            with pytest.raises(RuntimeError, match="on_activate"):
                current.set_timer("t", "note", after_s=1)
            self.executed.append("activated")

        def on_passivate(self):
            with pytest.raises(RuntimeError, match="not after it has ended"):
                current.set_timer("t", "note", after_s=1)
            self.executed.append("passivated")

    house.register(Hooked, "H")
    house.call("H/a", "put", 1)
    house.adapter.end_all()
    house.settle()
    assert Recorder.executed == ["activated", "passivated"]


def test_a_call_that_has_ended_sets_none(house):
    kept = []

    class Keeping(Recorder):
        @expose
        def keep(self):
            kept.append(in_progress.get())

    house.register(Keeping, "K")
    house.call("K/a", "keep")
    with pytest.raises(RuntimeError, match="not after it has ended"):
        kept[0].own_timers(True)


def test_methods_of_every_kind_are_called(house):
    class Kinds(Recorder):
        @expose
        @readonly
        def look(self):
            self.executed.append(("look",))

    house.register(Kinds, "K")
    for name, args in (("static", ["s"]), ("of_class", ["c"]), ("look", []), ("note", ["n"])):
        house.call("K/a", "start", name, name, args, 1.0)
    house.pass_time(1)
    assert sorted(Recorder.executed) == [("c", "Kinds"), ("look",), ("n",), ("s",)]
    assert house.call("K/a", "when") == {}


def test_classes_written_for_pyro5_have_timers_too(house):
    class Old(Recorder):
        @Pyro5.api.expose
        def old(self):
            current.set_timer("t", "note", 1, after_s=1)

    house.register(Old, "Old", Serial())
    house.call("Old/a", "old")
    house.pass_time(1)
    assert Recorder.executed == [(1,)]


def test_a_coroutine_is_run(house):
    house.call("O/a", "start", "t", "later", ["x"], 1.0)
    house.clock.advance(1)
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert Recorder.executed == []
    assert house.store.timers("O", "a") != []
    house.engine.finish_coroutines()
    house.settle()
    assert house.call("O/a", "seen") == [(START + 1, "x", "later", "O/a")]
    assert house.store.timers("O", "a") == []


def test_a_coroutine_that_the_event_loop_never_began_has_not_fired(house):
    house.call("O/a", "start", "t", "later", ["x"], 1.0)
    house.clock.advance(1)
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    ((coroutine, done, _),) = house.engine.coroutines
    house.engine.coroutines = []
    coroutine.close()
    done(None, asyncio.CancelledError())
    house.settle()
    assert len(house.store.timers("O", "a")) == house.figures["timers_resting"] == 1
    house.pass_time(1)
    house.engine.finish_coroutines()
    house.settle()
    assert len(house.call("O/a", "seen")) == house.figures["timers_fired"] == 1


def test_interceptors_are_around_what_timers_call():
    seen = []

    class Interceptor:
        def __init__(self, call):
            seen.append((call.object_id, call.method, call.args, call.kwargs))

        def __enter__(self):
            pass

        def __exit__(self, *problem):
            pass

    house = House(interceptors=[Interceptor]).register(Recorder)
    Recorder.clock = house.clock
    house.call("O/a", "start", "t", "note", [1], 1.0, None, {"x": 2})
    house.call("O/a", "start", "u", "later", ["y"], 1.0)
    seen.clear()
    house.pass_time(1)
    house.engine.finish_coroutines()
    assert seen == [("O/a", "note", (1,), {"x": 2}), ("O/a", "later", ("y",), {})]


def test_the_method_may_set_and_cancel_timers_its_own_too(house):
    house.call("O/a", "start", "t", "again", [2], 1.0)
    house.pass_time(3)
    assert [call[1:] for call in house.call("O/a", "seen")] == [(2, {}), (1, {}), (0, {})]
    house.call("O/b", "start", "t", "stop_itself", [], None, 1.0)
    house.pass_time(5)
    assert [call[1:] for call in house.call("O/b", "seen")] == [(True,)]


def test_of_calls_within_calls_the_last_word_counts():
    """Inner and outer are stored together, whichever set the timer last."""
    house = House()

    class Loop(Recorder):
        @expose
        def outer(self):
            current.set_timer("t", "note", "outer", after_s=1)
            current.set_timer("u", "note", "outer", after_s=1)
            invocation = Invocation(Caller(), "O/a", "inner")
            invocation.chain = (in_progress.get().id,)
            assert house.adapter.admit(invocation)
            house.adapter.run(invocation)
            current.set_timer("u", "note", "outer again", after_s=1)

        @expose
        def inner(self):
            for name in "tu":
                current.set_timer(name, "note", "inner", after_s=1)

    house.register(Loop, threading=Reentrant())
    Recorder.clock = house.clock
    house.call("O/a", "outer")
    house.pass_time(1)
    assert Recorder.executed == [("inner",), ("outer again",)]


# -- firing --------------------------------------------------------------------------------------------


def test_a_periodic_timer_keeps_to_its_grid(house):
    house.call("O/a", "start", "t", "note", [], 1.0, 10.0)
    house.call("O/b", "start", "t", "note", [], None, 10.0)
    house.pass_time(35)
    assert [at for (at,) in house.call("O/a", "seen")] == [START + n for n in (1, 11, 21, 31)]
    assert [at for (at,) in house.call("O/b", "seen")] == [START + n for n in (10, 20, 30)]
    assert house.call("O/a", "when") == {"t": START + 41}


def test_what_was_missed_is_made_up_for_by_one_firing(house):
    house.call("O/a", "start", "t", "note", [], None, 10.0)
    house.call("O/a", "start", "once", "note", ["once"], 5.0)
    house.clock.advance(57)
    other = next_life(house)
    other.pass_time(15)
    assert other.call("O/a", "seen") == [
        (START + 57, "once"),
        (START + 57,),
        (START + 60,),
        (START + 70,),
    ]


@pytest.mark.parametrize(
    ("first", "every_s", "now", "next"),
    [
        (0.0, 10.0, 0.0, 10.0),
        (0.0, 10.0, 9.9, 10.0),
        (0.0, 10.0, 10.0, 20.0),
        (5.0, 10.0, 94.0, 95.0),
        (5.0, 10.0, 95.0, 105.0),
        (1.7e9, 0.1, 1.7e9 + 0.1, 1.7e9 + 2 * 0.1),
    ],
)
def test_the_next_time_is_the_first_of_the_grid_that_is_not_over(first, every_s, now, next):
    assert timers._next_on_grid(first, every_s, now) == next


def test_a_grid_does_not_drift():
    due = first = 1.7e9 + 1 / 3
    for n in range(1, 20_000):
        before, due = due, timers._next_on_grid(first, 0.1, due)
        assert due > before
        assert due == first + n * 0.1


def test_what_the_method_raises_is_logged_and_the_timer_has_fired(house, caplog):
    house.call("O/a", "start", "once", "fail", [], 1.0)
    house.call("O/b", "start", "often", "fail", [], None, 1.0)
    house.pass_time(3)
    assert house.call("O/a", "seen") == [(START + 1, "fail")]
    assert len(house.call("O/b", "seen")) == 3
    assert house.call("O/a", "when") == {}
    assert "timer 'once' of O/a: fail failed" in caplog.text
    assert "ValueError: not well" in caplog.text


def test_a_firing_whose_state_cannot_be_stored_did_not_happen_and_is_tried_again(house):
    house.call("O/a", "start", "t", "spoil", [], 1.0)
    house.call("O/b", "start", "t", "note", [], None, 0.1)  # there is always something to look for
    house.pass_time(1)
    assert Recorder.executed.count(("spoil",)) == house.figures["timers_resting"] == 1
    assert house.call("O/a", "seen") == []
    assert house.call("O/a", "when") == {"t": START + 1}
    house.pass_time(3.6)  # after half a second, one, and two
    assert Recorder.executed.count(("spoil",)) == 4
    assert house.call("O/a", "stop", "t")
    house.pass_time(30)
    assert Recorder.executed.count(("spoil",)) == 4
    assert house.figures["timers_resting"] == 0


def test_a_timer_that_takes_the_place_of_one_that_is_tried_again_does_not_wait_for_it(house):
    house.call("O/a", "start", "t", "spoil", [], 1.0)
    house.pass_time(10)
    house.call("O/a", "start", "t", "note", [], 0.5)
    house.pass_time(1)
    ((at,),) = house.call("O/a", "seen")
    assert at < START + 10.6


def test_a_firing_that_the_store_refused_did_not_happen_and_is_tried_again(house):
    house.call("O/a", "start", "t", "note", [1], 1.0)
    house.clock.advance(1)
    house.adapter.housekeeping(house.clock.monotonic())
    house.engine.run()
    house.committer.fail()
    house.engine.run()
    assert Recorder.executed == [(1,)]
    house.pass_time(1)
    assert Recorder.executed == [(1,)] * 2
    assert house.call("O/a", "seen") == [(START + 1.5, 1)]
    house.pass_time(60)
    assert len(Recorder.executed) == 2


def test_a_firing_and_what_it_changed_are_stored_together(house):
    """After every commit the store is as before the firing or as after it."""
    house.call("O/a", "start", "t", "note", [], None, 1.0)
    commit = house.store.commit
    seen = []

    def look(changes):
        accepted = commit(changes)
        (timer,) = house.store.timers("O", "a")
        calls = house.adapter.codecs.native.decode(house.store.load("O", "a").state)["calls"]
        seen.append((len(calls), timer.due))
        return accepted

    house.store.commit = look
    house.pass_time(4)
    assert seen == [(n, START + 1 + n) for n in range(1, 5)]


def test_a_killed_server_s_firing_is_run_again_by_the_next(house):
    house.call("O/a", "start", "t", "note", [1], 1.0)
    house.clock.advance(1)
    house.adapter.housekeeping(house.clock.monotonic())
    house.engine.run()
    assert Recorder.executed == [(1,)]
    other = next_life(house)  # nothing was committed
    assert Recorder.executed == [(1,), (1,)]
    assert other.call("O/a", "seen") == [(START + 1, 1)]
    third = next_life(other)
    third.pass_time(10)
    assert len(Recorder.executed) == 2


def test_calls_and_firings_take_turns(house):
    house.call("O/a", "start", "t", "note", ["fired"], 1.0)
    house.clock.advance(1)
    house.begin("O/a", "put", "before")
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert house.call("O/a", "seen") == ["before", (START + 1, "fired")]


def test_a_passivated_object_is_activated(house):
    house.call("O/a", "start", "t", "note", [], 1000.0)
    house.pass_time(500, step=100)
    assert house.adapter.active == 0
    house.pass_time(500.0)
    assert house.call("O/a", "seen") == [(START + 1000,)]


def test_what_is_not_served_here_is_kept_until_it_is(house, monkeypatch):
    house.call("O/a", "start", "t", "note", [], 1.0)
    house.adapter.unregister("O")
    house.settle()
    house.pass_time(5)
    house.adapter.register(Recorder, "O", Shared(), None)
    house.pass_time(5)
    assert Recorder.executed == []
    house.adapter.unregister("O")
    house.register(Recorder)
    house.settle()
    assert house.call("O/a", "seen") == [(START + 10,)]


def test_policies_that_change_keep_timers_and_fire_them_when_the_object_is_persistent_again(house):
    house.register(Recorder, "One")
    house.call("One", "start", "t", "note", [], 10.0)
    house.call("One", "start", "u", "note", [], 1.0)
    house.clock.advance(1)
    house.adapter.housekeeping(house.clock.monotonic())  # on its way when the policies change
    outcomes = []
    house.adapter.change_policy("One", Shared(), None, None, outcomes.append)
    house.settle()
    house.pass_time(20)
    assert Recorder.executed == []
    house.adapter.change_policy("One", Persistent(), None, None, outcomes.append)
    house.settle()
    house.pass_time(1)
    assert outcomes == [None, None]
    assert len(house.call("One", "seen")) == len(Recorder.executed) == 2
    assert house.call("One", "when") == {}


def test_timers_of_types_that_nobody_serves_do_not_keep_others_from_firing(house, monkeypatch):
    monkeypatch.setattr(timers, "DUE_MAX", 2)
    house.register(Recorder, "Other")
    for n in range(10):
        house.call(f"Other/{n}", "start", "t", "note", [n], 1.0)
    house.call("O/a", "start", "t", "note", ["a"], 2.0)
    house.adapter.unregister("Other")
    house.settle()
    house.pass_time(2)
    assert Recorder.executed == [("a",)]


def test_nor_do_those_that_cannot_fire(house, monkeypatch):
    monkeypatch.setattr(timers, "DUE_MAX", 2)
    for n in range(10):
        house.call(f"O/{n}", "start", "t", "spoil", [], 1.0)
    house.call("O/a", "start", "t", "note", ["a"], 1.5)
    house.pass_time(1.5)
    assert house.figures["timers_resting"] == 10
    assert ("a",) in Recorder.executed


def test_only_so_many_are_under_way_and_all_fire(house, monkeypatch):
    monkeypatch.setattr(timers, "DUE_MAX", 3)
    monkeypatch.setattr(timers, "UNDER_WAY_MAX", 5)
    for n in range(23):
        house.call(f"O/{n}", "start", "t", "note", [n], 1.0)
    house.clock.advance(1)
    house.adapter.housekeeping(house.clock.monotonic())
    most = 0
    while house.engine.ready or house.committer.queue:
        house.engine.run()
        most = max(most, house.figures["timers_under_way"])
        house.committer.commit()
    assert most == 5
    assert sorted(Recorder.executed) == [(n,) for n in range(23)]


def test_a_method_that_is_gone_keeps_its_timer(house, caplog):
    house.call("O/a", "start", "t", "later", ["x"], 1.0)

    class Without(Recorder):
        later = property()

    house.adapter.unregister("O")
    house.settle()
    house.register(Without)
    house.pass_time(3)
    assert "has to wait" in caplog.text
    assert [timer.name for timer in house.store.timers("O", "a")] == ["t"]
    assert house.call("O/a", "when") == {"t": START + 1}


def test_an_object_that_cannot_be_activated_keeps_its_timers(house):
    house.call("O/a", "start", "t", "note", [], 1.0)
    house.adapter.unregister("O")
    house.settle()
    broken = True

    class Broken(Recorder):
        def on_activate(self):
            if broken:
                raise OSError("no such device")

    house.register(Broken)
    house.pass_time(3)
    assert Recorder.executed == []
    broken = False
    house.pass_time(31)
    assert len(house.call("O/a", "seen")) == 1


def test_a_stopped_server_begins_none(house):
    house.call("O/a", "start", "t", "note", [], 1.0)
    house.adapter.stop_timers()
    house.pass_time(3)
    assert Recorder.executed == []


def test_a_store_that_does_not_answer_is_asked_again(house, monkeypatch, caplog):
    house.call("O/a", "start", "t", "note", [], 1.0)

    def fail(*args):
        raise errors.StoreError("no answer")

    monkeypatch.setattr(house.store, "due", fail)
    house.pass_time(3)
    assert "could not be read: no answer" in caplog.text
    monkeypatch.undo()
    Recorder.clock = house.clock
    house.pass_time(1)
    assert len(house.call("O/a", "seen")) == 1


# -- what a firing calls -------------------------------------------------------------------------------


class Asking(Recorder):
    """Notes the ids of the calls it would make."""

    ids: list = []

    def ask(self):
        facts = in_progress.get()
        assert facts.is_of_object
        assert facts.acked == facts.call.number - 1
        self.ids.append((facts.next_call(), facts.next_call()))
        self.note()


@pytest.fixture
def asking(house, monkeypatch):
    monkeypatch.setattr(Asking, "ids", [])
    return house.register(Asking, "A")


def test_a_firing_that_is_run_again_makes_the_same_calls(asking):
    asking.call("A/a", "start", "t", "ask", [], 1.0)
    asking.call("A/b", "start", "t", "ask", [], 1.0)
    asking.clock.advance(1)
    asking.adapter.housekeeping(asking.clock.monotonic())
    asking.engine.run()
    asking.committer.fail()
    asking.engine.run()
    asking.call("A/a", "put", "something in between")
    asking.pass_time(1)
    assert len(Asking.ids) == 4
    assert len(set(Asking.ids)) == 2
    for first, second in Asking.ids:
        assert first != second
        assert len(first.client) == 16


def test_firings_have_numbers_that_only_grow_whatever_the_clock_does(asking):
    asking.call("A/a", "start", "t", "ask", [], None, 1.0)
    asking.pass_time(3)
    for _ in range(3):
        asking.clock.set(asking.clock.time() - 500)
        asking.call("A/a", "stop", "t")
        asking.call("A/a", "start", "t", "ask", [], 1.0)
        asking.pass_time(1)
        asking.call("A/a", "start", "t", "ask", [], None, 1.0)
        asking.pass_time(2)
        asking = next_life(asking).register(Asking, "A")
        asking.settle()
    numbers = [first.number for first, _ in Asking.ids]
    assert len(numbers) == 3 + 3 * 3
    assert all(one < other for one, other in itertools.pairwise(numbers))
    assert numbers[-1] <= asking.store.load("A", "a").version
    assert len({first.client for first, _ in Asking.ids}) == 1


def test_a_waiting_method_gives_its_place_to_another(house):
    class Waiting(Recorder):
        def wait(self):
            caller = in_progress.get().caller
            caller.about_to_block()
            self.executed.append(house.engine.blocked)
            caller.no_longer_blocked()

    house.register(Waiting, "W")
    house.call("W/a", "start", "t", "wait", [], 1.0)
    house.pass_time(1)
    assert (Recorder.executed, house.engine.blocked) == ([1], 0)


# -- the clock on the wall -----------------------------------------------------------------------------


def test_a_firing_is_as_exact_as_the_engine(house):
    house.call("O/a", "start", "t", "note", [], 7.013)
    house.pass_time(8, step=0.5)
    ((at,),) = house.call("O/a", "seen")
    assert 7.013 <= at - START < 7.015
    house.call("O/b", "start", "t", "note", ["soon"], 0.1)
    house.clock.advance(0.1)
    house.engine.run()  # without any housekeeping
    house.settle()
    assert Recorder.executed[-1] == ("soon",)


def test_a_clock_that_is_put_forward_fires_once_and_goes_on_from_there(house):
    house.call("O/a", "start", "often", "note", ["often"], None, 10.0)
    house.call("O/a", "start", "once", "note", ["once"], 100.0)
    house.clock.set(START + 3605)
    house.pass_time(0.5)
    house.pass_time(9.5)
    assert sorted(call[1] for call in house.call("O/a", "seen")) == ["often", "often", "once"]
    assert house.call("O/a", "when") == {"often": START + 3620}


def test_a_clock_that_is_put_back_fires_later_and_nothing_twice(house):
    house.call("O/a", "start", "often", "note", [], None, 10.0)
    house.pass_time(10)
    house.clock.set(START - 100)
    house.pass_time(119)
    assert house.call("O/a", "seen") == [(START + 10,)]
    house.pass_time(1)
    assert house.call("O/a", "seen") == [(START + 10,), (START + 20,)]


def test_also_if_it_is_put_back_while_a_firing_waits_for_its_turn(house):
    house.call("O/a", "start", "often", "note", [], None, 10.0)
    house.clock.advance(10)
    house.adapter.housekeeping(house.clock.monotonic())
    while not house.figures["timers_under_way"]:
        house.engine.ready.popleft()()
    house.clock.set(START + 5)
    house.settle()
    assert len(Recorder.executed) == 1
    assert house.call("O/a", "when") == {"often": START + 20}
    house.pass_time(14.5)
    assert len(Recorder.executed) == 1
    house.pass_time(0.5)
    assert len(Recorder.executed) == 2


# -- two servers over one store ------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch):
    store, clock = SqliteStore("sqlite://", alone=False), ManualClock(START)
    monkeypatch.setattr(Recorder, "clock", clock)
    houses = [House(store, clock).register(Recorder) for _ in range(2)]
    for house in houses:
        house.settle()
    yield houses
    store.close()


def together(houses, seconds):
    """Time passes for both, and what they do is interleaved."""
    clock = houses[0].clock
    for _ in range(round(seconds / 0.05)):
        clock.advance(0.05)
        for house in houses:
            house.adapter.housekeeping(clock.monotonic())
        for house in houses:
            house.engine.run()
        for house in houses:
            house.committer.commit()
        for house in houses:
            house.settle()


def test_one_of_two_servers_fires_where_the_object_is_active(two):
    one, other = two
    one.call("O/a", "start", "t", "note", [], None, 10.0)
    together(two, 35)
    assert len(one.call("O/a", "seen")) == len(Recorder.executed) == 3
    assert (one.figures["timers_fired"], other.figures["timers_fired"]) == (3, 0)
    assert other.adapter.active == 0
    assert other.figures["timers_resting"] == 0


def test_of_two_that_begin_at_the_same_time_one_takes_effect(two):
    one, other = two
    one.call("O/a", "start", "t", "note", [], 10.0)
    for house in two:
        house.adapter.end_all()
        house.settle()
    together(two, 15)
    assert len(Recorder.executed) == 2  # both ran it
    assert len(one.call("O/a", "seen")) == 1  # one was stored
    assert one.figures["timers_fired"] + other.figures["timers_fired"] == 1
    together(two, 60)
    assert len(Recorder.executed) == 2


def test_who_has_lost_the_object_without_knowing_fires_nothing_twice(two):
    one, other = two
    one.call("O/a", "start", "t", "note", ["old"], 10.0)
    other.call("O/a", "start", "t", "note", ["new"], 10.0)
    other.call("O/a", "start", "u", "note", ["u"], 12.0)
    together(two, 20)
    assert sorted(call[1] for call in other.call("O/a", "seen")) == ["new", "u"]


def test_a_server_s_timers_are_taken_over_when_it_is_gone(two):
    one, other = two
    one.call("O/a", "start", "t", "note", [], None, 10.0)
    together([other], 15)
    assert len(other.call("O/a", "seen")) == 1
    together([other], 20)
    assert len(other.call("O/a", "seen")) == 3


@pytest.mark.parametrize("fast_reads", [False, True])
def test_also_by_a_server_whose_own_servant_is_outdated(monkeypatch, fast_reads):
    store, clock = SqliteStore("sqlite://", alone=False), ManualClock(START)
    monkeypatch.setattr(Recorder, "clock", clock)
    one, other = House(store, clock), House(store, clock)
    for house in (one, other):
        house.adapter.register(Recorder, "O", Persistent(fast_reads=fast_reads, idle_timeout_s=1e9), None)
        house.settle()
    other.call("O/a", "put", "here first")
    assert other.call("O/a", "when") == {}
    one.call("O/a", "start", "t", "note", [], 10.0)
    together([other], 15)
    assert other.adapter.active == 1
    assert other.call("O/a", "seen")[0] == "here first"
    assert len(other.call("O/a", "seen")) == 2
    store.close()
