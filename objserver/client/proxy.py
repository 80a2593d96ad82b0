"""`Proxy`: a remote object that is used like a local one, by any number of threads.

What the object offers is learnt with the first connection; after that `proxy.method` is an ordinary
attribute, and calling it goes straight to the proxy's stub.

A name that begins with an underscore is never remote.  Names that this class uses itself (`release`, `batch`,
`calling`) hide remote members of the same name; `invoke(proxy, name, ...)` reaches those.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, cast

from objserver import errors, pyro5
from objserver.client.nameservers import Contact, NameServers, contacts, with_name_servers
from objserver.client.nested import on_event_loop, would_block
from objserver.client.picking import PickPolicy
from objserver.client.pool import ConnectionPool
from objserver.client.resolver import Resolver
from objserver.client.streams import ItemStream
from objserver.client.stub import Stub, checked
from objserver.codecs import Types
from objserver.errors import did_you_mean
from objserver.invocation import CallId, Interceptor, in_progress
from objserver.machine import machine
from objserver.references import NAMESERVER_ID, Location, Reference
from objserver.security import ClientTLS, Credentials, SharedKey
from objserver.wire import Flag

if TYPE_CHECKING:
    from objserver.client.promises import FutureFace

__all__ = ["Batch", "ItemStream", "Proxy", "ProxyOptions", "connect", "invoke"]

T = TypeVar("T")

_NAMES = Reference("PYRONAME", NAMESERVER_ID)


class ProxyOptions(TypedDict, total=False):
    """The keyword arguments of `Proxy`, for functions that pass them on."""

    timeout_s: float | None
    serializer: str | None
    session: str | None
    handshake: Any
    tls: ClientTLS | None
    credentials: Credentials | None
    interceptors: Sequence[Interceptor]
    types: Iterable[type] | Types
    name_servers: NameServers | str | Sequence[str]
    pick: PickPolicy | None


class Proxy:
    """A remote object.

    `reference` is a Reference or a PYRO:, PYRONAME: or PYROMETA: URI.  Keyword arguments:

    - `timeout_s`: seconds for each call and for connecting; None waits for ever, but only 10 s for a server
      that accepts and does not answer the handshake.  A call that takes longer raises CallTimeout, and its
      outcome is unknown.
    - `serializer`: "serpent", "json", "msgpack" or "marshal" talks as a stock Pyro5 peer does.  By default
      our own codec is used with our servers, and serpent with stock ones.
    - `session`: proxies with the same session name share the servants of PerClient objects.
    - `handshake`: data for the server's handshake check.
    - `tls`: encrypt the connections, and check that the server is who it should be; see `ClientTLS`.
    - `credentials`: a `SharedKey` or a `Token`, to be let in.  They stay with this proxy: what is made of a
      reference that it returns has them at the same server only, and a copy in another process has none.
    - `interceptors`: put around every call; see `Interceptor`.
    - `types`: classes whose values (and exceptions) may arrive as what they are; classes that this proxy has
      sent are known too.
    - `name_servers`: addresses of name servers (a list, or a text with commas), for a PYRONAME: or PYROMETA:
      URI that gives none itself; the first that answers is believed.  Those that want TLS or to know who asks
      are given as `NameServers`: what is for the object, in `tls` and `credentials`, is not shown to them.
    - `pick`: how a PYROMETA: URI chooses; `RandomPick()` by default, `LeastLoaded()`, `SameHostFirst()`.
    """

    _objserver_is_proxy = True
    _objserver_reference: Reference
    _objserver_stub: Stub

    def __init__(
        self,
        reference: Reference | str,
        *,
        timeout_s: float | None = None,
        serializer: str | None = None,
        session: str | None = None,
        handshake: Any = "hello",
        tls: ClientTLS | None = None,
        credentials: Credentials | None = None,
        interceptors: Sequence[Interceptor] = (),
        types: Iterable[type] | Types = (),
        name_servers: NameServers | str | Sequence[str] = (),
        pick: PickPolicy | None = None,
    ) -> None:
        if serializer is not None and serializer not in ("serpent", "json", "msgpack", "marshal"):
            raise ValueError(f"unknown serializer {serializer!r}; choose serpent, json, msgpack or marshal")
        if serializer is not None and isinstance(credentials, SharedKey):
            raise ValueError(f"serializer={serializer!r} talks as a stock peer does, who cannot prove a key")
        given = NameServers.of(name_servers)
        parsed = with_name_servers(Reference.parse(reference), given)
        known = types if isinstance(types, Types) else Types(types)
        pool = ConnectionPool(
            parsed,
            partial(_resolve, given, pick),
            serializer=serializer,
            session=session,
            handshake=handshake,
            types=known,
            failed=partial(_failed, given),
            tls=tls,
            credentials=credentials,
        )
        stub = Stub(pool, checked(timeout_s), interceptors=interceptors)
        self.__dict__.update(_objserver_reference=parsed, _objserver_stub=stub)

    # -- what makes it look local --------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise _private(name)
        if self._objserver_stub.pool.metadata is None and in_progress.get() is not None and on_event_loop():
            return partial(invoke, self, name)  # asking would block the loop, but a thread may call this
        metadata = self._objserver_stub.metadata()
        if name in metadata.attrs:
            return self._objserver_stub.invoke("__getattr__", (name,), {})
        if name not in metadata.methods:
            raise errors.MemberNotFound(
                f"remote object {self._objserver_reference} has no exposed attribute or method {name!r}"
                f"{did_you_mean(name, metadata.attrs | metadata.methods)}"
            )
        method = _RemoteMethod(self, name, Flag.ONEWAY if name in metadata.oneway else 0)
        self.__dict__[name] = method
        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_pyroTimeout":
            self._objserver_stub.timeout_s = checked(value or None)
            return
        if name.startswith("_"):
            raise _private(name)
        attrs = self._objserver_stub.metadata().attrs
        if name not in attrs:
            raise errors.MemberNotFound(
                f"remote object {self._objserver_reference} has no exposed attribute {name!r}"
                f"{did_you_mean(name, attrs)}"
            )
        self._objserver_stub.invoke("__setattr__", (name, value), {})

    def __dir__(self) -> list[str]:
        metadata = self._objserver_stub.pool.metadata
        remote = metadata.methods | metadata.attrs if metadata else frozenset()
        return sorted({*super().__dir__(), *remote})

    def __str__(self) -> str:
        """The URI, so that a proxy can be printed where a reference can."""
        return str(self._objserver_reference)

    def __repr__(self) -> str:
        idle = len(self._objserver_stub.pool.idle)
        return f"<Proxy {self._objserver_reference} idle_connections={idle}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Proxy) and other._objserver_reference == self._objserver_reference

    def __hash__(self) -> int:
        return hash(self._objserver_reference)

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return int(self._objserver_stub.invoke("__len__", (), {}))

    def __getitem__(self, index: Any) -> Any:
        return self._objserver_stub.invoke("__getitem__", (index,), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self._objserver_stub.invoke("__setitem__", (index, value), {})

    def __delitem__(self, index: Any) -> None:
        self._objserver_stub.invoke("__delitem__", (index,), {})

    def __contains__(self, value: Any) -> bool:
        if "__contains__" in self._objserver_stub.metadata().methods:
            return bool(self._objserver_stub.invoke("__contains__", (value,), {}))
        return any(item == value for item in self)

    def __iter__(self) -> Iterator[Any]:
        if "__iter__" in self._objserver_stub.metadata().methods:
            yield from self._objserver_stub.invoke("__iter__", (), {})
            return
        if "__getitem__" not in self._objserver_stub.metadata().methods:
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
        stub = self._objserver_stub
        return _rebuild, (str(self._objserver_reference), stub.timeout_s, stub.pool.serializer)

    # -- names of our own ----------------------------------------------------------------------------

    def release(self) -> None:
        """Close the connections and end the session of this proxy.  The next call connects again, and begins
        a new session unless the proxy was given one by name."""
        self._objserver_stub.release()

    @property
    def response_annotations(self) -> dict[str, bytes]:
        """The annotations that came with the last reply that had any."""
        return self._objserver_stub.response_annotations

    def calling(
        self,
        *,
        timeout_s: float | EllipsisType | None = ...,
        annotations: Mapping[str, bytes] | None = None,
        correlation_id: uuid.UUID | None = None,
    ) -> Self:
        """A view of this proxy, on the same connections, whose calls differ as said.

        What is not given stays as it is here; `timeout_s=None` waits for ever.
        After a call, `view.response_annotations` holds the annotations that came with the reply.
        """
        view = object.__new__(type(self))
        view.__dict__.update(
            _objserver_reference=self._objserver_reference,
            _objserver_stub=self._objserver_stub.calling(timeout_s, annotations, correlation_id),
        )
        return view

    def outcome(self, call: CallId) -> Any:
        """What became of a call to this object: its result, or the exception that it raised.

        `call` is what `errors.OutcomeUnknown.call` says; the object must be the one that was called, since
        another knows nothing of it.  NotExecuted: it has not happened, and from now on it never will.
        SessionExpired: the object has forgotten it.  For Persistent objects only, ArgumentError for others.
        """
        return self._objserver_stub.outcome(call)

    @property
    def future(self) -> FutureFace:
        """`proxy.future.method(...)` sends the call and returns a `Promise` at once; see there."""
        from objserver.client.promises import FutureFace  # it loads asyncio, which most clients do without

        return FutureFace(self._objserver_stub)

    def batch(self) -> Batch:
        """Collect calls and send them in one frame; see `Batch`."""
        return Batch(self._objserver_stub)

    # -- names that programs written for Pyro5 use ---------------------------------------------------

    @property
    def _pyroTimeout(self) -> float | None:
        return self._objserver_stub.timeout_s

    @property
    def _pyroUri(self) -> Reference:
        return self._objserver_reference

    def _pyroClaimOwnership(self) -> None:
        """Nothing to do: no thread owns a proxy of ours."""

    def _pyroBind(self) -> None:
        self._objserver_stub.metadata()

    def _pyroRelease(self) -> None:
        self.release()


def _private(name: str) -> AttributeError:
    if name.startswith("_pyro"):
        return AttributeError(
            f"{name} belongs to Pyro5's own Proxy; here timeouts, serializers and the like are options of "
            "Proxy(...) and of proxy.calling(...)"
        )
    return AttributeError(f"{name!r} is private and so never remote")


class _RemoteMethod:
    """`proxy.name`, ready to be called.

    The proxy keeps it, so it must not keep the proxy: sockets in a cycle wait for the garbage collector.
    """

    __slots__ = ("_flags", "_invoke", "_name", "_reference")

    def __init__(self, proxy: Proxy, name: str, flags: int) -> None:
        self._reference = proxy._objserver_reference
        self._invoke = proxy._objserver_stub.invoke
        self._name = name
        self._flags = flags

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        invoke = self._invoke  # in two steps, which is faster
        return invoke(self._name, args, kwargs, self._flags)

    def __repr__(self) -> str:
        return f"<remote method {self._name} of {self._reference}>"


class Batch:
    """Calls that travel in one frame and are executed in order, until one fails.

        with proxy.batch() as batch:
            batch.deposit(5)
            batch.withdraw(2)
        balances = list(batch.results())

    `results()` yields the results in order and raises where a call did.  `batch()` sends and returns them, as
    with Pyro5's BatchProxy.
    """

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._calls: list[list[Any]] = []
        self._values: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise _private(name)

        append = self._calls.append

        # Lists, because of a tuple the codec would have to keep the type.  The collector of a name is made
        # once, and does not keep the batch: sockets in a cycle wait for the garbage collector.
        def collect(*args: Any, **kwargs: Any) -> None:
            append([name, list(args), kwargs])

        self.__dict__[name] = collect
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
        calls = self._taken()
        flags = Flag.BATCH | (Flag.ONEWAY if oneway else 0)
        if calls:
            self._values = self._stub.invoke("<batch>", calls, {}, flags) or []

    def _taken(self) -> list[list[Any]]:
        calls = list(self._calls)
        self._calls.clear()
        return calls

    def __call__(self, oneway: bool = False) -> Iterator[Any]:
        self.send(oneway=oneway)
        return self.results()

    def results(self) -> Iterator[Any]:
        """The results of the last `send`, in order; raises at the call that failed."""
        if self._calls:
            raise RuntimeError(
                f"{len(self._calls)} calls of this batch are not sent yet: leave its `with` block, or send()"
            )
        return map(_value, self._values)


def _value(result: Any) -> Any:
    if isinstance(result, pyro5.ExceptionWrapper):
        raise result.exception
    return result


def connect(reference: Reference | str, cls: type[T], **options: Unpack[ProxyOptions]) -> T:
    """The proxy of an object, typed as `cls` for editors and type checkers.  Options as for Proxy.

    The classes that the annotations of `cls` mention may arrive as what they are.
    """
    proxy = Proxy(reference, **options)
    cast(ConnectionPool, proxy._objserver_stub.pool).types.add_signatures(cls)
    return cast(T, proxy)


def invoke(proxy: Proxy, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call `method`, whatever its name; read an attribute if it is one and no arguments are given."""
    pool = proxy._objserver_stub.pool
    if pool.metadata is None and in_progress.get() is not None and on_event_loop():
        raise would_block(f"{pool.object_id}.{method}")  # not of the question that would come before it
    metadata = proxy._objserver_stub.metadata()
    if method in metadata.attrs and not args and not kwargs:
        return proxy._objserver_stub.invoke("__getattr__", (method,), {})
    flags = Flag.ONEWAY if method in metadata.oneway else 0
    return proxy._objserver_stub.invoke(method, args, kwargs, flags)


def _resolve(
    given: NameServers, pick: PickPolicy | None, reference: Reference, timeout_s: float | None
) -> Reference:
    if reference.protocol == "PYRO":
        return reference
    return machine.get().own(Resolver).resolve(reference, _name_server_call, timeout_s, pick, given)


def ask_name_servers(given: NameServers, timeout_s: float | None, method: str, *args: Any) -> Any:
    """Call a method of the first of the name servers that answers; it may reach several of them."""
    servers = contacts(_NAMES, given)
    return machine.get().own(Resolver).ask(servers, _name_server_call, timeout_s)(method, *args)


def _failed(given: NameServers, reference: Reference, location: Location) -> bool:
    return machine.get().own(Resolver).failed(reference, location, given)


def _name_server_call(server: Contact, timeout_s: float | None, method: str, *args: Any) -> Any:
    with Proxy(
        server.reference, timeout_s=timeout_s, tls=server.tls, credentials=server.credentials
    ) as name_server:
        if method not in name_server._objserver_stub.metadata().methods:
            raise errors.MemberNotFound(f"the name server at {server.location} has no {method}")
        return invoke(name_server, method, *args)


def _rebuild(uri: str, timeout_s: float | None, serializer: str | None) -> Proxy:
    return Proxy(uri, timeout_s=timeout_s, serializer=serializer)
