"""The call itself: one member of a servant, or the members of a batch until one raises.

What a servant written for Pyro5 expects to find around it is put there for the time of the call.  Beside it
stand the engine, as the adapter knows it, and the caller of the adapter's own errands.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import CoroutineType
from typing import Any, Protocol

from objserver import pyro5
from objserver.adapter.invocation import Invocation

__all__ = ["NOBODY", "Engine", "call"]

log = logging.getLogger("objserver.adapter")


class Engine(Protocol):
    """What runs the adapter's work."""

    def submit(self, work: Callable[[], None]) -> None: ...
    def run_coroutine(
        self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Any, BaseException | None], None]
    ) -> None: ...


def call(servant: Any, invocation: Invocation, engine: Engine, tracebacks: bool) -> Any:
    """Call what the invocation asks for; its result, a coroutine if the member is one, or its exception."""
    if not invocation.activation.skeleton.written_for_pyro5:  # type: ignore[union-attr]
        return _call(servant, invocation, engine, tracebacks)
    before = pyro5.enter_call_context(invocation.caller.pyro5_context(invocation))
    try:
        return _call(servant, invocation, engine, tracebacks)
    finally:
        if pyro5.call_context.response_annotations:
            invocation.response_annotations.update(pyro5.call_context.response_annotations)
        pyro5.leave_call_context(before)


def _call(servant: Any, invocation: Invocation, engine: Engine, tracebacks: bool) -> Any:
    if invocation.batch is None:
        assert invocation.member is not None
        return invocation.member.call(servant, *invocation.args, **invocation.kwargs)
    values: list[Any] = []
    for member, args, kwargs in invocation.members:
        try:
            value = member.call(servant, *args, **kwargs)
            values.append(_awaited(value, engine) if type(value) is CoroutineType else value)
        except Exception as problem:
            if tracebacks:
                problem._pyroTraceback = traceback.format_exception(problem)  # type: ignore[attr-defined]
            values.append(pyro5.ExceptionWrapper(problem))
            break
    return values


def _awaited(coroutine: Coroutine[Any, Any, Any], engine: Engine) -> Any:
    """The outcome of a coroutine inside a batch, for which this worker waits."""
    outcome: Future[Any] = Future()

    def done(value: Any, error: BaseException | None) -> None:
        outcome.set_exception(error) if error is not None else outcome.set_result(value)

    engine.run_coroutine(coroutine, done)
    return outcome.result()


class Nobody:
    """The caller of the adapter's own errands."""

    address = None
    session = ""
    session_is_connection = False

    def now(self) -> float:
        return 0.0

    def about_to_block(self) -> None:
        pass

    def no_longer_blocked(self) -> None:
        pass

    def encode_result(self, invocation: Invocation, value: Any) -> bytes:
        return b""

    def encode_stream(self, invocation: Invocation, stream_id: str) -> bytes:
        return b""

    def encode_error(self, invocation: Invocation, error: BaseException) -> bytes:
        log.error("ending %s: %s", invocation.object_id, error, exc_info=error)
        return b""

    def pyro5_context(self, invocation: Invocation) -> dict[str, Any]:
        return {}

    def send(self, reply: bytes) -> None:
        pass


NOBODY = Nobody()
