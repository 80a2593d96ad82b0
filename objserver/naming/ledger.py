"""`Ledger`: a dict that several processes share through a store, and of which each has all in memory.

Its entries are spread over a fixed number of buckets by a hash of their keys, and a bucket is a row of the
store, an object like a Persistent one.  So a hundred thousand entries are read at a start in a thousand rows,
and who wants to know what others changed asks for the versions of the buckets, in one question, instead of
for every entry.  A change is based on the version of its bucket: if somebody was faster the store refuses it,
the bucket is read again and the change decided anew.  Whatever was decided therefore holds for all processes,
though none of them talks to another.

What is read here is as old as the last `follow`; `refresh` looks at one key now.  Without a store a ledger is
a dict.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from objserver import errors
from objserver.codecs import Codecs
from objserver.settings import Limits
from objserver.storage import Change, Record, Store

__all__ = ["Ledger"]

V = TypeVar("V")

CODEC, STATE_VERSION = 1, 1
"""As a Persistent object has them, so that `objserver store show` reads the rows."""
ATTEMPTS_MAX = 100
"""How often a change is decided anew because somebody else was faster; each time somebody got on."""

_codec = Codecs(Limits()).native


class Ledger(Generic[V]):
    """Entries of type V by key.  Any thread may call it; changes wait for each other.

    `plain` makes data of an entry and `made` an entry of data.  `told` is called with every difference that
    comes into memory, whoever made it: by key the entry before and the entry now, None for no entry.
    """

    def __init__(
        self,
        store: Store | None,
        type: str,
        buckets: int,
        plain: Callable[[V], Any],
        made: Callable[[Any], V],
        told: Callable[[dict[str, tuple[V | None, V | None]]], None],
    ) -> None:
        self._store = store
        self._type = type
        self._plain, self._made, self._told = plain, made, told
        self._lock = threading.RLock()
        self._keys = [format(n, "04x") for n in range(buckets)]
        self._buckets: list[dict[str, V]] = [{} for _ in range(buckets)]
        self._at = [(0, 0)] * buckets
        """Epoch and version of each bucket."""
        self._doubtful: set[int] = set()
        """Buckets of which nobody knows whether they were written."""
        differences: dict[str, tuple[V | None, V | None]] = {}
        places = {key: bucket for bucket, key in enumerate(self._keys)}
        for key, record in store.items(type) if store is not None else ():
            if key not in places:
                raise self._of_another_release()
            differences |= self._read(places[key], record)
        if differences:
            told(differences)

    def get(self, key: str) -> V | None:
        """The entry, as far as this process knows."""
        return self._buckets[self._bucket(key)].get(key)

    def change(self, decide: Callable[[], Mapping[str, V | None]]) -> None:
        """Make the entries what `decide` says, None for no entry; durable on return.

        It is called again with what others have changed meanwhile, and what it raises ends the change.
        StoreError leaves memory as it was.  Of many entries each stands for itself.
        """
        with self._lock:
            for _ in range(ATTEMPTS_MAX):
                left = self._write(decide())
                if not left:
                    return
                for bucket in left:
                    self._reread(bucket)
        raise errors.StoreError(f"others change the {self._type} in the store all the time; try again later")

    def refresh(self, key: str) -> V | None:
        """The entry as the store has it now."""
        with self._lock:
            bucket = self._bucket(key)
            read = (self._type, self._keys[bucket], *self._at[bucket])
            if self._store is not None and not self._store.alone and not self._store.confirm([read]):
                self._reread(bucket)
            return self.get(key)

    def follow(self) -> None:
        """Take in what others have changed."""
        if self._store is None or (self._store.alone and not self._doubtful):
            return
        with self._lock:
            reads = [(self._type, key, *at) for key, at in zip(self._keys, self._at, strict=True)]
            same = {key for _, key in self._store.confirm(reads)}
            for bucket, key in enumerate(self._keys):
                if key not in same or bucket in self._doubtful:
                    self._reread(bucket)

    def _bucket(self, key: str) -> int:
        return zlib.crc32(key.encode("utf-8", "surrogatepass")) % len(self._buckets)

    def _write(self, entries: Mapping[str, V | None]) -> list[int]:
        """Commit and take into memory; the buckets that somebody else has written."""
        wanted: dict[int, dict[str, V]] = {}
        differences: dict[int, dict[str, tuple[V | None, V | None]]] = {}
        for key, entry in entries.items():
            bucket = self._bucket(key)
            before = self._buckets[bucket].get(key)
            if before == entry:
                continue
            changed = wanted.setdefault(bucket, dict(self._buckets[bucket]))
            differences.setdefault(bucket, {})[key] = before, entry
            if entry is None:
                del changed[key]
            else:
                changed[key] = entry
        accepted = set(wanted)
        if self._store is not None and wanted:
            changes = [self._row(bucket, changed) for bucket, changed in wanted.items()]
            try:
                accepted = {int(key, 16) for _, key in self._store.commit(changes)}
            except errors.StoreError:
                self._doubtful |= set(wanted)
                raise
        told: dict[str, tuple[V | None, V | None]] = {}
        for bucket in accepted:
            epoch, version = self._at[bucket]
            self._at[bucket] = epoch, version + 1
            self._buckets[bucket] = wanted[bucket]
            told |= differences[bucket]
        if told:
            self._told(told)
        return [bucket for bucket in wanted if bucket not in accepted]

    def _row(self, bucket: int, entries: dict[str, V]) -> Change:
        state = _codec.encode_exactly({key: self._plain(entry) for key, entry in entries.items()})
        return Change(self._type, self._keys[bucket], *self._at[bucket], CODEC, STATE_VERSION, state)

    def _reread(self, bucket: int) -> None:
        assert self._store is not None
        record = self._store.load(self._type, self._keys[bucket])
        self._doubtful.discard(bucket)
        differences = self._read(bucket, record)
        if differences:
            self._told(differences)

    def _of_another_release(self) -> errors.StoreError:
        return errors.StoreError(
            f"the {self._type} in the store were written by another release of objserver, in a form that "
            "this one does not know; start that release, or begin with an empty store"
        )

    def _read(self, bucket: int, record: Record | None) -> dict[str, tuple[V | None, V | None]]:
        """Take a row into memory; what is different now."""
        at = (record.epoch, record.version) if record is not None else (0, 0)
        if at == self._at[bucket]:
            return {}
        before, now = self._buckets[bucket], {}
        if record is not None and record.state is not None:
            if (record.codec, record.state_version) != (CODEC, STATE_VERSION):
                raise self._of_another_release()
            now = {key: self._made(data) for key, data in _codec.decode(record.state).items()}
        self._at[bucket], self._buckets[bucket] = at, now
        if not before:
            return {key: (None, entry) for key, entry in now.items()}
        return {
            key: (before.get(key), now.get(key))
            for key in before.keys() | now.keys()
            if before.get(key) != now.get(key)
        }
