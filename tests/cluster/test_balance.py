"""Objects move from nodes that have too many to nodes that have too few, and then rest."""

import threading
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from objserver import Proxy, ServerSettings
from objserver.cluster import ByHash, Pinned
from objserver.cluster.balance import REMEMBERED_S, SLACK, SLACK_OBJECTS, Given, gives
from tests.cluster.conftest import LEASE_S, renewed
from tests.cluster.test_node import uri

counts = st.lists(st.integers(0, 2000), min_size=1, max_size=12)
# Objects that are only given by the test: no lease ends in it.
PATIENT = ServerSettings(node_lease_s=600)


def half(low, high):
    return (low + high) / 2


def is_even(objects):
    mean = sum(objects.values()) / len(objects)
    return all(abs(count - mean) <= SLACK * mean + SLACK_OBJECTS for count in objects.values())


def named(found):
    return {f"n{i}": count for i, count in enumerate(found)}


def move(objects, giver, given_to):
    for node, count in given_to.items():
        objects[giver] -= count
        objects[node] += count


@given(counts, st.integers(0, 2**32), st.booleans())
def test_from_any_distribution_all_come_near_the_mean_and_then_rest(found, seed, together):
    random, objects = Random(seed), named(found)
    for _ in range(300):
        known = dict(objects)
        moved = False
        for node in random.sample(sorted(objects), len(objects)):
            given_to = gives(known if together else dict(objects), node, 100, random.uniform)
            assert sum(given_to.values()) <= 100
            moved = moved or bool(given_to)
            move(objects, node, given_to)
        assert min(objects.values()) >= 0
        if not moved and is_even(objects):
            break
    else:
        raise AssertionError(objects)
    assert sum(objects.values()) == sum(found)
    assert not any(gives(objects, node, 100, random.uniform) for node in objects)


@given(st.lists(st.integers(0, 2000), min_size=2, max_size=5), st.integers(0, 2**32))
def test_objects_that_nobody_calls_where_they_went_are_not_given_without_end(found, seed):
    random, objects = Random(seed), named(found)
    shown = dict(objects)  # what was given never shows
    memories = {node: Given() for node in objects}
    for now in range(60):
        known = dict(shown)
        moved = False
        for node, memory in memories.items():
            seen = {other: memory.estimate(other, known[other], now) for other in known}
            seen[node] = known[node]
            for other, count in gives(seen, node, 100, random.uniform).items():
                moved = True
                memory.add(other, count, known[other], now)
                move(objects, node, {other: count})
                shown[node] -= count
    assert not moved
    if len(objects) == 2:
        assert is_even(objects)


def test_a_node_that_has_just_come_gets_its_share_of_many_that_are_even():
    objects = {**{f"n{i}": 1000 for i in range(9)}, "new": 0}
    assert gives(objects, "n0", 1000, half) == {"new": 100}
    assert gives(objects, "new", 1000, half) == {}


def test_who_is_rich_gives_to_all_below_the_mean():
    assert gives({"a": 400, "b": 100, "c": 100}, "a", 1000, half) == {"b": 100, "c": 100}


def test_no_more_is_given_than_is_allowed():
    assert gives({"a": 4000, "b": 0}, "a", 100, half) == {"b": 100}
    assert gives({"a": 4000, "b": 0}, "a", 0, half) == {}


def test_few_objects_stay_where_they_are():
    assert gives({"a": 20, "b": 0}, "a", 100, half) == {}
    assert gives({"a": 120, "b": 100}, "a", 100, half) == {}
    assert gives({"a": 500}, "a", 100, half) == {}
    assert gives({"b": 500, "c": 0}, "a", 100, half) == {}


def test_what_was_given_counts_until_it_shows_or_is_forgotten():
    memory = Given()
    memory.add("b", 50, 10, 0.0)
    assert memory.estimate("b", 10, 1.0) == 60
    assert memory.estimate("b", 70, 1.0) == 70
    assert memory.estimate("c", 5, 1.0) == 5
    assert memory.estimate("b", 0, REMEMBERED_S) == 0
    memory.add("b", 50, 10, 1000.0)
    assert memory.estimate("b", 10, 1000.0) == 60


def tally(node):
    """How many accounts the store says that each life has."""
    return {life: count for life, count in node._store.tally().items() if count}


def test_a_new_node_gets_its_share_and_no_call_fails(cluster):
    a = cluster("a")
    proxies = [Proxy(uri(a, n), timeout_s=20) for n in range(60)]
    counted = [[] for _ in proxies]
    failed, stopping = [], threading.Event()

    def call(part):
        try:
            while not stopping.is_set():
                for n in range(part, len(proxies), 3):
                    counted[n].append(proxies[n].deposit(1))
        except BaseException as problem:
            failed.append(problem)

    threads = [threading.Thread(target=call, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    while not failed and any(not each for each in counted):
        threading.Event().wait(0.01)
    b = cluster("b")
    waited = threading.Event()
    for _ in range(1000):
        if failed or b.node.statistics()["objects"] >= 20:
            break
        waited.wait(LEASE_S / 50)
    stopping.set()
    for thread in threads:
        thread.join(20)
    for proxy in proxies:
        proxy.release()
    assert not failed
    assert all(each == [*range(1, len(each) + 1)] for each in counted)
    assert b.node.statistics()["objects"] >= 20
    assert a.statistics()["objects_given"] >= 20


def both(cluster, **options):
    """Node a with 60 accounts, and b; both know of each other, and neither gives anything by itself."""
    a, b = (cluster(name, settings=PATIENT, **options) for name in "ab")
    b.node._state = "draining"
    renewed(b, a)
    for n in range(60):
        with Proxy(uri(a, n)) as proxy:
            proxy.deposit(1)
    b.node._state = "up"
    renewed(a, b)
    return a, b


def test_what_a_node_gives_is_the_others_and_they_do_not_give_it_back(cluster):
    a, b = both(cluster)
    a.node.balance()
    a.node.balanced()
    assert tally(a) == {a.node.owner: 30, b.node.owner: 30}
    renewed(a, b)
    for node in (a, b, a):
        node.node.balance()
        node.node.balanced()
    assert tally(a) == {a.node.owner: 30, b.node.owner: 30}


def test_only_what_was_called_since_is_given(cluster):
    a, b = both(cluster)
    a.node._balanced_at = a.adapter.invocations
    with Proxy(uri(a, 7)) as proxy:
        proxy.deposit(1)
    a.node.balance()
    a.node.balanced()
    assert tally(a) == {a.node.owner: 59, b.node.owner: 1}


def test_what_is_pinned_stays_and_what_is_hashed_goes_where_its_hash_says(cluster):
    a, b = both(cluster, placement=Pinned({"Account": "a"}))
    a.node.balance()
    a.node.balanced()
    assert tally(a) == {a.node.owner: 60}
    a.node.placement = hashing = ByHash()
    a.node._balanced_at = 0
    a.node.balance()
    a.node.balanced()
    given_away = set(a._store.owned(b.node.owner, 100))
    assert given_away
    for type, key in given_away:
        assert hashing.place(type, key, a.node.candidates(), a.node.owner).name == "b"


def test_by_the_setting_nothing_is_given(cluster):
    still = ServerSettings(node_lease_s=600, rebalanced_per_lease_max=0)
    a = cluster("a", settings=still)
    for n in range(60):
        with Proxy(uri(a, n)) as proxy:
            proxy.deposit(1)
    b = cluster("b", settings=still)
    renewed(a, b)
    a.node.balance()
    a.node.balanced()
    assert tally(a) == {a.node.owner: 60}


def test_a_node_that_stops_gives_no_more(cluster):
    a, _ = both(cluster)
    a.node._stopping = True
    a.node.balance()
    a.node.balanced()
    assert a.statistics()["objects_given"] == 0
