"""The object adapter alone: a hand-cranked engine, a caller that notes its replies, a store that waits.

Nothing here has a thread or a socket (but for the coroutines' loop), so every order of events can be had.
"""

import asyncio
import collections
import contextvars

import Pyro5.api
import pytest

from objserver import (
    Concurrent,
    PerClient,
    PerRequest,
    Persistent,
    ReadersWriter,
    Reentrant,
    Serial,
    ServerSettings,
    Shared,
    current,
    errors,
    expose,
    oneway,
    readonly,
)
from objserver.adapter import DaemonObject, Invocation, ObjectAdapter
from objserver.codecs import Codecs
from objserver.invocation import in_progress
from objserver.references import DAEMON_ID
from objserver.storage import open_store
from objserver.testing.clock import ManualClock


class Engine:
    """Runs what was submitted when told to."""

    def __init__(self):
        self.ready = collections.deque()
        self.coroutines = []
        self.loop = asyncio.new_event_loop()

    def submit(self, work):
        self.ready.append(work)

    def run(self):
        while self.ready:
            self.ready.popleft()()

    def run_coroutine(self, coroutine, done, timeout_s=None):
        entry = coroutine, done, contextvars.copy_context()
        self.coroutines.append(entry)

        def cancel():
            self.coroutines.remove(entry)
            coroutine.close()
            done(None, asyncio.CancelledError())

        return cancel

    def finish_coroutines(self):
        while self.coroutines:
            coroutine, done, context = self.coroutines.pop(0)
            try:
                value, error = context.run(self.loop.run_until_complete, coroutine), None
            except BaseException as problem:
                value, error = None, problem
            done(value, error)


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

    def commit(self):
        for change, done in self.take():
            accepted = self.store.commit([change])
            done(None if accepted else errors.StoreError("conflict"))

    def fail(self):
        for _, done in self.take():
            done(errors.StoreError("the disk is full"))

    def take(self):
        taken, self.queue = self.queue, []
        return taken


class Caller:
    """Notes every reply, as (method, value or exception)."""

    address = None
    session_is_connection = False
    closed = False

    def __init__(self, session="s", clock=None):
        self.link = self
        self.session = session
        self.now = clock.monotonic if clock else lambda: 0.0
        self.replies = []
        self.broken = False

    def about_to_block(self, location=None):
        pass

    def no_longer_blocked(self):
        pass

    def encode_result(self, invocation, value):
        if self.broken:
            raise errors.SerializeError("cannot encode")
        return invocation.method, value

    def encode_error(self, invocation, error):
        return invocation.method, error

    def encode_stream(self, invocation, stream_id):
        return invocation.method, stream_id

    def pyro5_context(self, invocation):
        return {"annotations": {"CRED": b"secret"}, "response_annotations": {}}

    def send(self, reply):
        self.replies.append(reply)

    def take(self):
        taken, self.replies = self.replies, []
        return [value for _, value in taken]


class House:
    """An adapter and all that is around it."""

    def __init__(self, tmp_path, **settings):
        self.engine, self.clock = Engine(), ManualClock()
        self.caller = Caller(clock=self.clock)
        self.store = open_store(f"sqlite:///{tmp_path}/store.db")
        self.committer = Committer(self.store)
        self.adapter = ObjectAdapter(
            codecs=Codecs(ServerSettings().limits),
            engine=self.engine,
            settings=ServerSettings(**settings),
            clock=self.clock,
            store=self.store,
            committer=self.committer,
        )
        self.adapter.register(DaemonObject(self.adapter, str), DAEMON_ID, Shared(), Concurrent())

    def register(self, thing, name, activation=None, threading=None):
        self.adapter.register(thing, name, activation, threading)

    def begin(self, object_id, method, *args, caller=None, chain=(), oneway=False):
        """Admit an invocation; it runs when the engine does."""
        invocation = Invocation(caller or self.caller, object_id, method, args)
        invocation.chain, invocation.oneway = chain, oneway
        if self.adapter.admit(invocation):
            self.engine.submit(lambda: self.adapter.run(invocation))
        return invocation

    def call(self, object_id, method, *args, **options):
        """Begin, run, commit; the one reply."""
        self.begin(object_id, method, *args, **options)
        self.settle()
        (value,) = (options.get("caller") or self.caller).take()
        return value

    def settle(self):
        while self.engine.ready or self.committer.queue:
            self.engine.run()
            self.committer.commit()


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.store.close()
    house.engine.loop.close()


@pytest.fixture(autouse=True)
def no_events():
    Counter.events.clear()


class Counter:
    events: list = []

    def __init__(self):
        self.n = 0

    def on_activate(self):
        self.events.append("activate")

    def on_passivate(self):
        self.events.append("passivate")

    def close(self):
        self.events.append("close")

    @expose
    def add(self, amount=1):
        self.n += amount
        return self.n

    @expose
    @readonly
    def value(self):
        return self.n

    @expose
    def during(self, action):
        """Does something in the middle of a call."""
        self.n += 1
        return action()

    @expose
    @oneway
    def tell(self, amount):
        self.n += amount

    @expose
    def count(self, upto):
        try:
            yield from range(upto)
        finally:
            self.events.append("generator closed")


# -- the output gate -----------------------------------------------------------------------------------


def test_no_reply_leaves_before_its_state_is_stored(house):
    house.register(Counter, "C", Persistent())
    house.begin("C/a", "add", 5)
    house.engine.run()
    assert house.caller.take() == []
    assert house.store.load("C", "a") is None
    house.committer.commit()
    assert house.caller.take() == [5]


def test_the_next_commit_does_not_wait_until_those_of_the_last_are_told(house):
    house.register(Counter, "C", Persistent())
    house.begin("C/a", "add", 5)
    house.begin("C/b", "add", 6)
    house.engine.run()
    change, done = house.committer.queue.pop(0)
    house.store.commit([change])
    done(None)
    assert house.caller.take() == []  # another commit is due
    house.engine.run()
    assert house.caller.take() == [5]


def test_a_call_that_changed_nothing_is_not_saved(house):
    house.register(Counter, "C", Persistent())
    house.call("C/a", "add", 5)
    house.begin("C/a", "value")
    house.begin("C/a", "add", 0)
    house.engine.run()
    assert house.committer.queue == []
    assert house.caller.take() == [5, 5]


def test_what_could_not_be_stored_is_not_in_memory_either(house):
    house.register(Counter, "C", Persistent())
    house.call("C/a", "add", 5)
    house.begin("C/a", "add", 1)
    house.engine.run()
    house.committer.fail()
    house.engine.run()
    (error,) = house.caller.take()
    assert isinstance(error, errors.StoreError)
    assert house.call("C/a", "value") == 5


def test_calls_that_wait_for_a_save_run_after_it(house):
    house.register(Counter, "C", Persistent())
    house.begin("C/a", "add")
    house.begin("C/a", "add")
    house.settle()
    assert house.caller.take() == [1, 2]


# -- Persistent and Reentrant --------------------------------------------------------------------------


def test_an_inner_call_of_the_same_object_is_saved_with_the_outer(house):
    house.register(Counter, "C", Persistent(), Reentrant())
    inner = []

    def call_back():
        inner.append(house.begin("C/a", "add", 10, chain=(outer.id,)))
        house.engine.run()
        return house.caller.take()

    outer = Invocation(house.caller, "C/a", "during", (call_back,))
    assert house.adapter.admit(outer)
    house.adapter.run(outer)
    assert len(house.committer.queue) == 1
    house.settle()
    assert house.caller.take() == [[11]]
    assert house.call("C/a", "value") == 11


def test_a_failed_save_never_lets_another_call_answer_as_if_it_were_stored(house):
    house.register(Counter, "C", Persistent(), Reentrant())
    house.call("C/a", "add")

    def lose():
        # A call that nobody inside waits for, although it names this one: its save fails.
        (activation,) = house.adapter._active.all()
        house.adapter.discard(activation)
        return "done"

    house.begin("C/a", "during", lose)
    house.settle()
    (error,) = house.caller.take()
    assert isinstance(error, errors.StoreError)
    assert house.call("C/a", "value") == 1


def test_an_inner_change_of_a_readonly_call_is_saved_by_itself(house):
    class Looking(Counter):
        @expose
        @readonly
        def look(self, action):
            return action()

    house.register(Looking, "C", Persistent(), Reentrant())

    def change():
        house.begin("C/a", "add", 10, chain=(outer.id,))
        house.settle()
        return house.caller.take()

    outer = Invocation(house.caller, "C/a", "look", (change,))
    assert house.adapter.admit(outer)
    house.adapter.run(outer)
    assert house.caller.take() == [[10]]
    assert house.store.load("C", "a").version == 1


def test_one_save_at_a_time(house):
    """A second change that ends while the first is being saved waits for it, and knows its version."""
    house.register(Counter, "C", Persistent(), Reentrant())

    def leave_one_behind():
        behind.append(house.begin("C/a", "tell", 10, chain=(outer.id,), oneway=True))
        return "left"

    behind = []
    outer = Invocation(house.caller, "C/a", "during", (leave_one_behind,))
    assert house.adapter.admit(outer)
    house.adapter.run(outer)
    house.engine.run()
    assert len(house.committer.queue) == 1
    house.settle()
    assert house.caller.take() == ["left"]
    assert house.call("C/a", "value") == 11


# -- nothing wedges an object --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["stateless", "odd"])
def test_an_object_stays_usable_when_a_call_cannot_be_settled(house, method):
    class Odd(Counter):
        def __getstate__(self):
            if self.n == 99:
                raise SystemExit("no state")
            return {"n": self.n}

        @expose
        def stateless(self):
            self.n = 99

        @expose
        def odd(self):
            house.caller.broken = True
            return object()

    house.register(Odd, "C", Persistent())
    assert isinstance(house.call("C/a", method), BaseException)
    house.caller.broken = False
    assert house.call("C/a", "add") == 1


def test_ending_needs_no_room_in_the_mailbox(tmp_path):
    house = House(tmp_path, mailbox_size_max=1)
    house.register(Counter, "C", Shared())

    def fill_and_end():
        house.begin("C", "add")
        house.begin("C", "add")
        house.adapter.unregister("C")
        return "first"

    house.begin("C", "during", fill_and_end)
    house.settle()
    full, first, second = house.caller.take()
    assert isinstance(full, errors.ServerBusy)
    assert (first, second) == ("first", 2)
    assert Counter.events[-1] == "close"
    assert house.adapter.active == 0
    house.store.close()


def test_a_coroutine_that_cannot_be_started_is_an_error_of_its_call(house):
    class Slow:
        @expose
        async def work(self):
            return 1

        @expose
        def ping(self):
            return "pong"

    house.register(Slow, "S")
    house.engine.run_coroutine = lambda coroutine, done, timeout_s: (_ for _ in ()).throw(
        OSError("no descriptors")
    )
    assert "no descriptors" in str(house.call("S", "work"))
    assert house.call("S", "ping") == "pong"


# -- coroutines ----------------------------------------------------------------------------------------


def test_current_is_the_call_inside_a_coroutine(house):
    class Slow:
        @expose
        async def who(self):
            await asyncio.sleep(0)
            return current.object_id, current.method

    house.register(Slow, "S")
    house.begin("S", "who")
    house.engine.run()
    house.engine.finish_coroutines()
    assert house.caller.take() == [("S", "who")]


def test_a_servant_is_not_closed_on_the_event_loop(house):
    class Slow(Counter):
        @expose
        async def work(self):
            return 1

    house.register(Slow, "S", PerRequest())
    house.begin("S", "work")
    house.engine.run()
    house.engine.finish_coroutines()
    assert "close" not in Counter.events
    house.engine.run()
    assert house.caller.take() == [1]
    assert Counter.events[-1] == "close"


def test_a_servant_is_not_closed_by_the_committer(house):
    class Last(Counter):
        def on_passivate(self):
            self.n += 100

    house.register(Last, "C", Persistent())
    house.call("C/a", "add")
    house.adapter.end_all()
    house.engine.run()
    house.committer.commit()
    assert "close" not in Counter.events
    house.engine.run()
    assert Counter.events[-1] == "close"
    assert house.call("C/a", "value") == 101


# -- waiting for oneself -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Serial(), ReadersWriter(), Concurrent(1)])
def test_a_call_that_waits_for_itself_is_named_with_its_cycle(house, policy):
    house.register(Counter, "C", Shared(), policy)
    house.register(Counter, "D", Shared())

    def call_back():
        house.begin("C", "add", chain=(outer.id, "D.add 123"))
        return house.caller.take()

    outer = Invocation(house.caller, "C", "during", (call_back,))
    assert house.adapter.admit(outer)
    house.adapter.run(outer)
    ((error,),) = house.caller.take()
    assert isinstance(error, errors.Deadlock)
    assert error.cycle == ("C.during", "D.add", "C.add")
    assert "C.during -> D.add -> C.add" in str(error)


@pytest.mark.parametrize("policy", [Serial(), Reentrant(), ReadersWriter()])
def test_a_oneway_to_oneself_waits_its_turn(house, policy):
    house.register(Counter, "C", Shared(), policy)

    def call_back():
        house.begin("C", "tell", 10, chain=(outer.id,), oneway=True)
        house.engine.run()
        return "first"

    outer = Invocation(house.caller, "C", "during", (call_back,))
    assert house.adapter.admit(outer)
    house.adapter.run(outer)
    house.settle()
    assert house.caller.take() == ["first"]
    assert house.call("C", "value") == 11


# -- deadlines -----------------------------------------------------------------------------------------


def test_a_call_whose_time_is_up_is_not_begun(house):
    house.register(Counter, "C", Shared())

    def keep_another_waiting():
        waiting = Invocation(house.caller, "C", "add")
        waiting.deadline = house.clock.monotonic() + 5
        assert not house.adapter.admit(waiting)
        house.clock.advance(6)
        return "late"

    house.begin("C", "during", keep_another_waiting)
    house.settle()
    late, error = house.caller.take()
    assert late == "late"
    assert isinstance(error, errors.DeadlineExceeded)
    assert "C.add was not begun" in str(error)
    assert house.call("C", "value") == 1


def test_a_servant_knows_how_much_time_is_left(house):
    house.register(Counter, "C", Shared())

    def look():
        seen = [current.remaining_s]
        house.clock.advance(2)
        seen.append(current.remaining_s)
        house.clock.advance(10)
        return [*seen, current.remaining_s]

    timed = Invocation(house.caller, "C", "during", (look,))
    timed.deadline = house.clock.monotonic() + 5
    assert house.adapter.admit(timed)
    house.adapter.run(timed)
    assert house.caller.take() == [[5, 3, 0]]
    assert house.call("C", "during", lambda: current.remaining_s) is None


# -- names, keys and sessions --------------------------------------------------------------------------


def test_a_name_is_free_at_once_when_it_is_given_up(house):
    class Other:
        @expose
        def add(self):
            return "other"

    house.register(Counter, "C", Shared())

    def replace():
        house.adapter.unregister("C")
        house.register(Other, "C", Shared())
        house.begin("C", "add")
        return "old"

    house.begin("C", "during", replace)
    house.settle()
    assert sorted(house.caller.take()) == ["old", "other"]
    assert Counter.events[-1] == "close"


def test_two_spellings_of_a_key_are_one_object(house):
    house.register(Counter, "C", Persistent())
    assert [house.call("C/a%20b", "add"), house.call("C/a b", "add")] == [1, 2]
    house.register(lambda key: servants.setdefault(key, Counter()), "Located", Shared())
    servants = {}
    house.call("Located/x%20y", "add")
    assert list(servants) == ["x y"]


def test_an_instance_with_two_names_is_known_until_it_has_none(house):
    servant = Counter()
    house.register(servant, "A")
    house.register(servant, "B")
    house.adapter.unregister("B")
    assert house.adapter.reference_id(servant) == "A"
    house.adapter.unregister("A")
    assert house.adapter.reference_id(servant) is None


def test_the_least_recently_used_goes_first(house):
    house.register(Counter, "C", Persistent(capacity=3))
    for key in "abc":
        house.call(f"C/{key}", "add")
    house.call("C/a", "value")
    house.call("C/d", "add")
    house.settle()
    assert {a.key for a in house.adapter._active.all()} == {"a", "c", "d"}


def test_a_session_without_calls_ends_after_its_idle_time(house):
    house.register(Counter, "C", PerClient(idle_timeout_s=10))
    assert house.call("C", "add") == 1
    house.adapter.housekeeping(house.clock.monotonic())
    house.clock.advance(9)
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert house.call("C", "add") == 2
    house.adapter.housekeeping(house.clock.monotonic())
    house.clock.advance(11)
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert house.call("C", "add") == 1


def test_too_many_active_objects_are_refused(tmp_path):
    house = House(tmp_path, active_objects_max=2)
    house.register(Counter, "C", Persistent())
    house.call("C/a", "add")
    house.call("C/b", "add")
    assert isinstance(house.call("C/c", "add"), errors.ServerBusy)
    house.store.close()


# -- locators and hooks --------------------------------------------------------------------------------


def test_asking_what_a_locator_offers_leaves_no_servant_behind(house):
    house.register(lambda key: Counter(), "L", Persistent())
    assert "add" in house.adapter.metadata("L/a")["methods"]
    assert "add" in house.adapter.metadata("L/b")["methods"]
    assert Counter.events == ["close"]


def test_a_locator_is_not_asked_while_a_request_is_admitted(house):
    asked = []
    servant = Counter()
    house.register(lambda key: asked.append(key) or servant, "L", Shared())
    house.begin("L/a", "during", lambda: house.adapter.reference_id(servant))
    assert asked == []
    house.settle()
    assert (asked, house.caller.take()) == (["a"], ["L/a"])


def test_any_callable_is_a_locator(house):
    class Finder:
        def __call__(self, key):
            return Counter()

    house.register(Finder(), "L", Persistent())
    assert house.call("L/a", "add") == 1


def test_a_servant_that_fails_to_wake_up_is_closed(house):
    class Broken(Counter):
        def on_activate(self):
            raise OSError("no device")

    house.register(Broken, "B", Shared())
    assert "no device" in str(house.call("B", "add"))
    assert Counter.events == ["close"]


# -- streams -------------------------------------------------------------------------------------------


def test_an_open_stream_keeps_its_servant_however_long_nobody_calls(house):
    house.register(Counter, "C", PerClient(idle_timeout_s=10))
    stream_id = house.call("C", "count", 3)
    for _ in range(3):
        house.adapter.housekeeping(house.clock.monotonic())
        house.clock.advance(20)
    house.settle()
    assert "close" not in Counter.events
    house.adapter.streams.close(stream_id)
    house.settle()
    assert Counter.events == ["activate"]
    assert house.call("C", "add") == 1
    assert "close" not in Counter.events


def draw(house, stream_id, caller=None):
    return house.call("Pyro.Daemon", "get_next_stream_item", stream_id, caller=caller)


def test_a_generator_is_closed_in_its_turn(house):
    house.register(Counter, "C", Shared())
    stream_id = house.call("C", "count", 3)
    assert draw(house, stream_id) == 0

    def close():
        house.adapter.streams.close(stream_id)
        house.engine.run()
        return list(Counter.events)

    assert "generator closed" not in house.call("C", "during", close)
    house.settle()
    assert Counter.events[-1] == "generator closed"


def test_a_per_request_servant_lives_as_long_as_its_stream(house):
    house.register(Counter, "C", PerRequest())
    stream_id = house.call("C", "count", 1)
    assert "close" not in Counter.events
    assert draw(house, stream_id) == 0
    assert isinstance(draw(house, stream_id), StopIteration)
    assert Counter.events[-1] == "close"
    assert house.adapter.active == 1  # the daemon


def test_a_stream_survives_the_other_connections_of_its_session(house):
    house.register(Counter, "C", Shared())
    one, other = Caller("same"), Caller("same")
    stream_id = house.call("C", "count", 3, caller=one)
    house.adapter.disconnected(other)
    house.clock.advance(1000)
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert draw(house, stream_id, caller=one) == 0
    house.adapter.disconnected(one)
    house.clock.advance(1000)
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert isinstance(draw(house, stream_id, caller=other), errors.ObjectNotFound)


def test_streams_are_shared_out(tmp_path):
    house = House(tmp_path, streams_max=3, streams_per_session_max=2, stream_lifetime_s=50)
    house.register(Counter, "C", Shared())
    one, two = Caller("one"), Caller("two")
    assert isinstance(house.call("C", "count", 3, caller=one), str)
    assert isinstance(house.call("C", "count", 3, caller=one), str)
    assert "streams_per_session_max" in str(house.call("C", "count", 3, caller=one))
    assert isinstance(house.call("C", "count", 3, caller=two), str)
    assert "streams_max" in str(house.call("C", "count", 3, caller=two))
    house.clock.advance(51)
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert len(house.adapter.streams.table) == 0
    house.store.close()


class Ticker:
    def __init__(self):
        self.ended = []

    @expose
    async def ticks(self, n):
        try:
            for i in range(n):
                yield i
        finally:
            self.ended.append(current.cancelled)

    @expose
    def count(self, n):
        yield from range(n)


@pytest.mark.parametrize("threading", [Serial(), Concurrent()])
def test_items_of_an_async_generator_come_in_order(house, threading):
    house.register(Ticker, "T", Shared(), threading)
    stream_id = house.call("T", "ticks", 3)
    caller = Caller()
    for _ in range(4):
        house.begin("Pyro.Daemon", "get_next_stream_item", stream_id, caller=caller)
    while house.engine.ready or house.engine.coroutines:
        house.engine.run()
        house.engine.finish_coroutines()
    values = [value for _, value in caller.replies]
    assert values[:3] == [0, 1, 2]
    assert isinstance(values[3], StopIteration)
    assert len(house.adapter.streams.table) == 0


def test_an_async_generator_is_closed_after_the_item_that_is_being_drawn(house):
    ticker = Ticker()
    house.register(ticker, "T", Shared(), Concurrent())
    stream_id = house.call("T", "ticks", 3)
    caller = Caller()
    for _ in range(3):
        house.begin("Pyro.Daemon", "get_next_stream_item", stream_id, caller=caller)
    house.engine.run()
    assert len(house.engine.coroutines) == 1
    house.adapter.streams.close(stream_id)
    while house.engine.ready or house.engine.coroutines:
        house.engine.run()
        house.engine.finish_coroutines()
    assert [type(value) for _, value in caller.replies] == [
        errors.ObjectNotFound, errors.ObjectNotFound, errors.Cancelled
    ]  # fmt: skip
    assert house.adapter.busy == 0


def test_items_are_asked_for_ahead_within_bounds(house):
    house.register(Ticker, "T", Shared())
    stream_id = house.call("T", "ticks", 3)
    caller = Caller()
    for _ in range(66):
        house.begin("Pyro.Daemon", "get_next_stream_item", stream_id, caller=caller)
    assert ["already asked for" in str(value) for _, value in caller.replies] == [True]


def test_a_draw_that_comes_too_late_takes_no_item(house):
    house.register(Ticker, "T", Shared())
    stream_id = house.call("T", "count", 3)
    caller = Caller(clock=house.clock)
    late = Invocation(caller, "Pyro.Daemon", "get_next_stream_item", (stream_id,))
    late.deadline = house.clock.monotonic() - 1
    assert house.adapter.admit(late)
    house.adapter.run(late)
    assert isinstance(caller.replies[0][1], errors.DeadlineExceeded)
    assert draw(house, stream_id) == 0


# -- cancellation --------------------------------------------------------------------------------------


def test_an_invocation_that_waits_is_cancelled_before_it_begins(house):
    house.register(Counter, "C", Shared())
    caller = Caller()

    def inside():
        second = Invocation(caller, "C", "add")
        third = Invocation(caller, "C", "add")
        assert not house.adapter.admit(second)
        assert not house.adapter.admit(third)
        house.adapter.cancel(second)
        house.adapter.cancel(second)

    house.call("C", "during", inside)
    house.settle()
    assert [type(value) for _, value in caller.replies] == [errors.Cancelled, int]
    assert caller.replies[1][1] == 2
    assert house.adapter.busy == 0


def test_an_invocation_that_was_admitted_but_not_begun_is_not_begun(house):
    house.register(Counter, "C", Shared())
    assert house.call("C", "add") == 1
    caller = Caller()
    invocation = Invocation(caller, "C", "add")
    assert house.adapter.admit(invocation)
    house.adapter.cancel(invocation)
    house.adapter.run(invocation)
    assert "before it began" in str(caller.replies[0][1])
    assert house.call("C", "add") == 2


def test_a_running_servant_is_told_that_it_is_cancelled(house):
    house.register(Counter, "C", Shared())
    caller, seen, told = Caller(), [], []
    invocation = Invocation(caller, "C", "during")

    def inside():
        in_progress.get().when_cancelled(lambda: told.append("before"))
        forgotten = lambda: told.append("forgotten")  # noqa: E731
        in_progress.get().when_cancelled(forgotten)
        in_progress.get().forget(forgotten)
        seen.append(current.cancelled)
        house.adapter.cancel(invocation)
        in_progress.get().when_cancelled(lambda: told.append("after"))
        seen.append(current.cancelled)

    invocation.args = (inside,)
    assert house.adapter.admit(invocation)
    house.adapter.run(invocation)
    assert seen == [False, True]
    assert told == ["before", "after"]


def test_who_went_away_has_cancelled_except_what_is_oneway(house):
    house.register(Counter, "C", Shared())
    caller, seen = Caller(), []
    caller.closed = True
    house.call("C", "during", lambda: seen.append(current.cancelled), caller=caller)
    invocation = Invocation(caller, "C", "during", (lambda: seen.append(current.cancelled),))
    invocation.oneway = True
    house.adapter.admit(invocation)
    house.adapter.run(invocation)
    assert seen == [True, False]


def test_a_coroutine_is_cancelled_and_its_object_is_free_again(house):
    class Sleeper:
        @expose
        async def sleep(self):
            await asyncio.sleep(1000)

        @expose
        def awake(self):
            return True

    house.register(Sleeper, "S", Shared())
    caller = Caller()
    invocation = Invocation(caller, "S", "sleep")
    assert house.adapter.admit(invocation)
    house.adapter.run(invocation)
    house.adapter.cancel(invocation)
    assert isinstance(caller.replies[0][1], errors.Cancelled)
    assert house.call("S", "awake") is True


def test_who_stops_because_the_time_is_up_says_what_the_caller_sees_anyway(house):
    class Careful:
        @expose
        def work(self):
            house.clock.advance(5)
            raise errors.Cancelled("stopped half-way") if current.cancelled else AssertionError

    house.register(Careful, "C", Shared())
    caller = Caller(clock=house.clock)
    invocation = Invocation(caller, "C", "work")
    invocation.deadline = house.clock.monotonic() + 5
    assert house.adapter.admit(invocation)
    house.adapter.run(invocation)
    ((_, error),) = caller.replies
    assert isinstance(error, errors.CallTimeout)
    assert str(error) == "its time was up while it ran: stopped half-way"


# -- Pyro5's context -----------------------------------------------------------------------------------


def test_the_context_of_a_call_is_not_left_for_the_next(house):
    class Old:
        @Pyro5.api.expose
        def look(self):
            return bytes(Pyro5.api.current_context.annotations["CRED"])

    house.register(Old, "Old", Shared())
    before = dict(Pyro5.api.current_context.__dict__)
    assert house.call("Old", "look") == b"secret"
    assert Pyro5.api.current_context.__dict__ == before
