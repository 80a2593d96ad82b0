"""What every engine of `objserver.storage.Store` must do, as tests that whoever writes one can run.

A class of tests derives from one of these and gives the place where stores are to be opened:

    class TestMine(DurableStoreConformance):
        @pytest.fixture
        def url(self, tmp_path):
            return f"mine:///{tmp_path}/a"

        def open(self, url):
            return MyStore(url)

`StoreConformance` needs one store and nothing else; `DurableStoreConformance` also opens it again, and kills
a process that writes; `SqlStoreConformance` also looks into databases that have our tables, by a statement
that the class runs.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from objserver import errors
from objserver.storage import Change, Committer, Record, Reply, Store, Unstorable, open_store

__all__ = ["DurableStoreConformance", "SqlStoreConformance", "StoreConformance", "change", "reply"]

CLIENT = b"\x00\xff" * 8
OTHER = b"\xffother client \x00\x01"


def change(key: str, version: int = 0, state: bytes | None = b"s", **more: Any) -> Change:
    """A change of an object of type T."""
    named = {"type": "T", "epoch": 0, "codec": 1, "state_version": 3, **more}
    return Change(key=key, version=version, state=state, **named)


def reply(seq: int, client: bytes = CLIENT, result: bytes | None = b"r") -> Reply:
    return Reply(client, seq, b"\x00digest", 0, result)


class StoreConformance:
    """One store, new and empty for each test."""

    def open(self, url: str) -> Store:
        return open_store(url)

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        store = self.open(url)
        yield store
        store.close()

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
        for stale in (change("a"), change("a", 2), change("a", 1, epoch=1), change("new", 1)):
            assert store.commit([stale, change("b" + str(stale))]) == {("T", "b" + str(stale))}
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

    # What goes wrong

    @pytest.mark.parametrize(
        "bad",
        [
            change("\ud800"),
            change("number", 1 << 70),
            change("null", state_version=None),
            change("reply", replies=[Reply(CLIENT, 1 << 70, b"", 0, b"")]),
            change("digest", replies=[Reply(CLIENT, 1, None, 0, b"")]),  # type: ignore[arg-type]
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


_WRITER = """
import itertools, sys
from objserver.testing.stores import *
import importlib
module, _, name = sys.argv[2].partition(":")
store = getattr(importlib.import_module(module), name)(sys.argv[1])
start = store.load("T", "n")
for n in itertools.count(start.version if start else 0):
    acked = [(reply(0).client, n - 4)]
    assert store.commit([change("n", n, b"%d" % (n + 1), replies=[reply(n + 1)], acked=acked)])
    print(n + 1, flush=True)
"""


class DurableStoreConformance(StoreConformance):
    """A store that can be opened again."""

    opener = "objserver.storage:open_store"
    """What opens it in another process, as module:function."""

    def test_it_is_all_there_after_opening_again(self, url: str) -> None:
        store = self.open(url)
        store.commit([change("a", calls=2, replies=[reply(1)]), change("b")])
        store.commit([change("b", 1, None)])
        store.close()
        store = self.open(url)
        found = store.load("T", "a"), store.load("T", "b"), store.replies("T", "a"), store.keys("T")
        store.close()
        assert found == (Record(0, 2, 1, 3, b"s"), Record(0, 2, 1, 3, None), [reply(1)], ["a"])

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
            record, replies = store.load("T", "n"), store.replies("T", "n")
            store.close()
            assert record is not None
            assert record.version >= acknowledged
            assert record.state == b"%d" % record.version
            assert [r.seq for r in replies] == list(range(max(1, record.version - 4), record.version + 1))
        assert acknowledged >= 60


class SqlStoreConformance(DurableStoreConformance):
    """A store in a database that has the tables of `objserver.storage.schema`."""

    def sql(self, url: str, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement there, with no store open."""
        raise NotImplementedError

    def test_new_tables_and_their_version(self, url: str) -> None:
        self.open(url).close()
        assert self.sql(url, "select one, schema_version from cluster") == [(1, 1)]
        assert self.sql(url, "select count(*) from object") == [(0,)]
        assert self.sql(url, "select count(*) from reply") == [(0,)]

    def test_a_newer_schema_is_refused_with_both_versions(self, url: str) -> None:
        self.open(url).close()
        self.sql(url, "update cluster set schema_version = 7")
        with pytest.raises(errors.StoreError, match=r"has schema version 7.* 1; upgrade"):
            self.open(url)

    def test_the_database_of_another_program_is_refused_and_untouched(self, url: str) -> None:
        self.sql(url, "create table bookmarks(x integer)")
        with pytest.raises(errors.StoreError, match="another program"):
            self.open(url)
        self.sql(url, "create table object(x integer)")  # is not there
        assert self.sql(url, "select * from bookmarks") == []
