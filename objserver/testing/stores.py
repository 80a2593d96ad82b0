"""What every engine of `objserver.storage.Store` must do, as tests that whoever writes one can run.

A class of tests derives from one of these and gives the place where stores are to be opened:

    class TestMine(DurableStoreConformance):
        @pytest.fixture
        def url(self, tmp_path):
            return f"mine:///{tmp_path}/a"

        def open(self, url):
            return MyStore(url)

`StoreConformance` needs one store and nothing else; `SharedStoreConformance` is for one that several servers
may use at a time; `durable_stores.DurableStoreConformance` also opens it again, and kills a process that
writes; `durable_stores.SqlStoreConformance` also looks into databases that have our tables, by a statement
that the class runs.

What every sentence of the interface demands has a test of its own.  One more takes random steps, and
compares what the store answers with `store_model.Model`, which is the interface in dictionaries.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from objserver import errors
from objserver.storage import Change, Committer, Record, Reply, Store, Unstorable, open_store
from objserver.storage.base import Due, Message, Timer
from objserver.testing.store_cluster import ClusterConformance
from objserver.testing.store_model import (
    CLIENT,
    LEASE_S,
    OTHER,
    STRANGER,
    Model,
    change,
    fight,
    message,
    race,
    random_change,
    reply,
)
from objserver.testing.store_snapshots import SnapshotConformance

__all__ = ["SharedStoreConformance", "StoreConformance"]


class StoreConformance(SnapshotConformance):
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
            lambda: store.join("1", "me", "h:1", 1, b""),
            lambda: store.renew("me", 1, b""),
            lambda: store.leave("me"),
            store.nodes,
            lambda: store.release([("T", "a", 1)], "me", None),
            lambda: store.owners([("T", "a")]),
            lambda: store.owned("me", 1),
            store.tally,
            lambda: store.messages(1, "me", True),
            lambda: store.first_messages([b"i"]),
            lambda: store.due(0, ["T"], 1, "me"),
            lambda: store.next_due(0, ["T"], "me"),
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


def wait(gate: threading.Event) -> None:
    assert gate.wait(30)


class SharedStoreConformance(ClusterConformance, StoreConformance):
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
