"""A clock that stands still until it is told to move."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """Starts at `now` seconds; `advance` is the only thing that moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        if seconds < 0:
            raise ValueError(f"time does not run backwards: advance({seconds})")
        self._now += seconds
