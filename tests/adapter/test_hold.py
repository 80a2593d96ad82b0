"""A hold, decision by decision."""

import types

import pytest

from objserver import Concurrent, Serial, errors
from objserver.adapter import Invocation
from objserver.adapter.activation import EMPTY
from objserver.adapter.calling import NOBODY
from objserver.adapter.hold import HeldMailbox, Hold, leads_through
from objserver.adapter.mailbox import Mailbox


class Lock:
    def __enter__(self):
        pass

    def __exit__(self, *exc):
        pass


def activation(policy, *begun, waiting=()):
    """What a hold sees of one, with a servant, and with invocations that have begun or wait."""
    mailbox = Mailbox(policy, 10)
    mailbox.open = True
    mailbox.running += begun
    mailbox.waiting += waiting
    registration = types.SimpleNamespace(gate=None, transient=False)
    return types.SimpleNamespace(
        gate=None,
        mailbox=mailbox,
        lock=Lock(),
        ended=False,
        streams=0,
        servant=object(),
        registration=registration,
    )


def invocation(**facts):
    made = Invocation(NOBODY, "T", "method")
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def rests():
    return []


@pytest.fixture
def hold(rests):
    return Hold("T", lambda: rests.append(True))


def test_a_chain_leads_through_a_name_or_its_keys():
    assert leads_through(("A.f 0", "T.g.h 1"), "T") is False
    assert leads_through(("A.f 0", "T.g 1"), "T")
    assert leads_through(("T/a.b/c.g 1",), "T")
    assert not leads_through(("Tea.g 1", "Tea/T.g 2"), "T")
    assert not leads_through((), "T")


def test_nothing_that_comes_is_run(hold):
    one = activation(Concurrent())
    hold.take(one)
    assert not one.mailbox.offer(invocation())
    assert len(one.mailbox.waiting) == 1
    assert not one.mailbox.idle


def test_an_empty_held_mailbox_tells_the_short_ways_that_they_are_none(hold):
    one = activation(Serial())
    hold.take(one)
    assert one.mailbox.waiting
    assert one.mailbox.idle


def test_it_rests_when_the_last_has_left(hold, rests):
    runs, other = invocation(), invocation()
    first, second = activation(Serial(), runs), activation(Serial(), other)
    hold.take(first), hold.take(second)
    assert not hold.all_taken()
    assert first.mailbox.leave(runs) == []
    assert not hold.close(streams=True)
    second.mailbox.leave(other)
    assert rests == [True]
    assert hold.close(streams=True)


def test_what_entered_meanwhile_is_waited_for(hold):
    runs = invocation()
    one, rested = activation(Serial(), runs), activation(Serial())
    hold.take(one), hold.take(rested)
    hold.all_taken()
    inner = invocation(chain=("T.method 0",))
    assert rested.mailbox.offer(inner)
    one.mailbox.leave(runs)
    assert not hold.close(streams=True)
    rested.mailbox.leave(inner)
    assert hold.close(streams=True)


def test_once_closed_nothing_enters(hold):
    one = activation(Serial())
    hold.take(one)
    assert hold.all_taken()
    assert hold.close(streams=True)
    assert not one.mailbox.offer(invocation(chain=("T.method 0",)))
    assert not hold.give_up()


@pytest.mark.parametrize("allowed", [True, False])
def test_open_streams_keep_it_from_closing_unless_they_may_stay(hold, allowed):
    one = activation(Serial())
    one.streams = 1
    hold.take(one)
    hold.all_taken()
    assert hold.close(streams=allowed) is allowed


def test_draws_enter_and_oneway_calls_do_not(hold):
    runs = invocation()
    one = activation(Concurrent(), runs)
    hold.take(one)
    assert one.mailbox.offer(invocation(work=print))
    assert not one.mailbox.offer(invocation(chain=("T.method 0",), oneway=True))


def test_letting_go_gives_back_what_waited_in_order(hold):
    runs, before, after = invocation(), invocation(), invocation()
    one = activation(Serial(), runs, waiting=[before])
    hold.take(one)
    one.mailbox.offer(after)
    assert hold.give_up()
    starting, ended = hold.let_go(Concurrent(2))
    assert (starting, ended) == ([before], [])
    assert type(one.mailbox) is Mailbox
    assert list(one.mailbox.waiting) == [after]
    assert hold.take(activation(Serial()))


def test_an_activation_with_nothing_to_stay_for_ends_when_let_go(hold):
    one = activation(Serial())
    one.servant = EMPTY
    hold.take(one)
    assert hold.let_go(Serial()) == ([], [one])
    assert one.ended


def test_moving_ends_the_activations_and_hands_over_what_waits(hold):
    waits, ends = invocation(), invocation(ends=True, errand=True)
    one = activation(Serial())
    hold.take(one)
    one.mailbox.offer(waits), one.mailbox.offer(ends)
    forgotten = []
    assert hold.move(forgotten.append) == ([one], [waits])
    assert forgotten == [one]
    assert one.ended
    assert not hold.take(activation(Serial()))


def test_a_held_mailbox_is_bounded_but_for_errands(hold):
    one = activation(Serial())
    hold.take(one)
    assert isinstance(one.mailbox, HeldMailbox)
    for _ in range(10):
        one.mailbox.offer(invocation())
    with pytest.raises(errors.ServerBusy, match="policies are being changed"):
        one.mailbox.offer(invocation())
    assert not one.mailbox.offer(invocation(errand=True))
    assert one.mailbox.withdraw(one.mailbox.waiting[0])
