"""The servant manager: makes the servant that an activation needs, and lets it go again.

What runs here is the user's code (constructors, hooks, upgrades), inside the activation's mailbox, so it runs
alone.  Its failures become errors that name the object; nothing half-made is ever put to work.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from objserver import errors
from objserver.adapter import state
from objserver.adapter.activation import EMPTY, Activation, Registration
from objserver.adapter.gate import Gate
from objserver.adapter.ownership import Ownership
from objserver.adapter.policies import Persistent, Shared
from objserver.adapter.skeleton import Skeleton
from objserver.codecs import Codecs
from objserver.logs import escaping
from objserver.storage import Record, Store

__all__ = ["ServantManager", "skeleton_of"]

log = escaping(logging.getLogger("objserver.adapter"))


class ServantManager:
    """`activations` and `passivations` count what it did."""

    def __init__(self, codecs: Codecs, store: Store | None, ownership: Ownership) -> None:
        self._codecs = codecs
        self._store = store
        self._ownership = ownership
        self.activations = 0
        self.passivations = 0

    def incarnate(self, activation: Activation, sent: bool = False) -> tuple[Any, Skeleton]:
        """Make the servant, give it its stored state, and call its `on_activate`.

        ActivationError if the user's code fails; StoreError and StateError as they are; Moved, if the object
        is another server's (see `Ownership.acquire`).
        """
        registration = activation.registration
        if registration.removed:
            raise errors.ObjectNotFound(f"{registration.name!r} has been unregistered")
        record: Record | None = None
        gate: Gate | None = None
        if registration.persistent:
            policy = registration.activation
            assert isinstance(policy, Persistent)
            # First: where the object is another server's, no servant of it is made.
            record, gate = self.acquire(registration.name, activation.key, policy, sent)
            if record is not None and record.state is not None:
                known = self.offers(registration, activation.key, activation.object_id).cls
                if record.state_version > state.state_version(known):
                    self._ownership.pass_on(registration.name, activation.key, gate.owner, record)
        return self._awaken(activation, record, gate)

    def copy(self, activation: Activation) -> tuple[Any, Skeleton] | None:
        """Make a servant of what the store has now, without acquiring it; None if nothing can be made of it.

        Raises as `incarnate`.
        """
        registration, key = activation.registration, activation.key
        assert self._store is not None
        record = self._store.load(registration.name, key)
        if record is None or record.state is None:
            return None
        known = self.offers(registration, key, activation.object_id).cls
        if record.state_version != state.state_version(known):
            return None
        return self._awaken(activation, record, None)

    def _awaken(
        self, activation: Activation, record: Record | None, gate: Gate | None
    ) -> tuple[Any, Skeleton]:
        registration = activation.registration
        servant: Any = EMPTY
        try:
            servant = self.make(registration, activation.key, activation.object_id)
            skeleton = activation.skeleton or Skeleton.of(type(servant))
            if record is not None and record.state is not None:
                self._restore(activation.object_id, servant, record)
            activation.gate = gate
            hook = getattr(servant, "on_activate", None)
            if hook is not None and registration.instance is EMPTY:
                hook()
        except BaseException as problem:
            if servant is not EMPTY and registration.instance is EMPTY:
                self.call_close(activation, servant)
            if isinstance(problem, errors.ObjServerError):
                raise
            raise errors.ActivationError(
                f"no servant for {activation.object_id!r}: {type(problem).__name__}: {problem}"
            ) from problem
        self.activations += 1
        return servant, skeleton

    def make(self, registration: Registration, key: str, object_id: str) -> Any:
        """A servant from the class or the locator; ActivationError with the reason if there is none."""
        try:
            servant = registration.make(key)
            skeleton_of(servant, object_id)
            if registration.skeleton is None:
                self._codecs.types.add_signatures(type(servant))
            return servant
        except errors.ObjServerError:
            raise
        except BaseException as problem:
            raise errors.ActivationError(
                f"no servant for {object_id!r}: {type(problem).__name__}: {problem}"
            ) from problem

    def _restore(self, object_id: str, servant: Any, record: Record) -> None:
        assert record.state is not None
        if record.codec != state.CODEC:
            raise errors.StoreError(
                f"the state of {object_id!r} is in encoding {record.codec}, unknown here"
            )
        state.restore(servant, record.state, record.state_version, self._codecs)

    def acquire(
        self, type: str, key: str, policy: Persistent, sent: bool = False
    ) -> tuple[Record | None, Gate]:
        """From now on the object is this server's: what the store has of it, and the gate of its replies."""
        store = self._store
        assert store is not None
        name = type, key
        owner, record = self._ownership.acquire(type, key, sent)
        replies = store.replies(*name) if record is not None else []
        # As a client of other objects it is the same in all its lives.
        source = hashlib.blake2b(repr((store.id, *name)).encode(), digest_size=16).digest()
        return record, Gate(
            name, record, replies, owner=owner, source=source, confirms=self.confirms(policy)
        )

    def confirms(self, policy: Persistent) -> bool:
        """Whether reads under this policy need the store's word."""
        return not (policy.fast_reads or (self._store is not None and self._store.alone))

    def passivate(self, activation: Activation) -> None:
        """Call the servant's `on_passivate`; what it changes is still saved."""
        registration = activation.registration
        located = registration.skeleton is None and isinstance(registration.activation, Shared)
        if activation.servant is EMPTY or registration.instance is not EMPTY or located:
            return
        self.passivations += 1
        hook = getattr(activation.servant, "on_passivate", None)
        if hook is not None:
            hook()

    def close(self, activation: Activation) -> Any:
        """Take the servant out and call its `close`, if that is not a remote method; returns it, or EMPTY."""
        activation.plain = False
        servant, activation.servant = activation.servant, EMPTY
        activation.gate = None
        registration = activation.registration
        if servant is EMPTY or registration.instance is not EMPTY:
            return EMPTY
        if registration.skeleton is None and isinstance(registration.activation, Shared):
            return servant  # the locator keeps its servants
        self.call_close(activation, servant)
        return servant

    def offers(self, registration: Registration, key: str, object_id: str) -> Skeleton:
        """What an object of `registration` offers, for a client that asks before it calls.

        A locator must make a servant to show it; the first one stands for all.
        """
        if registration.skeleton_seen is None:
            servant = self.make(registration, key, object_id)
            registration.skeleton_seen = Skeleton.of(type(servant))
            if not isinstance(registration.activation, Shared):
                self.call_close(None, servant)
        return registration.skeleton_seen

    @staticmethod
    def call_close(activation: Activation | None, servant: Any) -> None:
        """Call the servant's `close`, if it has one and that is not a remote method."""
        if "close" in Skeleton.of(type(servant)).methods:
            return  # a remote method of that name, for its callers
        close = getattr(servant, "close", None)
        if close is not None:
            try:
                close()
            except BaseException:
                log.exception("close() of %r failed", activation.object_id if activation else servant)


def skeleton_of(servant: object, object_id: str) -> Skeleton:
    """The skeleton of the class of `servant`; ActivationError if it exposes nothing."""
    skeleton = Skeleton.of(type(servant))
    if skeleton.empty:
        raise errors.ActivationError(
            f"{object_id!r} is a {type(servant).__name__}, which exposes nothing; use @expose"
        )
    return skeleton
