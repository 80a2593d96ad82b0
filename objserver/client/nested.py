"""Calls made by servants: more than calls, for they belong to the invocation that makes them.

They carry on its correlation id, its call chain and its deadline, are cancelled with it, and tell the engine
that its thread waits, so that another can take its place.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from objserver import errors
from objserver.client.connection import ClientConnection
from objserver.client.replies import raised
from objserver.codecs import Codec
from objserver.invocation import Awaited, CallId, Facts, in_progress
from objserver.machine import machine
from objserver.references import DAEMON_ID
from objserver.wire import CallContext, Flag, Frame
from objserver.wire import extension as wire_extension
from objserver.wire.frames import NO_CORRELATION

if TYPE_CHECKING:
    from objserver.client.multiplexed import MultiplexedConnection

__all__ = [
    "ask_daemon",
    "call_inside",
    "inherit",
    "on_event_loop",
    "rest",
    "time_left",
    "with_context",
    "would_block",
]


def call_inside(
    facts: Facts,
    what: str,
    connection: ClientConnection,
    codec: Codec,
    payload: bytes,
    flags: int,
    annotations: Mapping[str, bytes] | None,
    correlation: bytes,
    timeout_s: float | None,
    *,
    id: CallId | None = None,
    acked: int = 0,
) -> Frame | bytes | None:
    """`connection.call` from within the invocation that `facts` are about."""
    shared = not isinstance(connection, ClientConnection)
    waits = not (shared and flags & Flag.ONEWAY)
    if waits and on_event_loop():
        raise would_block(what)
    timeout_s = time_left(facts, what, timeout_s)
    annotations, correlation = inherit(
        facts, what, connection, annotations, correlation, timeout_s, id, acked
    )
    cancel: Awaited | None = None

    def cancellable(tell: Awaited) -> None:
        nonlocal cancel
        cancel = tell
        facts.when_cancelled(tell)

    if not waits:
        return connection.call(codec, payload, flags, annotations, correlation, timeout_s)
    facts.caller.about_to_block(None if shared or flags & Flag.ONEWAY else connection.location)
    try:
        return connection.call(codec, payload, flags, annotations, correlation, timeout_s, cancellable)
    finally:
        facts.caller.no_longer_blocked()
        if cancel is not None and not facts.forget(cancel) and not shared:
            connection.close()  # the other thread may still be sending on it


def ask_daemon(
    connection: ClientConnection, method: str, args: tuple[Any, ...], timeout_s: float | None
) -> Any:
    """Call the server's own object, whoever calls."""
    codec = connection.codec
    payload = codec.encode_call(DAEMON_ID, method, args, {})
    request = codec, payload, 0, None, NO_CORRELATION, timeout_s
    facts = in_progress.get()
    reply = connection.call(*request) if facts is None else call_inside(facts, method, connection, *request)
    assert reply is not None
    if isinstance(reply, bytes):
        return codec.decode(reply)
    value = codec.decode(reply.payload)
    if reply.flags & Flag.EXCEPTION:
        raise raised(value)
    return value


def time_left(facts: Facts, what: str, timeout_s: float | None) -> float | None:
    """How long a call made by the invocation `facts` may take; raises if it may not begin."""
    if facts.is_cancelled:
        raise errors.Cancelled(
            f"{what} was not called: {facts.object_id}.{facts.method}, which calls it, has been cancelled"
        )
    remaining_s = facts.remaining_s
    if remaining_s is None:
        return timeout_s
    if not remaining_s:
        raise errors.DeadlineExceeded(
            f"{what} was not called: the time of {facts.object_id}.{facts.method}, which calls it, is up"
        )
    return remaining_s if timeout_s is None else min(timeout_s, remaining_s)


def with_context(
    annotations: Mapping[str, bytes] | None,
    remaining_s: float | None,
    chain: tuple[str, ...],
    id: CallId | None = None,
    acked: int = 0,
    asks: bool = False,
) -> Mapping[str, bytes]:
    context = CallContext(remaining_s, chain, id, acked, asks)
    return {**(annotations or {}), wire_extension.ANNOTATION: context.encode()}


def inherit(
    facts: Facts,
    what: str,
    connection: ClientConnection | MultiplexedConnection,
    annotations: Mapping[str, bytes] | None,
    correlation: bytes,
    timeout_s: float | None,
    id: CallId | None = None,
    acked: int = 0,
) -> tuple[Mapping[str, bytes] | None, bytes]:
    """A call made by a servant carries its correlation id and, to our peers, its call chain and deadline."""
    if correlation is NO_CORRELATION:
        correlation = facts.correlation_id.bytes
    if connection.native:
        chain = (*facts.chain, facts.id)
        if len(chain) > wire_extension.CHAIN_MAX:
            raise RecursionError(
                f"{what} is called at the end of a chain of {len(chain)} calls, more than "
                f"{wire_extension.CHAIN_MAX}: a recursion from object to object that does not end?"
            )
        annotations = with_context(annotations, timeout_s, chain, id, acked)
    return annotations, correlation


def would_block(what: str) -> RuntimeError:
    """What a servant gets that calls from its event loop, and would have to wait there."""
    return RuntimeError(
        f"calling {what} here would block the event loop, and with it every coroutine of this server; "
        "use `await asyncio.to_thread(...)`"
    )


def on_event_loop() -> bool:
    """Whether the code that asks runs on one; without loading asyncio, for then it does not."""
    loops = sys.modules.get("asyncio.events")
    return loops is not None and loops._get_running_loop() is not None


def rest(seconds: float) -> float:
    """Wait before a call is made again; a servant lets others have its place meanwhile."""
    facts = in_progress.get()
    if facts is not None:
        facts.caller.about_to_block()
    try:
        machine.get().sleep(seconds)
    finally:
        if facts is not None:
            facts.caller.no_longer_blocked()
    return seconds
