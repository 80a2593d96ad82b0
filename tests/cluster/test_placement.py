"""Where objects are to live."""

from objserver.cluster.placement import ByHash, Candidate, LeastLoaded, Pinned, PreferLocal


def nodes(*loads, objects=0):
    return [Candidate(f"n{i}", f"life{i}", f"h:{i}", objects, load) for i, load in enumerate(loads)]


def place(policy, candidates, key="k", here="life0"):
    return policy.place("Account", key, candidates, here).name


def test_prefer_local_keeps_what_is_asked_for_here():
    assert {place(PreferLocal(), nodes(9, 0, 0), str(k), "life1") for k in range(50)} == {"n1"}
    assert place(PreferLocal(), nodes(0, 0), here="gone") in ("n0", "n1")


def test_by_hash_spreads_evenly_and_agrees_from_everywhere():
    homes = [place(ByHash(), nodes(0, 0, 0), str(k)) for k in range(3000)]
    assert homes == [place(ByHash(), nodes(0, 0, 0)[::-1], str(k), "life2") for k in range(3000)]
    assert all(900 < homes.count(name) < 1100 for name in ("n0", "n1", "n2"))


def test_by_hash_moves_only_what_a_node_that_comes_gets():
    before = [place(ByHash(), nodes(0, 0, 0), str(k)) for k in range(1000)]
    after = [place(ByHash(), nodes(0, 0, 0, 0), str(k)) for k in range(1000)]
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {"n3"}


def test_least_loaded_counts_calls_and_then_objects():
    assert place(LeastLoaded(), nodes(1000, 500, 2000)) == "n1"
    busy = [Candidate("n0", "life0", "h:0", 5, 100), Candidate("n1", "life1", "h:1", 3, 120)]
    assert place(LeastLoaded(), busy) == "n1"


def test_pinned_is_where_it_was_said_as_long_as_that_is_up():
    pinned = Pinned({"Account": "n2"}, PreferLocal())
    assert place(pinned, nodes(0, 0, 0)) == "n2"
    assert place(pinned, nodes(0, 0)) == "n0"
    assert Pinned({"Other": "n1"}).place("Account", "k", nodes(0, 0), "life0").name == "n0"
