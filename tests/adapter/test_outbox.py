"""The outbox, with a store in memory and deliveries that are only noted.

What the simulator has found is here by its seed; `tests/testing/test_mutants.py` brings the bugs back.
"""

import ormsgpack
import pytest

from objserver import errors
from objserver.adapter.outbox import LOOK_S, PAUSE_S, Outbox
from objserver.storage import Message, Node

SENDER, OTHER = b"s" * 16, b"o" * 16


def message(number, sender=SENDER, target="PYRO:B@h:1"):
    return Message(sender + number.to_bytes(8, "big"), target, ormsgpack.packb(["receive", b""]))


class Place:
    """An engine, a clock and a store; `sent` are (number, acknowledged) of what was delivered."""

    def __init__(self, alone=True):
        self.alone = alone
        self.now = 0.0
        self.work = []
        self.stored = []
        self.elsewhere = []  # of the stored, those that are another's to send
        self.sent = []
        self.problem = None
        self.lives = {"me"}
        self.outbox = self.new()

    def new(self):
        return Outbox(self, self, self.deliver, lambda: self.now, lambda: ("me", True))

    def submit(self, work):
        self.work.append(work)

    def messages(self, limit, owner, member):
        assert (owner, member) == ("me", True)
        return [m for m in self.stored if m not in self.elsewhere][:limit]

    def nodes(self):
        return [Node(life, life, "h:1", "up", 1.0, b"") for life in self.lives]

    def first_messages(self, prefixes):
        firsts = (min((m.id for m in self.stored if m.id[:16] == p), default=None) for p in prefixes)
        return [first for first in firsts if first is not None]

    def delivered(self, ids):
        self.stored = [m for m in self.stored if m.id not in ids]

    def deliver(self, target, method, payload, call, acked):
        if self.problem is not None:
            raise self.problem
        self.sent.append((call.number, acked))

    def run(self):
        while self.work:
            self.work.pop(0)()

    def keep_house(self):
        self.outbox.housekeeping(self.now)
        self.run()

    def send(self, *messages):
        self.stored += messages
        self.outbox.add(messages)
        self.run()


@pytest.fixture
def place():
    place = Place()
    place.keep_house()
    return place


def test_what_is_stored_is_sent_and_forgotten(place):
    place.send(message(5), message(6))
    assert [number for number, _ in place.sent] == [5, 6]
    assert place.stored == []


def test_what_does_not_get_there_is_sent_again_after_a_pause(place):
    place.problem = errors.ConnectFailed("nobody there")
    place.send(message(5))
    place.problem = None
    place.keep_house()
    assert place.sent == []
    place.now += PAUSE_S
    place.keep_house()
    assert [number for number, _ in place.sent] == [5]


def test_what_a_server_before_left_goes_first():
    place = Place()
    place.stored = [message(5)]
    place.send(message(6))  # the store has not been read yet
    assert [number for number, _ in place.sent] == [5, 6]


def test_nothing_is_acknowledged_that_the_store_still_has(place):
    """Seed 25: a server acknowledged what was older than its own messages; one was left."""
    place.send(message(9))
    place.stored = place.elsewhere = [message(7)]  # another server has not delivered it yet
    place.keep_house()
    place.send(message(10))
    assert place.sent[-1] == (10, 6)
    place.stored = []
    place.keep_house()
    place.send(message(11))
    assert place.sent[-1] == (11, 10)


def test_messages_that_others_left_are_looked_for(place):
    place.stored = [message(5, OTHER)]
    place.now += LOOK_S
    place.keep_house()
    assert place.sent == []  # nobody else can have the store open
    shared = Place(alone=False)
    shared.keep_house()
    shared.stored = [message(5, OTHER)]
    shared.keep_house()
    assert shared.sent == []
    shared.now += LOOK_S
    shared.keep_house()
    assert [number for number, _ in shared.sent] == [5]


def test_messages_of_a_commit_in_doubt_are_looked_for(place):
    """Seed 96: the commit had no answer and was stored, and its message stayed in the store for ever."""
    place.stored = [message(5)]
    place.outbox.look()
    place.keep_house()
    assert [number for number, _ in place.sent] == [5]


def test_a_store_that_cannot_be_read_is_read_later(place, monkeypatch):
    place.stored = [message(5)]
    place.outbox.look()
    with monkeypatch.context() as failing:
        failing.setattr(place, "messages", lambda *limit: (_ for _ in ()).throw(errors.StoreError("no")))
        place.keep_house()
    assert place.sent == []
    place.keep_house()
    assert [number for number, _ in place.sent] == [5]


def test_what_comes_with_an_object_while_the_store_is_read_goes_before_what_that_object_sends_next():
    place = Place(alone=False)
    read = place.messages

    def taken_over_meanwhile(*what):
        found = read(*what)
        if not place.stored:
            place.stored.append(message(5))
            place.outbox.look()
        return found

    place.messages = taken_over_meanwhile
    place.keep_house()
    place.send(message(6))
    assert [number for number, _ in place.sent] == [5, 6]


def test_what_is_stored_while_the_store_is_read_goes_before_what_is_stored_next():
    place = Place(alone=False)
    read = place.messages

    def stored_meanwhile(*what):
        found = read(*what)
        if not place.stored:
            place.stored.append(message(5))
            place.outbox.add([message(5)])
        return found

    place.messages = stored_meanwhile
    place.keep_house()
    place.send(message(6))
    assert [number for number, _ in place.sent] == [5, 6]


def test_a_node_whose_lease_has_ended_does_not_take_it_that_there_is_nothing_to_send():
    place = Place(alone=False)
    place.stored, place.lives = [message(5)], set()
    place.elsewhere = [message(5), message(6)]  # nothing is shown
    place.keep_house()
    place.send(message(6))
    assert place.sent == []
    place.lives, place.elsewhere = {"me"}, []
    place.keep_house()
    assert [number for number, _ in place.sent] == [5, 6]
