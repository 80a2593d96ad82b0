"""The call itself: one member of a servant, or the members of a batch until one raises.

What a servant written for Pyro5 expects to find around it is put there for the time of the call.  Beside it
stand the engine, as the adapter knows it, and the caller of the adapter's own errands.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import CoroutineType
from typing import Any, Protocol

from objserver import errors, pyro5
from objserver.adapter.invocation import Invocation
from objserver.adapter.skeleton import Member
from objserver.invocation import Call, Interceptor, intercepted
from objserver.logs import escaping
from objserver.references import Location

__all__ = ["NOBODY", "Engine", "call", "check_in_time", "not_begun"]

log = escaping(logging.getLogger("objserver.adapter"))


class Engine(Protocol):
    """What runs the adapter's work."""

    def submit(self, work: Callable[[], None]) -> None: ...
    def after(self, delay_s: float, work: Callable[[], None]) -> None:
        """Submit `work` when about so much time has passed."""

    def about_to_block(self, location: Location | None = None) -> None: ...
    def no_longer_blocked(self) -> None: ...
    def run_coroutine(
        self,
        coroutine: Coroutine[Any, Any, Any],
        done: Callable[[Any, BaseException | None], None],
        timeout_s: float | None = None,
    ) -> Callable[[], object]:
        """`done` gets its outcome, CancelledError if it took longer; what is returned cancels it."""


def check_in_time(invocation: Invocation) -> None:
    """Cancelled or DeadlineExceeded if nobody waits any more for an invocation that is about to begin."""
    if invocation.is_cancelled:
        raise not_begun(invocation)
    if invocation.deadline is not None and invocation.caller.now() >= invocation.deadline:
        raise errors.DeadlineExceeded(
            f"{invocation.object_id}.{invocation.method} was not begun: "
            "its caller's time was up before its turn came"
        )


def not_begun(invocation: Invocation) -> errors.Cancelled:
    """The answer to an invocation that was cancelled before its turn came."""
    return errors.Cancelled(f"{invocation.object_id}.{invocation.method} was cancelled before it began")


def call(
    servant: Any,
    invocation: Invocation,
    engine: Engine,
    tracebacks: bool,
    interceptors: Sequence[Interceptor] = (),
) -> Any:
    """Call what the invocation asks for; its result, a coroutine if the member is one, or its exception."""
    if not invocation.activation.skeleton.written_for_pyro5:  # type: ignore[union-attr]
        return _call(servant, invocation, engine, tracebacks, interceptors)
    before = pyro5.enter_call_context(invocation.caller.pyro5_context(invocation))
    try:
        return _call(servant, invocation, engine, tracebacks, interceptors)
    finally:
        if pyro5.call_context.response_annotations:
            invocation.response_annotations.update(pyro5.call_context.response_annotations)
        pyro5.leave_call_context(before)


def _call(
    servant: Any,
    invocation: Invocation,
    engine: Engine,
    tracebacks: bool,
    interceptors: Sequence[Interceptor],
) -> Any:
    if invocation.batch is None:
        assert invocation.member is not None
        return _call_member(
            servant, invocation, invocation.member, invocation.args, invocation.kwargs, interceptors
        )
    values: list[Any] = []
    for member, args, kwargs in invocation.members:
        try:
            if interceptors:
                value = _call_member(servant, invocation, member, args, kwargs, interceptors)
            else:
                value = member.call(servant, *args, **kwargs)
            values.append(_awaited(value, engine) if type(value) is CoroutineType else value)
        except Exception as problem:
            if tracebacks:
                problem._pyroTraceback = traceback.format_exception(problem)  # type: ignore[attr-defined]
            values.append(pyro5.ExceptionWrapper(problem))
            break
    return values


def _call_member(
    servant: Any,
    invocation: Invocation,
    member: Member,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    interceptors: Sequence[Interceptor],
) -> Any:
    if not interceptors:
        return member.call(servant, *args, **kwargs)
    seen = Call(
        invocation.object_id,
        member.name,
        tuple(args),
        dict(kwargs),
        dict(invocation.annotations),
        invocation.principal,
    )

    async def run() -> Any:
        # Entered where the coroutine runs, so that what is set around it is set in its context.
        with intercepted(interceptors, seen):
            return await member.call(servant, *args, **kwargs)

    if member.asynchronous:
        return run()
    with intercepted(interceptors, seen):
        return member.call(servant, *args, **kwargs)


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
    holder = ""
    closed = False
    link: object = None

    def now(self) -> float:
        return 0.0

    def about_to_block(self, location: Location | None = None) -> None:
        pass

    def no_longer_blocked(self) -> None:
        pass

    def encode_result(self, invocation: Invocation, value: Any) -> bytes:
        return b""

    def encode_stream(self, invocation: Invocation, stream_id: str) -> bytes:
        return b""

    def encode_again(self, invocation: Invocation, reply: bytes) -> bytes:
        return b""

    def encode_error(self, invocation: Invocation, error: BaseException) -> bytes:
        if not isinstance(error, errors.Moved):  # it has been handed over: that was the purpose
            log.error("ending %s: %s", invocation.object_id, error, exc_info=error)
        return b""

    def pyro5_context(self, invocation: Invocation) -> dict[str, Any]:
        return {}

    def send(self, reply: bytes) -> None:
        pass


NOBODY = Nobody()
