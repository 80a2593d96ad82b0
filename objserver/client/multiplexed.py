"""A connection that carries many calls at once, on an event loop: replies come in any order.

What is sent in one turn of the loop leaves in one piece.  A call that its caller gives up is cancelled at
the server, and its number stays taken until the reply comes.  A server of ours may call back on the same
connection: such a call goes to the object adapter of this process, and its reply leaves like a request.

With a stock server the requests are sent ahead too, but it answers them one after the other, and cannot
cancel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from objserver import errors
from objserver.adapter import Answering, Invocation
from objserver.client.greeting import (
    HANDSHAKE_TIMEOUT_S,
    NOBODY,
    Greeted,
    Greeting,
    stream_id,
    too_large,
)
from objserver.client.sharing import ended, offered, settled
from objserver.codecs import Codec, Codecs, NativeCodec
from objserver.codecs.base import call_of
from objserver.invocation import Awaited
from objserver.logs import escaping
from objserver.machine import machine
from objserver.references import DAEMON_ID, Location
from objserver.security.exchange import NONCE_SIZE, Introduction
from objserver.security.tls import binding_of
from objserver.settings import Limits
from objserver.wire import (
    CallContext,
    CallTable,
    Flag,
    Frame,
    FrameParser,
    FrameType,
    Probe,
    encode_frame,
)
from objserver.wire import extension as wire_extension
from objserver.wire.buffers import Parts, parts_frame
from objserver.wire.frames import NO_CORRELATION, plain_frame, plain_start
from objserver.wire.scalars import SCALAR_FRAME_MAX, scalar_request
from objserver.wire.shared_memory import is_local

if TYPE_CHECKING:
    from objserver.client.home import Home

__all__ = ["IN_FLIGHT_MAX", "MultiplexedConnection"]

log = escaping(logging.getLogger("objserver.client"))

IN_FLIGHT_MAX = 500
"""Calls in flight on one connection; more wait here.  Half of what a server takes, for the mailbox of one
object holds no more than that either."""
CALLED_MAX = 1_000
"""Calls of the server under way on one connection; more are refused."""

_Future: Any = asyncio.Future  # what the loops of asyncio make; as a global, see `Connection.receive`
_RESULT = FrameType.RESULT
_ANSWERS = (FrameType.CONNECT_OK, FrameType.CONNECT_FAIL, FrameType.PROOF)
"""... to the greeting."""


class _Request(Awaited):
    """A call that a coroutine awaits; it is cancelled with that, and not by calling this."""

    __slots__ = ("_connection", "_sequence")

    def __init__(self, connection: MultiplexedConnection, sequence: int) -> None:
        self._connection = connection
        self._sequence = sequence

    def ask(self, question: bytes) -> None:
        self._connection.ask(self._sequence, question)


class MultiplexedConnection(asyncio.Protocol, Answering):
    """A connected and greeted socket of an event loop.  Its methods belong to that loop's thread, except
    `send`, `now` and what else a caller of invocations has."""

    greeted: Greeted
    native: bool
    oneway: Collection[str]
    """Members of the object that give no answer."""
    codec: Codec
    is_new = False
    _start: bytes
    _takes_scalars = False

    def __init__(self, greeting: Greeting, codecs: Codecs, home: Home, limits: Limits) -> None:
        self.greeting = greeting
        self.location: Location = greeting.location
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.calls: CallTable[asyncio.Future[Frame]] = CallTable()
        self._codecs = codecs
        self._home = home
        self._parser = FrameParser(limits)
        self._payload_max = limits.frame_size_max
        self._tracebacks = True
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Frame] = self.loop.create_future()
        self._out: list[bytes] = []
        self._together = greeting.tls is None
        """Frames may leave in one piece.  A stock server that multiplexes does not see that TLS has decrypted
        more than one, so each gets a record of its own, as long as it is not known to be one of ours."""
        self._writable = True
        self._waiting: deque[Callable[[], None]] = deque()
        """What goes on when there is room, in the order in which it came."""
        self._called: dict[int, Invocation] = {}
        self.when_closed: Callable[[], None] | None = None
        self._leaving = False

    @classmethod
    async def open(
        cls, greeting: Greeting, *, codecs: Codecs, home: Home, timeout_s: float | None, limits: Limits
    ) -> Self:
        """Connect and greet; ConnectFailed, ObjectNotFound or ProtocolError."""
        self = cls(greeting, codecs, home, limits)
        location, loop = greeting.location, self.loop
        encrypted: dict[str, Any] = {}
        if greeting.tls is not None:
            encrypted = {
                "ssl": greeting.tls.usable_context(),
                "server_hostname": greeting.server_name,
                "ssl_handshake_timeout": HANDSHAKE_TIMEOUT_S,
            }
        limit_s = HANDSHAKE_TIMEOUT_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                if location.client:
                    raise OSError(
                        "an object of a client has no AsyncProxy; call its Proxy, from a coroutine with "
                        "`await asyncio.to_thread(...)`"
                    )
                if location.path:
                    await loop.create_unix_connection(lambda: self, location.path, **encrypted)
                else:
                    await loop.create_connection(lambda: self, location.host, location.port, **encrypted)
        except TimeoutError:
            raise errors.ConnectFailed(f"cannot connect to {location} in {timeout_s} s") from None
        except OSError as problem:
            if getattr(problem, "library", None) == "SSL":
                raise greeting.not_encrypted(problem) from None
            reason = problem.strerror or problem
            if problem.errno and not isinstance(problem, socket.gaierror):
                reason = os.strerror(problem.errno)  # asyncio words it with the address, which is said
            raise errors.ConnectFailed(f"cannot connect to {location}: {reason}") from None
        try:
            assert self._transport is not None
            self._memory = offered(greeting, self._transport.get_extra_info("socket"))
            introduction = self._introduction()
            self.write(greeting.frame(codecs, self._memory, introduction))
            async with asyncio.timeout(limit_s):
                greeted = greeting.answered(await self._answer, codecs, introduction)
                if isinstance(greeted, bytes):
                    self._answer = loop.create_future()
                    self.write(greeted)
                    greeted = greeting.answered(await self._answer, codecs, introduction)
            assert isinstance(greeted, Greeted)
            self.greeted = greeted
            self._memory = settled(self._memory, self.greeted, self._parser)
        except BaseException as problem:
            self.close()
            if isinstance(problem, TimeoutError):
                raise greeting.unanswered(limit_s) from None
            if getattr(problem.__cause__ or problem, "library", None) == "SSL":
                raise greeting.not_encrypted(problem.__cause__ or problem) from None
            if isinstance(problem, OSError) and not isinstance(problem, errors.ConnectFailed):
                raise errors.ConnectFailed(f"{location} closed the connection during the handshake") from None
            raise
        self.native, self.oneway = self.greeted.native, self.greeted.metadata.oneway
        self._together = self._together or self.native
        self.codec = self.greeted.codec
        self._start = plain_start(FrameType.INVOKE, self.codec.serializer_id)
        fit = self.greeted.frame_size_max >= SCALAR_FRAME_MAX
        self._takes_scalars = fit and isinstance(self.codec, NativeCodec)
        return self

    def _introduction(self) -> Introduction:
        """What is said of this client, on this connection."""
        credentials = self.greeting.credentials
        if credentials is None:
            return NOBODY
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        binding = binding_of(tls.getpeercert(True)) if tls is not None else b""
        confidential = bool(binding) or is_local(self._transport.get_extra_info("socket"))
        return Introduction(credentials, machine.get().random_bytes(NONCE_SIZE), binding, confidential)

    # -- calls ---------------------------------------------------------------------------------------

    def when_room(self, go: Callable[[], None]) -> None:
        """Have `go()` called on the loop when another call may be sent, in order; from any thread."""
        self.on_loop(partial(self._when_room, go))

    def on_loop(self, go: Callable[[], None]) -> None:
        """Have `go()` called on the loop: at once if it runs here."""
        if running_loop() is self.loop:
            go()
        else:
            self.loop.call_soon_threadsafe(go)

    def _when_room(self, go: Callable[[], None]) -> None:
        if self.has_room():
            go()
        else:
            self._waiting.append(go)

    def has_room(self) -> bool:
        """Whether another call may be sent now: not too many are in flight, nobody waits to send one, and the
        server reads.  Once closed it makes no difference."""
        return self.closed or (len(self.calls) < IN_FLIGHT_MAX and self._writable and not self._waiting)

    def request(
        self,
        codec: Codec,
        payload: Any,
        flags: int,
        annotations: Mapping[str, bytes] | None,
        correlation: bytes = NO_CORRELATION,
    ) -> tuple[int, asyncio.Future[Frame] | None]:
        """Send a request; its number, and what its reply will be in, or None for a oneway.

        ConnectFailed, MessageTooLarge: it was not sent.
        """
        if self.closed:
            raise errors.ConnectFailed(f"the connection to {self.location} is closed; nothing was sent")
        reply: asyncio.Future[Frame] | None = None
        sequence = 0
        if not flags & Flag.ONEWAY:
            reply = self.loop.create_future()
            sequence = self.calls.add(reply)
        if flags or annotations or correlation is not NO_CORRELATION or type(payload) is Parts:
            kind = FrameType.INVOKE
            request = kind, codec.serializer_id, flags, sequence, payload, annotations, correlation
            try:
                if type(payload) is Parts:
                    data = parts_frame(*request, self._memory, self.greeted.frame_size_max)
                else:
                    data = encode_frame(*request)
            except BaseException:
                if sequence:
                    self.calls.take(sequence)
                raise
        else:
            data = plain_frame(self._start, sequence, payload)
        if len(data) > self.greeted.frame_size_max:
            if sequence:
                self.calls.take(sequence)
            raise too_large(self.location, len(data), self.greeted.frame_size_max)
        self.write(data)
        return sequence, reply

    def request_with_scalars(
        self, object_id: str, method: str, args: Sequence[Any]
    ) -> tuple[int, asyncio.Future[Frame]] | None:
        """As `request` of a call with `args` alone, in fewer steps.  None: they are no scalars, or there is
        no room; nothing was sent."""
        calls = self.calls
        entries = calls.entries
        if (
            not self._takes_scalars
            or self.closed
            or len(entries) >= IN_FLIGHT_MAX
            or self._waiting
            or not self._writable
        ):
            return None
        reply: asyncio.Future[Frame] = _Future(loop=self.loop)
        sequence = calls.add(reply)
        data = scalar_request(self._start, sequence, object_id, method, args)
        if data is None:
            del entries[sequence]
            return None
        out = self._out
        if not out:
            self.loop.call_soon(self._flush)
        out.append(data)
        return sequence, reply

    def give_up(self, sequence: int) -> None:
        """Nobody waits for this reply any more; our peers are told to stop."""
        if self.calls.abandon(sequence) and self.native and not self.closed:
            self.write(encode_frame(FrameType.CANCEL, self.codec.serializer_id, 0, sequence, b""))

    def ask(self, sequence: int, question: bytes) -> None:
        """Ask the server what this call waits for; from any thread."""

        def send() -> None:
            if not self.closed:
                self.write(encode_frame(FrameType.PROBE, self.codec.serializer_id, 0, sequence, question))

        if self.native:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(send)

    async def call(
        self,
        codec: Codec,
        payload: bytes,
        flags: int,
        annotations: Mapping[str, bytes] | None,
        correlation: bytes,
        timeout_s: float | None,
        awaits: Callable[[Awaited], None] | None = None,
    ) -> Frame | None:
        """One request and its reply, or None for a oneway.  CallTimeout and ConnectionLost: outcome
        unknown.  `awaits` is told when it has been sent."""
        request = codec, payload, flags, annotations, correlation
        sent: asyncio.Future[tuple[int, asyncio.Future[Frame] | None]] = self.loop.create_future()
        try:
            if timeout_s is None:
                return await self._call(request, sent, awaits)
            async with asyncio.timeout(timeout_s):
                return await self._call(request, sent, awaits)
        except BaseException as problem:
            if sent.done() and not sent.cancelled() and sent.exception() is None:
                self.give_up(sent.result()[0])
                what = f"no reply from {self.location} in {timeout_s} s; the call may still run there"
            else:
                what = (
                    f"in {timeout_s} s there was no place for the call among those in flight to "
                    f"{self.location}; it was not sent"
                )
            if isinstance(problem, TimeoutError) and not isinstance(problem, errors.ObjServerError):
                raise errors.CallTimeout(what) from None
            raise

    async def _call(
        self,
        request: tuple[Codec, bytes, int, Mapping[str, bytes] | None, bytes],
        sent: asyncio.Future[tuple[int, asyncio.Future[Frame] | None]],
        awaits: Callable[[Awaited], None] | None,
    ) -> Frame | None:
        """`sent` gets the number of the request, and what its reply will be in, when there is room for it."""

        def go() -> None:
            if not sent.done():
                try:
                    sent.set_result(self.request(*request))
                except BaseException as problem:
                    sent.set_exception(problem)

        self._when_room(go)
        sequence, reply = await sent
        if reply is None:
            return None
        if awaits is not None:
            awaits(_Request(self, sequence))
        return await reply

    def close_stream(self, stream_id: str) -> None:
        """Tell the server that no more items of a stream are wanted."""
        if not self.closed:
            payload = self.codec.encode_call(DAEMON_ID, "close_stream", (stream_id,), {})
            self.request(self.codec, payload, Flag.ONEWAY, None)

    # -- writing -------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Have `data` sent at the end of this turn of the loop, in one piece with what else is to be sent."""
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self.closed:
            if len(out) > 1 and not self._together:
                for data in out:
                    self._transport.write(data)
            else:
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._make_room()

    def _make_room(self) -> None:
        waiting, calls = self._waiting, self.calls
        while waiting and (self.closed or (len(calls) < IN_FLIGHT_MAX and self._writable)):
            waiting.popleft()()

    # -- reading -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _open.add(self)

    def leave_to_parent(self) -> None:
        """This process is a fork: the connection is its parent's, and its event loop does not run here."""
        self.closed = True
        if self.when_closed is not None:
            self.when_closed()
        transport: Any = self._transport
        if transport is not None and self.greeting.tls is not None:
            transport = transport._ssl_protocol._transport
        if transport is not None and transport._sock is not None:
            transport._sock.close()  # nothing else must be touched: the loops share one epoll set

    def data_received(self, data: bytes) -> None:
        take = self.calls.entries.pop
        try:
            for frame in self._parser.receive_data(data):
                if frame.type == _RESULT:
                    reply = take(frame.sequence)
                    if reply is not None and not reply.done():
                        reply.set_result(frame)
                    elif frame.annotations.get("STRM"):
                        self.close_stream(stream_id(frame))  # nobody is left to do it
                else:
                    self._take(frame)
        except KeyError:
            # The server could not read a request, or it said something that nobody asked.
            self._fail(self._unasked(frame))
        except errors.ProtocolError as problem:
            self._fail(problem)
        if self._waiting:
            self._make_room()
        if self._leaving:
            self._leave()

    def _take(self, frame: Frame) -> None:
        if frame.type in _ANSWERS and not self._answer.done():
            self._answer.set_result(frame)
        elif frame.type == FrameType.INVOKE:
            self._be_called(frame)
        elif frame.type == FrameType.CANCEL:
            invocation = self._called.get(frame.sequence)
            if invocation is not None:
                self._home.adapter.cancel(invocation)
        elif frame.type == FrameType.PROBE:
            invocation = self._called.get(frame.sequence)
            if invocation is not None:
                self._home.adapter.waits.asked(invocation, Probe.decode(frame.payload))
        elif frame.type == FrameType.GOODBYE:
            self._fail(
                errors.ConnectFailed(
                    f"the server at {self.location} stopped before it began this call; nothing was done"
                )
            )
        else:
            raise errors.ProtocolError(f"{self.location} sent a frame of type {frame.type}")

    def _unasked(self, frame: Frame) -> BaseException:
        if frame.flags & Flag.EXCEPTION:
            try:
                value = self._codecs.get(frame.serializer_id).decode(frame.payload)
            except errors.ProtocolError as problem:
                value = problem
            if isinstance(value, Exception) and not isinstance(value, StopIteration):  # futures take no such
                return value
        return errors.ProtocolError(f"{self.location} answered request {frame.sequence}, which was not made")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, problem: Exception | None) -> None:
        reason = f": {problem}" if problem else ""
        lost = errors.ConnectionLost(f"the connection to {self.location} broke before the reply came{reason}")
        if getattr(problem, "library", None) == "SSL":
            lost.__cause__ = problem  # during the handshake it is the reason: no certificate was shown
        self._fail(lost)

    def close(self) -> None:
        """Close the socket.  Safe to call twice."""
        problem = errors.ConnectionLost(f"the connection to {self.location} was closed on this side")
        problem.deliberate = True
        self._fail(problem)

    def close_when_idle(self) -> None:
        """Nothing new will be called here: close when all that is in flight has its reply.

        From any thread.
        """
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._leaving = True
        if not self.calls and not self._waiting and not self._called:
            self.close()

    def _fail(self, problem: BaseException) -> None:
        if self.closed:
            return
        if self._out:
            self._flush()  # what was said before, a oneway above all, is still sent
        self.closed = True
        if self._transport is not None:
            self._transport.close()
        ended(self._memory)
        for reply in [*self.calls.clear(), self._answer]:
            if not reply.done():
                reply.set_exception(problem)
                reply.exception()  # seen: nobody may be left to ask for it
        self._make_room()
        for invocation in list(self._called.values()):
            self._home.adapter.cancel(invocation)
        self._home.disconnected(self)
        if self.when_closed is not None:
            self.when_closed()
            self.when_closed = None

    # -- being called: the connection is the caller of its invocations -------------------------------

    session_is_connection = True

    @property
    def address(self) -> Any:
        return str(self.location)

    @property
    def session(self) -> str:
        return f"server:{self.location}"

    @property
    def holder(self) -> str:
        return f"server:{self.location}"

    @property
    def link(self) -> object:
        return self

    def now(self) -> float:
        return time.monotonic()

    def about_to_block(self, location: Location | None = None) -> None:
        """Nobody waits for a place here."""

    def no_longer_blocked(self) -> None:
        """See `about_to_block`."""

    def pyro5_context(self, invocation: Invocation) -> dict[str, Any]:
        return {"client_sock_addr": self.address, "annotations": invocation.annotations}

    def _be_called(self, frame: Frame) -> None:
        codec = self._codecs.native
        try:
            object_id, method, args, kwargs = codec.decode_call(frame.payload)
            batch = [call_of(("", *call))[1:] for call in args] if frame.flags & Flag.BATCH else None
        except (errors.ProtocolError, TypeError) as problem:
            object_id, method, args, kwargs, batch = "", "", (), {}, None
            refused: BaseException | None = problem
        else:
            refused = None
        invocation = Invocation(self, object_id, method, args, kwargs, (codec, frame))
        invocation.oneway = bool(frame.flags & Flag.ONEWAY)
        invocation.batch = batch
        if frame.correlation is not NO_CORRELATION:
            invocation._correlation = frame.correlation
        annotations = dict(frame.annotations)
        if wire_extension.ANNOTATION in annotations:
            context = CallContext.decode(annotations.pop(wire_extension.ANNOTATION))
            invocation.chain = context.chain
            if context.remaining_s is not None:
                invocation.deadline = self.now() + context.remaining_s
        invocation.annotations = annotations
        if len(self._called) >= CALLED_MAX:
            refused = errors.ServerBusy(f"{CALLED_MAX} calls of this client's objects are under way")
        if refused is not None:
            if not invocation.oneway:
                self.write(self.encode_error(invocation, refused))
            return
        if not invocation.oneway:
            self._called[frame.sequence] = invocation
        self._home.call(invocation)

    def send(self, reply: bytes) -> None:
        """Send the reply to an invocation; from any thread."""
        try:
            self.loop.call_soon_threadsafe(self._reply, reply)
        except RuntimeError:
            pass  # the loop has ended, and the connection with it

    def _reply(self, reply: bytes) -> None:
        self._called.pop(int.from_bytes(reply[10:12], "big"), None)
        if not self.closed:
            self.write(reply)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_open: weakref.WeakSet[MultiplexedConnection] = weakref.WeakSet()


def _in_a_new_process() -> None:
    """A fork must not answer in its parent's name, nor keep the parent's connections from ending with it."""
    for connection in list(_open):
        connection.leave_to_parent()


os.register_at_fork(after_in_child=_in_a_new_process)
