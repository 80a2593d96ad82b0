"""Time is an argument; who has had its share is told when there is more."""

import pytest

from objserver import ServerSettings, errors
from objserver.security import Principal, Quotas, Restrictions
from objserver.security.quotas import PRINCIPALS_MAX, Bucket

ALICE, BOB = Principal("alice"), Principal("bob")


class Connection:
    closed = False
    principal_name = "alice"


def quotas(**settings):
    return Quotas(ServerSettings(**{"quota_burst_s": 2.0, **settings}))


def exceeded(call):
    with pytest.raises(errors.QuotaExceeded) as caught:
        call()
    return caught.value


def test_a_bucket_gives_what_has_gathered_and_then_its_rate():
    bucket = Bucket(10.0, 2.0)
    taken = 0
    while bucket.wait_s(100.0) == 0:
        bucket.take(100.0)
        taken += 1
    assert taken == 21
    assert bucket.wait_s(100.0) == pytest.approx(0.1)
    assert bucket.wait_s(100.05) == pytest.approx(0.05)
    assert bucket.wait_s(100.2) == 0


def test_a_bucket_is_never_fuller_than_full():
    bucket = Bucket(10.0, 0.0)
    bucket.take(0.0)
    assert bucket.wait_s(1e6) == 0
    bucket.take(1e6)
    assert bucket.wait_s(1e6) == pytest.approx(0.1)


def test_what_is_larger_than_the_bucket_passes_once_and_makes_the_next_wait():
    bucket = Bucket(100.0, 1.0)
    assert bucket.wait_s(0.0) == 0
    bucket.take(0.0, 1000)
    assert bucket.wait_s(0.0) == pytest.approx(9.0)


def test_each_principal_has_calls_of_its_own():
    q = quotas(calls_per_principal_s=1)
    for _ in range(3):
        q.call(ALICE, 0.0)
    problem = exceeded(lambda: q.call(ALICE, 0.0))
    assert isinstance(problem, errors.ServerBusy)
    assert (problem.quota, problem.retry_after_s) == ("calls_per_principal_s", pytest.approx(1.0))
    assert str(problem) == (
        "'alice' has had its share: setting calls_per_principal_s allows 1; try again in 1.000 s"
    )
    q.call(BOB, 0.0)
    q.call(ALICE, 1.01)


def test_bytes_are_counted_and_a_refusal_takes_nothing():
    q = quotas(bytes_per_principal_s=100, calls_per_principal_s=100)
    q.call(ALICE, 0.0, size=300)
    assert exceeded(lambda: q.call(ALICE, 0.0, size=1)).quota == "bytes_per_principal_s"
    q.call(ALICE, 0.0)
    figures = q.statistics()["by_principal"]["alice"]
    assert (figures["calls"], figures["refused"], figures["connections"]) == (2, 1, 0)


def test_a_batch_counts_as_its_calls():
    q = quotas(calls_per_principal_s=10)
    q.call(ALICE, 0.0, calls=30)
    assert exceeded(lambda: q.call(ALICE, 0.0)).retry_after_s == pytest.approx(1.0)


def test_all_variations_of_a_token_share_the_rate_that_it_was_given():
    q = quotas()
    one = Principal("alice", restrictions=Restrictions(rates=(("bucket", 1.0),)))
    other = Principal("alice", restrictions=Restrictions((("A",),), rates=(("bucket", 1.0), ("b2", 50.0))))
    assert q.counts_calls(one)
    assert not q.counts_calls(ALICE)
    for _ in range(3):
        q.call(one, 0.0)
    problem = exceeded(lambda: q.call(other, 0.0))
    assert problem.quota == "token"
    assert "the caller's token allows 1" in str(problem)
    q.call(ALICE, 0.0)


def test_activations_are_counted():
    q = quotas(activations_per_principal_s=1)
    for _ in range(3):
        q.activate(ALICE, 0.0)
    assert exceeded(lambda: q.activate(ALICE, 0.0)).quota == "activations_per_principal_s"
    unlimited = quotas(activations_per_principal_s=0)
    for _ in range(1000):
        unlimited.activate(ALICE, 0.0)


def test_connections_are_counted_while_they_are_open():
    q = quotas(connections_per_principal_max=2)
    first, second, third = Connection(), Connection(), Connection()
    q.connect(ALICE, first)
    q.connect(ALICE, second)
    problem = exceeded(lambda: q.connect(ALICE, third))
    assert (problem.quota, problem.retry_after_s) == ("connections_per_principal_max", None)
    assert q.statistics()["by_principal"]["alice"]["connections"] == 2
    q.connect(BOB, third)
    first.closed = True
    q.connect(ALICE, third)


def test_all_names_of_one_key_share_what_it_has():
    ann, bob = Principal("lab/ann", key="lab"), Principal("lab/bob", key="lab")
    q = quotas(calls_per_principal_s=1, quota_burst_s=1.0, connections_per_principal_max=2)
    q.call(ann, 0.0)
    assert q.call_plainly(bob, 0.0)
    assert not q.call_plainly(ann, 0.0)
    problem = exceeded(lambda: q.call(Principal("lab/somebody new", key="lab"), 0.0))
    assert "'lab/somebody new', with all who have the key 'lab', has had its share" in str(problem)
    q.call(Principal("lab/ann"), 0.0)  # of another's making: a certificate may say anything
    first, second, third = Connection(), Connection(), Connection()
    first.principal_name, second.principal_name = "lab/ann", "lab/bob"
    q.connect(ann, first)
    q.connect(bob, second)
    assert exceeded(lambda: q.connect(ann, third)).quota == "connections_per_principal_max"
    assert q.statistics()["by_principal"]["lab"]["connections_by_name"] == {"lab/ann": 1, "lab/bob": 1}


def test_the_table_of_principals_is_bounded():
    q = quotas(calls_per_principal_s=1)
    for number in range(PRINCIPALS_MAX + 10):
        q.call(Principal(str(number)), 0.0)
    figures = q.statistics()
    assert figures["principals"] == figures["principals_max"] == PRINCIPALS_MAX
    assert len(figures["by_principal"]) == 100
