"""`NameIndex`: names in order, and by tag, so that no question looks at all of them.

`/` makes contexts of names: `bank/accounts/alice` is in the context `bank/accounts`.  A context is there as
long as a name is in it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

__all__ = ["Entry", "NameIndex"]

LAST = "\U0010ffff"
MANY = 500
"""Changes from which on sorting all names again is faster than putting each into its place."""


class Entry(NamedTuple):
    """What stands behind a name.  `owner` is who registered it, `lease` as long as which it lives."""

    uri: str
    tags: frozenset[str] = frozenset()
    owner: str = ""
    lease: str = ""


class NameIndex:
    """Entries by name.  Not safe to change while another thread uses it."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._sorted: list[str] = []
        self._tagged: dict[str, set[str]] = {}
        self._leased: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def change(self, entries: Mapping[str, Entry | None]) -> None:
        """Make these the entries; None: none."""
        many = len(entries) > MANY
        for name, entry in entries.items():
            before = self.entries.pop(name, None)
            if before is not None:
                self._file(name, before, False)
            if entry is not None:
                self.entries[name] = entry
                self._file(name, entry, True)
            if many or (before is None) == (entry is None):
                continue
            if entry is not None:
                insort(self._sorted, name)
            else:
                del self._sorted[bisect_left(self._sorted, name)]
        if many:
            self._sorted = sorted(self.entries)

    def _file(self, name: str, entry: Entry, add: bool) -> None:
        for tag in entry.tags:
            _put(self._tagged, tag, name, add)
        if entry.lease:
            _put(self._leased, entry.lease, name, add)

    def under(self, lease: str) -> set[str]:
        """The names that live as long as a lease."""
        return set(self._leased.get(lease, ()))

    def leases(self) -> set[str]:
        """The leases under which there are names."""
        return set(self._leased)

    def names(self, prefix: str = "", after: str = "") -> Iterator[str]:
        """In order: those that begin so, behind the name `after`."""
        names = self._sorted
        at = bisect_left(names, max(prefix, after))
        while at < len(names) and names[at].startswith(prefix):
            if names[at] != after or not after:
                yield names[at]
            at += 1

    def tagged(self, wanted_all: Iterable[str], wanted_any: Iterable[str]) -> set[str] | None:
        """The names that have all of the one and any of the other; None if neither says anything."""
        sets = [self._tagged.get(tag, set()) for tag in wanted_all]
        some = [self._tagged.get(tag, set()) for tag in wanted_any]
        if some:
            sets.append(set().union(*some))
        if not sets:
            return None
        sets.sort(key=len)
        return sets[0].intersection(*sets[1:])

    def page(self, prefix: str, after: str, limit: int, chosen: set[str] | None) -> dict[str, Entry]:
        """The next `limit` entries; of `chosen`, if that is not None."""
        found: dict[str, Entry] = {}
        if chosen is None:
            names: Iterable[str] = self.names(prefix, after)
        else:
            names = sorted(name for name in chosen if name.startswith(prefix) and (name > after or not after))
        for name in names:
            if len(found) >= limit:
                break
            found[name] = self.entries[name]
        return found

    def children(self, context: str, after: str, limit: int) -> dict[str, str | int]:
        """What is directly in a context: the URI of a name, or, with a `/` at its end, the number of names
        in a context inside.  It costs a search for each child, however many names are below it."""
        start = f"{context}/" if context else ""
        found: dict[str, str | int] = {}
        names = self._sorted
        at = bisect_left(names, start + after + (LAST if after.endswith("/") else ""))
        while at < len(names) and names[at].startswith(start) and len(found) < limit:
            child, slash, _ = names[at][len(start) :].partition("/")
            if not slash:
                if child != after:
                    found[child] = self.entries[names[at]].uri
                at += 1
                continue
            end = bisect_left(names, f"{start}{child}/{LAST}", at)
            found[child + "/"] = end - at
            at = end
        return found


def _put(index: dict[str, set[str]], key: str, name: str, add: bool) -> None:
    if add:
        names = index.get(key)
        if names is None:
            names = index[key] = set()
        names.add(name)
        return
    index[key].discard(name)
    if not index[key]:
        del index[key]
