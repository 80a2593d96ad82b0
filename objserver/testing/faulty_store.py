"""A store whose disk takes time and sometimes fails, as one simulated process sees it.

What is stored outlives the processes: each opens a store of its own, over the same engine, which is a
production one.  An operation takes effect at one moment between its beginning and its end.  The process may
crash before it or after it; and it may get an error, which says `in_doubt` unless the operation certainly
had no effect.  Of a store that several may have open, a commit may even take effect after its error has come,
as where the connection breaks and the database goes on.

A store may also be at a `Site` of its own: then what is asked of it goes over the network, which may be cut
in either direction, and the database there may fail over, to a standby that has all that was acknowledged.

It watches some rules: that no commit of an owner is accepted after another has acquired the object, that the
epoch grows whenever the owner changes, and that nobody acquires anything in a life that is over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from objserver import errors
from objserver.storage import Record, Store

if TYPE_CHECKING:
    from objserver.testing.world import Process

__all__ = ["Disk", "FaultyStore", "Site", "opened"]

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
OWNED_MAX = 10_000
"""More than any simulation has."""
PATIENCE_S = 1.0
"""How long a process waits for a store at a site, before it says that it is not to be reached."""


@dataclasses.dataclass
class Site:
    """A host of the network, with a database of which all the processes know."""

    host: str
    down_until: float = 0.0
    histories: int = 0

    def fail_over(self, until: float) -> None:
        """A standby takes over.  It has all that was acknowledged; who asks has to believe otherwise."""
        self.down_until = max(self.down_until, until)
        self.histories += 1


class FaultyStore:
    """See `objserver.storage.Store`, and above.  `disk` may be changed at any time."""

    def __init__(self, process: Process, store: Store, disk: list[Disk], site: Site | None = None) -> None:
        self._process = process
        self._store = store
        self._disk = disk
        self._site = site
        self._heeded = dict.fromkeys(("", "commit", "confirm"), site.histories if site is not None else 0)
        """The history that is known, and that which commits and reads have been refused for."""
        self.url = store.url
        self.id = store.id
        self.alone = store.alone
        self.changed: Callable[[str], None] | None = None
        self._owners: dict[tuple[str, str], str] = store.__dict__.setdefault("owners_seen", {})
        """Of all who have it open."""
        self._epochs: dict[tuple[str, str], int] = store.__dict__.setdefault("epochs_seen", {})

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)
        call = partial(self._over_network, name, self._read if name in READS else self._write, operation)
        setattr(self, name, call)
        return call

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        return iter(list(self._store.items(type)))

    def close(self) -> None:
        """The others still have it open."""

    def _over_network(self, name: str, do: Any, operation: Any, *args: Any, **options: Any) -> Any:
        site = self._site
        if site is None:
            return do(name, operation, args, options)
        here, there = self._process.host, site.host
        if not self._passes(here, there):
            problem = errors.StoreError("the database is not to be reached (simulated)")
            problem.away = True
            raise problem
        self._look_at_history(site)
        if name in self._heeded and self._heeded[name] != site.histories:
            self._heeded[name] = site.histories
            return set()
        result = do(name, operation, args, options)
        if not self._passes(there, here):
            self._process.world.note("disk", self._process.name, name, "was done, and is not answered")
            raise self._doubt()
        return result

    def _passes(self, here: str, there: str) -> bool:
        """Whether a message gets from one host to the other in time; it does when what is in its way ends."""
        world, site = self._process.world, self._site
        assert site is not None
        wait_s = max(world.network.cut_until(here, there), site.down_until) - world.now
        if wait_s > 0:
            self._process.sleep(min(wait_s, PATIENCE_S))
        return wait_s <= PATIENCE_S

    def _look_at_history(self, site: Site) -> None:
        if self._heeded[""] != site.histories:
            self._heeded[""] = site.histories
            if self.changed is not None:
                self.changed("the database has another history (simulated)")

    def _read(self, name: str, operation: Any, args: Any, options: Any) -> Any:
        process, disk = self._process, self._disk[0]
        random = process.world.random
        process.sleep(disk.read_s * random.random())
        if random.random() < disk.unread:
            process.world.note("disk", process.name, name, "fails")
            raise errors.StoreError("the disk did not answer (simulated)")
        result = operation(*args, **options)
        if name == "messages" and self._site is not None and len(args) == 3 and args[2]:
            self._watch_adopted(args[1])
        process.sleep(disk.read_s * random.random())
        return result

    def _watch_adopted(self, owner: str) -> None:
        """Who adopts messages acquires their objects."""
        for what in self._store.owned(owner, OWNED_MAX):
            if self._owners.get(what) != owner:
                record = self._store.load(*what)
                assert record is not None
                self._changes_hands(what, owner, record.epoch)
                self._owners[what] = owner

    def _write(self, name: str, operation: Any, args: Any, options: Any) -> Any:
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
        result = operation(*args, **options)
        self._watch(name, args, result, **options)
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

    def _watch(self, name: str, args: Any, result: Any, member: bool = False) -> None:
        world = self._process.world
        if name == "acquire":
            for what, found in result.items():
                if isinstance(found, Record):
                    self._changes_hands(what, args[1], found.epoch)
                    if member and not self._is_live(args[1]) and self._owners.get(what) != args[1]:
                        world.fail(f"{what} was acquired in a life that is over")
                    self._owners[what] = args[1]
        elif name == "release":
            for type, key, epoch in args[0]:
                what = type, key
                if what in result and self._owners.get(what) == args[1]:
                    record = self._store.load(type, key)
                    assert record is not None
                    self._epochs[what] = epoch
                    self._changes_hands(what, args[2], record.epoch)
                    self._owners[what] = args[2]
        elif name == "commit":
            for change in args[0]:
                what = change.type, change.key
                if what in result and self._owners.get(what, change.owner) != change.owner:
                    world.fail(f"who owns {what} no more has changed it")

    def _changes_hands(self, what: tuple[str, str], owner: str, epoch: int) -> None:
        before = self._owners.get(what, owner)
        if not self.alone and before != owner and epoch <= self._epochs.get(what, -1):
            self._process.world.fail(f"{what} has another owner at the same epoch, {epoch}")
        self._epochs[what] = epoch

    def _is_live(self, life: str) -> bool:
        return any(node.life == life and node.left_s > 0 for node in self._store.nodes())

    @staticmethod
    def _doubt() -> errors.StoreError:
        problem = errors.StoreError("the disk failed during the write (simulated)")
        problem.in_doubt = True
        return problem


def opened(process: Process, store: Store, disk: list[Disk], site: Site | None = None) -> Store:
    """The store as this process has it open."""
    return cast(Store, FaultyStore(process, store, disk, site))
