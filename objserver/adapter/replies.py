"""How an invocation is answered on the wire: with its result, with a stream, or with its error.

Both ends of a connection answer calls: the server those of its clients, and a client those that the server
makes to the objects it was given.  What they have in common is here; a connection of either side inherits it
and adds how bytes are sent.
"""

from __future__ import annotations

import pathlib
import traceback
from typing import Any

from objserver import errors, pyro5
from objserver.adapter.invocation import Invocation
from objserver.codecs import NativeCodec
from objserver.codecs.exceptions import text_of
from objserver.settings import CLIENT_LIMITS
from objserver.wire import Flag, FrameParser, FrameType, encode_frame
from objserver.wire.buffers import Parts, parts_frame
from objserver.wire.frames import plain_frame, plain_start
from objserver.wire.scalars import scalar_reply
from objserver.wire.shared_memory import Link

__all__ = ["Answering"]

_RESULTS = [plain_start(FrameType.RESULT, serializer_id) for serializer_id in range(256)]
_OURS_ID = NativeCodec.serializer_id
_OUR_RESULT = _RESULTS[_OURS_ID]
_OURS = str(pathlib.Path(__file__).parent.parent)


class Answering:
    """The part of a caller that encodes.  `reply_to` of its invocations is (codec, request frame)."""

    _payload_max: int
    """Bytes of the largest reply."""
    _tracebacks: bool
    """Whether tracebacks travel with exceptions."""
    _memory: Link | None = None
    """Shared with the other end, for large values."""

    def encode_result(self, invocation: Invocation, value: Any) -> bytes:
        """The frame that carries `value`; SerializeError or MessageTooLarge if it cannot."""
        codec, request = invocation.reply_to
        if (
            request.serializer_id == _OURS_ID
            and not request.flags
            and invocation._response_annotations is None
        ):
            reply = scalar_reply(_OUR_RESULT, request.sequence, value)
            if reply is not None:
                return reply
        payload = codec.encode(value)
        if type(payload) is Parts:
            return self._encode_parts(invocation, payload)
        if len(payload) > self._payload_max:
            raise errors.MessageTooLarge(
                f"the result takes {len(payload)} bytes, more than {self._payload_max} "
                "(setting frame_size_max)"
            )
        annotations = invocation._response_annotations
        if annotations is None and not request.flags:
            return plain_frame(_RESULTS[request.serializer_id], request.sequence, payload)
        return encode_frame(
            FrameType.RESULT,
            codec.serializer_id,
            0,
            request.sequence,
            payload,
            annotations,
            request.correlation,
        )

    def _encode_parts(self, invocation: Invocation, parts: Parts) -> bytes:
        """As `encode_result`, of a value with large blocks."""
        codec, request = invocation.reply_to
        return parts_frame(
            FrameType.RESULT,
            codec.serializer_id,
            0,
            request.sequence,
            parts,
            invocation._response_annotations,
            request.correlation,
            # What is shared can be taken once.
            None if request.flags & Flag.KEEP or invocation.call is not None else self._memory,
            self._payload_max,
        )

    def encode_stream(self, invocation: Invocation, stream_id: str) -> bytes:
        """A stream is announced in an annotation; old clients see an exception."""
        codec, request = invocation.reply_to
        return encode_frame(
            FrameType.RESULT,
            codec.serializer_id,
            Flag.EXCEPTION | Flag.ITEM_STREAM,
            request.sequence,
            codec.encode(errors.ProtocolError("result of call is an iterator")),
            {**invocation.response_annotations, "STRM": stream_id.encode()},
            request.correlation,
        )

    def encode_again(self, invocation: Invocation, reply: bytes) -> bytes:
        """`reply`, which answered the same call before, as the answer to this request."""
        codec, request = invocation.reply_to
        parser = FrameParser(CLIENT_LIMITS)
        parser.parts_in = codec.serializer_id
        (frame,) = parser.receive_data(reply)
        if frame.serializer_id != codec.serializer_id:
            raise errors.SerializeError("the call was made before, with another serializer")
        if not isinstance(frame.payload, (bytes, memoryview)):
            return self.encode_result(invocation, codec.decode(frame.payload))
        return encode_frame(
            FrameType.RESULT,
            codec.serializer_id,
            frame.flags & Flag.EXCEPTION,
            request.sequence,
            bytes(frame.payload),
            None,
            request.correlation,
        )

    def encode_error(self, invocation: Invocation, error: BaseException) -> bytes:
        """The frame that carries an exception; one that cannot travel is described instead.  Never fails."""
        codec, request = invocation.reply_to
        try:
            lines = _traceback_of(error) if self._tracebacks else []
        except BaseException:
            lines = []  # a __str__ of the user's may raise
        if not isinstance(error, Exception):
            # SystemExit and its like end what raises them: here the call, never the caller's program.
            text = f"{type(error).__name__}: {text_of(error)}"
            error = errors.RemoteError(text, type_name=type(error).__qualname__)
        try:
            setattr(error, "_pyroTraceback", lines)  # noqa: B010  (Pyro5's name for it, on any exception)
        except Exception:
            pass

        def frame(payload: bytes, annotations: dict[str, bytes] | None) -> bytes:
            kind, flags = FrameType.RESULT, Flag.EXCEPTION
            if invocation.call is not None and not invocation.begun:
                flags |= Flag.REFUSED  # so an earlier attempt may still have an outcome
            return encode_frame(
                kind, codec.serializer_id, flags, request.sequence, payload, annotations, request.correlation
            )

        try:
            payload = codec.encode(error)
            if len(payload) > self._payload_max:
                raise errors.MessageTooLarge(f"it takes {len(payload)} bytes (setting frame_size_max)")
            return frame(payload, invocation.response_annotations)
        except Exception as problem:
            what = f"cannot send the exception: {_clean(text_of(problem))}. It was {type(error).__name__}: "
            substitute = pyro5.PyroError(what + _clean(text_of(error)))
            substitute._pyroTraceback = [_clean(line) for line in lines[-20:]]
            return frame(codec.encode(substitute), None)


def _traceback_of(error: BaseException) -> list[str]:
    """The lines of a traceback that begins in the servant: how we got there is of no interest."""
    if isinstance(error, errors.Unsettled):
        return []  # its proxy makes the call again, and nobody sees it
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    if trace is None and isinstance(error, errors.ObjectError) and error.__cause__ is None:
        return []  # refused by us: nothing of the user's is in it
    return traceback.format_exception(type(error), error, trace or error.__traceback__)


def _clean(text: str) -> str:
    """A text that every serializer can carry, and that is short enough for an apology."""
    return text[:2000].encode("utf-8", "backslashreplace").decode()
