"""Exports: objects that are served because a reference to them was given away, while somebody holds it.

A servant returns an object of an exposed class; what travels is a reference, and the object is served under
an id that cannot be guessed.  Nobody unregisters it, so it is leased.  Whoever received the reference holds
it as long as it renews its lease, or until it says how many times it got the reference and that it has
dropped them all.  Between sending and that there is grace of one lease, for references that are still on
their way. An object that nobody holds, of whose references none is on its way, is collected.

Only those to whom references were sent can say that they have dropped them: these are counted apart for each
principal, where that is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

__all__ = ["ExportTable"]


class _Export:
    __slots__ = ("grace_until", "holders", "on_their_way")

    def __init__(self) -> None:
        self.on_their_way: Counter[str] = Counter()
        """By whom they were sent to, how many references, less those that are said to have been dropped."""
        self.grace_until = 0.0
        self.holders: dict[str, float] = {}
        """Process -> end of its lease."""

    def is_held(self, now: float) -> bool:
        return any(end > now for end in self.holders.values()) or (
            self.grace_until > now and any(count > 0 for count in self.on_their_way.values())
        )


class ExportTable:
    """Who holds which exported object.  Not locked: the adapter locks.  Time is an argument."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._exports: dict[str, _Export] = {}

    def __len__(self) -> int:
        return len(self._exports)

    def __contains__(self, object_id: object) -> bool:
        return object_id in self._exports

    def sent(self, object_id: str, now: float, to: str = "") -> None:
        """A reference to the object is about to be sent to a process of `to`."""
        export = self._exports.setdefault(object_id, _Export())
        export.on_their_way[to] += 1
        export.grace_until = now + self.lease_s

    def renew(self, holder: str, object_ids: Iterable[str], now: float) -> None:
        """`holder` has these objects for another lease; those that are not exported are passed over."""
        for object_id in object_ids:
            export = self._exports.get(object_id)
            if export is not None:
                export.holders[holder] = now + self.lease_s

    def release(self, holder: str, dropped: Mapping[str, int], now: float, of: str = "") -> list[str]:
        """`holder`, a process of `of`, got a reference to each so many times, and dropped them all.

        Returns who is free now.
        """
        for object_id, times in dropped.items():
            export = self._exports.get(object_id)
            if export is not None:
                export.holders.pop(holder, None)
                if of in export.on_their_way:  # what somebody else passed on was not sent to him
                    export.on_their_way[of] -= times
        return self._free(dropped, now)

    def expire(self, now: float) -> list[str]:
        """Who is free now because nobody has renewed his lease."""
        for export in self._exports.values():
            for holder in [h for h, end in export.holders.items() if end <= now]:
                del export.holders[holder]  # or those that were killed would be kept with the object
        return self._free(list(self._exports), now)

    def clear(self) -> list[str]:
        """Everybody is free: nobody can hold anything any more."""
        everybody = list(self._exports)
        self._exports.clear()
        return everybody

    def _free(self, object_ids: Iterable[str], now: float) -> list[str]:
        free = [i for i in object_ids if i in self._exports and not self._exports[i].is_held(now)]
        for object_id in free:
            del self._exports[object_id]
        return free
