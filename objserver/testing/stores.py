"""What every engine of `objserver.storage.Store` must do, as tests that whoever writes one can run.

A class of tests derives from one of these and gives the place where stores are to be opened:

    class TestMine(DurableStoreConformance):
        @pytest.fixture
        def url(self, tmp_path):
            return f"mine:///{tmp_path}/a"

        def open(self, url):
            return MyStore(url)

`StoreConformance` needs one store and nothing else; `SharedStoreConformance` is for one that several servers
may use at a time; `DurableStoreConformance` also opens it again, and kills a process that writes;
`SqlStoreConformance` also looks into databases that have our tables, by a statement that the class runs.

What every sentence of the interface demands has a test of its own.  One more takes random steps, and
compares what the store answers with `Model`, which is the interface in dictionaries.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from objserver import errors
from objserver.storage import Change, Committer, Record, Reply, Store, Unstorable, open_store
from objserver.storage.base import Answered, Due, Message, Row, Session, Stored, Timer

__all__ = [
    "DurableStoreConformance",
    "Model",
    "SharedStoreConformance",
    "SqlStoreConformance",
    "StoreConformance",
    "change",
    "reply",
]

CLIENT = b"\x00\xff" * 8
OTHER = b"\xffother client \x00\x01"
STRANGER = b"without session "
LEASE_S = 3600.0
"""Longer than any test takes."""


def change(key: str, version: int = 0, state: bytes | None = b"s", **more: Any) -> Change:
    """A change of an object of type T."""
    named = {"type": "T", "epoch": 0, "codec": 1, "state_version": 3, **more}
    return Change(key=key, version=version, state=state, **named)


def reply(number: int, client: bytes = CLIENT, result: bytes | None = b"r", path: bytes = b"") -> Reply:
    return Reply(client, number, path, 0, b"\x00digest", 0, result)


def message(number: int) -> Message:
    return Message(b"\x00\xff message %7d" % number, f"PYRO:é{number}@host:1", b"\x00payload")


class StoreConformance:
    """One store, new and empty for each test."""

    def open(self, url: str) -> Store:
        return open_store(url)

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        """With sessions of CLIENT and OTHER."""
        store = self.open(url)
        store.open_session(CLIENT, LEASE_S)
        store.open_session(OTHER, LEASE_S)
        yield store
        store.close()

    def test_the_id_is_of_hexadecimal_digits(self, store: Store) -> None:
        assert re.fullmatch("[0-9a-f]{32}", store.id)

    # States

    def test_round_trip(self, store: Store) -> None:
        assert store.load("T", "a") is None
        changes = [change("a", state=b"\0\xff"), change("b", state=b"")]
        assert store.commit(changes) == {("T", "a"), ("T", "b")}
        assert store.load("T", "a") == Record(0, 1, 1, 3, b"\0\xff")
        assert store.load("T", "b") == Record(0, 1, 1, 3, b"")
        assert store.load("U", "a") is None

    def test_an_empty_commit_accepts_nothing(self, store: Store) -> None:
        assert store.commit([]) == set()

    def test_only_the_current_epoch_and_version_is_accepted(self, store: Store) -> None:
        store.commit([change("a")])
        stale = [change("a"), change("a", 2), change("a", 1, epoch=1)]
        for late in [*stale, change("new", 1), change("new", 0, epoch=1)]:
            assert store.commit([late, change("b" + str(late))]) == {("T", "b" + str(late))}
        assert store.load("T", "a") == Record(0, 1, 1, 3, b"s")
        assert store.load("T", "new") is None
        assert store.commit([change("a", 1, b"t", codec=2, state_version=4)]) == {("T", "a")}
        assert store.load("T", "a") == Record(0, 2, 2, 4, b"t")

    def test_the_version_grows_by_the_number_of_calls(self, store: Store) -> None:
        assert store.commit([change("a", calls=5)])
        assert store.commit([change("a", 1, b"t")]) == set()
        assert store.commit([change("a", 5, b"t", calls=300)])
        assert store.load("T", "a") == Record(0, 305, 1, 3, b"t")

    def test_a_tombstone_keeps_its_version(self, store: Store) -> None:
        store.commit([change("a")])
        assert store.commit([change("a", 1, None)])
        assert store.load("T", "a") == Record(0, 2, 1, 3, None)
        assert store.keys("T") == []
        assert list(store.items("T")) == []
        assert store.commit([change("a")]) == set()
        assert store.commit([change("a", 2)])
        assert store.load("T", "a") == Record(0, 3, 1, 3, b"s")
        assert store.keys("T") == ["a"]

    def test_a_batch_of_tombstones_and_new_objects(self, store: Store) -> None:
        store.commit([change("a"), change("b")])
        batch = [change("a", 1, None), change("b", 1, None)]
        assert store.commit(batch) == {("T", "a"), ("T", "b")}
        batch = [change("c"), change("a", 2, b"t"), change("b", 9), change("d", state=None)]
        assert store.commit(batch) == {("T", "c"), ("T", "a"), ("T", "d")}
        assert store.keys("T") == ["a", "c"]

    def test_keys_with_prefix_and_limit(self, store: Store) -> None:
        names = ["", "A", "a", "a%", "a_b", "a\\", "ab", "a\U0010ffff", "a\U0010ffffz", "a\ud7ff", "a\ue000"]
        names += ["b", "é", "'", '"', "a b", "ß", "\U0001f600"]
        store.commit([change(n) for n in names] + [change("other", type="U")])
        assert store.keys("T") == sorted(names)
        for prefix in ["", *names, "none", "\U0010ffff"]:
            assert store.keys("T", prefix) == sorted(n for n in names if n.startswith(prefix))
        assert store.keys("T", limit=2) == ["", '"']
        assert store.keys("T", "a", limit=1) == ["a"]
        assert store.keys("U") == ["other"]
        for after in names:
            assert store.keys("T", after=after) == sorted(n for n in names if n > after)
        assert store.keys("T", "a", 2, after="a") == ["a b", "a%"]

    def test_the_living_are_counted(self, store: Store) -> None:
        assert store.count("T") == 0
        store.commit([change("a"), change("b"), change("c", type="U")])
        store.commit([change("b", 1, None)])
        assert (store.count("T"), store.count("U"), store.count("V")) == (1, 1, 0)

    def test_items_come_in_order_while_commits_go_on(self, store: Store) -> None:
        store.commit([change(f"{n:04}") for n in range(600)])
        seen = []
        for key, record in store.items("T"):
            seen.append(key)
            assert store.commit([change(key, record.version, b"t")])
        assert seen == store.keys("T")
        assert len(seen) == 600

    def test_large_states(self, store: Store) -> None:
        large = os.urandom(2**20) * 24
        assert len(store.commit([change("a", state=large), change("b", state=large[1:])])) == 2
        for key, state in (("a", large), ("b", large[1:])):
            record = store.load("T", key)
            assert record is not None
            assert record.state == state

    def test_many_objects_in_one_commit(self, store: Store) -> None:
        keys = [f"{n}" for n in range(3000)]
        assert store.commit([change(k, replies=[reply(1)]) for k in keys]) == {("T", k) for k in keys}
        assert store.commit([change(k, 1 + int(k) % 2) for k in keys]) == {("T", k) for k in keys[::2]}
        assert {r.version for _, r in store.items("T")} == {1, 2}

    def test_types_are_listed_also_of_deleted_objects(self, store: Store) -> None:
        assert store.types() == []
        names = ["a", "B", "", "é", "\U0001f600", "\ue000", "a b"]
        store.commit([change(f"{n}", type=name) for name in names for n in range(3)])
        store.commit([change("0", 1, None, type="a"), change("1", 1, None, type="a")])
        store.commit([change("2", 1, None, type="a"), change("x", state=None, type="gone")])
        assert store.types() == sorted([*names, "gone"])

    # Owners

    def test_what_is_acquired_is_as_loaded(self, store: Store) -> None:
        assert store.acquire([], "me") == {}
        store.commit([change("a", owner="me"), change("b", owner="me"), change("c", type="U", owner="me")])
        store.commit([change("b", 1, None)])
        names = [("T", "a"), ("T", "none"), ("U", "c"), ("T", "b"), ("U", "a"), ("T", "a")]
        found = {("T", "a"): Record(0, 1, 1, 3, b"s"), ("U", "c"): Record(0, 1, 1, 3, b"s")}
        found["T", "b"] = Record(0, 2, 1, 3, None)
        assert store.acquire(names, "me") == found
        assert store.acquire(names, "me") == found
        assert {name: store.load(*name) for name in found} == found

    def test_very_many_are_acquired(self, store: Store) -> None:
        names = [("T", f"{n}") for n in range(3000)]
        store.commit([change(key, owner="me") for _, key in names[::2]])
        assert set(store.acquire(names, "me")) == set(names[::2])

    def test_who_acquires_can_commit(self, store: Store) -> None:
        for owner in ("me", "you", "you", "me"):
            record = store.acquire([("T", "a")], owner).get(("T", "a"), Record(0, 0, 0, 0, None))
            assert isinstance(record, Record)
            assert store.commit([change("a", record.version, epoch=record.epoch, owner=owner)])
        assert store.keys("T") == ["a"]

    def test_confirmed_is_what_is_still_so(self, store: Store) -> None:
        assert store.confirm([]) == set()
        store.commit([change("a"), change("gone"), change("a", type="U")])
        store.commit([change("gone", 1, None)])
        good = [("T", "a", 0, 1), ("T", "gone", 0, 2), ("T", "none", 0, 0), ("U", "a", 0, 1)]
        assert store.confirm(good) == {(type, key) for type, key, _, _ in good}
        bad = [("T", "a", 0, 0), ("T", "gone", 0, 1), ("T", "none", 0, 1), ("U", "a", 1, 1), ("U", "b", 1, 0)]
        assert store.confirm(bad) == set()
        assert store.confirm([good[0], *bad[1:], good[2]]) == {("T", "a"), ("T", "none")}
        store.commit([change("a", 1)])
        assert store.confirm(good) == {("T", "gone"), ("T", "none"), ("U", "a")}

    # Replies

    def test_replies_are_kept_with_the_state(self, store: Store) -> None:
        assert store.replies("T", "a") == []
        answers = [reply(1), reply(2**62, result=None), reply(7, OTHER, b"")]
        store.commit([change("a", calls=3, replies=answers), change("b", replies=[reply(1)])])
        assert store.replies("T", "a") == answers
        assert store.replies("T", "b") == [reply(1)]
        assert store.replies("U", "a") == []
        store.commit([change("a", 3, replies=[reply(3)])])
        assert store.replies("T", "a") == [reply(1), reply(3), *answers[1:]]

    def test_a_call_and_those_it_caused_are_told_apart_and_freed_together(self, store: Store) -> None:
        paths = [b"", b"\x00", b"\x00\x01", b"\xff" * 16]
        answers = [reply(n, path=path) for n in (1, 2) for path in paths]
        store.commit([change("a", replies=answers[::-1])])
        assert store.replies("T", "a") == answers
        store.commit([change("a", 1, acked=[(CLIENT, 1)])])
        assert store.replies("T", "a") == answers[4:]
        store.commit([change("a", 2, acked=[(CLIENT, 2)])])
        assert store.replies("T", "a") == []

    def test_what_was_freed_is_forgotten(self, store: Store) -> None:
        store.commit([change("a", replies=[reply(1)])])
        store.commit([change("a", 1, acked=[(CLIENT, 1)])])
        again = reply(1, result=b"again")
        assert store.commit([change("a", 2, replies=[again])])
        assert store.replies("T", "a") == [again]

    def test_what_is_acknowledged_is_freed(self, store: Store) -> None:
        mine = [reply(n) for n in range(1, 6)]
        theirs = [reply(n, OTHER) for n in range(1, 6)]
        store.commit([change(k, replies=mine + theirs) for k in "ab"])
        store.commit([change("a", 1, replies=[reply(6)], acked=[(CLIENT, 3), (b"n" * 16, 9)])])
        assert store.replies("T", "a") == [*mine[3:], reply(6), *theirs]
        assert store.replies("T", "b") == mine + theirs
        store.commit([change("a", 2, acked=[(CLIENT, 6), (OTHER, 4)]), change("b", 1)])
        assert store.replies("T", "a") == theirs[4:]
        assert store.replies("T", "b") == mine + theirs

    def test_a_refused_change_leaves_the_replies_alone(self, store: Store) -> None:
        store.commit([change("a", replies=[reply(1)])])
        late = change("a", 0, b"late", replies=[reply(2)], acked=[(CLIENT, 1)])
        assert store.commit([late, change("b", replies=[reply(5)])]) == {("T", "b")}
        assert store.replies("T", "a") == [reply(1)]
        assert store.replies("T", "b") == [reply(5)]

    def test_a_second_record_of_one_call_is_refused_with_its_change(self, store: Store) -> None:
        store.commit([change("a", replies=[reply(1)])])
        for replies in ([reply(1)], [reply(2), reply(2)]):
            with pytest.raises(Unstorable):
                store.commit([change("a", 1, b"twice", replies=replies), change("b")])
        assert store.load("T", "a") == Record(0, 1, 1, 3, b"s")
        assert store.replies("T", "a") == [reply(1)]
        assert store.load("T", "b") is None

    def test_replies_outlive_the_object(self, store: Store) -> None:
        store.commit([change("a", replies=[reply(1)])])
        store.commit([change("a", 1, None, replies=[reply(2)])])
        assert store.replies("T", "a") == [reply(1), reply(2)]

    def test_the_committer_passes_replies_on(self, store: Store) -> None:
        committer, outcomes = Committer(store), list[BaseException | None]()
        committer.submit(change("a", calls=2, replies=[reply(1), reply(2)]), outcomes.append)
        committer.submit(change("a", 2, replies=[reply(3)], acked=[(CLIENT, 1)]), outcomes.append)
        committer.submit(change("a", 3, replies=[reply(3)]), outcomes.append)
        committer.submit(change("b", replies=[reply(3)]), outcomes.append)
        committer.close()
        assert [error is None for error in outcomes].count(True) == 3
        assert store.replies("T", "a") == [reply(2), reply(3)]
        assert store.replies("T", "b") == [reply(3)]

    # Sessions

    def test_nothing_is_kept_of_a_change_for_a_client_without_a_session(self, store: Store) -> None:
        store.commit([change("a", replies=[reply(1)]), change("b")])
        more: dict[str, Any] = {"messages": [message(1)], "timers": [Timer("t", 1.0)], "acked": [(CLIENT, 1)]}
        for replies in ([reply(1, STRANGER)], [reply(2), reply(1, STRANGER)], [reply(1, STRANGER), reply(2)]):
            late = change("a", 1, b"late", replies=replies, **more)
            new = change("new", 0, replies=replies, **more)
            version = store.load("T", "b")[1]  # type: ignore[index]
            assert store.commit([late, change("b", version, replies=[reply(version)]), new]) == {("T", "b")}
        assert store.load("T", "a") == Record(0, 1, 1, 3, b"s")
        assert store.load("T", "new") is None
        assert store.replies("T", "a") == [reply(1)]
        assert store.replies("T", "new") == []
        assert len(store.replies("T", "b")) == 3
        assert store.messages(10) == []
        assert store.next_due(0.0, ["T"]) is None
        # acknowledging needs no session
        assert store.commit([change("a", 1, acked=[(STRANGER, 7)])])

    def test_sessions_begin_go_on_and_end(self, store: Store) -> None:
        client = b"c" * 16
        assert store.renew_sessions([client, CLIENT], LEASE_S) == {CLIENT}
        assert store.renew_sessions([], LEASE_S) == set()
        store.open_session(client, 0)
        assert store.renew_sessions([client, STRANGER], 0) == {client}
        # it is over, but nobody has ended it
        assert store.commit([change("a", replies=[reply(1, client)])])
        assert len(store.expire_sessions()) == 1
        assert len(store.expire_sessions()) == 0
        assert store.renew_sessions([client, CLIENT, OTHER], LEASE_S) == {CLIENT, OTHER}
        assert not store.commit([change("a", 1, replies=[reply(2, client)])])
        store.open_session(client, 0)
        assert store.commit([change("a", 1, replies=[reply(2, client)])])
        assert store.replies("T", "a") == [reply(2, client)]

    def test_a_lease_is_made_longer_and_never_shorter(self, store: Store) -> None:
        opened, renewed = b"o" * 16, b"r" * 16
        store.open_session(opened, 0)
        store.open_session(opened, LEASE_S)
        store.open_session(opened, 0)
        store.open_session(renewed, 0)
        store.renew_sessions([renewed], LEASE_S)
        store.renew_sessions([renewed], 0)
        assert len(store.expire_sessions()) == 0

    def test_with_a_session_go_its_records_and_nothing_else(self, store: Store) -> None:
        client = b"c" * 16
        store.open_session(client, 0)
        both = [reply(1), reply(1, client), reply(1, client, path=b"p")]
        more: dict[str, Any] = {"messages": [message(1)], "timers": [Timer("t", 1.0, b"p")]}
        store.commit([change("a", replies=both, **more), change("b", type="U", replies=both)])
        assert len(store.expire_sessions()) == 1
        assert store.replies("T", "a") == store.replies("U", "b") == [reply(1)]
        assert store.load("T", "a") == store.load("U", "b") == Record(0, 1, 1, 3, b"s")
        assert store.messages(10) == [message(1)]
        assert store.timers("T", "a") == [Timer("t", 1.0, b"p")]

    def test_very_many_sessions_end(self, store: Store) -> None:
        clients = [b"%16d" % n for n in range(350)]
        for client in clients:
            store.open_session(client, 0)
        store.commit([change("a", replies=[reply(n, client) for n in (1, 2) for client in clients])])
        store.renew_sessions(clients[:50], LEASE_S)
        assert len(store.expire_sessions()) == 300
        assert {r.client for r in store.replies("T", "a")} == set(clients[:50])
        assert len(store.renew_sessions(clients, LEASE_S)) == 50

    # Messages and timers

    def test_messages_are_kept_in_order_until_delivered(self, store: Store) -> None:
        sent = [message(n) for n in (5, 3, 8, 1)]
        store.commit([change("a", messages=sent[:2])])
        store.commit([change("a", 1, messages=sent[2:])])
        assert store.messages(10) == sent
        assert store.messages(3) == sent[:3]
        store.delivered([])
        store.delivered([sent[1].id, message(7).id])
        assert store.messages(10) == [sent[0], *sent[2:]]
        store.commit([change("a", 2, None, messages=[message(2)])])
        store.delivered([m.id for m in sent])
        assert store.messages(10) == [message(2)]

    def test_a_second_message_of_one_id_is_refused_with_its_change(self, store: Store) -> None:
        store.commit([change("a", messages=[message(1)])])
        with pytest.raises(Unstorable):
            store.commit([change("b", messages=[message(1)])])
        assert store.load("T", "b") is None

    def test_timers_are_set_replaced_and_removed(self, store: Store) -> None:
        both = ["T", "U"]
        assert store.next_due(0.0, both) is None
        one, two, three = Timer("one", 2.5, b"\x00"), Timer("two", 1e10 + 0.125), Timer("", 7.0)
        store.commit([change("a", timers=[two, one]), change("a", type="U", timers=[three])])
        assert store.timers("T", "a") == [one, two]
        assert store.timers("U", "a") == [three]
        assert store.timers("T", "b") == []
        dues = [store.next_due(after, both) for after in (0.0, 2.5, 7.0, 1e11)]
        assert dues == [2.5, 7.0, 1e10 + 0.125, None]
        assert store.due(2.4, both, 10) == []
        assert store.due(2.5, both, 10) == [Due("T", "a", one)]
        assert store.due(1e11, both, 10) == [Due("T", "a", one), Due("U", "a", three), Due("T", "a", two)]
        assert store.due(1e11, both, 2) == [Due("T", "a", one), Due("U", "a", three)]
        later = one._replace(due=9.0, payload=b"later")
        gone = [two._replace(due=None), Timer("unknown", None)]
        store.commit([change("a", 1, timers=[later, *gone]), change("b", timers=[Timer("one", 8.0)])])
        assert store.timers("T", "a") == [later]
        assert [due.timer.due for due in store.due(1e11, both, 10)] == [7.0, 8.0, 9.0]
        assert store.next_due(0.0, both) == 7.0

    def test_timers_are_asked_for_by_type(self, store: Store) -> None:
        one, two = Timer("t", 2.0), Timer("t", 1.0)
        store.commit([change("a", timers=[one]), change("a", type="U", timers=[two])])
        for type, timer in (("T", one), ("U", two)):
            assert store.due(9.0, [type], 1) == [Due(type, "a", timer)]
            assert store.due(9.0, [type, "V", type], 9) == [Due(type, "a", timer)]
            assert store.next_due(0.0, [type, "V"]) == timer.due
        for none in ([], ["V"]):
            assert store.due(9.0, none, 9) == []
            assert store.next_due(0.0, none) is None

    def test_of_several_timers_of_a_name_in_one_change_the_last_counts(self, store: Store) -> None:
        off = Timer("t", None)
        store.commit([change("a", timers=[Timer("t", 1.0), off, Timer("t", 2.0), Timer("u", 1.0)])])
        assert store.timers("T", "a") == [Timer("t", 2.0), Timer("u", 1.0)]
        store.commit([change("a", 1, timers=[Timer("t", 3.0), off])])
        assert store.timers("T", "a") == [Timer("u", 1.0)]

    def test_a_refused_change_sets_nothing_going(self, store: Store) -> None:
        store.commit([change("a", timers=[Timer("t", 1.0)])])
        late = change("a", 0, messages=[message(1)], timers=[Timer("t", None), Timer("u", 2.0)])
        good = change("b", messages=[message(2)], timers=[Timer("t", 3.0)])
        assert store.commit([late, good]) == {("T", "b")}
        assert store.messages(10) == [message(2)]
        assert store.due(9.0, ["T"], 10) == [Due("T", "a", Timer("t", 1.0)), Due("T", "b", Timer("t", 3.0))]

    # All of it

    @pytest.mark.parametrize("seed", range(4))
    def test_random_steps_go_as_in_the_model(self, store: Store, seed: int) -> None:
        chance, model = random.Random(seed), Model(store.alone)
        keys, clients = [*"abcd"], [bytes([n]) * 16 for n in range(4)]
        lasting = {clients[0], clients[1]}  # leases that outlast the test; the others are over at once
        number, refused = 0, 0
        for _ in range(150):
            step = chance.randrange(10)
            if step < 6:
                changes = []
                # In order, since of the messages in one commit only those of one change have an order.
                for key in sorted(chance.sample(keys, chance.randint(1, 4))):
                    number += 1
                    changes.append(random_change(chance, model, key, number, clients))
                accepted = store.commit(changes)
                assert accepted == model.commit(changes)
                refused += len(changes) - len(accepted)
            elif step == 6:
                names, owner = [("T", key) for key in chance.sample(keys, 2)], chance.choice(("me", "you"))
                assert store.acquire(names, owner) == model.acquire(names, owner)
            elif step == 7:
                client = chance.choice(clients)
                store.open_session(client, LEASE_S if client in lasting else 0)
                model.sessions.add(client)
            elif step == 8:
                assert len(store.expire_sessions()) == model.expire(lasting)
            else:
                ids = chance.sample([*model.messages], min(2, len(model.messages)))
                store.delivered(ids)
                for id in ids:
                    del model.messages[id]
            assert store.messages(1000) == [*model.messages.values()]
            reads = [("T", key, 0, chance.randrange(3)) for key in keys]
            assert store.confirm(reads) == model.confirm(reads)
            for key in keys:
                name = "T", key
                assert store.load(*name) == model.objects.get(name)
                assert store.replies(*name) == [r for _, r in sorted(model.replies.get(name, {}).items())]
                assert store.timers(*name) == [t for _, t in sorted(model.timers.get(name, {}).items())]
        assert refused
        assert number > 100

    # Snapshots

    def test_a_snapshot_has_everything_and_restores_it(self, store: Store) -> None:
        fill(store)
        rows = list(store.snapshot())
        kinds = [type(row) for row in rows]
        order = [Stored, Answered, Due, Session, Message]
        assert [kinds.count(kind) for kind in order] == [4, 3, 2, 2, 2]
        assert kinds == sorted(kinds, key=order.index)
        assert rows[0] == Stored("T", "a", "me", Record(0, 1, 1, 3, b"\x00\xff"))
        assert Stored("T", "gone", "", Record(0, 2, 1, 3, None)) in rows
        assert rows[4:7] == [Answered("T", "a", reply(1)), *[Answered("U", "é", reply(n)) for n in (1, 2)]]
        assert rows[7:9] == [Due("T", "a", Timer("t", 2.5, b"p")), Due("U", "é", Timer("", 1.5))]
        assert [row.client for row in rows if isinstance(row, Session)] == sorted((CLIENT, OTHER))
        assert rows[-2:] == [message(5), message(3)]

        store.commit([change("a", 1, b"later"), change("new")])
        store.open_session(STRANGER, LEASE_S)
        with pytest.raises(errors.StoreError, match="has objects already"):
            store.restore("1" * 32, rows)
        assert store.keys("T") == ["a", "b", "new"]
        store.restore("1" * 32, iter(rows), replace=True)
        assert store.id == "1" * 32
        again = list(store.snapshot())
        assert again[5:] == rows[4:]
        # Versions only grow, and nobody has the epochs.
        assert again[:5] == [
            Stored("T", "a", "me", Record(1, 2, 1, 3, b"\x00\xff")),
            Stored("T", "b", "you", Record(1, 300, 2, 4, b"")),
            Stored("T", "gone", "", Record(1, 2, 1, 3, None)),
            Stored("T", "new", None, Record(1, 1, 1, 3, None)),
            Stored("U", "é", "", Record(1, 2, 1, 3, b"s")),
        ]
        assert store.renew_sessions([STRANGER, CLIENT], LEASE_S) == {CLIENT}

    def test_an_empty_store_becomes_just_what_the_snapshot_is_of(self, store: Store) -> None:
        rows: list[Row] = [
            Stored("T", "a", "me", Record(2**40, 2**41, 1, 3, b"s")),
            Stored("T", "b", None, Record(0, 1, 1, 3, None)),
            Answered("T", "a", reply(2**62)),
            Session(CLIENT, 1e12),
        ]
        store.restore("ab" * 16, rows)
        assert list(store.snapshot()) == rows
        # ... and goes on from there
        assert store.commit([change("a", 2**41, b"t", epoch=2**40, replies=[reply(1)])])
        assert store.commit([change("b", 1)])

    def test_who_had_an_object_before_it_was_replaced_commits_nothing_to_it(self, store: Store) -> None:
        store.commit([change("a"), change("b")])
        rows = list(store.snapshot())
        assert store.commit([change("a", 1)])
        store.restore(store.id, rows[:1] + rows[2:], replace=True)
        assert store.commit([change("a", 1), change("b", 1)]) == set()
        assert store.commit([change("a", 2), change("b", 2)]) == set()
        assert store.commit([change("a", 2, epoch=1), change("b", 1, epoch=1)]) == {("T", "a"), ("T", "b")}

    def test_a_snapshot_of_some_types(self, store: Store) -> None:
        fill(store)
        rows = list(store.snapshot())
        some = [row for row in rows if isinstance(row, Session) or getattr(row, "type", "") == "U"]
        assert list(store.snapshot(["U"])) == some
        assert list(store.snapshot(["T", "U"])) == [row for row in rows if not isinstance(row, Message)]
        assert [type(row) for row in store.snapshot([])] == [Session, Session]

    def test_a_snapshot_is_of_one_moment(self, store: Store) -> None:
        """Two objects that always change together, and a store so large that it takes more than a moment."""
        store.commit([change(f"{n}", state=b"x" * 100_000) for n in range(100)])
        keys = "first", "~last"
        store.commit([change(key) for key in keys])
        stop, committed = threading.Event(), threading.Event()

        def write() -> int:
            version = 1
            while not stop.is_set():
                assert len(store.commit([change(key, version, b"%d" % version) for key in keys])) == 2
                version += 1
                committed.set()
            return version

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            for _ in range(5):
                assert committed.wait(30)
                records = {row.key: row.record for row in store.snapshot() if isinstance(row, Stored)}
                committed.clear()
                assert len(records) == 102
                assert records["first"] == records["~last"]
                assert committed.wait(30)  # it does not hold up the writer
            stop.set()
            assert writing.result(30) > 5

    def test_what_cannot_be_restored_changes_nothing_and_is_pointed_at(self, store: Store) -> None:
        fill(store)
        before, id = list(store.snapshot()), store.id
        good = [Stored("T", f"{n}", "", Record(0, 1, 1, 3, b"s")) for n in range(700)]
        bad: list[Row] = [
            good[5],
            Stored("\ud800", "a", "", Record(0, 1, 1, 3, b"s")),
            Stored("T", "null", "", Record(0, 1, None, 3, b"s")),  # type: ignore[arg-type]
            Stored("T", "big", "", Record(0, 1 << 70, 1, 3, b"s")),
        ]
        for row in bad:
            with pytest.raises(Unstorable) as caught:
                store.restore("0" * 32, [*good, row, *good[:3]], replace=True)
            assert caught.value.row == 701
        with pytest.raises(ZeroDivisionError):
            store.restore("0" * 32, (good[int(5 / n)] for n in (2, 1, 0)), replace=True)
        assert (list(store.snapshot()), store.id) == (before, id)
        assert store.commit([change("a", 1)])

    def test_records_without_a_session_are_not_restored(self, store: Store) -> None:
        rows: list[Row] = [Stored("T", "a", "", Record(0, 1, 1, 3, b"s")), Answered("T", "a", reply(1))]
        store.restore(store.id, rows)
        store.open_session(CLIENT, LEASE_S)
        assert store.replies("T", "a") == []

    def test_a_snapshot_that_is_given_up_holds_nothing(self, store: Store) -> None:
        fill(store)
        for _ in range(3):
            rows = store.snapshot()
            assert isinstance(next(rows), Stored)
            rows.close()
        assert store.commit([change("a", 1)])

    # What goes wrong

    @pytest.mark.parametrize(
        "bad",
        [
            change("\ud800"),
            change("number", 1 << 70),
            change("null", state_version=None),
            change("reply", replies=[reply(1 << 70)]),
            change("digest", replies=[Reply(CLIENT, 1, b"", 0, None, 0, b"")]),  # type: ignore[arg-type]
            change("target", messages=[Message(b"i" * 16, "\ud800", b"")]),
            change("payload", messages=[Message(b"i" * 16, "t", None)]),  # type: ignore[arg-type]
            change("timer", timers=[Timer("\ud800", 1.0)]),
        ],
        ids=lambda bad: ascii(bad.key),
    )
    def test_what_cannot_be_stored_undoes_the_commit_and_is_to_blame(self, store: Store, bad: Change) -> None:
        with pytest.raises(Unstorable, match="cannot write") as caught:
            store.commit([change("a"), bad])
        assert not caught.value.in_doubt
        assert store.load("T", "a") is None
        assert store.commit([change("a")])

    def test_a_key_with_a_nul_is_kept_as_it_is_or_refused(self, store: Store) -> None:
        try:
            store.commit([change("a\0b")])
        except Unstorable:
            assert store.keys("T") == []
        else:
            assert store.keys("T", "a\0") == ["a\0b"]

    def test_one_bad_change_among_good_ones_fails_alone(self, store: Store) -> None:
        committer, outcomes = Committer(store), dict[str, BaseException | None]()
        gate = threading.Event()
        committer.submit(change("first"), lambda error: wait(gate))
        for row in [change("\ud800"), *(change(f"{n}") for n in range(20)), change("null", codec=None)]:
            committer.submit(row, lambda error, key=row.key: outcomes.__setitem__(key, error))  # type: ignore[misc]
        gate.set()
        committer.close()
        assert {key for key, error in outcomes.items() if error is not None} == {"\ud800", "null"}
        assert store.keys("T") == sorted(["first", *map(str, range(20))])

    def test_a_closed_store_says_so_and_blames_no_change(self, store: Store) -> None:
        store.close()
        store.close()
        uses: list[Callable[[], object]] = [
            lambda: store.load("T", "a"),
            lambda: store.commit([]),
            lambda: store.commit([change("a")]),
            lambda: store.keys("T"),
            lambda: list(store.items("T")),
            lambda: store.replies("T", "a"),
            lambda: store.acquire([("T", "a")], "me"),
            lambda: store.confirm([("T", "a", 0, 0)]),
            lambda: store.open_session(CLIENT, 1),
            lambda: store.renew_sessions([CLIENT], 1),
            store.expire_sessions,
            lambda: store.messages(1),
            lambda: store.delivered([b"i"]),
            lambda: store.due(0, ["T"], 1),
            lambda: store.next_due(0, ["T"]),
            lambda: store.timers("T", "a"),
            store.types,
            lambda: store.count("T"),
            lambda: list(store.snapshot()),
            lambda: store.restore("0" * 32, []),
        ]
        for use in uses:
            with pytest.raises(errors.StoreError, match="closed") as caught:
                use()
            assert not isinstance(caught.value, Unstorable)
            assert not caught.value.in_doubt

    # Many at a time

    def test_many_threads(self, store: Store) -> None:
        def work(n: int) -> None:
            for version in range(20):
                assert store.commit([change(str(n), version)])
                record = store.load("T", str(n))
                assert record is not None
                assert record.version == version + 1

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert {r.version for _, r in store.items("T")} == {20}

    def test_of_those_that_race_one_wins(self, store: Store) -> None:
        wins = race([store] * 4, rounds=25)
        record = store.load("T", "0")
        assert record is not None
        assert record.version == sum(wins) == 25


def fill(store: Store) -> None:
    """Something of everything: a change of each kind, of two types."""
    store.commit([change("b", calls=300, state=b"", codec=2, state_version=4, owner="you"), change("gone")])
    store.commit([change("gone", 1, None, messages=[message(5)])])
    timers = [Timer("t", 2.5, b"p")]
    store.commit([change("a", state=b"\x00\xff", owner="me", replies=[reply(1)], timers=timers)])
    more = change("é", type="U", calls=2, replies=[reply(1), reply(2)], timers=[Timer("", 1.5)])
    store.commit([more._replace(messages=[message(3)])])


class Model:
    """What a store does, in dictionaries."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.objects: dict[tuple[str, str], Record] = {}
        self.owners: dict[tuple[str, str], str] = {}
        self.replies: dict[tuple[str, str], dict[tuple[bytes, int, bytes], Reply]] = {}
        self.timers: dict[tuple[str, str], dict[str, Timer]] = {}
        self.messages: dict[bytes, Message] = {}
        self.sessions = {CLIENT, OTHER}

    def commit(self, changes: list[Change]) -> set[tuple[str, str]]:
        return {(c.type, c.key) for c in changes if self.accepts(c)}

    def accepts(self, c: Change) -> bool:
        name = c.type, c.key
        now = self.objects.get(name)
        if (c.epoch, c.version) != (now[:2] if now else (0, 0)):
            return False
        if not {reply.client for reply in c.replies} <= self.sessions:
            return False
        self.objects[name] = Record(c.epoch, c.version + c.calls, c.codec, c.state_version, c.state)
        self.owners.setdefault(name, c.owner)
        kept = self.replies.setdefault(name, {})
        for client, through in c.acked:
            for id in [id for id in kept if id[0] == client and id[1] <= through]:
                del kept[id]
        kept.update({reply[:3]: reply for reply in c.replies})
        self.messages.update({message.id: message for message in c.messages})
        timers = self.timers.setdefault(name, {})
        for timer in c.timers:
            timers.pop(timer.name, None)
            if timer.due is not None:
                timers[timer.name] = timer
        return True

    def acquire(self, names: list[tuple[str, str]], owner: str) -> dict[tuple[str, str], Record]:
        for name in self.objects.keys() & names:
            if not self.alone and self.owners[name] != owner:
                self.owners[name] = owner
                self.objects[name] = self.objects[name]._replace(epoch=self.objects[name].epoch + 1)
        return {name: self.objects[name] for name in names if name in self.objects}

    def confirm(self, reads: list[tuple[str, str, int, int]]) -> set[tuple[str, str]]:
        missing = Record(0, 0, 0, 0, None)
        return {(t, k) for t, k, *read in reads if (*read,) == self.objects.get((t, k), missing)[:2]}

    def expire(self, lasting: set[bytes]) -> int:
        ended = self.sessions - lasting - {CLIENT, OTHER}
        self.sessions -= ended
        for kept in self.replies.values():
            for id in [id for id in kept if id[0] in ended]:
                del kept[id]
        return len(ended)


def random_change(chance: random.Random, model: Model, key: str, number: int, clients: list[bytes]) -> Change:
    """Mostly the next one of an object, now and then a stale one."""
    now = model.objects.get(("T", key), Record(0, 0, 0, 0, None))
    callers = chance.sample(clients, chance.choice((0, 0, 1, 1, 2)))
    return change(
        key,
        now.version - (chance.random() < 0.1),
        chance.choice((None, b"", b"%d" % number)),
        epoch=max(0, now.epoch - (chance.random() < 0.1)),
        calls=chance.randint(1, 3),
        replies=[reply(number, client, path=chance.choice((b"", b"p"))) for client in callers],
        acked=[
            (client, number - chance.randrange(20)) for client in chance.sample(clients, chance.randrange(2))
        ],
        messages=[message(number)] * chance.randrange(2),
        timers=[
            Timer(chance.choice("tu"), chance.choice((None, float(number))))
            for _ in range(chance.randrange(3))
        ],
        owner=chance.choice(("me", "you")),
    )


def wait(gate: threading.Event) -> None:
    assert gate.wait(30)


def race(stores: list[Store], rounds: int) -> list[int]:
    """All try to write the same objects, in different orders, until each has had `rounds` versions.

    Returns how often each store won the first object.
    """
    names = [str(n) for n in range(10)]
    start = threading.Barrier(len(stores))

    def work(n: int) -> int:
        start.wait(30)
        won = 0
        mine = names[n:] + names[:n]
        for version in range(rounds):
            accepted = stores[n].commit([change(key, version, b"%d" % n) for key in mine])
            assert len(accepted) in (0, len(names))  # whoever is first has all of this version
            won += ("T", "0") in accepted
        return won

    with concurrent.futures.ThreadPoolExecutor(len(stores)) as pool:
        return list(pool.map(work, range(len(stores))))


class SharedStoreConformance(StoreConformance):
    """A store that several servers may use at a time."""

    def test_it_says_so(self, store: Store) -> None:
        assert not store.alone

    def test_who_acquires_fences_the_owner_before(self, store: Store) -> None:
        name = ("T", "a")
        store.commit([change("a", owner="old")])
        assert store.acquire([name], "old") == {name: Record(0, 1, 1, 3, b"s")}
        assert store.acquire([name], "new") == {name: Record(1, 1, 1, 3, b"s")}
        late = change("a", 1, b"late", replies=[reply(1)], messages=[message(1)], timers=[Timer("t", 1.0)])
        assert store.commit([late]) == set()
        assert store.confirm([("T", "a", 0, 1)]) == set()
        assert store.confirm([("T", "a", 1, 1)]) == {name}
        assert (store.replies(*name), store.messages(1), store.timers(*name)) == ([], [], [])
        # the new owner keeps the epoch, also when it commits and when it asks again
        assert store.commit([change("a", 1, b"t", epoch=1)]) == {name}
        assert store.acquire([name], "new") == {name: Record(1, 2, 1, 3, b"t")}
        assert store.acquire([name], "old") == {name: Record(2, 2, 1, 3, b"t")}

    def test_some_are_taken_over_and_some_were_mine(self, store: Store) -> None:
        store.commit([change("mine", owner="me"), change("theirs", owner="you"), change("dead", owner="you")])
        store.commit([change("dead", 1, None)])
        names = [("T", "theirs"), ("T", "none"), ("T", "mine"), ("T", "dead"), ("T", "theirs")]
        assert store.acquire(names, "me") == {
            ("T", "theirs"): Record(1, 1, 1, 3, b"s"),
            ("T", "mine"): Record(0, 1, 1, 3, b"s"),
            ("T", "dead"): Record(1, 2, 1, 3, None),
        }
        # nobody has "none" until it is stored
        assert store.commit([change("none", owner="you")])
        assert store.acquire([("T", "none")], "me") == {("T", "none"): Record(1, 1, 1, 3, b"s")}

    def test_two_owners_that_take_it_from_each_other_lose_no_call(self, store: Store) -> None:
        fight([store] * 2, rounds=50)

    def test_loading_takes_nothing(self, store: Store) -> None:
        store.commit([change("a", owner="old")])
        assert store.load("T", "a") == Record(0, 1, 1, 3, b"s")
        assert store.commit([change("a", 1)])


def fight(stores: list[Store], rounds: int) -> None:
    """In each round all take the same object, and add to it until they lose it."""
    start = threading.Barrier(len(stores))

    def work(n: int) -> list[int]:
        done = []
        for _ in range(rounds):
            start.wait(30)
            found = stores[n].acquire([("T", "a")], f"{n}").get(("T", "a"), Record(0, 0, 0, 0, b"0"))
            assert isinstance(found, Record)
            epoch, version, _, _, state = found
            for _ in range(3):
                state = b"%d" % (int(state or b"0") + 1)
                if not stores[n].commit([change("a", version, state, epoch=epoch, owner=f"{n}")]):
                    break
                version += 1
                done.append(version)
        return done

    with concurrent.futures.ThreadPoolExecutor(len(stores)) as pool:
        done = sorted(itertools.chain(*pool.map(work, range(len(stores)))))
    record = stores[0].load("T", "a")
    assert record is not None
    assert done == list(range(1, record.version + 1))
    assert record.state == b"%d" % record.version
    assert record.epoch >= rounds - 1


_WRITER = """
import itertools, sys
from objserver.testing.stores import CLIENT, LEASE_S, change, message, reply
import importlib
module, _, name = sys.argv[2].partition(":")
store = getattr(importlib.import_module(module), name)(sys.argv[1])
store.open_session(CLIENT, LEASE_S)
start = store.load("T", "n")
for n in itertools.count(start.version if start else 0):
    acked = [(CLIENT, n - 4)]
    sent = [message(n + 1)]
    assert store.commit([change("n", n, b"%d" % (n + 1), replies=[reply(n + 1)], acked=acked, messages=sent)])
    print(n + 1, flush=True)
"""


class DurableStoreConformance(StoreConformance):
    """A store that can be opened again."""

    opener = "objserver.storage:open_store"
    """What opens it in another process, as module:function."""

    def test_it_is_all_there_after_opening_again(self, url: str) -> None:
        store = self.open(url)
        id = store.id
        store.open_session(CLIENT, LEASE_S)
        timer = Timer("t", 1.5)
        store.commit([change("a", calls=2, replies=[reply(1)], messages=[message(1)]), change("b")])
        store.commit([change("b", 1, None, timers=[timer])])
        store.close()
        store = self.open(url)
        found = store.load("T", "a"), store.load("T", "b"), store.replies("T", "a"), store.keys("T")
        others = store.id, store.messages(9), store.timers("T", "b"), store.renew_sessions([CLIENT], 1)
        store.close()
        assert found == (Record(0, 2, 1, 3, b"s"), Record(0, 2, 1, 3, None), [reply(1)], ["a"])
        assert others == (id, [message(1)], [timer], {CLIENT})

    def test_kill_9_loses_nothing_acknowledged(self, url: str) -> None:
        acknowledged = 0
        for _ in range(3):
            command = [sys.executable, "-c", _WRITER, url, self.opener]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
                assert victim.stdout is not None
                for _ in range(20):
                    acknowledged = int(victim.stdout.readline())
                os.kill(victim.pid, signal.SIGKILL)
                for line in victim.stdout:
                    if line.endswith("\n"):
                        acknowledged = int(line)
            store = self.open(url)
            record, replies, sent = store.load("T", "n"), store.replies("T", "n"), store.messages(10**6)
            store.close()
            assert record is not None
            assert record.version >= acknowledged
            assert record.state == b"%d" % record.version
            assert [r.number for r in replies] == list(range(max(1, record.version - 4), record.version + 1))
            assert sent == [message(n + 1) for n in range(record.version)]
        assert acknowledged >= 60


_VERSION_1 = [
    """CREATE TABLE object (type TEXT NOT NULL, key TEXT NOT NULL, owner TEXT, owner_inc BIGINT,
        epoch BIGINT DEFAULT '0' NOT NULL, version BIGINT DEFAULT '0' NOT NULL, codec SMALLINT NOT NULL,
        state_version INTEGER NOT NULL, state {blob}, deleted BOOLEAN DEFAULT false NOT NULL,
        PRIMARY KEY (type, key))""",
    """CREATE TABLE reply (type TEXT NOT NULL, key TEXT NOT NULL, client {blob} NOT NULL,
        seq BIGINT NOT NULL, digest {blob} NOT NULL, status SMALLINT NOT NULL, result {blob},
        PRIMARY KEY (type, key, client, seq))""",
    """CREATE TABLE cluster (one INTEGER NOT NULL CHECK (one = 1), cluster_id {uuid} NOT NULL,
        schema_version INTEGER NOT NULL, PRIMARY KEY (one))""",
    "INSERT INTO cluster VALUES (1, '0123456789abcdef0123456789abcdef', 1)",
    """INSERT INTO object (type, key, version, codec, state_version, state, deleted)
        VALUES ('T', 'a', 5, 1, 3, {state}, false), ('T', 'b', 2, 1, 3, NULL, true)""",
]
"""What made and filled a database of version 1."""


class SqlStoreConformance(DurableStoreConformance):
    """A store in a database that has the tables of `objserver.storage.schema`."""

    def sql(self, url: str, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement there, with no store open."""
        raise NotImplementedError

    def test_new_tables_and_their_version(self, url: str) -> None:
        self.open(url).close()
        assert self.sql(url, "select one, schema_version from cluster") == [(1, 3)]
        for table in ("object", "reply", "session", "message", "timer"):
            assert self.sql(url, f"select count(*) from {table}") == [(0,)]

    def test_a_store_of_version_1_keeps_its_objects(self, url: str) -> None:
        words = {"blob": "BLOB", "uuid": "CHAR(32)", "state": "x'0102'"}
        if url.startswith("postgresql"):
            words = {"blob": "BYTEA", "uuid": "UUID", "state": r"'\x0102'"}
        for statement in _VERSION_1:
            self.sql(url, statement.format(**words))
        for version in (1, 3):
            assert self.sql(url, "select schema_version from cluster") == [(version,)]
            store = self.open(url)
            assert store.load("T", "a") == Record(0, 5, 1, 3, b"\x01\x02")
            assert store.load("T", "b") == Record(0, 2, 1, 3, None)
            assert store.id == "0123456789abcdef" * 2
            assert store.keys("T") == ["a"]
            store.close()
        store = self.open(url)
        store.open_session(CLIENT, LEASE_S)
        answered = change("a", 5, b"t", replies=[reply(1)], messages=[message(1)], timers=[Timer("t", 1.0)])
        assert store.commit([answered, change("c")]) == {("T", "a"), ("T", "c")}
        assert store.replies("T", "a") == [reply(1)]
        assert set(store.acquire([("T", "a"), ("T", "b"), ("T", "c")], "")) == {("T", key) for key in "abc"}
        store.close()

    def test_a_newer_schema_is_refused_with_both_versions(self, url: str) -> None:
        self.open(url).close()
        self.sql(url, "update cluster set schema_version = 7")
        with pytest.raises(errors.StoreError, match=r"has schema version 7.* 3; upgrade"):
            self.open(url)

    def test_the_database_of_another_program_is_refused_and_untouched(self, url: str) -> None:
        self.sql(url, "create table bookmarks(x integer)")
        with pytest.raises(errors.StoreError, match="another program"):
            self.open(url)
        self.sql(url, "create table object(x integer)")  # is not there
        assert self.sql(url, "select * from bookmarks") == []
