"""`NameListener`: what a process gives to name servers, to be told which names change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from objserver.adapter import expose

__all__ = ["NameListener"]


@expose
class NameListener:
    """Calls `changed` with what it was told; it is called on the connection that the process made."""

    def __init__(self, changed: Callable[[Mapping[str, Any]], None]) -> None:
        self._changed = changed

    def names_changed(self, changes: dict[str, Any]) -> None:
        """By name its URI, or None for one that was removed."""
        self._changed(changes)
