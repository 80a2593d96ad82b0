"""The connections of a proxy, and where the object is that they lead to.

Every call takes a connection from a last-in-first-out pool and puts it back, so threads never wait for each
other and a single thread always has the warmest connection.
"""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from objserver import errors, references
from objserver.client.connection import ClientConnection
from objserver.client.entries import Entries
from objserver.client.greeting import HANDSHAKE_TIMEOUT_S, Greeted, Greeting, Metadata
from objserver.client.identity import process_id
from objserver.client.leases import Lease
from objserver.client.nested import ask_daemon
from objserver.codecs import Codecs, Types
from objserver.invocation import in_progress
from objserver.machine import machine
from objserver.references import Find, Location, Marks, Origin, Reference, Rule
from objserver.security import ClientTLS, Credentials
from objserver.settings import CLIENT_LIMITS

if TYPE_CHECKING:
    from objserver.client.multiplexed import MultiplexedConnection

__all__ = ["IDLE_CONNECTIONS_MAX", "SURELY_OPEN_S", "ConnectionPool", "LinkPool"]

IDLE_CONNECTIONS_MAX = 8
"""Connections a proxy keeps for its next calls; more are closed after use."""
SURELY_OPEN_S = 0.05
"""A connection taken so recently is not checked for having been closed; the check costs a microsecond."""

ENTRIES_S = 5.0
"""How often a proxy that is used asks a cluster for its addresses: a node that has come since is known before
those that were there have gone."""
OTHERS_TIMEOUT_S = 2.0
"""For a server of a cluster to answer the greeting, if there are others that have not been tried."""
Resolve = Callable[[Reference, float | None], Reference]


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
        here = machine.get()
        self._monotonic = here.monotonic
        self._entries = here.own(Entries)
        self._ask_at = math.inf
        """When the cluster is to be asked for its addresses."""
        self._found: Location | None = None
        """Where the reference leads."""
        self._route: Location | None = None
        """Where the object is, if a server of the cluster has said so."""
        self.handshake = handshake
        self.tls = tls
        self.credentials = credentials
        self.shown: object = None
        """By which a server may tell who calls, if there is such a thing; secrets are not in its `repr`."""
        if tls is not None or credentials is not None or handshake != "hello":
            self.shown = tls, credentials, repr(handshake)
        self.asynchronous = False
        """It belongs to an AsyncProxy."""
        self.lease: Lease | None = None
        """Of the object, if it was exported to this process."""
        self.begin_lease: Callable[[], Lease] | None = None
        """... and nobody has connected to it yet."""
        self.rule: Rule | None = None
        """Of a proxy that arrived in a message: what it may connect to."""
        self.home: Origin | None = None
        """Of a proxy with which a server that knows who calls is called by its own servants."""
        self.marks: Marks | None = None
        """... whom its reference came from."""
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

        def arrive(reference: Reference, marks: Marks | None = None) -> Any:
            pool = weak()
            if reference.location is None or not reference.location.client:
                return references.arrived(reference, origin=pool, marks=marks)
            from objserver.client.home import home

            return home.arrive(reference, pool)

        origin = references.Origin(self.types, self.rule)
        codecs = Codecs(
            CLIENT_LIMITS, export=export, arrive=arrive, origin=origin, marshal=True, types=self.types
        )
        if self.home is not None:
            codecs.native = codecs.native.between(arrive=arrive, marks=True)
            codecs.parts = codecs.parts.between(arrive=arrive, marks=True)
        return codecs

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
                if now < self._ask_at:
                    return connection
                self._ask_at = now + ENTRIES_S
                with contextlib.suppress(errors.ObjServerError):
                    self.told(ask_daemon(connection, "get_entries", (), timeout_s))
                if connection.is_open:
                    return connection
            connection.close()

    def asks_now(self) -> bool:
        """Whether the cluster is to be asked for its addresses; who asks this has to."""
        now = self._monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + ENTRIES_S
        return True

    def told(self, entries: Any) -> None:
        """The cluster has said which its addresses are."""
        if type(entries) is list and entries and self.location is not None:
            self._entries.told(self.location, [str(entry) for entry in entries])

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
        tried: set[Location] = set()
        began, left_s = self._monotonic(), timeout_s
        absent = ""
        while True:
            greeting = self.greeting(left_s, tried)
            try:
                connection = ClientConnection(
                    greeting,
                    codecs=self.codecs,
                    timeout_s=self.patience(left_s, greeting, tried),
                    limits=CLIENT_LIMITS,
                )
            except (errors.ConnectFailed, errors.ObjectNotFound) as problem:
                after_s = self._monotonic() - began
                if timeout_s is not None:
                    left_s = timeout_s - after_s
                if self.may_be_elsewhere(greeting, tried, problem) and (left_s is None or left_s > 0):
                    if isinstance(problem, errors.ObjectNotFound):
                        absent = str(problem)
                    continue
                if absent:
                    raise errors.ObjectNotFound(absent) from None  # who answered knows more than who did not
                if isinstance(problem, errors.ConnectFailed):
                    problem.after_s = after_s
                raise
            connection.last_used = began
            self.met(greeting, connection.greeted)
            return connection

    def patience(self, timeout_s: float | None, greeting: Greeting, tried: set[Location]) -> float | None:
        """How long to wait for the server's answer: not for ever, if another one leads to the object too."""
        if self._ways(tried | {greeting.location}):
            return OTHERS_TIMEOUT_S if timeout_s is None else min(timeout_s, OTHERS_TIMEOUT_S)
        return timeout_s

    def may_be_elsewhere(self, greeting: Greeting, tried: set[Location], problem: BaseException) -> bool:
        """The object was not found where it was looked for; whether to look again, since it can have moved or
        another would do as well."""
        location = greeting.location
        tried.add(location)
        if self._route == location:
            self._route = None
        if isinstance(problem, errors.ConnectFailed):
            self._entries.failed(location, self._monotonic())
        if isinstance(problem, errors.AuthenticationFailed):
            return False
        if self._ways(tried):
            return True
        found = self._found
        if self.reference.protocol == "PYRO" or found is None:
            return False
        return self._failed(self.reference, found)

    def _ways(self, tried: set[Location]) -> list[Location]:
        """What leads to the object and has not been tried, the most promising first."""
        ways: list[Location] = []
        if self._found is not None:
            ways = [*self._entries.of(self._found, self._monotonic())]
        if self._route is not None:
            ways = [self._route, *ways]
        return [way for way in ways if way not in tried]

    def moved(self, problem: errors.Moved) -> None:
        """The object is at another server of the cluster; calls go there from now on."""
        try:
            location = Location.parse(problem.address)
        except ValueError:
            raise errors.ProtocolError(
                f"{self.location} says that {self.object_id} is at {problem.address!r}"
            ) from None
        if self.rule is not None:
            _check_allowed(self.rule, location)
        self._route = location
        for _ in self.drain():
            pass
        if self.live is not None and self.live.location != location:
            self.live.close_when_idle()
            self.live = self.background = None

    def greeting(
        self, timeout_s: float | None, tried: set[Location], *, multiplexed: bool = False
    ) -> Greeting:
        """What to say to the server; finds it first if the reference does not say where it is.

        In a cluster it is one of those that have not been `tried`.  ConnectFailed if it is at a place, or to
        be found through one, that the rule of this proxy excludes.
        """
        if self.rule is not None and self.reference.location is not None:
            for location in (self.reference.location, *self.reference.others):
                _check_allowed(self.rule, location)
        target = self._resolve(self.reference, timeout_s)
        self._found = target.location
        assert target.location is not None
        location = next(iter(self._ways(tried)), target.location)
        if self.rule is not None:
            _check_allowed(self.rule, location)
        return Greeting(
            location,
            target.object_id,
            self.serializer,
            self.handshake,
            self.session,
            process_id(),
            multiplexed,
            self.tls,
            self.credentials,
            self.home.own if self.home is not None else "",
        )

    def met(self, greeting: Greeting, greeted: Greeted) -> None:
        """The server has answered."""
        self.metadata = metadata = greeted.metadata
        self.exactly_once, self.store = metadata.exactly_once, greeted.store
        self.object_id = greeting.object_id
        self.location = greeting.location
        if greeted.entries:
            self._entries.told(greeting.location, greeted.entries)
            self._ask_at = self._monotonic() + ENTRIES_S
        else:
            self._entries.alone(greeting.location)
        self._entries.answered(greeting.location)
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
    shown = None

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
        answer = ask_daemon(self.take(timeout_s), "get_metadata", (self.object_id,), timeout_s)
        self.metadata = Metadata(answer)

    def drain(self) -> Iterator[ClientConnection]:
        """There is nothing to close."""
        return iter(())

    def close_background(self) -> None:
        """There is nothing to close."""
