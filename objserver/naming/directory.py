"""`NameServer`: which URI stands behind a name, and which tags describe it.

The interface, down to parameter names and error classes, is that of Pyro5's name server, because its clients
and tools are to work with this one; what our own peers want beside it comes after.  Everything is answered
from memory.  With a store every change is written there before it is made in memory, so that what a caller
was told to be registered is still there after a crash.

Several name servers may share a store that allows it, and answer for each other: `tick`, called a few times a
second, takes in what the others changed.  A name that another has just registered is found at once, because
whoever does not know a name looks into the store before saying so; one that was moved or removed is answered
as before until the next tick.

A registration may live as long as a lease, which its server renews (`Registrar`).  A name server trusts its
callers with names but not with its memory: what can be registered is bounded.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import regex as re

from objserver import errors
from objserver.adapter import expose, readonly
from objserver.client.pool import LinkPool
from objserver.client.proxy import Proxy
from objserver.clock import Clock, SystemClock
from objserver.codecs.base import proxy_reference
from objserver.invocation import in_progress
from objserver.naming.index import Entry, NameIndex
from objserver.naming.leases import Lease, LeaseWatch
from objserver.naming.ledger import Ledger
from objserver.naming.ownership import Ownership
from objserver.naming.watchers import Watchers
from objserver.references import NAMESERVER_ID, Reference
from objserver.security import Principal
from objserver.storage import Store

__all__ = ["NameServer", "NamingLimits", "calling"]

NAMES, LEASES = 1024, 16
"""Buckets, in a store for ever.  Of 100,000 names each has a hundred: 12 kB to write for a registration, and
a thousand versions to compare at every tick.  Leases are few and change often."""
Changes = Mapping[str, tuple[Entry | None, Entry | None]]

log = logging.getLogger("objserver.naming")

REPEATS_MAX = 1_000
"""What the numbers in the braces of a regular expression may come to together: compiling writes a repetition
out, so that `(?:a{9999}){9999}` takes all memory there is before any matching begins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamingLimits:
    """What one name server holds."""

    names_max: int = 1_000_000
    """Registrations; a million cost some 600 MB."""
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
    leases_max: int = 10_000
    """Servers whose names live as long as they do."""
    lease_min_s: float = 1.0
    """A shorter lease would be renewed, and written, several times a second."""
    lease_max_s: float = 3600.0
    """A longer one is as good as none."""
    page_max: int = 1_000
    """Names in one answer of `page` and `children`, which keeps an answer below 3 MB and its cost to others
    at milliseconds."""
    watchers_max: int = 10_000
    """Listeners of `watch`, over all prefixes; each may cost a message for every change."""


@expose
class NameServer:
    """A directory from names to URIs.  Any thread may call it.

    `principal` says who makes the call in progress, None if nobody knows: by default who its connection has
    proven to be.  `ownership` says what that allows.
    """

    def __init__(
        self,
        store: Store | None = None,
        limits: NamingLimits | None = None,
        *,
        ownership: Ownership | None = None,
        principal: Callable[[], Principal | None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._limits = limits or NamingLimits()
        self._ownership = ownership or Ownership()
        self._principal = principal or calling
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        """Of the index."""
        self._index = NameIndex()
        self._is_known = False
        """... as Pyro.NameServer, which nobody else may then be."""
        self._watch = LeaseWatch()
        self.watchers = Watchers(self._limits.watchers_max)
        self._leases: Ledger[Lease] = Ledger(
            store, f"{NAMESERVER_ID}.leases", LEASES, list, lambda data: Lease(*data), self._leases_changed
        )
        self._names: Ledger[Entry] = Ledger(store, NAMESERVER_ID, NAMES, _plain, _made, self._names_changed)

    @readonly
    def count(self) -> int:
        """How many names are registered."""
        return len(self._index)

    @readonly
    def ping(self) -> None:
        """Return, which shows that the name server works."""

    @readonly
    def lookup(self, name: str, return_metadata: bool = False) -> Reference | tuple[Reference, set[str]]:
        """The reference registered as `name`, with its metadata if asked for, or NamingError."""
        entry = self._entry(name)
        reference = Reference.parse(entry.uri)
        return (reference, set(entry.tags)) if return_metadata else reference

    def register(
        self,
        name: str,
        uri: Any,
        safe: bool | None = None,
        metadata: Iterable[str] | None = None,
        lease: str = "",
    ) -> None:
        """Let `name` stand for `uri`, a URI or reference.

        `safe` refuses a name that is already taken.  By default our own peers may repeat a registration and
        not replace another, and stock clients replace it, as Pyro5 does.  With a `lease` the name is removed
        when that ends.
        """
        self.register_all({name: uri}, safe, metadata, lease)

    def register_all(
        self,
        names: dict[str, Any],
        safe: bool | None = None,
        metadata: Iterable[str] | None = None,
        lease: str = "",
    ) -> None:
        """As `register`, of many names with the same metadata, written together.

        If one of them is refused, so are all, unless another name server changes the same names meanwhile.
        """
        tags = self._tags("metadata", metadata)
        owner = self._owner()
        entries = {name: Entry(self._uri(uri), tags, owner, lease) for name, uri in names.items()}
        for name in entries:
            self._check_name(name)
        peer = _is_peer()

        def decide() -> dict[str, Entry | None]:
            if lease:
                self._lease(lease)
            free = 0
            for name, entry in entries.items():
                before = self._known(name)
                if before is None:
                    free += 1
                elif safe or (safe is None and peer and before.uri != entry.uri):
                    raise errors.NamingError(
                        f"the name {name!r} is already registered, for {before.uri}"
                        + ("; it is free again when its server has ended" if before.lease else "")
                    )
                self._check_owner(name, before)
            if len(self._index) + free > self._limits.names_max:
                raise errors.NamingError(
                    f"the name server is full: it holds {len(self._index)} names (names_max)"
                )
            return dict(entries)

        self._names.change(decide)

    def set_metadata(self, name: str, metadata: Iterable[str] | None) -> None:
        """Replace the metadata of `name`."""
        self._check_name(name)
        tags = self._tags("metadata", metadata)

        def decide() -> dict[str, Entry | None]:
            entry = self._entry(name)
            self._check_owner(name, entry)
            return {name: entry._replace(tags=tags)}

        self._names.change(decide)

    def remove(self, name: str | None = None, prefix: str | None = None, regex: str | None = None) -> int:
        """Forget one name, or all with a prefix, or all that match; how many.  Pyro.NameServer stays."""
        _check_filters(name, prefix, regex)
        gone: dict[str, Entry | None] = {}

        def decide() -> dict[str, Entry | None]:
            if name:
                found = [name] if self._known(name) is not None else []
            else:
                found = list(self._select(prefix, None if prefix else regex)) if prefix or regex else []
            for each in found:
                if each != NAMESERVER_ID:
                    self._check_owner(each, self._known(each))
                    gone[each] = None
            return gone

        self._names.change(decide)
        return len(gone)

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
        return _shown(self._tagged(meta_all, meta_any), return_metadata)

    # -- what Pyro5's does not have ------------------------------------------------------------------

    @readonly
    def resolve(self, name: str) -> str:
        """The URI behind `name`, or behind the part of it that is a name, with the rest as the object's key.

        Only `Account` is registered where `Account/alice` is meant: every key exists.  As text, since who
        asks wants to connect there and not to be handed a proxy.
        """
        head, key = name, ""
        while True:
            try:
                uri = self._entry(head).uri
            except (errors.NamingError, errors.StoreError):
                # Without its store a name server still knows what it knew.
                head, slash, last = head.rpartition("/")
                if not slash:
                    raise
                key = f"/{last}{key}"
            else:
                object_id, at, location = uri.partition("@")
                return f"{object_id}{key}{at}{location}"

    @readonly
    def page(
        self,
        prefix: str = "",
        after: str = "",
        limit: int = 1_000,
        meta_all: Iterable[str] | None = None,
        meta_any: Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """Pairs of URI and metadata by name, in order: the first `limit` behind the name `after`.

        Of those that begin with `prefix`, have all of the tags `meta_all` and one of `meta_any`.  Less than
        `limit` are the last.
        """
        wanted_all, wanted_any = self._tags("meta_all", meta_all), self._tags("meta_any", meta_any)
        with self._lock:
            chosen = self._index.tagged(wanted_all, wanted_any)
            found = self._index.page(prefix, after, self._limit(limit), chosen)
        return _shown(found, True)

    @readonly
    def children(self, context: str = "", after: str = "", limit: int = 1_000) -> dict[str, Any]:
        """What is directly in a context, in order: by name the URI; by `name/`, a context, how many it has.

        `children("bank")` has `vault` of `bank/vault` and `accounts/` of `bank/accounts/alice`.
        """
        with self._lock:
            return dict(self._index.children(context.strip("/"), after, self._limit(limit)))

    @readonly
    def candidates(self, meta_all: Iterable[str]) -> dict[str, Any]:
        """The names that have all of the tags: by name its URI and how loaded its server is."""
        found = {}
        for name, entry in self._tagged(meta_all, None).items():
            lease = self._leases.get(entry.lease) if entry.lease else None
            found[name] = entry.uri, lease.load if lease is not None else 0.0
        return found

    def open_lease(self, lease_s: float) -> str:
        """Begin a lease: names registered with it are removed when it was not renewed for `lease_s` seconds.

        Whoever knows what is returned can renew and end it, if it is the principal that began it.
        """
        limits = self._limits
        if not limits.lease_min_s <= lease_s <= limits.lease_max_s:
            raise errors.NamingError(
                f"a lease of {lease_s} s: it has {limits.lease_min_s} to {limits.lease_max_s} s"
            )
        if len(self._watch) >= limits.leases_max:
            raise errors.NamingError(f"{len(self._watch)} servers have leases already (leases_max)")
        id, lease = secrets.token_hex(16), Lease(float(lease_s), self._owner())
        self._leases.change(lambda: {id: lease})
        return id

    def renew_lease(self, lease: str, load: float = 0.0) -> bool:
        """Keep the names of a lease; False if it has ended, and they are gone.

        `load` says how busy the server is: 0 not at all, 1 as busy as it can be.
        """
        if not math.isfinite(load):
            raise ValueError(f"a load of {load} says nothing")

        def decide() -> dict[str, Lease | None]:
            found = self._lease(lease)
            return {lease: found._replace(load=float(load), renewals=found.renewals + 1)}

        try:
            self._leases.change(decide)
        except errors.NamingError:
            return False
        return True

    def end_lease(self, lease: str) -> None:
        """Remove the names of a lease now."""
        found = self._leases.get(lease) or self._leases.refresh(lease)
        if found is not None:
            self._check_lessee(found)
            self._leases.change(lambda: {lease: None})
        self._forget([lease])

    def watch(self, listener: Any, prefix: str = "") -> None:
        """Have `listener.names_changed(changes)` called when names that begin with `prefix` change.

        `changes` has the URI by name, or None for a name that was removed.  Listeners are told in order, on
        the connection that they came on, until they are gone.
        """
        # A reference to somewhere else would have a name server connect wherever a caller says.
        if not isinstance(listener, Proxy) or not isinstance(listener._objserver_stub.pool, LinkPool):
            raise TypeError("pass an object of an exposed class of your own, to be called on your connection")
        self.watchers.add(listener, prefix)

    def unwatch(self, listener: Any, prefix: str = "") -> None:
        """No longer."""
        self.watchers.remove(listener, prefix)

    def tick(self) -> None:
        """Take in what other name servers have changed, remove the names of servers that are gone, and tell
        who watches.  To be called several times a second, by one thread; StoreError if the store fails."""
        # In this order: a name is written after its lease, so a lease that is not there then has ended.
        self._names.follow()
        self._leases.follow()
        self._watch.look(self._clock.monotonic())
        over = set(self._watch.over())
        if over:
            # Again, of what the store has by then: a renewal may have come to another name server.
            self._leases.change(lambda: dict.fromkeys(over & set(self._watch.over())))
        with self._lock:
            strays = [lease for lease in self._index.leases() if self._leases.get(lease) is None]
        if strays:
            self._forget(strays)
        self.watchers.tell()

    def be_known_as(self, reference: Reference, metadata: Iterable[str]) -> None:
        """Answer with this reference to who asks for the name server itself, whatever others answer."""
        with self._lock:
            self._is_known = True
            self._index.change({NAMESERVER_ID: Entry(str(reference), frozenset(metadata))})

    # -- what calls are made of ----------------------------------------------------------------------

    def _names_changed(self, changes: Changes) -> None:
        with self._lock:
            self._index.change({name: entry for name, (_, entry) in changes.items()})
        self.watchers.note({name: entry.uri if entry else None for name, (_, entry) in changes.items()})

    def _leases_changed(self, changes: Mapping[str, tuple[Lease | None, Lease | None]]) -> None:
        self._watch.told(changes)

    def _forget(self, leases: Iterable[str]) -> None:
        def decide() -> dict[str, Entry | None]:
            with self._lock:
                return {name: None for lease in leases for name in self._index.under(lease)}

        self._names.change(decide)

    def _lease(self, id: str) -> Lease:
        lease = self._leases.get(id) or self._leases.refresh(id)
        if lease is None:
            raise errors.NamingError("the lease has ended, and with it its names; open another one")
        self._check_lessee(lease)
        return lease

    def _check_lessee(self, lease: Lease) -> None:
        # Its id is a secret that may have been read on the way, as long as there is no TLS.
        if lease.owner and lease.owner != self._owner():
            raise errors.NamingError(f"the lease belongs to {lease.owner!r}")

    def _owner(self) -> str:
        who = self._principal()
        return "" if who is None else who.name

    def _check_owner(self, name: str, entry: Entry | None) -> None:
        if name == NAMESERVER_ID and self._is_known:
            raise errors.NamingError(f"{NAMESERVER_ID} is the name server itself; choose another name")
        refusal = self._ownership.refusal(self._principal(), name, None if entry is None else entry.owner)
        if refusal:
            raise errors.NamingError(refusal)

    def _known(self, name: str) -> Entry | None:
        return self._index.entries.get(name)

    def _entry(self, name: str) -> Entry:
        found = self._known(name) or self._names.refresh(name)
        if found is None:
            raise errors.NamingError(f"unknown name: {name}")
        return found

    def _limit(self, limit: int) -> int:
        if limit < 1:
            raise ValueError(f"limit={limit}: ask for one name at least")
        return min(limit, self._limits.page_max)

    def _tagged(self, meta_all: Iterable[str] | None, meta_any: Iterable[str] | None) -> dict[str, Entry]:
        wanted_all, wanted_any = self._tags("meta_all", meta_all), self._tags("meta_any", meta_any)
        with self._lock:
            found = self._index.tagged(wanted_all, wanted_any) or ()
            return {name: self._index.entries[name] for name in sorted(found)}

    def _select(self, prefix: str | None, regex: str | None) -> dict[str, Entry]:
        with self._lock:
            entries = self._index.entries
            if prefix:
                return {name: entries[name] for name in self._index.names(prefix)}
            everything = dict(entries)
        if not regex:
            return everything
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
                for name, entry in everything.items()
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
    if not return_metadata:
        return {name: entry.uri for name, entry in entries.items()}
    return {name: (entry.uri, set(entry.tags)) for name, entry in entries.items()}


def _plain(entry: Entry) -> Any:
    return [entry.uri, sorted(entry.tags), entry.owner, entry.lease]


def _made(data: Any) -> Entry:
    uri, tags, owner, lease = data
    return Entry(uri, _same_tags(*tags), owner, lease)


@functools.lru_cache(4096)
def _same_tags(*tags: str) -> frozenset[str]:
    """Many names have the same ones, which then cost memory once."""
    return frozenset(tags)


def calling() -> Principal | None:
    """Who makes the call in progress, as far as its connection has proven it."""
    facts = in_progress.get()
    return None if facts is None else facts.principal


def _is_peer() -> bool:
    """Whether the call in progress is one of our peers', or of this process itself."""
    facts = in_progress.get()
    return facts is None or not facts.caller.session_is_connection
