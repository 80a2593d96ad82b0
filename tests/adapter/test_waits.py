"""Who waits for whom, without threads and sockets: questions lie in a queue until they are delivered.

A `World` has objects and calls between them.  Its questions travel when it is told so, in any order, while
calls begin and end: so a cycle can be looked for in every state that real servers go through.
"""

import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import Concurrent, ReadersWriter, Reentrant, Serial, errors
from objserver.adapter.calling import NOBODY
from objserver.adapter.hold import Hold
from objserver.adapter.invocation import Invocation
from objserver.adapter.mailbox import Mailbox
from objserver.adapter.skeleton import Member
from objserver.adapter.waits import AGAIN_MAX_S, Waits, agree
from objserver.invocation import Awaited
from objserver.testing.clock import ManualClock
from objserver.wire import Probe

FIRST_S = 0.01


class Lock:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Sent(Awaited):
    """A call of one invocation, which another is."""

    def __init__(self, world, child):
        self.world, self.child = world, child

    def ask(self, question):
        self.world.questions.append((self.child, question))


class World:
    """Objects, each at a server of its own."""

    def __init__(self):
        self.clock = ManualClock()
        self.questions, self.timers, self.refused = [], [], []
        self.objects = {}

    def after(self, delay_s, work):
        self.timers.append((self.clock.monotonic() + delay_s, work))

    def add(self, name, policy=None):
        waits = Waits(FIRST_S, self.clock, self, self.refuse)
        mailbox = Mailbox(policy or Serial(), 1000, waits)
        mailbox.open = True
        self.objects[name] = SimpleNamespace(mailbox=mailbox, lock=Lock(), waits=waits)
        return self

    def call(self, name, caller=None, readonly=False):
        """The invocation that a call is, running or waiting."""
        invocation = Invocation(NOBODY, name, "m")
        invocation.activation = self.objects[name]
        invocation.member = Member("m", None, readonly=readonly)
        invocation.caller_of = caller
        if caller is not None:
            invocation.chain = (*caller.chain, caller.id)
        invocation.activation.mailbox.offer(invocation)
        if caller is not None:
            invocation.sent = Sent(self, invocation)
            caller.when_cancelled(invocation.sent)
        return invocation

    def end(self, invocation):
        """It returns."""
        invocation.activation.mailbox.leave(invocation)
        self.answer(invocation)

    def answer(self, invocation):
        if invocation.caller_of is not None:
            invocation.caller_of.forget(invocation.sent)

    def withdraw(self, invocation):
        """It waits no longer; False if it does not."""
        if not invocation.activation.mailbox.withdraw(invocation):
            return False
        invocation.activation.mailbox.startable()
        self.answer(invocation)
        return True

    def refuse(self, invocation, problem):
        withdrawn = self.withdraw(invocation)
        if withdrawn:
            self.refused.append((invocation, problem))
        return withdrawn

    def deliver(self, at=0):
        child, question = self.questions.pop(at)
        child.activation.waits.asked(child, Probe.decode(question))

    def pass_time(self, seconds):
        self.clock.advance(seconds)
        now = self.clock.monotonic()
        due = [timer for timer in self.timers if timer[0] <= now + 1e-9]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, work in due:
            work()

    def look(self, seconds=2 * FIRST_S):
        """Let those ask who are due, and all questions arrive."""
        self.pass_time(seconds)
        while self.questions:
            self.deliver()

    @property
    def victims(self):
        return [invocation for invocation, _ in self.refused]


def crossing():
    """X is inside A and calls B, Y is inside B and calls A."""
    world = World().add("A").add("B")
    x, y = world.call("A"), world.call("B")
    older = world.call("B", x)
    world.clock.advance(0.001)
    younger = world.call("A", y)
    return world, older, younger


def test_of_two_that_cross_the_younger_is_refused():
    world, older, younger = crossing()
    world.look()
    assert world.victims == [younger]
    assert older.activation.mailbox.waiting  # and still waits, for Y, who can go on now
    (_, problem) = world.refused[0]
    assert problem.cycle == ("A.m", "B.m", "B.m", "A.m")
    assert "B.m -> B.m -> A.m -> A.m" in str(problem) or "A.m -> B.m -> B.m -> A.m" in str(problem)
    assert [world.objects[name].waits.statistics()["deadlocks"] for name in "AB"] == [1, 0]


def test_nobody_asks_before_the_time():
    world, *_ = crossing()
    world.pass_time(FIRST_S / 2)
    assert not world.questions


def test_a_call_of_no_servant_never_asks():
    world = World().add("A")
    world.call("A")
    world.call("A")
    assert not world.timers


def test_who_waits_for_one_that_works_asks_nobody():
    world = World().add("A").add("B")
    x, _working = world.call("A"), world.call("B")
    world.call("B", x)
    world.pass_time(2 * FIRST_S)
    assert not world.questions
    assert len(world.objects["B"].waits) == 1


def test_a_question_ends_where_somebody_works():
    world = World().add("A").add("B").add("C")
    x, y = world.call("A"), world.call("B")
    world.call("B", x)
    world.call("C", y)
    world.pass_time(2 * FIRST_S)
    assert len(world.questions) == 1
    world.look()
    assert not world.refused


def test_one_round_is_not_enough():
    world, older, younger = crossing()
    wait = younger.activation.waits._waits[younger]
    world.pass_time(2 * FIRST_S)
    while wait.before is None:
        world.deliver()
    assert not world.refused
    world.withdraw(older)  # its caller has given up, so the cycle is no more
    while world.questions:
        world.deliver()
    assert not world.refused


def test_a_late_answer_of_an_earlier_round_does_not_count():
    world, _, younger = crossing()
    world.pass_time(2 * FIRST_S)
    forged = Probe(0, younger.activation.waits._waits[younger].since, 1, ((younger.id, 1),))
    for number in (0, 7, -1):
        younger.activation.waits.asked(younger, forged._replace(round=number))
    assert not world.refused


def test_a_forged_question_refuses_nobody():
    """Only who made a call can ask about it, and it has come back only with the id that the call got here."""
    world = World().add("A").add("B")
    x, _working = world.call("A"), world.call("B")
    waiting = world.call("B", x)
    world.look()
    for path in ((x.id, 1),), (("B.m 123", 1),), (("B.m 123", 1), (x.id, 1)):
        for number in range(5):
            waiting.activation.waits.asked(waiting, Probe(number, 0.0, 1, path))
    assert not world.questions
    assert not world.refused


def test_one_that_waits_longer_asks_itself_when_asked_by_an_older_one():
    """Between machines the clocks have nothing to do with each other, so `since` may be wrong."""
    world, _, younger = crossing()
    world.pass_time(2 * FIRST_S)
    world.pass_time(2 * FIRST_S)
    world.questions.clear()  # lost
    asked = younger.activation.waits._waits[younger].round
    world.clock.advance(2 * FIRST_S)
    younger.activation.waits.asked(younger, Probe(1, 0.0, 64, (("Z.m 1", 1),)))
    assert younger.activation.waits._waits[younger].round == asked + 1
    while world.questions:
        world.deliver()
    assert world.victims == [younger]


def test_a_lost_question_is_asked_again_and_ever_less_often():
    world, _, younger = crossing()
    times = []
    begun = world.clock.monotonic()
    for _ in range(5000):
        before = younger.activation.waits._waits[younger].round
        world.pass_time(0.001)
        world.questions.clear()
        if younger.activation.waits._waits[younger].round > before:
            times.append(world.clock.monotonic() - begun)
    gaps = [b - a for a, b in pairwise(times)]
    assert 5 < len(times) < 15
    assert gaps == sorted(gaps)
    assert max(gaps) == pytest.approx(AGAIN_MAX_S, abs=0.01)
    world.look(AGAIN_MAX_S)
    assert world.victims == [younger]


def test_a_new_wait_does_not_stand_back_for_an_old_one():
    """The next look is for one that has waited long: the new one is looked at in its time all the same."""
    world = World().add("A").add("B").add("C")
    world.call("C")
    x, y = world.call("A"), world.call("B")
    world.call("C", x)
    for _ in range(3000):
        world.pass_time(0.001)
    thing = world.objects["C"]
    new = world.call("C", y)
    world.pass_time(1.5 * FIRST_S)
    assert thing.waits._waits[new].round == 1
    for _ in range(3000):
        world.pass_time(0.001)
    assert len(world.timers) <= 2


def test_a_call_that_is_held_and_moved_elsewhere_waits_here_no_longer():
    world = World().add("A").add("B")
    x, _working = world.call("A"), world.call("B")
    before = world.call("B", x)
    thing = world.objects["B"]
    thing.ended = False
    hold = Hold("B", lambda: None)
    assert hold.take(thing)
    meanwhile = world.call("B", world.call("A"))
    assert len(thing.waits) == 2
    _, moved = hold.move(lambda activation: None)
    assert moved == [before, meanwhile]
    assert len(thing.waits) == 0


def test_a_ring_has_one_victim():
    names = "ABCDEFG"
    world = World()
    for name in names:
        world.add(name)
    inside = [world.call(name) for name in names]
    waiting = []
    for i, x in enumerate(inside):
        waiting.append(world.call(names[i - 1], x))
        world.clock.advance(0.0001)
    world.look()
    assert world.victims == [waiting[-1]]
    assert len(world.refused[0][1].cycle) == 14


def test_a_writer_waits_for_every_reader():
    world = World().add("A", ReadersWriter()).add("B")
    x, _other, y = world.call("A", readonly=True), world.call("A", readonly=True), world.call("B")
    writer = world.call("A", y)
    last = world.call("B", x)
    world.look()
    assert len(world.victims) == 1
    assert world.victims[0] in (writer, last)


def test_where_one_place_is_enough_all_must_be_taken_for_ever():
    for free in (True, False):
        world = World().add("A", Concurrent(limit=2)).add("B")
        x, other, y = world.call("A"), world.call("A"), world.call("B")
        world.call("A", y)
        world.call("B", x)
        world.look()
        assert not world.refused  # `other` will leave
        if not free:
            world.clock.advance(0.001)
            world.call("B", other)  # ... or not
            world.look()
            world.look(AGAIN_MAX_S)
        assert len(world.refused) == (not free)


def test_a_servant_with_two_calls_goes_on_only_after_the_one_that_ends():
    """Which of them it needs nobody knows, so both must be stuck."""
    world = World().add("A").add("B").add("C")
    x, y = world.call("A"), world.call("B")
    working = world.call("C", x)
    world.call("B", x)
    last = world.call("A", y)
    world.look()
    assert not world.refused
    world.end(working)
    world.look(AGAIN_MAX_S)
    assert len(world.victims) == 1
    assert last in world.victims or world.victims[0].object_id == "B"


def test_reentrant_objects_block_strangers_only():
    world = World().add("A", Reentrant()).add("B", Reentrant())
    x, y = world.call("A"), world.call("B")
    inner = world.call("A", x)
    assert inner in world.objects["A"].mailbox.running
    world.end(inner)
    outer = world.call("B", x)
    last = world.call("A", y)
    world.look()
    assert len(world.victims) == 1
    assert world.victims[0] in (outer, last)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], False),
        ([(("w", 1), ("x", 1))], True),
        ([(("w", 2), ("x", 1))], False),
        ([(("w", 2), ("x", 1)), (("w", 2), ("y", 1))], True),
        ([(("w", 1), ("x", 2))], False),
        ([(("w", 1), ("x", 2)), (("w", 1), ("x", 2), ("c", 1))], True),
        ([(("w", 1), ("x", 2), ("c", 1)), (("w", 1), ("x", 2), ("c", 2))], False),
        ([(("w", 2), ("x", 2)), (("w", 2), ("y", 1))], False),
    ],
)
def test_every_way_that_must_has_to_come_back(paths, expected):
    assert agree(paths) == expected


def stuck(world):
    """Who cannot go on whatever happens, found by looking at everything at once."""
    mailboxes = [thing.mailbox for thing in world.objects.values()]
    left = {i for mailbox in mailboxes for i in (*mailbox.running, *mailbox.waiting)}

    def can_go_on(invocation):
        mailbox = invocation.activation.mailbox
        if invocation in mailbox.waiting:
            inside, every = mailbox.holders()
            return left.isdisjoint(inside) if every else not left.issuperset(inside)
        return not left.issuperset(call.child for call in invocation.awaited) or not invocation.awaited

    while free := {invocation for invocation in left if can_go_on(invocation)}:
        left -= free
    return left


@given(st.integers(0, 1 << 64))
def test_who_is_refused_was_stuck_and_nobody_stays_stuck(seed):
    """Calls begin and end, and questions arrive in any order in between."""
    policies = [Serial(), Serial(), Reentrant()]
    assert not stuck(live_in_any_order(random.Random(seed), policies, parallel=False))


@pytest.mark.parametrize("parallel", [False, True])
@given(seed=st.integers(0, 1 << 64))
def test_who_is_refused_was_stuck_also_where_there_are_several_ways(parallel, seed):
    """A knot of many may take more questions than one may part into, so some may stay stuck: in one world of
    many thousands, such as 336_496_009_468, one call at a time."""
    policies = [Serial(), Serial(), Reentrant(), ReadersWriter(), Concurrent(limit=2)]
    live_in_any_order(random.Random(seed), policies, parallel=parallel)


def live_in_any_order(chance, policies, parallel):
    """A world after some life and a time of rest; whoever is refused in it must be stuck."""
    world = World()
    names = "ABCDE"
    chosen = [chance.choice(policies) for _ in names]
    for name, policy in zip(names, chosen, strict=True):
        world.add(name, policy)
    several_ways = parallel or not {Serial(), Reentrant()}.issuperset(chosen)

    def refuse(invocation, problem):
        if invocation in invocation.activation.mailbox.waiting:
            # Where one of several ways is enough, or the writer in front of a reader is the victim of another
            # cycle, that may have set it free just now: it was stuck between the rounds.
            assert invocation in (were_stuck if several_ways else stuck(world))
        return World.refuse(world, invocation, problem)

    were_stuck = set()
    for thing in world.objects.values():
        thing.waits._refuse = refuse
    for _ in range(chance.randrange(10, 120)):
        were_stuck |= stuck(world)
        running = [i for thing in world.objects.values() for i in thing.mailbox.running]
        free = [i for i in running if not i.awaited]
        callers = running if parallel and chance.random() < 0.2 else free
        kind = chance.choice(["call", "nest", "nest", "nest", "end", "time", "deliver", "deliver"])
        if kind == "call":
            world.call(chance.choice(names), readonly=chance.random() < 0.5)
        elif kind == "nest" and callers:
            try:
                world.call(chance.choice(names), chance.choice(callers), readonly=chance.random() < 0.5)
            except errors.Deadlock:
                pass  # its own chain
        elif kind == "end" and free:
            world.end(chance.choice(free))
        elif kind == "time":
            world.pass_time(chance.choice([0.001, 0.02, 0.2]))
        elif world.questions:
            world.deliver(chance.randrange(len(world.questions)))
    were_stuck |= stuck(world)
    for _ in range(3 if parallel else 30):
        world.look(AGAIN_MAX_S)
    return world
