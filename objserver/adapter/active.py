"""The active object map: which activations exist, and which of them have to go.

A slot is what an activation is found by: the object id, and with it the client session (PerClient) or
the identity of the servant that a locator gave; a PerRequest activation gets a slot that nobody finds again.
The map answers questions and runs nothing; ending an activation is the adapter's work.
"""

from __future__ import annotations

import threading
from typing import Any

from objserver import errors
from objserver.adapter.activation import EMPTY, Activation, Registration
from objserver.adapter.policies import Copied, PerClient, Persistent

__all__ = ["ActiveObjects"]


class ActiveObjects:
    """Every method may be called from any thread.  `get` is the plain dict's, for the path of a call."""

    def __init__(self, size_max: int) -> None:
        self._lock = threading.Lock()
        self._size_max = size_max
        self._retired: set[Activation] = set()
        self._by_slot: dict[Any, Activation] = {}
        self._ids: dict[int, str] = {}
        self.get = self._by_slot.get

    def __len__(self) -> int:
        return len(self._by_slot)

    def add(self, made: Activation, *, bounded: bool = True) -> Activation | None:
        """`made`, or who was in its slot before; ServerBusy beyond the sessions that PerClient allows.

        None if its registration has been replaced: the name's activations are made of another one now.
        """
        registration = made.registration
        policy = registration.activation
        with self._lock:
            found = self._by_slot.get(made.slot)
            if found is not None:
                return found
            # The map's lock makes it sure: who holds a name sees this one here, or this one sees the hold.
            if registration.hold is not None and not registration.hold.take(made):
                return None
            if isinstance(policy, PerClient) and registration.active >= policy.capacity:
                raise errors.ServerBusy(
                    f"{registration.name} already serves {registration.active} client sessions (its capacity)"
                )
            if bounded and len(self._by_slot) >= self._size_max:
                raise errors.ServerBusy(
                    f"{len(self._by_slot)} objects are active (setting active_objects_max)"
                )
            self._by_slot[made.slot] = made
            registration.active += 1
            return made

    def remove(self, activation: Activation) -> None:
        """Forget an activation that has ended.  Safe to call twice."""
        with self._lock:
            if self._by_slot.get(activation.slot) is activation:
                del self._by_slot[activation.slot]
                activation.registration.active -= 1
            self._retired.discard(activation)

    def retire(self, activation: Activation) -> None:
        """Nobody finds it any more, but it is there until it has ended and is removed."""
        with self._lock:
            if self._by_slot.get(activation.slot) is activation:
                del self._by_slot[activation.slot]
                activation.registration.active -= 1
                self._retired.add(activation)

    def name(self, servant: object, object_id: str) -> None:
        """From now on `servant` incarnates `object_id`."""
        self._ids[id(servant)] = object_id

    def unname(self, servant: object, object_id: str) -> None:
        """No longer."""
        if self._ids.get(id(servant)) == object_id:
            del self._ids[id(servant)]

    def id_of(self, servant: object) -> str | None:
        """The id of the object that `servant` incarnates, if it does."""
        return self._ids.get(id(servant))

    def all(self) -> list[Activation]:
        """Every activation there is."""
        with self._lock:
            return [*self._by_slot.values(), *self._retired]

    def of(self, registration: Registration) -> list[Activation]:
        """The activations of one registration."""
        return [a for a in self.all() if a.registration is registration]

    def of_session(self, session: str) -> list[Activation]:
        """The activations that one client session has to itself."""
        return [
            a for a in self.all()
            if isinstance(a.registration.activation, PerClient) and a.slot[1] == session
        ]  # fmt: skip

    def surplus(self, registration: Registration) -> list[Activation]:
        """The least recently used beyond the capacity; a few more than must go, so that sorting is rare."""
        policy = registration.activation
        if not isinstance(policy, (Persistent, Copied)) or registration.active <= policy.capacity:
            return []
        idle = [
            a for a in self.of(registration)
            if a.mailbox.idle and not a.streams and not a.ending and a.servant is not EMPTY
        ]  # fmt: skip
        idle.sort(key=lambda a: a.last_used)
        return idle[: registration.active - policy.capacity + policy.capacity // 16]

    def idle(self, now: float) -> list[Activation]:
        """Those that nobody has called for their idle time, which is as exact as this is asked often."""
        idle = []
        for activation in self.all():
            timeout = getattr(activation.registration.activation, "idle_timeout_s", None)
            if timeout is None:
                continue
            used = activation.last_used != activation.last_seen
            if used or activation.streams or not activation.mailbox.idle:
                activation.last_seen, activation.seen_at = activation.last_used, now
            elif now - activation.seen_at >= timeout:
                idle.append(activation)
        return idle

    @property
    def waiting(self) -> int:
        """How many invocations wait, in all mailboxes."""
        return sum(len(a.mailbox.waiting) for a in self.all())

    @property
    def busy(self) -> int:
        """How many run or await invocations."""
        return sum(not a.mailbox.idle for a in self.all())
