"""Changing policies, step by step: a hand-cranked engine, so that every order of events can be had."""

import itertools

import pytest

from objserver import (
    Concurrent,
    PerClient,
    PerRequest,
    Persistent,
    ReadersWriter,
    Reentrant,
    Serial,
    Shared,
    errors,
    expose,
    readonly,
)
from objserver.adapter import Invocation
from objserver.adapter.change import CONVERSIONS, How
from objserver.invocation import in_progress
from objserver.references import DAEMON_ID
from tests.adapter.test_adapter import Caller, House

KINDS = (PerRequest, PerClient, Shared, Persistent)


class Tally:
    events: list = []

    def __init__(self):
        self.seen = []

    def on_activate(self):
        self.events.append("activate")

    def on_passivate(self):
        self.events.append("passivate")

    def close(self):
        self.events.append("close")

    @expose
    def note(self, what):
        self.seen.append(what)
        return list(self.seen)

    @expose
    @readonly
    def look(self):
        return list(self.seen)

    @expose
    async def slow(self, what):
        self.seen.append(what)
        return list(self.seen)

    @expose
    def items(self, count):
        yield from range(count)


class Changing(House):
    """`change` begins a change; `outcomes` are None or errors."""

    def __init__(self, tmp_path, **settings):
        super().__init__(tmp_path, **settings)
        self.outcomes = []

    def change(self, name="T", activation=None, threading=None, merge=None):
        return self.adapter.change_policy(name, activation, threading, merge, self.outcomes.append)

    def changed(self, *args, **options):
        """Begin, and go on until nothing is left to do; the outcome, raised if it is an error."""
        self.change(*args, **options)
        self.settle()
        (outcome,) = self.outcomes
        self.outcomes.clear()
        if outcome is not None:
            raise outcome

    def policies(self, name="T"):
        (found,) = [r for r in self.adapter._registry.all() if r.name == name]
        return found.activation, found.threading


@pytest.fixture
def house(tmp_path):
    house = Changing(tmp_path)
    yield house
    house.store.close()
    house.engine.loop.close()


@pytest.fixture(autouse=True)
def no_events():
    Tally.events.clear()


def join(servants):
    """A new servant that has seen what all have."""
    joined = Tally()
    joined.seen = [what for servant in servants for what in servant.seen]
    return joined


def merge_for(before, after):
    how = CONVERSIONS[before, after]
    return join if how in (How.MERGE, How.MERGE_AND_SAVE) else None


# -- the table -----------------------------------------------------------------------------------------


def test_the_table_has_every_pair():
    assert set(CONVERSIONS) == set(itertools.product(KINDS, KINDS))


STATE_AFTER = {
    (PerRequest, PerRequest): [],
    (PerRequest, PerClient): [],
    (PerRequest, Shared): [],
    (PerRequest, Persistent): [],
    (PerClient, PerRequest): [],
    (PerClient, PerClient): ["a"],
    (PerClient, Shared): ["a", "b"],
    (PerClient, Persistent): ["a", "b"],
    (Shared, PerRequest): [],
    (Shared, Shared): ["a", "b"],
    (Shared, Persistent): ["a", "b"],
    (Persistent, PerRequest): [],
    (Persistent, PerClient): [],
    (Persistent, Shared): ["a", "b"],
    (Persistent, Persistent): ["a", "b"],
}
"""What the first client sees after it noted a, another one b, and the policy was changed."""


@pytest.mark.parametrize("pair", STATE_AFTER, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def test_every_legal_change_is_made_and_keeps_what_it_says(house, pair):
    before, after = pair
    first, second = Caller("first"), Caller("second")
    house.register(Tally, "T", before())
    house.call("T", "note", "a", caller=first)
    house.call("T", "note", "b", caller=second)
    house.changed(activation=after(), merge=merge_for(before, after))
    assert house.call("T", "look", caller=first) == STATE_AFTER[pair]
    assert house.policies() == (after(), Serial())


@pytest.mark.parametrize("pair", STATE_AFTER, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def test_every_legal_change_is_made_where_nothing_was_called(house, pair):
    before, after = pair
    house.register(Tally, "T", before())
    house.changed(activation=after(), merge=merge_for(before, after))
    assert house.call("T", "note", "a") == ["a"]
    assert house.policies() == (after(), Serial())


@pytest.mark.parametrize("pair", STATE_AFTER, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def test_what_waits_meanwhile_is_run_afterwards_in_its_order(house, pair):
    before, after = pair
    callers = [Caller("first"), Caller("second")]
    house.register(Tally, "T", before())
    for caller in callers:
        house.begin("T", "slow", "begun", caller=caller)
    house.engine.run()
    house.begin("T", "note", "waiting", caller=callers[0])
    house.change(activation=after(), merge=merge_for(before, after))
    for number in range(3):
        for caller in callers:
            house.begin("T", "note", number, caller=caller)
    house.engine.run()
    assert house.outcomes == []
    while house.engine.coroutines or house.engine.ready or house.committer.queue:
        house.engine.finish_coroutines()
        house.settle()
    assert house.outcomes == [None]
    replies = [[reply[-1] for reply in caller.take()] for caller in callers]
    expected = [["begun", 0, 1, 2], ["begun", 0, 1, 2]]
    expected[0].insert(1, "waiting")
    if PerRequest in pair:  # no call waits for another, so a slow one may end last
        for values in (*replies, *expected):
            values.sort(key=str)
    assert replies == expected
    assert house.adapter.busy == 0


def test_a_shared_servant_cannot_become_one_for_each_client(house):
    house.register(Tally, "T", Shared())
    with pytest.raises(errors.RegistrationError, match=r"nobody can say which client's"):
        house.change(activation=PerClient())


def test_it_can_by_way_of_per_request_which_says_that_the_state_may_go(house):
    house.register(Tally, "T", Shared())
    house.call("T", "note", "a")
    house.changed(activation=PerRequest())
    house.changed(activation=PerClient())
    assert house.call("T", "note", "b") == ["b"]


# -- what is refused before anything is held -----------------------------------------------------------


@pytest.mark.parametrize("after", [Shared, Persistent])
def test_servants_of_clients_become_one_only_by_a_merge(house, after):
    house.register(Tally, "T", PerClient())
    with pytest.raises(errors.RegistrationError, match="without merge="):
        house.change(activation=after())


def test_a_merge_where_there_is_nothing_to_merge_is_a_mistake(house):
    house.register(Tally, "T", Shared())
    with pytest.raises(errors.RegistrationError, match="nothing to merge"):
        house.change(activation=Persistent(), merge=join)


def test_an_instance_stays_shared(house):
    house.register(Tally(), "T")
    with pytest.raises(errors.RegistrationError, match="an instance cannot be PerRequest"):
        house.change(activation=PerRequest())
    house.changed(threading=Concurrent())
    assert house.policies() == (Shared(), Concurrent())


def test_a_locator_decides_how_long_its_servants_live(house):
    one = Tally()
    house.register(lambda key: one, "T")
    with pytest.raises(errors.RegistrationError, match="served by a locator"):
        house.change(activation=PerClient())
    house.call("T/x", "note", "a")
    house.changed(threading=ReadersWriter())
    assert house.call("T/y", "note", "b") == ["a", "b"]


def test_an_illegal_combination_is_refused_as_at_registration(house):
    house.register(Tally, "T", Shared(), Concurrent())
    with pytest.raises(errors.RegistrationError, match="Persistent with Concurrent"):
        house.change(activation=Persistent())
    with pytest.raises(errors.RegistrationError, match="with parentheses"):
        house.change(activation=PerRequest)
    with pytest.raises(errors.ObjectNotFound):
        house.change("U", activation=PerRequest())
    house.changed(activation=Persistent(), threading=Serial())


def test_only_one_change_at_a_time(house):
    house.register(Tally, "T")
    house.begin("T", "slow", "a")
    house.engine.run()
    house.change(threading=Concurrent())
    with pytest.raises(errors.RegistrationError, match="being changed already"):
        house.change(threading=Reentrant())
    house.engine.finish_coroutines()
    house.settle()
    assert house.policies() == (Shared(), Concurrent())


def test_a_call_of_the_object_cannot_wait_for_its_own_end(house):
    class Own(Tally):
        @expose
        def change(self):
            house.change(threading=Concurrent())

    house.register(Own, "T")
    assert isinstance(house.call("T", "change"), errors.Deadlock)
    house.register(Own, "U")
    token = in_progress.set(Invocation(house.caller, "U", "change"))
    in_progress.get().chain = ("T/a.b 0123",)
    try:
        with pytest.raises(errors.Deadlock, match="waits for its calls to end"):
            house.change(threading=Concurrent())
    finally:
        in_progress.reset(token)


# -- threading -----------------------------------------------------------------------------------------


def test_mailboxes_get_another_order_between_two_calls(house):
    house.register(Tally, "T", Shared(), Serial())
    house.begin("T", "slow", "a")
    house.engine.run()
    house.change(threading=Concurrent())
    house.begin("T", "slow", "b")
    house.begin("T", "slow", "c")
    house.engine.run()
    assert len(house.engine.coroutines) == 1
    house.engine.finish_coroutines()
    house.engine.run()
    assert house.outcomes == [None]
    assert len(house.engine.coroutines) == 2


def test_no_servant_is_made_or_ended_for_it(house):
    house.register(Tally, "T", Persistent(idle_timeout_s=5))
    house.call("T/a", "note", 1)
    house.call("T/b", "note", 2)
    house.changed(activation=Persistent(idle_timeout_s=9), threading=ReadersWriter())
    assert Tally.events == ["activate", "activate"]
    assert house.call("T/a", "note", 3) == [1, 3]
    assert house.policies() == (Persistent(idle_timeout_s=9), ReadersWriter())


def test_open_streams_go_on(house):
    house.register(Tally, "T", Shared(), Serial())
    stream = house.call("T", "items", 3)
    house.changed(threading=Concurrent())
    assert house.call(DAEMON_ID, "get_next_stream_item", stream) == 0


# -- what may enter while it drains --------------------------------------------------------------------


@pytest.mark.parametrize("threading", [Reentrant(), Concurrent(1)])
def test_a_call_that_one_inside_waits_for_enters(house, threading):
    house.register(Tally, "T", Shared(), threading)
    outer = house.begin("T", "slow", "outer")
    house.engine.run()
    house.change(activation=PerRequest(), threading=Serial())
    house.begin("T", "note", "other")
    house.begin("T", "note", "inner", chain=(outer.id,))
    house.engine.run()
    if isinstance(threading, Reentrant):
        assert house.caller.take() == [["inner"]]
    else:  # as without a change: its own chain has all places
        (error,) = house.caller.take()
        assert isinstance(error, errors.Deadlock)
    house.engine.finish_coroutines()
    house.settle()
    assert house.outcomes == [None]
    assert house.caller.take()[-1] == ["other"]


def test_a_call_from_one_object_of_the_name_to_another_enters(house):
    house.register(Tally, "T", Persistent())
    house.call("T/b", "note", 0)
    outer = house.begin("T/a", "slow", "outer")
    house.engine.run()
    house.change(threading=ReadersWriter())
    house.begin("T/b", "note", "other")
    house.begin("T/b", "note", "inner", chain=(outer.id,))
    house.begin("T/c", "note", "new", chain=(outer.id,))
    house.settle()
    assert house.caller.take() == [[0, "inner"], ["new"]]
    house.engine.finish_coroutines()
    house.settle()
    assert house.outcomes == [None]
    assert house.caller.take() == [["outer"], [0, "inner", "other"]]


def test_streams_are_drawn_to_their_end_first(house):
    house.register(Tally, "T", Shared())
    stream = house.call("T", "items", 1)
    house.change(activation=PerRequest())
    house.begin("T", "note", "waiting")
    house.settle()
    assert house.outcomes == []
    assert house.call(DAEMON_ID, "get_next_stream_item", stream) == 0
    house.begin(DAEMON_ID, "get_next_stream_item", stream)
    house.settle()
    end, reply = house.caller.take()
    assert isinstance(end, StopIteration)
    assert reply == ["waiting"]
    assert house.outcomes == [None]


def test_too_many_that_wait_are_refused_as_ever(tmp_path):
    house = Changing(tmp_path, mailbox_size_max=2)
    house.register(Tally, "T", Shared())
    house.begin("T", "slow", "begun")
    house.engine.run()
    house.change(activation=PerRequest())
    for number in range(3):
        house.begin("T", "note", number)
    (error,) = house.caller.take()
    assert isinstance(error, errors.ServerBusy)
    assert "are being changed" in str(error)
    house.engine.finish_coroutines()
    house.settle()
    assert house.caller.take() == [["begun"], [0], [1]]
    house.store.close()


def test_one_that_waits_can_be_cancelled(house):
    house.register(Tally, "T", PerClient())
    house.begin("T", "slow", "begun")
    house.engine.run()
    house.change(activation=Shared(), merge=lambda servants: servants[0])
    house.adapter.cancel(house.begin("T", "note", "no", caller=Caller("new")))
    house.engine.finish_coroutines()
    house.settle()
    assert house.outcomes == [None]
    house.caller.take()
    assert house.call("T", "look") == ["begun"]
    assert house.adapter.active == 1


# -- servants ------------------------------------------------------------------------------------------


def test_those_that_do_not_go_on_end_with_their_hooks(house):
    house.register(Tally, "T", PerClient())
    house.call("T", "note", "a", caller=Caller("first"))
    house.call("T", "note", "b", caller=Caller("second"))
    Tally.events.clear()
    house.changed(activation=Shared(), merge=lambda servants: servants[1])
    assert Tally.events == ["passivate", "close"]
    assert house.call("T", "look") == ["b"]
    assert house.adapter.statistics()["active_by_name"]["T"] == 1


def test_one_that_merge_has_made_is_activated(house):
    house.register(Tally, "T", PerClient())
    house.call("T", "note", "a")
    Tally.events.clear()
    house.changed(activation=Shared(), merge=join)
    assert Tally.events == ["activate", "passivate", "close"]


def test_a_servant_that_goes_on_keeps_its_reference(house):
    house.register(Tally, "T", Shared())
    house.call("T", "note", "a")
    servant = house.adapter.servant_at("T")
    house.changed(activation=Persistent())
    assert house.adapter.reference_id(servant) == "T"
    house.changed(activation=Shared())
    assert house.adapter.servant_at("T") is servant
    assert Tally.events == ["activate"]
    house.changed(activation=PerRequest())
    assert house.adapter.reference_id(servant) is None
    assert Tally.events == ["activate", "passivate", "close"]


@pytest.mark.parametrize(
    "merge", [lambda servants: 1 / 0, lambda servants: None, lambda servants: type("Other", (), {})()]
)
def test_a_merge_that_fails_changes_nothing(house, merge):
    house.register(Tally, "T", PerClient())
    house.call("T", "note", "a")
    house.begin("T", "slow", "b")
    house.engine.run()
    house.change(activation=Shared(), merge=merge)
    house.begin("T", "note", "c")
    house.engine.finish_coroutines()
    house.settle()
    (problem,) = house.outcomes
    assert isinstance(problem, errors.RegistrationError)
    assert "merge failed" in str(problem)
    assert house.caller.take() == [["a", "b"], ["a", "b", "c"]]
    assert house.policies() == (PerClient(), Serial())


# -- the store -----------------------------------------------------------------------------------------


def test_nobody_is_answered_before_the_state_is_saved(house):
    house.register(Tally, "T", Shared())
    house.call("T", "note", "a")
    house.change(activation=Persistent())
    house.begin("T", "look")
    house.engine.run()
    assert (house.outcomes, house.caller.take()) == ([], [])
    house.settle()
    assert house.store.load("T", "") is not None
    assert (house.outcomes, house.caller.take()) == ([None], [["a"]])


def test_what_was_saved_is_loaded_again_and_saved_on(house):
    house.register(Tally, "T", Shared())
    house.call("T", "note", "a")
    house.changed(activation=Persistent(idle_timeout_s=1))
    house.call("T", "note", "b")
    house.clock.advance(1)
    house.adapter.housekeeping(house.clock.monotonic())
    house.clock.advance(2)
    house.adapter.housekeeping(house.clock.monotonic())
    house.settle()
    assert Tally.events == ["activate", "passivate", "close"]
    assert house.call("T", "note", "c") == ["a", "b", "c"]


@pytest.mark.parametrize("before", [Shared, PerClient])
def test_a_save_that_fails_changes_nothing(house, before):
    house.register(Tally, "T", before())
    house.call("T", "note", "a")
    house.change(activation=Persistent(), merge=merge_for(before, Persistent))
    house.begin("T", "note", "b")
    house.engine.run()
    house.committer.fail()
    house.settle()
    (problem,) = house.outcomes
    assert isinstance(problem, errors.StoreError)
    assert house.caller.take() == [["a", "b"]]
    assert house.policies() == (before(), Serial())
    opened, closed = Tally.events.count("activate"), Tally.events.count("close")
    assert opened - closed == 1


def test_a_state_that_is_no_data_changes_nothing(house):
    house.register(Tally, "T", Shared())
    house.call("T", "note", object())
    house.change(activation=Persistent())
    (problem,) = house.outcomes
    assert isinstance(problem, errors.StateError)
    assert house.policies() == (Shared(), Serial())
    assert len(house.call("T", "look")) == 1


def test_a_state_that_the_store_has_from_before_is_not_replaced(house):
    house.register(Tally, "T", Persistent())
    house.call("T", "note", "old")
    house.adapter.unregister("T")
    house.settle()
    house.register(Tally, "T", Shared())
    house.call("T", "note", "new")
    with pytest.raises(errors.RegistrationError, match="the store has another state"):
        house.changed(activation=Persistent())
    assert house.call("T", "look") == ["new"]


def test_a_state_that_went_on_in_memory_is_replaced(house):
    house.register(Tally, "T", Persistent())
    house.call("T", "note", 1)
    for number in (2, 3):
        house.changed(activation=Shared())
        house.call("T", "note", number)
        house.changed(activation=Persistent())
    assert house.call("T", "look") == [1, 2, 3]


def test_a_stored_object_that_is_not_active_goes_on(house):
    house.register(Tally, "T", Persistent())
    house.call("T", "note", 1)
    house.adapter.end_all()
    house.settle()
    assert "close" in Tally.events
    house.changed(activation=Shared())
    assert house.call("T", "note", 2) == [1, 2]


@pytest.mark.parametrize("after", [PerRequest, PerClient, Shared])
@pytest.mark.parametrize("active", [True, False])
def test_objects_with_keys_stay_persistent(house, after, active):
    house.register(Tally, "T", Persistent())
    house.call("T/alice", *(("look",) if active else ("note", 1)))
    if not active:
        house.adapter.end_all()
        house.settle()
    with pytest.raises(errors.RegistrationError, match="such as 'alice'"):
        house.changed(activation=after())
    assert house.call("T/alice", "look") == ([] if active else [1])


def test_what_passivation_changes_is_still_saved(house):
    class Last(Tally):
        def on_passivate(self):
            self.seen.append("last")

    house.register(Last, "T", Persistent())
    house.call("T", "note", 1)
    house.changed(activation=PerClient())
    assert house.call("T", "look") == []
    house.adapter.unregister("T")
    house.register(Last, "T", Persistent())
    assert house.call("T", "look") == [1, "last"]


def test_a_passivation_that_cannot_be_saved_leaves_the_object_as_it_was(house):
    class Last(Tally):
        def on_passivate(self):
            self.seen.append("last")

    house.register(Last, "T", Persistent())
    house.call("T", "note", 1)
    house.change(activation=PerClient())
    house.begin("T", "look")
    house.engine.run()
    house.committer.fail()
    house.settle()
    assert isinstance(house.outcomes[0], errors.StoreError)
    assert house.caller.take() == [[1]]


def test_a_stored_state_that_cannot_be_read_changes_nothing(house):
    house.register(Tally, "T", Persistent())
    house.call("T", "note", 1)
    house.adapter.end_all()
    house.settle()
    Tally.__setstate__ = lambda self, state: 1 / 0
    try:
        with pytest.raises(errors.StateError, match="division by zero"):
            house.changed(activation=Shared())
    finally:
        del Tally.__setstate__
    assert house.call("T", "look") == [1]


# -- giving up -----------------------------------------------------------------------------------------


def test_what_does_not_come_to_rest_is_let_go(house):
    house.register(Tally, "T", Shared())
    house.begin("T", "slow", "a")
    house.engine.run()
    change = house.change(activation=PerRequest())
    house.begin("T", "note", "b")
    house.begin("T", "note", "c")
    assert change.give_up()
    (problem,) = house.outcomes
    assert isinstance(problem, errors.RegistrationError)
    assert "T.slow still running" in str(problem)
    house.engine.finish_coroutines()
    house.settle()
    assert house.caller.take() == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert not change.give_up()
    house.outcomes.clear()
    house.changed(activation=PerRequest())


def test_streams_that_nobody_draws_are_named(house):
    house.register(Tally, "T", Shared())
    stream = house.call("T", "items", 1)
    change = house.change(activation=PerRequest())
    assert change.give_up()
    assert "no call running, 1 item streams open" in str(house.outcomes[0])
    assert house.call(DAEMON_ID, "get_next_stream_item", stream) == 0


def test_a_change_that_is_made_cannot_be_given_up(house):
    house.register(Tally, "T", Shared())
    change = house.change(activation=PerRequest())
    assert house.outcomes == [None]
    assert not change.give_up()


@pytest.mark.parametrize("activation", [PerRequest(), Shared()])
def test_what_is_unregistered_meanwhile_ends(house, activation):
    house.register(Tally, "T", Shared())
    house.begin("T", "slow", "a")
    house.engine.run()
    house.change(activation=activation, threading=Concurrent())
    house.begin("T", "note", "b")
    house.adapter.unregister("T")
    house.engine.finish_coroutines()
    house.settle()
    (problem,) = house.outcomes
    assert "unregistered meanwhile" in str(problem)
    assert house.caller.take() == [["a"], ["a", "b"]]
    assert Tally.events == ["activate", "passivate", "close"]
    assert isinstance(house.call("T", "look"), errors.ObjectNotFound)


def test_a_session_that_ends_meanwhile_has_no_servant_afterwards(house):
    house.register(Tally, "T", PerClient())
    house.begin("T", "slow", "a")
    house.engine.run()
    house.change(threading=Concurrent())
    house.adapter.end_session("s")
    house.engine.finish_coroutines()
    house.settle()
    assert house.adapter.statistics()["active_by_name"]["T"] == 0
    assert house.caller.take() == [["a"]]
    assert house.call("T", "look") == []
