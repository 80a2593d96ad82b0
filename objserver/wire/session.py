"""Calls in flight: which reply belongs to which request, when many share one connection.

Both ends of a connection call over it, each with sequence numbers of its own.  A table gives a call its
number and finds it again when the reply comes.  A call that nobody waits for any more keeps its number until
then, so that a late reply is never taken for another's.
"""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["SEQUENCE_MAX", "CallTable"]

SEQUENCE_MAX = 0xFFFF
"""Sequence numbers are 16 bits; 0 is the number of no request, under which a peer answers what it cannot
read."""

T = TypeVar("T")


class CallTable(Generic[T]):
    """Who waits for which reply.  Not locked: its owner is one thread, or locks."""

    __slots__ = ("_last", "entries")

    def __init__(self) -> None:
        self.entries: dict[int, T | None] = {}
        """By number; to be looked at, and to be popped, by who does that for many."""
        self._last = 0

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, entry: T) -> int:
        """A number for a new call.  OverflowError if all are taken, which bounds below must prevent."""
        entries = self.entries
        sequence = self._last % SEQUENCE_MAX + 1
        if sequence in entries:
            if len(entries) >= SEQUENCE_MAX:
                raise OverflowError("every sequence number of this connection waits for its reply")
            while sequence in entries:
                sequence = sequence % SEQUENCE_MAX + 1
        self._last = sequence
        entries[sequence] = entry
        return sequence

    def take(self, sequence: int) -> T | None:
        """Who waits for the reply `sequence` that has come; None if nobody does any more.

        KeyError if nobody ever asked.
        """
        return self.entries.pop(sequence)

    def abandon(self, sequence: int) -> bool:
        """Nobody waits for it any more.  False if the reply has come already."""
        if sequence not in self.entries:
            return False
        self.entries[sequence] = None
        return True

    def clear(self) -> list[T]:
        """The connection is gone: everybody who still waits."""
        waiting = [entry for entry in self.entries.values() if entry is not None]
        self.entries.clear()
        return waiting
