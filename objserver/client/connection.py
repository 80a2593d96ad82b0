"""One connection of a client: connect, greet, then one request and its reply at a time.

The socket blocks, and the time allowed for an answer is given to the kernel (SO_RCVTIMEO), so a call costs
two system calls and no polling. Once a request is on its way, anything but a clean reply closes the
connection: otherwise the late answer of this call would be taken for the answer of the next. What fails
before that leaves the connection as it was; `is_open` tells which it is.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from objserver import errors
from objserver.client.attempts import LEFT_MIN_S
from objserver.client.greeting import HANDSHAKE_TIMEOUT_S, NOBODY, Greeted, Greeting, too_large
from objserver.client.sharing import ended, offered, settled
from objserver.codecs import Codec, Codecs, NativeCodec
from objserver.invocation import Awaited
from objserver.machine import machine
from objserver.references import Location
from objserver.security.exchange import NONCE_SIZE, Introduction
from objserver.settings import Limits
from objserver.wire import Flag, Frame, FrameParser, FrameType, encode_frame
from objserver.wire.buffers import Parts, parts_frame
from objserver.wire.frames import NO_CORRELATION, plain_frame, plain_reply, plain_start
from objserver.wire.scalars import SCALAR_FRAME_MAX, scalar_request, scalar_value
from objserver.wire.shared_memory import Link, is_local

__all__ = ["Cancellable", "ClientConnection"]

Cancellable = Callable[[Awaited], None]

READ_SIZE = 8 * 1024
"""Bytes asked for at a time.  A larger buffer is mapped and unmapped by the allocator at every call, which
costs more than the call."""
READ_LARGE = 1024 * 1024
"""... except when the rest of a large frame is known to be coming."""
_ONEWAY, _EXCEPTION = Flag.ONEWAY, Flag.EXCEPTION  # as globals: reading an attribute of a class takes longer
_GOODBYE = FrameType.GOODBYE
_RESULT = FrameType.RESULT  # as a global: reading an attribute of a class takes longer
_TIMEVAL = struct.Struct("ll")
DROPS_S = 0.1
"""A reply that is not whole after that time comes in drops: each is waited for no longer than all."""


class _Request(Awaited):
    """A call that a thread waits for."""

    __slots__ = ("_connection", "_sequence")

    def __init__(self, connection: ClientConnection, sequence: int) -> None:
        self._connection = connection
        self._sequence = sequence

    def __call__(self) -> None:
        self._connection._send_cancel(self._sequence)

    def ask(self, question: bytes) -> None:
        self._connection._send_probe(self._sequence, question)


class ClientConnection:
    """A connected and greeted socket.  `native` says whether the other side is one of our peers, `session` in
    whose name it was greeted.  To connect and to be greeted may take `timeout_s` together."""

    is_new = True
    """Nobody has used it yet: what it took to make it was the time of its first call."""

    def __init__(
        self, greeting: Greeting, *, codecs: Codecs, timeout_s: float | None, limits: Limits
    ) -> None:
        self.location = greeting.location
        self.session = greeting.session
        self._monotonic = machine.get().monotonic
        self.last_used = self._monotonic()
        self._codecs = codecs
        self._parser = FrameParser(limits)
        self._sequence = 0
        self._timeout_s: float | None = None
        self._memory: Link | None = None
        self._sock: Any = _connect(greeting.location, timeout_s)
        self._receives_in_place = greeting.tls is None
        try:
            left_s = HANDSHAKE_TIMEOUT_S
            if timeout_s is not None:
                left_s = max(timeout_s - (self._monotonic() - self.last_used), LEFT_MIN_S)
            self._set_timeout(left_s)
            binding = b"" if greeting.tls is None else self._encrypt(greeting)
            self._sendall = self._sock.sendall
            self._recv = self._sock.recv
            self._memory = offered(greeting, self._sock)
            introduction = NOBODY
            if greeting.credentials is not None:
                nonce = machine.get().random_bytes(NONCE_SIZE)
                confidential = bool(binding) or is_local(self._sock)
                introduction = Introduction(greeting.credentials, nonce, binding, confidential)
            self._sendall(greeting.frame(codecs, self._memory, introduction))
            greeted = greeting.answered(self._reply(), codecs, introduction)
            if isinstance(greeted, bytes):
                self._sendall(greeted)
                greeted = greeting.answered(self._reply(), codecs, introduction)
            assert isinstance(greeted, Greeted)
            self._set_timeout(timeout_s)
            self._memory = settled(self._memory, greeted, self._parser)
            self.greeted = greeted
            self.handshake = greeted.handshake
            self.native = greeted.native
            self.frame_size_max = greeted.frame_size_max
            self.codec: Codec = greeted.codec
            self._start = plain_start(FrameType.INVOKE, self.codec.serializer_id)
            self._reply_start = plain_start(_RESULT, self.codec.serializer_id)
            self.takes_scalars = (
                isinstance(self.codec, NativeCodec) and self.frame_size_max >= SCALAR_FRAME_MAX
            )
        except BaseException as problem:
            self.close()
            if isinstance(problem, (BlockingIOError, errors.CallTimeout)):
                raise greeting.unanswered(self._timeout_s) from None
            if getattr(problem, "library", None) == "SSL":
                raise greeting.not_encrypted(problem) from None
            if isinstance(problem, OSError) and not isinstance(problem, errors.ConnectFailed):
                raise errors.ConnectFailed(
                    f"{self.location} closed the connection during the handshake"
                ) from None
            raise

    def _encrypt(self, greeting: Greeting) -> bytes:
        """Go on in TLS; what proofs are bound to from then on."""
        from objserver.security.channel import TLSSocket  # it loads OpenSSL, which most clients do without
        from objserver.security.tls import binding_of

        assert greeting.tls is not None
        encrypted = TLSSocket(self._sock, greeting.tls.usable_context(), greeting.server_name)
        encrypted.shake_as_client(self._timeout_s)
        self._sock = encrypted
        return binding_of(encrypted.peer_certificate_bytes())

    def _reply(self) -> Frame:
        """The next frame, in the handshake."""
        return (self._parser.receive_data(self._recv(READ_SIZE)) or self._rest())[0]

    def call(
        self,
        codec: Codec,
        payload: Any,
        flags: int,
        annotations: Mapping[str, bytes] | None,
        correlation: bytes,
        timeout_s: float | None,
        cancellable: Cancellable | None = None,
    ) -> Frame | bytes | None:
        """Send one request, whose payload `codec` made; return its reply, or None for a oneway.

        Of a plain reply, which is a value and nothing else, it is the payload alone.

        `cancellable` is given what cancels the call, or asks after it, as long as it is waited for.
        MessageTooLarge, or ProtocolError for the name of an annotation: nothing was sent.  ConnectFailed:
        not sent whole, so certainly not executed.  ConnectionLost, CallTimeout: the outcome is unknown.
        """
        # Never 0: that is the number of no request, under which a server answers what it cannot read.
        self._sequence = sequence = self._sequence % 0xFFFF + 1
        if type(payload) is Parts:
            request = parts_frame(
                FrameType.INVOKE, codec.serializer_id, flags, sequence, payload, annotations, correlation,
                self._memory, self.frame_size_max,
            )  # fmt: skip
        elif flags or annotations or correlation is not NO_CORRELATION:
            request = encode_frame(
                FrameType.INVOKE, codec.serializer_id, flags, sequence, payload, annotations, correlation
            )
        else:
            request = plain_frame(self._start, sequence, payload)
        if len(request) > self.frame_size_max:
            raise too_large(self.location, len(request), self.frame_size_max)
        try:
            if timeout_s != self._timeout_s:
                self._set_timeout(timeout_s)
            try:
                self._sendall(request)
            except (BrokenPipeError, ConnectionResetError) as problem:
                raise self._not_sent(problem) from None
            if flags & _ONEWAY:
                return None
            if cancellable is not None and self.native:
                cancellable(_Request(self, sequence))
            data = self._recv(READ_SIZE)
            value = plain_reply(data, self._reply_start, sequence)
            if value is not None:
                return value
            frames = self._parser.receive_data(data) or self._rest()
        except OSError as problem:
            raise self._broken(problem) from None
        except BaseException:
            # An interrupted call (Ctrl-C included) leaves its reply in the stream.
            self.close()
            raise
        return self._reply_in(frames, codec, sequence)

    def call_with_scalars(self, object_id: str, method: str, args: Sequence[Any]) -> Any:
        """As `call` with `args` alone and for ever, in fewer steps if they are scalars.

        Returns the value of a plain reply, and any other as it is.  Ellipsis if they are no scalars: nothing
        was sent.
        """
        self._sequence = sequence = self._sequence % 0xFFFF + 1
        request = scalar_request(self._start, sequence, object_id, method, args)
        if request is None:
            return ...
        try:
            if self._timeout_s is not None:
                self._set_timeout(None)
            sendall, recv = self._sendall, self._recv
            try:
                sendall(request)
            except (BrokenPipeError, ConnectionResetError) as problem:
                raise self._not_sent(problem) from None
            data = recv(READ_SIZE)
            value = scalar_value(data, self._reply_start, sequence)
            if value is not ...:
                return value
            payload = plain_reply(data, self._reply_start, sequence)
            frames = [] if payload is not None else self._parser.receive_data(data) or self._rest()
        except OSError as problem:
            raise self._broken(problem) from None
        except BaseException:
            self.close()  # as in `call`
            raise
        if payload is not None:
            return self.codec.decode(payload)
        return self._reply_in(frames, self.codec, sequence)

    def _reply_in(self, frames: list[Frame], codec: Codec, sequence: int) -> Frame:
        """The reply, if that is what has come."""
        reply = frames[0]
        if frames[-1].type == _GOODBYE:
            self.close()
            if len(frames) == 1:
                raise errors.ConnectFailed(
                    f"the server at {self.location} stopped before it began this call; nothing was done"
                )
            frames.pop()
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
        return bool(self._sock.fileno() >= 0)

    def close(self) -> None:
        """Close the socket.  Safe to call twice."""
        self._sock.close()
        ended(self._memory)

    # ------------------------------------------------------------------------------------------------

    def _rest(self) -> list[Frame]:
        """Read on until the reply is whole."""
        parser = self._parser
        # The kernel bounds each wait; a reply that comes in drops is bounded here.
        timeout_s = self._timeout_s
        deadline = None if timeout_s is None else self._monotonic() + timeout_s
        while True:
            space = parser.space() if self._receives_in_place else None
            data: Any
            if space is None:
                data = self._recv(min(max(parser.missing, READ_SIZE), READ_LARGE))
            else:
                data = self._sock.recv_into(space)
            if not data:
                raise errors.ConnectionLost(f"{self.location} closed the connection before the reply came")
            frames = parser.receive_data(data) if space is None else parser.received(data)
            if frames:
                return frames
            if deadline is not None and timeout_s is not None:
                left_s = deadline - self._monotonic()
                if left_s <= 0:
                    raise errors.CallTimeout(f"the reply of {self.location} did not end in {timeout_s} s")
                if timeout_s - left_s > DROPS_S:
                    self._set_timeout(left_s)

    def _send_cancel(self, sequence: int) -> None:
        """From another thread, while `call` waits for the reply, so nothing else is being sent."""
        with contextlib.suppress(OSError):
            self._sendall(encode_frame(FrameType.CANCEL, self.codec.serializer_id, 0, sequence, b""))

    def _send_probe(self, sequence: int, question: bytes) -> None:
        """As `_send_cancel`, but without waiting for room: it will be asked again."""
        frame = encode_frame(FrameType.PROBE, self.codec.serializer_id, 0, sequence, question)
        with contextlib.suppress(OSError):
            if self._sock.send(frame, socket.MSG_DONTWAIT) < len(frame):
                self._sock.shutdown(socket.SHUT_RDWR)  # half a frame cannot be taken back

    def _not_sent(self, problem: OSError) -> errors.ConnectFailed:
        """The kernel did not take the last byte, and nobody executes a part of a frame."""
        return errors.ConnectFailed(
            f"the connection to {self.location} broke before the request was sent: {problem.strerror}"
        )

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
    if location.client:
        raise errors.ConnectFailed(
            f"{location} is a client: only a server that it is connected to can call its objects"
        )
    try:
        sock: socket.socket = machine.get().connect(location, timeout_s)
    except OSError as problem:
        raise errors.ConnectFailed(f"cannot connect to {location}: {problem.strerror or problem}") from None
    return sock
