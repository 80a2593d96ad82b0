"""The object adapter: from an invocation to the servant that answers it.

It knows what is registered and what is active.  A request passes through it as

    admit    find the object's activation, give the invocation to its mailbox
    run      make the servant if there is none, call it, encode the result
    settle   save changed state through the committer, send the reply, leave the mailbox

`admit` decides the order and never runs foreign code; `run` may take as long as the servant likes.  They
are apart so that the engine can let another thread lead while a servant runs, without losing the order in
which requests came.  What a Shared locator says is foreign code too: such an invocation is admitted twice,
first to be located, then to the servant. The adapter has no thread and no socket: its engine runs
what it submits, callers send what it encodes, the clock is an argument.

A plain call (one method, no batch, no stream, a servant that is there) is what nearly all calls are.  It goes
through as few Python functions as the stages allow, because each costs more than the work it does.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from types import CoroutineType
from typing import Any

from objserver import errors, pyro5
from objserver.adapter import state
from objserver.adapter.activation import EMPTY, Activation, Registration
from objserver.adapter.active import ActiveObjects
from objserver.adapter.calling import NOBODY, Engine, Nobody, call, check_in_time, not_begun
from objserver.adapter.change import Merge, PolicyChange, Surroundings
from objserver.adapter.copies import Copies
from objserver.adapter.durability import Durability, Repeated
from objserver.adapter.exports import ExportTable
from objserver.adapter.guard import Giver, Guard
from objserver.adapter.hold import leads_through
from objserver.adapter.invocation import Caller, Invocation
from objserver.adapter.mailbox import Mailbox
from objserver.adapter.outbox import Deliver
from objserver.adapter.ownership import Alone, Ownership
from objserver.adapter.policies import (
    ActivationPolicy,
    Concurrent,
    Copied,
    PerClient,
    PerRequest,
    Shared,
    ThreadingPolicy,
)
from objserver.adapter.registry import Registry
from objserver.adapter.servants import ServantManager, skeleton_of
from objserver.adapter.skeleton import Skeleton
from objserver.adapter.streams import Stream, Streams
from objserver.adapter.waits import Waits
from objserver.clock import Clock
from objserver.codecs import Codecs
from objserver.invocation import Client, Interceptor, in_progress
from objserver.logs import escaping
from objserver.references import DAEMON_ID, LEASED, Reference, deliver
from objserver.references import object_id as reference_id
from objserver.security import Authorization
from objserver.settings import ServerSettings
from objserver.storage import Committer, Store

__all__ = ["ObjectAdapter"]

log = escaping(logging.getLogger("objserver.adapter"))
_enter_call, _leave_call = in_progress.set, in_progress.reset  # as globals: see `Connection.receive`

_DRAW = "get_next_stream_item"
"""The daemon's method that is none: the item is drawn from the object whose stream it is."""
_LAZY_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_VALUES = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set, Reference})
"""Types of results that are certainly no iterators."""


class _Touch(Nobody):
    """The caller of what calls nothing."""

    def __init__(self, done: Callable[[BaseException | None], None]) -> None:
        self._done = done
        self._problem: BaseException | None = None

    def encode_error(self, invocation: Invocation, error: BaseException) -> bytes:
        self._problem = error
        return b""

    def send(self, reply: bytes) -> None:
        problem, self._problem = self._problem, None  # its traceback has frames that have us
        self._done(problem)


Relay = Callable[[Invocation, errors.Moved], Any]
"""Makes a call at the server that has the object, for who would not go there; returns the result."""


class ObjectAdapter:
    """See the module's essay.  All public methods may be called from any thread."""

    def __init__(
        self,
        *,
        codecs: Codecs,
        engine: Engine,
        settings: ServerSettings,
        clock: Clock,
        store: Store | None = None,
        committer: Committer | None = None,
        pyro5_daemon: object = None,
        interceptors: Sequence[Interceptor] = (),
        deliver: Deliver = deliver,
        authorization: Authorization | None = None,
        ownership: Ownership | None = None,
        relay: Relay | None = None,
    ) -> None:
        self.codecs = codecs
        self._interceptors = tuple(interceptors)
        self.settings = settings
        self.streams = Streams(
            settings,
            clock,
            offer=self._offer,
            submit=self.run_later,
            errand=self._run_errand,
            refuse=self.refuse,
            end=self.end,
            judge=self._judge_again,
        )
        self._engine = engine
        self._clock = clock
        self._pyro5_daemon = pyro5_daemon
        self._registry = Registry(has_store=store is not None)
        self._guard: Guard | None = None
        """None where everybody may call everything."""
        if authorization is not None:
            self._guard = Guard(authorization, self._registry, settings, clock)
        self._active = ActiveObjects(settings.active_objects_max)
        self._activation_at = self._active.get
        self.waits = Waits(settings.deadlock_check_s, clock, engine, self._withdraw)
        self._ownership = ownership or Alone(store, uuid.uuid4().hex)
        self._relay = relay
        self._servants = ServantManager(codecs, store, self._ownership)
        self._durability: Durability | None = None
        if store is not None and committer is not None:
            self._durability = Durability(
                self,
                codecs,
                store,
                committer,
                engine,
                settings,
                clock,
                deliver,
                self._ownership,
                self._interceptors,
            )
            store.changed = self._store_changed
        self._copies = Copies(self, self._registry, self._active, self._servants, clock)
        self._change = partial(
            PolicyChange,
            Surroundings(
                registry=self._registry,
                active=self._active,
                servants=self._servants,
                codecs=codecs,
                store=store,
                committer=committer,
                submit=engine.submit,
                run_later=self.run_later,
                refuse=self.refuse,
                activation_for=self._activation_for,
                add=self._add,
                activate=self._activate,
                take_up=self.take_up,
                close=self._close,
                end_all_of=self._end_all_of,
            ),
        )
        self._exports = ExportTable(settings.lease_s)
        self._exports_lock = threading.Lock()
        # Not before every client had the time to come back, however long the server was away.
        self._sessions_due = clock.monotonic() + settings.session_lease_s
        self.invocations = 0

    # -- what is served ------------------------------------------------------------------------------

    def register(
        self,
        thing: Any,
        name: str,
        activation: ActivationPolicy | None,
        ordering: ThreadingPolicy | None,
    ) -> Registration:
        """Serve a class, an instance or a locator (a function from key to servant) under `name`."""
        registration = self._registry.add(thing, name, activation, ordering)
        if self._guard is not None:
            self._guard.forget(name)
        if name == DAEMON_ID and registration.skeleton is not None:
            # So that nobody else's calls have to be compared with it.
            registration.skeleton.methods.pop(_DRAW, None)
        instance, skeleton = registration.instance, registration.skeleton
        if skeleton is not None:
            self.codecs.types.add_signatures(skeleton.cls)
        if instance is not EMPTY:
            self._active.name(instance, name)
            if skeleton is not None and skeleton.written_for_pyro5:
                pyro5.introduce(instance, name, self._pyro5_daemon)
        if registration.persistent and self._durability is not None:
            self._durability.timekeeper.look_soon()  # there may be timers of its objects in the store
        return registration

    @property
    def authorization(self) -> Authorization | None:
        """Who may call what; None: everybody everything."""
        return self._guard.authorization if self._guard is not None else None

    @authorization.setter
    def authorization(self, authorization: Authorization) -> None:
        if self._guard is None:
            raise errors.RegistrationError(
                "this server does not ask who calls, and cannot begin to while it has clients; give it its "
                "authorization when it is made"
            )
        self._guard.change(authorization)

    def unregister(self, name: str) -> None:
        """Stop serving `name`; its servants end after the calls that have begun."""
        registration = self._registry.remove(name)
        if self._guard is not None:
            self._guard.forget(name)
        if registration.instance is not EMPTY:
            self._active.unname(registration.instance, name)
            for other in self._registry.all():
                if other.instance is registration.instance:
                    self._active.name(other.instance, other.name)
        self._end_all_of(registration)

    def _end_all_of(self, registration: Registration) -> None:
        for activation in self._active.of(registration):
            self._active.retire(activation)
            self.end(activation)
        if registration.copies is not None:
            self._end_all_of(registration.copies)

    def change_policy(
        self,
        name: str,
        activation: ActivationPolicy | None,
        ordering: ThreadingPolicy | None,
        merge: Merge | None,
        done: Callable[[BaseException | None], None],
    ) -> PolicyChange:
        """Begin to change the policies of a live object; `done` is told when they are, or why they are not.

        None leaves a policy as it is.  What is illegal is refused here, with RegistrationError, or Deadlock
        inside of a call of this very object.
        """
        registration = self._registry.named(name)
        assert not isinstance(registration.activation, Copied)
        activation = activation or registration.activation
        ordering = ordering or registration.threading
        self._registry.check(registration, activation, ordering)
        change = self._change(registration, activation, ordering, merge, partial(self._changed, done))
        facts = in_progress.get()
        if facts is not None and leads_through((*facts.chain, facts.id), name):
            raise errors.Deadlock(
                f"changing the policies of {name!r} waits for its calls to end, and is asked for in one "
                f"of them: {facts.object_id}.{facts.method}; let a thread of its own do it"
            )
        change.begin()
        return change

    def _changed(self, done: Callable[[BaseException | None], None], problem: BaseException | None) -> None:
        if self._durability is not None:
            self._durability.timekeeper.look_soon()  # what is Persistent now may have been before
        done(problem)

    def registered(self) -> list[str]:
        """Names of everything registered, Pyro.Daemon included."""
        return [registration.name for registration in self._registry.all()]

    def persistent_types(self) -> list[str]:
        """Names under which Persistent objects are registered: their types in the store."""
        return [registration.name for registration in self._registry.all() if registration.persistent]

    def state_versions(self) -> dict[str, int]:
        """By type, the layout that its class here gives the state; 0, if a locator has not shown one yet."""
        found = {}
        for registration in self._registry.all():
            if registration.persistent:
                seen = registration.skeleton_seen
                found[registration.name] = state.state_version(seen.cls) if seen is not None else 0
        return found

    def is_active(self, object_id: str) -> bool:
        """Whether the object has a servant here; only for those that are found by their id alone."""
        activation = self._activation_at(object_id)
        return activation is not None and activation.servant is not EMPTY

    def metadata(self, object_id: str, caller: Client | None = None) -> dict[str, set[str]]:
        """What a proxy must know of an object: exposed `methods`, `oneway` methods and `attrs`.

        Runs foreign code where a locator has not been asked before.  NotAuthorized if `caller` may call none
        of them.
        """
        return self.skeleton(object_id, caller).metadata

    def skeleton(self, object_id: str, caller: Client | None = None) -> Skeleton:
        """The skeleton behind `metadata`."""
        guard = self._guard
        if guard is None or caller is None:
            registration, key = self._registry.find(object_id)
            return self._servants.offers(registration, key, object_id)
        registration, key = guard.find(caller, object_id)
        skeleton = self._servants.offers(registration, key, object_id)
        guard.show(caller, object_id, skeleton)
        return skeleton

    def greet(self, object_id: str, caller: Client) -> Skeleton:
        """The skeleton for a new connection, which counts from now on; NotAuthorized or QuotaExceeded."""
        skeleton = self.skeleton(object_id, caller)
        if self._guard is not None:
            self._guard.connect(caller)
        return skeleton

    def reference_id(self, servant: object) -> str | None:
        """The id of the object that `servant` incarnates here, if it does."""
        return self._active.id_of(servant)

    def servant_at(self, object_id: str, givers: Sequence[Giver] = ()) -> Any:
        """The object itself, for who is in this process: EMPTY where it is more than one servant, or none.

        A Persistent object is its state, and the servants of PerClient and PerRequest objects are somebody's.
        Where it is asked who may call what, only what was given away is handed out, by `givers` who may call
        something of it: else a client could have a servant call for him, by a reference in an argument, what
        he may not.
        """
        if self._guard is not None and not object_id.startswith(LEASED):
            return EMPTY
        try:
            registration, key = self._registry.find(object_id)
            for giver in givers:
                self.skeleton(object_id, giver.as_caller)
        except (errors.ObjectNotFound, errors.NotAuthorized):
            return EMPTY
        if registration.instance is not EMPTY:
            return registration.instance
        if key or not isinstance(registration.activation, Shared):
            return EMPTY
        activation = self._activation_at(object_id)
        return activation.servant if activation is not None else EMPTY

    def lend(
        self, givers: Sequence[Giver], object_id: str, method: str | None, args: Sequence[Any] = ()
    ) -> None:
        """A servant calls what a reference names that came from `givers`; NotAuthorized unless each may.

        None for `method`: it only wants to know what there is.
        """
        if self._guard is None:
            return
        for giver in givers:
            skeleton = self.skeleton(object_id, giver.as_caller)
            if method is not None:
                self._guard.confirm(giver.asking(object_id, method, args), skeleton)

    @property
    def generation(self) -> int:
        """Of the rules: a greater number says that others hold than before."""
        return 0 if self._guard is None else self._guard.generation

    # -- exports -------------------------------------------------------------------------------------

    def export(self, value: object, to: str = "") -> str | None:
        """The id under which `value` is served from now on, as it is about to travel to a process of `to`.

        None for what is no object of an exposed class.  ServerBusy if too many are exported.
        """
        object_id = self._active.id_of(value)
        with self._exports_lock:
            if object_id is not None and object_id.startswith(LEASED) and object_id not in self._exports:
                object_id = None  # it is being collected: what travels now is another
            if object_id is None:
                if not _is_exposed(type(value)):
                    return None
                if len(self._exports) >= self.settings.exports_max:
                    raise errors.ServerBusy(
                        f"{len(self._exports)} objects are exported already (setting exports_max)"
                    )
                object_id = LEASED + uuid.uuid4().hex
                self.register(value, object_id, Shared(), None)
                self._exports.sent(object_id, self._clock.monotonic(), to)
            elif object_id in self._exports:
                self._exports.sent(object_id, self._clock.monotonic(), to)
        return object_id

    def renew(self, holder: str, object_ids: Sequence[str]) -> float:
        """`holder` still has these exported objects; returns for how many seconds that is believed."""
        with self._exports_lock:
            self._exports.renew(holder, object_ids, self._clock.monotonic())
        return self.settings.lease_s

    def release(self, holder: str, dropped: Mapping[str, int], of: str = "") -> None:
        """`holder`, a process of `of`, has dropped every reference to these, of which it got so many."""
        with self._exports_lock:
            free = self._exports.release(holder, dropped, self._clock.monotonic(), of)
        self._collect(free)

    def release_all(self) -> None:
        """Nobody can hold an exported object any more."""
        with self._exports_lock:
            free = self._exports.clear()
        self._collect(free)

    @property
    def exported(self) -> int:
        """Number of exported objects."""
        return len(self._exports)

    def _collect(self, object_ids: Sequence[str]) -> None:
        for object_id in object_ids:
            with contextlib.suppress(errors.ObjectNotFound):  # somebody may have unregistered it
                self.unregister(object_id)

    # -- one invocation ------------------------------------------------------------------------------

    def admit(self, invocation: Invocation) -> bool:
        """Put an invocation in its place.  True: the caller must `run` it now."""
        self.invocations += 1
        guard, activation_at = self._guard, self._activation_at
        judged: Skeleton | None = None
        try:
            # One that was located has been admitted before.
            if guard is not None and invocation.located is EMPTY:
                judged = guard.admit(invocation)
            while True:
                activation = activation_at(invocation.object_id) or self._activation_for(invocation)
                if activation is None:
                    self._engine.submit(partial(self._locate_and_run, invocation))
                    return False
                skeleton = activation.skeleton
                if skeleton is not None:
                    if guard is not None and judged is not skeleton:
                        guard.confirm(invocation, skeleton)
                    member = skeleton.methods.get(invocation.method)
                    if member is not None and invocation.batch is None:
                        invocation.member = member
                        invocation.plain = (
                            not invocation.oneway and invocation.deadline is None and invocation.call is None
                        )
                        check = member.check
                        if check is not None and (
                            [*map(type, invocation.args)] != check.usual or invocation.kwargs
                        ):
                            check(invocation.args, invocation.kwargs, invocation.caller.session_is_connection)
                    elif invocation.method == _DRAW and activation.object_id == DAEMON_ID:
                        return self.streams.admit(invocation)
                    else:
                        self._resolve(invocation, skeleton)
                lock = activation.lock
                lock.acquire()  # `with` makes objects of its own
                try:
                    if not activation.ended:
                        invocation.activation = activation
                        activation.last_used = self.invocations
                        mailbox = activation.mailbox
                        if not mailbox.running and not mailbox.waiting:
                            mailbox.running.append(invocation)  # as offer would
                            return True
                        return mailbox.offer(invocation)
                finally:
                    lock.release()
        except BaseException as problem:
            self.refuse(invocation, problem)
            return False

    def refuse(self, invocation: Invocation, problem: BaseException) -> None:
        """Answer with an error.  But a call for an object that is elsewhere a copy may answer, and else it is
        made where the object is, for who would not go there."""
        if isinstance(problem, errors.StoreError) and problem.away and invocation.work is None:
            problem = self._ownership.instead(problem)
        if type(problem) is errors.Moved:
            try:
                if self._copies.read_instead(invocation, problem):
                    return
            except errors.ObjServerError as other:
                problem = other
        # Not what a relay sent here, which follows the object itself: two could send it to each other.
        if (
            type(problem) is errors.Moved
            and self._relay is not None
            and not (invocation.sent or invocation.errand)
        ):
            stays = invocation.oneway or invocation.caller.session_is_connection
            if stays or not self._ownership.sends_on:
                self._engine.submit(partial(self._make_elsewhere, self._relay, invocation, problem))
                return
        reply = self._encode(invocation, None, problem)
        if not invocation.oneway:
            invocation.caller.send(reply)

    def _make_elsewhere(self, relay: Relay, invocation: Invocation, moved: errors.Moved) -> None:
        token = in_progress.set(invocation)
        value = problem = None
        try:
            # If it gives a stream, its items are drawn through this one's mailbox.
            invocation.activation = self._relayed
            value = relay(invocation, moved)
        except BaseException as raised:
            problem = raised
        finally:
            in_progress.reset(token)
        reply = self._encode(invocation, value, problem)
        if not invocation.oneway:
            invocation.caller.send(reply)

    @cached_property
    def _relayed(self) -> Activation:
        """In place of the activations of objects that are elsewhere; nothing is looked up here."""
        name, order = "<relayed>", Concurrent(self.settings.workers_max)
        daemon, _ = self._registry.find(DAEMON_ID)  # some servant there has to be
        assert daemon.skeleton is not None
        relayed = self.new(
            name,
            name,
            "",
            Registration(
                name, daemon.make, Shared(), order, skeleton=daemon.skeleton, instance=daemon.instance
            ),
        )
        self._incarnated(relayed, daemon.instance, daemon.skeleton)
        return relayed

    def _judge_again(self, stream: Stream, invocation: Invocation) -> None:
        """NotAuthorized if what opened `stream` is no longer allowed to who draws from it."""
        guard, skeleton = self._guard, stream.activation.skeleton
        if guard is None or stream.generation == guard.generation:
            return
        generation = guard.generation  # read first: what changes meanwhile is asked about next time
        assert skeleton is not None
        guard.confirm(
            Invocation(invocation.caller, stream.activation.object_id, stream.method, stream.args), skeleton
        )
        stream.generation = generation

    def _offer(self, activation: Activation, invocation: Invocation) -> bool | None:
        """Into the mailbox of this very activation; None if it has ended."""
        with activation.lock:
            invocation.activation = activation
            return None if activation.ended else activation.mailbox.offer(invocation)

    def offer_and_run(self, activation: Activation, invocation: Invocation) -> bool:
        """... to be run when its turn comes; False if it has ended."""
        activation.last_used = self.invocations
        admitted = self._offer(activation, invocation)
        if admitted:
            self.run_later(invocation)
        return admitted is not None

    def _resolve(self, invocation: Invocation, skeleton: Skeleton) -> None:
        """Find what to call; MemberNotFound and ArgumentError refuse it before it waits for anything."""
        if invocation.asks:
            return
        portable = invocation.caller.session_is_connection  # a stock client, with a stock serializer
        if invocation.batch is None:
            invocation.member, invocation.args = skeleton.find(invocation.method, invocation.args)
            if invocation.member.check is not None:
                invocation.member.check(invocation.args, invocation.kwargs, portable)
            return
        members = []
        methods = skeleton.methods
        for method, args, kwargs in invocation.batch:
            member = methods.get(method)
            if member is None:
                member, args = skeleton.find(method, args)
            check = member.check
            if check is not None and ([*map(type, args)] != check.usual or kwargs):
                check(args, kwargs, portable)
            members.append((member, args, kwargs))
        invocation.members = members

    def resolve(self, invocation: Invocation, skeleton: Skeleton) -> None:
        """As `_resolve`, where only the servant has told the class."""
        if self._guard is not None:
            self._guard.confirm(invocation, skeleton)
        self._resolve(invocation, skeleton)

    def run(self, invocation: Invocation | None) -> None:
        """Run an admitted invocation, and then those that its end lets this thread run."""
        while invocation is not None:
            activation = invocation.activation
            token = _enter_call(invocation)
            value: Any = None
            error = None
            try:
                if activation.plain and invocation.plain:
                    servant, args, kwargs = activation.servant, invocation.args, invocation.kwargs
                    function: Any = invocation.member.call  # type: ignore[union-attr]
                    value = function(servant, *args, **kwargs) if kwargs else function(servant, *args)
                else:
                    value = self._perform(invocation)
                if type(value) is CoroutineType:
                    # Here, where the invocation is in the context that the coroutine will inherit.
                    done = partial(self._coroutine_done, invocation)
                    invocation.when_cancelled(self._engine.run_coroutine(value, done, invocation.remaining_s))
                    return
            except BaseException as problem:
                error = problem
                if type(value) is CoroutineType:
                    value.close()
            finally:
                _leave_call(token)
            invocation = self._settle(invocation, value, error)
            error = None  # or it and this frame, which its traceback names, would wait for the collector

    def cancel(self, invocation: Invocation) -> None:
        """Its caller wants no answer any more, but gets one.

        One that waits is not begun; one that runs is told (`current.cancelled`), a coroutine is cancelled,
        and so are the calls that it is waiting for.
        """
        invocation.cancel()
        activation = invocation.activation
        if activation is None:
            return
        invocation.plain = False  # if it has not begun yet, it will be looked at more closely
        self._withdraw(invocation, not_begun(invocation))

    def _withdraw(self, invocation: Invocation, problem: BaseException) -> bool:
        """Answer one that waits with `problem`; False if it does not wait."""
        activation = invocation.activation
        starting: list[Invocation] = []
        with activation.lock:
            waiting = activation.mailbox.withdraw(invocation)
            if waiting:
                starting = activation.mailbox.startable()
        if waiting:
            self.refuse(invocation, problem)
            if invocation.when_over is not None:
                invocation.when_over()
        for other in starting:
            self.run_later(other)
        return waiting

    def run_in_turn(self, invocation: Invocation) -> None:
        """Have `invocation.work` run with the servant in its turn.  What `admit` refuses it raises."""
        self.invocations += 1
        admitted: bool | None = None
        while admitted is None:
            activation = self._activation_at(invocation.object_id) or self._activation_for(invocation)
            assert activation is not None
            activation.last_used = self.invocations
            admitted = self._offer(activation, invocation)
        if admitted:
            self.run_later(invocation)

    def run_later(self, invocation: Invocation) -> None:
        """Have an admitted invocation run by the engine."""
        self._engine.submit(partial(self.run, invocation))

    def _locate_and_run(self, invocation: Invocation) -> None:
        """Ask a Shared locator which servant it is, then admit the invocation to that one."""
        try:
            registration, key = self._registry.find(invocation.object_id)
            invocation.located = self._servants.make(registration, key, invocation.object_id)
        except BaseException as problem:
            self.refuse(invocation, problem)
            return
        if self.admit(invocation):
            self.run(invocation)

    def _perform(self, invocation: Invocation) -> Any:
        """The long way: whatever is more than one call of a servant that is there."""
        activation = invocation.activation
        persistent = activation.registration.persistent
        if invocation.ends:
            invocation.gate, invocation.begun = activation.gate, activation.servant is not EMPTY
            return self._servants.passivate(activation)
        if invocation.work is None:
            check_in_time(invocation)
        if activation.servant is EMPTY:
            if persistent and len(activation.mailbox.running) > 1:
                raise errors.Unsettled("the servant was dropped, and others are still in it")
            if not activation.registration.copied:
                self._activate(activation, invocation.sent)
        if activation.registration.copied and invocation.work is None:
            self._copies.ready(invocation)
        servant, skeleton = activation.servant, activation.skeleton
        assert skeleton is not None
        if persistent:
            assert self._durability is not None
            if invocation.member is None and not invocation.members and invocation.work is None:
                self.resolve(invocation, skeleton)
            self._durability.before(invocation)
            invocation.defers = not invocation.readonly
        elif invocation.call is not None and activation.registration.remembers:
            assert self._durability is not None
            self._durability.recall(invocation)
        invocation.begun = True
        if invocation.work is not None:
            return invocation.work(servant)
        if invocation.member is None and not invocation.members:
            self.resolve(invocation, skeleton)
        return call(servant, invocation, self._engine, self.settings.tracebacks, self._interceptors)

    def _coroutine_done(self, invocation: Invocation, value: Any, error: BaseException | None) -> None:
        # On the event loop: what may run code of the user's is a worker's business.
        from asyncio import CancelledError  # here it is loaded for certain, elsewhere it may not be needed

        if isinstance(error, CancelledError):
            error = errors.Cancelled(f"{invocation.object_id}.{invocation.method} was cancelled")
            if invocation.when_over is not None:
                invocation.when_over()
        elif isinstance(error, StopAsyncIteration):
            error = StopIteration()  # what ends a stream on the wire
        activation = invocation.activation
        if activation.registration.persistent or activation.registration.transient:
            self._engine.submit(partial(self._settle_and_run, invocation, value, error))
            return
        following = self._settle(invocation, value, error)
        if following is not None:
            self.run_later(following)

    def _settle_and_run(self, invocation: Invocation, value: Any, error: BaseException | None) -> None:
        self.run(self._settle(invocation, value, error))

    def _settle(self, invocation: Invocation, value: Any, error: BaseException | None) -> Invocation | None:
        """Encode, save, send, leave.  Returns the invocation that this thread should run next."""
        activation = invocation.activation
        try:
            if type(error) is Repeated:
                assert self._durability is not None
                self._durability.repeat(invocation, error)
                return self._leave(invocation)
            away = isinstance(error, errors.StoreError) and error.away and not invocation.begun
            if type(error) is errors.Moved or away:
                assert error is not None
                following = self._leave(invocation)  # first: who makes it elsewhere may be quick
                self.refuse(invocation, error)
                return following
            if error is None and invocation.plain and type(value) in _VALUES:
                try:
                    reply = invocation.caller.encode_result(invocation, value)
                except BaseException as problem:
                    reply = self._encode(invocation, None, _unsendable(invocation, problem))
                if activation.plain:
                    invocation.caller.send(reply)
                    lock = activation.lock
                    lock.acquire()  # as in admit
                    try:
                        mailbox = activation.mailbox
                        if not mailbox.waiting:
                            mailbox.running.remove(invocation)  # as leave would
                            return None
                        starting = mailbox.leave(invocation)
                    finally:
                        lock.release()
                    for other in starting[1:]:
                        self.run_later(other)
                    return starting[0] if starting else None
            else:
                reply = self._encode(invocation, value, error)
            if activation.registration.persistent:
                assert self._durability is not None
                inside = self._inside_its_own_chain(invocation)
                if not self._durability.settle(invocation, reply, error, inside):
                    return None
                return self._leave(invocation)
            if not invocation.oneway:
                invocation.caller.send(reply)
        except BaseException:
            log.exception("%s.%s could not be settled", invocation.object_id, invocation.method)
            if activation.registration.persistent:
                self.discard(activation)
            self.refuse(invocation, errors.RemoteError("the outcome of the call could not be sent"))
        return self._leave(invocation)

    @staticmethod
    def _inside_its_own_chain(invocation: Invocation) -> bool:
        """A call that one which saves waits for inside the same object: that one saves what both changed."""
        chain = invocation.chain
        if not chain or invocation.readonly:
            return False
        activation = invocation.activation
        with activation.lock:
            return any(inside.id in chain and not inside.readonly for inside in activation.mailbox.running)

    def _store_changed(self, why: str) -> None:
        """Called by the store within an operation, so what is to be done is done elsewhere."""
        assert self._durability is not None
        log.warning("all Persistent objects are activated anew: %s", why)
        drop = self._durability.drop_all
        self._copies.drop()
        self._engine.submit(lambda: drop(self._active.all(), why))

    def leave_and_run(self, invocation: Invocation) -> None:
        """It has ended, and makes room for those that wait."""
        self.run(self._leave(invocation))

    def _encode(self, invocation: Invocation, value: Any, error: BaseException | None) -> bytes:
        if error is None:
            if invocation.oneway:
                return b""
            kind = type(value)
            try:
                # Not isinstance(value, Iterator): the abstract class is asked through a slow path.
                if (
                    (hasattr(kind, "__next__") or hasattr(kind, "__anext__"))
                    and invocation.batch is None
                    and invocation.work is None
                ):
                    stream_id = self.streams.open(invocation, value)
                    invocation.streams = True
                    return invocation.caller.encode_stream(invocation, stream_id)
                if kind in _LAZY_VIEWS:
                    raise errors.SerializeError("a dict view is not sent; return list(...) of it")
                return invocation.caller.encode_result(invocation, value)
            except BaseException as problem:
                error = _unsendable(invocation, problem)
        if (
            isinstance(error, errors.Cancelled)
            and not invocation.is_cancelled
            and invocation.remaining_s == 0
        ):
            # Its caller gives up at the same moment, and must not see which of the two was first.
            error = errors.CallTimeout(f"its time was up while it ran: {error}")
        elif isinstance(error, (errors.ActivationError, errors.StoreError)):
            # The caller is told, but who runs the server has to do something about it.
            # (As text: whoever keeps records would keep the call, which is in the frames of the error.)
            log.warning("%s.%s: %s", invocation.object_id, invocation.method, str(error))
        if invocation.oneway:
            log.warning("oneway %s.%s failed", invocation.object_id, invocation.method, exc_info=error)
            return b""
        return invocation.caller.encode_error(invocation, error)

    def _leave(self, invocation: Invocation) -> Invocation | None:
        activation = invocation.activation
        if invocation.ends:
            self._close(activation)
        with activation.lock:
            mailbox = activation.mailbox
            if invocation.ends:
                activation.ending = activation.end_after_streams = False
            starting = mailbox.leave(invocation)
            if not starting:
                over = activation.servant is EMPTY or activation.registration.transient
                if not over or not mailbox.idle or activation.streams:
                    return None
                activation.ended = True
        if not starting:
            self._active.remove(activation)
            self._close(activation)
            return None
        for other in starting[1:]:
            self.run_later(other)
        return starting[0]

    # -- activation ----------------------------------------------------------------------------------

    def _activation_for(self, invocation: Invocation) -> Activation | None:
        """Find or make the activation of a new invocation; None if it must be located first."""
        registration, key = self._registry.find(invocation.object_id)
        policy = registration.activation
        object_id = registration.name if not key else reference_id(registration.name, key)
        slot: Any = object_id
        servant = registration.instance
        if isinstance(policy, PerRequest):
            slot = object()
        elif isinstance(policy, PerClient):
            slot = (object_id, invocation.caller.session)
        elif registration.located:
            servant = invocation.located
            if servant is EMPTY:
                return None
            slot = (registration.name, id(servant))
        found = self._activation_at(slot)
        if found is not None:
            return found
        if registration.persistent:
            if not invocation.sent:
                self._ownership.look(registration.name, key)
            if self._guard is not None:
                self._guard.activates(invocation)
        made = self.new(slot, object_id, key, registration)
        if servant is not EMPTY:
            self._incarnated(made, servant, skeleton_of(servant, object_id))
            if registration.instance is EMPTY:  # else it has its name for as long as it is registered
                self._active.name(servant, object_id)
        added = self._active.add(made)
        if added is None:
            return self._activation_for(invocation)
        if registration.removed:
            self._active.remove(added)
            raise errors.ObjectNotFound(f"{registration.name!r} has been unregistered")
        for activation in self._active.surplus(registration):
            self.end(activation)
        return added

    def new(self, slot: Any, object_id: str, key: str, registration: Registration) -> Activation:
        mailbox = Mailbox(registration.threading, self.settings.mailbox_size_max, self.waits)
        return Activation(slot, object_id, key, registration, mailbox, self._clock.monotonic())

    def _add(self, registration: Registration) -> Activation:
        name = registration.name
        added = self._active.add(self.new(name, name, "", registration), bounded=False)
        assert added is not None
        return added

    def _activate(self, activation: Activation, sent: bool = False) -> None:
        """Make the servant.  Runs inside the mailbox, which lets nobody else in before."""
        self.take_up(activation, *self._servants.incarnate(activation, sent))

    def take_up(self, activation: Activation, servant: Any, skeleton: Skeleton) -> None:
        self._active.name(servant, activation.object_id)
        if skeleton.written_for_pyro5:
            pyro5.introduce(servant, activation.object_id, self._pyro5_daemon)
        with activation.lock:
            self._incarnated(activation, servant, skeleton)
            starting = activation.mailbox.startable() if activation.mailbox.waiting else []
        for other in starting:
            self.run_later(other)

    def _incarnated(self, activation: Activation, servant: Any, skeleton: Skeleton) -> None:
        activation.servant = servant
        activation.skeleton = skeleton
        registration = activation.registration
        activation.plain = not (
            skeleton.written_for_pyro5
            or registration.persistent
            or registration.copied
            or registration.transient
            or self._interceptors
        )
        activation.mailbox.open = True

    # -- ending --------------------------------------------------------------------------------------

    def end(self, activation: Activation) -> None:
        """Passivate (Persistent) or end a servant, in its turn."""
        with activation.lock:
            if activation.ending or activation.ended:
                return
            if activation.streams:
                activation.end_after_streams = True
                return
            activation.ending = True
        invocation = Invocation(NOBODY, activation.object_id, "on_passivate")
        invocation.ends = True
        self._run_errand(activation, invocation)

    def _run_errand(self, activation: Activation, invocation: Invocation) -> None:
        invocation.errand = invocation.oneway = True
        if self._offer(activation, invocation):
            self.run_later(invocation)

    def _close(self, activation: Activation) -> None:
        servant = self._servants.close(activation)
        if servant is not EMPTY:
            self._active.unname(servant, activation.object_id)

    def discard(self, activation: Activation) -> None:
        """Drop a servant whose memory may differ from the store; the next call loads the object again."""
        self._close(activation)
        with activation.lock:
            activation.mailbox.open = False

    def end_session(self, session: str) -> None:
        """A client session is over: its PerClient servants end."""
        for activation in self._active.of_session(session):
            self.end(activation)

    def disconnected(self, caller: Caller) -> None:
        """A connection is gone: its streams linger, and with a stock client its session ends."""
        self.streams.disconnected(caller)
        if caller.session_is_connection:
            self.end_session(caller.session)

    def housekeeping(self, now: float) -> None:
        """Passivate what has been idle too long, close what outlived its time.  Call about twice a second."""
        self.streams.housekeeping(now)
        with self._exports_lock:
            free = self._exports.expire(now)
        self._collect(free)
        for activation in self._active.idle(now):
            self.end(activation)
        if self._durability is not None:
            self._durability.outbox.housekeeping(now)
            self._durability.timekeeper.housekeeping(now)
        if self._durability is not None and now >= self._sessions_due:
            self._sessions_due = now + self.settings.session_lease_s / 4
            self._durability.expire_sessions(self._active.all(), now)

    def open_session(self, client: bytes, forever: bool = False) -> None:
        """From now on the calls of this client are remembered; StoreError if there is no store."""
        if self._durability is None:
            raise errors.StoreError("this server has no store, so it remembers no calls")
        try:
            self._durability.sessions.open(client, self._clock.monotonic(), forever)
        except errors.StoreError as problem:
            raise self._ownership.instead(problem) if problem.away else problem from None

    def keeps_calls(self, object_id: str) -> bool:
        """Whether calls of the object happen exactly once, if they have an id."""
        return self._registry.find(object_id)[0].persistent

    def stored_name(self, object_id: str) -> tuple[str, str]:
        """Type and key, by which the store has a Persistent object; ObjectNotFound if it is none."""
        registration, key = self._registry.find(object_id)
        if not registration.persistent:
            raise errors.ObjectNotFound(
                f"{registration.name!r} is not Persistent: every server that serves it has its own"
            )
        return registration.name, key

    def stop_timers(self) -> None:
        """No timer fires any more: the next server has them."""
        if self._durability is not None:
            self._durability.timekeeper.stop()

    def passivate(self, object_id: str) -> None:
        """Have a Persistent object passivated, in its turn, if it is active."""
        activation = self._activation_at(object_id)
        if activation is not None and activation.registration.persistent:
            self.end(activation)

    def passivate_persistent(self) -> None:
        """Have all of them passivated."""
        for activation in self._active.all():
            if activation.registration.persistent:
                self.end(activation)

    @property
    def active_persistent(self) -> int:
        """Number of Persistent objects that are active."""
        return sum(registration.active for registration in self._registry.all() if registration.persistent)

    @property
    def has_persistent(self) -> bool:
        """Whether a Persistent object is active."""
        return any(activation.registration.persistent for activation in self._active.all())

    def called_since(self, count: int) -> list[tuple[str, str]]:
        """Type and key of the active Persistent objects that were called after the first `count` invocations;
        without those of which a stream is open."""
        return [
            (activation.registration.name, activation.key)
            for activation in self._active.all()
            if activation.registration.persistent and activation.last_used > count and not activation.streams
        ]

    def touch(self, object_id: str, done: Callable[[BaseException | None], None]) -> None:
        """Activate a Persistent object in its turn, and do nothing with it; then `done`, with what was in the
        way."""
        invocation = Invocation(_Touch(done), object_id, "<touch>")
        invocation.errand, invocation.work = True, lambda servant: None
        self.run_in_turn(invocation)

    def end_all(self) -> None:
        """Every servant ends, in its turn; `active` tells when they have."""
        if self._durability is not None:
            self._durability.outbox.stop()
        for activation in self._active.all():
            activation.streams = 0  # nobody can draw from them any more
            self.end(activation)

    @property
    def active(self) -> int:
        """Number of activations."""
        return len(self._active)

    @property
    def busy(self) -> int:
        """Number of activations that run or await invocations."""
        return self._active.busy

    @property
    def waiting(self) -> int:
        """Number of invocations that wait, in all mailboxes."""
        return self._active.waiting

    # -- looking in ----------------------------------------------------------------------------------

    def reference(self, object_id: str, location: Any) -> Reference:
        """The reference of an object at `location`; ObjectNotFound if nothing here serves it."""
        self._registry.find(object_id)
        return Reference("PYRO", object_id, location)

    def statistics(self) -> dict[str, Any]:
        """Counts, and the bounds they run against."""
        return {
            "registered": len(self._registry),
            "invocations": self.invocations,
            "activations": self._servants.activations,
            "passivations": self._servants.passivations,
            "active_objects": len(self._active),
            "active_objects_max": self.settings.active_objects_max,
            "active_by_name": {r.name: r.active for r in self._registry.all()},
            "policies_by_name": {
                r.name: [repr(r.activation), repr(r.threading)] for r in self._registry.all()
            },
            "invocations_waiting": self._active.waiting,
            "busy_objects": self.busy,
            "exports": len(self._exports),
            "exports_max": self.settings.exports_max,
            "streams": len(self.streams.table),
            "streams_max": self.settings.streams_max,
            "mailbox_size_max": self.settings.mailbox_size_max,
            **(self._durability.statistics() if self._durability is not None else {}),
            **self._copies.statistics(),
            **self.waits.statistics(),
            **(self._guard.statistics() if self._guard is not None else {}),
        }


def _is_exposed(cls: type) -> bool:
    try:
        return not Skeleton.of(cls).empty
    except errors.RegistrationError:
        return False


def _unsendable(invocation: Invocation, problem: BaseException) -> BaseException:
    if isinstance(problem, errors.SerializeError):
        problem.args = (f"the result of {invocation.object_id}.{invocation.method}: {problem}",)
    return problem
