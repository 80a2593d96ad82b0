"""The one connection of a proxy that carries many calls: made when it is first wanted, and made again.

It stands beside the pool of connections for one call each, and is what `proxy.future` and an AsyncProxy use.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref

from objserver import errors
from objserver.client.home import home
from objserver.client.multiplexed import MultiplexedConnection
from objserver.client.pool import ConnectionPool
from objserver.references import Location
from objserver.settings import CLIENT_LIMITS

__all__ = ["multiplex"]


class _Background:
    """A connection, or the making of it, as the pool holds it."""

    def __init__(self, task: asyncio.Task[MultiplexedConnection]) -> None:
        self.task = task

    def close(self) -> None:
        """Close it, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.task.get_loop().call_soon_threadsafe(self._close)

    def _close(self) -> None:
        if not self.task.done():
            self.task.cancel()
        elif not self.task.cancelled() and self.task.exception() is None:
            self.task.result().close()


async def multiplex(pool: ConnectionPool, timeout_s: float | None) -> MultiplexedConnection:
    """The connection, made if need be; on the loop it lives on."""
    background = pool.background
    assert background is None or isinstance(background, _Background)
    if (
        background is None
        or (background.task.done() and pool.live is None)
        or _is_over(background.task.get_loop())
    ):
        background = pool.background = _Background(asyncio.ensure_future(_open(pool, timeout_s)))
    try:
        return await asyncio.shield(background.task)
    except asyncio.CancelledError:
        caller = asyncio.current_task()
        if not background.task.cancelled() or (caller is not None and caller.cancelling()):
            raise
        raise errors.ConnectFailed(
            f"the proxy of {pool.reference} was released while it was connecting"
        ) from None


async def _open(pool: ConnectionPool, timeout_s: float | None) -> MultiplexedConnection:
    tried: set[Location] = set()
    while True:
        if pool.reference.protocol == "PYRO":
            greeting = pool.greeting(timeout_s, tried, multiplexed=True)
        else:
            greeting = await asyncio.to_thread(pool.greeting, timeout_s, tried, multiplexed=True)
        try:
            connection = await MultiplexedConnection.open(
                greeting,
                codecs=pool.codecs,
                home=home,
                timeout_s=pool.patience(timeout_s, greeting, tried),
                limits=CLIENT_LIMITS,
            )
        except (errors.ConnectFailed, errors.ObjectNotFound) as problem:
            if pool.may_be_elsewhere(greeting, tried, problem):
                continue
            raise
        break
    pool.met(greeting, connection.greeted)
    pool.live = connection
    weak = weakref.ref(pool)

    def closed() -> None:
        pool = weak()
        if pool is not None and pool.live is connection:
            pool.live = None

    connection.when_closed = closed
    return connection


def _is_over(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop has ended.  RuntimeError if it has not, and is not the running one."""
    if loop is asyncio.get_running_loop():
        return False
    if loop.is_running():
        raise RuntimeError(
            "an AsyncProxy belongs to the event loop that used it first, which still runs; "
            "make another one here"
        )
    return True
