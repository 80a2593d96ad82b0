"""The home of the objects that this process gives to servers, and the loop on which its connections live.

A client that passes an object of an exposed class to a server becomes a server of that object, without a
port: the server calls it on a connection that the client made.  There is one home in a process.  It has an
object adapter, like a server's, a few threads in which methods run, an event loop in a thread of its own,
and a channel to every server that was given an object.  All of it begins with the first object, and a
process that gives nothing away pays nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import Callable, Coroutine
from functools import cached_property, partial
from queue import SimpleQueue
from typing import Any, TypeVar

from objserver.adapter import EMPTY, Concurrent, DaemonObject, Invocation, ObjectAdapter, Shared
from objserver.adapter.coroutines import run_on
from objserver.client.greeting import Greeting
from objserver.client.identity import process_id
from objserver.client.multiplexed import MultiplexedConnection, running_loop
from objserver.clock import SystemClock
from objserver.codecs import Codecs
from objserver.invocation import in_progress
from objserver.logs import escaping
from objserver.references import DAEMON_ID, Location, Reference, arrived
from objserver.security import ClientTLS, Credentials
from objserver.settings import CLIENT_LIMITS, ServerSettings

__all__ = ["Home", "home"]

log = escaping(logging.getLogger("objserver.client"))

T = TypeVar("T")

WORKERS_MAX = 32
"""Threads that run the methods of objects given away: a callback may itself wait for a server that calls
back."""
HOUSEKEEPING_S = 1.0


class _Engine:
    """What runs the adapter's work: threads for functions, the loop of the connection for coroutines."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        """Threads that wait for work, less the work that waits for them."""
        self._threads = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, work: Callable[[], None]) -> None:
        # Not a ThreadPoolExecutor: the interpreter would not exit before all its threads have ended.
        self._work.put(work)
        with self._lock:
            self._free -= 1
            if self._free >= 0 or self._threads >= WORKERS_MAX:
                return
            self._threads += 1
            self._free += 1
        threading.Thread(target=self._run, name="objserver-callback", daemon=True).start()

    def after(self, delay_s: float, work: Callable[[], None]) -> None:
        loop = home.loop
        loop.call_soon_threadsafe(loop.call_later, delay_s, self.submit, work)

    def about_to_block(self, location: Location | None = None) -> None:
        pass

    def no_longer_blocked(self) -> None:
        pass

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except BaseException:
                log.exception("work failed; this is a bug of objserver, not of a callback")
            del work  # what it belongs to may be large, and the next may be long in coming
            with self._lock:
                self._free += 1

    def run_coroutine(
        self,
        coroutine: Coroutine[Any, Any, Any],
        done: Callable[[Any, BaseException | None], None],
        timeout_s: float | None = None,
    ) -> Callable[[], None]:
        facts = in_progress.get()
        link = facts.caller.link if facts is not None else None
        loop = link.loop if isinstance(link, MultiplexedConnection) else home.loop
        return run_on(loop, self._tasks, coroutine, done, timeout_s)


class Home:
    """See the module's essay.  Every method may be called from any thread, but `loop`'s own must not
    block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[tuple[Any, ...], asyncio.Task[MultiplexedConnection]] = {}
        """By server, and by what the server was told and shown in the handshake."""

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the process's own thread; begun when first asked for."""
        with self._lock:
            if "loop" not in self.__dict__:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="objserver-client", daemon=True).start()
                self.__dict__["loop"] = loop
            return self.__dict__["loop"]  # type: ignore[no-any-return]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the loop, and wait for it; RuntimeError on the loop itself."""
        if running_loop() is self.loop:
            coroutine.close()
            raise RuntimeError(
                "this would wait for the event loop that it runs on, that of the objects which this process "
                "has given away: use an AsyncProxy, or `await asyncio.to_thread(...)`"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    # -- objects given away --------------------------------------------------------------------------

    @cached_property
    def adapter(self) -> ObjectAdapter:
        """Serves the objects that were given away."""
        loop = self.loop
        with self._lock:
            if "adapter" not in self.__dict__:
                engine, clock = _Engine(), SystemClock()
                adapter = ObjectAdapter(
                    codecs=Codecs(CLIENT_LIMITS), engine=engine, settings=ServerSettings(), clock=clock
                )
                adapter.register(DaemonObject(adapter, self._describe), DAEMON_ID, Shared(), Concurrent())

                def keep_house() -> None:
                    engine.submit(partial(adapter.housekeeping, clock.monotonic()))
                    if not adapter.exported:
                        self._close_channels()
                    loop.call_later(HOUSEKEEPING_S, keep_house)

                loop.call_soon_threadsafe(keep_house)
                self.__dict__["adapter"] = adapter
            return self.__dict__["adapter"]  # type: ignore[no-any-return]

    def _describe(self) -> str:
        return f"the objects of client {process_id()} (pid {os.getpid()})"

    def export(self, value: object) -> Reference | None:
        """The reference of `value` if it is an object of an exposed class; from then on it can be called."""
        object_id = self.adapter.export(value)
        return None if object_id is None else Reference("PYRO", object_id, Location(client=process_id()))

    def arrive(self, reference: Reference, origin: object = None) -> Any:
        """What a reference that a server sent becomes: an object of this process is itself.

        `origin` is what it came through, and is passed on.
        """
        if reference.location is not None and reference.location.client == process_id():
            servant = self.adapter.servant_at(reference.object_id)
            if servant is not EMPTY:
                return servant
        return arrived(reference, origin=origin)

    def disconnected(self, connection: MultiplexedConnection) -> None:
        """A connection is gone, on which objects of this process may have been called."""
        if "adapter" in self.__dict__:
            self.adapter.disconnected(connection)

    def call(self, invocation: Invocation) -> None:
        """A server calls an object of this process."""
        if self.adapter.admit(invocation):
            self.adapter.run_later(invocation)

    # -- channels ------------------------------------------------------------------------------------

    def open_channel(
        self,
        location: Location,
        handshake: Any,
        timeout_s: float | None,
        tls: ClientTLS | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """See that the server at `location` can call this process; waits for the connection.

        ConnectFailed if it cannot be made.  On the loop itself it only begins: what passes an object there
        has a connection to be called on.
        """
        opening = self._channel(location, handshake, timeout_s, tls, credentials)
        if running_loop() is self.loop:
            self.loop.create_task(opening).add_done_callback(_seen)
        else:
            self.run(opening)

    async def _channel(
        self,
        location: Location,
        handshake: Any,
        timeout_s: float | None,
        tls: ClientTLS | None,
        credentials: Credentials | None,
    ) -> MultiplexedConnection:
        key = location, repr(handshake), tls, credentials
        task = self._channels.get(key)
        if task is None or (task.done() and (task.exception() is not None or task.result().closed)):
            types = self.adapter.codecs.types
            codecs = Codecs(CLIENT_LIMITS, export=self.export, arrive=self.arrive, types=types)
            greeting = Greeting(
                location,
                DAEMON_ID,
                None,
                handshake,
                session=uuid.uuid4().hex,
                client=process_id(),
                multiplexed=True,
                tls=tls,
                credentials=credentials,
            )
            opening = MultiplexedConnection.open(
                greeting, codecs=codecs, home=self, timeout_s=timeout_s, limits=CLIENT_LIMITS
            )
            task = self._channels[key] = asyncio.ensure_future(opening)
        return await asyncio.shield(task)

    def _close_channels(self) -> None:
        """Nobody holds an object of this process.  On the loop, so that no export comes in between."""
        for key, task in list(self._channels.items()):
            if task.done():
                del self._channels[key]
                if task.exception() is None:
                    task.result().close()


def _seen(task: asyncio.Task[MultiplexedConnection]) -> None:
    if not task.cancelled():
        task.exception()


home = Home()


def _in_a_new_process() -> None:
    """A fork has none of the threads, and must not answer in its parent's name."""
    home.__dict__.clear()
    home.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_in_a_new_process)
