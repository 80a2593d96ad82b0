"""The engine: threads that run servants, by leader and followers with promotion.

One thread, the leader, polls for work and runs it itself, so a call costs no hand-over between threads.
When a servant blocks, the rest of the server must not: a monitor looks every few milliseconds, and if the
leader is still in the same piece of work, a sleeping follower is promoted and polls instead. A thread that
returns from its work and finds that it no longer leads goes to sleep among the followers, unless nobody
leads.

The right to lead is a baton in the leader's own list. Before a leader runs something it lays the baton down
(`append`); afterwards it takes it up (`pop`). Whoever pops it decides who leads: a `pop` of an empty list
tells the leader that it was replaced. Both are atomic, so a call costs no lock.

Waking the monitor for every call would cost more than the call, so it parks when nothing has run for a
while, and the next call wakes it once. Looking every millisecond would fight the leader for the
interpreter: 5 ms does not show in the 99th percentile, 1 ms does. Only while one promotion follows another
does it look faster, so that thirty blocking servants are under way in a few hundredths of a second.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

__all__ = ["Poller", "WorkerEngine"]

log = logging.getLogger("objserver.engine")

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
    """Up to `workers_max` threads.  `housekeeping` is submitted about twice a second."""

    def __init__(self, poller: Poller, workers_max: int, housekeeping: Callable[[], None]) -> None:
        if workers_max < 1:
            raise ValueError(f"workers_max={workers_max}: a server needs at least one worker")
        self.workers_max = workers_max
        self._poller = poller
        self._housekeeping = housekeeping
        self._ready: deque[Callable[[], None]] = deque()
        self.enqueue = self._ready.append
        """As `submit`, from the leader itself, who need not be woken."""
        self._baton: list[int] = []
        self._serial = 0
        self._lock = threading.Lock()
        self._idle = 0
        self._vacant = True
        self._promotion = threading.Semaphore(0)
        self._polling = False
        self._is_parked = False
        self._unpark = threading.Event()
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._leaders = threading.local()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.promotions = 0

    # -- what others call ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the first worker and the monitor."""
        self._appoint()
        if self.workers_max > 1:
            self._spawn(self._monitor, "monitor")
        else:
            self._spawn(self._keep_house_only, "monitor")

    def stop(self) -> None:
        """Let every thread end after its present work."""
        self._stopping = True
        self._unpark.set()
        self._poller.wake()
        for _ in range(self.workers_max):
            self._promotion.release()
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(1.0)

    def submit(self, work: Callable[[], None]) -> None:
        """Have `work` run by a worker; from any thread."""
        self._ready.append(work)
        if self._polling:
            self._poller.wake()

    def about_to_block(self) -> None:
        """The calling worker is going to wait for the network: let another lead at once."""
        if getattr(self._leaders, "leading", False) and self.workers_max > 1:
            try:
                self._leaders.baton.pop()
            except IndexError:
                return
            self._leaders.leading = False
            self._appoint()

    def no_longer_blocked(self) -> None:
        """The wait that `about_to_block` announced is over."""

    def run_coroutine(
        self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run `coroutine` on the server's one event loop; `done` is called there with its outcome."""

        async def run() -> None:
            value, error = None, None
            try:
                value = await coroutine
            except BaseException as problem:
                error = problem
            done(value, error)

        asyncio.run_coroutine_threadsafe(run(), self._event_loop())

    def statistics(self) -> dict[str, Any]:
        """Threads and their bound."""
        return {
            "workers": sum(t.name.startswith("objserver-worker") for t in self._threads),
            "workers_max": self.workers_max,
            "promotions": self.promotions,
            "ready": len(self._ready),
        }

    # -- workers -------------------------------------------------------------------------------------

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=f"objserver-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _appoint(self) -> None:
        """Wake a follower, or start one, to lead; if all are busy the first to return will."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._vacant = False
                self._promotion.release()
            elif len(self._threads) < self.workers_max + 2 and self._workers() < self.workers_max:
                self._vacant = False
                self._spawn(self._work, "worker")
            else:
                self._vacant = True

    def _workers(self) -> int:
        return sum(thread.name == "objserver-worker" for thread in self._threads)

    def _work(self) -> None:
        while not self._stopping:
            self._lead()
            with self._lock:
                if self._vacant:
                    self._vacant = False
                    continue
                self._idle += 1
            self._promotion.acquire()

    def _lead(self) -> None:
        mine = self._leaders
        mine.leading = leading = True
        mine.baton = baton = self._baton = []
        ready, poll = self._ready, self._poller.poll
        while leading and not self._stopping:
            if not ready:
                # Told before it is asked: whoever adds work after this look wakes us.
                self._polling = True
                poll(not ready)
                self._polling = False
                continue
            work = ready.popleft()
            self._serial += 1
            baton.append(self._serial)
            if self._is_parked:
                self._unpark.set()
            try:
                work()
            except Exception:
                log.exception("work failed; this is a bug of objserver, not of a servant")
            try:
                baton.pop()
            except IndexError:
                mine.leading = leading = False

    # -- the monitor ---------------------------------------------------------------------------------

    def _monitor(self) -> None:
        seen, quiet, pause = 0, 0, LOOK_S
        house = time.monotonic() + HOUSEKEEPING_S
        while not self._stopping:
            if quiet < LOOKS_BEFORE_PARKING:
                time.sleep(pause)
            else:
                self._is_parked = True
                if self._baton or self._unpark.wait(max(0.0, house - time.monotonic())):
                    self._unpark.clear()
                    quiet = 0
                self._is_parked = False
            now = time.monotonic()
            if now >= house:
                house = now + HOUSEKEEPING_S
                self.submit(self._housekeeping)
            serial = self._serial
            baton = self._baton
            if baton[:1] == [seen]:
                try:
                    baton.pop()
                except IndexError:
                    pass
                else:
                    self.promotions += 1
                    self._appoint()
                    pause = LOOK_AGAIN_S
                    quiet = 0
                    continue
            quiet = quiet + 1 if serial == seen else 0
            seen = serial
            pause = LOOK_S if pause == LOOK_S or not self._baton else LOOK_AGAIN_S

    def _keep_house_only(self) -> None:
        while not self._stopping:
            self._unpark.wait(HOUSEKEEPING_S)
            self.submit(self._housekeeping)

    # -- coroutines ----------------------------------------------------------------------------------

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._spawn(self._run_loop, "asyncio")
            return self._loop

    def _run_loop(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            pending = asyncio.all_tasks(loop)
            for task in pending:
                task.cancel()
            if pending:
                loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            loop.close()
