"""`ObjectServer`: a listening address, an engine, and the objects served there.

    with ObjectServer("localhost:9091", store="sqlite:///bank.db") as server: ...

Start order: store, listener, engine.  Stop order is the reverse, with the drain first: no new connections, no
new requests, the invocations in progress finish, every servant ends (Persistent ones are saved), then the
connections close, so a client sees a graceful end or its reply.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import socket
import threading
import uuid
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from threading import Event
from types import TracebackType
from typing import Any, Self

from objserver import errors
from objserver.adapter import (
    EMPTY,
    ActivationPolicy,
    Concurrent,
    DaemonObject,
    Giver,
    Merge,
    ObjectAdapter,
    Shared,
    ThreadingPolicy,
)
from objserver.clock import Clock
from objserver.codecs import Codecs, Types
from objserver.invocation import Interceptor
from objserver.logs import escaping
from objserver.machine import machine
from objserver.references import DAEMON_ID, Location, Marks, Origin, Reference, Rule, arrived, deliver
from objserver.security import Authentication, Authorization, Itself, ServerTLS
from objserver.security.principal import Principal
from objserver.security.tls import Identity
from objserver.server.callbacks import Callbacks, WayBack
from objserver.server.connection import LINGER_S, Connection
from objserver.server.conversation import Conversation
from objserver.server.engine import WorkerEngine
from objserver.server.node import Placement, found
from objserver.server.outgoing import rule_of
from objserver.server.poller import SocketPoller
from objserver.server.pyro5_daemon import Pyro5Daemon
from objserver.settings import ServerSettings
from objserver.storage import Committer, Store, dump_file, open_store
from objserver.wire.shared_memory import SharedMemory

__all__ = ["ObjectServer"]

log = escaping(logging.getLogger("objserver.server"))


class ObjectServer:
    """Hosts objects at one address.

    `address` is `host:port` (port 0: any free one), `[ipv6]:port` or `./u:path` for a Unix socket. `store`
    is the URL of the store for Persistent objects.  `workers` bounds the threads that run servants (those
    that wait for other objects have a bound of their own, a setting); one makes the server iterative.
    `interceptors` are put around every call of a servant.  `types` are classes whose values may arrive as
    what they are, beside those that the annotations of registered classes mention.

    `tls` encrypts every connection, and with a `client_ca` tells who calls by the clients' certificates;
    `authentication` has other means to tell.  With either, a client that does not prove who it is is refused.
    Binding beyond the own machine with neither needs `insecure=True`.  `itself` is how servants call objects
    of this very server by reference, and how messages reach them that objects of it send.

    `authorization` says who may call what.  Without it, a server that knows who calls allows what `roles` of
    `@expose` allow, and nothing else; one that does not know allows everything that is exposed.

    `connects_to` limits where a servant may connect to by calling a proxy that came in an argument: names,
    addresses and networks (`["*.lab:9090", "10.1.0.0/16"]`, `[]` for nowhere), or a callable from Location to
    bool.

    Servers that have one store and the name of a `cluster` are that cluster: any of them answers for all its
    Persistent objects.  `node` is this one's name there, by default its address.  `placement` says where an
    object is to live that nobody has (`objserver.cluster`); by default where it is called first.

    Usable as a context manager; leaving it drains and stops.
    """

    def __init__(
        self,
        address: str = "localhost:0",
        *,
        store: str | Store | None = None,
        workers: int | None = None,
        settings: ServerSettings | None = None,
        insecure: bool = False,
        tls: ServerTLS | None = None,
        authentication: Authentication | None = None,
        itself: Itself | None = None,
        authorization: Authorization | None = None,
        interceptors: Sequence[Interceptor] = (),
        clock: Clock | None = None,
        types: Iterable[type] = (),
        connects_to: Iterable[str] | Rule | None = None,
        cluster: str = "",
        node: str = "",
        placement: Placement | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        if workers is not None:
            self.settings = dataclasses.replace(self.settings, workers_max=workers)
        if self.settings.workers_max < 1:
            raise ValueError(f"workers={self.settings.workers_max}: a server needs at least one")
        self._machine = machine.get()
        self.clock: Clock = clock or self._machine
        known = Types(types)
        self._rule = rule_of(connects_to)
        self._location = Location.parse(address)
        self.tls = tls
        self._certificates_only = authentication is None
        if authentication is None and tls is not None and tls.client_ca is not None:
            authentication = Authentication()
        self._authentication = authentication
        if authorization is None and authentication is not None:
            authorization = Authorization()
        """None where nobody is asked who it is."""
        self.random_bytes = self._machine.random_bytes
        self._identity: Identity | None = None
        self.reload_tls()
        # Whoever reaches the port must find somebody at home, so the store is opened first.
        self._store = open_store(store) if isinstance(store, str) else store
        try:
            self._listener = self._machine.listen(self._location, insecure or authentication is not None)
        except BaseException:
            if isinstance(store, str) and self._store is not None:
                self._store.close()
            raise
        if not self._location.path:
            self._location = Location(self._location.host, self._listener.getsockname()[1])
        self._committer = Committer(self._store) if self._store is not None else None
        self.store_id = self._store.id if self._store is not None else ""
        self.itself = itself = itself or Itself()
        self.node_name, self.placement = node, placement
        rule = None if self._rule is None else self._allows
        lend = None if authorization is None else self._lend
        self._foreign = Origin(known, rule)
        self.own = self.random_bytes(16).hex() if authorization is not None else ""
        """By which it knows the connections that its own servants make."""
        self._origin = Origin(
            known, rule, self._location, itself.tls, itself.credentials, lend=lend, own=self.own
        )
        self.codecs = Codecs(
            self.settings.limits,
            substitute=self._substitute,
            export=self._export,
            arrive=self._arrive,
            origin=self._foreign,
            marshal=self.settings.marshal,
            types=known,
        )
        self.callbacks = Callbacks()
        self.memory = SharedMemory(
            self.settings.shared_memory_max, self.settings.limits.shared_buffer_size_max
        )
        # Dicts, which have an order: in a simulation everything does.
        self.hurried: dict[Connection, None] = {}
        self.gathering: dict[Connection, None] = {}
        self.expiring: dict[Connection, float] = {}
        """When what proves their clients' names expires, in seconds since 1970."""
        self.keeping: dict[Conversation, None] = {}
        """Who keeps results, for a while."""
        self.receiving = 0
        self.unsent = 0
        self._receiving_lock = threading.Lock()
        self.refused = 0
        self.poller = SocketPoller(self, self._listener)
        self.engine = WorkerEngine(
            self.poller,
            self.settings.workers_max,
            self._housekeeping,
            self.settings.workers_blocked_max,
            looked=self._send_gathered,
        )
        self.engine.location = self._location
        self.node = found(self, self._store, cluster) if cluster else None
        self.adapter = ObjectAdapter(
            codecs=self.codecs,
            engine=self.engine,
            settings=self.settings,
            clock=self.clock,
            store=self._store,
            committer=self._committer,
            pyro5_daemon=Pyro5Daemon(self),
            interceptors=interceptors,
            deliver=self._deliver,
            authorization=authorization,
            ownership=self.node,
            relay=self.node.relay if self.node is not None else None,
        )
        daemon = DaemonObject(self.adapter, self._describe, self.entries)
        self.adapter.register(daemon, DAEMON_ID, Shared(), Concurrent())
        self._state = "new"
        self._stopped = self._machine.Event()
        self._state_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<ObjectServer {self.address} {self._state} {len(self.adapter.registered()) - 1} registered>"

    @property
    def address(self) -> str:
        """Where the server listens, as it stands in URIs."""
        return str(self._location)

    @property
    def authentication(self) -> Authentication | None:
        """How clients prove who they are; another one counts for those that come from then on."""
        return self._authentication

    @authentication.setter
    def authentication(self, authentication: Authentication) -> None:
        if self.authorization is None:
            self.authorization = Authorization()
        self._authentication = authentication

    @property
    def authorization(self) -> Authorization | None:
        """Who may call what; another one counts from the next call on.  None: nobody is asked who calls."""
        return self.adapter.authorization

    @authorization.setter
    def authorization(self, authorization: Authorization) -> None:
        self.adapter.authorization = authorization

    # -- what is served ------------------------------------------------------------------------------

    def register(
        self,
        class_or_instance: Any,
        name: str | None = None,
        *,
        activation: ActivationPolicy | None = None,
        threading: ThreadingPolicy | None = None,
    ) -> Reference:
        """Serve a class, an instance, or a locator (a callable from key to servant) under `name`.

        Without a name one is made up.  Without policies a class is Shared and Serial; one written for
        Pyro5 keeps Pyro5's meaning (session unless @behavior says otherwise, called concurrently).
        Raises RegistrationError with the reason if this cannot be served.
        """
        if self._state in ("stopping", "stopped"):
            raise errors.RegistrationError(f"the server at {self.address} has stopped")
        if name is None:
            name = f"obj_{uuid.uuid4().hex}"
        self.adapter.register(class_or_instance, name, activation, threading)
        return Reference("PYRO", name, self._location)

    def unregister(self, name: str) -> None:
        """Stop serving `name`.  Calls that have begun finish; stored state stays stored."""
        if name == DAEMON_ID:
            raise errors.RegistrationError(f"{DAEMON_ID} is the server itself and stays")
        self.adapter.unregister(name)

    def change_policy(
        self,
        name: str,
        *,
        activation: ActivationPolicy | None = None,
        threading: ThreadingPolicy | None = None,
        merge: Merge | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Give what is registered as `name` other policies while it is called; done when this returns.

        What is not given stays.  Calls that have begun end, those that come wait, then they go on in their
        order: none is lost or refused, and references stay as they are.  `merge` makes one servant of the
        list of all clients', when PerClient becomes Shared or Persistent.

        If it cannot be, nothing has changed: RegistrationError with the reason, also when what has begun
        does not end in `timeout_s` seconds (by default the setting drain_timeout_s); StoreError, StateError
        or ActivationError when the state could not be saved or loaded; Deadlock in a call of the object
        itself.
        """
        if name == DAEMON_ID:
            raise errors.RegistrationError(f"{DAEMON_ID} is the server itself and stays as it is")
        if self._state in ("stopping", "stopped"):
            raise errors.RegistrationError(f"the server at {self.address} has stopped")
        if self.engine.nobody_else_works:
            raise errors.Deadlock(
                f"changing the policies of {name!r} needs a worker, and this servant has the only one; "
                "let a thread of its own do it"
            )
        finished = Event()
        outcome: list[BaseException | None] = []

        def done(problem: BaseException | None) -> None:
            outcome.append(problem)
            finished.set()

        self.engine.about_to_block()
        try:
            change = self.adapter.change_policy(name, activation, threading, merge, done)
            try:
                finished.wait(self.settings.drain_timeout_s if timeout_s is None else timeout_s)
            finally:
                change.give_up()
            while not finished.wait(1.0):  # it is being converted, and that ends
                if self._stopped.is_set():
                    raise errors.RegistrationError(f"the server at {self.address} has stopped meanwhile")
        finally:
            self.engine.no_longer_blocked()
        if outcome[0] is not None:
            raise outcome[0]

    def reference(self, object_id: str) -> Reference:
        """The reference of a served object; ObjectNotFound if nothing here serves it."""
        return self.adapter.reference(object_id, self._location)

    def reload_tls(self) -> None:
        """Read the files of `tls` again, for the connections that come from now on; others stay as they are.

        RegistrationError if they cannot be used: then nothing has changed.
        """
        if self.tls is not None:
            self._identity = self.tls.load(self._certificates_only)

    def accepted(self, sock: Any, address: Any, serial: int) -> Connection:
        """The connection of a client that has come."""
        if self._identity is None:
            return Connection(self, sock, address, serial)
        from objserver.server.encrypted import EncryptedConnection  # it loads OpenSSL

        return EncryptedConnection(self, sock, address, serial, self._identity)

    def adopt(self, sock: socket.socket, data: bytes = b"") -> None:
        """Serve a client whose connection somebody else accepted; from any thread.

        `data` is what has been read from it, nothing of which has been answered: with TLS, nothing at all.
        If the server stops, the socket is closed.
        """
        if data and self._identity is not None:
            sock.close()
            raise ValueError("this server speaks TLS; who hands connections over must not read from them")
        self.poller.adopt(sock, data)

    def validate_handshake(self, greeting: Any) -> Any:
        """For subclasses: look at a client's handshake data; raise to refuse it, return the answer."""
        return "hello"

    def _substitute(self, value: object) -> Reference | None:
        object_id = self.adapter.reference_id(value)
        return None if object_id is None else Reference("PYRO", object_id, self._location)

    def _export(self, value: object, to: str = "") -> Reference | None:
        object_id = self.adapter.export(value, to)
        return None if object_id is None else Reference("PYRO", object_id, self._location)

    def codecs_with(self, connection: Connection, *, in_calls: bool = True) -> Codecs:
        """The codecs for a client who is known: its references come from it, and what it gets is its own.

        `in_calls`: what is decoded are its calls, and not its replies.
        """
        peer = weakref.ref(connection)  # sockets in a cycle would wait for the garbage collector

        def arrive(reference: Reference, marks: Marks | None = None) -> Any:
            return self._arrive(reference, marks, peer(), in_calls)

        def arrive_stock(reference: Reference) -> Any:
            # It has no process of ours, and is never given an object itself.
            sender = peer()
            marks = None if sender is None or not self.is_here(reference) else sender.marks(None)
            return arrived(reference, origin=self._lent(marks))

        return self.codecs.between(
            arrive=arrive,
            arrive_stock=arrive_stock,
            export=partial(self._export, to=connection.whose),
            marks=connection.is_own,
        )

    def _arrive(
        self,
        reference: Reference,
        marks: Marks | None = None,
        sender: Connection | None = None,
        in_call: bool = False,
    ) -> Any:
        """What a reference that one of our peers sent becomes: an object of this server is itself.

        `sender` is given where it is known who that is; without one it comes out of the store.
        """
        if reference.location is not None and reference.location.client:
            way = WayBack(self.callbacks, self.adapter, reference.location.client, sender)
            if sender is not None and in_call:
                sender.bring(way)
            return arrived(reference, way, self._origin)
        if not self.is_here(reference):
            return arrived(reference, origin=self._origin)
        if self.authorization is None:
            marks = []
        elif sender is not None:
            marks = sender.marks(marks)
        if marks is not None:
            givers = [Giver(Principal.from_data(mark)) for mark in marks]
            servant = self.adapter.servant_at(reference.object_id, givers)
            if servant is not EMPTY:
                return servant
        return arrived(reference, origin=self._lent(marks))

    def _lent(self, marks: Marks | None) -> Origin:
        """What a servant calls an object here with: as the server, if it is known whose reference it is."""
        return self._foreign if marks is None else self._origin._replace(marks=marks)

    def _lend(self, marks: Marks, object_id: str, method: str | None, args: Sequence[Any]) -> None:
        givers = [Giver(Principal.from_data(mark)) for mark in marks]
        self.adapter.lend(givers, object_id, method, args)

    def _allows(self, location: Location) -> bool:
        """Whether a proxy that came in an argument may connect there; to this server it always may."""
        return location == self._location or (self._rule is not None and self._rule(location))

    def _deliver(self, target: str, method: str, payload: bytes, call: Any, acked: int) -> None:
        """Make the call that a message is; another worker may have this one's place meanwhile."""
        self.engine.about_to_block()
        try:
            deliver(target, method, payload, call, acked, self._origin)
        finally:
            self.engine.no_longer_blocked()

    def is_here(self, reference: Reference) -> bool:
        """Whether a reference is to an object at this server's address."""
        return reference.protocol == "PYRO" and reference.location == self._location

    def dump(self, path: str) -> None:
        """Write the whole store, as it is at one moment, to a file that `objserver store load` reads.

        Calls go on meanwhile.  StoreError if there is no store, or if the file cannot be written.
        """
        if self._store is None:
            raise errors.StoreError("this server has no store to dump; give it one: ObjectServer(store=...)")
        dump_file(self._store, path)

    # -- life ----------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to serve, in threads of the server's own; returns at once."""
        with self._state_lock:
            if self._state != "new":
                raise RuntimeError(f"the server has been started before and is {self._state}")
            self._state = "serving"
        _raise_descriptor_limit(self.settings.connections_max)
        self.engine.start()
        if self.node is not None:
            self.node.start()
        return self

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Take no new connections and requests, let calls finish, end the servants, close.

        What still runs after `drain_timeout_s` seconds (by default the setting) is left alone.  A second call
        waits for the first.
        """
        with self._state_lock:
            first = self._state in ("new", "serving")
            started = self._state == "serving"
            if first:
                self._state = "stopping"
        if not first:
            self._stopped.wait()
            return
        timeout = self.settings.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        # Threads end in the machine's time, whatever clock objects live by.
        deadline = self._machine.monotonic() + timeout
        try:
            if started and self.node is not None:
                self.node.drain(deadline)
            self.poller.stop_accepting()
            self._listener.close()
            if self._location.path and os.path.exists(self._location.path):
                os.unlink(self._location.path)
            if started:
                self.poller.pause_reading()
                self.adapter.stop_timers()
                settled = self._await_readers(deadline)
                self._await_quiet(deadline)
                self.adapter.end_all()
                self._await_quiet(deadline)
                if self._committer is not None and settled:
                    # Nobody runs any more, but its thread may be about to tell what it has committed last.
                    self._committer.close()
                    self._await_quiet(deadline)
                settled = settled and not self.adapter.busy and not self.receiving
            self._send_gathered(True)
            for connection in list(self.poller.connections.values()):
                if started and settled:
                    connection.say_goodbye()
                connection.close()
            self._await_taken(min(deadline, self._machine.monotonic() + LINGER_S))
        finally:
            if started:
                self.engine.stop()
            if self._committer is not None:
                self._committer.close()
            if started and self.node is not None:
                self.node.stop()
            if self._store is not None:
                self._store.close()
            self.poller.close()
            self.memory.close()
            self._state = "stopped"
            self._stopped.set()

    def _await_readers(self, deadline: float) -> bool:
        """Until whatever was being read when reading was paused has been admitted; False if that takes long.

        The leader reads, and what is submitted to it runs when it does not.
        """
        passed = self._machine.Event()
        self.engine.submit(passed.set)
        return bool(passed.wait(max(0.0, deadline - self._machine.monotonic())))

    def _await_quiet(self, deadline: float) -> None:
        """Until nothing runs or waits.  The pause is how often we look, not what we rely on."""
        pause = self._machine.Event()
        while (
            self.adapter.busy or self.receiving or self.engine.at_work
        ) and self._machine.monotonic() < deadline:
            pause.wait(0.002)

    def _await_taken(self, deadline: float) -> None:
        """Until the clients have mapped what the last replies lent them: it ends with us."""
        pause = self._machine.Event()
        while self.memory.is_awaited and self._machine.monotonic() < deadline:
            pause.wait(0.002)

    def serve_forever(self) -> None:
        """Serve until `stop()` is called from elsewhere or the process is interrupted (Ctrl-C)."""
        if self._state == "new":
            self.start()
        try:
            while not self._stopped.wait(3600):
                pass
        except KeyboardInterrupt:
            log.info("interrupted; draining")
        finally:
            self.stop()

    def __enter__(self) -> Self:
        return self.start() if self._state == "new" else self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- looking in ----------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """What the server holds right now, each count beside its limit."""
        figures = {
            "address": self.address,
            "state": self._state,
            "connections": len(self.poller.connections),
            "connections_max": self.settings.connections_max,
            "receiving_bytes": self.receiving,
            "receive_memory_max": self.settings.receive_memory_max,
            "unsent_bytes": self.unsent,
            "unsent_memory_max": self.settings.unsent_memory_max,
            "shared_lent_bytes": self.memory.lent,
            "shared_mapped_bytes": self.memory.mapped,
            "shared_memory_max": self.settings.shared_memory_max,
            "hurried_connections": len(self.hurried),
            "refused": self.refused,
            **self._statistics_of_conversations(),
            **self.engine.statistics(),
            **self.adapter.statistics(),
        }
        if self._committer is not None:
            figures["store"] = self._committer.statistics()
        if self.node is not None:
            figures.update(self.node.statistics())
        return figures

    def _statistics_of_conversations(self) -> dict[str, int]:
        counts = {
            "calls_in_flight": 0,
            "kept_results": 0,
            "callbacks_waiting": 0,
            "calls_per_connection_max": self.settings.calls_per_connection_max,
            "kept_results_max": self.settings.kept_results_max,
            "callbacks_per_connection_max": self.settings.callbacks_per_connection_max,
        }
        for connection in list(self.poller.connections.values()):
            for name, count in connection.under_way().items():
                counts[name] += count
        return counts

    def entries(self) -> list[str]:
        """Addresses that lead to every object of the cluster; none, if this server is in none."""
        return [] if self.node is None else [*self.node.entries]

    def _describe(self) -> str:
        return (
            f"objserver at {self.address} (pid {os.getpid()}), {len(self.adapter.registered())} objects "
            f"registered, {len(self.poller.connections)} connections"
        )

    def _housekeeping(self) -> None:
        now = self.clock.monotonic()
        for connection in list(self.hurried):
            if connection.deadline is not None and now >= connection.deadline:
                connection.expire()
        if self.expiring:
            today = self.clock.time()
            for connection, expires_at in list(self.expiring.items()):
                if today >= expires_at:
                    del self.expiring[connection]
                    connection.expire_principal()
        if self.poller.accepting:
            self.poller.resume_accepting()
        self.memory.sweep()
        for conversation in list(self.keeping):
            conversation.housekeeping(now)
        self.adapter.housekeeping(now)

    def hold(self, size: int) -> None:
        """Count bytes of requests, unfinished, not yet decoded or not yet done; too many are refused."""
        with self._receiving_lock:
            if size > 0 and self.receiving + size > self.settings.receive_memory_max:
                raise errors.MessageTooLarge(
                    "the server holds too many large requests now (setting receive_memory_max); try later"
                )
            self.receiving += size

    def owe(self, size: int) -> bool:
        """Count bytes of replies that wait for peers to read; False, and not counted, if too many."""
        with self._receiving_lock:
            if size > 0 and self.unsent + size > self.settings.unsent_memory_max:
                return False
            self.unsent += size
            return True

    def _send_gathered(self, stuck: bool) -> None:
        """Replies that wait to be sent together have waited long enough; a servant may even be `stuck`."""
        for connection in list(self.gathering):
            if stuck:
                connection.send_gathered()
            else:
                connection.send(b"")

    def forget(self, connection: Connection) -> None:
        """A connection is about to close."""
        self.hurried.pop(connection, None)
        self.gathering.pop(connection, None)
        self.expiring.pop(connection, None)
        self.callbacks.remove(connection)
        self.poller.forget(connection)


def _raise_descriptor_limit(wanted: int) -> None:
    """Every connection is a descriptor; many systems start a process with 1024 although it may have more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted + 256 if hard == resource.RLIM_INFINITY else min(wanted + 256, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
