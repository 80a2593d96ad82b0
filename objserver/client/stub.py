"""The stub: what a proxy calls through.

A proxy is a face; its stub knows where the object is, holds the connections to it, and makes the calls.
Every call takes a connection from a last-in-first-out pool and puts it back, so threads never wait for
each other and a single thread always has the warmest connection.  A call that fails puts it back too, unless
the failure has closed it.

A call made by a servant is more than a call: it carries on the correlation id and the call chain, and tells
the engine that its thread waits.
"""

from __future__ import annotations

import contextlib
import marshal
import math
import os
import sys
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from objserver import errors, pyro5, references
from objserver.client.attempts import Attempts
from objserver.client.books import book_of, introduced, is_introduced
from objserver.client.connection import ClientConnection
from objserver.client.greeting import HANDSHAKE_TIMEOUT_S, Greeting, Metadata, stream_id
from objserver.client.identity import process_id
from objserver.client.leases import Lease
from objserver.codecs import Codec, Codecs, Types
from objserver.invocation import Awaited, Call, CallId, Facts, Interceptor, in_progress, intercepted
from objserver.machine import machine
from objserver.references import DAEMON_ID, Find, Location, Reference, Rule
from objserver.security import ClientTLS, Credentials
from objserver.settings import CLIENT_LIMITS
from objserver.wire import CallContext, Flag, Frame
from objserver.wire import extension as wire_extension
from objserver.wire.frames import NO_CORRELATION

if TYPE_CHECKING:
    from objserver.client.multiplexed import MultiplexedConnection

__all__ = ["ConnectionPool", "ItemStream", "LinkPool", "Stub", "checked", "on_event_loop", "raised"]

IDLE_CONNECTIONS_MAX = 8
"""Connections a proxy keeps for its next calls; more are closed after use."""
SURELY_OPEN_S = 0.05
"""A connection taken so recently is not checked for having been closed; the check costs a microsecond."""
_facts = in_progress.get  # as a global: reading an attribute takes longer
_ONEWAY, _EXCEPTION, _ITEM_STREAM = Flag.ONEWAY, Flag.EXCEPTION, Flag.ITEM_STREAM

Resolve = Callable[[Reference, float | None], Reference]
Request = tuple[Codec, bytes, int, Mapping[str, bytes] | None, bytes]
"""Codec, payload, flags, annotations and correlation id of a request."""


def checked(timeout_s: float | None) -> float | None:
    """`timeout_s`, if it is one."""
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s={timeout_s}: give a positive time, or None to wait for ever")
    return timeout_s


class Closing(Protocol):
    """What can be closed."""

    def close(self) -> None: ...


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
        types: Types | None = None,
        failed: Callable[[Reference, Location], bool] = lambda reference, location: False,
        tls: ClientTLS | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.types = types or Types()
        self.reference = reference
        self.object_id = reference.object_id
        self.serializer = serializer
        self.session = session or os.urandom(16).hex()
        """Connections of an earlier session are not used again."""
        self.session_is_shared = session is not None
        self.metadata: Metadata | None = None
        self.exactly_once = False
        """The object remembers the calls that have ids, in the data `store`."""
        self.store = ""
        self.idle: deque[ClientConnection] = deque()
        self._codecs: Codecs | None = None
        self.location: Location | None = None
        self._resolve = resolve
        self._failed = failed
        self._monotonic = machine.get().monotonic
        self.handshake = handshake
        self.tls = tls
        self.credentials = credentials
        self.asynchronous = False
        """It belongs to an AsyncProxy."""
        self.lease: Lease | None = None
        """Of the object, if it was exported to this process."""
        self.begin_lease: Callable[[], Lease] | None = None
        """... and nobody has connected to it yet."""
        self.rule: Rule | None = None
        """Of a proxy that arrived in a message: what it may connect to."""
        self.live: MultiplexedConnection | None = None
        """The one connection of this proxy that carries many calls, if it is open."""
        self.background: Closing | None = None
        """... or is being made."""

    def __del__(self) -> None:
        # Dropping the proxy is a way to be done with it, so its sockets are not left to be complained about.
        self.close_background()
        for connection in self.idle:
            connection.close()

    @property
    def codecs(self) -> Codecs:
        """What this proxy sends and receives its values with; marshal is used only if it was told to."""
        # Not a cached_property: whoever touches `__dict__` makes all attributes slow.
        if self._codecs is None:
            self._codecs = self._make_codecs()
        return self._codecs

    def _make_codecs(self) -> Codecs:
        weak = weakref.ref(self)  # sockets in a cycle would wait for the garbage collector

        def export(value: object) -> Reference | None:
            from objserver.client.home import home  # it loads asyncio, which most clients do without

            pool = weak()
            return home.export(value) if pool is None else pool._export(value)

        def arrive(reference: Reference) -> Any:
            pool = weak()
            if reference.location is None or not reference.location.client:
                return references.arrived(reference, origin=pool)
            from objserver.client.home import home

            return home.arrive(reference, pool)

        origin = references.Origin(self.types, self.rule)
        return Codecs(
            CLIENT_LIMITS, export=export, arrive=arrive, origin=origin, marshal=True, types=self.types
        )

    def _export(self, value: object) -> Reference | None:
        """An object of ours that is given to the server, which must be able to call it."""
        from objserver.client.home import home

        reference = home.export(value)
        if reference is not None:
            self.types.add_signatures(type(value))  # of the calls that will come
        if (
            reference is not None and not self.asynchronous
        ):  # else it is called on the connection that is there
            assert self.location is not None
            home.open_channel(self.location, self.handshake, HANDSHAKE_TIMEOUT_S, self.tls, self.credentials)
        return reference

    def take(self, timeout_s: float | None) -> ClientConnection:
        """A connection nobody else uses: the one put back last, or a new one."""
        monotonic = self._monotonic
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
        facts.caller.about_to_block(self.location or self.reference.location)
        try:
            return self._connect(timeout_s)
        finally:
            facts.caller.no_longer_blocked()

    def _connect(self, timeout_s: float | None) -> ClientConnection:
        while True:
            greeting = self.greeting(timeout_s)
            try:
                connection = ClientConnection(
                    greeting, codecs=self.codecs, timeout_s=timeout_s, limits=CLIENT_LIMITS
                )
            except (errors.ConnectFailed, errors.ObjectNotFound):
                if self.may_be_elsewhere(greeting):
                    continue
                raise
            self.met(greeting, connection.metadata, connection.store)
            return connection

    def may_be_elsewhere(self, greeting: Greeting) -> bool:
        """The object was not found where it was looked for; whether to look again, since it can have moved or
        another would do as well."""
        return self.reference.protocol != "PYRO" and self._failed(self.reference, greeting.location)

    def greeting(self, timeout_s: float | None, *, multiplexed: bool = False) -> Greeting:
        """What to say to the server; finds it first if the reference does not say where it is.

        ConnectFailed if it is at a place, or to be found through one, that the rule of this proxy excludes.
        """
        if self.rule is not None and self.reference.location is not None:
            for location in (self.reference.location, *self.reference.others):
                _check_allowed(self.rule, location)
        target = self._resolve(self.reference, timeout_s)
        assert target.location is not None
        if self.rule is not None:
            _check_allowed(self.rule, target.location)
        return Greeting(
            target.location,
            target.object_id,
            self.serializer,
            self.handshake,
            self.session,
            process_id(),
            multiplexed,
            self.tls,
            self.credentials,
        )

    def met(self, greeting: Greeting, metadata: Metadata, store: str) -> None:
        """The server has answered."""
        self.exactly_once, self.store = metadata.exactly_once, store
        self.object_id = greeting.object_id
        self.location = greeting.location
        self.metadata = metadata
        if self.begin_lease is not None:
            self.lease, self.begin_lease = self.begin_lease(), None

    def learn(self, timeout_s: float | None) -> None:
        """See what the object offers."""
        self.put(self.take(timeout_s))

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

    def close_background(self) -> None:
        """Close the connection for many calls, if there is one."""
        background, self.background = self.background, None
        if background is not None:
            background.close()


def _check_allowed(rule: Rule, location: Location) -> None:
    if not rule(location):
        raise errors.ConnectFailed(
            f"not connected to {location}: a peer named this address in a message, and the rule connects_to "
            "of this server does not allow it"
        )


class LinkPool:
    """In place of a pool, for an object of a client: it is called on the connection that the client made."""

    serializer: str | None = None
    session_is_shared = True
    session = ""

    def __init__(self, reference: Reference, find: Find) -> None:
        self.reference = reference
        self.object_id = reference.object_id
        self.location = reference.location
        self.metadata: Metadata | None = None
        self.exactly_once = False
        self.store = ""
        self.lease: Lease | None = None
        self.live: MultiplexedConnection | None = None
        self.idle: deque[ClientConnection] = deque(maxlen=0)
        self.take_from = find

    def take(self, timeout_s: float | None) -> ClientConnection:
        """The client's connection, which many calls share; ConnectFailed if there is none."""
        return cast(ClientConnection, self.take_from())

    @property
    def codecs(self) -> Codecs:
        """A blob is not sent to a client's object."""
        raise errors.SerializeError("a SerializedBlob cannot be sent to an object of a client")

    def put(self, connection: ClientConnection) -> None:
        """It was never taken away from anybody."""

    put_if_open = put

    def learn(self, timeout_s: float | None) -> None:
        """See what the object offers."""
        daemon = Stub(LinkPool(Reference("PYRO", DAEMON_ID, self.location), self.take_from), timeout_s)
        self.metadata = Metadata(daemon.invoke("get_metadata", (self.object_id,), {}))

    def drain(self) -> Iterator[ClientConnection]:
        """There is nothing to close."""
        return iter(())

    def close_background(self) -> None:
        """There is nothing to close."""


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
            return self._after(problem, method, args, kwargs, flags, call, machine.get().monotonic())
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
                self.open_session(client, facts is not None and facts.is_of_object)
                self.introduced(attempts)
                connection = pool.take(timeout_s)
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
                annotations = _with_context(annotations, timeout_s, (), id, acked, asks)
            return codec, connection.call(codec, payload, flags, annotations, self.correlation, timeout_s)
        if flags & _ONEWAY and facts.defers and connection.native and type(payload) is bytes:
            facts.send_later(str(pool.reference), method, payload)
            return codec, None
        request = codec, payload, flags, annotations, self.correlation, timeout_s
        what = f"{pool.object_id}.{method}"
        return codec, _call_inside(facts, what, connection, *request, id=id, acked=acked)

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
        book = book_of(pool.store)
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
            annotations = _with_context(annotations, self.timeout_s, (), id, acked)
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
                    self.open_session(attempts.id.client, facts is not None and facts.is_of_object)
                elif problem is not None:
                    pause_s = attempts.pause(problem, here.monotonic())
                    if pause_s:
                        _rest(pause_s)
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
        timeout_s = self.timeout_s if facts is None else _time_left(facts, what, self.timeout_s)
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
                book = book_of(pool.store)
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
        return not flags & _ONEWAY and metadata is not None and method not in metadata.repeatable

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
        return None if is_introduced(self.pool.store, id.client) else id.client

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
            introduced(self.pool.store, attempts.id.client)

    def open_session(self, client: bytes, forever: bool = False) -> None:
        """Have the server remember the calls of `client`."""
        connection = self.pool.take(self.timeout_s)
        try:
            codec = connection.codec
            payload = codec.encode_call(DAEMON_ID, "open_session", (client, forever), {})
            request = codec, payload, 0, None, NO_CORRELATION, self.timeout_s
            facts = in_progress.get()
            if facts is None:
                reply = connection.call(*request)
            else:
                reply = _call_inside(facts, "open_session", connection, *request)
            if isinstance(reply, Frame) and reply.flags & _EXCEPTION:
                raise raised(codec.decode(reply.payload))
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
            timeout_s = _time_left(facts, what, self.timeout_s)
            annotations, correlation = _inherit(
                facts, what, connection, annotations, correlation, timeout_s, id, acked
            )
        elif (self.timeout_s is not None or id is not None) and connection.native:
            annotations = _with_context(annotations, self.timeout_s, (), id, acked, asks)
        return codec, payload, flags, annotations, correlation

    def time_left(self) -> float | None:
        """Seconds that a call may take: those given, or what is left of the invocation that makes it."""
        facts = in_progress.get()
        return self.timeout_s if facts is None else _time_left(facts, self.pool.object_id, self.timeout_s)

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


def would_block(what: str) -> RuntimeError:
    """What a servant gets that calls from its event loop, and would have to wait there."""
    return RuntimeError(
        f"calling {what} here would block the event loop, and with it every coroutine of this server; "
        "use `await asyncio.to_thread(...)`"
    )


def on_event_loop() -> bool:
    """Whether the code that asks runs on one; without loading asyncio, for then it does not."""
    loops = sys.modules.get("asyncio.events")
    return loops is not None and loops._get_running_loop() is not None


def ends_connection(value: Any, native: bool) -> bool:
    """Whether the server closes the connection, or may, once it has sent this error.

    A stock one does so after whatever it counts as a failure to communicate, an argument of an unknown class
    included.  A call sent there after it would get no answer.
    """
    if native:
        return isinstance(value, pyro5.MessageTooLargeError)
    return isinstance(value, (pyro5.CommunicationError, pyro5.SecurityError))


def _rest(seconds: float) -> float:
    """Wait before a call is made again; a servant lets others have its place meanwhile."""
    facts = in_progress.get()
    if facts is not None:
        facts.caller.about_to_block()
    try:
        machine.get().sleep(seconds)
    finally:
        if facts is not None:
            facts.caller.no_longer_blocked()
    return seconds


def raised(value: Any) -> BaseException:
    """What to raise for the value of a reply that is an exception."""
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
    *,
    id: CallId | None = None,
    acked: int = 0,
) -> Frame | bytes | None:
    """`connection.call` from within the invocation that `facts` are about."""
    shared = not isinstance(connection, ClientConnection)
    waits = not (shared and flags & _ONEWAY)
    if waits and on_event_loop():
        raise would_block(what)
    timeout_s = _time_left(facts, what, timeout_s)
    annotations, correlation = _inherit(
        facts, what, connection, annotations, correlation, timeout_s, id, acked
    )
    cancel: Awaited | None = None

    def cancellable(tell: Awaited) -> None:
        nonlocal cancel
        cancel = tell
        facts.when_cancelled(tell)

    if not waits:
        return connection.call(codec, payload, flags, annotations, correlation, timeout_s)
    facts.caller.about_to_block(None if shared or flags & _ONEWAY else connection.location)
    try:
        return connection.call(codec, payload, flags, annotations, correlation, timeout_s, cancellable)
    finally:
        facts.caller.no_longer_blocked()
        if cancel is not None and not facts.forget(cancel) and not shared:
            connection.close()  # the other thread may still be sending on it


def _time_left(facts: Facts, what: str, timeout_s: float | None) -> float | None:
    """How long a call made by the invocation `facts` may take; raises if it may not begin."""
    if facts.is_cancelled:
        raise errors.Cancelled(
            f"{what} was not called: {facts.object_id}.{facts.method}, which calls it, has been cancelled"
        )
    remaining_s = facts.remaining_s
    if remaining_s is None:
        return timeout_s
    if not remaining_s:
        raise errors.DeadlineExceeded(
            f"{what} was not called: the time of {facts.object_id}.{facts.method}, which calls it, is up"
        )
    return remaining_s if timeout_s is None else min(timeout_s, remaining_s)


def _with_context(
    annotations: Mapping[str, bytes] | None,
    remaining_s: float | None,
    chain: tuple[str, ...],
    id: CallId | None = None,
    acked: int = 0,
    asks: bool = False,
) -> Mapping[str, bytes]:
    context = CallContext(remaining_s, chain, id, acked, asks)
    return {**(annotations or {}), wire_extension.ANNOTATION: context.encode()}


def _inherit(
    facts: Facts,
    what: str,
    connection: ClientConnection | MultiplexedConnection,
    annotations: Mapping[str, bytes] | None,
    correlation: bytes,
    timeout_s: float | None,
    id: CallId | None = None,
    acked: int = 0,
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
        annotations = _with_context(annotations, timeout_s, chain, id, acked)
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
        if isinstance(reply, bytes):
            return codec.decode(reply)
        value = codec.decode(reply.payload)
        if reply.flags & _EXCEPTION:
            error = raised(value)
            if isinstance(error, StopIteration):
                self._give_back()
            else:
                self.close()  # an item that could not be sent does not end the iterator
            raise error
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

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._stub.pool.put_if_open(connection)
