"""Where an object that nobody has is to live: pure functions of its name and of the nodes that are up.

A placement is only asked for what is free, and is only advice: nodes whose views differ may answer
differently, and the store decides.  What has been sent somewhere is taken there, so a call goes at most one
way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

from objserver.references import object_id, rank

__all__ = ["ByHash", "Candidate", "LeastLoaded", "Pinned", "Placement", "PreferLocal"]


class Candidate(NamedTuple):
    """A node that is up.  `objects` are those that it has active, `load` its calls in the last second.

    `states` are the types that it serves, and which layout each gives its state: while a class is upgraded
    there are several, and who has the older can do nothing with the newer.  0: any, as far as is known.
    """

    name: str
    life: str
    address: str
    objects: int
    load: float
    states: Mapping[str, int] = MappingProxyType({})

    def can_have(self, type: str, version: int) -> bool:
        """Whether an object whose state is of this layout, or an older one, can be there."""
        known = self.states.get(type)
        return known is not None and (known == 0 or known >= version)


class Placement(Protocol):
    """A frozen value: every node of a cluster has an equal one."""

    def place(self, type: str, key: str, nodes: Sequence[Candidate], here: str) -> Candidate:
        """One of `nodes`, of which there is one at least, for the object; `here` is the life of the node that
        was asked for it, which may not be among them."""


def _here(nodes: Sequence[Candidate], here: str) -> Candidate | None:
    return next((node for node in nodes if node.life == here), None)


@dataclass(frozen=True)
class PreferLocal:
    """Where it is asked for first: no call is sent on.  For clients that are near their node."""

    def place(self, type: str, key: str, nodes: Sequence[Candidate], here: str) -> Candidate:
        """See Placement."""
        return _here(nodes, here) or ByHash().place(type, key, nodes, here)


@dataclass(frozen=True)
class ByHash:
    """Spread evenly, and the same from wherever it is asked for, as by the front of several workers.

    The node whose name, with the object's, has the highest hash: when a node comes or goes, only the objects
    that it gets or had are placed otherwise.
    """

    def place(self, type: str, key: str, nodes: Sequence[Candidate], here: str) -> Candidate:
        """See Placement."""
        whole = object_id(type, key) if key else type
        return max(nodes, key=lambda node: rank(whole, node.name))


@dataclass(frozen=True)
class LeastLoaded:
    """Where the fewest calls come; of those that are about as busy, where the fewest objects are.

    Loads count as the same that exceed the least by no more than a fifth and `within` calls in a second: what
    is known of others is a second old.
    """

    within: float = 50.0

    def place(self, type: str, key: str, nodes: Sequence[Candidate], here: str) -> Candidate:
        """See Placement."""
        least = min(node.load for node in nodes)
        idle = [node for node in nodes if node.load <= 1.2 * least + self.within]
        return min(idle, key=lambda node: (node.objects, node.life != here, node.name))


@dataclass(frozen=True)
class Pinned:
    """By the name under which the class is registered, on the node of a given name, as long as that is up.

    Everything else, and all when their node is gone, as `otherwise` says.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    otherwise: Placement = PreferLocal()

    def place(self, type: str, key: str, nodes: Sequence[Candidate], here: str) -> Candidate:
        """See Placement."""
        wanted = self.nodes.get(type)
        for node in nodes:
            if node.name == wanted:
                return node
        return self.otherwise.place(type, key, nodes, here)
