"""A store whose disk takes time and sometimes fails, as one simulated process sees it.

What is stored outlives the processes: each opens a store of its own, over the same engine, which is a
production one.  An operation takes effect at one moment between its beginning and its end.  The process may
crash before it or after it; and it may get an error, which says `in_doubt` unless the operation certainly
had no effect.  Of a store that several may have open, a commit may even take effect after its error has come,
as where the connection breaks and the database goes on.

It watches one rule, that no commit of an owner is accepted after another has acquired the object, or after
the owner has released it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from objserver import errors
from objserver.storage import Record, Store

if TYPE_CHECKING:
    from objserver.testing.world import Process

__all__ = ["Disk", "FaultyStore", "opened"]

READS = frozenset(
    {"load", "replies", "confirm", "keys", "types", "messages", "first_messages", "due", "next_due", "timers"}
    | {"nodes", "owners", "owned", "tally"}
)


class Disk(NamedTuple):
    """What the disk does.  Shares are of all operations of the kind."""

    read_s: float = 0.0001
    write_s: float = 0.002
    slow: float = 0.01
    """Writes that take a hundred times as long."""
    unread: float = 0.0
    """Reads that fail."""
    unwritten: float = 0.0
    """Writes that fail and had no effect."""
    in_doubt: float = 0.0
    """Writes that end with an error, whether they had an effect or not."""


LATE = 0.5
"""Of the commits in doubt to a shared store, those that take effect later."""
LATE_S = 0.02


class FaultyStore:
    """See `objserver.storage.Store`, and above.  `disk` may be changed at any time."""

    def __init__(self, process: Process, store: Store, disk: list[Disk]) -> None:
        self._process = process
        self._store = store
        self._disk = disk
        self.url = store.url
        self.id = store.id
        self.alone = store.alone
        self.changed: Callable[[str], None] | None = None
        self._owners: dict[tuple[str, str], str] = store.__dict__.setdefault("owners_seen", {})
        """Of all who have it open."""

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)
        call = partial(self._read if name in READS else self._write, name, operation)
        setattr(self, name, call)
        return call

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        return iter(list(self._store.items(type)))

    def close(self) -> None:
        """The others still have it open."""

    def _read(self, name: str, operation: Any, *args: Any) -> Any:
        process, disk = self._process, self._disk[0]
        random = process.world.random
        process.sleep(disk.read_s * random.random())
        if random.random() < disk.unread:
            process.world.note("disk", process.name, name, "fails")
            raise errors.StoreError("the disk did not answer (simulated)")
        result = operation(*args)
        process.sleep(disk.read_s * random.random())
        return result

    def _write(self, name: str, operation: Any, *args: Any) -> Any:
        process, disk = self._process, self._disk[0]
        world = process.world
        random = world.random
        takes_s = disk.write_s * (0.2 + 1.6 * random.random()) * (100 if random.random() < disk.slow else 1)
        before_s = takes_s * random.random()
        process.sleep(before_s)
        if random.random() < disk.unwritten:
            world.note("disk", process.name, name, "fails, nothing done")
            raise errors.StoreError("the disk is full (simulated)")
        doubtful = random.random() < disk.in_doubt
        if doubtful and name == "commit" and not self.alone and random.random() < LATE:
            world.note("disk", process.name, name, "fails, and is done later")
            world.at(LATE_S * random.random(), partial(self._done_later, operation, args))
            raise self._doubt()
        if doubtful and random.random() < 0.5:
            world.note("disk", process.name, name, "fails, nothing done, nobody knows")
            raise self._doubt()
        result = operation(*args)
        self._watch(name, args, result)
        world.note("disk", process.name, name, len(result) if isinstance(result, Sized) else result)
        process.sleep(takes_s - before_s)
        if doubtful:
            world.note("disk", process.name, name, "fails, was done, nobody knows")
            raise self._doubt()
        return result

    def _done_later(self, operation: Any, args: Any) -> None:
        try:
            result = operation(*args)
        except errors.StoreError:  # nobody is there any more to be told
            result = set()
        self._watch("commit", args, result)
        self._process.world.note("disk", self._process.name, "commit", len(result), "late")

    def _watch(self, name: str, args: Any, result: Any) -> None:
        if name == "acquire":
            taken = (what for what, found in result.items() if isinstance(found, Record))
            self._owners.update(dict.fromkeys(taken, args[1]))
        elif name == "release":
            self._owners.update(dict.fromkeys(result, args[2] or ""))
        elif name == "commit":
            for change in args[0]:
                what = change.type, change.key
                if what in result and self._owners.get(what, change.owner) != change.owner:
                    self._process.world.fail(f"who owns {what} no more has changed it")

    @staticmethod
    def _doubt() -> errors.StoreError:
        problem = errors.StoreError("the disk failed during the write (simulated)")
        problem.in_doubt = True
        return problem


def opened(process: Process, store: Store, disk: list[Disk]) -> Store:
    """The store as this process has it open."""
    return cast(Store, FaultyStore(process, store, disk))
