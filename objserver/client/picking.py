"""Which of several objects that would all do: how a PYROMETA reference picks one.

A policy is a frozen value, and picking a function of what there is: the candidates, what this host is called,
and dice.  Those that could not be reached just now are left out before, as long as others are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, Protocol

from objserver.references import Location, Reference

__all__ = ["Candidate", "LeastLoaded", "PickPolicy", "RandomPick", "SameHostFirst", "healthy"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Candidate(NamedTuple):
    """An object that would do; `load` is what its server said last, from 0 (idle) to 1, or more."""

    reference: Reference
    load: float = 0.0


class PickPolicy(Protocol):
    """What a policy has."""

    @property
    def asks_load(self) -> bool:
        """Whether it wants to know the loads."""

    def pick(self, candidates: Sequence[Candidate], here: frozenset[str], dice: Random) -> Candidate:
        """One of the candidates, of which there is at least one; `here` are the names of this host."""


@dataclasses.dataclass(frozen=True)
class RandomPick:
    """Each as often as the others."""

    asks_load = False

    def pick(self, candidates: Sequence[Candidate], here: frozenset[str], dice: Random) -> Candidate:
        return dice.choice(candidates)


@dataclasses.dataclass(frozen=True)
class LeastLoaded:
    """The less loaded of `of` that chance has chosen.

    Not the least loaded of all: what is known of the loads is some seconds old, and everybody would
    run to the same server.  Two choices are nearly as even as knowing all (Mitzenmacher, "The Power of Two
    Choices in Randomized Load Balancing", 2001).
    """

    of: int = 2
    asks_load = True

    def __post_init__(self) -> None:
        if self.of < 1:
            raise ValueError(f"LeastLoaded(of={self.of}): at least one has to be looked at")

    def pick(self, candidates: Sequence[Candidate], here: frozenset[str], dice: Random) -> Candidate:
        looked_at = dice.sample(candidates, min(self.of, len(candidates)))
        return min(looked_at, key=lambda candidate: candidate.load)


@dataclasses.dataclass(frozen=True)
class SameHostFirst:
    """One on this host if there is one, else any; by the policy `then` among several."""

    then: PickPolicy = dataclasses.field(default_factory=RandomPick)

    @property
    def asks_load(self) -> bool:
        return self.then.asks_load

    def pick(self, candidates: Sequence[Candidate], here: frozenset[str], dice: Random) -> Candidate:
        near = [candidate for candidate in candidates if _is_here(candidate.reference.location, here)]
        return self.then.pick(near or candidates, here, dice)


def _is_here(location: Location | None, here: frozenset[str]) -> bool:
    return location is not None and bool(location.path or location.host in LOOPBACK | here)


def healthy(candidates: Sequence[Candidate], is_ill: Callable[[Location], bool]) -> Sequence[Candidate]:
    """Those that were not found out to be unreachable; all of them if that leaves none."""
    well = [each for each in candidates if each.reference.location and not is_ill(each.reference.location)]
    return well or candidates
