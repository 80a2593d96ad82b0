"""How calls of Persistent objects end: through the gate and the committer, and out.

`before` is asked when an invocation has its turn: has it been made already?  `settle` takes what it came to.
Everything else happens when the committer says how a batch went: replies leave, or all that was built on what
did not become durable is dropped, the servant with it, and whoever asked is told to ask again.

What happens on the committer's thread is short; the user's code runs on workers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from objserver import errors
from objserver.adapter import state
from objserver.adapter.activation import Activation
from objserver.adapter.calling import Engine
from objserver.adapter.gate import DONE, RAISED, RETURNED, STREAMED, Gate, Held, Read, Release
from objserver.adapter.invocation import Invocation
from objserver.adapter.outbox import Deliver, Outbox
from objserver.adapter.ownership import Ownership
from objserver.adapter.sessions import Sessions
from objserver.adapter.timers import ObjectTimers, Timekeeper
from objserver.clock import Clock
from objserver.codecs import Codecs
from objserver.invocation import CallId, Interceptor
from objserver.logs import escaping
from objserver.settings import ServerSettings
from objserver.storage import Change, Committer, Reply, Store, Superseded

__all__ = ["Durability", "Repeated"]

log = escaping(logging.getLogger("objserver.adapter"))


class Repeated(BaseException):
    """Not an error: the invocation has been made before.  `held` is what waits for its reply, or DONE."""

    def __init__(self, gate: Gate | None, held: Held | object) -> None:
        self.gate = gate
        self.held = held


class Adapter(Protocol):
    """What the adapter does for us."""

    def discard(self, activation: Activation) -> None: ...
    def refuse(self, invocation: Invocation, problem: BaseException) -> None: ...
    def leave_and_run(self, invocation: Invocation) -> None: ...
    def run_in_turn(self, invocation: Invocation) -> None: ...
    def persistent_types(self) -> list[str]: ...
    def is_active(self, object_id: str) -> bool: ...


class Durability:
    """Of one adapter with a store.  Called by workers, and by the committer."""

    def __init__(
        self,
        adapter: Adapter,
        codecs: Codecs,
        store: Store,
        committer: Committer,
        engine: Engine,
        settings: ServerSettings,
        clock: Clock,
        deliver: Deliver,
        ownership: Ownership,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self._adapter = adapter
        self._codecs = codecs
        self._store = store
        self._committer = committer
        self._engine = engine
        self._settings = settings
        self._monotonic = clock.monotonic
        self._ownership = ownership
        self.sessions = Sessions(store, settings.session_lease_s, settings.sessions_max)
        self.outbox = Outbox(
            store, engine, deliver, clock.monotonic, lambda: (ownership.owner, ownership.member)
        )
        self.timekeeper = Timekeeper(
            adapter, codecs, store, engine, settings, clock, interceptors, lambda: ownership.owner
        )
        self.repeated = self.unsettled = 0

    # -- before --------------------------------------------------------------------------------------

    def before(self, invocation: Invocation) -> None:
        """It is about to be called.  Raises Repeated if it has been, or what refuses it."""
        gate = invocation.gate = invocation.activation.gate
        assert gate is not None
        if gate.timers is None:
            gate.timers = ObjectTimers(self.timekeeper, invocation.activation, gate)
            if not self._store.alone:
                self.outbox.look()  # there may be messages that came with the object
        call = invocation.call
        if len(gate) >= self._settings.mailbox_size_max:
            raise errors.ServerBusy(
                f"{len(gate)} calls of {invocation.object_id} wait for the store (setting mailbox_size_max)"
            )
        if call is not None and not invocation.readonly:
            self.sessions.check(call.client, self._monotonic())
            if invocation.principal is None:
                # Else it calls others as the server, who is another client there, with sessions of its own.
                invocation.store = self._store.id
            with invocation.activation.lock:
                held = gate.find(call, invocation.digest, asks=invocation.asks)
            if held is not None:
                raise Repeated(gate, held)
            if invocation.asks:
                invocation.begun = True  # from here on, for ever
                raise errors.NotExecuted(f"call {call} has not happened, and will not")

    def recall(self, invocation: Invocation) -> None:
        """It is about to be called, of an object that was Persistent.  Raises Repeated if it was made
        then."""
        registration, key = invocation.activation.registration, invocation.activation.key
        for reply in self._store.replies(registration.name, key):
            if CallId(reply.client, reply.number, reply.path) == invocation.call:
                raise Repeated(None, DONE)

    # -- after ---------------------------------------------------------------------------------------

    def settle(self, invocation: Invocation, reply: bytes, error: BaseException | None, inside: bool) -> bool:
        """It has ended, and would be answered with `reply`.  True if it leaves its mailbox now.

        `inside`: within another call to the same object, which will save what both changed.
        """
        activation = invocation.activation
        gate = invocation.gate
        held = Held(invocation, reply)
        if not invocation.begun and not isinstance(error, errors.Unsettled):
            self._send(invocation, reply)
            return True
        if gate is None or gate is not activation.gate:
            self._give_up(held, None)
            return True
        if not invocation.readonly:
            self._record(invocation, held, error)
            if inside:
                held.writes = True
                with activation.lock:
                    gate.hold_inside(held)
                self._send(invocation, reply)
                return True
            try:
                data = state.capture(activation.servant, self._codecs)
                layout = state.state_version(type(activation.servant))
            except BaseException as problem:
                # The servant is no longer what the store can hold: it goes, and the object stays as it was.
                held.failure, held.record = problem, None
            else:
                changed = data != gate.state or layout != gate.state_version
                held.writes = bool(held.record or held.messages or held.timers or gate.inside or changed)
                gate.state, gate.state_version = data, layout
        with activation.lock:
            if gate.poisoned:
                lost = True
            else:
                lost = False
                gate.hold(held)
        if lost:
            self._give_up(held, None)
            return True
        if not gate.is_busy:
            self._advance(activation, gate)
        return not (invocation.ends or held.failure is not None)

    def _record(self, invocation: Invocation, held: Held, error: BaseException | None) -> None:
        call = invocation.call
        invocation.defers = False
        held.messages = invocation.messages
        timers = invocation.gate.timers  # type: ignore[union-attr]
        if timers is not None and timers.changed:
            held.timers = timers.take()
        if call is None:
            return
        status = RETURNED if error is None else RAISED
        if error is None and invocation.streams:
            status = STREAMED
        digest = b"" if invocation.asks else invocation.digest
        held.record = Reply(*call, invocation.acked, digest, status, held.reply)

    def repeat(self, invocation: Invocation, repeated: Repeated) -> None:
        """It has been made before: it gets the reply that the first got, or will get."""
        gate, held = repeated.gate, repeated.held
        self.repeated += 1
        if isinstance(held, Held) and gate is not None:
            with invocation.activation.lock:
                waits = held in gate
                if waits:
                    held.also.append(invocation)
            if gate.poisoned:
                self._give_up(Held(invocation, b""), None)
            elif not waits:
                self._answer_again(invocation, held.record)
            return
        assert invocation.call is not None
        activation = invocation.activation
        try:
            records = self._store.replies(activation.registration.name, activation.key)
        except errors.StoreError as problem:
            self._adapter.refuse(invocation, problem)
            return
        found = [r for r in records if CallId(r.client, r.number, r.path) == invocation.call]
        self._answer_again(invocation, found[0] if found else None)

    def _answer_again(self, invocation: Invocation, record: Reply | None) -> None:
        try:
            if record is None or record.result is None:
                raise errors.SessionExpired(f"the answer of call {invocation.call} is forgotten")
            if record.status == STREAMED:
                raise errors.OutcomeUnknown(
                    f"{invocation.object_id}.{invocation.method} was made before; it gave a stream of items, "
                    "which is not kept: nothing was done again"
                )
            reply = invocation.caller.encode_again(invocation, record.result)
        except BaseException as problem:
            self._adapter.refuse(invocation, problem)
            return
        self._send(invocation, reply)

    @staticmethod
    def _send(invocation: Invocation, reply: bytes) -> None:
        if not invocation.oneway:
            invocation.caller.send(reply)

    # -- the gate ------------------------------------------------------------------------------------

    def _advance(self, activation: Activation, gate: Gate) -> None:
        """Do what the gate says is next."""
        with activation.lock:
            step = gate.step(self._ownership.trusted)
        done = partial(self._done, activation, gate, step)
        try:
            if isinstance(step, Change):
                self._committer.submit(step, done)
            elif isinstance(step, Read):
                self._committer.confirm(step, done)
        except errors.ObjServerError as problem:
            done(problem)
        if isinstance(step, Release):
            for held in step.held:
                self._release(held)

    def _done(
        self,
        activation: Activation,
        gate: Gate,
        step: Change | Read | Release | None,
        problem: BaseException | None,
    ) -> None:
        """What was under way is durable, or `problem`.  On the committer's thread."""
        if problem is None:
            with activation.lock:
                released = gate.accepted()
            if gate.waits:
                self._advance(activation, gate)
            if isinstance(step, Change):
                if step.messages:
                    self.outbox.add(step.messages)  # here, where the order is that of the commits
                if step.timers:
                    self.timekeeper.stored(step.timers)
            let_out = partial(self._let_out, activation, released)
            if self._committer.has_more:
                self._engine.submit(let_out)  # the disk does not wait until all that have waited are told
            else:
                let_out()
            return
        if isinstance(step, Change) and step.messages and getattr(problem, "in_doubt", True):
            self.outbox.look()
        with activation.lock:
            in_flight, ahead = gate.failed()
        self._engine.submit(partial(self._undo, activation, in_flight, ahead, problem))

    def _let_out(self, activation: Activation, released: Sequence[Held]) -> None:
        for held in released:
            self._release(held)
        activation.mailbox.rested()

    def _release(self, held: Held) -> None:
        invocation = held.invocation
        if held.failure is not None:
            self._engine.submit(partial(self._fail, held, held.failure))
            return
        if not held.told:
            self._send(invocation, held.reply)
        for other in held.also:
            self._answer_again(other, held.record)
        if invocation.ends:
            self._engine.submit(partial(self._adapter.leave_and_run, invocation))

    def _fail(self, held: Held, problem: BaseException) -> None:
        held.invocation.begun = False  # of this attempt nothing is left
        self._adapter.discard(held.invocation.activation)
        self._adapter.refuse(held.invocation, problem)
        self._adapter.leave_and_run(held.invocation)
        held.failure = None  # its traceback has a frame that has it, and both would wait for the collector

    def _undo(
        self, activation: Activation, in_flight: list[Held], ahead: list[Held], problem: BaseException
    ) -> None:
        """The servant's memory is of what may never have been: it goes, and nothing of it is told."""
        log.warning("%s is activated anew: %s", activation.object_id, str(problem))
        self._adapter.discard(activation)
        for held in in_flight:
            self._give_up(held, problem)
        for held in ahead:
            self._give_up(held, None)
        for held in (*in_flight, *ahead):
            if held.invocation.ends or held.failure is not None:
                self._adapter.leave_and_run(held.invocation)
                held.failure = None  # as above
        activation.mailbox.rested()

    def _give_up(self, held: Held, problem: BaseException | None) -> None:
        """Tell whoever waits for it; `problem` if it was part of what failed, and not only built on it."""
        self.unsettled += 1
        for invocation in (held.invocation, *held.also):
            definite = isinstance(problem, errors.StoreError) and not (
                problem.in_doubt or isinstance(problem, Superseded)
            )
            skeleton = invocation.activation.skeleton
            repeatable = skeleton is not None and invocation.method in skeleton.repeatable
            again = repeatable or invocation.call is not None
            answer: BaseException
            if problem is not None and (definite or not again or invocation.caller.session_is_connection):
                # Of the store's own errors its callers know the general one.
                answer = errors.StoreError(str(problem)) if isinstance(problem, Superseded) else problem
            elif again and not invocation.caller.session_is_connection:
                why = f": {problem}" if problem is not None else ""
                answer = errors.Unsettled(
                    f"{invocation.object_id}.{invocation.method} has to be made again{why}"
                )
            else:
                answer = errors.StoreError(
                    f"{invocation.object_id} was dropped while this call ran in it: another call's change "
                    "could not be stored; nothing of this one was"
                )
            invocation.begun = False  # of this attempt nothing is left; of earlier ones that says nothing
            if not held.told or invocation is not held.invocation:
                self._adapter.refuse(invocation, answer)

    def drop_all(self, activations: Sequence[Activation], why: str) -> None:
        """The store has another history: what is in memory may never have been, and nothing of it is told."""
        for activation in activations:
            gate = activation.gate
            if gate is not None:
                with activation.lock:
                    in_flight, ahead = gate.failed()
                self._undo(activation, in_flight, ahead, Superseded(why))

    def expire_sessions(self, activations: Sequence[Activation], now: float) -> None:
        """Forget the clients that were not heard of for too long."""
        try:
            ended = self.sessions.expire(now)
        except errors.StoreError as problem:
            log.warning("sessions were not looked through: %s", problem)
            return
        for activation in activations if ended else ():
            with activation.lock:
                for client in ended:
                    if activation.gate is not None:
                        activation.gate.forget(client)

    def statistics(self) -> dict[str, Any]:
        """Counts, and the bounds they run against."""
        return {
            "sessions": len(self.sessions),
            "sessions_max": self._settings.sessions_max,
            "calls_repeated": self.repeated,
            "calls_unsettled": self.unsettled,
            **self.outbox.statistics(),
            **self.timekeeper.statistics(),
        }
