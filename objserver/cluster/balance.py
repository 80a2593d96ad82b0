"""Who has too many objects gives some to who has too few: pure functions of how many each node has.

Every node asks for itself, with what it knows of the others, and nobody decides for all.  So that they do not
give too much together, each gives a node that part of what is missing there which is its own part of what is
too much everywhere.  If all know the same, everybody then has the mean.

Nothing is given while all are near the mean, and what is given goes up to the mean and not beyond, so that
nothing goes back and forth.  Someone rich gives to all below the mean; to someone poor, as a node is that has
just come, all above it give.

A node counts the objects that it has active.  One that was given away is not active where it went until it is
called, so who has given it remembers it for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["Given", "gives"]

SLACK = 0.2
"""By what part of the mean a node may have more or fewer: less is not worth the pauses of those that move."""
SLACK_OBJECTS = 10.0
"""... and so many more or fewer."""
REMEMBERED_S = 300.0
"""As long as an object stays active that nobody calls, by default."""


def gives(
    objects: Mapping[str, int], here: str, most: int, uniform: Callable[[float, float], float]
) -> dict[str, int]:
    """How many objects the node `here` gives to which others, `most` at the most.

    `objects` are those of each node that may be given some; who is not among them gives none.  Fractions are
    rounded by chance, `uniform(0, 1)`, so that a hundred nodes that have half an object to give give fifty.
    """
    if most <= 0 or here not in objects:
        return {}
    mean = sum(objects.values()) / len(objects)
    spare = objects[here] - mean
    missing = {node: mean - count for node, count in objects.items() if count < mean}
    if spare <= 0 or not missing:
        return {}
    slack = SLACK * mean + SLACK_OBJECTS
    wanting = missing if spare > slack else {node: n for node, n in missing.items() if n > slack}
    parts = {node: spare * n / sum(missing.values()) for node, n in wanting.items()}
    scale = min(1.0, most / (sum(parts.values()) or 1.0))
    found = {}
    for node, part in parts.items():
        count = min(int(part * scale + uniform(0, 1)), most)
        if count:
            found[node] = count
            most -= count
    return found


class Given:
    """What a node has given away of late.  Time is an argument.  Not synchronized."""

    def __init__(self) -> None:
        self._given: dict[str, tuple[int, int, float]] = {}

    def add(self, node: str, count: int, shown: int, now: float) -> None:
        """`count` objects were given to `node`, which had said that it has `shown`."""
        self._given = {other: each for other, each in self._given.items() if now < each[2]}
        had, given, _ = self._given.get(node, (shown, 0, now))
        self._given[node] = had, given + count, now + REMEMBERED_S

    def estimate(self, node: str, shown: int, now: float) -> int:
        """How many `node` has or will have when they are called, if it says that it has `shown`."""
        had, given, until = self._given.get(node, (shown, 0, now))
        return max(shown, had + given) if now < until else shown
