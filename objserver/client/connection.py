"""One connection of a client: connect, greet, then one request and its reply at a time.

The socket blocks, and the time allowed for an answer is given to the kernel (SO_RCVTIMEO), so a call costs
two system calls and no polling. After anything but a clean reply the connection is closed: otherwise the
late answer of this call would be taken for the answer of the next.
"""

from __future__ import annotations

import socket
import struct
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
_ONEWAY = Flag.ONEWAY  # as a global: reading an attribute of a class takes longer
HANDSHAKE_TIMEOUT_S = 10.0
"""For the answer to the greeting, where the user gave no timeout: a server that never answers is none."""
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
    """A connected and greeted socket.  `native` says whether the other side is one of our peers."""

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
        self.last_used = time.monotonic()
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
            self.frame_size_max = peer.frame_size_max if peer else 0
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

        ConnectFailed: certainly not sent whole.  ConnectionLost, CallTimeout: the outcome is unknown.
        After any of them the connection is closed.
        """
        if self.frame_size_max and len(payload) > self.frame_size_max:
            raise errors.MessageTooLarge(
                f"the arguments take {len(payload)} bytes; {self.location} accepts {self.frame_size_max} "
                "(its setting frame_size_max)"
            )
        self._sequence = sequence = (self._sequence + 1) & 0xFFFF
        if flags or annotations or correlation is not NO_CORRELATION:
            request = encode_frame(
                FrameType.INVOKE, codec.serializer_id, flags, sequence, payload, annotations, correlation
            )
        else:
            request = plain_frame(self._start, sequence, payload)
        if timeout_s != self._timeout_s:
            self._set_timeout(timeout_s)
        try:
            self._sendall(request)
            if flags & _ONEWAY:
                return None
            frames = self._parser.receive_data(self._recv(READ_SIZE)) or self._rest()
            reply = frames[0]
            if reply.sequence != sequence or len(frames) > 1:
                raise errors.ProtocolError(
                    f"{self.location} answered {[frame.sequence for frame in frames]} to request {sequence}: "
                    "the connection is out of step"
                )
            if reply.serializer_id != codec.serializer_id:
                raise errors.SerializeError(f"the reply came in serializer {reply.serializer_id}")
            return reply
        except OSError as problem:
            raise self._broken(problem) from None
        except BaseException:
            # An interrupted call (Ctrl-C included) leaves its reply in the stream.
            self.close()
            raise

    def is_stale(self) -> bool:
        """Whether the server has closed the connection, or said something nobody asked for."""
        try:
            return self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) is not None
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

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

    def _broken(self, problem: OSError) -> errors.OutcomeUnknown:
        """What a failed system call means for the call that made it.  Closes the connection."""
        self.close()
        if isinstance(problem, errors.OutcomeUnknown):
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
