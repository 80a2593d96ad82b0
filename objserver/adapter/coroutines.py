"""Running a coroutine on an event loop, from any thread, with an end that is always told.

A member that is a coroutine function runs on a loop: the server's one, or that of the client whose object is
called.  However it ends, and even if it is cancelled before it has begun, `done` is called exactly once: a
mailbox waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from objserver.invocation import in_progress
from objserver.logs import escaping

__all__ = ["run_on"]

log = escaping(logging.getLogger("objserver.engine"))


def run_on(
    loop: asyncio.AbstractEventLoop,
    tasks: set[asyncio.Task[None]],
    coroutine: Coroutine[Any, Any, Any],
    done: Callable[[Any, BaseException | None], None],
    timeout_s: float | None = None,
) -> Callable[[], None]:
    """Have `loop` run `coroutine`, with the context variables that the caller has now.

    `done` is called on the loop with its outcome: CancelledError if it was cancelled, or took longer than
    `timeout_s` seconds.  Its task is in `tasks` meanwhile, because an event loop does not keep its tasks
    alive. What is returned cancels it, from any thread.
    """
    task: asyncio.Task[None] | None = None
    value: Any = None
    error: BaseException | None = None

    async def run() -> None:
        nonlocal value, error
        facts = in_progress.get()
        if facts is not None:
            facts.task = asyncio.current_task()
        try:
            if timeout_s is None:
                value = await coroutine
            else:
                async with asyncio.timeout(timeout_s) as limit:
                    value = await coroutine
        except BaseException as problem:
            timed_out = timeout_s is not None and isinstance(problem, TimeoutError) and limit.expired()
            error = asyncio.CancelledError() if timed_out else problem

    def start() -> None:
        nonlocal task
        task = loop.create_task(run())
        tasks.add(task)
        task.add_done_callback(finish)

    def finish(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        outcome = error
        if task.cancelled():
            coroutine.close()  # it was not begun
            outcome = asyncio.CancelledError()
        try:
            done(value, outcome)
        except BaseException:
            log.exception("the outcome of a coroutine could not be delivered; this is a bug of objserver")

    def cancel() -> None:
        try:
            loop.call_soon_threadsafe(lambda: task and task.cancel())
        except RuntimeError:
            pass  # the loop has ended, and all its tasks with it

    loop.call_soon_threadsafe(start)
    return cancel
