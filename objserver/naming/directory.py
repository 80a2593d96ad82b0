"""`NameServer`: which URI stands behind a name, and which tags describe it.

The interface, down to parameter names and error classes, is that of Pyro5's name server, because its clients
and tools are to work with this one.  Everything is answered from memory.  With a store every change is
written there before it is made in memory, so that what a caller was told to be registered is still there
after a crash.

A name server trusts its callers with names but not with its memory: what can be registered is bounded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import regex as re

from objserver import errors
from objserver.adapter import expose, readonly
from objserver.codecs.base import proxy_reference
from objserver.references import NAMESERVER_ID, Reference
from objserver.storage import Change, Store

__all__ = ["NameServer", "NamingLimits"]

Entry = tuple[str, frozenset[str]]

REPEATS_MAX = 1_000
"""What the numbers in the braces of a regular expression may come to together: compiling writes a repetition
out, so that `(?:a{9999}){9999}` takes all memory there is before any matching begins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamingLimits:
    """What one name server holds."""

    names_max: int = 1_000_000
    """Registrations; a million cost some 300 MB."""
    name_length_max: int = 500
    """Characters of a name, which also bounds what a regular expression is matched against."""
    uri_length_max: int = 2_000
    """Characters of a URI."""
    tags_max: int = 100
    """Metadata tags of one name."""
    tag_length_max: int = 500
    """Characters of one tag."""
    regex_length_max: int = 200
    """Characters of a regular expression sent by a caller: its cost grows with its length at least."""
    regex_timeout_s: float = 1.0
    """Seconds that matching may take: a short expression can need centuries for a short name."""


@expose
class NameServer:
    """A flat directory from names to URIs.  Any thread may call it."""

    def __init__(self, store: Store | None = None, limits: NamingLimits | None = None) -> None:
        self._store = store
        self._limits = limits or NamingLimits()
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        for name, record in store.items(NAMESERVER_ID) if store is not None else ():
            kept = json.loads(record.state or b"")
            self._entries[name] = kept["uri"], frozenset(kept["metadata"])

    @readonly
    def count(self) -> int:
        """How many names are registered."""
        return len(self._entries)

    @readonly
    def ping(self) -> None:
        """Return, which shows that the name server works."""

    @readonly
    def lookup(self, name: str, return_metadata: bool = False) -> Reference | tuple[Reference, set[str]]:
        """The reference registered as `name`, with its metadata if asked for, or NamingError."""
        uri, metadata = self._entry(name)
        reference = Reference.parse(uri)
        return (reference, set(metadata)) if return_metadata else reference

    def register(
        self, name: str, uri: Any, safe: bool = False, metadata: Iterable[str] | None = None
    ) -> None:
        """Let `name` stand for `uri`, a URI or reference.  `safe` refuses a name that is already taken."""
        text = self._uri(uri)
        self._check_name(name)
        tags = self._tags("metadata", metadata)
        with self._lock:
            if name in self._entries:
                if safe:
                    raise errors.NamingError(f"the name {name!r} is already registered")
            elif len(self._entries) >= self._limits.names_max:
                raise errors.NamingError(
                    f"the name server is full: it holds {len(self._entries)} names (names_max)"
                )
            self._put(name, (text, tags))

    def set_metadata(self, name: str, metadata: Iterable[str] | None) -> None:
        """Replace the metadata of `name`."""
        self._check_name(name)
        tags = self._tags("metadata", metadata)
        with self._lock:
            self._put(name, (self._entry(name)[0], tags))

    def remove(self, name: str | None = None, prefix: str | None = None, regex: str | None = None) -> int:
        """Forget one name, or all with a prefix, or all that match; how many.  Pyro.NameServer stays."""
        _check_filters(name, prefix, regex)
        with self._lock:
            if name and name != NAMESERVER_ID:
                names = [name] if name in self._entries else []
            elif prefix or regex:
                names = [n for n in self._select(prefix, None if prefix else regex) if n != NAMESERVER_ID]
            else:
                names = []
            self._keep(dict.fromkeys(names))
            for gone in names:
                del self._entries[gone]
            return len(names)

    @readonly
    def list(
        self, prefix: str | None = None, regex: str | None = None, return_metadata: bool = False
    ) -> dict[str, Any]:
        """URIs, or pairs of URI and metadata, by name: all, or those with a prefix or that match."""
        _check_filters(prefix, regex)
        if prefix and regex:
            raise ValueError("filter by prefix or by regex, not by both")
        return _shown(self._select(prefix, regex), return_metadata)

    @readonly
    def yplookup(
        self,
        meta_all: Iterable[str] | None = None,
        meta_any: Iterable[str] | None = None,
        return_metadata: bool = True,
    ) -> dict[str, Any]:
        """As `list`, of the names that have all, or any, of the given tags."""
        if meta_all and meta_any:
            raise ValueError("look for meta_all or for meta_any, not for both")
        wanted_all, wanted_any = self._tags("meta_all", meta_all), self._tags("meta_any", meta_any)
        if not wanted_all and not wanted_any:
            return {}
        with self._lock:
            fitting = {
                name: (uri, tags)
                for name, (uri, tags) in self._entries.items()
                if (wanted_all <= tags if wanted_all else wanted_any & tags)
            }
            return _shown(fitting, return_metadata)

    # -- what calls are made of ----------------------------------------------------------------------

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise errors.NamingError(f"unknown name: {name}") from None

    def _snapshot(self) -> Collection[tuple[str, Entry]]:
        with self._lock:
            return [*self._entries.items()]

    def _select(self, prefix: str | None, regex: str | None) -> dict[str, Entry]:
        if prefix:
            return {name: entry for name, entry in self._snapshot() if name.startswith(prefix)}
        if not regex:
            return dict(self._snapshot())
        if len(regex) > self._limits.regex_length_max:
            raise errors.NamingError(f"a regex may have {self._limits.regex_length_max} characters at most")
        if _repeats(regex) > REPEATS_MAX:
            raise errors.NamingError(f"a regex may repeat something {REPEATS_MAX} times at most: {regex!r}")
        deadline = time.monotonic() + self._limits.regex_timeout_s
        try:
            matches = re.compile(regex).match
            # Without holding the interpreter, so that a bad expression holds up its sender only.
            return {
                name: entry
                for name, entry in self._snapshot()
                if matches(name, timeout=max(deadline - time.monotonic(), 1e-6), concurrent=True)
            }
        except (re.error, OverflowError, RecursionError) as problem:
            raise errors.NamingError(f"invalid regex: {problem}") from None
        except TimeoutError:
            raise errors.NamingError(
                f"matching {regex!r} took more than {self._limits.regex_timeout_s} s; "
                "write it so that it cannot backtrack much"
            ) from None

    def _uri(self, uri: Any) -> str:
        # References travel, but arrive as proxies where the client room is loaded.
        reference = uri if isinstance(uri, Reference) else proxy_reference(uri)
        if reference is None and not isinstance(uri, str):
            raise TypeError("only URIs or strings can be registered")
        text = str(reference or Reference.parse(uri))
        if len(text) > self._limits.uri_length_max:
            raise errors.NamingError(f"a URI may have {self._limits.uri_length_max} characters at most")
        return text

    def _check_name(self, name: str) -> None:
        if type(name) is not str or not _is_text(name):
            raise TypeError("a name must be a str of valid Unicode")
        if not 0 < len(name) <= self._limits.name_length_max:
            raise errors.NamingError(f"a name has 1 to {self._limits.name_length_max} characters")

    def _tags(self, what: str, tags: Iterable[str] | None) -> frozenset[str]:
        # Not any iterable: a proxy that a caller sent would be asked for its items.
        if tags is not None and type(tags) not in (set, frozenset, list, tuple):
            raise TypeError(f"{what} must be a set or list of str, not one str or anything else")
        found = frozenset(tags or ())
        if not all(type(tag) is str and _is_text(tag) for tag in found):
            raise TypeError(f"{what} must consist of str of valid Unicode")
        if len(found) > self._limits.tags_max or any(len(t) > self._limits.tag_length_max for t in found):
            raise errors.NamingError(
                f"{what} may have {self._limits.tags_max} tags of {self._limits.tag_length_max} characters"
            )
        return found

    def _put(self, name: str, entry: Entry) -> None:
        self._keep({name: entry})
        self._entries[name] = entry

    def _keep(self, entries: Mapping[str, Entry | None]) -> None:
        """Write entries (None: removed) to the store; StoreError leaves everything as it was."""
        if self._store is None or not entries:
            return
        changes = []
        for name, entry in entries.items():
            # Read, not remembered: a removed name leaves a tombstone whose version goes on counting.
            record = self._store.load(NAMESERVER_ID, name)
            state = entry and json.dumps({"uri": entry[0], "metadata": sorted(entry[1])}).encode()
            epoch, version = (record.epoch, record.version) if record else (0, 0)
            changes.append(Change(NAMESERVER_ID, name, epoch, version, 0, 0, state))
        refused = set(entries) - {key for _, key in self._store.commit(changes)}
        if refused:
            raise errors.StoreError(f"somebody else changed {sorted(refused)} in the store of names")


def _check_filters(*filters: object) -> None:
    for given in filters:
        if given is not None and type(given) is not str:
            raise TypeError("names, prefixes and regular expressions are str")


def _repeats(regex: str) -> int:
    """How many times something is repeated, if the counted repetitions are inside each other."""
    counted = re.findall(r"\{[^}]*", regex)
    return math.prod(max(1, *map(int, re.findall(r"[0-9]+", bounds)), 1) for bounds in counted)


def _is_text(text: str) -> bool:
    """Whether every client can be told: a lone surrogate cannot be sent."""
    return text.isascii() or text.encode("utf-8", "ignore").decode() == text


def _shown(entries: Mapping[str, Entry], return_metadata: bool) -> dict[str, Any]:
    return {name: (uri, set(tags)) if return_metadata else uri for name, (uri, tags) in entries.items()}
