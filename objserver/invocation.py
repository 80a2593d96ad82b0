"""The invocation in progress: the facts around one call, for the servant and for the calls it makes.

`current` is what a servant asks.  It is carried by a context variable, so that it is right in threads, in
coroutines and in whatever a servant builds from them.  It stands below both `client` and `server`:
a proxy used inside a servant continues the call chain and the correlation id without the two rooms knowing
each other, and tells the engine, through `about_to_block`, that its thread is going to wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from objserver.logs import escaping

if TYPE_CHECKING:
    from objserver.references import Location
    from objserver.security import Principal

__all__ = [
    "Awaited",
    "Call",
    "CallId",
    "Client",
    "Current",
    "Facts",
    "Interceptor",
    "Timers",
    "current",
    "in_progress",
    "intercepted",
    "principal_of",
]

log = escaping(logging.getLogger("objserver.adapter"))

_NOTHING: Mapping[str, bytes] = {}
_cancelling = threading.Lock()
"""Guards who is told of a cancellation, or asked, in all invocations: it is held for a moment, and rarely."""


class CallId(NamedTuple):
    """Names one call for ever, so that it can be repeated without happening twice.

    `client` (16 random bytes) counts its calls from 1.  What a call causes, the calls that its servant makes,
    has its client and number and a `path` (16 bytes, empty for the client's own call) that is derived from
    its own, so that a servant which is run again makes the same calls again, and not others.
    """

    client: bytes
    number: int
    path: bytes = b""

    def __str__(self) -> str:
        return f"{self.client.hex()}:{self.number}" + (f":{self.path.hex()}" if self.path else "")


@dataclasses.dataclass
class Call:
    """One call, as interceptors see it, on either side.

    `annotations` are those that came with it, for an interceptor of a server; for one of a proxy, those that
    will travel with it: bytes under names of four letters, to be added to.  `caller` is who calls, for an
    interceptor of a server that knows.
    """

    object_id: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    annotations: dict[str, bytes]
    caller: Principal | None = None


Interceptor = Callable[[Call], contextlib.AbstractContextManager[object]]
"""Makes a context manager around each call.

It is entered before the call and left after it, with the exception if there is one; what it raises on
entering is the outcome of the call.  A function with one `yield` under `contextlib.contextmanager` is one.
Where the member is a coroutine it is entered and left where that runs.
"""


@contextlib.contextmanager
def intercepted(interceptors: Sequence[Interceptor], call: Call) -> Iterator[None]:
    """The first of `interceptors` is the outermost."""
    with contextlib.ExitStack() as stack:
        for interceptor in interceptors:
            stack.enter_context(interceptor(call))
        yield


class Awaited:
    """A call that an invocation waits for, as it is left with `when_cancelled`: calling this cancels it."""

    __slots__ = ()

    def __call__(self) -> None:
        """Cancel the call."""

    def ask(self, question: bytes) -> None:
        """Send a PROBE after the request, if that can be done at once; from any thread, and never waits."""
        raise NotImplementedError


class Client(Protocol):
    """Who called: the server's side of a connection."""

    @property
    def address(self) -> Any:
        """Its socket address."""

    @property
    def session(self) -> str:
        """What is kept per client is kept by this."""

    @property
    def session_is_connection(self) -> bool:
        """A stock client has no session beyond its connection."""

    @property
    def holder(self) -> str:
        """The client's process: it holds what it was given."""

    @property
    def closed(self) -> bool:
        """Whether it is gone: nobody can be answered any more."""

    @property
    def link(self) -> object:
        """The connection that the call came on."""

    def now(self) -> float:
        """Seconds on the clock that deadlines are told by."""

    def about_to_block(self, location: Location | None = None) -> None:
        """The calling thread is going to wait for the network: another may take its place meanwhile.

        ServerBusy if too many wait already, Deadlock if it is for this server itself, at `location`, and
        nobody is left to answer.
        """

    def no_longer_blocked(self) -> None:
        """The wait is over; called once for every `about_to_block` that returned."""


def principal_of(caller: Client) -> Principal | None:
    """Who it has proven to be: a fact about its connection."""
    return getattr(caller.link, "principal", None)


class Timers(Protocol):
    """The timers of one object, as the calls that have run leave them."""

    def set(
        self,
        name: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        after_s: float | None,
        every_s: float | None,
    ) -> None:
        """See `Current.set_timer`."""

    def cancel(self, name: str) -> bool:
        """No longer; whether there was one of that name."""

    def due(self) -> dict[str, float]:
        """By name, when each is due, in seconds since 1970."""


class Facts:
    """What is known about one invocation.

    The server makes one for every call, so what few calls have is a default of the class, and set only then
    (what is read for every call is set for every call: reading a default takes longer than both).
    """

    annotations = _NOTHING
    chain: tuple[str, ...] = ()
    _response_annotations: dict[str, bytes] | None = None
    _correlation = b""
    _id = ""
    oneway = False
    is_cancelled = False
    """Set by `cancel` only; see `cancelled`."""
    task: object = None
    """Of a coroutine: the one it runs in."""
    _when_cancelled: tuple[Callable[[], object], ...] = ()

    def __init__(self, caller: Client, object_id: str, method: str) -> None:
        self.caller = caller
        self.object_id = object_id
        self.method = method

    call: CallId | None = None
    """What to call it when it is repeated, if it can be."""
    acked = 0
    """The client of `call` has the answers of all its calls up to this number."""
    defers = False
    """What it sends without waiting for an answer leaves when its own outcome is stored: as `messages`."""
    messages: Sequence[Any] = ()
    store = ""
    """Id of the data in which `call` is remembered."""
    is_of_object = False
    """The client of `call` is an object, which may come back after any time: it is remembered for ever."""
    _calls_made = 0

    def send_later(self, target: str, method: str, payload: bytes) -> None:
        """A call without an answer, of the object `target`, that is made when this one is stored."""
        with _cancelling:
            self.messages = [*self.messages, (target, method, payload)]

    def own_timers(self, change: bool) -> Timers:
        """Those of the object that is called, to see or to `change`; RuntimeError where that cannot be."""
        raise RuntimeError(
            f"{self.object_id} has no timers: only Persistent objects have, stored with their state"
        )

    def next_call(self) -> CallId:
        """The id of the next call that this one makes: the same each time it is run."""
        assert self.call is not None
        with _cancelling:
            self._calls_made += 1
            count = self._calls_made
        client, number, path = self.call
        what = f"{self.object_id} {count}".encode("utf-8", "surrogatepass")
        return CallId(client, number, hashlib.blake2b(path + what, digest_size=16).digest())

    deadline: float | None = None
    """When the caller stops waiting, on the clock of `caller.now()`; None if it never does."""

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, 0 when it has passed."""
        return None if self.deadline is None else max(0.0, self.deadline - self.caller.now())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the outcome any more: cancelled, out of time, or the client is gone."""
        gone = self.caller.closed and not self.oneway
        return self.is_cancelled or gone or self.remaining_s == 0

    def cancel(self) -> None:
        """The caller has given up; whoever asked `when_cancelled` is told, once."""
        with _cancelling:
            self.is_cancelled = True
            tell, self._when_cancelled = self._when_cancelled, ()
        for told in tell:
            try:
                told()
            except Exception:
                log.exception("cancelling a part of %s.%s failed", self.object_id, self.method)

    def when_cancelled(self, tell: Callable[[], object]) -> None:
        """Have `tell()` called when this is cancelled: at once if it is."""
        with _cancelling:
            if not self.is_cancelled:
                self._when_cancelled = (*self._when_cancelled, tell)
                return
        tell()

    def forget(self, tell: Callable[[], object]) -> bool:
        """`tell` need not be called any more.  False if it has been, or is under way."""
        with _cancelling:
            before, self._when_cancelled = (
                self._when_cancelled,
                tuple(other for other in self._when_cancelled if other is not tell),
            )
            return len(before) > len(self._when_cancelled)

    @property
    def awaited(self) -> list[Awaited]:
        """The calls that it waits for now."""
        return [call for call in self._when_cancelled if isinstance(call, Awaited)]

    def ask(self, call: Awaited, question: bytes) -> None:
        """Send `question` after `call`, if that is still waited for."""
        with _cancelling:  # so that it is not over, and its connection in other hands
            if any(call is other for other in self._when_cancelled):
                call.ask(question)

    @property
    def principal(self) -> Principal | None:
        """Who the caller has proven to be."""
        return principal_of(self.caller)

    @property
    def key(self) -> str:
        """What follows the registered name in the object id."""
        return ""

    @property
    def response_annotations(self) -> dict[str, bytes]:
        """What travels back beside the result; made when first asked for."""
        if self._response_annotations is None:
            self._response_annotations = {}
        return self._response_annotations

    @property
    def id(self) -> str:
        """Names this invocation in the call chains of the calls it makes; made when first asked for."""
        if not self._id:
            # In one step: another thread may want it for the first time too, and there must be one.
            self.__dict__.setdefault("_id", f"{self.object_id}.{self.method} {uuid.uuid4().hex}")
        return self._id

    @property
    def id_if_used(self) -> str:
        """The `id`, if it was ever asked for: as of every invocation that has called another object."""
        return self._id

    @property
    def correlation_id(self) -> uuid.UUID:
        """The one that came with the call, else a new one."""
        if not self._correlation:
            self._correlation = uuid.uuid4().bytes
        return uuid.UUID(bytes=self._correlation)


in_progress: ContextVar[Facts | None] = ContextVar("objserver_invocation", default=None)


class Current:
    """The invocation that the running code belongs to.

    Outside of a servant every attribute raises LookupError; `bool(current)` tells which it is.
    """

    def __bool__(self) -> bool:
        return in_progress.get() is not None

    def __repr__(self) -> str:
        facts = in_progress.get()
        return f"<current {facts.object_id}.{facts.method}>" if facts else "<current: no invocation>"

    def _facts(self) -> Facts:
        facts = in_progress.get()
        if facts is None:
            raise LookupError("no invocation is in progress here; `current` is for code inside a servant")
        return facts

    @property
    def object_id(self) -> str:
        """Id of the object being called: `Name` or `Name/key`."""
        return self._facts().object_id

    @property
    def key(self) -> str:
        """What follows `Name/` in the object id, decoded; empty without a key."""
        return self._facts().key

    @property
    def method(self) -> str:
        """Name of the member being called."""
        return self._facts().method

    @property
    def annotations(self) -> Mapping[str, bytes]:
        """The annotations that came with the request."""
        return self._facts().annotations

    @property
    def response_annotations(self) -> dict[str, bytes]:
        """Put bytes here under four-letter names; they travel with the reply."""
        return self._facts().response_annotations

    @property
    def correlation_id(self) -> uuid.UUID:
        """Names the whole conversation this call belongs to; calls made from here carry it on."""
        return self._facts().correlation_id

    @property
    def call_chain(self) -> tuple[str, ...]:
        """Ids of the invocations that led here, outermost first, this one last."""
        facts = self._facts()
        return (*facts.chain, facts.id)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the caller stops waiting: 0 when it has, None if it never does.

        Known of callers that are our peers and have a `timeout_s`.  Calls made from here inherit it.
        """
        return self._facts().remaining_s

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this call any more: its caller cancelled it, went away, or its time is up.

        A servant that works for long asks now and then, and stops.  Calls that it waits for are cancelled
        with it, and a coroutine is, without asking.
        """
        return self._facts().cancelled

    @property
    def caller(self) -> Principal | None:
        """Who calls; None where the server does not ask, and where it calls itself, as with timers.

        A call that a servant makes is one of its server: the object called sees that as its caller, and not
        the client for which it is made.
        """
        return self._facts().principal

    @property
    def client_address(self) -> Any:
        """Socket address of the caller, None for a Unix socket."""
        return self._facts().caller.address

    @property
    def session(self) -> str:
        """The client session, for what a servant wants to keep per client."""
        return self._facts().caller.session

    def set_timer(
        self,
        name: str,
        method: str,
        /,
        *args: Any,
        after_s: float | None = None,
        every_s: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Have `method(*args, **kwargs)` of this object called in `after_s` seconds, and then `every_s`.

        Without `every_s` it is called once; without `after_s` the first time is in `every_s`.  It replaces
        the object's timer of the same name.  It is stored with what this call changes, also if the call
        raises, and lost with it.  Then it outlives the server: each firing takes effect once, as a call in
        the object's turn.  The method may be any of the object's class, exposed or not, but no generator.

        For Persistent objects, in calls that are not `@readonly`: elsewhere RuntimeError.  AttributeError and
        TypeError if there is no such method, or it cannot be called like this; StateError if an argument
        cannot be stored; ServerBusy if the object has too many timers.
        """
        self._facts().own_timers(True).set(name, method, args, kwargs, after_s, every_s)

    def cancel_timer(self, name: str) -> bool:
        """The timer of that name does not fire any more; whether there was one.  As `set_timer` otherwise."""
        return self._facts().own_timers(True).cancel(name)

    def timers(self) -> dict[str, float]:
        """When the timers of this object are due, by name, in seconds since 1970.  Also in `@readonly` calls.

        Inside of a periodic timer's own call it is due next time already, and one that fires once is gone.
        """
        return self._facts().own_timers(False).due()


current = Current()
