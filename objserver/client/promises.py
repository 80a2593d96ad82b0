"""Promises: results that have not come yet, and can be used already.

`proxy.future.method(...)` sends the call and returns at once.  The promise is a Future to wait for.  It is
also something to go on with: a method called on it is sent to the object that the result will be, and as an
argument of another call it stands for the result, both without waiting.  The server puts the results in, so
a chain of calls takes one round trip.  That needs both calls on the same connection, which those of one
proxy are, and one of our servers; else the later call simply waits for the earlier one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

from objserver import errors
from objserver.client.attempts import MOVES_MAX
from objserver.client.background import multiplex
from objserver.client.greeting import stream_id
from objserver.client.home import home
from objserver.client.multiplexed import MultiplexedConnection, running_loop
from objserver.client.pool import ConnectionPool, LinkPool
from objserver.client.stub import Stub
from objserver.codecs import Codec
from objserver.invocation import Awaited, Call, in_progress, intercepted
from objserver.wire import Flag, Frame, Promises
from objserver.wire import extension as wire_extension

__all__ = ["FutureFace", "Promise"]


class Promise(concurrent.futures.Future[Any]):
    """The result of a call that may still be on its way.

    `result()`, `exception()`, `add_done_callback()` and so on are those of a Future of concurrent.futures; it
    can be awaited too.  `cancel()` cancels the call at the server.  Any other name is a member of the result.
    """

    _connection: MultiplexedConnection | None = None
    _sequence = 0
    """Of its request on that connection; 0 before it is sent."""
    _again: Callable[[], None] | None = None
    """Makes the call with results that this side has waited for."""
    _resend: Callable[[], None] | None = None
    """Makes the call once more, where the object is now."""
    _moves = 0

    def __init__(self, stub: Stub, what: str) -> None:
        super().__init__()
        self._stub = stub
        self._what = what

    def __repr__(self) -> str:
        return f"<Promise of {self._what} {self._state.lower()}>"

    def __getattr__(self, name: str) -> Callable[..., Promise]:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private and so never remote")

        def call(*args: Any, **kwargs: Any) -> Promise:
            return send(self._stub, name, args, kwargs, target=self)

        return call

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result, for at most `timeout` seconds (TimeoutError), and return it or raise."""
        if self.done():
            return super().result(timeout)
        if self._connection is not None and self._connection.loop is running_loop():
            raise RuntimeError(
                f"waiting for {self._what} here would stop the event loop that gets it: await it"
            )
        facts = in_progress.get()
        if facts is None:
            return super().result(timeout)
        waiting = _Waiting(self)
        facts.caller.about_to_block()
        facts.when_cancelled(waiting)
        try:
            return super().result(timeout)
        finally:
            facts.forget(waiting)
            facts.caller.no_longer_blocked()

    def cancel(self) -> bool:
        """Cancel the call; False if its result has come already."""
        cancelled = super().cancel()
        connection = self._connection
        if cancelled and connection is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                connection.loop.call_soon_threadsafe(self._give_up)
        return cancelled

    def _give_up(self) -> None:
        if self._connection is not None and self._sequence:
            self._connection.give_up(self._sequence)

    def _fail(self, problem: BaseException) -> None:
        if not self.done():
            try:
                self.set_exception(problem)
            except concurrent.futures.InvalidStateError:
                pass  # cancelled in the meantime

    def _settle(self, codec: Codec, reply: asyncio.Future[Frame]) -> None:
        """The reply has come, or never will; on the loop."""
        try:
            frame = reply.result()
            if frame.flags & Flag.ITEM_STREAM and self._connection is not None:
                self._connection.close_stream(stream_id(frame))
            again, self._again = self._again, None
            if self.done():
                return
            if again is not None and wire_extension.PROMISES in frame.annotations:
                self._connection, self._sequence = None, 0
                again()
                return
            value = self._stub.value_of(codec, frame)
        except BaseException as problem:
            if not (isinstance(problem, errors.Moved) and self._follow_object(problem)):
                self._fail(problem)
            return
        try:
            self.set_result(value)
        except concurrent.futures.InvalidStateError:
            pass  # cancelled in the meantime


    def _follow_object(self, problem: errors.Moved) -> bool:
        """Make the call where the object is; False if it is sent from one server to the next and the next."""
        resend, pool = self._resend, self._stub.pool
        if resend is None or isinstance(pool, LinkPool) or self._moves >= MOVES_MAX:
            return False
        self._moves += 1
        self._connection, self._sequence = None, 0
        pool.moved(problem)
        resend()
        return True


class _Waiting(Awaited):
    """A servant waits for a promise, which is cancelled with it anyway."""

    __slots__ = ("_promise",)

    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    def ask(self, question: bytes) -> None:
        connection, sequence = self._promise._connection, self._promise._sequence
        if connection is not None and sequence:
            connection.ask(sequence, question)


class FutureFace:
    """What `proxy.future` is: its methods send a call and return a `Promise` of the result."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub

    def __getattr__(self, name: str) -> Callable[..., Promise]:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private and so never remote")

        def call(*args: Any, **kwargs: Any) -> Promise:
            return send(self._stub, name, args, kwargs)

        return call


def send(
    stub: Stub, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], target: Promise | None = None
) -> Promise:
    """Send a call, to `target` if that is given, and return the promise of its result."""
    promise = Promise(
        stub, f"{stub.pool.object_id}.{method}" if target is None else f"{target._what}.{method}"
    )
    facts = in_progress.get()
    if facts is not None:
        tell = promise.cancel  # the same each time: it is found again by identity
        facts.when_cancelled(tell)
        promise.add_done_callback(lambda _: facts.forget(tell))
    try:
        _send(promise, method, args, kwargs, target)
    except BaseException as problem:
        promise._fail(problem)
        raise
    return promise


def _send(
    promise: Promise, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], target: Promise | None
) -> None:
    stub = promise._stub
    connection = _connection_of(stub)
    if connection is None:
        _send_when_connected(promise, method, args, kwargs, target)
        return
    later = _later(connection, args, kwargs, target)
    if later:
        _send_after(later, promise, method, args, kwargs, target)
        return
    everything: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    places = {place: value for place, value in everything if isinstance(value, Promise)}
    oneway = target is None and method in connection.greeted.metadata.oneway
    call = Call(stub.pool.object_id, method, tuple(args), dict(kwargs), dict(stub.annotations or {}))
    with intercepted(stub.interceptors, call):
        codec, payload, flags, annotations, correlation = stub.request(
            connection,
            method,
            [None if isinstance(value, Promise) else value for value in args],
            {name: value for name, value in kwargs.items() if not isinstance(value, Promise)},
            Flag.ONEWAY if oneway else 0,
            call.annotations,
        )
    if connection.native and not flags & Flag.ONEWAY:
        flags |= Flag.KEEP
    promise._connection = connection
    promise._resend = partial(_send, promise, method, args, kwargs, target)

    def go() -> None:
        """On the loop, where the numbers of the calls before are known."""
        if promise.cancelled():
            return
        try:
            beside = dict(annotations or {})
            if promise._moves:
                beside[wire_extension.MOVED] = b""
            if target is not None or places:
                used = [p for p in (target, *places.values()) if p is not None]
                unsent = [p for p in used if not p._sequence]
                if unsent:  # it failed before it was sent, or is made once more elsewhere
                    promise._connection = None
                    _send_after(unsent, promise, method, args, kwargs, target)
                    return
                promises = Promises(
                    target._sequence if target is not None else None,
                    {place: value._sequence for place, value in places.items()},
                )
                beside[wire_extension.PROMISES] = promises.encode()
                promise._again = lambda: _send_after(used, promise, method, args, kwargs, target)
            promise._sequence, reply = connection.request(codec, payload, flags, beside or None, correlation)
            if reply is None:
                promise.set_result(None)
            else:
                reply.add_done_callback(lambda reply: promise._settle(codec, reply))
        except BaseException as problem:
            promise._fail(problem)

    if stub.timeout_s is not None:
        connection.on_loop(partial(_limit, promise, connection.loop, stub.timeout_s))
    connection.when_room(go)


def _connection_of(stub: Stub) -> MultiplexedConnection | None:
    """The connection for calls that nobody waits for; None if it has to be awaited."""
    pool = stub.pool
    if isinstance(pool, LinkPool):
        raise errors.CommunicationError(
            f"{pool.object_id} is an object of a client: call it, or oneway; it has no futures"
        )
    connection = pool.live
    if connection is None and not pool.asynchronous and running_loop() is not home.loop:
        connection = home.run(multiplex(pool, stub.timeout_s))
    return connection


def _send_when_connected(
    promise: Promise,
    method: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    target: Promise | None,
) -> None:
    """The first call of an AsyncProxy, or one that goes on on the loop: the connection is made on the
    loop that runs here."""
    pool = promise._stub.pool
    assert isinstance(pool, ConnectionPool)
    connecting = asyncio.get_running_loop().create_task(multiplex(pool, promise._stub.timeout_s))

    def go_on(done: asyncio.Future[MultiplexedConnection]) -> None:
        try:
            done.result()
            following = send(promise._stub, method, args, kwargs, target)
        except BaseException as problem:
            promise._fail(problem)
        else:
            _follow(following, promise)

    connecting.add_done_callback(go_on)


def _limit(promise: Promise, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
    timer = loop.call_later(timeout_s, _time_out, promise, timeout_s)
    promise.add_done_callback(lambda _: timer.cancel())


def _time_out(promise: Promise, timeout_s: float) -> None:
    promise._fail(errors.CallTimeout(f"{promise._what}: no reply in {timeout_s} s; the call may still run"))
    promise._give_up()


def _later(
    connection: MultiplexedConnection,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    target: Promise | None,
) -> list[Promise]:
    """Promises whose results this side has to wait for, or has: the server cannot put them in."""
    used = [p for p in (target, *args, *kwargs.values()) if isinstance(p, Promise)]
    # What is called by a reference that came from a client has to be known: it is asked about first.
    lent = target is not None and getattr(target._stub.pool, "home", None) is not None
    return [
        p
        for p in used
        if p.done() or p._connection is not connection or not connection.native or (lent and p is target)
    ]


def _send_after(
    awaited: list[Promise],
    promise: Promise,
    method: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    target: Promise | None,
) -> None:
    """Send the call when the results it needs are there."""
    first = awaited[0]

    def go_on(done: concurrent.futures.Future[Any]) -> None:
        try:
            value = done.result()
            if done is target:
                face = _face_of(value, method)
                following = face(*args, **kwargs)
            else:
                following = send(
                    promise._stub,
                    method,
                    [value if other is done else other for other in args],
                    {name: value if other is done else other for name, other in kwargs.items()},
                    target,
                )
        except BaseException as problem:
            promise._fail(problem)
            return
        _follow(following, promise)

    # What a servant's invocation gives to the calls it makes, a deadline above all, this one gets too.
    context = contextvars.copy_context()
    first.add_done_callback(lambda done: context.run(go_on, done))


def _face_of(value: Any, method: str) -> Callable[..., Promise]:
    face = getattr(value, "future", None) if getattr(type(value), "_objserver_is_proxy", False) else None
    if face is None:
        raise errors.MemberNotFound(
            f"cannot call {method!r} on the result of another call: it is of type "
            f"{type(value).__name__}, and not a remote object"
        )
    member: Callable[..., Promise] = getattr(face, method)
    return member


def _follow(following: Promise, promise: Promise) -> None:
    following.add_done_callback(lambda _: _copy(following, promise))
    promise.add_done_callback(lambda _: following.cancel() if promise.cancelled() else None)


def _copy(source: concurrent.futures.Future[Any], target: Promise) -> None:
    if target.done():
        return
    try:
        target.set_result(source.result())
    except concurrent.futures.InvalidStateError:
        pass
    except BaseException as problem:
        target._fail(problem)
