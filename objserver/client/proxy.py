"""`Proxy`: a remote object that is used like a local one, by any number of threads.

Every call takes a connection from a last-in-first-out pool and puts it back, so threads never wait for each
other and a single thread always has the warmest connection.  What the object offers is learnt with the
first connection; after that `proxy.method` is an ordinary attribute.

A name that begins with an underscore is never remote.  Names that this class uses itself (`release`, `batch`,
`calling`) hide remote members of the same name; `invoke(proxy, name, ...)` reaches those.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from objserver import errors, pyro5, references
from objserver.client.connection import ClientConnection, Metadata
from objserver.client.resolve import resolve
from objserver.codecs import Codecs
from objserver.invocation import Facts, in_progress
from objserver.references import DAEMON_ID, Location, Reference
from objserver.settings import Limits
from objserver.wire import CallContext, Flag
from objserver.wire import extension as wire_extension
from objserver.wire.frames import NO_CORRELATION

__all__ = ["Batch", "ItemStream", "Proxy", "connect", "invoke"]

T = TypeVar("T")

IDLE_CONNECTIONS_MAX = 8
"""Connections a proxy keeps for its next calls; more are closed after use."""
SURELY_OPEN_S = 0.05
"""A connection used so recently is not checked for having been closed; the check costs a microsecond."""
_LIMITS = Limits(frame_size_max=1 << 30)
"""A client trusts the server it chose more than a server its clients: Pyro5's own limit of 1 GiB."""
_CODECS = Codecs(_LIMITS)


class _Link:
    """What all views of one proxy share: where the object is, and the connections to it."""

    def __init__(
        self,
        reference: Reference,
        serializer: str | None,
        session: str | None,
        handshake: Any,
    ) -> None:
        self.reference = reference
        self.serializer = serializer
        self.session = session or uuid.uuid4().hex
        self.session_is_shared = session is not None
        self.handshake = handshake
        self.metadata: Metadata | None = None
        self.object_id = reference.object_id
        self.idle: deque[ClientConnection] = deque()
        self.location: Location | None = None

    def take(self, timeout_s: float | None) -> ClientConnection:
        """A connection nobody else uses: the one put back last, or a new one."""
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return self.connect(timeout_s)
            if time.monotonic() - connection.last_used < SURELY_OPEN_S or not connection.is_stale():
                return connection
            connection.close()

    def put(self, connection: ClientConnection) -> None:
        """Done with a connection that is in order."""
        connection.last_used = time.monotonic()
        if len(self.idle) < IDLE_CONNECTIONS_MAX:
            self.idle.append(connection)
        else:
            connection.close()

    def connect(self, timeout_s: float | None) -> ClientConnection:
        target = resolve(self.reference, _name_server_call, timeout_s)
        assert target.location is not None
        connection = ClientConnection(
            target.location,
            target.object_id,
            codecs=_CODECS,
            serializer=self.serializer,
            handshake=self.handshake,
            session=self.session,
            timeout_s=timeout_s,
            limits=_LIMITS,
        )
        self.object_id = target.object_id
        self.location = target.location
        self.metadata = connection.metadata
        return connection

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()


class Proxy:
    """A remote object.

    `reference` is a Reference or a PYRO:, PYRONAME: or PYROMETA: URI.  Keyword arguments:

    - `timeout_s`: seconds for each call and for connecting; None waits for ever.  A call that takes longer
      raises CallTimeout, and its outcome is unknown.
    - `serializer`: "serpent", "json", "msgpack" or "marshal" talks as a stock Pyro5 peer does.  By default
      our own codec is used with our servers, and serpent with stock ones.
    - `session`: proxies with the same session name share the servants of PerClient objects.
    - `handshake`: data for the server's handshake check.
    """

    _objserver_is_proxy = True
    _objserver_reference: Reference
    _objserver_link: _Link
    _objserver_timeout_s: float | None
    _objserver_annotations: Mapping[str, bytes] | None
    _objserver_correlation: bytes
    response_annotations: dict[str, bytes]

    def __init__(
        self,
        reference: Reference | str,
        *,
        timeout_s: float | None = None,
        serializer: str | None = None,
        session: str | None = None,
        handshake: Any = "hello",
    ) -> None:
        if serializer is not None and serializer not in ("serpent", "json", "msgpack", "marshal"):
            raise ValueError(f"unknown serializer {serializer!r}; choose serpent, json, msgpack or marshal")
        if timeout_s is not None and timeout_s <= 0:
            raise ValueError(f"timeout_s={timeout_s}: give a positive time, or None to wait for ever")
        parsed = Reference.parse(reference)
        self.__dict__.update(
            _objserver_reference=parsed,
            _objserver_link=_Link(parsed, serializer, session, handshake),
            _objserver_timeout_s=timeout_s,
            _objserver_annotations=None,
            _objserver_correlation=NO_CORRELATION,
            response_annotations={},
        )

    # -- what makes it look local --------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private and so never remote")
        metadata = self._objserver_metadata()
        if name in metadata.attrs:
            return self._objserver_invoke("__getattr__", (name,), {})
        if name not in metadata.methods:
            raise errors.MemberNotFound(
                f"remote object {self._objserver_reference} has no exposed attribute or method {name!r}"
            )
        method = _RemoteMethod(self, name, Flag.ONEWAY if name in metadata.oneway else 0)
        self.__dict__[name] = method
        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private and so never remote")
        if name not in self._objserver_metadata().attrs:
            raise errors.MemberNotFound(
                f"remote object {self._objserver_reference} has no exposed attribute {name!r}"
            )
        self._objserver_invoke("__setattr__", (name, value), {})

    def __dir__(self) -> list[str]:
        metadata = self._objserver_link.metadata
        remote = metadata.methods | metadata.attrs if metadata else frozenset()
        return sorted({*super().__dir__(), *remote})

    def __str__(self) -> str:
        """The URI, so that a proxy can be printed where a reference can."""
        return str(self._objserver_reference)

    def __repr__(self) -> str:
        link = self._objserver_link
        return f"<Proxy {self._objserver_reference} idle_connections={len(link.idle)}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Proxy) and other._objserver_reference == self._objserver_reference

    def __hash__(self) -> int:
        return hash(self._objserver_reference)

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return int(self._objserver_invoke("__len__", (), {}))

    def __getitem__(self, index: Any) -> Any:
        return self._objserver_invoke("__getitem__", (index,), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self._objserver_invoke("__setitem__", (index, value), {})

    def __delitem__(self, index: Any) -> None:
        self._objserver_invoke("__delitem__", (index,), {})

    def __contains__(self, value: Any) -> bool:
        if "__contains__" in self._objserver_metadata().methods:
            return bool(self._objserver_invoke("__contains__", (value,), {}))
        return any(item == value for item in self)

    def __iter__(self) -> Iterator[Any]:
        if "__iter__" in self._objserver_metadata().methods:
            yield from self._objserver_invoke("__iter__", (), {})
            return
        if "__getitem__" not in self._objserver_metadata().methods:
            raise TypeError(f"remote object {self._objserver_reference} is not iterable")
        for index in range(sys.maxsize):
            try:
                item = self[index]
            except (IndexError, StopIteration):
                return
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __copy__(self) -> Proxy:
        return self.calling()

    def __reduce__(self) -> Any:
        link = self._objserver_link
        return _rebuild, (str(self._objserver_reference), self._objserver_timeout_s, link.serializer)

    # -- names of our own ----------------------------------------------------------------------------

    def release(self) -> None:
        """Close the connections and end the session of this proxy.  The next call connects again."""
        link = self._objserver_link
        if link.idle and not link.session_is_shared:
            connection = link.idle.pop()
            if connection.native and not connection.is_stale():
                payload = connection.codec.encode_call(DAEMON_ID, "release_session", (), {})
                try:
                    connection.call(payload, Flag.ONEWAY, None, NO_CORRELATION, self._objserver_timeout_s)
                except errors.CommunicationError:
                    pass  # the idle timeout will end the session
            connection.close()
        link.close()

    def calling(
        self,
        *,
        timeout_s: float | None = None,
        annotations: Mapping[str, bytes] | None = None,
        correlation_id: uuid.UUID | None = None,
    ) -> Self:
        """A view of this proxy, on the same connections, whose calls differ as said.

        After a call, `view.response_annotations` holds the annotations that came with the reply.
        """
        view = object.__new__(type(self))
        view.__dict__.update(
            _objserver_reference=self._objserver_reference,
            _objserver_link=self._objserver_link,
            _objserver_timeout_s=self._objserver_timeout_s if timeout_s is None else timeout_s,
            _objserver_annotations=annotations or self._objserver_annotations,
            _objserver_correlation=correlation_id.bytes if correlation_id else self._objserver_correlation,
            response_annotations={},
        )
        return view

    def batch(self) -> Batch:
        """Collect calls and send them in one frame; see `Batch`."""
        return Batch(self)

    # -- the call ------------------------------------------------------------------------------------

    def _objserver_metadata(self) -> Metadata:
        link = self._objserver_link
        if link.metadata is None:
            link.put(link.take(self._objserver_timeout_s))
        return cast(Metadata, link.metadata)

    def _objserver_invoke(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        flags: int = 0,
        object_id: str | None = None,
    ) -> Any:
        link = self._objserver_link
        timeout_s = self._objserver_timeout_s
        annotations = self._objserver_annotations
        correlation = self._objserver_correlation
        facts = in_progress.get()
        connection = link.take(timeout_s)
        try:
            payload = connection.codec.encode_call(object_id or link.object_id, method, args, kwargs)
        except BaseException:
            link.put(connection)
            raise
        if facts is not None:
            annotations, correlation = _inherit(facts, connection, annotations, correlation)
            facts.about_to_block()
        reply = connection.call(payload, flags, annotations, correlation, timeout_s)
        if reply is None:
            link.put(connection)
            return None
        if reply.annotations:
            self.__dict__["response_annotations"] = dict(reply.annotations)
        try:
            value = None if reply.flags & Flag.ITEM_STREAM else connection.codec.decode(reply.payload)
        finally:
            if not reply.flags & Flag.ITEM_STREAM:
                link.put(connection)
        if reply.flags & Flag.ITEM_STREAM:
            stream_id = bytes(reply.annotations.get("STRM", b"")).decode("ascii", "replace")
            if not stream_id:
                link.put(connection)
                raise errors.ProtocolError("the result is an iterator, but the server does not stream items")
            return ItemStream(self, connection, stream_id)
        if reply.flags & Flag.EXCEPTION:
            raise value if isinstance(value, BaseException) else errors.RemoteError(str(value))
        return value


class _RemoteMethod:
    """`proxy.name`, ready to be called."""

    __slots__ = ("_flags", "_name", "_proxy")

    def __init__(self, proxy: Proxy, name: str, flags: int) -> None:
        self._proxy = proxy
        self._name = name
        self._flags = flags

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._proxy._objserver_invoke(self._name, args, kwargs, self._flags)

    def __repr__(self) -> str:
        return f"<remote method {self._name} of {self._proxy!r}>"


def _inherit(
    facts: Facts,
    connection: ClientConnection,
    annotations: Mapping[str, bytes] | None,
    correlation: bytes,
) -> tuple[Mapping[str, bytes] | None, bytes]:
    """A call made by a servant carries its correlation id and, to our peers, its call chain."""
    if correlation is NO_CORRELATION:
        correlation = facts.correlation_id.bytes
    if connection.native:
        context = CallContext(None, (*facts.chain, facts.id))
        annotations = {**(annotations or {}), wire_extension.ANNOTATION: context.encode()}
    return annotations, correlation


class ItemStream:
    """A remote iterator.  It keeps the connection it was opened on until it ends or is closed."""

    def __init__(self, proxy: Proxy, connection: ClientConnection, stream_id: str) -> None:
        self._proxy = proxy
        self._connection: ClientConnection | None = connection
        self.stream_id = stream_id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        connection = self._connection
        if connection is None:
            raise StopIteration
        facts = in_progress.get()
        if facts is not None:
            facts.about_to_block()
        payload = connection.codec.encode_call(DAEMON_ID, "get_next_stream_item", (self.stream_id,), {})
        try:
            reply = connection.call(payload, 0, None, NO_CORRELATION, self._proxy._objserver_timeout_s)
        except BaseException:
            self._connection = None
            raise
        assert reply is not None
        value = connection.codec.decode(reply.payload)
        if reply.flags & Flag.EXCEPTION:
            self._give_back()
            raise value if isinstance(value, BaseException) else errors.RemoteError(str(value))
        return value

    def close(self) -> None:
        """Tell the server that no more items are wanted."""
        connection = self._connection
        if connection is None:
            return
        payload = connection.codec.encode_call(DAEMON_ID, "close_stream", (self.stream_id,), {})
        try:
            connection.call(payload, Flag.ONEWAY, None, NO_CORRELATION, self._proxy._objserver_timeout_s)
        except errors.CommunicationError:
            self._connection = None  # the server's linger ends the stream
        self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._proxy._objserver_link.put(connection)


class Batch:
    """Calls that travel in one frame and are executed in order, until one fails.

        with proxy.batch() as batch:
            batch.deposit(5)
            batch.withdraw(2)
        balances = list(batch.results())

    `results()` yields the results in order and raises where a call did.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._values: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private and so never remote")

        def collect(*args: Any, **kwargs: Any) -> None:
            self._calls.append((name, args, kwargs))

        return collect

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.send()

    def send(self, *, oneway: bool = False) -> None:
        """Send what was collected; returns when all of it has been executed (or sent, if `oneway`)."""
        calls, self._calls = self._calls, []
        flags = Flag.BATCH | (Flag.ONEWAY if oneway else 0)
        if calls:
            self._values = self._proxy._objserver_invoke("<batch>", calls, {}, flags) or []

    def results(self) -> Iterator[Any]:
        """The results of the last `send`, in order; raises at the call that failed."""
        for value in self._values:
            if isinstance(value, pyro5.ExceptionWrapper):
                raise value.exception
            yield value


def connect(reference: Reference | str, cls: type[T], **options: Any) -> T:
    """The proxy of an object, typed as `cls` for editors and type checkers.  Options as for Proxy."""
    return cast(T, Proxy(reference, **options))


def invoke(proxy: Proxy, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call `method`, whatever its name; read an attribute if it is one and no arguments are given."""
    metadata = proxy._objserver_metadata()
    if method in metadata.attrs and not args and not kwargs:
        return proxy._objserver_invoke("__getattr__", (method,), {})
    flags = Flag.ONEWAY if method in metadata.oneway else 0
    return proxy._objserver_invoke(method, args, kwargs, flags)


def _name_server_call(reference: Reference, timeout_s: float | None, method: str, *args: Any) -> Any:
    with Proxy(reference, timeout_s=timeout_s) as name_server:
        return invoke(name_server, method, *args)


def _rebuild(uri: str, timeout_s: float | None, serializer: str | None) -> Proxy:
    return Proxy(uri, timeout_s=timeout_s, serializer=serializer)


references.on_arrival(Proxy)
