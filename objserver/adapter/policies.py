"""Activation and threading policies: frozen values chosen when something is registered.

An activation policy says which servant incarnates an object and for how long; a threading policy says
how the invocations of one servant are ordered.  Not every pair has a meaning: `check_combination` refuses
the others with the reason, at registration and not at the first call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from objserver import errors

if TYPE_CHECKING:
    from objserver.adapter.invocation import Invocation

__all__ = [
    "ActivationPolicy",
    "Concurrent",
    "PerClient",
    "PerRequest",
    "Persistent",
    "ReadersWriter",
    "Reentrant",
    "Serial",
    "Shared",
    "ThreadingPolicy",
    "check_combination",
]


class _Plain:
    """A policy without parameters: one is as good as another.  (A dataclass would take a while to make.)"""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class PerRequest(_Plain):
    """A new servant for every invocation, ended after the reply."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerClient:
    """One servant for each client session.

    A session of our peers is a proxy (or a name given to several); that of a stock Pyro5 client is its
    connection.  It ends when the proxy is released, the stock connection closes, or nothing was called for
    `idle_timeout_s` seconds.  Beyond `capacity` sessions new ones are refused with ServerBusy, because
    dropping the state of a client that still counts on it would be worse.
    """

    idle_timeout_s: float = 600.0
    capacity: int = 10_000

    def __post_init__(self) -> None:
        _check_bounds(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Persistent:
    """One servant per key, its state kept in the server's store.

    The object exists for ever; its servant is passivated after `idle_timeout_s` seconds without a call,
    and least recently used first when more than `capacity` are active.

    Where several servers may have the store open, `@readonly` members are answered after the store has
    confirmed that no other server has the object meanwhile.  `fast_reads` does without: they may then tell
    what was true a while ago.  In a cluster they tell the truth all the same, as long as clocks run at about
    the same speed: they do without only while the lease of the node certainly runs.

    With `stale_reads_s` any node of a cluster answers `@readonly` members of objects that another has, by a
    copy of what was stored not longer than that ago.  Up to `capacity` copies are kept beside the objects.
    """

    idle_timeout_s: float = 300.0
    capacity: int = 10_000
    fast_reads: bool = False
    stale_reads_s: float | None = None

    def __post_init__(self) -> None:
        _check_bounds(self)
        if self.stale_reads_s is not None and self.stale_reads_s <= 0:
            raise ValueError(f"{self}: stale_reads_s is positive, or None if no read may be stale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copied:
    """Not chosen by anybody: of the copies that a Persistent policy with `stale_reads_s` has."""

    idle_timeout_s: float
    capacity: int
    stale_reads_s: float


class Shared(_Plain):
    """One servant for everybody, while registered."""

    __slots__ = ()


ActivationPolicy = PerRequest | PerClient | Persistent | Shared
"""What may be chosen."""


class Serial(_Plain):
    """One invocation at a time, in the order of arrival."""

    __slots__ = ()

    exclusive: ClassVar[bool] = True
    """One that waits starts when all have left; else one that leaves is enough."""
    alone: ClassVar[bool] = True
    """Nothing ever runs beside another: `admits` and `overtakes` need not be asked."""

    def __init_subclass__(cls) -> None:
        cls.alone = False

    def admits(self, running: Collection[Invocation], invocation: Invocation) -> bool:
        """Whether `invocation` may start beside those that are `running`."""
        return not running

    def overtakes(self, running: Collection[Invocation], invocation: Invocation) -> bool:
        """Whether `invocation` may start although others wait in front of it."""
        return False


class Reentrant(Serial):
    """As Serial, but a call that belongs to the call chain now inside the object may enter."""

    __slots__ = ()

    def admits(self, running: Collection[Invocation], invocation: Invocation) -> bool:
        return not running or self.overtakes(running, invocation)

    def overtakes(self, running: Collection[Invocation], invocation: Invocation) -> bool:
        chain = invocation.chain  # nobody waits for a oneway, so it may wait itself
        return bool(chain) and not invocation.oneway and any(inside.id in chain for inside in running)


class ReadersWriter(Serial):
    """`@readonly` members together, others alone; a waiting writer is not overtaken by readers."""

    __slots__ = ()

    def admits(self, running: Collection[Invocation], invocation: Invocation) -> bool:
        return not running or (invocation.readonly and all(inside.readonly for inside in running))


@dataclasses.dataclass(frozen=True)
class Concurrent(Serial):
    """Up to `limit` invocations at once; the author of the servant takes care."""

    limit: int = 64

    exclusive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"Concurrent(limit={self.limit}): at least one invocation must be allowed")

    def admits(self, running: Collection[Invocation], invocation: Invocation) -> bool:
        return len(running) < self.limit


ThreadingPolicy = Serial | Reentrant | ReadersWriter | Concurrent


def _check_bounds(policy: PerClient | Persistent) -> None:
    if policy.idle_timeout_s <= 0 or policy.capacity < 1:
        raise ValueError(f"{policy}: the idle time must be positive and the capacity at least 1")


def _check_kind(argument: str, value: object, kinds: Any, others: Any) -> None:
    if isinstance(value, get_args(kinds)):
        return
    if isinstance(value, type):
        hint = f"write {value.__name__}(), with parentheses"
    elif isinstance(value, get_args(others)):
        hint = "that is the other kind of policy"
    else:
        hint = f"choose one of {', '.join(kind.__name__ + '()' for kind in get_args(kinds))}"
    raise errors.RegistrationError(f"{argument}={value!r} is no {argument} policy: {hint}")


def check_combination(
    activation: ActivationPolicy, threading: ThreadingPolicy, *, instance: bool, store: bool
) -> None:
    """RegistrationError with the reason if these are no policies, or cannot go together."""
    _check_kind("activation", activation, ActivationPolicy, ThreadingPolicy)
    _check_kind("threading", threading, ThreadingPolicy, ActivationPolicy)
    kind, order = type(activation).__name__, type(threading).__name__
    if instance and not isinstance(activation, Shared):
        raise errors.RegistrationError(
            f"an instance cannot be {kind}: it is one servant, so it is Shared; register its class instead"
        )
    if isinstance(activation, Persistent) and not store:
        raise errors.RegistrationError(
            "Persistent objects need a store: ObjectServer(..., store='sqlite:///objects.db')"
        )
    if isinstance(activation, Persistent) and isinstance(threading, Concurrent):
        raise errors.RegistrationError(
            "Persistent with Concurrent could save a state in the middle of another call; "
            "use Serial, Reentrant or ReadersWriter"
        )
    if isinstance(activation, PerRequest) and order in ("Reentrant", "ReadersWriter"):
        raise errors.RegistrationError(
            f"PerRequest with {order} means nothing: no servant ever sees two invocations; leave it Serial"
        )
