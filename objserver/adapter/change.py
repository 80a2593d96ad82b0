"""Policies changed on a live object: hold, drain, convert, resume.

    hold      calls that come are kept waiting, in their order; see hold.py
    drain     what has begun ends, item streams included, if servants have to go
    convert   one entry of `CONVERSIONS`: servants end, become one, go on, are saved
    resume    another registration has taken the place of the old one, and the calls go to its activations

Until the new registration is in its place nothing has happened: whatever fails before lets go of what was
held, and the old servants go on.  The rule behind the table: a change loses no state, unless the new policy
is PerRequest, which says that there is none; and no reference loses its object.

If only parameters or the threading policy change, no servant does, and the registration stays the same one:
its mailboxes get the new policy while nothing runs in any of them.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from objserver import errors
from objserver.adapter import state
from objserver.adapter.activation import EMPTY, Activation, Registration
from objserver.adapter.active import ActiveObjects
from objserver.adapter.gate import Gate
from objserver.adapter.hold import Hold, Stage
from objserver.adapter.invocation import Invocation
from objserver.adapter.policies import (
    ActivationPolicy,
    PerClient,
    PerRequest,
    Persistent,
    Shared,
    ThreadingPolicy,
)
from objserver.adapter.registry import Registry
from objserver.adapter.servants import ServantManager
from objserver.adapter.skeleton import Skeleton
from objserver.codecs import Codecs
from objserver.logs import escaping
from objserver.storage import Change, Committer, Store

__all__ = ["CONVERSIONS", "Merge", "PolicyChange", "Surroundings", "conversion", "refused"]

log = escaping(logging.getLogger("objserver.adapter"))

Merge = Callable[[list[Any]], Any]
"""From the servants of all clients, in the order in which they were made, to the one that goes on."""


class How(enum.Enum):
    """What becomes of the servants."""

    STAY = "they stay"
    FRESH = "there is none to convert"
    END = "they end, and their state with them"
    SHELVE = "the one without a key is saved and ends; its state stays in the store"
    MERGE = "`merge` makes one of them"
    MERGE_AND_SAVE = "`merge` makes one of them, which is saved"
    KEEP = "the one without a key goes on"
    SAVE = "it goes on, and is saved"
    REFUSED = "refused"


_KINDS = (PerRequest, PerClient, Shared, Persistent)
_TABLE = {
    #             to PerRequest  PerClient     Shared      Persistent
    PerRequest: (How.STAY, How.FRESH, How.FRESH, How.FRESH),
    PerClient: (How.END, How.STAY, How.MERGE, How.MERGE_AND_SAVE),
    Shared: (How.END, How.REFUSED, How.STAY, How.SAVE),
    Persistent: (How.SHELVE, How.SHELVE, How.KEEP, How.STAY),
}
CONVERSIONS: dict[tuple[type, type], How] = {
    (before, after): how for before, row in _TABLE.items() for after, how in zip(_KINDS, row, strict=True)
}
"""By the kinds of activation policy before and after."""


def conversion(registration: Registration, activation: ActivationPolicy, merge: Merge | None) -> How:
    """What a change to `activation` means; RegistrationError with the reason if it has no meaning."""
    name = registration.name
    before, after = type(registration.activation).__name__, type(activation).__name__
    how = CONVERSIONS[type(registration.activation), type(activation)]
    if how is not How.STAY and registration.skeleton is None:
        raise errors.RegistrationError(
            f"{name!r} is served by a locator, which decides itself how long its servants live; "
            "its activation policy cannot be changed, only its threading policy"
        )
    if how is How.REFUSED:
        raise errors.RegistrationError(
            f"{name!r} cannot change from {before} to {after}: its one servant has the state of everybody, "
            "and nobody can say which client's it is to be; if it may be lost, change to PerRequest() first"
        )
    if how in (How.MERGE, How.MERGE_AND_SAVE):
        if merge is None:
            raise errors.RegistrationError(
                f"{name!r} cannot change from {before} to {after} without merge=, a function from the list "
                "of all clients' servants to the one that goes on"
            )
    elif merge is not None:
        raise errors.RegistrationError(
            f"{name!r} changes from {before} to {after}: there is nothing to merge, so leave merge= out"
        )
    return how


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a change needs of the adapter."""

    registry: Registry
    active: ActiveObjects
    servants: ServantManager
    codecs: Codecs
    store: Store | None
    committer: Committer | None
    submit: Callable[[Callable[[], None]], None]
    """Have the engine run something."""
    run_later: Callable[[Invocation], None]
    refuse: Callable[[Invocation, BaseException], None]
    activation_for: Callable[[Invocation], Activation | None]
    add: Callable[[Registration], Activation]
    """The activation of the object without a key, however many there are."""
    activate: Callable[[Activation], None]
    """Make its servant."""
    take_up: Callable[[Activation, Any, Skeleton], None]
    """Put a servant to work in it."""
    close: Callable[[Activation], None]
    """Close its servant."""
    end_all_of: Callable[[Registration], None]


class PolicyChange:
    """One change, under way.  `done` is called once, with None or with why nothing has changed.

    It blocks no thread: it goes on whenever something that it waits for has happened.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        registration: Registration,
        activation: ActivationPolicy,
        threading: ThreadingPolicy,
        merge: Merge | None,
        done: Callable[[BaseException | None], None],
    ) -> None:
        self._house = surroundings
        self._old = registration
        self._activation, self._threading = activation, threading
        self._how = conversion(registration, activation, merge)
        self._merge = merge
        self._done = done
        self._taken_over = registration.taken_over
        self._gate: Gate | None = None
        """Of the servant that goes on, if it has been saved."""
        self._newcomer: Any = EMPTY
        """The servant, if `merge` has made a new one."""
        self._passivated: Activation | None = None
        self._hold = Hold(registration.name, at_rest=lambda: surroundings.submit(self._convert))

    def begin(self) -> None:
        """Hold the name, and go on when what has begun has ended.

        RegistrationError if another change of it is under way.
        """
        self._house.registry.hold(self._old, self._hold)
        for activation in self._house.active.of(self._old):
            self._hold.take(activation)
        if self._hold.all_taken():
            self._convert()

    def give_up(self) -> bool:
        """It has taken too long: let go.  False if everything has come to rest and is being converted."""
        if not self._hold.give_up():
            return False
        waits_for = [
            f"{invocation.object_id}.{invocation.method}"
            for activation in self._hold.activations
            for invocation in list(activation.mailbox.running)
        ]
        streams = sum(activation.streams for activation in self._hold.activations)
        reason = f"{', '.join(sorted(set(waits_for))[:3])} still running" if waits_for else "no call running"
        if streams and self._how is not How.STAY:
            reason += f", {streams} item streams open"
        self._undo(refused(self._old.name, f"it did not come to rest in time ({reason})"))
        return True

    # -- the stages: on a worker, or where it was begun if nothing ran -------------------------------

    def _convert(self) -> None:
        if not self._hold.close(streams=self._how is How.STAY):
            return  # something has entered again, or a stream is open: who leaves next looks again
        try:
            if self._old.removed:
                raise refused(self._old.name, "it has been unregistered meanwhile")
            if self._how is How.STAY:
                copies = self._old.adopt(self._activation, self._threading)
                if copies is not None:
                    self._house.end_all_of(copies)
                for activation in self._hold.activations:
                    if activation.gate is not None and isinstance(self._activation, Persistent):
                        activation.gate.confirms = self._house.servants.confirms(self._activation)
                self._resume(self._old, self._hold)
                self._done(None)
                return
            self._prepare()
        except BaseException as problem:
            self._undo(problem)

    def _prepare(self) -> None:
        """Find out which servant goes on, have it saved if it must be; then replace."""
        held = self._hold.activations
        servants = [activation.servant for activation in held if activation.servant is not EMPTY]
        if self._how in (How.FRESH, How.END):
            self._replace(EMPTY)
        elif self._how is How.MERGE:
            self._replace(self._merged(servants))
        elif self._how is How.MERGE_AND_SAVE:
            self._save(self._merged(servants))
        elif self._how is How.SAVE:
            self._save(servants[0] if servants else EMPTY)
        else:
            self._unload(held)

    def _merged(self, servants: list[Any]) -> Any:
        if not servants:
            return EMPTY
        assert self._merge is not None
        assert self._old.skeleton is not None
        cls = self._old.skeleton.cls
        try:
            merged = self._merge(list(servants))
            if all(merged is not servant for servant in servants):
                if not isinstance(merged, cls):
                    raise TypeError(f"it returned {merged!r}, which is no {cls.__name__}")
                self._newcomer = merged
                hook = getattr(merged, "on_activate", None)
                if hook is not None:
                    hook()
        except BaseException as problem:
            raise refused(self._old.name, f"merge failed: {type(problem).__name__}: {problem}") from problem
        return merged

    def _save(self, servant: Any) -> None:
        """Replace when the servant's state is durable."""
        if servant is EMPTY:
            self._replace(EMPTY)  # nothing was ever called: what the store may have is the object's state
            return
        assert isinstance(self._activation, Persistent)
        data = state.capture(servant, self._house.codecs)
        record, gate = self._house.servants.acquire(self._old.name, "", self._activation)
        base = gate.epoch, gate.version
        if record is not None and record.state not in (None, data) and base != self._old.taken_over:
            raise refused(
                self._old.name,
                "the store has another state of it already, which would be lost; to go on with that one, "
                "unregister the object and register it as Persistent",
            )
        self._gate = gate
        self._commit(servant, data, gate, partial(self._replace, servant))

    def _unload(self, held: list[Activation]) -> None:
        """A Persistent object is no longer one, if it is the only one of its name."""
        assert self._house.store is not None
        name = self._old.name
        keys = {activation.key for activation in held} | {*self._house.store.keys(name, limit=2)}
        if keys - {""}:
            raise refused(
                name,
                f"there are objects of that name with a key, such as {max(keys)!r}, and only Persistent "
                "objects have one",
            )
        one = held[0] if held else None
        if self._how is How.KEEP:
            if "" in keys and (one is None or one.servant is EMPTY):
                one = one or self._house.add(self._old)
                self._house.activate(one)
            if one is None:
                self._replace(EMPTY)
            else:
                assert one.gate is not None
                self._taken_over = (one.gate.epoch, one.gate.version)
                self._replace(one.servant)
        elif one is None or one.servant is EMPTY:
            self._replace(EMPTY)
        else:
            self._shelve(one)

    def _shelve(self, one: Activation) -> None:
        """Replace when what `on_passivate` has left is durable.  If that fails, it is loaded again."""
        self._passivated = one
        self._house.servants.passivate(one)
        data = state.capture(one.servant, self._house.codecs)
        assert one.gate is not None
        if data == one.gate.state:
            self._replace(EMPTY)
        else:
            self._commit(one.servant, data, one.gate, partial(self._replace, EMPTY))

    def _commit(self, servant: Any, data: bytes, gate: Gate, replace: Callable[[], None]) -> None:
        """Have `data` stored as the state of the object without a key; `replace` when it is."""
        change = Change(
            type=self._old.name,
            key="",
            epoch=gate.epoch,
            version=gate.version,
            codec=state.CODEC,
            state_version=state.state_version(type(servant)),
            state=data,
            owner=gate.owner,
        )

        def stored() -> None:
            gate.version, gate.state, gate.state_version = change.version + 1, data, change.state_version
            try:
                replace()
            except BaseException as problem:
                self._undo(problem)

        def done(problem: BaseException | None) -> None:
            # On the committer's thread: what may run code of the user's is a worker's business.
            self._house.submit(stored if problem is None else partial(self._undo, problem))

        assert self._house.committer is not None
        self._house.committer.submit(change, done)

    def _replace(self, servant: Any) -> None:
        """Another registration takes the place of the old one; `servant`, if there is one, goes on in it."""
        house, old = self._house, self._old
        new = Registration(old.name, old.make, self._activation, self._threading, skeleton=old.skeleton)
        new.taken_over = self._taken_over
        new.remembers = old.persistent or old.remembers
        new.hold = Hold(old.name, at_rest=_nothing, stage=Stage.CLOSED)
        house.registry.replace(old, new)
        if old.copies is not None:
            house.end_all_of(old.copies)
        # From here on nothing fails: the user's hooks are called where their errors are logged.
        activations, calls = self._hold.move(house.active.remove)
        if servant is not EMPTY:
            made = house.add(new)
            made.gate = self._gate
            house.take_up(made, servant, cast(Skeleton, old.skeleton))
        for activation in activations:
            if activation.servant is servant:
                activation.servant = EMPTY
            else:
                self._end(activation)
        waiting: dict[Activation, list[Invocation]] = {}
        for call in calls:
            try:
                waiting.setdefault(cast(Activation, house.activation_for(call)), []).append(call)
            except BaseException as problem:
                house.refuse(call, problem)
        for activation, group in waiting.items():
            with activation.lock:
                for call in reversed(group):  # before those that came since
                    call.activation = activation
                    activation.mailbox.waiting.appendleft(call)
        self._resume(new, new.hold)
        if new.removed:
            house.end_all_of(new)
        self._done(None)

    def _end(self, activation: Activation) -> None:
        try:
            if activation is not self._passivated:
                self._house.servants.passivate(activation)
        except BaseException:
            log.exception("on_passivate() of %r failed", activation.object_id)
        self._house.close(activation)

    def _undo(self, problem: BaseException) -> None:
        if self._passivated is not None:
            self._house.close(self._passivated)
            self._passivated.mailbox.open = False
        if self._newcomer is not EMPTY:
            self._house.servants.call_close(None, self._newcomer)
        self._resume(self._old, self._hold)
        self._done(problem)

    def _resume(self, registration: Registration, hold: Hold) -> None:
        starting, ended = hold.let_go(registration.threading)
        registration.hold = None
        for activation in ended:
            self._house.active.remove(activation)
            self._house.close(activation)
        for invocation in starting:
            self._house.run_later(invocation)


def refused(name: str, why: str) -> errors.RegistrationError:
    """Why a change that was begun has not been made."""
    return errors.RegistrationError(f"the policies of {name!r} are as they were: {why}")


def _nothing() -> None:
    pass
