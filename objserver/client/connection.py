"""One connection of a client: connect, greet, then one request and its reply at a time.

The socket blocks, and the time allowed for an answer is given to the kernel (SO_RCVTIMEO), so a call costs
two system calls and no polling. Once a request is on its way, anything but a clean reply closes the
connection: otherwise the late answer of this call would be taken for the answer of the next. What fails
before that leaves the connection as it was; `is_open` tells which it is.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any

from objserver import errors
from objserver.codecs import Codec, Codecs
from objserver.references import Location
from objserver.settings import Limits
from objserver.wire import Extension, Flag, Frame, FrameParser, FrameType, encode_frame
from objserver.wire import extension as wire_extension
from objserver.wire.frames import NO_CORRELATION, plain_frame, plain_start

__all__ = ["ClientConnection", "Metadata"]

READ_SIZE = 8 * 1024
"""Bytes asked for at a time.  A larger buffer is mapped and unmapped by the allocator at every call, which
costs more than the call."""
READ_LARGE = 1024 * 1024
"""... except when the rest of a large frame is known to be coming."""
_ONEWAY, _EXCEPTION = Flag.ONEWAY, Flag.EXCEPTION  # as globals: reading an attribute of a class takes longer
HANDSHAKE_TIMEOUT_S = 10.0
"""For the answer to the greeting, where the user gave no timeout: a server that never answers is none."""
_RESULT = FrameType.RESULT  # as a global: reading an attribute of a class takes longer
_TIMEVAL = struct.Struct("ll")


class Metadata:
    """What the server says of an object: names of its `methods`, `oneway` methods and attributes `attrs`."""

    __slots__ = ("attrs", "methods", "oneway")

    def __init__(self, data: Any) -> None:
        try:
            self.methods = frozenset(data["methods"])
            self.oneway = frozenset(data["oneway"])
            self.attrs = frozenset(data["attrs"])
        except (TypeError, KeyError):
            raise errors.ProtocolError("the server sent no usable description of the object") from None


class ClientConnection:
    """A connected and greeted socket.  `native` says whether the other side is one of our peers, `session` in
    whose name it was greeted."""

    def __init__(
        self,
        location: Location,
        object_id: str,
        *,
        codecs: Codecs,
        serializer: str | None,
        handshake: Any,
        session: str,
        timeout_s: float | None,
        limits: Limits,
    ) -> None:
        self.location = location
        self.session = session
        self.last_used = time.monotonic()
        self._codecs = codecs
        self._parser = FrameParser(limits)
        self._sequence = 0
        self._timeout_s: float | None = None
        self._sock = _connect(location, timeout_s)
        self._sendall = self._sock.sendall
        self._recv = self._sock.recv
        try:
            codec = codecs.by_name[serializer or "serpent"]
            greeting = {
                "handshake": handshake,
                "object": object_id,
                wire_extension.KEY: Extension(session=session).to_data(),
            }
            if serializer is not None:
                del greeting[wire_extension.KEY]  # who chose a stock serializer wants a stock conversation
            self._set_timeout(HANDSHAKE_TIMEOUT_S if timeout_s is None else timeout_s)
            frame = encode_frame(FrameType.CONNECT, codec.serializer_id, 0, 0, codec.encode(greeting))
            self._sendall(frame)
            reply = (self._parser.receive_data(self._recv(READ_SIZE)) or self._rest())[0]
            answer = codecs.get(reply.serializer_id).decode(reply.payload) if reply.payload else None
            if isinstance(answer, errors.ObjectNotFound):
                raise answer
            if reply.type != FrameType.CONNECT_OK:
                raise errors.ConnectFailed(f"{location} refused the connection: {answer}")
            if not isinstance(answer, dict):
                raise errors.ProtocolError(f"{location} answered the handshake with {type(answer).__name__}")
            self._set_timeout(timeout_s)
            self.handshake = answer.get("handshake")
            self.metadata = Metadata(answer.get("meta"))
            peer = Extension.from_handshake(answer)
            self.native = peer is not None
            self.frame_size_max = (peer and peer.frame_size_max) or sys.maxsize
            self.codec: Codec = codecs.native if peer else codec
            self._start = plain_start(FrameType.INVOKE, self.codec.serializer_id)
        except BaseException as problem:
            self.close()
            if isinstance(problem, (BlockingIOError, errors.CallTimeout)):
                raise errors.ConnectFailed(
                    f"{location} accepted the connection, but did not answer the handshake in "
                    f"{self._timeout_s} s: is it a Pyro5 or objserver server, and has it been started?"
                ) from None
            if isinstance(problem, OSError) and not isinstance(problem, errors.ConnectFailed):
                raise errors.ConnectFailed(f"{location} closed the connection during the handshake") from None
            raise

    def call(
        self,
        codec: Codec,
        payload: bytes,
        flags: int,
        annotations: Mapping[str, bytes] | None,
        correlation: bytes,
        timeout_s: float | None,
    ) -> Frame | None:
        """Send one request, whose payload `codec` made; return its reply, or None for a oneway.

        MessageTooLarge, or ProtocolError for the name of an annotation: nothing was sent.  ConnectFailed:
        not sent whole, so certainly not executed.  ConnectionLost, CallTimeout: the outcome is unknown.
        """
        # Never 0: that is the number of no request, under which a server answers what it cannot read.
        self._sequence = sequence = self._sequence % 0xFFFF + 1
        if flags or annotations or correlation is not NO_CORRELATION:
            request = encode_frame(
                FrameType.INVOKE, codec.serializer_id, flags, sequence, payload, annotations, correlation
            )
        else:
            request = plain_frame(self._start, sequence, payload)
        if len(request) > self.frame_size_max:
            raise self._too_large(len(request))
        try:
            if timeout_s != self._timeout_s:
                self._set_timeout(timeout_s)
            try:
                self._sendall(request)
            except (BrokenPipeError, ConnectionResetError) as problem:
                # The kernel did not take the last byte, and nobody executes a part of a frame.
                raise errors.ConnectFailed(
                    f"the connection to {self.location} broke before the request was sent: {problem.strerror}"
                ) from None
            if flags & _ONEWAY:
                return None
            frames = self._parser.receive_data(self._recv(READ_SIZE)) or self._rest()
        except OSError as problem:
            raise self._broken(problem) from None
        except BaseException:
            # An interrupted call (Ctrl-C included) leaves its reply in the stream.
            self.close()
            raise
        reply = frames[0]
        if (
            reply.sequence != sequence
            or reply.serializer_id != codec.serializer_id
            or reply.type != _RESULT
            or len(frames) > 1
        ):
            self.close()
            raise self._no_reply(frames, sequence)
        return reply

    def is_stale(self) -> bool:
        """Whether the server has closed the connection, or said something nobody asked for."""
        try:
            return self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) is not None
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed on this side."""
        return self._sock.fileno() >= 0

    def close(self) -> None:
        """Close the socket.  Safe to call twice."""
        self._sock.close()

    # ------------------------------------------------------------------------------------------------

    def _rest(self) -> list[Frame]:
        """Read on until the reply is whole."""
        parser = self._parser
        # The kernel bounds each wait; a reply that comes in drops is bounded here.
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            data = self._recv(min(max(parser.missing, READ_SIZE), READ_LARGE))
            if not data:
                raise errors.ConnectionLost(f"{self.location} closed the connection before the reply came")
            frames = parser.receive_data(data)
            if frames:
                return frames
            if deadline is not None and time.monotonic() >= deadline:
                raise errors.CallTimeout(f"the reply of {self.location} did not end in {self._timeout_s} s")

    def _too_large(self, size: int) -> errors.MessageTooLarge:
        problem = errors.MessageTooLarge(
            f"the request takes {size} bytes; {self.location} accepts {self.frame_size_max} "
            "(its setting frame_size_max)"
        )
        problem.limit = "frame_size_max"
        return problem

    def _no_reply(self, frames: list[Frame], sequence: int) -> BaseException:
        """What to raise for `frames` that are not the reply to request `sequence`."""
        first = frames[0]
        if first.flags & _EXCEPTION and first.sequence in (0, sequence):
            # The server could not read the request, perhaps not even its number and its serializer.
            value = self._codecs.get(first.serializer_id).decode(first.payload)
            return value if isinstance(value, BaseException) else errors.RemoteError(str(value))
        if first.sequence == sequence and len(frames) == 1:
            return errors.SerializeError(f"the reply came in serializer {first.serializer_id}")
        return errors.ProtocolError(
            f"{self.location} answered {[frame.sequence for frame in frames]} to request {sequence}: "
            "the connection is out of step"
        )

    def _broken(self, problem: OSError) -> errors.CommunicationError:
        """What a failed system call means for the call that made it.  Closes the connection."""
        self.close()
        if isinstance(problem, (errors.OutcomeUnknown, errors.ConnectFailed)):
            return problem  # ours are OSErrors too
        if isinstance(problem, BlockingIOError):  # how the kernel reports SO_RCVTIMEO and SO_SNDTIMEO
            return errors.CallTimeout(
                f"no reply from {self.location} in {self._timeout_s} s; the call may still run there"
            )
        return errors.ConnectionLost(
            f"the connection to {self.location} broke before the reply came: {problem.strerror or problem}"
        )

    def _set_timeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        seconds = 0.0 if timeout_s is None else max(timeout_s, 1e-6)
        value = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def _connect(location: Location, timeout_s: float | None) -> socket.socket:
    try:
        if location.path:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout_s)
                sock.connect(location.path)
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection((location.host, location.port), timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as problem:
        raise errors.ConnectFailed(f"cannot connect to {location}: {problem.strerror or problem}") from None
    sock.settimeout(None)
    return sock
