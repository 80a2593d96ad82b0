"""The stub: what a proxy calls through.

A proxy is a face; its stub makes the calls, on connections from its pool.  A call that fails puts its
connection back too, unless the failure has closed it, and is made again where that does no harm
(`attempts`).
"""

from __future__ import annotations

import contextlib
import marshal
import math
import uuid
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, cast

from objserver import errors, pyro5
from objserver.client.attempts import LEFT_MIN_S, Attempts
from objserver.client.books import book_of, introduced, is_introduced
from objserver.client.connection import ClientConnection
from objserver.client.greeting import Metadata, stream_id
from objserver.client.nested import ask_daemon, call_inside, inherit, rest, time_left, with_context
from objserver.client.pool import IDLE_CONNECTIONS_MAX, ConnectionPool, LinkPool
from objserver.client.replies import ends_connection, raised
from objserver.client.streams import ItemStream
from objserver.codecs import Codec
from objserver.invocation import Call, CallId, Facts, Interceptor, in_progress, intercepted
from objserver.machine import machine
from objserver.references import DAEMON_ID
from objserver.wire import Flag, Frame
from objserver.wire.extension import MOVED
from objserver.wire.frames import NO_CORRELATION

if TYPE_CHECKING:
    from objserver.client.multiplexed import MultiplexedConnection

__all__ = ["Stub", "checked"]

_facts = in_progress.get  # as a global: reading an attribute takes longer
_ONEWAY, _EXCEPTION, _ITEM_STREAM = Flag.ONEWAY, Flag.EXCEPTION, Flag.ITEM_STREAM

Request = tuple[Codec, bytes, int, Mapping[str, bytes] | None, bytes]
"""Codec, payload, flags, annotations and correlation id of a request."""


def checked(timeout_s: float | None) -> float | None:
    """`timeout_s`, if it is one."""
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s={timeout_s}: give a positive time, or None to wait for ever")
    return timeout_s


class Stub:
    """How to call one object.  Safe to share among threads; `response_annotations` are the last reply's."""

    def __init__(
        self,
        pool: ConnectionPool | LinkPool,
        timeout_s: float | None,
        annotations: Mapping[str, bytes] | None = None,
        correlation: bytes = NO_CORRELATION,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self.interceptors = tuple(interceptors)
        self.pool = pool
        self.timeout_s = timeout_s
        self.annotations = annotations
        self.correlation = correlation
        self.response_annotations: dict[str, bytes] = {}

    def metadata(self) -> Metadata:
        """What the object offers; connects if nothing is known yet."""
        pool = self.pool
        if pool.metadata is None:
            pool.learn(self.timeout_s)
        return cast(Metadata, pool.metadata)

    def invoke(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        flags: int = 0,
        *,
        call: Call | None = None,
        attempts: Attempts | None = None,
    ) -> Any:
        """Make one call and return its result, or raise what it raised.

        It is made again, within its time, if that cannot do twice what was meant once: see `attempts`, which
        with `call` is for itself only.
        """
        pool = self.pool
        timeout_s, annotations, correlation = self.timeout_s, self.annotations, self.correlation
        if self.interceptors:
            if call is None:
                call = Call(pool.object_id, method, tuple(args), dict(kwargs), dict(annotations or {}))
                with intercepted(self.interceptors, call):
                    return self.invoke(method, args, kwargs, flags, call=call)
            annotations = call.annotations
        facts = _facts()
        try:
            connection = pool.take(timeout_s)
        except errors.ConnectFailed as problem:
            if attempts is not None or timeout_s is None or pool.metadata is None:
                raise  # of who was never reached, it may be the address that is wrong
            began = machine.get().monotonic() - problem.after_s
            return self._after(problem, method, args, kwargs, flags, call, began)
        if timeout_s is not None and attempts is None and connection.is_new:
            connection.is_new = False
            pool.put(connection)  # to make it took a part of the time
            return self._again(
                method, args, kwargs, flags, call, self.attempts(method, connection.last_used)
            )
        id, acked = None, 0
        if attempts is None:
            if (pool.exactly_once or (facts is not None and facts.call is not None)) and self.counts(
                method, flags
            ):
                return self._once(connection, method, args, kwargs, flags, annotations, call)
        else:
            try:
                id, acked = self.number(attempts, method, flags, facts)
            except BaseException:
                pool.put(connection)
                raise
            client = self.stranger(attempts)
            if client is not None:
                pool.put(connection)
                here = machine.get()
                stub = self.calling(attempts.left(here.monotonic()), None, None)
                stub.open_session(client, facts is not None and facts.is_of_object)
                self.introduced(attempts)
                connection = pool.take(attempts.left(here.monotonic()))
            try:
                timeout_s = attempts.left(machine.get().monotonic())
            except BaseException:
                pool.put(connection)
                raise
            if attempts.moved:
                annotations = {MOVED: b"", **(annotations or {})}
        codec = connection.codec
        begun = connection.last_used
        reply: Any = ...
        try:
            if (
                facts is None
                and timeout_s is None
                and attempts is None
                and connection.takes_scalars
                and correlation is NO_CORRELATION
                and not (kwargs or flags or annotations)
            ):
                reply = connection.call_with_scalars(pool.object_id, method, args)
                if reply is not ... and type(reply) is not Frame:
                    idle = pool.idle
                    if len(idle) < IDLE_CONNECTIONS_MAX:  # as put would, without a call
                        idle.append(connection)
                    else:
                        connection.close()
                    return reply
            if reply is ...:
                codec, reply = self._ask(
                    connection, method, args, kwargs, flags, annotations, facts, attempts, id, acked
                )
        except BaseException as problem:
            pool.put_if_open(connection)
            if not isinstance(problem, (errors.OutcomeUnknown, errors.ConnectFailed)):
                raise
            problem.args = (f"{pool.object_id}.{method}: {problem}",)
            if attempts is not None:
                raise
            return self._after(problem, method, args, kwargs, flags, call, begun)
        if isinstance(reply, bytes):
            idle = pool.idle
            if len(idle) < IDLE_CONNECTIONS_MAX:  # as put would, without a call
                idle.append(connection)
            else:
                connection.close()
            return codec.decode(reply)
        if reply is None:
            pool.put(connection)
            return None
        if attempts is not None:
            attempts.answered, attempts.refused = True, bool(reply.flags & Flag.REFUSED)
        try:
            return self._unusual(connection, codec, reply)
        except errors.Unsettled as problem:
            if attempts is not None:
                raise
            return self._after(problem, method, args, kwargs, flags, call, begun)

    def _ask(
        self,
        connection: ClientConnection,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        flags: int,
        annotations: Mapping[str, bytes] | None,
        facts: Facts | None,
        attempts: Attempts | None,
        id: CallId | None,
        acked: int,
    ) -> tuple[Codec, Frame | bytes | None]:
        """One attempt at one call: its reply, and what that is encoded with."""
        pool, codec, timeout_s = self.pool, connection.codec, self.timeout_s
        payload: Any
        try:
            if attempts is None or attempts.payload is None:
                payload = codec.encode_call(pool.object_id, method, args, kwargs)
            else:
                payload = attempts.payload
        except errors.ProtocolError as problem:
            if len(args) != 1 or kwargs or not pyro5.is_blob(args[0]):
                problem.args = (f"an argument of {pool.object_id}.{method}: {problem}",)
                raise
            codec, payload, label = self.blob(connection, method, args[0])
            annotations = {**(annotations or {}), **label}
            flags |= Flag.KEEP_SERIALIZED
        if facts is None:
            if (timeout_s is not None or id is not None) and connection.native:
                asks = attempts is not None and attempts.asks
                annotations = with_context(annotations, timeout_s, (), id, acked, asks)
            return codec, connection.call(codec, payload, flags, annotations, self.correlation, timeout_s)
        if flags & Flag.ONEWAY and facts.defers and connection.native and type(payload) is bytes:
            facts.send_later(str(pool.reference), method, payload)
            return codec, None
        request = codec, payload, flags, annotations, self.correlation, timeout_s
        what = f"{pool.object_id}.{method}"
        return codec, call_inside(facts, what, connection, *request, id=id, acked=acked)

    def _once(
        self,
        connection: ClientConnection,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        flags: int,
        annotations: Mapping[str, bytes] | None,
        call: Call | None,
    ) -> Any:
        """A call that has an id.  What nearly always comes is made here: it is answered at once."""
        pool, codec, begun = self.pool, connection.codec, connection.last_used
        book = book_of(pool.store, pool.shown)
        payload: Any = None
        if book.opened and in_progress.get() is None:
            with contextlib.suppress(errors.ProtocolError):  # the long way says whose argument it is
                payload = codec.encode_call(pool.object_id, method, args, kwargs)
        if payload is None:
            pool.put(connection)
            return self._again(method, args, kwargs, flags, call, self.attempts(method, begun))
        id, acked = book.begin()
        reply: Frame | bytes | None = None
        attempts: Attempts | None = None
        try:
            annotations = with_context(annotations, self.timeout_s, (), id, acked)
            reply = connection.call(codec, payload, flags, annotations, self.correlation, self.timeout_s)
            if isinstance(reply, bytes):
                pool.put(connection)
                return codec.decode(reply)
            assert reply is not None
            return self._unusual(connection, codec, reply)
        except errors.ObjServerError as problem:
            if reply is None:
                pool.put_if_open(connection)
            attempts = self.attempts(method, begun)
            attempts.numbered(id, book)
            if isinstance(reply, Frame):
                attempts.answered, attempts.refused = True, bool(reply.flags & Flag.REFUSED)
            return self._again(method, args, kwargs, flags, call, attempts, problem)
        except BaseException:
            if reply is None:
                pool.put_if_open(connection)
            raise
        finally:
            if attempts is None:
                book.end(id)

    def _after(
        self,
        problem: BaseException,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        flags: int,
        call: Call | None,
        begun: float,
    ) -> Any:
        """Make the call again after its first attempt, if it may be."""
        if isinstance(self.pool, LinkPool):
            raise problem  # a client that is gone does not come back
        try:
            attempts = self.attempts(method, begun)
        except errors.ObjServerError:
            raise problem from None  # there is no time left, or nobody waits
        return self._again(method, args, kwargs, flags, call, attempts, problem)

    def _again(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        flags: int,
        call: Call | None,
        attempts: Attempts,
        problem: BaseException | None = None,
    ) -> Any:
        """Make the call, after `problem` if there is one, until it has an outcome or no attempt is left."""
        here = machine.get()
        try:
            while True:
                if isinstance(problem, errors.SessionExpired) and self.may_introduce(attempts):
                    assert attempts.id is not None
                    facts = in_progress.get()
                    try:
                        self.open_session(attempts.id.client, facts is not None and facts.is_of_object)
                    except errors.Moved as elsewhere:
                        problem, attempts.session_opened = elsewhere, False
                        continue
                elif problem is not None:
                    pause_s = attempts.pause(problem, here.monotonic())
                    if isinstance(problem, errors.Moved):
                        cast(ConnectionPool, self.pool).moved(problem)
                    if pause_s:
                        rest(pause_s)
                attempts.answered = attempts.refused = False
                stub = self.calling(attempts.left(here.monotonic()), None, None)
                try:
                    value = stub.invoke(method, args, kwargs, flags, call=call, attempts=attempts)
                except errors.ObjServerError as again:
                    problem = again
                else:
                    if stub.response_annotations:
                        self.response_annotations = stub.response_annotations
                    return value
        finally:
            attempts.over()

    def attempts(self, method: str, begun: float) -> Attempts:
        """The state of a call that may be made more than once; it began at `begun` on the monotonic clock."""
        what, metadata = f"{self.pool.object_id}.{method}", self.pool.metadata
        facts = in_progress.get()
        timeout_s = self.timeout_s if facts is None else time_left(facts, what, self.timeout_s)
        attempts = Attempts(what, timeout_s, begun, machine.get().uniform)
        attempts.repeatable = metadata is not None and method in metadata.repeatable
        return attempts

    def number(
        self, attempts: Attempts, method: str, flags: int, facts: Facts | None
    ) -> tuple[CallId | None, int]:
        """The id of the call that is about to be made, if it has one, and what its client acknowledges.

        The session of its book is open.
        """
        pool = self.pool
        nested = facts is not None and facts.call is not None
        if attempts.id is None:
            if not ((pool.exactly_once or nested) and self.counts(method, flags)):
                return None, 0
            if nested:
                assert facts is not None
                attempts.numbered(facts.next_call(), None)
                attempts.remembered = pool.exactly_once
            else:
                book = book_of(pool.store, pool.shown)
                attempts.numbered(book.begin()[0], book)
        elif attempts.book is not None and attempts.book.store != pool.store:
            raise attempts.lost(
                f"it was sent to a server with another store; the one at {pool.location} knows nothing of it"
            )
        assert attempts.id is not None
        acked = facts.acked if nested and facts is not None else attempts.acked
        return attempts.id, acked

    def counts(self, method: str, flags: int) -> bool:
        """Whether a call has to have an id, where calls can."""
        metadata = self.pool.metadata
        return not flags & Flag.ONEWAY and metadata is not None and method not in metadata.repeatable

    def stranger(self, attempts: Attempts) -> bytes | None:
        """The client of the call, if its session has to be opened before the call is made."""
        book, id = attempts.book, attempts.id
        if book is not None:
            return None if book.opened else book.client
        if id is None or attempts.asks or attempts.payload is not None or not self.pool.exactly_once:
            return None
        facts = in_progress.get()
        if facts is not None and facts.store == self.pool.store and not facts.is_of_object:
            return None  # whose own call is remembered there has a session there
        pool = self.pool
        return None if is_introduced(pool.store, pool.shown, id.client) else id.client

    def may_introduce(self, attempts: Attempts) -> bool:
        """Whether a server that does not know the client of a call can be told of it, once."""
        facts = in_progress.get()
        if facts is not None and facts.store == self.pool.store and not facts.is_of_object:
            return (
                False  # it knew it when the call began that makes this one, so it has forgotten what it did
            )
        return attempts.may_open_session()

    def introduced(self, attempts: Attempts) -> None:
        """The session of the call's client has been opened."""
        if attempts.book is not None:
            attempts.book.opened = True
        elif attempts.id is not None:
            introduced(self.pool.store, self.pool.shown, attempts.id.client)

    def open_session(self, client: bytes, forever: bool = False) -> None:
        """Have the server remember the calls of `client`."""
        here, timeout_s = machine.get(), self.timeout_s
        began = here.monotonic()
        connection = self.pool.take(timeout_s)
        if timeout_s is not None:
            timeout_s = max(timeout_s - (here.monotonic() - began), LEFT_MIN_S)
        try:
            ask_daemon(connection, "open_session", (client, forever), timeout_s)
        finally:
            self.pool.put_if_open(connection)

    def outcome(self, call: CallId) -> Any:
        """See `Proxy.outcome`."""
        self.metadata()
        return self._again("<outcome>", (), {}, 0, None, self.asking(call))

    def asking(self, call: CallId) -> Attempts:
        """For the question what became of `call`; the object is connected to."""
        if not isinstance(call, CallId):
            raise errors.ArgumentError(
                f"{call!r} names no call: only an OutcomeUnknown of a Persistent object has one to ask for"
            )
        if not self.pool.exactly_once:
            raise errors.ArgumentError(f"{self.pool.object_id} is not Persistent, so it remembers no calls")
        attempts = self.attempts("<outcome>", machine.get().monotonic())
        attempts.numbered(call, None)
        attempts.asks = True
        return attempts

    def pass_on(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        flags: int,
        call: CallId,
        acked: int,
        asks: bool,
    ) -> Any:
        """Make a call for another client, under its id; or ask what became of it."""
        attempts = self.attempts(method, machine.get().monotonic())
        attempts.numbered(call, None)
        attempts.acked_of_others, attempts.asks = acked, asks
        return self._again(method, args, kwargs, flags, None, attempts)

    def deliver(self, method: str, payload: bytes, call: CallId, acked: int) -> Any:
        """Make the call that `payload` encodes, under this id."""
        attempts = self.attempts(method, machine.get().monotonic())
        attempts.numbered(call, None)
        attempts.payload, attempts.acked_of_others = payload, acked
        return self._again(method, (), {}, 0, None, attempts)

    def blob(
        self, connection: ClientConnection | MultiplexedConnection, method: str, blob: object
    ) -> tuple[Codec, bytes, Mapping[str, bytes]]:
        """What carries Pyro5's SerializedBlob: a payload that is not opened, in a serializer Pyro5 knows."""
        info, data, message = pyro5.blob_parts(blob)
        if message is not None:
            codec, payload = self.pool.codecs.get(message[0]), message[1]
        else:
            codec = self.pool.codecs.serpent if connection.native else connection.codec
            payload = codec.encode_call(self.pool.object_id, method, data, {})
        label = marshal.dumps((info, self.pool.object_id, method))
        return codec, payload, {"BLBI": label}

    def _unusual(self, connection: ClientConnection, codec: Codec, reply: Frame) -> Any:
        """A reply that is more than a value: it has annotations, opens a stream, or raises."""
        pool = self.pool
        if reply.annotations:
            self.response_annotations = dict(reply.annotations)
        if reply.flags & _ITEM_STREAM:
            try:
                return ItemStream(self, connection, stream_id(reply))
            except errors.ProtocolError:
                pool.put(connection)
                raise
        if not reply.flags & _EXCEPTION:
            pool.put_if_open(connection)  # the server may have said with it that it stops
            return codec.decode(reply.payload)
        try:
            value = codec.decode(reply.payload)
            if ends_connection(value, connection.native):
                connection.close()
        finally:
            pool.put_if_open(connection)
        raise raised(value)

    # -- the parts of a call, for those that do not wait for it here ------------------------------------

    def request(
        self,
        connection: MultiplexedConnection,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        flags: int,
        annotations: Mapping[str, bytes] | None,
        attempts: Attempts | None = None,
    ) -> Request:
        """Everything that `connection.request` takes for a call."""
        id, acked, asks = None, 0, False
        if attempts is not None:
            id, acked = self.number(attempts, method, flags, in_progress.get())
            asks = attempts.asks
            if attempts.moved:
                annotations = {MOVED: b"", **(annotations or {})}
        codec, correlation = connection.codec, self.correlation
        what = f"{self.pool.object_id}.{method}"
        try:
            payload = codec.encode_call(self.pool.object_id, method, args, kwargs)
        except errors.ProtocolError as problem:
            if len(args) != 1 or kwargs or not pyro5.is_blob(args[0]):
                problem.args = (f"an argument of {what}: {problem}",)
                raise
            codec, payload, label = self.blob(connection, method, args[0])
            annotations = {**(annotations or {}), **label}
            flags |= Flag.KEEP_SERIALIZED
        facts = in_progress.get()
        if facts is not None:
            timeout_s = time_left(facts, what, self.timeout_s)
            annotations, correlation = inherit(
                facts, what, connection, annotations, correlation, timeout_s, id, acked
            )
        elif (self.timeout_s is not None or id is not None) and connection.native:
            annotations = with_context(annotations, self.timeout_s, (), id, acked, asks)
        return codec, payload, flags, annotations, correlation

    def time_left(self) -> float | None:
        """Seconds that a call may take: those given, or what is left of the invocation that makes it."""
        facts = in_progress.get()
        return self.timeout_s if facts is None else time_left(facts, self.pool.object_id, self.timeout_s)

    def value_of(self, codec: Codec, reply: Frame) -> Any:
        """The result that a reply carries; raises if it carries an error, or a stream."""
        if reply.annotations:
            self.response_annotations = dict(reply.annotations)
        if reply.flags & _ITEM_STREAM:
            raise errors.ProtocolError(
                "the result is a stream of items, which cannot be promised; call the method itself"
            )
        value = codec.decode(reply.payload)
        if reply.flags & _EXCEPTION:
            raise raised(value)
        return value

    def calling(
        self,
        timeout_s: float | EllipsisType | None,
        annotations: Mapping[str, bytes] | None,
        correlation_id: uuid.UUID | None,
    ) -> Stub:
        """The same, on the same connections, whose calls differ as said."""
        return Stub(
            self.pool,
            self.timeout_s if isinstance(timeout_s, EllipsisType) else checked(timeout_s),
            annotations or self.annotations,
            correlation_id.bytes if correlation_id else self.correlation,
            self.interceptors,
        )

    def release(self) -> None:
        """Close the connections and end the session, if it is this proxy's own.

        Without an idle connection to say so on, the session ends by its idle timeout.
        """
        pool = self.pool
        ending = None if pool.session_is_shared else pool.session
        if ending:
            pool.session = uuid.uuid4().hex
        pool.close_background()
        for connection in pool.drain():
            if connection.session == ending and connection.native and not connection.is_stale():
                payload = connection.codec.encode_call(DAEMON_ID, "release_session", (), {})
                try:
                    connection.call(connection.codec, payload, _ONEWAY, None, NO_CORRELATION, self.timeout_s)
                    ending = None
                except errors.CommunicationError:
                    pass  # perhaps on the next one
