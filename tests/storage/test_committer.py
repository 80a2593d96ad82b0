import sqlite3
import threading

import pytest

from objserver import errors
from objserver.storage import Change, Committer, open_store
from objserver.storage.base import Unstorable


def change(key, version=0):
    return Change("T", key, 0, version, 1, 1, b"s")


class FakeStore:
    """Records the batches; each commit waits for `gate`."""

    def __init__(self):
        self.batches = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.error = None
        self.refused = set()
        self.unstorable = set()
        self.stored = set()

    def commit(self, changes):
        self.batches.append([(c.key, c.version) for c in changes])
        self.entered.set()
        assert self.gate.wait(10)
        if self.error:
            raise self.error
        if not self.unstorable.isdisjoint(c.key for c in changes):
            raise Unstorable("too large")
        self.stored |= {c.key for c in changes}
        return {(c.type, c.key) for c in changes if c.key not in self.refused}


@pytest.fixture
def fake():
    return FakeStore()


@pytest.fixture
def make(fake):
    made = []

    def make(**options):
        made.append(Committer(fake, **options))
        return made[-1]

    yield make
    fake.gate.set()
    for committer in made:
        committer.close()


def blocked(fake, committer, done=lambda error: None):
    """Hold the committer inside the commit of one change, so that what follows piles up."""
    committer.submit(change("first"), done)
    assert fake.entered.wait(10)


def test_what_piles_up_is_one_transaction(fake, make):
    committer, outcomes = make(), []
    blocked(fake, committer, outcomes.append)
    for n in range(50):
        committer.submit(change(str(n)), lambda error, n=n: outcomes.append((n, error)))
    assert committer.statistics()["queued"] == 50
    fake.gate.set()
    committer.close()
    assert [len(b) for b in fake.batches] == [1, 50]
    assert outcomes == [None] + [(n, None) for n in range(50)]
    assert committer.statistics() == {
        "commits": 2,
        "changes": 51,
        "largest_batch": 50,
        "queued": 0,
        "batch_max": 256,
        "queue_max": 10_000,
    }


def test_batch_max(fake, make):
    committer = make(batch_max=4)
    blocked(fake, committer)
    for n in range(9):
        committer.submit(change(str(n)), lambda error: None)
    fake.gate.set()
    committer.close()
    assert [len(b) for b in fake.batches] == [1, 4, 4, 1]


def test_changes_of_one_object_keep_their_order_in_different_batches(fake, make):
    committer, order = make(), []
    blocked(fake, committer)
    for version in range(3):
        committer.submit(change("hot", version), lambda error, v=version: order.append(v))
    committer.submit(change("cold"), lambda error: order.append("cold"))
    fake.gate.set()
    committer.close()
    assert fake.batches[1:] == [[("hot", 0), ("cold", 0)], [("hot", 1)], [("hot", 2)]]
    assert order == [0, "cold", 1, 2]


def test_a_failed_transaction_fails_each_with_an_error_of_its_own(fake, make):
    committer, outcomes = make(), []
    blocked(fake, committer)
    fake.error = OSError("no more disk")
    for n in range(3):
        committer.submit(change(str(n)), outcomes.append)
    fake.gate.set()
    committer.close()
    assert len({id(e) for e in outcomes}) == 3
    for error in outcomes:
        assert isinstance(error, errors.StoreError)
        assert "no more disk" in str(error)
        assert error.__cause__ is fake.error


def test_a_refused_change_fails_alone(fake, make):
    committer, outcomes = make(), []
    fake.refused = {"b"}
    blocked(fake, committer)
    for key in "abc":
        committer.submit(change(key), outcomes.append)
    fake.gate.set()
    committer.close()
    assert outcomes[0] is outcomes[2] is None
    assert isinstance(outcomes[1], errors.StoreError)
    assert "no longer at epoch 0, version 0" in str(outcomes[1])


def test_full_queue_refuses_at_once(fake, make):
    committer = make(queue_max=2)
    blocked(fake, committer)
    committer.submit(change("a"), lambda error: None)
    committer.submit(change("b"), lambda error: None)
    with pytest.raises(errors.ServerBusy, match="queue_max"):
        committer.submit(change("c"), lambda error: None)


def test_a_failing_callback_is_logged_and_survived(fake, make, caplog):
    committer, outcomes = make(), []

    def bad(error):
        raise SystemExit

    fake.gate.set()
    committer.submit(change("a"), bad)
    committer.submit(change("b"), outcomes.append)
    committer.close()
    assert outcomes == [None]
    assert [r.name for r in caplog.records] == ["objserver.storage"]


def test_no_thread_before_the_first_submit_and_none_after_close(fake, make):
    committer = make()
    assert "objserver-committer" not in {t.name for t in threading.enumerate()}
    committer.close()
    committer.close()
    with pytest.raises(errors.StoreError, match="closing"):
        committer.submit(change("a"), lambda error: None)


def test_a_callback_may_submit_and_close(fake, make):
    committer, outcomes, closed = make(), [], threading.Event()

    def second(error):
        outcomes.append(error)
        committer.close()
        closed.set()

    fake.gate.set()
    committer.submit(change("a"), lambda error: committer.submit(change("a", 1), second))
    assert closed.wait(10)
    assert outcomes == [None]


def test_with_the_real_store():
    store, outcomes = open_store("sqlite://"), []
    committer = Committer(store)
    for version in range(5):
        for key in "ab":
            committer.submit(change(key, version), outcomes.append)
    committer.submit(change("a", 1), outcomes.append)
    committer.close()
    assert outcomes.count(None) == 10
    assert isinstance(outcomes[-1], errors.StoreError)
    assert [r.version for _, r in store.items("T")] == [5, 5]
    store.close()


def test_a_change_that_cannot_be_stored_fails_alone(fake, make):
    committer, outcomes = make(), {}
    fake.unstorable = {"3", "7"}
    blocked(fake, committer)
    for n in range(9):
        committer.submit(change(str(n)), lambda error, n=n: outcomes.__setitem__(n, error))
    fake.gate.set()
    committer.close()
    assert {n for n, error in outcomes.items() if error is not None} == {3, 7}
    assert list(outcomes) == list(range(9))
    for n in (3, 7):
        assert type(outcomes[n]) is errors.StoreError
        assert f"T '{n}' was not stored: too large" in str(outcomes[n])
    assert fake.stored == {"first", *"01245689"} - {"9"}
    assert committer.statistics()["changes"] == 8


def test_a_broken_store_is_not_asked_again(fake, make):
    committer, outcomes = make(), []
    blocked(fake, committer)
    fake.error = errors.StoreError("the disk failed")
    for n in range(5):
        committer.submit(change(str(n)), outcomes.append)
    fake.gate.set()
    committer.close()
    assert [len(b) for b in fake.batches] == [1, 5]
    assert all(isinstance(error, errors.StoreError) for error in outcomes)


def test_one_bad_row_in_the_real_store(caplog):
    store, outcomes = open_store("sqlite://"), {}
    store._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    bad = {
        "large": Change("T", "large", 0, 0, 1, 1, b"x" * 2000),
        "surrogate": Change("T", "\ud800", 0, 0, 1, 1, b""),
        "number": Change("T", "number", 0, 0, 1, 2**64, b""),
        "null": Change("T", "null", 0, 0, 1, None, b""),
    }
    gate = threading.Event()
    committer = Committer(store)
    committer.submit(change("first"), lambda error: gate.wait(10))
    for name, row in [*bad.items(), *((str(n), change(str(n))) for n in range(20))]:
        committer.submit(row, lambda error, name=name: outcomes.__setitem__(name, error))
    gate.set()
    committer.close()
    assert {name for name, error in outcomes.items() if error is not None} == set(bad)
    assert store.keys("T") == sorted(["first", *map(str, range(20))])
    store.close()


def test_a_closed_store_is_not_blamed_on_the_changes():
    store = open_store("sqlite://")
    store.close()
    with pytest.raises(errors.StoreError) as caught:
        store.commit([change("a")])
    assert type(caught.value) is errors.StoreError


@pytest.mark.parametrize("in_doubt", [True, False])
def test_what_is_in_doubt_stays_so(fake, make, in_doubt):
    committer, outcomes = make(), []
    fake.error = errors.StoreError("no answer")
    fake.error.in_doubt = in_doubt
    fake.gate.set()
    committer.submit(change("a"), outcomes.append)
    committer.close()
    said = "may or may not have been stored" if in_doubt else "was not stored"
    assert [(str(e), e.in_doubt) for e in outcomes] == [(f"T 'a' {said}: no answer", in_doubt)]


def test_an_error_that_is_not_the_stores_own_proves_nothing(fake, make):
    committer, outcomes = make(), []
    fake.error = ValueError("a defect")
    fake.gate.set()
    committer.submit(change("a"), outcomes.append)
    committer.close()
    assert [e.in_doubt for e in outcomes] == [True]
