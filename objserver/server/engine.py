"""The engine: threads that run servants, by leader and followers with promotion.

One thread, the leader, polls for work and runs it itself, so a call costs no hand-over between threads.
When a servant blocks, the rest of the server must not: a monitor looks every few milliseconds, and if the
leader is still in the same piece of work, a sleeping follower is promoted and polls instead. A thread that
returns from its work and finds that it no longer leads goes to sleep among the followers, unless nobody
leads.

The right to lead is a baton in the leader's own list. Before a leader runs something it lays the baton down
(`append`); afterwards it takes it up (`pop`). Whoever pops it decides who leads: a `pop` of an empty list
tells the leader that it was replaced. Both are atomic, so a call costs no lock. The lock guards what happens
when the lead changes hands: the counts of workers, and whether the lead is vacant because all were busy.

A worker whose servant calls another object says so (`about_to_block` ... `no_longer_blocked`). It does not
count against `workers_max` meanwhile: the answer may have to come from this very server, and if every worker
waited for one, nobody would be left to give it. Such waits have a bound of their own, `blocked_max`, so there
are never more than `workers_max + blocked_max` workers. One that comes back from its wait does not queue for
a place, it may hold what the others wait for: more than `workers_max` run then, and a worker too many ends
when its work does. With one worker the server is iterative, waits or not: no other takes over.

Waking the monitor for every call would cost more than the call, so it parks when nothing has run for a
while, and the next call wakes it once. Looking every millisecond would fight the leader for the
interpreter: 5 ms does not show in the 99th percentile, 1 ms does. Only while one promotion follows another
does it look faster, so that thirty blocking servants are under way in a few hundredths of a second.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from objserver.errors import Deadlock, ServerBusy
from objserver.logs import escaping
from objserver.machine import machine
from objserver.references import Location
from objserver.settings import ServerSettings

if TYPE_CHECKING:  # asyncio is loaded when the first coroutine comes: it takes long
    import asyncio

__all__ = ["Poller", "WorkerEngine"]

log = escaping(logging.getLogger("objserver.engine"))

LOOK_S = 0.005
LOOK_AGAIN_S = 0.001
LOOKS_BEFORE_PARKING = 20
HOUSEKEEPING_S = 0.5


class Poller(Protocol):
    """Where the leader looks for work from outside."""

    def poll(self, wait: bool) -> None:
        """Turn what is ready into calls of the engine's `enqueue`; block if `wait`."""

    def wake(self) -> None:
        """Make a blocked `poll` return."""


class WorkerEngine:
    """Up to `workers_max` threads that run, and `blocked_max` more that wait for other objects.

    `housekeeping` is submitted about twice a second; `looked` is called by the monitor whenever it looks and
    something runs, with True when that is the same piece of work again.
    """

    def __init__(
        self,
        poller: Poller,
        workers_max: int,
        housekeeping: Callable[[], None],
        blocked_max: int = ServerSettings.workers_blocked_max,
        looked: Callable[[bool], None] = lambda stuck: None,
    ) -> None:
        if workers_max < 1:
            raise ValueError(f"workers_max={workers_max}: a server needs at least one worker")
        if blocked_max < 0:
            raise ValueError(f"blocked_max={blocked_max}: the number of workers that wait cannot be negative")
        self._machine = machine.get()
        self.workers_max = workers_max
        self.blocked_max = blocked_max
        self._poller = poller
        self._housekeeping = housekeeping
        self._looked = looked
        self._ready: deque[Callable[[], None]] = deque()
        self.enqueue = self._ready.append
        """As `submit`, from the leader itself, who need not be woken."""
        self._baton: list[int] = []
        self._serial = 0
        self._lock = threading.Lock()
        self._workers = 0
        self._idle = 0
        self._blocked = 0
        self._vacant = True
        self._promotion = self._machine.Semaphore(0)
        self._polling = False
        self._is_parked = False
        self._unpark = self._machine.Event()
        self._stopping = False
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer = count()
        self._threads: dict[Any, None] = {}
        self._own = self._machine.Local(baton=None, waits=0)
        """What a thread knows of itself: its baton, None if it is no worker; and how many `about_to_block`
        its `no_longer_blocked` has yet to answer."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_end: asyncio.Future[None]
        self._coroutines: set[asyncio.Task[None]] = set()  # an event loop does not keep its tasks alive
        self.promotions = 0
        self.location: Location | None = None
        """Where the server of these workers listens."""

    # -- what others call ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the first worker and the monitor."""
        with self._lock:
            self._vacant = False
            self._spawn(self._work, "worker")
            self._workers = 1
            self._spawn(self._monitor if self.workers_max > 1 else self._keep_house_only, "monitor")

    def stop(self, timeout_s: float = 1.0) -> None:
        """Let every thread end after its present work, and wait for all of them up to `timeout_s`.

        Those that take longer are left; they are daemons.  Further calls only wait again.
        """
        with self._lock:
            first, self._stopping = not self._stopping, True
            threads = [t for t in self._threads if t is not self._machine.current_thread()]
            self._idle = 0
        if first:
            self._unpark.set()
            self._poller.wake()
            for _ in threads:
                self._promotion.release()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop_end.set_result, None)
        deadline = self._machine.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - self._machine.monotonic()))

    def submit(self, work: Callable[[], None], *, next: bool = False) -> None:
        """Have `work` run by a worker, before all that waits if `next`; from any thread."""
        self._ready.appendleft(work) if next else self._ready.append(work)
        if self._polling:
            self._poller.wake()

    def after(self, delay_s: float, work: Callable[[], None]) -> None:
        """Submit `work` when `delay_s` seconds have passed, or a few milliseconds more; from any thread."""
        with self._lock:
            heapq.heappush(self._timers, (self._machine.monotonic() + delay_s, next(self._timer), work))
        self._unpark.set()

    def about_to_block(self, location: Location | None = None) -> None:
        """The calling worker is going to wait for the network: let another lead at once.

        ServerBusy if `blocked_max` wait already.  Nothing happens in a thread that is no worker.  With one
        worker nobody can take over: Deadlock if it waits for `location` and that is its own server's.
        """
        mine = self._own
        if mine.baton is None:
            return
        if self.workers_max == 1:
            if location is not None and location == self.location:
                raise Deadlock(
                    f"an iterative server (workers=1) cannot wait for an object of its own, at {location}: "
                    "its one worker is who would answer; call the object itself, or have more workers"
                )
            return
        if not mine.waits:
            with self._lock:
                if self._blocked >= self.blocked_max:
                    raise ServerBusy(
                        f"{self._blocked} servants wait for answers of other objects already "
                        "(setting workers_blocked_max); try later"
                    )
                self._blocked += 1
                try:
                    mine.baton.pop()
                except IndexError:
                    pass  # replaced before; but what it leaves may be the place that a vacancy waits for
                else:
                    self._vacant = True
                self._appoint()
        mine.waits += 1

    def no_longer_blocked(self) -> None:
        """The wait that `about_to_block` announced in this thread is over."""
        mine = self._own
        if mine.waits:
            mine.waits -= 1
            if not mine.waits:
                with self._lock:
                    self._blocked -= 1

    @property
    def nobody_else_works(self) -> bool:
        """Whether the calling thread is the one worker there is: what it waits for, nobody does meanwhile."""
        return self.workers_max == 1 and self._own.baton is not None

    def run_coroutine(
        self,
        coroutine: Coroutine[Any, Any, Any],
        done: Callable[[Any, BaseException | None], None],
        timeout_s: float | None = None,
    ) -> Callable[[], object]:
        """Run `coroutine` on the server's one event loop; `done` is called there with its outcome.

        It sees the context variables that the caller has now.  It is cancelled after `timeout_s` seconds, or
        by calling what is returned, from any thread.  After `stop` it does not run: `done` is called here,
        with ServerBusy.
        """

        from objserver.adapter.coroutines import run_on

        with self._lock:  # so that stop comes before, or after the coroutine is on the loop
            if not self._stopping:
                return run_on(self._event_loop(), self._coroutines, coroutine, done, timeout_s)
        coroutine.close()
        done(None, ServerBusy("the server is stopping and runs no more coroutines"))
        return lambda: None

    def statistics(self) -> dict[str, Any]:
        """Threads and their bounds."""
        with self._lock:
            return {
                "workers": self._workers,
                "workers_max": self.workers_max,
                "blocked": self._blocked,
                "workers_blocked_max": self.blocked_max,
                "idle": self._idle,
                "promotions": self.promotions,
                "ready": len(self._ready),
            }

    # -- workers; the lock is held in _spawn and _appoint ----------------------------------------------

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        self._threads[self._machine.start(target, f"objserver-{name}")] = None

    def _appoint(self) -> None:
        """If nobody leads, wake a follower or start one; if all are busy the first to return will lead."""
        running = self._workers - self._idle - self._blocked
        if not self._vacant or self._stopping or running >= self.workers_max:
            return
        if self._idle:
            self._idle -= 1
            self._promotion.release()
        else:
            try:
                self._spawn(self._work, "worker")
            except RuntimeError as problem:
                log.error("cannot start another worker: %s", problem)
                return
            self._workers += 1
        self._vacant = False

    def _work(self) -> None:
        mine = self._own
        while True:
            self._lead()
            with self._lock:
                if mine.waits:  # a wait whose end nobody told ends with the work
                    mine.waits = 0
                    self._blocked -= 1
                if self._stopping or (not self._vacant and self._workers - self._blocked > self.workers_max):
                    self._workers -= 1
                    self._threads.pop(self._machine.current_thread(), None)
                    return
                if self._vacant:
                    self._vacant = False
                    continue
                self._idle += 1
            self._promotion.acquire()

    @property
    def at_work(self) -> bool:
        """Whether something runs, or waits for a worker; not counting what waits for other objects.

        A request that was read may not have come to its object yet: its reader may have been replaced as
        leader in the middle of it.
        """
        with self._lock:
            return bool(self._ready) or self._workers - self._idle - self._blocked > self._polling

    def _lead(self) -> None:
        self._own.baton = baton = self._baton = []
        ready, poll = self._ready, self._poller.poll
        leading = True
        while leading and not self._stopping:
            if not ready:
                # Told before it is asked: whoever adds work after this look wakes us.
                self._polling = True
                try:
                    poll(not ready)
                except BaseException:
                    log.exception("looking for work failed; this is a bug of objserver")
                    self._machine.sleep(LOOK_S)  # it may fail again at once
                self._polling = False
                continue
            work = ready.popleft()
            self._serial += 1
            baton.append(self._serial)
            if self._is_parked:
                self._unpark.set()
            try:
                work()
            except BaseException:  # SystemExit too: the lead must not end with this thread
                log.exception("work failed; this is a bug of objserver, not of a servant")
            del work  # what it belongs to may be large, and the next may be long in coming
            try:
                baton.pop()
            except IndexError:
                leading = False

    # -- the monitor ---------------------------------------------------------------------------------

    def _monitor(self) -> None:
        seen, quiet, pause = 0, 0, LOOK_S
        house = self._machine.monotonic() + HOUSEKEEPING_S
        while not self._stopping:
            if quiet < LOOKS_BEFORE_PARKING:
                self._machine.sleep(pause)
            else:
                self._is_parked = True
                if self._baton or self._unpark.wait(self._until(house)):
                    self._unpark.clear()
                    quiet = 0
                self._is_parked = False
            now = self._machine.monotonic()
            if self._timers:
                self._submit_timers(now)
            if now >= house:
                house = now + HOUSEKEEPING_S
                self.submit(self._housekeeping)
                with self._lock:
                    self._appoint()  # again, if no thread could be started before
            serial = self._serial
            baton = self._baton
            if baton[:1] == [seen]:
                try:
                    baton.pop()
                except IndexError:
                    pass
                else:
                    self.promotions += 1
                    with self._lock:
                        self._vacant = True
                        self._appoint()
                    self._looked(True)
                    pause = LOOK_AGAIN_S
                    quiet = 0
                    continue
            if baton:
                self._looked(False)
            quiet = quiet + 1 if serial == seen else 0
            seen = serial
            pause = LOOK_S if pause == LOOK_S or not self._baton else LOOK_AGAIN_S

    def _until(self, house: float) -> float:
        """Seconds until there is housekeeping or a timer."""
        with self._lock:
            due = min(house, self._timers[0][0]) if self._timers else house
        return max(0.0, due - self._machine.monotonic())

    def _submit_timers(self, now: float) -> None:
        while True:
            with self._lock:
                if not self._timers or self._timers[0][0] > now:
                    return
                work = heapq.heappop(self._timers)[2]
            self.submit(work)

    def _keep_house_only(self) -> None:
        house = self._machine.monotonic() + HOUSEKEEPING_S
        while not self._stopping:
            self._unpark.wait(self._until(house))
            self._unpark.clear()
            now = self._machine.monotonic()
            self._submit_timers(now)
            if now >= house:
                house = now + HOUSEKEEPING_S
                self.submit(self._housekeeping)

    # -- coroutines ----------------------------------------------------------------------------------

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            import asyncio

            self._loop = asyncio.new_event_loop()
            self._loop_end = self._loop.create_future()
            self._spawn(self._run_loop, "asyncio")
        return self._loop

    def _run_loop(self) -> None:
        import asyncio

        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        while not self._loop_end.done():
            try:
                loop.run_until_complete(self._loop_end)
            except BaseException:  # asyncio lets SystemExit out of a task that a servant started
                log.exception("a task of a servant tried to end the server's event loop")
        loop.run_until_complete(_cancel_others())
        loop.close()


async def _cancel_others() -> None:
    import asyncio

    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
