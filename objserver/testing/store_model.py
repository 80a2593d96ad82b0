"""Changes, replies and messages as tests of stores need them, and a store in dictionaries to compare with.

`Model` is the interface of `objserver.storage.Store` in dictionaries.  `race` and `fight` let several have
the same objects at a time.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import random
import threading
from typing import Any

from objserver.storage import Change, Record, Reply, Store
from objserver.storage.base import Message, Timer

__all__ = [
    "CLIENT",
    "LEASE_S",
    "OTHER",
    "STRANGER",
    "Model",
    "change",
    "fight",
    "fill",
    "message",
    "race",
    "random_change",
    "reply",
]

CLIENT = b"\x00\xff" * 8
OTHER = b"\xffother client \x00\x01"
STRANGER = b"without session "
LEASE_S = 3600.0
"""Longer than any test takes."""


def change(key: str, version: int = 0, state: bytes | None = b"s", **more: Any) -> Change:
    """A change of an object of type T."""
    named = {"type": "T", "epoch": 0, "codec": 1, "state_version": 3, **more}
    return Change(key=key, version=version, state=state, **named)


def reply(number: int, client: bytes = CLIENT, result: bytes | None = b"r", path: bytes = b"") -> Reply:
    return Reply(client, number, path, 0, b"\x00digest", 0, result)


def message(number: int) -> Message:
    return Message(b"\x00\xff message %7d" % number, f"PYRO:é{number}@host:1", b"\x00payload")


def fill(store: Store) -> None:
    """Something of everything: a change of each kind, of two types."""
    store.commit([change("b", calls=300, state=b"", codec=2, state_version=4, owner="you"), change("gone")])
    store.commit([change("gone", 1, None, messages=[message(5)])])
    timers = [Timer("t", 2.5, b"p")]
    store.commit([change("a", state=b"\x00\xff", owner="me", replies=[reply(1)], timers=timers)])
    more = change("é", type="U", calls=2, replies=[reply(1), reply(2)], timers=[Timer("", 1.5)])
    store.commit([more._replace(messages=[message(3)])])


class Model:
    """What a store does, in dictionaries."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.objects: dict[tuple[str, str], Record] = {}
        self.owners: dict[tuple[str, str], str] = {}
        self.replies: dict[tuple[str, str], dict[tuple[bytes, int, bytes], Reply]] = {}
        self.timers: dict[tuple[str, str], dict[str, Timer]] = {}
        self.messages: dict[bytes, Message] = {}
        self.sessions = {CLIENT, OTHER}

    def commit(self, changes: list[Change]) -> set[tuple[str, str]]:
        return {(c.type, c.key) for c in changes if self.accepts(c)}

    def accepts(self, c: Change) -> bool:
        name = c.type, c.key
        now = self.objects.get(name)
        if (c.epoch, c.version) != (now[:2] if now else (0, 0)):
            return False
        if not {reply.client for reply in c.replies} <= self.sessions:
            return False
        self.objects[name] = Record(c.epoch, c.version + c.calls, c.codec, c.state_version, c.state)
        self.owners.setdefault(name, c.owner)
        kept = self.replies.setdefault(name, {})
        for client, through in c.acked:
            for id in [id for id in kept if id[0] == client and id[1] <= through]:
                del kept[id]
        kept.update({reply[:3]: reply for reply in c.replies})
        self.messages.update({message.id: message for message in c.messages})
        timers = self.timers.setdefault(name, {})
        for timer in c.timers:
            timers.pop(timer.name, None)
            if timer.due is not None:
                timers[timer.name] = timer
        return True

    def acquire(self, names: list[tuple[str, str]], owner: str) -> dict[tuple[str, str], Record]:
        for name in self.objects.keys() & names:
            if not self.alone and self.owners[name] != owner:
                self.owners[name] = owner
                self.objects[name] = self.objects[name]._replace(epoch=self.objects[name].epoch + 1)
        return {name: self.objects[name] for name in names if name in self.objects}

    def confirm(self, reads: list[tuple[str, str, int, int]]) -> set[tuple[str, str]]:
        missing = Record(0, 0, 0, 0, None)
        return {(t, k) for t, k, *read in reads if (*read,) == self.objects.get((t, k), missing)[:2]}

    def expire(self, lasting: set[bytes]) -> int:
        ended = self.sessions - lasting - {CLIENT, OTHER}
        self.sessions -= ended
        for kept in self.replies.values():
            for id in [id for id in kept if id[0] in ended]:
                del kept[id]
        return len(ended)


def random_change(chance: random.Random, model: Model, key: str, number: int, clients: list[bytes]) -> Change:
    """Mostly the next one of an object, now and then a stale one."""
    now = model.objects.get(("T", key), Record(0, 0, 0, 0, None))
    callers = chance.sample(clients, chance.choice((0, 0, 1, 1, 2)))
    return change(
        key,
        now.version - (chance.random() < 0.1),
        chance.choice((None, b"", b"%d" % number)),
        epoch=max(0, now.epoch - (chance.random() < 0.1)),
        calls=chance.randint(1, 3),
        replies=[reply(number, client, path=chance.choice((b"", b"p"))) for client in callers],
        acked=[
            (client, number - chance.randrange(20)) for client in chance.sample(clients, chance.randrange(2))
        ],
        messages=[message(number)] * chance.randrange(2),
        timers=[
            Timer(chance.choice("tu"), chance.choice((None, float(number))))
            for _ in range(chance.randrange(3))
        ],
        owner=chance.choice(("me", "you")),
    )


def race(stores: list[Store], rounds: int) -> list[int]:
    """All try to write the same objects, in different orders, until each has had `rounds` versions.

    Returns how often each store won the first object.
    """
    names = [str(n) for n in range(10)]
    start = threading.Barrier(len(stores))

    def work(n: int) -> int:
        start.wait(30)
        won = 0
        mine = names[n:] + names[:n]
        for version in range(rounds):
            accepted = stores[n].commit([change(key, version, b"%d" % n) for key in mine])
            assert len(accepted) in (0, len(names))  # whoever is first has all of this version
            won += ("T", "0") in accepted
        return won

    with concurrent.futures.ThreadPoolExecutor(len(stores)) as pool:
        return list(pool.map(work, range(len(stores))))


def fight(stores: list[Store], rounds: int) -> None:
    """In each round all take the same object, and add to it until they lose it."""
    start = threading.Barrier(len(stores))

    def work(n: int) -> list[int]:
        done = []
        for _ in range(rounds):
            start.wait(30)
            found = stores[n].acquire([("T", "a")], f"{n}").get(("T", "a"), Record(0, 0, 0, 0, b"0"))
            assert isinstance(found, Record)
            epoch, version, _, _, state = found
            for _ in range(3):
                state = b"%d" % (int(state or b"0") + 1)
                if not stores[n].commit([change("a", version, state, epoch=epoch, owner=f"{n}")]):
                    break
                version += 1
                done.append(version)
        return done

    with concurrent.futures.ThreadPoolExecutor(len(stores)) as pool:
        done = sorted(itertools.chain(*pool.map(work, range(len(stores)))))
    record = stores[0].load("T", "a")
    assert record is not None
    assert done == list(range(1, record.version + 1))
    assert record.state == b"%d" % record.version
    assert record.epoch >= rounds - 1
