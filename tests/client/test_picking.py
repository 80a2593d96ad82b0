"""Picking is a function of the candidates, the host and the dice."""

import collections
from random import Random

import pytest

from objserver import Reference
from objserver.client import LeastLoaded, RandomPick, SameHostFirst
from objserver.client.picking import Candidate, healthy

FAR = [Candidate(Reference.parse(f"PYRO:x@far{n}:1"), n / 10) for n in range(5)]
NEAR = Candidate(Reference.parse("PYRO:x@localhost:1"), 0.9)


def picked(policy, candidates, here=frozenset()):
    dice = Random(7)
    return collections.Counter(policy.pick(candidates, here, dice) for _ in range(2000))


def test_random_picks_each_about_as_often():
    counts = picked(RandomPick(), FAR)
    assert len(counts) == 5
    assert all(300 < count < 500 for count in counts.values())


def test_of_two_the_less_loaded_is_picked_so_the_busiest_never_and_nobody_always():
    counts = picked(LeastLoaded(), FAR)
    assert counts[FAR[4]] == 0
    assert counts[FAR[0]] > counts[FAR[1]] > counts[FAR[2]] > counts[FAR[3]] > 0
    assert picked(LeastLoaded(of=9), FAR) == {FAR[0]: 2000}
    with pytest.raises(ValueError, match="at least one"):
        LeastLoaded(of=0)


def test_the_same_host_comes_first_if_something_is_there():
    assert picked(SameHostFirst(), [*FAR, NEAR]) == {NEAR: 2000}
    assert picked(SameHostFirst(), FAR, frozenset({"far3"})) == {FAR[3]: 2000}
    assert len(picked(SameHostFirst(), FAR)) == 5
    assert picked(SameHostFirst(LeastLoaded(of=9)), FAR) == {FAR[0]: 2000}


def test_who_could_not_be_reached_is_left_out_unless_nobody_could():
    assert healthy(FAR, lambda location: location.host != "far2") == [FAR[2]]
    assert healthy(FAR, lambda location: True) == FAR
