"""What a snapshot of a store has, and what restoring one does, as part of the conformance tests."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest

from objserver import errors
from objserver.storage import Record, Store, Unstorable
from objserver.storage.base import Answered, Due, Message, Row, Session, Stored, Timer
from objserver.testing.store_model import CLIENT, LEASE_S, OTHER, STRANGER, change, fill, message, reply

__all__ = ["SnapshotConformance"]


class SnapshotConformance:
    """Part of `objserver.testing.stores.StoreConformance`."""

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
