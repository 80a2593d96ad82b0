"""The stub: what a proxy calls through.

A proxy is a face; its stub knows where the object is, holds the connections to it, and makes the calls.
Every call takes a connection from a last-in-first-out pool and puts it back, so threads never wait for
each other and a single thread always has the warmest connection.  A call that fails puts it back too, unless
the failure has closed it.

A call made by a servant is more than a call: it carries on the correlation id and the call chain, and tells
the engine that its thread waits.
"""

from __future__ import annotations

import asyncio
import marshal
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Self, cast

from objserver import errors, pyro5
from objserver.client.connection import ClientConnection, Metadata
from objserver.codecs import Codec, Codecs
from objserver.invocation import Facts, in_progress
from objserver.references import DAEMON_ID, Location, Reference
from objserver.settings import Limits
from objserver.wire import CallContext, Flag, Frame
from objserver.wire import extension as wire_extension
from objserver.wire.frames import NO_CORRELATION

__all__ = ["ConnectionPool", "ItemStream", "Stub"]

IDLE_CONNECTIONS_MAX = 8
"""Connections a proxy keeps for its next calls; more are closed after use."""
SURELY_OPEN_S = 0.05
"""A connection taken so recently is not checked for having been closed; the check costs a microsecond."""
_LIMITS = Limits(frame_size_max=1 << 30)
"""A client trusts the server it chose more than a server its clients: Pyro5's own limit of 1 GiB."""
_CODECS = Codecs(_LIMITS, marshal=True)
"""marshal is used only by a proxy that was told to."""

_ONEWAY, _EXCEPTION, _ITEM_STREAM = Flag.ONEWAY, Flag.EXCEPTION, Flag.ITEM_STREAM

Resolve = Callable[[Reference, float | None], Reference]


class ConnectionPool:
    """What all views of one proxy share: where the object is, and the connections to it."""

    def __init__(
        self,
        reference: Reference,
        resolve: Resolve,
        *,
        serializer: str | None,
        session: str | None,
        handshake: Any,
    ) -> None:
        self.reference = reference
        self.object_id = reference.object_id
        self.serializer = serializer
        self.session = session or uuid.uuid4().hex
        """Connections of an earlier session are not used again."""
        self.session_is_shared = session is not None
        self.metadata: Metadata | None = None
        self.idle: deque[ClientConnection] = deque()
        self.location: Location | None = None
        self._resolve = resolve
        self._handshake = handshake

    def take(self, timeout_s: float | None) -> ClientConnection:
        """A connection nobody else uses: the one put back last, or a new one."""
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return self.connect(timeout_s)
            now = monotonic()
            if connection.session == self.session and (
                now - connection.last_used < SURELY_OPEN_S or not connection.is_stale()
            ):
                connection.last_used = now
                return connection
            connection.close()

    def put(self, connection: ClientConnection) -> None:
        """Done with a connection that is in order."""
        idle = self.idle
        if len(idle) < IDLE_CONNECTIONS_MAX:
            idle.append(connection)
        else:
            connection.close()

    def put_if_open(self, connection: ClientConnection) -> None:
        """Done with a connection after a failure."""
        if connection.is_open:
            self.put(connection)

    def connect(self, timeout_s: float | None) -> ClientConnection:
        """A new connection; finds the object first if the reference does not say where it is."""
        facts = in_progress.get()
        if facts is None:
            return self._connect(timeout_s)
        facts.caller.about_to_block()
        try:
            return self._connect(timeout_s)
        finally:
            facts.caller.no_longer_blocked()

    def _connect(self, timeout_s: float | None) -> ClientConnection:
        target = self._resolve(self.reference, timeout_s)
        assert target.location is not None
        connection = ClientConnection(
            target.location,
            target.object_id,
            codecs=_CODECS,
            serializer=self.serializer,
            handshake=self._handshake,
            session=self.session,
            timeout_s=timeout_s,
            limits=_LIMITS,
        )
        self.object_id = target.object_id
        self.location = target.location
        self.metadata = connection.metadata
        return connection

    def drain(self) -> Iterator[ClientConnection]:
        """Take out what is idle; each is closed when the next is asked for."""
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return
            try:
                yield connection
            finally:
                connection.close()

    def close(self) -> None:
        """Close what is idle."""
        for _ in self.drain():
            pass


class Stub:
    """How to call one object.  Safe to share among threads; `response_annotations` are the last reply's."""

    def __init__(
        self,
        pool: ConnectionPool,
        timeout_s: float | None,
        annotations: Mapping[str, bytes] | None = None,
        correlation: bytes = NO_CORRELATION,
    ) -> None:
        self.pool = pool
        self.timeout_s = timeout_s
        self.annotations = annotations
        self.correlation = correlation
        self.response_annotations: dict[str, bytes] = {}

    def metadata(self) -> Metadata:
        """What the object offers; connects if nothing is known yet."""
        pool = self.pool
        if pool.metadata is None:
            pool.put(pool.take(self.timeout_s))
        return cast(Metadata, pool.metadata)

    def invoke(self, method: str, args: Sequence[Any], kwargs: dict[str, Any], flags: int = 0) -> Any:
        """Make one call and return its result, or raise what it raised."""
        pool = self.pool
        timeout_s, annotations, correlation = self.timeout_s, self.annotations, self.correlation
        connection = pool.take(timeout_s)
        codec = connection.codec
        try:
            try:
                payload = codec.encode_call(pool.object_id, method, args, kwargs)
            except errors.ProtocolError as problem:
                if len(args) != 1 or kwargs or not pyro5.is_blob(args[0]):
                    problem.args = (f"an argument of {pool.object_id}.{method}: {problem}",)
                    raise
                codec, payload, annotations = self._blob(connection, method, args[0])
                flags |= Flag.KEEP_SERIALIZED
            facts = in_progress.get()
            if facts is None:
                if timeout_s is not None and connection.native:
                    annotations = _with_context(annotations, timeout_s, ())
                reply = connection.call(codec, payload, flags, annotations, correlation, timeout_s)
            else:
                request = codec, payload, flags, annotations, correlation, timeout_s
                reply = _call_inside(facts, f"{pool.object_id}.{method}", connection, *request)
        except BaseException as problem:
            pool.put_if_open(connection)
            if isinstance(problem, (errors.OutcomeUnknown, errors.ConnectFailed)):
                problem.args = (f"{pool.object_id}.{method}: {problem}",)
            raise
        if reply is None:
            pool.put(connection)
            return None
        if reply.flags or reply.annotations:
            return self._unusual(connection, codec, reply)
        pool.put(connection)
        return codec.decode(reply.payload)

    def _blob(
        self, connection: ClientConnection, method: str, blob: object
    ) -> tuple[Codec, bytes, Mapping[str, bytes]]:
        """What carries Pyro5's SerializedBlob: a payload that is not opened, in a serializer Pyro5 knows."""
        info, data, message = pyro5.blob_parts(blob)
        if message is not None:
            codec, payload = _CODECS.get(message[0]), message[1]
        else:
            codec = _CODECS.serpent if connection.native else connection.codec
            payload = codec.encode_call(self.pool.object_id, method, data, {})
        label = marshal.dumps((info, self.pool.object_id, method))
        return codec, payload, {**(self.annotations or {}), "BLBI": label}

    def _unusual(self, connection: ClientConnection, codec: Codec, reply: Frame) -> Any:
        """A reply that is more than a value: it has annotations, opens a stream, or raises."""
        pool = self.pool
        if reply.annotations:
            self.response_annotations = dict(reply.annotations)
        if reply.flags & _ITEM_STREAM:
            stream_id = bytes(reply.annotations.get("STRM", b"")).decode("ascii", "replace")
            if stream_id:
                return ItemStream(self, connection, stream_id)
            pool.put(connection)
            raise errors.ProtocolError("the result is an iterator, but the server does not stream items")
        if not reply.flags & _EXCEPTION:
            pool.put(connection)
            return codec.decode(reply.payload)
        try:
            value = codec.decode(reply.payload)
            if isinstance(value, pyro5.MessageTooLargeError):
                connection.close()  # so does the server, if it was the request
        finally:
            pool.put_if_open(connection)
        raise _raised(value)

    def release(self) -> None:
        """Close the connections and end the session, if it is this proxy's own.

        Without an idle connection to say so on, the session ends by its idle timeout.
        """
        pool = self.pool
        ending = None if pool.session_is_shared else pool.session
        if ending:
            pool.session = uuid.uuid4().hex
        for connection in pool.drain():
            if connection.session == ending and connection.native and not connection.is_stale():
                payload = connection.codec.encode_call(DAEMON_ID, "release_session", (), {})
                try:
                    connection.call(connection.codec, payload, _ONEWAY, None, NO_CORRELATION, self.timeout_s)
                    ending = None
                except errors.CommunicationError:
                    pass  # perhaps on the next one


def _raised(value: Any) -> BaseException:
    return value if isinstance(value, BaseException) else errors.RemoteError(str(value))


def _call_inside(
    facts: Facts,
    what: str,
    connection: ClientConnection,
    codec: Codec,
    payload: bytes,
    flags: int,
    annotations: Mapping[str, bytes] | None,
    correlation: bytes,
    timeout_s: float | None,
) -> Frame | None:
    """`connection.call` from within the invocation that `facts` are about."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError(
            f"calling {what} here would block the event loop, and with it every coroutine of this server; "
            "use `await asyncio.to_thread(...)`"
        )
    remaining_s = facts.remaining_s
    if remaining_s is not None:
        if not remaining_s:
            raise errors.DeadlineExceeded(
                f"{what} was not called: the time of {facts.object_id}.{facts.method}, which calls it, is up"
            )
        timeout_s = remaining_s if timeout_s is None else min(timeout_s, remaining_s)
    annotations, correlation = _inherit(facts, what, connection, annotations, correlation, timeout_s)
    facts.caller.about_to_block()
    try:
        return connection.call(codec, payload, flags, annotations, correlation, timeout_s)
    finally:
        facts.caller.no_longer_blocked()


def _with_context(
    annotations: Mapping[str, bytes] | None, remaining_s: float | None, chain: tuple[str, ...]
) -> Mapping[str, bytes]:
    return {**(annotations or {}), wire_extension.ANNOTATION: CallContext(remaining_s, chain).encode()}


def _inherit(
    facts: Facts,
    what: str,
    connection: ClientConnection,
    annotations: Mapping[str, bytes] | None,
    correlation: bytes,
    timeout_s: float | None,
) -> tuple[Mapping[str, bytes] | None, bytes]:
    """A call made by a servant carries its correlation id and, to our peers, its call chain and deadline."""
    if correlation is NO_CORRELATION:
        correlation = facts.correlation_id.bytes
    if connection.native:
        chain = (*facts.chain, facts.id)
        if len(chain) > wire_extension.CHAIN_MAX:
            raise RecursionError(
                f"{what} is called at the end of a chain of {len(chain)} calls, more than "
                f"{wire_extension.CHAIN_MAX}: a recursion from object to object that does not end?"
            )
        annotations = _with_context(annotations, timeout_s, chain)
    return annotations, correlation


class ItemStream(Iterator[Any]):
    """A remote iterator.  It keeps the connection it was opened on until it ends or is closed."""

    def __init__(self, stub: Stub, connection: ClientConnection, stream_id: str) -> None:
        self._stub = stub
        self._connection: ClientConnection | None = connection
        self.stream_id = stream_id

    def __next__(self) -> Any:
        connection = self._connection
        if connection is None:
            raise StopIteration
        stub, codec = self._stub, connection.codec
        payload = codec.encode_call(DAEMON_ID, "get_next_stream_item", (self.stream_id,), {})
        request = codec, payload, 0, stub.annotations, stub.correlation, stub.timeout_s
        facts = in_progress.get()
        try:
            if facts is None:
                reply = connection.call(*request)
            else:
                what = f"the next item of a stream of {stub.pool.object_id}"
                reply = _call_inside(facts, what, connection, *request)
        except BaseException:
            if not connection.is_open:
                self._connection = None
            raise
        assert reply is not None
        value = codec.decode(reply.payload)
        if reply.flags & _EXCEPTION:
            self._give_back()
            raise _raised(value)
        return value

    def close(self) -> None:
        """Tell the server that no more items are wanted."""
        connection = self._connection
        if connection is None:
            return
        stub, codec = self._stub, connection.codec
        annotations, correlation = stub.annotations, stub.correlation
        facts = in_progress.get()
        try:
            if facts is not None:
                what = f"the end of a stream of {stub.pool.object_id}"
                annotations, correlation = _inherit(facts, what, connection, annotations, correlation, None)
            payload = codec.encode_call(DAEMON_ID, "close_stream", (self.stream_id,), {})
            connection.call(codec, payload, _ONEWAY, annotations, correlation, stub.timeout_s)
        except errors.CommunicationError:
            pass  # the server's linger ends the stream
        finally:
            self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._stub.pool.put_if_open(connection)
