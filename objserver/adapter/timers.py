"""Timers of Persistent objects: set by their calls, stored with what the calls changed, fired in their turn.

A timer is a row in the store.  It is written in the transaction of the call that set it, and it is taken away
(or moved to its next time) in the transaction of the call that it fires.  So it is there if and only if that
call happened, and each firing takes effect once, whatever is killed in between.

    stored -> due -> under way (an invocation in the object's turn) -> done: gone, or due next time
                ^-------- rests -------+                               what could not be stored is tried again

The timekeeper of a server asks the store what is due of the types that are registered here, and sends each
to its object.  What it read may be outdated when the object's turn comes.  So the object decides, by its own
list of timers, which belongs to its state as everything that it remembers: a timer that is not in there as it
was read does not fire.  Where several servers see the same timer, the versions of the object decide as for
all its calls: one of them commits, the others are refused, and then find it gone.  A server where the object
is not active lets the others go first.  What a live node of a cluster owns, only that node sees.

What a firing calls has an id, as if the object were a client that numbers its firings.  The number is stored
with the timer: a firing that is run again makes the same calls under the same ids.  It is never larger than
the version of the object when the timer was stored, and firing raises the version, so that numbers only grow,
whatever the clock does.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from objserver import errors
from objserver.adapter.calling import Engine, Nobody, call
from objserver.adapter.exposure import _functions
from objserver.adapter.invocation import Invocation
from objserver.adapter.skeleton import Member
from objserver.clock import Clock
from objserver.codecs import Codecs
from objserver.invocation import CallId, Interceptor
from objserver.logs import escaping
from objserver.references import object_id
from objserver.settings import ServerSettings
from objserver.storage import Due, Store, Timer

if TYPE_CHECKING:
    from objserver.adapter.activation import Activation
    from objserver.adapter.gate import Gate

__all__ = ["ObjectTimers", "Timekeeper"]

log = escaping(logging.getLogger("objserver.adapter"))

NAME_LENGTH_MAX = 200
"""Characters of a timer's name: it is a key in the store, beside the object's own."""
ARGUMENTS_MAX = 64 * 1024
"""Bytes of a timer's method and arguments: all timers of an object are read when one of them fires."""
PERIOD_MIN_S = 0.01
"""As exact as firing is."""
DUE_MAX = 100
"""Due timers read at a time."""
UNDER_WAY_MAX = 1_000
"""Firings that wait for their objects or run; others that are due stay in the store meanwhile."""
RESTING_MAX = 10_000
"""Due timers that could not fire, and are tried again; beyond it, only when others have succeeded."""
PAUSE_S, PAUSE_MAX_S = 0.5, 30.0
"""Before a timer that could not fire is tried again; twice as long each time."""
GRACE_S = 0.1
"""For a server that may have the object active, before another takes it over to fire its timer."""
RECHECK_S = 5.0
"""Between looks at a store that others write to: theirs become ours when they are gone."""
WAKE_UP_S = 1.0
"""A wake-up is ordered so long before; it cannot be taken back, and till then housekeeping knows."""
WAKE_UP_MIN_S = 0.001

_Name = tuple[str, str, str]
"""Type, key and the timer's own name."""
_DONE = b"done"


class _What(NamedTuple):
    """The payload of a timer.  `first` is when it was due the first time: its grid begins there."""

    method: str
    args: list[Any]
    kwargs: dict[str, Any]
    number: int
    first: float
    every_s: float | None


class ObjectTimers:
    """Of one activation of an object; see `objserver.invocation.Timers`.  Any thread of a call may use it.

    They are read from the store when they are first asked for: if somebody has changed them since the object
    was activated, so has the version, and nothing that is done here will be accepted.
    """

    __slots__ = ("_activation", "_fired", "_found", "_gate", "_keeper", "_lock", "changed")

    def __init__(self, keeper: Timekeeper, activation: Activation, gate: Gate) -> None:
        self._keeper = keeper
        self._activation = activation
        self._gate = gate
        self._lock = threading.Lock()
        self._found: dict[str, Timer] | None = None
        self.changed: set[str] = set()
        """Names of those that `take` has yet to give."""
        self._fired = 0
        """The largest number of those that were fired here, durable or not."""

    @property
    def _timers(self) -> dict[str, Timer]:
        if self._found is None:
            name = self._activation.registration.name, self._activation.key
            self._found = {timer.name: timer for timer in self._keeper.store.timers(*name)}
        return self._found

    def set(
        self,
        name: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        after_s: float | None,
        every_s: float | None,
    ) -> None:
        _check_name(name)
        first_s = _seconds("after_s", every_s if after_s is None else after_s, 0.0)
        if every_s is not None:
            every_s = _seconds("every_s", every_s, PERIOD_MIN_S)
        activation = self._activation
        assert activation.skeleton is not None
        _check_method(activation.skeleton.cls, method, args, kwargs)
        due = self._keeper.clock.time() + first_s
        with self._lock:
            most = self._keeper.settings.timers_per_object_max
            if name not in self._timers and len(self._timers) >= most:
                raise errors.ServerBusy(
                    f"{activation.object_id} has {most} timers already (setting timers_per_object_max)"
                )
            number = max(self._fired, self._gate.version) + 1
            what = _What(method, list(args), dict(kwargs), number, due, every_s)
            self._put(Timer(name, due, self._encode(name, what)))

    def cancel(self, name: str) -> bool:
        with self._lock:
            if self._timers.pop(name, None) is None:
                return False
            self.changed.add(name)
            return True

    def due(self) -> dict[str, float]:
        with self._lock:
            return {name: timer.due for name, timer in sorted(self._timers.items()) if timer.due is not None}

    def _put(self, timer: Timer) -> None:
        self._timers[timer.name] = timer
        self.changed.add(timer.name)

    def _encode(self, name: str, what: _What) -> bytes:
        try:
            payload = self._keeper.codecs.native.encode_exactly(list(what))
        except errors.ProtocolError as problem:
            raise errors.StateError(f"the arguments of timer {name!r} cannot be stored: {problem}") from None
        if len(payload) > ARGUMENTS_MAX:
            raise errors.StateError(
                f"the arguments of timer {name!r} take {len(payload)} bytes, and at most {ARGUMENTS_MAX} "
                "are kept; put them into the object's state"
            )
        return payload

    def find(self, row: Timer) -> _What | None:
        """This one was due in the store; None if it is not so any more."""
        with self._lock:
            if self._timers.get(row.name) != row:
                return None
            return _What(*self._keeper.codecs.native.decode(row.payload))

    def begin(self, row: Timer, what: _What) -> None:
        """It fires: take it away, or on to its next time."""
        with self._lock:
            self._fired = max(self._fired, what.number)
            if what.every_s is None:
                del self._timers[row.name]
                self.changed.add(row.name)
            else:
                assert row.due is not None
                next = _next_on_grid(what.first, what.every_s, max(row.due, self._keeper.clock.time()))
                later = what._replace(number=what.number + 1)
                self._put(Timer(row.name, next, self._encode(row.name, later)))

    def take(self) -> Sequence[Timer]:
        """Those that were changed since this was last asked, as they are now."""
        with self._lock:
            changed, self.changed = sorted(self.changed), set()
            return [self._timers.get(name) or Timer(name, None) for name in changed]


class Adapter(Protocol):
    """What the adapter does for us."""

    def discard(self, activation: Activation) -> None: ...
    def run_in_turn(self, invocation: Invocation) -> None: ...
    def persistent_types(self) -> list[str]: ...
    def is_active(self, object_id: str) -> bool: ...


class _Firing(Nobody):
    """One timer that is due: the caller of its method."""

    def __init__(self, keeper: Timekeeper, row: Due, engine: Engine) -> None:
        self.keeper = keeper
        self.row = row
        self.begun = False
        self.problem: BaseException | None = None
        self.about_to_block = engine.about_to_block  # type: ignore[method-assign]
        self.no_longer_blocked = engine.no_longer_blocked  # type: ignore[method-assign]

    def encode_result(self, invocation: Invocation, value: Any) -> bytes:
        return _DONE

    def encode_error(self, invocation: Invocation, error: BaseException) -> bytes:
        # Of the adapter: what the method raised does not get here.
        self.problem = error
        return b""

    def send(self, reply: bytes) -> None:
        # As every reply, it leaves when what it tells is durable.
        self.keeper.over(self, None if reply == _DONE else self.problem)


class _Rest(NamedTuple):
    """Of a timer that could not fire when it was due."""

    due: float | None
    until: float
    pause_s: float


class Timekeeper:
    """Of one server.  Every method may be called from any thread."""

    def __init__(
        self,
        adapter: Adapter,
        codecs: Codecs,
        store: Store,
        engine: Engine,
        settings: ServerSettings,
        clock: Clock,
        interceptors: Sequence[Interceptor],
        owner: Callable[[], str],
    ) -> None:
        self.codecs = codecs
        self.store = store
        self.settings = settings
        self.clock = clock
        self._adapter = adapter
        self._engine = engine
        self._interceptors = interceptors
        self._owner = owner
        """The life that the server is in."""
        self._lock = threading.Lock()
        self._under_way: dict[_Name, _Firing] = {}
        self._resting: dict[_Name, _Rest] = {}
        self._next = math.inf
        """When there is something due, by the clock on the wall."""
        self._look_at = math.inf
        """When to look whatever is due, by the other clock."""
        self._woken_at = math.inf
        """For which time on the wall a wake-up is ordered."""
        self._looking = self._again = self._more = self._stopped = False
        self.fired = 0

    # -- when to look ----------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Another type is served."""
        self._engine.submit(self._look)

    def stored(self, timers: Sequence[Timer]) -> None:
        """These have been stored."""
        earliest = min((timer.due for timer in timers if timer.due is not None), default=math.inf)
        with self._lock:
            self._next = min(self._next, earliest)
            self._order_wake_up()

    def housekeeping(self, now: float) -> None:
        """The clock on the wall may have been set, and pauses be over."""
        with self._lock:
            rested = any(rest.until <= now for rest in self._resting.values())
            if rested or now >= self._look_at or self.clock.time() >= self._next:
                self._engine.submit(self._look)
            else:
                self._order_wake_up()

    def stop(self) -> None:
        """Begin no more firings; the store keeps what is left."""
        self._stopped = True

    def _order_wake_up(self) -> None:
        """With the lock held.  The clocks may part till then, so it is only a time to ask again."""
        delay_s = self._next - self.clock.time()
        if delay_s < WAKE_UP_S and self._next < self._woken_at and not self._stopped:
            self._woken_at = self._next
            self._engine.after(max(delay_s, WAKE_UP_MIN_S), self._wake_up)

    def _wake_up(self) -> None:
        with self._lock:
            self._woken_at = math.inf
            if self.clock.time() < self._next:
                self._order_wake_up()
                return
        self._look()

    def _look(self) -> None:
        """See what is due, and begin it.  One thread at a time."""
        with self._lock:
            if self._looking or self._stopped:
                self._again = True
                return
            self._looking, self._again = True, False
            # Forgotten first: what is stored while we ask the store must not be.
            self._next, self._look_at = math.inf, self.clock.monotonic() + PAUSE_S
        beginning: list[Due] = []
        try:
            beginning = self._due()
        except errors.StoreError as problem:
            log.warning("timers could not be read: %s", problem)
        finally:
            with self._lock:
                self._looking = False
                again = self._again or (self._more and bool(beginning))
        for row in beginning:
            self._begin(row)
        if again:
            self.look_soon()

    def _due(self) -> list[Due]:
        """What is to begin now."""
        now, monotonic = self.clock.time(), self.clock.monotonic()
        with self._lock:
            known = len(self._under_way) + len(self._resting)
            limit = min(DUE_MAX, UNDER_WAY_MAX - len(self._under_way))
            self._more = True
            if limit <= 0 or len(self._resting) >= RESTING_MAX:
                return []
        types = self._adapter.persistent_types()
        owner = self._owner()
        rows = self.store.due(now, types, known + limit, owner)
        next = self.store.next_due(now, types, owner)
        beginning = []
        grace = False
        with self._lock:
            self._more = len(rows) == known + limit
            seen = {_name(row): row for row in rows}
            for name, row in seen.items():
                rest = self._resting.get(name)
                if name in self._under_way:
                    continue
                if rest is None or rest.due != row.timer.due:
                    self._resting.pop(name, None)
                    if not self.store.alone and not self._adapter.is_active(_object_id(row)):
                        self._resting[name] = _Rest(row.timer.due, monotonic + GRACE_S, PAUSE_S)
                        grace = True
                        continue
                elif monotonic < rest.until:
                    continue
                self._under_way[name] = _Firing(self, row, self._engine)
                beginning.append(row)
            if not self._more:  # else they may be there, further on
                for name in [name for name in self._resting if name not in seen]:
                    del self._resting[name]
            if grace:
                self._engine.after(GRACE_S, self._look)
            self._next = min(self._next, math.inf if next is None else next)
            self._look_at = math.inf if self.store.alone else monotonic + RECHECK_S
            self._order_wake_up()
        return beginning

    # -- a firing --------------------------------------------------------------------------------------

    def _begin(self, row: Due) -> None:
        firing = self._under_way[_name(row)]
        invocation = Invocation(firing, _object_id(row), f"<timer {row.timer.name}>")
        invocation.work = lambda servant: self._fire(firing, invocation, servant)
        try:
            self._adapter.run_in_turn(invocation)
        except BaseException as problem:
            self.over(firing, problem)

    def _fire(self, firing: _Firing, invocation: Invocation, servant: Any) -> Any:
        """In the object's turn.  A coroutine if the method is one."""
        row = firing.row
        if invocation.gate is None:
            raise errors.StoreError(f"{_object_id(row)} is not Persistent any more")
        timers = invocation.gate.timers
        assert timers is not None
        what = timers.find(row.timer)
        if what is None:
            self._check_ownership(row, invocation)
            return None
        method = getattr(servant, what.method)  # if that is gone, the timer is kept
        invocation.method, invocation.args, invocation.kwargs = what.method, what.args, what.kwargs
        invocation.member = Member(
            what.method,
            lambda _, *args, **kwargs: method(*args, **kwargs),
            asynchronous=inspect.iscoroutinefunction(method),
        )
        begin = partial(self._has_begun, firing, timers, what)
        run = partial(call, servant, invocation, self._engine, False, self._interceptors)
        if invocation.member.asynchronous:
            return self._run_async(begin, run, row, what, invocation)
        begin()
        value = None
        with self._as_a_call(row, what, invocation):
            value = run()
        if type(value) is CoroutineType:
            return self._run_async(lambda: None, lambda: value, row, what, invocation)
        return None

    async def _run_async(
        self, begin: Callable[[], None], run: Callable[[], Any], row: Due, what: _What, invocation: Invocation
    ) -> None:
        # Begun here, on the event loop: if that ends before, the timer has not fired.
        begin()
        with self._as_a_call(row, what, invocation):
            await run()

    @staticmethod
    def _has_begun(firing: _Firing, timers: ObjectTimers, what: _What) -> None:
        timers.begin(firing.row.timer, what)
        firing.begun = True

    @contextlib.contextmanager
    def _as_a_call(self, row: Due, what: _What, invocation: Invocation) -> Iterator[None]:
        """What is called in the block is called by the object as a client; what is raised goes to the log."""
        client = repr((self.store.id, row.type, row.key, b"timer", row.timer.name))
        digest = hashlib.blake2b(client.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        invocation.call, invocation.acked = CallId(digest, what.number), what.number - 1
        invocation.is_of_object = True
        try:
            yield
        except BaseException as problem:
            log.warning(
                "timer %r of %s: %s failed", row.timer.name, _object_id(row), what.method, exc_info=problem
            )
        finally:
            invocation.call = None  # there is no reply to keep

    def _check_ownership(self, row: Due, invocation: Invocation) -> None:
        """The object knows nothing of what the store says.  If another server has it, it goes here.

        Otherwise a change is on its way to the store.
        """
        gate = invocation.gate
        assert gate is not None
        if not self.store.alone and not len(gate):
            read = row.type, row.key, gate.epoch, gate.version
            if not self.store.confirm([read]):
                self._adapter.discard(invocation.activation)

    def over(self, firing: _Firing, problem: BaseException | None) -> None:
        """It is durable, or `problem`: it did not happen."""
        row, name = firing.row, _name(firing.row)
        with self._lock:
            if self._under_way.pop(name, None) is None:
                return
            rest = self._resting.pop(name, None)
            if problem is None and firing.begun:
                self.fired += 1
            else:
                pause_s = PAUSE_S if rest is None else rest.pause_s
                until = self.clock.monotonic() + pause_s
                self._resting[name] = _Rest(row.timer.due, until, min(2 * pause_s, PAUSE_MAX_S))
                if problem is not None:
                    log.warning(
                        "timer %r of %s has to wait %.1f s: %s",
                        row.timer.name, _object_id(row), pause_s, problem,
                    )  # fmt: skip
            # Not for each of them: a look reads all that is under way again.
            more = self._more and len(self._under_way) <= UNDER_WAY_MAX // 2
        if more:
            self.look_soon()

    def statistics(self) -> dict[str, Any]:
        """Counts, and the bounds they run against."""
        return {
            "timers_fired": self.fired,
            "timers_under_way": len(self._under_way),
            "timers_under_way_max": UNDER_WAY_MAX,
            "timers_resting": len(self._resting),
            "timers_resting_max": RESTING_MAX,
            "timers_per_object_max": self.settings.timers_per_object_max,
        }


def _name(row: Due) -> _Name:
    return row.type, row.key, row.timer.name


def _object_id(row: Due) -> str:
    return object_id(row.type, row.key) if row.key else row.type


def _next_on_grid(first: float, every_s: float, now: float) -> float:
    """The first time of the grid after `now`; what was missed is not made up for."""
    steps = math.floor((now - first) / every_s) + 1
    if first + steps * every_s <= now:  # rounded
        steps += 1
    return first + steps * every_s


def _seconds(name: str, value: float | None, least: float) -> float:
    if value is None:
        raise TypeError("a timer needs after_s, when it fires first, or every_s, how often")
    value = float(value)
    if not least <= value < math.inf:
        raise ValueError(f"{name}={value}: a timer's seconds are finite, and {least} at least")
    return value


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a timer's name is a text, not a {type(name).__name__}")
    storable = name.isprintable() and name.encode("utf-8", "replace").decode() == name
    if not name or len(name) > NAME_LENGTH_MAX or not storable:
        raise ValueError(
            f"{name[:60]!r} is no name for a timer: it has 1 to {NAME_LENGTH_MAX} printable characters"
        )


def _check_method(cls: type, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """AttributeError or TypeError now, and not when nobody is there to be told."""
    raw = inspect.getattr_static(cls, method, None)
    functions = _functions(raw)
    if not functions or isinstance(raw, property):
        hint = errors.did_you_mean(method, [name for name in dir(cls) if not name.startswith("__")])
        raise AttributeError(f"{cls.__name__} has no method {method!r} for a timer to call{hint}")
    function = functions[0]
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{cls.__name__}.{method} is a generator: called by a timer it would do nothing")
    servant = () if isinstance(raw, staticmethod) else (None,)
    try:
        inspect.signature(function).bind(*servant, *args, **kwargs)
    except TypeError as problem:
        raise TypeError(f"{cls.__name__}.{method} cannot be called with these arguments: {problem}") from None
