"""`AsyncProxy`: a remote object for programs that run on asyncio.

    account = AsyncProxy("PYRO:Account/alice@localhost:9091")
    await account.deposit(5)
    balance = await account.balance
    async for entry in account.entries(): ...

All calls go over one connection and are answered in any order, so a thousand tasks may call at once.  A task
that is cancelled cancels its call at the server.  A proxy belongs to the event loop that first uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
import warnings
from collections import deque
from collections.abc import AsyncIterator, Generator, Mapping
from functools import partial
from time import monotonic
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar, Unpack, cast

from objserver import errors
from objserver.client.attempts import Attempts
from objserver.client.background import multiplex
from objserver.client.greeting import stream_id
from objserver.client.multiplexed import MultiplexedConnection
from objserver.client.pool import ConnectionPool
from objserver.client.promises import FutureFace
from objserver.client.proxy import Batch, Proxy, ProxyOptions
from objserver.client.replies import ends_connection, raised
from objserver.client.stub import Stub
from objserver.codecs import Codec, NativeCodec
from objserver.invocation import Awaited, Call, CallId, in_progress, intercepted
from objserver.references import DAEMON_ID, Reference
from objserver.wire import Flag, Frame
from objserver.wire.frames import NO_CORRELATION
from objserver.wire.scalars import scalar_in

__all__ = ["AsyncItemStream", "AsyncProxy", "connect_async"]

T = TypeVar("T")

_facts, _running_loop = in_progress.get, asyncio.get_running_loop  # as globals: see `Connection.receive`
_OURS_ID = NativeCodec.serializer_id

AHEAD = 16
"""Items of a stream that are asked for before they are wanted, so that the network's time passes
meanwhile."""


class AsyncProxy:
    """A remote object, called with `await`.

    `reference` is a Reference, a URI or a Proxy; keyword arguments are those of `Proxy`.  `proxy.name(...)`
    is to be awaited, or iterated with `async for` if it gives a stream; `await proxy.name` reads an
    attribute, `await proxy.set("name", value)` sets it.  A name that begins with an underscore is never
    remote; the names of this class hide remote members, which `await proxy.invoke(name, ...)` reaches.
    """

    _objserver_is_proxy = True
    _objserver_reference: Reference
    _objserver_stub: Stub

    def __init__(self, reference: Reference | str | Proxy, **options: Unpack[ProxyOptions]) -> None:
        given: Any = None
        if isinstance(reference, Proxy):
            given = reference._objserver_stub.pool
            reference = reference._objserver_reference
        proxy = Proxy(reference, **options)
        pool = cast(ConnectionPool, proxy._objserver_stub.pool)
        pool.asynchronous = True
        if given is not None:
            pool.lease = given.lease
        if isinstance(given, ConnectionPool):
            pool.begin_lease, pool.rule = given.begin_lease, given.rule
            pool.marks = given.marks  # it shows nothing, but may be stored
        self.__dict__.update(
            _objserver_reference=proxy._objserver_reference, _objserver_stub=proxy._objserver_stub
        )

    def __getattr__(self, name: str) -> _Member:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private and so never remote")
        member = self.__dict__[name] = _Member(self._objserver_stub, name)
        return member

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f'setting takes the network: write `await proxy.set("{name}", ...)`')

    def __repr__(self) -> str:
        return f"<AsyncProxy {self._objserver_reference}>"

    def __str__(self) -> str:
        return str(self._objserver_reference)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncProxy) and other._objserver_reference == self._objserver_reference

    def __hash__(self) -> int:
        return hash(self._objserver_reference)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    # -- names of our own ----------------------------------------------------------------------------

    @property
    def future(self) -> FutureFace:
        """`proxy.future.method(...)` sends the call at once and returns a `Promise`, which can be awaited."""
        return FutureFace(self._objserver_stub)

    async def set(self, name: str, value: Any) -> None:
        """Set the remote attribute `name`."""
        await _invoke(self._objserver_stub, "__setattr__", (name, value), {})

    async def invoke(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call `method`, whatever its name."""
        return await _call(self._objserver_stub, method, args, kwargs)

    async def outcome(self, call: CallId) -> Any:
        """What became of a call to this object; see `Proxy.outcome`."""
        stub = self._objserver_stub
        if stub.pool.metadata is None:
            await _connection(stub)
        return await _again(stub, "<outcome>", (), {}, 0, stub.annotations, stub.asking(call))

    async def release(self) -> None:
        """Close the connection; the session of this proxy ends, unless it was given one by name."""
        stub = self._objserver_stub
        pool = cast(ConnectionPool, stub.pool)
        connection = pool.live
        here = connection is not None and connection.loop is asyncio.get_running_loop()
        if connection is not None and here and connection.native and not pool.session_is_shared:
            with contextlib.suppress(errors.CommunicationError):
                payload = connection.codec.encode_call(DAEMON_ID, "release_session", (), {})
                connection.request(connection.codec, payload, Flag.ONEWAY, None)
        stub.release()
        await asyncio.sleep(0)  # the connection closes in the next turn of the loop

    def calling(
        self,
        *,
        timeout_s: float | EllipsisType | None = ...,
        annotations: Mapping[str, bytes] | None = None,
        correlation_id: uuid.UUID | None = None,
    ) -> Self:
        """A view of this proxy whose calls differ as said; see `Proxy.calling`."""
        view = object.__new__(type(self))
        view.__dict__.update(
            _objserver_reference=self._objserver_reference,
            _objserver_stub=self._objserver_stub.calling(timeout_s, annotations, correlation_id),
        )
        return view

    def batch(self) -> AsyncBatch:
        """Collect calls and send them in one frame: `async with proxy.batch() as batch: ...`."""
        return AsyncBatch(self._objserver_stub)


class AsyncBatch(Batch):
    """As `Batch`; leaving its `async with` block sends, and `results()` has what came back."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        calls = self._taken()
        if kind is None and calls:
            self._values = await _invoke(self._stub, "<batch>", calls, {}, Flag.BATCH) or []


class _Member:
    """`proxy.name`: to be called, or to be awaited if it is an attribute."""

    __slots__ = ("_name", "_stub")

    def __init__(self, stub: Stub, name: str) -> None:
        self._stub = stub
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> _AsyncCall:
        return _NewCall(self._stub, self._name, args, kwargs)

    def __await__(self) -> Generator[Any, None, Any]:
        return _invoke(self._stub, "__getattr__", (self._name,), {}).__await__()

    def __repr__(self) -> str:
        return f"<remote member {self._name} of {self._stub.pool.reference}>"


class _AsyncCall:
    """A call that is made when it is awaited, or iterated, once.

    It has what a coroutine has, so `asyncio.create_task` and its like take it, and it warns as one does if it
    is thrown away.  As long as it can be, it is a `_NewCall`.
    """

    __slots__ = ("_call", "_steps")
    _steps: Generator[Any, Any, Any]

    def __init__(self, stub: Stub, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call = stub, method, args, kwargs  # in one: `__getattr__` makes each access slow

    def __repr__(self) -> str:
        return f"<call of {self.__name__}>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self!r} has no result yet, so there is no {name!r}: await it first, or see `future`", name=name
        )

    @property
    def __name__(self) -> str:
        stub, method, _, _ = self._call
        return f"{stub.pool.object_id}.{method}"

    def send(self, value: Any) -> Any:
        """As of a coroutine; so are `throw` and `close`."""
        if type(self) is _NewCall:
            self._steps = self.__await__()
        return self._steps.send(value)

    def throw(self, *problem: Any) -> Any:
        self._begin()
        return self._steps.throw(*problem)

    def close(self) -> None:
        self._begin()
        self._steps.close()

    def _begin(self) -> None:
        if type(self) is _NewCall:
            self._steps = self.__await__()
            self.__class__ = _AsyncCall  # type: ignore[assignment]

    def __await__(self) -> Generator[Any, None, Any]:
        if type(self) is not _NewCall:
            raise RuntimeError(f"{self!r} has been awaited already; to call again, write the call again")
        self.__class__ = _AsyncCall  # type: ignore[assignment]
        # What nearly all calls are goes without a coroutine: each costs more than the work it does.
        stub, method, args, kwargs = self._call
        pool = stub.pool
        connection = pool.live
        if (
            connection is None
            or stub.timeout_s is not None
            or stub.interceptors
            or stub.annotations
            or stub.correlation is not NO_CORRELATION
            or _facts() is not None
            or pool.exactly_once
            or connection.loop is not _running_loop()
            or method in connection.oneway
        ):
            return (yield from _call(stub, method, args, kwargs).__await__())
        codec, begun = connection.codec, monotonic()
        sent = None if kwargs else connection.request_with_scalars(pool.object_id, method, args)
        if sent is None:
            if not connection.has_room():
                return (yield from _call(stub, method, args, kwargs).__await__())
            try:
                payload = codec.encode_call(pool.object_id, method, args, kwargs)
            except errors.ProtocolError:  # the long way says whose argument it is, and knows blobs
                return (yield from _call(stub, method, args, kwargs).__await__())
            sent = cast(tuple[int, "asyncio.Future[Frame]"], connection.request(codec, payload, 0, None))
        sequence, reply = sent
        try:
            frame = yield from reply
        except (errors.OutcomeUnknown, errors.ConnectFailed) as problem:
            about = _about(stub, method, problem)
            if about.deliberate:
                raise about from None
            attempts = stub.attempts(method, begun)
            again = _again(stub, method, args, kwargs, 0, None, attempts, about)
            return (yield from again.__await__())
        except BaseException:
            connection.give_up(sequence)
            raise
        if not (frame.flags or frame.annotations):
            value = scalar_in(frame.payload) if frame.serializer_id == _OURS_ID else ...
            return value if value is not ... else codec.decode(frame.payload)
        try:
            return _unusual(stub, connection, codec, frame)
        except errors.Unsettled as problem:
            attempts = stub.attempts(method, begun)
            again = _again(stub, method, args, kwargs, 0, None, attempts, problem)
            return (yield from again.__await__())

    async def __aiter__(self) -> AsyncIterator[Any]:
        result = await self
        if not isinstance(result, AsyncItemStream):
            for item in result:
                yield item
            return
        try:
            async for item in result:
                yield item
        finally:
            result.close()


class _NewCall(_AsyncCall):
    """One that has not been awaited."""

    __slots__ = ()

    def __del__(self) -> None:
        warnings.warn(f"{self!r} was never awaited, so it was not made", RuntimeWarning, 2, self)


async def _connection(stub: Stub) -> MultiplexedConnection:
    pool = cast(ConnectionPool, stub.pool)
    connection = pool.live
    if connection is not None and connection.loop is asyncio.get_running_loop():
        if pool.asks_now():
            _ask_for_entries(pool, connection)
        return connection
    return await multiplex(pool, stub.timeout_s)


def _ask_for_entries(pool: ConnectionPool, connection: MultiplexedConnection) -> None:
    """Nobody waits for the answer."""
    codec = connection.codec
    payload = codec.encode_call(DAEMON_ID, "get_entries", (), {})
    with contextlib.suppress(errors.CommunicationError):
        _, reply = connection.request(codec, payload, 0, None)
        assert reply is not None
        reply.add_done_callback(partial(_answered, pool, codec))


def _answered(pool: ConnectionPool, codec: Codec, reply: asyncio.Future[Frame]) -> None:
    if not reply.cancelled() and reply.exception() is None and not reply.result().flags & Flag.EXCEPTION:
        pool.told(codec.decode(reply.result().payload))


async def _call(stub: Stub, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    metadata = stub.pool.metadata or (await _connection(stub)).greeted.metadata
    flags = Flag.ONEWAY if method in metadata.oneway else 0
    return await _invoke(stub, method, args, kwargs, flags)


async def _invoke(stub: Stub, method: str, args: Any, kwargs: dict[str, Any], flags: int = 0) -> Any:
    """Make one call and return its result, or raise what it raised."""
    if not stub.interceptors:
        return await _request(stub, method, args, kwargs, flags, stub.annotations)
    call = Call(stub.pool.object_id, method, tuple(args), dict(kwargs), dict(stub.annotations or {}))
    with intercepted(stub.interceptors, call):
        return await _request(stub, method, args, kwargs, flags, call.annotations)


async def _request(
    stub: Stub,
    method: str,
    args: Any,
    kwargs: dict[str, Any],
    flags: int,
    annotations: Mapping[str, bytes] | None,
) -> Any:
    """As `_attempt`; made again where that cannot do twice what was meant once: see `attempts`."""
    begun = monotonic()
    attempts: Attempts | None = None
    facts = in_progress.get()
    try:
        if stub.pool.metadata is None:
            await _connection(stub)
        numbered = stub.pool.exactly_once or (facts is not None and facts.call is not None)
        if not (numbered and stub.counts(method, flags)):
            return await _attempt(stub, method, args, kwargs, flags, annotations, None)
        problem: BaseException | None = None
    except errors.Unsettled as first:
        problem = first
    except (errors.OutcomeUnknown, errors.ConnectFailed) as first:
        if stub.pool.metadata is None or first.deliberate:
            raise  # of who was never reached, it may be the address that is wrong
        problem = first
    try:
        attempts = stub.attempts(method, begun)
    except errors.ObjServerError:
        if problem is not None:
            raise problem from None  # there is no time left, or nobody waits
        raise
    return await _again(stub, method, args, kwargs, flags, annotations, attempts, problem)


async def _again(
    stub: Stub,
    method: str,
    args: Any,
    kwargs: dict[str, Any],
    flags: int,
    annotations: Mapping[str, bytes] | None,
    attempts: Attempts,
    problem: BaseException | None = None,
) -> Any:
    """Make the call, after `problem` if there is one, until it has an outcome or no attempt is left."""
    try:
        while True:
            if isinstance(problem, errors.SessionExpired) and stub.may_introduce(attempts):
                assert attempts.id is not None
                facts = in_progress.get()
                try:
                    await _open_session(stub, attempts.id.client, facts is not None and facts.is_of_object)
                except errors.Moved as elsewhere:
                    problem, attempts.session_opened = elsewhere, False
                    continue
            elif problem is not None:
                pause_s = attempts.pause(problem, monotonic())
                if isinstance(problem, errors.Moved):
                    cast(ConnectionPool, stub.pool).moved(problem)
                await asyncio.sleep(pause_s)
            attempts.answered = attempts.refused = False
            view = stub.calling(attempts.left(monotonic()), None, None)
            try:
                value = await _attempt(view, method, args, kwargs, flags, annotations, attempts)
            except errors.ObjServerError as again:
                problem = again
            else:
                if view.response_annotations:
                    stub.response_annotations = view.response_annotations
                return value
    finally:
        attempts.over()


async def _open_session(stub: Stub, client: bytes, forever: bool = False) -> None:
    """Have the server remember the calls of `client`."""
    connection = await _connection(stub)
    codec = connection.codec
    payload = codec.encode_call(DAEMON_ID, "open_session", (client, forever), {})
    reply = await connection.call(codec, payload, 0, None, NO_CORRELATION, stub.time_left())
    assert reply is not None
    stub.value_of(codec, reply)


async def _attempt(
    stub: Stub,
    method: str,
    args: Any,
    kwargs: dict[str, Any],
    flags: int,
    annotations: Mapping[str, bytes] | None,
    attempts: Attempts | None,
) -> Any:
    connection = await _connection(stub)
    if attempts is not None:
        stub.number(attempts, method, flags, in_progress.get())
        client = stub.stranger(attempts)
        if client is not None:
            facts = in_progress.get()
            await _open_session(stub, client, facts is not None and facts.is_of_object)
            stub.introduced(attempts)
            connection = await _connection(stub)
    codec, payload, flags, annotations, correlation = stub.request(
        connection, method, args, kwargs, flags, annotations, attempts
    )
    facts = in_progress.get()
    if facts is not None and flags & Flag.ONEWAY and facts.defers and type(payload) is bytes:
        facts.send_later(str(stub.pool.reference), method, payload)
        return None
    awaited: Awaited | None = None

    def awaits(call: Awaited) -> None:
        nonlocal awaited
        awaited = call
        if facts is not None:
            facts.when_cancelled(call)

    # A servant that has a task of its own make the call may go on without it: it does not wait for it.
    waits = facts is not None and facts.task is asyncio.current_task()
    request = codec, payload, flags, annotations, correlation, stub.time_left()
    try:
        reply = await connection.call(*request, awaits if waits else None)
    except (errors.OutcomeUnknown, errors.ConnectFailed) as problem:
        raise _about(stub, method, problem) from None
    finally:
        if facts is not None and awaited is not None:
            facts.forget(awaited)
    if reply is None:
        return None
    if attempts is not None:
        attempts.answered, attempts.refused = True, bool(reply.flags & Flag.REFUSED)
    return _unusual(stub, connection, codec, reply)


def _about(stub: Stub, method: str, problem: errors.CommunicationError) -> errors.CommunicationError:
    """The same error for one call: an error of the connection may end many, so it is not changed."""
    about = type(problem)(f"{stub.pool.object_id}.{method}: {problem}")
    about.deliberate = problem.deliberate
    return about


def _unusual(stub: Stub, connection: MultiplexedConnection, codec: Codec, reply: Frame) -> Any:
    if reply.flags & Flag.ITEM_STREAM:
        return AsyncItemStream(stub, connection, stream_id(reply))
    try:
        return stub.value_of(codec, reply)
    except Exception as problem:
        if not connection.native and reply.flags & Flag.EXCEPTION and ends_connection(problem, native=False):
            connection.close()
        raise


class AsyncItemStream:
    """A remote iterator.  Some items are asked for ahead, no more than `AHEAD`.

    It ends with its last item, with `close()`, with its `async with` block, or when nobody has it any more.
    """

    def __init__(self, stub: Stub, connection: MultiplexedConnection, stream_id: str) -> None:
        self._stub = stub
        self._connection = connection
        self._ahead: deque[tuple[int, asyncio.Future[Frame]]] = deque()
        self._ended = False
        self.stream_id = stream_id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        connection, ahead = self._connection, self._ahead
        codec = connection.codec
        payload = codec.encode_call(DAEMON_ID, "get_next_stream_item", (self.stream_id,), {})
        try:
            while len(ahead) < AHEAD and connection.has_room():
                sequence, reply = connection.request(codec, payload, 0, None)
                ahead.append((sequence, cast("asyncio.Future[Frame]", reply)))
            if ahead:
                _, reply = ahead.popleft()
                async with asyncio.timeout(self._stub.timeout_s):
                    frame = await reply
            else:
                answer = await connection.call(codec, payload, 0, None, NO_CORRELATION, self._stub.timeout_s)
                frame = cast(Frame, answer)
        except BaseException as problem:
            self.close()
            if isinstance(problem, TimeoutError) and not isinstance(problem, errors.ObjServerError):
                raise errors.CallTimeout(f"no item of a stream came in {self._stub.timeout_s} s") from None
            raise
        if not frame.flags & Flag.EXCEPTION:
            return codec.decode(frame.payload)
        error = raised(codec.decode(frame.payload))
        if isinstance(error, StopIteration):
            self._ended = True
            self._forget_ahead()
            raise StopAsyncIteration
        self.close()  # an item that could not be sent does not end the iterator
        raise error

    def _forget_ahead(self) -> None:
        for sequence, _ in self._ahead:
            self._connection.calls.abandon(sequence)
        self._ahead.clear()

    def close(self) -> None:
        """Tell the server that no more items are wanted.  Safe to call twice."""
        if self._ended:
            return
        self._ended = True
        self._forget_ahead()
        self._connection.close_stream(self.stream_id)

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._ended and not self._connection.closed:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._connection.loop.call_soon_threadsafe(
                    _close_stream, self._connection, self.stream_id, [s for s, _ in self._ahead]
                )


def _close_stream(connection: MultiplexedConnection, stream_id: str, ahead: list[int]) -> None:
    for sequence in ahead:
        connection.calls.abandon(sequence)
    connection.close_stream(stream_id)


def connect_async(reference: Reference | str, cls: type[T], **options: Unpack[ProxyOptions]) -> T:
    """The asynchronous proxy of an object, typed as `cls`, a class of `async def` members such as
    `objserver stubs` writes.  Options as for Proxy."""
    proxy = AsyncProxy(reference, **options)
    cast(ConnectionPool, proxy._objserver_stub.pool).types.add_signatures(cls)
    return cast(T, proxy)
