"""Copies of objects that another server of the cluster has, for reads that may tell what was true before.

A call that meets `Moved` and changes nothing need not go where the object is, if its policy says so
(`Persistent.stale_reads_s`).  It is answered by a servant made of what the store had a moment ago.  That
moment is taken before the store is asked, on the clock of this machine, so no clock is compared with another.
A copy is used only until it is as old as it may be; then it ends, and the next call makes another.

A copy is an activation like others: it has a mailbox, is counted, idles and is passivated.  But it belongs to
a registration of its own, which is not persistent, and so nothing ever saves it.  Whatever it cannot answer
goes where the object is: what nobody has stored yet, and states of another layout, since upgrading them is
for the one that has the object.
"""

from __future__ import annotations

from typing import Any, Protocol

from objserver import errors
from objserver.adapter.activation import EMPTY, Activation, Registration
from objserver.adapter.active import ActiveObjects
from objserver.adapter.invocation import Invocation
from objserver.adapter.policies import Copied
from objserver.adapter.registry import Registry
from objserver.adapter.servants import ServantManager
from objserver.adapter.skeleton import Skeleton
from objserver.clock import Clock
from objserver.references import object_id

__all__ = ["Copies"]


class Adapter(Protocol):
    """What the adapter does for us."""

    def new(self, slot: Any, object_id: str, key: str, registration: Registration) -> Activation: ...
    def end(self, activation: Activation) -> None: ...
    def resolve(self, invocation: Invocation, skeleton: Skeleton) -> None: ...
    def offer_and_run(self, activation: Activation, invocation: Invocation) -> bool: ...
    def take_up(self, activation: Activation, servant: Any, skeleton: Skeleton) -> None: ...


class Copies:
    """Of one adapter.  Any thread may call any method."""

    def __init__(
        self,
        adapter: Adapter,
        registry: Registry,
        active: ActiveObjects,
        servants: ServantManager,
        clock: Clock,
    ) -> None:
        self._adapter = adapter
        self._registry = registry
        self._active = active
        self._servants = servants
        self._monotonic = clock.monotonic
        self.loaded = self.read = 0

    def read_instead(self, invocation: Invocation, moved: errors.Moved) -> bool:
        """Have a call answered by a copy, if that may be.  Else nothing is done, and it has to go on."""
        if invocation.errand or invocation.asks or not invocation.may_be_stale:
            return False
        registration, key = self._registry.find(invocation.object_id)
        copies, skeleton = registration.copies, registration.skeleton_seen
        # (A locator that has never shown a class is not asked here: that is foreign code.)
        if copies is None or skeleton is None or not _only_reads(invocation, skeleton):
            return False
        if invocation.member is None and not invocation.members:
            self._adapter.resolve(invocation, skeleton)
        invocation.owned_at = moved.address
        name = object_id(registration.name, key) if key else registration.name
        while not self._adapter.offer_and_run(self._fresh(name, key, copies), invocation):
            pass  # that one has just ended
        return True

    def _fresh(self, name: str, key: str, copies: Registration) -> Activation:
        """A copy that is not too old, or is about to be loaded."""
        slot = copies, key
        found = self._active.get(slot)
        if found is not None and self._monotonic() >= found.fresh_until:
            self._active.retire(found)
            self._adapter.end(found)
            found = None
        while found is None:
            found = self._active.add(self._adapter.new(slot, name, key, copies))
            for surplus in self._active.surplus(copies):
                self._adapter.end(surplus)
        return found

    def ready(self, invocation: Invocation) -> None:
        """In its turn: the copy is there, and not too old.  Else Moved, to be looked for anew or to go on."""
        activation = invocation.activation
        policy = activation.registration.activation
        assert isinstance(policy, Copied)
        if activation.servant is EMPTY:
            invocation.may_be_stale = False  # what cannot be loaded now is not tried again
            asked_at = self._monotonic()
            made = self._servants.copy(activation)
            if made is None:
                raise _moved(invocation)
            self.loaded += 1
            activation.fresh_until = asked_at + policy.stale_reads_s
            self._adapter.take_up(activation, *made)
        if self._monotonic() >= activation.fresh_until:
            raise _moved(invocation)
        self.read += 1

    def drop(self) -> None:
        """What they are made of may never have been."""
        for activation in self._active.all():
            if activation.registration.copied:
                self._active.retire(activation)
                self._adapter.end(activation)

    def statistics(self) -> dict[str, Any]:
        """Counts."""
        copies = [registration.copies for registration in self._registry.all()]
        return {
            "copies": sum(each.active for each in copies if each is not None),
            "copies_loaded": self.loaded,
            "calls_of_copies": self.read,
        }


def _only_reads(invocation: Invocation, skeleton: Skeleton) -> bool:
    if invocation.member is not None or invocation.members:
        return invocation.readonly
    calls = [(invocation.method, invocation.args)]
    if invocation.batch is not None:
        calls = [(method, args) for method, args, _ in invocation.batch]
    try:
        return all(skeleton.find(method, args)[0].readonly for method, args in calls)
    except errors.MemberNotFound:
        return False


def _moved(invocation: Invocation) -> errors.Moved:
    moved = errors.Moved(f"{invocation.object_id} is at {invocation.owned_at}")
    moved.address = invocation.owned_at
    return moved
