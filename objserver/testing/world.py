"""A world with a clock of its own: machines for production code to run on, in one thread, at full speed.

Every thread of the simulated processes is a greenlet.  One of them runs at a time, until it waits for
something; then the world takes the next event from its heap, and the time is what that event says.  Nobody
ever waits for real: an hour of waiting costs as much as a second.  All chance comes from one seeded
generator, and nothing else happens in between, so the same seed gives the same run, to the last byte.

Threads change places where they wait, and now and then before they take a lock, as threads of the operating
system would.  Nowhere else: a race between two lines of code without a lock in between is not found here.
A thread that waits while it holds a lock would be a bug, for nobody else could take it; the world reports
it.

A process that crashes is gone at once.  Its threads are ended with an exception that they may not outlive,
but whatever they still do on their way out reaches nobody.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import hashlib
import itertools
import logging
import os
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

import objserver
from objserver.machine import Machine, machine
from objserver.testing.network import Bell, Epoll, Network

__all__ = ["Crashed", "Process", "World"]

TURN_S = 40e-6
"""How long it takes, about, until a thread that has something to do again runs."""
LOCKS_PER_TURN_MAX = 100
"""Locks that are taken, at most, until a thread that is about to take one lets others go first."""
START_S = 1000.0
SHOWN_MAX = 200
"""Events that a failed run can show, the last ones."""
_STAMP = struct.Struct("<dQQ")


EPOCH = 1_800_000_000.0
"""Seconds since 1970 when a world begins."""


class Crashed(GreenletExit):
    """The process of this thread is gone."""


class Thread(greenlet):
    """A thread of a simulated process."""

    def __init__(self, process: Process, target: Callable[[], None], name: str) -> None:
        super().__init__(None, process.world.hub)
        self.process = process
        self.name = name
        self.over = process.Event()
        self._target = target
        context = contextvars.Context()
        context.run(machine.set, process)
        self.gr_context = context

    def run(self, _: Any = None) -> None:
        process = self.process
        try:
            self._target()
        except Crashed:
            pass
        except BaseException as problem:
            if process.alive:
                process.world.fail(f"{self.name} of {process.name} ended with {problem!r}", problem)
        finally:
            process.threads.pop(self, None)
            if process.alive:
                self.over.set()

    def join(self, timeout: float | None = None) -> None:
        self.over.wait(timeout)


class Waiter:
    """One wait of one thread, ended by `wake`, or by time."""

    __slots__ = ("_done", "_process", "_thread")

    def __init__(self, process: Process) -> None:
        self._process = process
        self._thread: Any = None
        self._done = False

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it was woken in time."""
        self._thread = getcurrent()
        if timeout_s is not None:
            self._process.world.at(max(0.0, timeout_s), self._late, self._process)
        return bool(self._process.world.switch(self._process))

    def wake(self) -> None:
        if not self._done:
            self._done = True
            world = self._process.world
            world.at(world.turn(), partial(self._thread.switch, True), self._process)

    def _late(self) -> None:
        if not self._done:
            self._done = True
            self._thread.switch(False)


class Event:
    """threading.Event"""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._waiters: dict[Waiter, None] = {}
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for waiter in self._waiters:
            waiter.wake()
        self._waiters.clear()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            waiter = Waiter(self._process)
            self._waiters[waiter] = None
            try:
                waiter.wait(timeout)
            finally:
                self._waiters.pop(waiter, None)
        return self._set


class Condition:
    """threading.Condition.  Its lock is free for who wants it, since nobody who has it is interrupted."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._waiters: dict[Waiter, None] = {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout: float | None = None) -> bool:
        waiter = Waiter(self._process)
        self._waiters[waiter] = None
        try:
            return waiter.wait(timeout)
        finally:
            self._waiters.pop(waiter, None)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        end = None if timeout is None else self._process.monotonic() + timeout
        while not (result := predicate()):
            left = None if end is None else end - self._process.monotonic()
            if left is not None and left <= 0:
                return result
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        for waiter in list(itertools.islice(self._waiters, n)):
            del self._waiters[waiter]
            waiter.wake()

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


class Semaphore:
    """threading.Semaphore"""

    def __init__(self, process: Process, value: int) -> None:
        self._condition = Condition(process)
        self._value = value

    def acquire(self) -> None:
        self._condition.wait_for(lambda: self._value > 0)
        self._value -= 1

    def release(self) -> None:
        self._value += 1
        self._condition.notify()


class Local:
    """Attributes of which each thread has its own; all begin with the values given."""

    def __init__(self, **initial: Any) -> None:
        self.__dict__["_initial"] = initial
        self.__dict__["_of"] = {}

    def _mine(self) -> dict[str, Any]:
        thread = getcurrent()
        mine = self._of.get(thread)
        if mine is None:
            mine = self._of[thread] = dict(self._initial)
        return mine  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return self._mine()[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._mine()[name] = value


class Lock:
    """threading.Lock.  It is always free, and waiting while one has it is reported."""

    __slots__ = ("_world",)

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> bool:
        world = self._world
        world.locks_until_turn -= 1
        if not world.locks_until_turn:
            world.take_turns()
        world.locks += 1
        return True

    def __exit__(self, *_: object) -> None:
        self._world.locks -= 1

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self.__enter__()

    def release(self) -> None:
        self._world.locks -= 1


class Process(Machine):
    """A process, and the machine it has for itself: one of its lives, which ends when it crashes."""

    def __init__(self, world: World, name: str, host: str) -> None:
        super().__init__()
        self.world = world
        self.name = name
        self.host = host
        self.alive = True
        self.paused_until = 0.0
        self.threads: dict[Thread, None] = {}
        self.Condition = partial(Condition, self)
        self.Event = partial(Event, self)
        self.Semaphore = partial(Semaphore, self)
        self.Local = Local
        self.Bell = partial(Bell, self)
        self.epoll = partial(Epoll, self)
        self.uniform = world.random.uniform
        self.random_bytes = world.random.randbytes
        self.connect = partial(world.network.connect, self)
        self.listen = partial(world.network.listen, self)
        self.start = self._start
        self.current_thread = getcurrent
        self.monotonic = self._monotonic
        self.time = self._time
        self.sleep = self._sleep

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.alive else ' (crashed)'}>"

    def waiter(self) -> Waiter:
        """Something for the current thread to wait for."""
        return Waiter(self)

    def check(self) -> None:
        """Crashed if the process is gone."""
        if not self.alive:
            raise Crashed

    def _time(self) -> float:
        return EPOCH + self._monotonic()

    def _monotonic(self) -> float:
        return self.world.now

    def _sleep(self, seconds: float) -> None:
        world = self.world
        world.at(seconds, getcurrent().switch, self)
        world.switch(self)

    def _start(self, target: Callable[[], None], name: str) -> Thread:
        self.check()
        thread = Thread(self, target, name)
        self.threads[thread] = None
        self.world.at(self.world.turn(), partial(thread.switch, None), self)
        return thread

    def pause(self, seconds: float) -> None:
        """Nothing of it runs for so long (SIGSTOP)."""
        self.paused_until = max(self.paused_until, self.world.now + seconds)

    def crash(self, silently: bool = False) -> None:
        """It ends now (SIGKILL); `silently` with its machine, so that the network does not tell."""
        if self.alive:
            self.alive = False
            self.world.network.crashed(self, silently)
            self.world.at(0.0, self._reap)

    def _reap(self) -> None:
        self.world.reaping = True
        while self.threads:
            thread, _ = self.threads.popitem()
            while not thread.dead:
                thread.throw(Crashed)
        self.world.reaping = False


class _Complaints(logging.Handler):
    """What production code logs as an error is a bug of its own, unless it is on its way out."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        thread = getcurrent()
        if (
            record.thread != self._world.thread
            or self._world.reaping
            or (isinstance(thread, Thread) and not thread.process.alive)
        ):
            return
        if record.levelno >= logging.ERROR:
            problem = record.exc_info[1] if record.exc_info else None
            about = f": {type(problem).__name__}: {problem}" if problem is not None else ""
            self._world.fail(f"logged: {record.getMessage()}{about}", problem)
        else:
            self._world.tell(f"{getattr(thread, 'process', '')} logs: {record.getMessage()}")


class World:
    """See the module's essay.  `tell` gets a line for everything that happens."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = START_S
        self.hub = getcurrent()
        self.thread = threading.get_ident()
        self._wait = self.hub.switch
        self.locks = 0
        """That are held: by the thread that runs, for none that waits may hold one."""
        self.locks_until_turn = self.random.randint(1, LOCKS_PER_TURN_MAX)
        self.events = 0
        self.reaping = False
        self.failures: list[str] = []
        self.problem: BaseException | None = None
        self._tell = tell
        self._heap: list[tuple[float, int, Callable[[], object], Process | None]] = []
        self._serial = itertools.count()
        self._digest = hashlib.sha256()
        self.network = Network(self)

    def process(self, name: str, host: str) -> Process:
        """A new process."""
        process = Process(self, name, host)
        self.network.processes[process] = None
        return process

    # -- time ----------------------------------------------------------------------------------------

    def at(self, delay_s: float, action: Callable[[], object], process: Process | None = None) -> None:
        """Have `action` happen after so many seconds; to `process`, if it lives and runs then."""
        heappush(self._heap, (self.now + delay_s, next(self._serial), action, process))

    def turn(self) -> float:
        """How long the scheduler takes: mostly little, sometimes much."""
        chance = self.random.random()
        return TURN_S * (chance if chance < 0.98 else 1 / (1.0001 - chance))

    def switch(self, process: Process) -> Any:
        """The current thread waits; what it is woken with."""
        if not process.alive:
            raise Crashed
        if self.locks:
            self.fail(f"{getcurrent().name} of {process.name} waits while it holds a lock")
            self.locks = 0
        result = self._wait()
        if not process.alive:
            raise Crashed
        return result

    def take_turns(self) -> None:
        """A thread is about to take a lock: others may go first."""
        self.locks_until_turn = self.random.randint(1, LOCKS_PER_TURN_MAX)
        thread = getcurrent()
        if isinstance(thread, Thread) and not self.locks and thread.process.alive:
            with contextlib.suppress(Crashed):  # it may be a destructor, which nothing may be raised from
                thread.process.sleep(self.turn())

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let things happen until that time, or until it is `done` or something has failed."""
        heap = self._heap
        while heap and not self.failures and not done():
            moment, serial, action, process = heappop(heap)
            if moment > until:
                heappush(heap, (moment, serial, action, process))
                break
            if process is not None:
                if not process.alive:
                    continue
                if process.paused_until > moment:
                    heappush(heap, (process.paused_until, serial, action, process))
                    continue
            self.now = moment
            self.events += 1
            action()
        else:
            return
        self.now = max(self.now, until)

    # -- what is remembered --------------------------------------------------------------------------

    def note(self, *what: object) -> None:
        """Put into the trace."""
        line = " ".join(map(str, what))
        self._digest.update(f"{self.now} {line}".encode())
        self.tell(line)

    def tell(self, line: str) -> None:
        """To whoever wants to know, but it is no part of the trace."""
        if self._tell is not None:
            self._tell(f"{self.now - START_S:.6f} {line}")

    def trace_bytes(self, connection: int, size: int) -> None:
        """So many bytes have arrived; how many, and not which, for their order may depend on the hashes of
        this process."""
        self._digest.update(_STAMP.pack(self.now, connection, size & 0xFFFFFFFF))
        if self._tell is not None:
            self.tell(f"{size} bytes on connection {connection}")

    def trace(self) -> str:
        """SHA-256 of everything that happened, in hexadecimal digits."""
        digest = self._digest.copy()
        digest.update(repr((self.now, self.events, self.random.getstate())).encode())
        return digest.hexdigest()

    def fail(self, what: str, problem: BaseException | None = None) -> None:
        """The run has found something."""
        self.note("FAILED", what)
        self.failures.append(what)
        self.problem = self.problem or problem
        if problem is not None:
            self.tell("".join(traceback.format_exception(problem)))

    # -- the rest of the process ---------------------------------------------------------------------

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """For as long as production code runs here: chance comes from the seed, locks are the world's, errors
        that are logged are failures, and objects are not collected at moments of the interpreter's choice."""
        gc.collect()  # what the run before has left would otherwise end in this one, and take part in it
        urandom, lock, collects = os.urandom, threading.Lock, gc.isenabled()
        logger = logging.getLogger(objserver.__name__)
        before = logger.level, logger.propagate, logger.handlers[:]
        complaints = _Complaints(self)
        gc.disable()
        ours = self.thread  # other threads of this process go on as before
        os.urandom = lambda n: self.random.randbytes(n) if threading.get_ident() == ours else urandom(n)
        threading.Lock = lambda: Lock(self) if threading.get_ident() == ours else lock()  # type: ignore
        logger.handlers[:] = [complaints]
        logger.setLevel(logging.ERROR if self._tell is None else logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            self._end()
            os.urandom, threading.Lock = urandom, lock
            level, logger.propagate, logger.handlers[:] = before
            logger.setLevel(level)
            if collects:
                gc.enable()

    def _end(self) -> None:
        """Every process ends, without a trace."""
        tell, self._tell = self._tell, None
        failures = self.failures[:]
        for process in list(self.network.processes):
            process.crash()
            process._reap()
        self._heap.clear()
        self.failures[:] = failures
        self._tell = tell
