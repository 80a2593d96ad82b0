"""An activation: one servant incarnating one object, with its mailbox and what the store knows of it.

empty -> active -> ended        the servant is made by the first invocation, inside the mailbox, so that
  ^        |                    later ones wait for it without holding a thread; ending goes through the
  +--------+                    mailbox too, and calls that came meanwhile go to the next incarnation
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from objserver.adapter.gate import Gate
from objserver.adapter.invocation import EMPTY
from objserver.adapter.mailbox import Mailbox
from objserver.adapter.policies import (
    ActivationPolicy,
    Copied,
    PerRequest,
    Persistent,
    Shared,
    ThreadingPolicy,
)
from objserver.adapter.skeleton import Skeleton

if TYPE_CHECKING:
    from objserver.adapter.hold import Hold

__all__ = ["EMPTY", "Activation", "Registration"]


class Registration:
    """What was registered under one name."""

    def __init__(
        self,
        name: str,
        make: Callable[[str], Any],
        activation: ActivationPolicy | Copied,
        threading: ThreadingPolicy,
        *,
        skeleton: Skeleton | None,
        instance: Any = EMPTY,
    ) -> None:
        self.name = name
        self.make = make
        self.activation = activation
        self.threading = threading
        self.skeleton = skeleton
        """None for a locator: each servant has the skeleton of its own class."""
        self.instance = instance
        self.skeleton_seen = skeleton
        """... of which the first stands for all when a client asks what the object offers."""
        self.located = skeleton is None and isinstance(activation, Shared)
        """A locator says which servant it is; a new one is never made."""
        self.keyed = skeleton is None or isinstance(activation, Persistent)
        self.persistent = isinstance(activation, Persistent)
        self.transient = isinstance(activation, PerRequest) or (
            skeleton is None and isinstance(activation, Shared)
        )
        """An idle activation has nothing to stay for."""
        self.copied = isinstance(activation, Copied)
        self.copies = self._copies()
        """Of objects that are elsewhere, if reads may be stale."""
        self.removed = False
        self.active = 0
        self.hold: Hold | None = None
        """While its policies are being changed; for good, once another registration has taken its place."""
        self.taken_over: tuple[int, int] | None = None
        """Epoch and version of the stored state that went on in memory, when it was Persistent before."""
        self.remembers = False
        """It was Persistent: a call that has an id may have been made then."""

    def _copies(self) -> Registration | None:
        policy = self.activation
        if not isinstance(policy, Persistent) or policy.stale_reads_s is None:
            return None
        copied = Copied(
            idle_timeout_s=policy.idle_timeout_s,
            capacity=policy.capacity,
            stale_reads_s=policy.stale_reads_s,
        )
        return Registration(self.name, self.make, copied, self.threading, skeleton=self.skeleton)

    def adopt(self, activation: ActivationPolicy, threading: ThreadingPolicy) -> Registration | None:
        """These policies from now on; returns the copies made under those before."""
        before = self.copies
        self.activation, self.threading = activation, threading
        self.copies = self._copies()
        return before

    def __repr__(self) -> str:
        return f"<Registration {self.name!r} {self.activation} {self.threading} active={self.active}>"


class Activation:
    """See the module's essay.  Everything below is guarded by `lock`, except what only the holder of the
    mailbox touches (`servant`, `skeleton`, `version`, `saved`)."""

    __slots__ = (
        "end_after_streams",
        "ended",
        "ending",
        "fresh_until",
        "gate",
        "key",
        "last_seen",
        "last_used",
        "lock",
        "mailbox",
        "object_id",
        "plain",
        "registration",
        "seen_at",
        "servant",
        "skeleton",
        "slot",
        "streams",
    )

    def __init__(
        self, slot: Any, object_id: str, key: str, registration: Registration, mailbox: Mailbox, now: float
    ) -> None:
        self.slot = slot
        self.object_id = object_id
        self.key = key
        self.registration = registration
        self.mailbox = mailbox
        self.lock = threading.Lock()
        self.servant: Any = EMPTY
        self.skeleton = registration.skeleton
        self.gate: Gate | None = None
        """Of a Persistent object, as long as the servant is there."""
        self.fresh_until = math.inf
        """On the machine's clock; of a copy."""
        self.streams = 0
        self.last_used = 0
        """Number of the last invocation: an order among activations that costs no look at the clock."""
        self.last_seen = -1
        self.seen_at = now
        """When housekeeping last found it used: idle times are as exact as housekeeping is frequent."""
        self.plain = False
        """A servant is there and stays, and calling it takes nothing before and leaves nothing to save."""
        self.end_after_streams = False
        self.ending = False
        self.ended = False

    def __repr__(self) -> str:
        return f"<Activation {self.object_id!r} {self.mailbox!r}>"
