"""The question "what does the call that I made wait for?", as it travels along calls that wait.

A PROBE frame has the sequence number of a request of the same connection that has no reply yet, so that only
who made a call can ask about it.  Its payload is the MessagePack array

    [round, since, spread, [[id, branches], ...]]

`round` is a number by which the asker knows its own question again, `since` when the call that asks began to
wait, on its server's clock, `spread` into how many the question may still be parted.  The path are the ids of
the invocations that it went through, each with the number of ways that lead on from there and must all come
back.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import ormsgpack

from objserver import errors

__all__ = ["PATH_MAX", "SPREAD_MAX", "Path", "Probe"]

PATH_MAX = 64
"""Invocations on one path, at least two for each call chain of a cycle."""
SPREAD_MAX = 64
"""Paths that one question may part into, over all servers: as many as `Concurrent` lets in by default."""
SIZE_MAX = 16 * 1024
"""Bytes of the payload: room for the longest path, with ids of usual length."""

Path = tuple[tuple[str, int], ...]


class Probe(NamedTuple):
    """See the module's essay."""

    round: int
    since: float
    spread: int
    path: Path = ()

    def through(self, invocation_id: str, branches: int, parts: int) -> Probe | None:
        """The question that goes on from there in `parts`, or None if that would be too much."""
        if not 0 < parts <= self.spread or len(self.path) >= PATH_MAX:
            return None
        step = invocation_id, branches
        return Probe(self.round, self.since, self.spread // parts, (*self.path, step))

    def may_pass(self, invocation_id: str) -> bool:
        """Whether it may go through there (again): a circle leads nowhere, except to show, where all ways
        have to be gone, that this one ends in itself."""
        times = 1 + any(branches > 1 for _, branches in self.path)
        return sum(name == invocation_id for name, _ in self.path) < times

    def encode(self) -> bytes:
        """The payload; empty if the path has become too long to travel."""
        data = ormsgpack.packb([self.round, self.since, self.spread, self.path])
        return data if len(data) <= SIZE_MAX else b""

    @classmethod
    def decode(cls, data: bytes) -> Probe:
        """ProtocolError if `data` is not what `encode` makes."""
        try:
            number, since, spread, path = ormsgpack.unpackb(data)
            if (
                len(data) <= SIZE_MAX
                and type(number) is int
                and type(since) is float
                and math.isfinite(since)
                and type(spread) is int
                and 0 < spread <= SPREAD_MAX
                and type(path) is list
                and 0 < len(path) <= PATH_MAX
                and all(type(step) is list and [*map(type, step)] == [str, int] for step in path)
                and all(0 < branches <= SPREAD_MAX for _, branches in path)
            ):
                return cls(number, since, spread, tuple((name, branches) for name, branches in path))
        except (ValueError, TypeError):
            pass
        raise errors.ProtocolError("the payload of a PROBE is malformed")
