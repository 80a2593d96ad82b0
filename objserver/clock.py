"""Time as an argument: whoever waits or measures is handed a clock, so that tests and simulators own it."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Seconds that only grow; the zero has no meaning."""

    def monotonic(self) -> float: ...


class SystemClock:
    """The clock of the machine."""

    monotonic = staticmethod(time.monotonic)
