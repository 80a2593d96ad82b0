"""What is under way on a connection that carries more than one request after the other.

A peer of ours may send a request before it has the reply to the one before, cancel one, and refer in one to
the results of others.  It may also be called, on the connection that it made.  A conversation keeps account
of that:

    calls       requests in flight, by number, so that they can be cancelled
    kept        results of requests that had flag KEEP, for a while
    postponed   requests that refer to results which are not there yet
    outgoing    calls of servants to the peer's objects, which wait for its replies

Every request that is not oneway gets exactly one reply, cancelled or not: until then its number is taken.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from objserver import errors
from objserver.adapter import Invocation, not_begun
from objserver.codecs import Codec
from objserver.codecs.base import proxy_reference
from objserver.invocation import Awaited
from objserver.logs import escaping
from objserver.references import Location
from objserver.wire import CallTable, Flag, Frame, FrameParser, FrameType, Probe, Promises, encode_frame
from objserver.wire import extension as wire_extension

if TYPE_CHECKING:
    from objserver.server.connection import Connection

__all__ = ["Conversation", "PendingReply"]

log = escaping(logging.getLogger("objserver.server"))

KEEP_S = 30.0
"""How long a result is kept: a request that refers to it was sent before the peer had the reply."""


class PendingReply:
    """The caller of one invocation that is accounted for; the connection does the work.

    What is kept of an outcome are the bytes that the peer got: a request that refers to it is given what the
    peer itself would have sent, never a part of the servant that made it.
    """

    __slots__ = (
        "_codec",
        "_conversation",
        "_reply",
        "connection",
        "elsewhere",
        "failed",
        "keep",
        "postponed",
        "sequence",
    )

    def __init__(self, conversation: Conversation, sequence: int, keep: int) -> None:
        self._conversation = conversation
        self.connection = conversation.connection
        self.sequence = sequence
        self.keep = keep
        self.postponed: _Postponed | None = None
        """What the request waits for, as long as it does."""
        if keep:
            self.failed = False
            self.elsewhere = False
            """It was not made: the object that it calls is not here, and the client must go on by itself."""
            self._codec: Any = None
            self._reply = b""

    def outcome(self) -> Any:
        """What the kept reply carries: the result, or the exception if it has `failed`."""
        return self._codec.decode(self._payload())

    def _payload(self) -> Any:
        parser = FrameParser(self.connection.server.settings.limits)
        parser.parts_in = self.connection.server.codecs.parts.serializer_id
        (frame,) = parser.receive_data(self._reply)
        return frame.payload

    def encode_failed(self, invocation: Invocation, other: PendingReply) -> bytes:
        """The reply to `invocation`, which refers to `other`, that has failed: the same error."""
        codec, request = invocation.reply_to
        self.elsewhere = other.elsewhere
        annotations = {wire_extension.PROMISES: b""} if self.elsewhere else None
        if other._codec is not codec:
            invocation.response_annotations.update(annotations or {})
            return self.encode_error(invocation, other.outcome())
        kind, payload = FrameType.RESULT, other._payload()
        return self._kept(
            invocation,
            encode_frame(
                kind,
                codec.serializer_id,
                Flag.EXCEPTION,
                request.sequence,
                payload,
                annotations,
                request.correlation,
            ),
            failed=True,
        )

    def _kept(self, invocation: Invocation, reply: bytes, *, failed: bool) -> bytes:
        if self.keep:
            self._codec, self._reply, self.failed = invocation.reply_to[0], reply, failed
        return reply

    @property
    def address(self) -> Any:
        return self.connection.address

    @property
    def session(self) -> str:
        return self.connection.session

    @property
    def session_is_connection(self) -> bool:
        return self.connection.session_is_connection

    @property
    def holder(self) -> str:
        return self.connection.holder

    @property
    def closed(self) -> bool:
        return self.connection.closed

    @property
    def link(self) -> object:
        return self.connection

    def now(self) -> float:
        return self.connection.now()

    def about_to_block(self, location: Location | None = None) -> None:
        self.connection.about_to_block(location)

    def no_longer_blocked(self) -> None:
        self.connection.no_longer_blocked()

    def encode_result(self, invocation: Invocation, value: Any) -> bytes:
        reply = self.connection.encode_result(invocation, value)
        return self._kept(invocation, reply, failed=False) if self.keep else reply

    def encode_again(self, invocation: Invocation, reply: bytes) -> bytes:
        again = self.connection.encode_again(invocation, reply)
        return self._kept(invocation, again, failed=bool(int.from_bytes(again[8:10], "big") & Flag.EXCEPTION))

    def encode_error(self, invocation: Invocation, error: BaseException) -> bytes:
        return self._kept(invocation, self.connection.encode_error(invocation, error), failed=True)

    def encode_stream(self, invocation: Invocation, stream_id: str) -> bytes:
        problem = errors.SerializeError(
            f"the result of {invocation.object_id}.{invocation.method} is a stream of items, which no other "
            "call can take"
        )
        self.encode_error(invocation, problem)
        return self.connection.encode_stream(invocation, stream_id)

    def pyro5_context(self, invocation: Invocation) -> dict[str, Any]:
        return self.connection.pyro5_context(invocation)

    def send(self, reply: bytes) -> None:
        # Told before the reply leaves: the peer may use the number again as soon as it has the reply.
        self._conversation.settled(self, len(reply))
        self.connection.send(reply)


class _SimpleReply(PendingReply):
    """The caller of all requests of a conversation that wait for nothing, and whose results are not kept."""

    __slots__ = ("encode_result",)

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation, 0, 0)
        self.encode_result = self.connection.encode_result  # type: ignore[method-assign]

    def send(self, reply: bytes) -> None:
        # As of any PendingReply; the number is in the reply.
        self._conversation._calls.pop(reply[10] << 8 | reply[11], None)
        self.connection.send(reply)


class _Postponed:
    """A request that waits for results; `missing` are the numbers of their requests."""

    __slots__ = ("invocation", "missing", "promises", "values")

    def __init__(self, invocation: Invocation, promises: Promises) -> None:
        self.invocation = invocation
        self.promises = promises
        self.missing = promises.sequences
        self.values: dict[int, PendingReply] = {}


class _Callback(Awaited):
    """A call to an object of the peer, which a servant here waits for."""

    __slots__ = ("_conversation", "_sequence")

    def __init__(self, conversation: Conversation, sequence: int) -> None:
        self._conversation = conversation
        self._sequence = sequence

    def __call__(self) -> None:
        self._conversation._send_cancel(self._sequence)

    def ask(self, question: bytes) -> None:
        self._conversation.ask(self._sequence, question)


class Conversation:
    """See the module's essay.  Every method may be called from any thread."""

    takes_scalars = False
    """As a connection to the peer's objects; see `ClientConnection`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._settings = connection.server.settings
        self._calls_max = self._settings.calls_per_connection_max
        self._lock = threading.Lock()
        self._calls: dict[int, Invocation] = {}
        self._kept: OrderedDict[int, tuple[PendingReply, int, float]] = OrderedDict()
        self._kept_size = 0
        self._postponed: dict[int, dict[_Postponed, None]] = {}
        """By the request that is waited for, who waits, in order."""
        self._oneways = 0
        """Of these, how many are oneway, and so not among `_calls`."""
        self._outgoing: CallTable[Future[Frame]] = CallTable()
        self._codec: Codec | None = None
        """For calls to a client who is known."""
        self._simple = _SimpleReply(self)

    # -- requests ------------------------------------------------------------------------------------

    def begin(self, invocation: Invocation, frame: Frame) -> None:
        """Account for a request from now until its reply; ServerBusy if too many are in flight."""
        # Without the lock: only the reader of the connection adds to `_calls`, and a dict bears the rest.
        sequence = frame.sequence
        if len(self._calls) >= self._calls_max:
            raise errors.ServerBusy(
                f"{len(self._calls)} calls of this connection are in flight "
                "(setting calls_per_connection_max)"
            )
        if sequence in self._calls:
            raise errors.ProtocolError(f"request {sequence} is in flight already")
        if sequence in self._kept:
            with self._lock:
                self._forget_result(sequence)
        if frame.flags or frame.annotations:
            invocation.caller = PendingReply(self, sequence, frame.flags & Flag.KEEP)
        else:
            invocation.caller = self._simple
        self._calls[sequence] = invocation

    def postpone(self, invocation: Invocation, promises: Promises) -> None:
        """Have a request go on when the results that it refers to are there."""
        if invocation.batch is not None:
            raise errors.ProtocolError("a batch cannot refer to results of other requests")
        postponed = _Postponed(invocation, promises)
        with self._lock:
            if invocation.oneway and self._oneways >= self._calls_max:
                raise errors.ServerBusy(
                    f"{self._oneways} oneway calls of this connection wait for results "
                    "(setting calls_per_connection_max)"
                )
            for sequence in list(postponed.missing):
                if sequence in self._kept:
                    postponed.missing.discard(sequence)
                    postponed.values[sequence] = self._kept[sequence][0]
                elif not self._will_be_kept(sequence, invocation):
                    raise errors.ProtocolError(
                        f"the result of request {sequence} is not kept here any more "
                        "(settings kept_results_max, kept_results_memory_max); await it, and send it yourself"
                    )
            for sequence in postponed.missing:
                self._postponed.setdefault(sequence, {})[postponed] = None
            self._oneways += invocation.oneway
            ready = not postponed.missing
            if not ready and isinstance(invocation.caller, PendingReply):
                invocation.caller.postponed = postponed
        if ready:
            self._submit(postponed)

    def settled(self, pending: PendingReply, size: int) -> None:
        """A reply of `size` bytes is about to be sent; what waited for its result goes on."""
        sequence = pending.sequence
        if not pending.keep:
            self._calls.pop(sequence, None)
            return
        ready = []
        with self._lock:
            self._calls.pop(sequence, None)
            if self.connection.closed:
                return
            now = self.connection.now()
            self._forget_result(sequence)
            self._kept[sequence] = pending, size, now + KEEP_S
            self._kept_size += size
            self.connection.server.keeping[self] = None
            self._forget_surplus(now)
            for postponed in self._postponed.pop(sequence, ()):
                postponed.missing.discard(sequence)
                postponed.values[sequence] = pending
                if not postponed.missing:
                    ready.append(postponed)
                    if isinstance(postponed.invocation.caller, PendingReply):
                        postponed.invocation.caller.postponed = None
        for postponed in ready:
            self._submit(postponed)

    def _submit(self, postponed: _Postponed) -> None:
        # Work of its own: results are decoded, and an error that is passed on settles others in turn.
        self.connection.server.engine.submit(partial(self._go_on, postponed))

    def _go_on(self, postponed: _Postponed) -> None:
        """Give a request what it waited for, and have it run; an error is its answer at once."""
        invocation, caller = postponed.invocation, postponed.invocation.caller
        if invocation.oneway:
            with self._lock:
                self._oneways -= 1
        failed = next((p for p in postponed.values.values() if p.failed), None)
        reply = None
        try:
            if invocation.is_cancelled:
                raise not_begun(invocation)
            if failed is None:
                self._fill_in(postponed)
                self.connection.brought(invocation)
            elif isinstance(caller, PendingReply):
                reply = caller.encode_failed(invocation, failed)
            else:
                raise failed.outcome()
        except BaseException as problem:
            if invocation.oneway:
                log.warning("oneway %s.%s failed: %s", invocation.object_id, invocation.method, problem)
                return
            reply = caller.encode_error(invocation, problem)
        if reply is not None:
            caller.send(reply)
        elif self.connection.server.adapter.admit(invocation):
            self.connection.server.adapter.run(invocation)

    def _will_be_kept(self, sequence: int, other: Invocation) -> bool:
        invocation = self._calls.get(sequence)
        caller = invocation.caller if invocation is not None else None
        return invocation is not other and isinstance(caller, PendingReply) and bool(caller.keep)

    def cancel(self, sequence: int) -> None:
        """The peer wants no result of this request any more.  Late and unknown ones are passed over."""
        with self._lock:
            invocation = self._calls.get(sequence)
            if invocation is None:
                return
            assert isinstance(invocation.caller, PendingReply)
            postponed, invocation.caller.postponed = invocation.caller.postponed, None
            if postponed is not None:
                for missing in postponed.missing:
                    del self._postponed[missing][postponed]
        if postponed is not None:
            invocation.cancel()
            invocation.caller.send(invocation.caller.encode_error(invocation, not_begun(invocation)))
        else:
            self.connection.server.adapter.cancel(invocation)

    def asked(self, sequence: int, probe: Probe) -> None:
        """The peer asks what this request of its own waits for."""
        invocation = self._calls.get(sequence)
        if invocation is not None:
            self.connection.server.adapter.waits.asked(invocation, probe)

    def _fill_in(self, postponed: _Postponed) -> None:
        """Put the results where the request wants them; raises what made one of them fail."""
        invocation, promises = postponed.invocation, postponed.promises
        args, kwargs = list(invocation.args), dict(invocation.kwargs)
        for place, sequence in promises.args.items():
            value = postponed.values[sequence].outcome()
            if isinstance(place, str):
                kwargs[place] = value
            elif 0 <= place < len(args):
                args[place] = value
            else:
                raise errors.ProtocolError(f"the request has no argument {place}")
        invocation.args, invocation.kwargs = args, kwargs
        if promises.target is not None:
            target = postponed.values[promises.target].outcome()
            invocation.object_id = self._object_id(target, invocation)

    def _object_id(self, target: Any, invocation: Invocation) -> str:
        server = self.connection.server
        object_id = server.adapter.reference_id(target)
        reference = proxy_reference(target)
        if object_id is None and reference is not None and server.is_here(reference):
            object_id = reference.object_id
        if object_id is None:
            if reference is not None and isinstance(invocation.caller, PendingReply):
                invocation.caller.elsewhere = True
                invocation.response_annotations[wire_extension.PROMISES] = b""
            raise errors.MemberNotFound(
                f"cannot call {invocation.method!r} on the result of another call: it is a "
                f"{type(target).__name__}, and not an object that is served here"
            )
        return object_id

    def _forget_result(self, sequence: int) -> None:
        kept = self._kept.pop(sequence, None)
        if kept is not None:
            self._kept_size -= kept[1]

    def _forget_surplus(self, now: float) -> None:
        while self._kept and (
            len(self._kept) > self._settings.kept_results_max
            or self._kept_size > self._settings.kept_results_memory_max
            or next(iter(self._kept.values()))[2] <= now
        ):
            self._forget_result(next(iter(self._kept)))

    def housekeeping(self, now: float) -> None:
        """Forget results that were kept long enough."""
        with self._lock:
            self._forget_surplus(now)
            if not self._kept:
                self.connection.server.keeping.pop(self, None)

    def statistics(self) -> dict[str, int]:
        """What is under way."""
        return {
            "calls_in_flight": len(self._calls),
            "kept_results": len(self._kept),
            "callbacks_waiting": len(self._outgoing),
        }

    @property
    def waits(self) -> bool:
        """Whether a servant here waits for a reply of the peer."""
        return bool(self._outgoing)

    # -- calls to the peer: the same face as a client's connection -----------------------------------

    native = True
    is_new = False
    last_used = 0.0
    handshake: Any = None

    @property
    def is_open(self) -> bool:
        return not self.connection.closed

    @property
    def codec(self) -> Codec:
        connection = self.connection
        if connection.principal is None:
            return connection.server.codecs.native
        if self._codec is None:
            self._codec = connection.server.codecs_with(connection, in_calls=False).native
        return self._codec

    def call(
        self,
        codec: Codec,
        payload: bytes,
        flags: int,
        annotations: Mapping[str, bytes] | None,
        correlation: bytes,
        timeout_s: float | None,
        cancellable: Callable[[Callable[[], None]], None] | None = None,
    ) -> Frame | None:
        """Send a request to the peer; return its reply, or None for a oneway.

        ConnectionLost if the peer goes away meanwhile, CallTimeout; ConnectFailed if it is gone already.
        """
        connection = self.connection
        if not flags & Flag.ONEWAY and connection.server.engine.nobody_else_works:
            raise errors.Deadlock(
                "an iterative server (workers=1) cannot wait for an object of its client: its one worker is "
                "who would read the reply; make the call oneway, or have more workers"
            )
        reply: Future[Frame] = Future()
        with self._lock:
            if connection.closed:
                raise errors.ConnectFailed(
                    f"the client {connection.address} is gone: its object is not called"
                )
            if flags & Flag.ONEWAY:
                sequence = 0
            elif len(self._outgoing) >= self._settings.callbacks_per_connection_max:
                raise errors.ServerBusy(
                    f"{len(self._outgoing)} calls to objects of {connection.address} wait for their replies "
                    "(setting callbacks_per_connection_max)"
                )
            else:
                sequence = self._outgoing.add(reply)
        if sequence:
            connection.keep_reading()
        try:
            connection.send(
                encode_frame(
                    FrameType.INVOKE, codec.serializer_id, flags, sequence, payload, annotations, correlation
                )
            )
        except BaseException:  # the name of an annotation, for one: nothing was sent
            with self._lock, contextlib.suppress(KeyError):
                self._outgoing.take(sequence)
            raise
        if flags & Flag.ONEWAY:
            return None
        if cancellable is not None:
            cancellable(_Callback(self, sequence))
        try:
            return reply.result(timeout_s)
        except TimeoutError:
            self._give_up(sequence)
            raise errors.CallTimeout(
                f"no reply from the client {connection.address} in {timeout_s} s; it may still be at it"
            ) from None
        except BaseException:
            self._give_up(sequence)
            raise

    def answered(self, frame: Frame) -> None:
        """The reply to a call of ours."""
        with self._lock:
            try:
                reply = self._outgoing.take(frame.sequence)
            except KeyError:
                raise errors.ProtocolError(
                    f"a reply to request {frame.sequence}, which was not made"
                ) from None
        if reply is not None:
            reply.set_result(frame)

    def _give_up(self, sequence: int) -> None:
        with self._lock:
            waiting = self._outgoing.abandon(sequence)
        if waiting:
            self._send_cancel(sequence)

    def _send_cancel(self, sequence: int) -> None:
        self.connection.send(encode_frame(FrameType.CANCEL, self.codec.serializer_id, 0, sequence, b""))

    def ask(self, sequence: int, question: bytes) -> None:
        """Ask the peer what this call to it waits for."""
        self.connection.send(encode_frame(FrameType.PROBE, self.codec.serializer_id, 0, sequence, question))

    def disconnected(self) -> None:
        """The connection is gone: nobody waits for what it had under way."""
        with self._lock:
            calls = list(self._calls.values())
            self._calls.clear()
            self._postponed.clear()
            self._kept.clear()
            self._kept_size = 0
            self.connection.server.keeping.pop(self, None)
            outgoing = self._outgoing.clear()
        for reply in outgoing:
            reply.set_exception(
                errors.ConnectionLost(f"the client {self.connection.address} went away before its reply came")
            )
        for invocation in calls:
            self.connection.server.adapter.cancel(invocation)
