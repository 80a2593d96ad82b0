"""Item streams: iterators that a servant returned, drawn item by item by their client.

A stream belongs to the session that opened it: nobody else may draw from it.  When a stock client's
connection closes, its streams linger for a while, and whoever then names the id, which cannot be guessed,
takes it over.  An activation is not ended while a stream of it is open.

Every item is drawn inside the mailbox of the object whose generator it is, like any call.  A client may ask
for items ahead: what it asks of one stream is drawn one after the other, whatever the object's policy.
`StreamTable` decides; `Streams` has the items drawn.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from objserver import errors
from objserver.adapter.activation import Activation
from objserver.adapter.calling import NOBODY, check_in_time
from objserver.adapter.invocation import Caller, Invocation
from objserver.clock import Clock
from objserver.invocation import Client, principal_of
from objserver.security import Principal
from objserver.settings import ServerSettings

__all__ = ["Stream", "StreamTable", "Streams"]

AHEAD_MAX = 64
"""Draws that may wait for one stream: a client that asks for more items ahead is not reading them."""


class Stream:
    """One open stream."""

    __slots__ = (
        "activation", "ahead", "args", "caller", "closing", "drawing", "generation", "iterator", "method",
        "opened_at", "orphaned_at", "principal", "session",
    )  # fmt: skip

    def __init__(self, iterator: Any, invocation: Invocation, now: float) -> None:
        caller, member = invocation.caller, invocation.member
        self.method = invocation.method
        self.args: Sequence[Any] = () if member is None else (member.name,)
        """What was called of the activation's object, and which attribute if it was one: as a part of that an
        item is allowed."""
        self.generation = -1
        """Of the rules by which an item was allowed last; the call may have been allowed by older ones than
        held when it returned the stream."""
        self.iterator = iterator
        """An iterator or an asynchronous one."""
        self.activation = invocation.activation
        self.session: str | None = caller.session
        """Who may draw; None: whoever knows the id."""
        self.caller: object = caller.link
        """The connection on which it was opened or last drawn from; None when that is gone."""
        self.principal = principal_of(caller)
        """Who opened it: its items are nobody else's, whoever knows the id."""
        self.opened_at = now
        self.orphaned_at = 0.0
        self.drawing: Invocation | None = None
        self.ahead: deque[Invocation] = deque()
        """Draws that wait for the one under way.  These three are guarded by the activation's lock."""
        self.closing = False
        """Nobody wants the item that is being drawn; the iterator is closed after it."""


class StreamTable:
    """All open streams of a server.  Time is an argument."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._streams: dict[str, Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, iterator: Any, invocation: Invocation, now: float) -> str:
        """Keep what `invocation` returned for the session of its caller; returns the id of the stream."""
        caller = invocation.caller
        if len(self._streams) >= self._settings.streams_max:
            raise errors.ServerBusy(f"{len(self._streams)} item streams are open (setting streams_max)")
        share = self._settings.streams_per_session_max
        if sum(stream.session == caller.session for stream in list(self._streams.values())) >= share:
            raise errors.ServerBusy(
                f"this client has {share} item streams open (setting streams_per_session_max)"
            )
        stream_id = str(uuid.uuid4())
        self._streams[stream_id] = Stream(iterator, invocation, now)
        return stream_id

    def claim(self, stream_id: object, caller: Client) -> Stream:
        """The stream, for `caller` to draw from; ObjectNotFound if it has ended or is somebody else's."""
        stream = self._streams.get(stream_id) if isinstance(stream_id, str) else None
        if stream is None or stream.session not in (caller.session, None) or not _owns(caller, stream):
            raise _terminated()
        stream.session, stream.caller, stream.orphaned_at = caller.session, caller.link, 0.0
        return stream

    def close(self, stream_id: str, caller: Client | None = None) -> Stream | None:
        """Forget a stream; returns it if it was open, and not somebody else's than the `caller`'s."""
        stream = self._streams.get(stream_id)
        if stream is None or (caller is not None and not _owns(caller, stream)):
            return None
        return self._streams.pop(stream_id, None)

    def orphan(self, caller: Client, now: float) -> list[Stream]:
        """A connection is gone: its streams linger.  Returns those that ended at once, without linger.

        A session of our peers outlives its connections and keeps them; a stock client has nothing but the id.
        """
        ended = []
        for stream_id, stream in list(self._streams.items()):
            if stream.caller is caller.link:
                stream.caller, stream.orphaned_at = None, now
                if caller.session_is_connection:
                    stream.session = None
                if self._settings.stream_linger_s <= 0 and self.close(stream_id):
                    ended.append(stream)
        return ended

    def expire(self, now: float) -> list[Stream]:
        """Close and return what has outlived its linger or its lifetime."""
        linger, lifetime = self._settings.stream_linger_s, self._settings.stream_lifetime_s
        ended = []
        for stream_id, stream in list(self._streams.items()):
            too_old = 0 < lifetime < now - stream.opened_at
            abandoned = stream.caller is None and now - stream.orphaned_at > linger
            if (too_old or abandoned) and self.close(stream_id):
                ended.append(stream)
        return ended


class Streams:
    """Opens, draws from and closes item streams.

    `offer` puts an invocation into a mailbox (None: the servant has ended), `submit` has one run, `errand`
    has one run that answers nobody, `refuse` answers one with an error, `end` ends an activation.  `judge`
    raises what refuses a draw: the stream is closed then.
    """

    def __init__(
        self,
        settings: ServerSettings,
        clock: Clock,
        *,
        offer: Callable[[Activation, Invocation], bool | None],
        submit: Callable[[Invocation], None],
        errand: Callable[[Activation, Invocation], None],
        refuse: Callable[[Invocation, BaseException], None],
        end: Callable[[Activation], None],
        judge: Callable[[Stream, Invocation], None],
    ) -> None:
        self._judge = judge
        self.table = StreamTable(settings)
        self._clock = clock
        self._offer, self._submit, self._errand, self._refuse, self._end = offer, submit, errand, refuse, end

    def open(self, invocation: Invocation, iterator: Any) -> str:
        """Keep the iterator that `invocation` returned; ServerBusy if too many are open."""
        activation = invocation.activation
        stream_id = self.table.open(iterator, invocation, self._clock.monotonic())
        with activation.lock:
            activation.streams += 1
        return stream_id

    def admit(self, invocation: Invocation) -> bool:
        """The next item is drawn in its turn.  True: the caller must run the invocation now."""
        stream_id = invocation.args[0] if invocation.args else None
        stream = self.table.claim(stream_id, invocation.caller)
        invocation.work = lambda servant: self._draw(stream, str(stream_id), invocation)
        invocation.when_over = partial(self._drawn, stream, invocation)
        with stream.activation.lock:
            if stream.drawing is not None:
                if len(stream.ahead) >= AHEAD_MAX:
                    raise errors.ServerBusy(f"{AHEAD_MAX} items of one stream are already asked for")
                stream.ahead.append(invocation)
                return False
            stream.drawing = invocation
        return self._admit(stream, invocation)

    def _admit(self, stream: Stream, invocation: Invocation) -> bool:
        try:
            admitted = self._offer(stream.activation, invocation)
            if admitted is None:
                raise _terminated()
        except BaseException:
            self._drawn(stream, invocation)
            raise
        return admitted

    def _draw(self, stream: Stream, stream_id: str, invocation: Invocation) -> Any:
        """The next item, or a coroutine for it; in the mailbox."""
        if hasattr(stream.iterator, "__anext__"):
            return self._draw_later(stream, stream_id, invocation)
        try:
            check_in_time(invocation)
            self._check_still_allowed(stream, stream_id, invocation)
            try:
                return next(stream.iterator)
            except BaseException:
                self._exhausted(stream, stream_id)
                raise
        finally:
            self._drawn(stream, invocation)

    async def _draw_later(self, stream: Stream, stream_id: str, invocation: Invocation) -> Any:
        try:
            check_in_time(invocation)
            self._check_still_allowed(stream, stream_id, invocation)
            try:
                return await anext(stream.iterator)
            except BaseException:
                self._exhausted(stream, stream_id)
                raise
        finally:
            self._drawn(stream, invocation)

    def _check_still_allowed(self, stream: Stream, stream_id: str, invocation: Invocation) -> None:
        """Asked when the item is drawn: it may have waited for others."""
        try:
            self._judge(stream, invocation)
        except BaseException:
            self.close(stream_id)
            raise

    def _exhausted(self, stream: Stream, stream_id: str) -> None:
        if self.table.close(stream_id) is not None:
            self._closed(stream.activation)

    def _drawn(self, stream: Stream, ended: Invocation) -> None:
        """Whoever has asked ahead comes next.  Told again of the same draw, it does nothing."""
        while True:
            with stream.activation.lock:
                if stream.drawing is not ended:
                    return
                following = stream.drawing = stream.ahead.popleft() if stream.ahead else None
                closing = stream.closing
            if following is None:
                if closing:
                    self._close_iterator(stream)
                return
            try:
                admitted = self._offer(stream.activation, following)
                if admitted is None:
                    raise _terminated()
            except BaseException as problem:
                self._refuse(following, problem)
                ended = following
                continue
            if admitted:
                self._submit(following)
            return

    def close(self, stream_id: str, caller: Client | None = None) -> None:
        """The client is done with a stream."""
        stream = self.table.close(stream_id, caller)
        if stream is not None:
            self._finish(stream)

    def disconnected(self, caller: Caller) -> None:
        """A connection is gone: its streams linger."""
        for stream in self.table.orphan(caller, self._clock.monotonic()):
            self._finish(stream)

    def housekeeping(self, now: float) -> None:
        """Close what has outlived its time."""
        for stream in self.table.expire(now):
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        with stream.activation.lock:
            ahead, drawing = list(stream.ahead), stream.drawing
            stream.ahead.clear()
            stream.closing = drawing is not None
        for invocation in ahead:
            self._refuse(invocation, _terminated())
        if drawing is None:
            self._close_iterator(stream)
        else:
            drawing.cancel()  # its end closes the iterator

    def _close_iterator(self, stream: Stream) -> None:
        """Where it ran, inside the mailbox: a generator may have a `finally`."""

        async def close_later() -> None:
            try:
                await stream.iterator.aclose()
            finally:
                self._closed(stream.activation)

        def close(servant: Any) -> Any:
            if hasattr(stream.iterator, "aclose"):
                return close_later()
            try:
                method = getattr(stream.iterator, "close", None)
                if method is not None:
                    method()
            finally:
                self._closed(stream.activation)
            return None

        invocation = Invocation(NOBODY, stream.activation.object_id, "close_stream")
        invocation.work = close
        self._errand(stream.activation, invocation)

    def _closed(self, activation: Activation) -> None:
        """Inside the mailbox: who leaves it next sees that a PerRequest servant has nothing to stay for."""
        with activation.lock:
            activation.streams = max(0, activation.streams - 1)
            ending = not activation.streams and activation.end_after_streams
        if ending:
            self._end(activation)


def _owns(caller: Client, stream: Stream) -> bool:
    return _rights(principal_of(caller)) == _rights(stream.principal)


def _rights(principal: Principal | None) -> object:
    """What tells who may have a stream: a token may have been renewed meanwhile, but not narrowed."""
    if principal is None:
        return None
    narrowed = principal.restrictions
    return principal.name, narrowed and (narrowed.objects, narrowed.methods)


def _terminated() -> errors.ObjectNotFound:
    return errors.ObjectNotFound("item stream terminated")
