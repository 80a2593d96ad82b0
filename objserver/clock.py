"""Time as an argument: whoever waits or measures is handed a clock, so that tests and simulators own it."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Two kinds of seconds: for how long, and when."""

    def monotonic(self) -> float:
        """They only grow; the zero has no meaning."""

    def time(self) -> float:
        """Since 1970.  Whoever sets the clock may make them jump, in either direction."""


class SystemClock:
    """The clock of the machine."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
