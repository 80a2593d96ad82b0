"""A clock that stands still until it is told to move."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """Starts at `now` seconds, of the day too; `advance` and `set` are the only things that move it."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._ahead = 0.0

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now + self._ahead

    def set(self, time: float) -> None:
        """Somebody sets the time of day; no time passes."""
        self._ahead = time - self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        if seconds < 0:
            raise ValueError(f"time does not run backwards: advance({seconds})")
        self._now += seconds
