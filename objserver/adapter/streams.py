"""Item streams: iterators that a servant returned, drawn item by item by their client.

A stream belongs to the session that opened it: nobody else may draw from it.  When a stock client's
connection closes, its streams linger for a while, and whoever then names the id, which cannot be guessed,
takes it over.  An activation is not ended while a stream of it is open.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from typing import Any

from objserver import errors
from objserver.adapter.activation import Activation
from objserver.invocation import Client
from objserver.settings import ServerSettings

__all__ = ["Stream", "StreamTable"]


@dataclasses.dataclass(slots=True)
class Stream:
    """One open stream."""

    iterator: Iterator[Any]
    activation: Activation
    session: str | None
    """Who may draw; None: whoever knows the id."""
    caller: object
    """The connection on which it was opened or last drawn from; None when that is gone."""
    opened_at: float
    orphaned_at: float = 0.0


class StreamTable:
    """All open streams of a server.  Time is an argument."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._streams: dict[str, Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, iterator: Iterator[Any], activation: Activation, caller: Client, now: float) -> str:
        """Keep `iterator` for the session of `caller`; returns the id of the stream."""
        if len(self._streams) >= self._settings.streams_max:
            raise errors.ServerBusy(f"{len(self._streams)} item streams are open (setting streams_max)")
        share = self._settings.streams_per_session_max
        if sum(stream.session == caller.session for stream in list(self._streams.values())) >= share:
            raise errors.ServerBusy(
                f"this client has {share} item streams open (setting streams_per_session_max)"
            )
        stream_id = str(uuid.uuid4())
        self._streams[stream_id] = Stream(iterator, activation, caller.session, caller, now)
        return stream_id

    def claim(self, stream_id: object, caller: Client) -> Stream:
        """The stream, for `caller` to draw from; ObjectNotFound if it has ended or is somebody else's."""
        stream = self._streams.get(stream_id) if isinstance(stream_id, str) else None
        if stream is None or stream.session not in (caller.session, None):
            raise errors.ObjectNotFound("item stream terminated")
        stream.session, stream.caller, stream.orphaned_at = caller.session, caller, 0.0
        return stream

    def close(self, stream_id: str) -> Stream | None:
        """Forget a stream; returns it if it was open."""
        return self._streams.pop(stream_id, None)

    def orphan(self, caller: Client, now: float) -> list[Stream]:
        """A connection is gone: its streams linger.  Returns those that ended at once, without linger.

        A session of our peers outlives its connections and keeps them; a stock client has nothing but the id.
        """
        ended = []
        for stream_id, stream in list(self._streams.items()):
            if stream.caller is caller:
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
