"""The mailbox decides the order; it runs nothing."""

import pytest

from objserver import Concurrent, ReadersWriter, Reentrant, Serial, errors
from objserver.adapter.invocation import Invocation
from objserver.adapter.mailbox import Mailbox
from objserver.adapter.skeleton import Member


def call(*, readonly=False, chain=(), ends=False):
    invocation = Invocation(None, "Thing", "method")
    invocation.member = Member("method", None, readonly=readonly)
    invocation.chain = chain
    invocation.ends = ends
    return invocation


def mailbox(policy, size_max=10):
    made = Mailbox(policy, size_max)
    made.open = True
    return made


def test_serial_runs_one_at_a_time_in_order():
    box, (a, b, c) = mailbox(Serial()), (call(), call(), call())
    assert [box.offer(x) for x in (a, b, c)] == [True, False, False]
    assert box.leave(a) == [b]
    assert box.leave(b) == [c]
    assert box.leave(c) == []
    assert box.idle


def test_readers_run_together_and_do_not_overtake_a_writer():
    box = mailbox(ReadersWriter())
    r1, r2, r3, r4 = (call(readonly=True) for _ in range(4))
    w = call()
    assert [box.offer(x) for x in (r1, r2, w, r3, r4)] == [True, True, False, False, False]
    assert box.leave(r1) == []
    assert box.leave(r2) == [w]
    assert box.leave(w) == [r3, r4]


def test_concurrent_is_bounded():
    box, calls = mailbox(Concurrent(limit=2)), [call() for _ in range(4)]
    assert [box.offer(x) for x in calls] == [True, True, False, False]
    assert box.leave(calls[0]) == [calls[2]]


def test_reentrant_lets_its_own_chain_in_even_past_others():
    box, outer, stranger = mailbox(Reentrant()), call(), call()
    assert box.offer(outer)
    assert not box.offer(stranger)
    assert box.offer(call(chain=(outer.id,)))


def test_serial_reports_its_own_chain_as_deadlock():
    box, outer = mailbox(Serial()), call()
    box.offer(outer)
    with pytest.raises(errors.Deadlock, match="Reentrant"):
        box.offer(call(chain=(outer.id,)))


def test_a_full_mailbox_refuses():
    box = mailbox(Serial(), size_max=1)
    box.offer(call())
    box.offer(call())
    with pytest.raises(errors.ServerBusy, match="mailbox_size_max"):
        box.offer(call())


def test_until_the_servant_exists_one_invocation_is_in():
    box, a, b, c = Mailbox(Concurrent(limit=9), 10), call(), call(), call()
    assert [box.offer(x) for x in (a, b, c)] == [True, False, False]
    box.open = True
    assert box.startable() == [b, c]


def test_the_last_invocation_of_a_servant_runs_alone():
    box, a, end, b = mailbox(Concurrent(limit=9)), call(), call(ends=True), call()
    assert [box.offer(x) for x in (a, end, b)] == [True, False, False]
    assert box.leave(a) == [end]
    assert not box.open
    assert box.leave(end) == [b]
