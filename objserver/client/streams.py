"""What a call returns that gives a stream: an iterator whose items the server is asked for one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from objserver import errors
from objserver.client.connection import ClientConnection
from objserver.client.nested import call_inside, inherit
from objserver.client.replies import raised
from objserver.invocation import in_progress
from objserver.references import DAEMON_ID
from objserver.wire import Flag

if TYPE_CHECKING:
    from objserver.client.stub import Stub

__all__ = ["ItemStream"]


class ItemStream(Iterator[Any]):
    """A remote iterator.  It keeps the connection it was opened on until it ends or is closed."""

    def __init__(self, stub: Stub, connection: ClientConnection, stream_id: str) -> None:
        self._stub = stub
        self._connection: ClientConnection | None = connection
        self.stream_id = stream_id

    def __next__(self) -> Any:
        connection = self._connection
        if connection is None:
            raise StopIteration
        stub, codec = self._stub, connection.codec
        payload = codec.encode_call(DAEMON_ID, "get_next_stream_item", (self.stream_id,), {})
        request = codec, payload, 0, stub.annotations, stub.correlation, stub.timeout_s
        facts = in_progress.get()
        try:
            if facts is None:
                reply = connection.call(*request)
            else:
                what = f"the next item of a stream of {stub.pool.object_id}"
                reply = call_inside(facts, what, connection, *request)
        except BaseException:
            if not connection.is_open:
                self._connection = None
            raise
        assert reply is not None
        if isinstance(reply, bytes):
            return codec.decode(reply)
        value = codec.decode(reply.payload)
        if reply.flags & Flag.EXCEPTION:
            error = raised(value)
            if isinstance(error, StopIteration):
                self._give_back()
            else:
                self.close()  # an item that could not be sent does not end the iterator
            raise error
        return value

    def close(self) -> None:
        """Tell the server that no more items are wanted."""
        connection = self._connection
        if connection is None:
            return
        stub, codec = self._stub, connection.codec
        annotations, correlation = stub.annotations, stub.correlation
        facts = in_progress.get()
        try:
            if facts is not None:
                what = f"the end of a stream of {stub.pool.object_id}"
                annotations, correlation = inherit(facts, what, connection, annotations, correlation, None)
            payload = codec.encode_call(DAEMON_ID, "close_stream", (self.stream_id,), {})
            connection.call(codec, payload, Flag.ONEWAY, annotations, correlation, stub.timeout_s)
        except errors.CommunicationError:
            pass  # the server's linger ends the stream
        finally:
            self._give_back()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._stub.pool.put_if_open(connection)
