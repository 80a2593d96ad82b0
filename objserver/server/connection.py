"""One client connection: bytes in, invocations out, replies back.

    greeting -> open -> closed          `greeting` ends with CONNECT_OK; anything else closes
                     -> lingering       after an error: what still comes is thrown away for a moment, so that
                                        the error message is not lost to a reset, then the socket closes

Where the server wants to know who calls, greeting includes the proof: of a shared key by a challenge and its
answer, which is one frame more in each direction.  Nothing is said of any object before.

The leader reads and parses; replies are sent by whichever thread has finished the call, so sending is under a
lock of the connection.  What the peer does not take at once waits in `_unsent`, bounded; meanwhile nothing
more is read from that peer.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from hmac import compare_digest
from threading import get_ident
from types import MethodType
from typing import TYPE_CHECKING, Any

from objserver import errors, pyro5
from objserver.adapter import Answering, Invocation
from objserver.codecs import Codec, NativeCodec, marshalled
from objserver.codecs.base import NAME_LENGTH_MAX, call_of
from objserver.codecs.exceptions import text_of
from objserver.logs import escaping
from objserver.references import DAEMON_ID, Marks
from objserver.security.authentication import Authentication, Proving
from objserver.security.exchange import NONCE_SIZE
from objserver.security.principal import Principal, client_of
from objserver.server.callbacks import WayBack
from objserver.server.conversation import Conversation
from objserver.wire import (
    CallContext,
    Extension,
    Flag,
    Frame,
    FrameParser,
    FrameType,
    Probe,
    Promises,
    encode_frame,
)
from objserver.wire import extension as wire_extension
from objserver.wire.buffers import Arrived
from objserver.wire.frames import plain_request, plain_start
from objserver.wire.scalars import SCALAR_FRAME_MAX, ScalarCall, scalar_call, scalar_call_in
from objserver.wire.shared_memory import Offer, is_local

if TYPE_CHECKING:
    from objserver.server.server import ObjectServer

__all__ = ["Connection"]

log = escaping(logging.getLogger("objserver.server"))

READ_SIZE = 8 * 1024
"""Bytes asked for at a time.  A larger buffer is mapped and unmapped by the allocator at every call, which
costs more than the call."""
READ_LARGE = 1024 * 1024
"""... except when the rest of a large frame is known to be coming."""
LARGE = 64 * 1024
"""Bytes from which decoding a request is work of its own: beyond it, it would hold up the other clients."""
HEAVY = 256
"""Bytes from which the arguments of a waiting or running invocation count against `receive_memory_max`, with
the memory that they take: that of a byte can be 136 bytes."""
INFLATION_MAX = 1_032
"""Bytes that zlib can make of one."""
GATHER_MAX = 64
"""Replies that are sent together at most: the peer has something to do meanwhile."""
GIVERS_MAX = 8
"""Principals who passed on one reference, the servers among them.  Each is asked about at each call."""
LINGER_S = 1.0
"""How long a connection that was refused stays half open: long enough for the reason to arrive."""
TLS_HELLO = b"\x16\x03"
TLS_ALERT = bytes([21, 3, 1, 0, 2, 2, 40])
"""What TLS clients understand: fatal, handshake failure."""
Start = Callable[[Callable[[], None]], None]
# As globals: reading an attribute of a class takes longer.
_INVOKE, _KEEP_SERIALIZED, _COMPRESSED = FrameType.INVOKE, Flag.KEEP_SERIALIZED, Flag.COMPRESSED
_LISTS = (list, tuple)
_SCALAR_START, _NO_START = plain_start(FrameType.INVOKE, NativeCodec.serializer_id), bytes(10)
_NATIVE = (
    errors.ObjectNotFound, errors.AuthenticationFailed, errors.NotAuthorized, errors.QuotaExceeded
)  # fmt: skip
"""Refusals that our peers get as what they are."""
_HTTP = (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"DELE", b"PATC", b"CONN")
_HTTP_ANSWER = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port speaks Pyro's protocol, not HTTP. Use objserver.Proxy or Pyro5.api.Proxy.\n"
)


class Weight:
    """Counts bytes as held for as long as it lives, which is as long as the invocation that has it."""

    __slots__ = ("_hold", "size")

    def __init__(self, hold: Callable[[int], None], size: int) -> None:
        hold(size)
        self._hold, self.size = hold, size

    def grow(self, size: int) -> None:
        """So many bytes more."""
        self._hold(size)
        self.size += size

    def __del__(self) -> None:
        # Without the attributes if `hold` refused.
        if hasattr(self, "size"):
            self._hold(-self.size)


class Connection(Answering):
    """Server side of one socket.  `receive` is called by the leader only."""

    principal: Principal | None = None
    """Who the client has proven to be; None where nobody is asked."""
    receives_in_place = True
    """The socket puts what comes where it is told to."""

    def __init__(self, server: ObjectServer, sock: Any, address: Any, serial: int) -> None:
        self.server = server
        self.sock = sock
        self.address = address
        self.session = f"connection:{serial}"
        self.session_is_connection = True
        self.parser = FrameParser(server.settings.limits, server.settings.limits.handshake_size_max)
        self.parser.inflates = False
        self.deadline: float | None = server.clock.monotonic() + server.settings.handshake_timeout_s
        self.greeted = False
        self.closed = False
        self.lingering = False
        self._quick = False
        """It may be read and answered without further questions: it is greeted, and not lingering."""
        self._scalar_start = _NO_START
        """How requests begin that are nothing but a call, where one follows the other."""
        self.peer: Extension | None = None
        self._codec: Codec = server.codecs.serpent
        self._ours = server.codecs.parts
        self._payload_max = server.settings.limits.frame_size_max
        self._tracebacks = server.settings.tracebacks
        self.now = server.clock.monotonic
        self.about_to_block = server.engine.about_to_block
        self.no_longer_blocked = server.engine.no_longer_blocked
        self._recv = sock.recv
        self._send = sock.send
        self._admit = server.adapter.admit
        self._run = server.adapter.run
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._reading = True
        self._held = 0
        self.holder = self.client = self.session
        """What it holds is held by this, and `client` is the process that it says it is."""
        self.whose = ""
        """What belongs to it is kept under this, where it is known who calls."""
        self.is_own = False
        """It is a connection of this very server's servants."""
        self.codecs = server.codecs
        self._brought: dict[int, list[WayBack]] = {}
        """By thread, the client's objects in what is being decoded."""
        self._conversation: Conversation | None = None
        self._gathered: list[bytes] | None = None
        """Replies to requests that came together, until the last of these has run."""
        self._tracked: weakref.WeakSet[Any] | None = None
        self._challenged: tuple[Proving, Frame, dict[str, Any]] | None = None
        """The proof that is awaited, and the connect frame that claimed it, with what it said."""

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open" if self.greeted else "greeting"
        return f"<Connection {self.address} {state} session={self.session!r}>"

    @property
    def principal_name(self) -> str | None:
        """Whose it is, where that is asked."""
        return None if self.principal is None else self.principal.name

    @property
    def link(self) -> object:
        """The connection itself."""
        return self

    # -- reading -------------------------------------------------------------------------------------

    def receive(self, start: Start) -> None:
        """Read what has come; hand what may run now to `start`."""
        parser = self.parser
        before = parser.buffered
        data: Any
        if self._quick and not before:
            # What nearly always comes: one small request, and nothing else.  (To call an attribute of an
            # instance in one expression is slow; so are the classes whose instances have more than 30.)
            recv = self._recv
            try:
                data = recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            call = scalar_call(data, self._scalar_start)
            if call is not None:
                object_id, method, args, request = call
                invocation = Invocation(self, object_id, method, args, {}, (self._ours, request))
                admit = self._admit
                if admit(invocation):
                    start(MethodType(self._run, invocation))
                return
            frame = plain_request(data, parser.frame_size_max)
            if frame is not None:
                if (
                    self._conversation is None
                    and self._codec.serializer_id == frame.serializer_id
                    and not frame.annotations
                ):
                    self._invoke_plainly(frame, start)
                else:
                    self._invoke(frame, None, start)
            else:
                self._received(data, None, before, start)
            return
        if not self._is_secured():
            return
        space: Any = None
        try:
            if not before:
                data = self._recv(READ_SIZE)
            elif not self.receives_in_place or (space := parser.space()) is None:
                data = self._recv(min(max(parser.missing, READ_SIZE), READ_LARGE))
            else:
                data = self.sock.recv_into(space)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._received(data, space, before, start)

    def _is_secured(self) -> bool:
        """Whether the frames have begun; before them TLS shakes hands, where there is TLS."""
        return True

    def _received(self, data: Any, space: Any, before: int, start: Start) -> None:
        """These bytes have come, or so many into `space`."""
        if not data:
            self.close()
            return
        if self.lingering:
            return
        parser = self.parser
        gathers = False
        among = self._conversation
        try:
            if not self.greeted and space is None and data[:4] in _HTTP:
                self._write(_HTTP_ANSWER)
                raise errors.ProtocolError("an HTTP request")
            if not self.greeted and space is None and not before and data[:2] == TLS_HELLO:
                self._write(TLS_ALERT)
                raise errors.ProtocolError("this server does not speak TLS")
            frames = parser.receive_data(data) if space is None else parser.received(data)
            if parser.buffered or before:
                self._account(parser.buffered, bool(frames))
            if len(frames) > 1 and self._conversation is not None and self.server.settings.workers_max > 1:
                # Their replies leave together.  What runs too long for that is noticed by the engine.
                if self._gathered is None:
                    self._gathered = []
                    self.server.gathering[self] = None
                gathers = True
            rest = iter(frames)
            for frame in rest:
                if len(frame.payload) > LARGE or not self.greeted or frame.flags & _COMPRESSED:
                    self._set_apart([frame, *rest], start)
                elif among is not None and (call := scalar_call_in(frame, _SCALAR_START)) is not None:
                    self._invoke_among_others(among, call, start)
                elif frame.type == _INVOKE:
                    self._invoke(frame, None, start)
                else:
                    self._take(frame, None, start)
        except errors.ProtocolError as problem:
            self._refuse(problem)
        if gathers:
            start(self.send_gathered)

    def _take(self, frame: Frame, weight: Weight | None, start: Start) -> None:
        if self.lingering or self.closed:
            return
        if frame.flags & _COMPRESSED:
            # Nobody knows yet how much it will be, but others are doing the same.
            most = min(self.parser.frame_size_max, len(frame.payload) * INFLATION_MAX)
            room = Weight(self.server.hold, most)
            self.parser.unpack(frame)
            del room
        if not self.greeted:
            self._greeting(frame)
        elif frame.type == _INVOKE:
            self._invoke(frame, weight, start)
        elif frame.type == FrameType.CANCEL and self.peer is not None:
            if self._conversation is not None:
                self._conversation.cancel(frame.sequence)
        elif frame.type == FrameType.PROBE and self.peer is not None:
            if self._conversation is not None:
                self._conversation.asked(frame.sequence, Probe.decode(frame.payload))
        elif frame.type == FrameType.RESULT and self._conversation is not None:
            self._conversation.answered(frame)
        elif frame.type == FrameType.PING:
            self.send(encode_frame(FrameType.PING, frame.serializer_id, 0, frame.sequence, b"pong"))
        else:
            raise errors.ProtocolError(f"a client does not send frames of type {frame.type}")

    def _set_apart(self, frames: list[Frame], start: Start) -> None:
        """Have a large request or a greeting, and what came behind it, taken in a worker's own time.

        Decoding takes long, and greeting runs code of the user's; meanwhile another leads, and this peer is
        not read, which keeps its requests in order.
        """
        weighed = deque((frame, Weight(self.server.hold, len(frame.payload))) for frame in frames)
        self._read_on(False)

        def take() -> None:
            try:
                while weighed:
                    self._take(*weighed.popleft(), self.server.engine.submit)
            except errors.ProtocolError as problem:
                self._refuse(problem)
            except BaseException:
                self.close()
                raise
            finally:
                weighed.clear()
                self._read_on(True)

        start(take)

    def _account(self, buffered: int, progressed: bool = True) -> None:
        """An unfinished frame has a deadline from its beginning, and all of them together a budget."""
        server = self.server
        if self.greeted and (progressed or not buffered):
            self.deadline = None
            server.hurried.pop(self, None)
        if self.greeted and buffered and self.deadline is None:
            self.deadline = server.clock.monotonic() + server.settings.frame_timeout_s
            server.hurried[self] = None
        server.hold(buffered - self._held)
        self._held = buffered

    def keep_reading(self) -> None:
        """A reply is awaited, even if the server is about to stop and takes no more requests."""
        if not self.server.poller.reading:
            with self._lock:
                self.server.poller.watch(self)

    def _read_on(self, wanted: bool) -> None:
        with self._lock:
            self._reading = wanted
            if not self.closed:
                self.server.poller.watch(self)

    @property
    def interest(self) -> tuple[bool, bool]:
        """Whether to read from this peer, and to write.  One that does not read is not read from either."""
        wanted = self.server.poller.reading or (self._conversation is not None and self._conversation.waits)
        return self._reading and wanted and not self._unsent, bool(self._unsent)

    def _greeting(self, frame: Frame) -> None:
        if self._challenged is not None:
            if frame.type != FrameType.PROOF:
                raise errors.ProtocolError(f"a proof was to come, and not a frame of type {frame.type}")
        elif frame.type != FrameType.CONNECT:
            raise errors.ProtocolError(f"a connection starts with a connect frame, not type {frame.type}")
        server = self.server
        codec: Codec = server.codecs.serpent
        try:
            if self._challenged is None:
                codec = server.codecs.get(frame.serializer_id)
                data = _connect_data(codec.decode(frame.payload))
                self.peer = Extension.from_handshake(data)
                if server.authentication is not None and not self._identify(
                    server.authentication, frame, data
                ):
                    return
            else:
                proving, connect, data = self._challenged
                codec = server.codecs.get(connect.serializer_id)
                self.principal = proving.proven(frame.payload, server.clock.time())
            answer = self._welcome(data)
            payload, kind = codec.encode(answer), FrameType.CONNECT_OK
        except BaseException as problem:  # a locator or a handshake check may raise anything
            kind = FrameType.CONNECT_FAIL
            if isinstance(problem, errors.AuthenticationFailed):
                server.refused += 1
                # As text: an exception that a log keeps would keep the frame and its weight.
                log.warning("%s was not let in: %s", self, text_of(problem))
            if self.peer is not None and isinstance(problem, _NATIVE):
                codec = server.codecs.native
                payload = codec.encode(problem)
            else:
                payload = codec.encode(text_of(problem))  # stock peers know text only
        self.send(encode_frame(kind, codec.serializer_id, 0, frame.sequence, payload))
        if kind == FrameType.CONNECT_OK:
            self._challenged = None
            self.greeted = self._quick = True
            if self.peer is not None and self.peer.multiplexed:
                self._conversation = Conversation(self)
                server.callbacks.add(self)
            elif self.peer is not None and server.settings.limits.frame_size_max >= SCALAR_FRAME_MAX:
                self._scalar_start = _SCALAR_START
            self.deadline = None
            server.hurried.pop(self, None)
            if self.principal is not None and self.principal.expires_at is not None:
                server.expiring[self] = self.principal.expires_at
            self.parser.frame_size_max = server.settings.limits.frame_size_max
        else:
            self._linger()

    def _identify(self, means: Authentication, frame: Frame, data: dict[str, Any]) -> bool:
        """See who it is; False if the answer to a challenge is to come.  AuthenticationFailed."""
        server = self.server
        proving = Proving(
            means,
            self.certified(),
            nonce=server.random_bytes(NONCE_SIZE),
            binding=self.binding,
            confidential=bool(self.binding) or is_local(self.sock),
        )
        claim, token = (self.peer.claim, self.peer.token) if self.peer is not None else (None, "")
        self.principal = proving.presented(claim, token, data.get("handshake"), server.clock.time())
        if self.principal is None:
            self._challenged = proving, frame, data
            self.send(
                encode_frame(FrameType.PROOF, frame.serializer_id, 0, frame.sequence, proving.challenge)
            )
        return self.principal is not None

    binding = b""
    """What proofs are bound to; nothing without TLS."""

    def certified(self) -> Principal | None:
        """Whom a certificate names; nobody without TLS."""
        return None

    def _welcome(self, data: dict[str, Any]) -> dict[str, Any]:
        """The answer to a client that may come in."""
        server = self.server
        skeleton = server.adapter.greet(data["object"], self)
        if self.peer is not None:
            self.client = self.peer.client or self.session
            self.is_own = bool(self.peer.own) and compare_digest(self.peer.own.encode(), server.own.encode())
        if self.principal is not None:
            self.whose = self.principal.whose
            self.codecs = server.codecs_with(self)
            self._codec = self.codecs.serpent
        answer: dict[str, Any] = {
            "handshake": server.validate_handshake(data.get("handshake")),
            "meta": dict(skeleton.metadata),
        }
        if self.peer is not None:
            if self.peer.session:
                # A name of its own making; the mark keeps it apart from the sessions of stock clients, and of
                # other principals, and who has a narrower token.
                whose = "peer" if self.principal is None else f"peer {self.principal.name!r} of {self.whose}"
                self.session, self.session_is_connection = f"{whose}:{self.peer.session}", False
            self.holder = self.client if self.principal is None else f"{self.whose} {self.client}"
            size = server.settings.limits.frame_size_max
            answer["meta"]["repeatable"] = skeleton.repeatable
            if server.adapter.keeps_calls(data["object"]):
                answer["meta"]["exactly_once"] = True
            offer = self._share_memory(self.peer)
            proof = self._challenged[0].proof if self._challenged is not None else ""
            ours = Extension(
                frame_size_max=size,
                shared=offer,
                store=server.store_id,
                proof=proof,
                entries=tuple(server.entries()),
            )
            answer[wire_extension.KEY] = ours.to_data()
        return answer

    def _share_memory(self, peer: Extension) -> Offer | None:
        """From here on large values may travel beside the messages; what we offer for sharing memory."""
        self._codec = self.codecs.parts
        self.parser.parts_in = self._codec.serializer_id
        if peer.shared is None or not is_local(self.sock):
            return None
        self._memory = self.parser.link = self.server.memory.link()
        if self._memory is None:
            return None
        self._memory.accept(peer.shared)
        return self._memory.offer

    def _invoke(self, frame: Frame, weight: Weight | None, start: Start) -> None:
        """Admit the invocation that a request asks for, or answer with the error that it is."""
        flags = frame.flags
        codec = self._codec
        try:
            if codec.serializer_id != frame.serializer_id:
                codec = self._codec = self.codecs.get(frame.serializer_id)
            before = len(frame.payload)
            if before > HEAVY:
                weight = weight or Weight(self.server.hold, before)
                weight.grow(max(0, before - weight.size))  # it was compressed
                if not flags & _KEEP_SERIALIZED:
                    weight.grow(max(0, codec.weigh(frame.payload) - before))
            if flags & _KEEP_SERIALIZED:
                object_id, method, args, kwargs = self._blob(frame)
            else:
                object_id, method, args, kwargs = codec.decode_call(frame.payload)
            payload = frame.payload
            if weight is not None and len(payload) > before:
                weight.grow(len(payload) - before)  # only now is all of it here
            frame.payload = b""  # a request that waits holds its arguments once
            invocation = Invocation(self, object_id, method, args, kwargs, (codec, frame))
            if weight is not None:
                invocation.weight = weight
        except errors.ProtocolError as problem:
            if isinstance(frame.payload, Arrived):
                frame.payload.refuse()
            if not flags & Flag.ONEWAY:
                self.send(self.encode_error(Invocation(self, DAEMON_ID, "", (), {}, (codec, frame)), problem))
            return
        if (flags or frame.annotations or self._conversation is not None) and self._prepare(
            invocation, frame, payload
        ):
            return
        if self._admit(invocation):
            start(partial(self._run, invocation))

    def _invoke_plainly(self, frame: Frame, start: Start) -> None:
        """As `_invoke`, of a request without flags and annotations, where one follows the other."""
        codec, payload = self._codec, frame.payload
        try:
            weight = None
            if len(payload) > HEAVY:
                weight = Weight(self.server.hold, max(len(payload), codec.weigh(payload)))
            object_id, method, args, kwargs = codec.decode_call(payload)
            frame.payload = b""
            invocation = Invocation(self, object_id, method, args, kwargs, (codec, frame))
            if weight is not None:
                invocation.weight = weight
        except errors.ProtocolError as problem:
            self.send(self.encode_error(Invocation(self, DAEMON_ID, "", (), {}, (codec, frame)), problem))
            return
        if self._admit(invocation):
            start(partial(self._run, invocation))

    def _invoke_among_others(self, conversation: Conversation, call: ScalarCall, start: Start) -> None:
        """As `_invoke`, of a request that is a scalar call, where many are under way."""
        object_id, method, args, frame = call
        frame.payload = b""
        invocation = Invocation(self, object_id, method, args, {}, (self._ours, frame))
        try:
            conversation.begin(invocation, frame)
        except errors.ObjServerError as problem:
            invocation.caller.send(invocation.caller.encode_error(invocation, problem))
            return
        admit = self._admit
        if admit(invocation):
            start(MethodType(self._run, invocation))

    def _prepare(self, invocation: Invocation, frame: Frame, payload: Any) -> bool:
        """Whatever a request has besides a call.  True: it has been refused, or waits for other requests."""
        flags, annotations = frame.flags, frame.annotations
        promises = None
        try:
            size = sum(map(len, annotations.values()))
            if size > HEAVY:
                invocation.weight = invocation.weight, Weight(self.server.hold, size)
            if flags & Flag.CORRELATION:
                invocation._correlation = frame.correlation
            if flags & Flag.ONEWAY:
                invocation.oneway = True
            if flags & Flag.BATCH:
                invocation.batch = self._batch(invocation.args)
            conversation = self._conversation
            if annotations and self.peer is not None:
                users = dict(annotations)  # ours are no business of the servant's
                if wire_extension.ANNOTATION in users:
                    context = CallContext.decode(users.pop(wire_extension.ANNOTATION))
                    invocation.chain = context.chain
                    if context.remaining_s is not None:
                        invocation.deadline = self.now() + context.remaining_s
                    if context.call is not None:
                        _, _, invocation.call, invocation.acked, invocation.asks = context
                        if self.principal is not None:
                            client = client_of(self.principal, context.call.client)
                            invocation.call = context.call._replace(client=client)
                        content = payload.beside if isinstance(payload, Arrived) else payload
                        invocation.digest = hashlib.blake2b(content, digest_size=16).digest()
                    if context.chain:  # its caller may cancel it
                        conversation = self.conversation
                if wire_extension.MOVED in users:
                    invocation.sent = True
                    # Of the call as its client made it, if another server makes it for him.
                    invocation.digest = bytes(users.pop(wire_extension.MOVED)) or invocation.digest
                if wire_extension.PROMISES in users:
                    promises = Promises.decode(users.pop(wire_extension.PROMISES))
                    conversation = self.conversation
                annotations = users
            invocation.annotations = annotations
            if promises is not None:
                self.brought(invocation)
            if conversation is not None and not invocation.oneway:
                conversation.begin(invocation, frame)
            if promises is None:
                return False
            self.conversation.postpone(invocation, promises)
        except errors.ObjServerError as problem:
            if not invocation.oneway:
                invocation.caller.send(invocation.caller.encode_error(invocation, problem))
        return True

    def marks(self, before: Marks | None) -> Marks | None:
        """Whom a reference in a message of this client came from, who got it from those `before`.

        None if nobody knows: servants here pass on what they have made of a text, too.
        """
        if self.principal is None or (before is None and self.is_own):
            return None
        mark = self.principal.to_data()
        marks = [*(other for other in before or () if other != mark), mark]
        if len(marks) > GIVERS_MAX:
            raise errors.SerializeError(f"a reference was passed on by more than {GIVERS_MAX} principals")
        return marks

    def bring(self, way: WayBack) -> None:
        """A reference to an object of the client's has come in a call that is being decoded."""
        self._brought.setdefault(get_ident(), []).append(way)
        self._admit = self._admit_bringing

    def _admit_bringing(self, invocation: Invocation) -> bool:
        self._admit = self.server.adapter.admit
        self.brought(invocation)
        return self._admit(invocation)

    def brought(self, invocation: Invocation) -> None:
        """What was decoded last in this thread belongs to `invocation`."""
        for way in self._brought.pop(get_ident(), ()):
            way.bring(invocation)

    def under_way(self) -> dict[str, int]:
        """What is in flight, kept and waited for."""
        return {} if self._conversation is None else self._conversation.statistics()

    @property
    def conversation(self) -> Conversation:
        """The account of what is under way; begun when there is something to account for."""
        if self._conversation is None:
            self._conversation, self._scalar_start = Conversation(self), _NO_START
        return self._conversation

    def _batch(self, calls: Any) -> list[tuple[str, Any, dict[str, Any]]]:
        size_max = self.server.settings.limits.batch_size_max
        if len(calls) > size_max:
            raise errors.MessageTooLarge(f"a batch of {len(calls)} calls, more than {size_max}")
        for call in calls:
            if type(call) not in _LISTS or len(call) != 3:
                raise errors.SerializeError("a batch is a list of (method, args, kwargs)")
            # What call_of does, where there is nothing to be said or done, without a call for each.
            if (
                type(call[0]) is not str
                or type(call[1]) not in _LISTS
                or type(call[2]) is not dict
                or call[2]
            ):
                return [call_of(("", *each))[1:] for each in calls]
        return calls  # type: ignore[no-any-return]

    def _blob(self, frame: Frame) -> tuple[str, str, Any, dict[str, Any]]:
        """A SerializedBlob stays as it came; what it is for stands in an annotation."""
        try:
            info, object_id, method = marshalled.loads(bytes(frame.annotations["BLBI"]))
            object_id, method, _, _ = call_of((object_id, method, (), {}))
        except (KeyError, ValueError, TypeError):
            raise errors.SerializeError("a serialized blob without a valid BLBI annotation") from None
        raw = encode_frame(
            frame.type, frame.serializer_id, frame.flags & ~Flag.COMPRESSED, frame.sequence, frame.payload
        )
        blob = pyro5.serialized_blob(info, (raw[:40], raw[40:]))
        return object_id, method, (blob,), {}

    # -- writing -------------------------------------------------------------------------------------

    def send(self, data: bytes, gathers: bool = True) -> None:
        """Send, or keep for when the peer reads; from any thread.  Never blocks.

        Nothing at all sends what was gathered; `gathers` False: and gathers no more.
        """
        lock = self._lock
        lock.acquire()  # `with` makes objects of its own
        try:
            if self.closed:
                return
            if self._gathered is not None:
                self._gathered.append(data)
                if gathers and data and len(self._gathered) < GATHER_MAX and len(data) < LARGE:
                    return
                data = b"".join(self._gathered)
                self._gathered = [] if gathers else None
            if not data:
                return
            if not self._unsent:
                send = self._send
                try:
                    sent = send(data)
                except (BlockingIOError, InterruptedError):
                    sent = 0
                except OSError:
                    sent = -1
                if sent == len(data):
                    return
                if sent >= 0 and self.server.owe(len(data) - sent):
                    self._unsent += memoryview(data)[sent:]
                    self.server.poller.watch(self)
                    return
            else:
                room = self.server.settings.send_memory_max + self.server.settings.limits.frame_size_max
                if len(self._unsent) + len(data) <= room and self.server.owe(len(data)):
                    self._unsent += data
                    return
                log.warning(
                    "%s does not read its replies (settings send_memory_max, unsent_memory_max)", self
                )
        finally:
            lock.release()
        self.close()

    def send_gathered(self) -> None:
        """Send what was gathered, and gather no more."""
        # In one step: nothing that is sent meanwhile may overtake it, a CANCEL its request for one.
        self.server.gathering.pop(self, None)
        self.send(b"", gathers=False)

    def _write(self, data: bytes) -> None:
        try:
            self.sock.send(data)
        except OSError:
            pass

    def flush(self) -> None:
        """The peer takes more: send what waits."""
        with self._lock:
            if self.closed:
                return
            try:
                sent = self.sock.send(self._unsent)
                del self._unsent[:sent]
                self.server.owe(-sent)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                failed = True
            else:
                failed = False
            if not self._unsent:
                self.server.poller.watch(self)
        if failed:
            self.close()

    # -- replies: the connection is the caller of its invocations ------------------------------------

    def pyro5_context(self, invocation: Invocation) -> dict[str, Any]:
        """What Pyro5's `current_context` shows to a servant written for Pyro5 while `invocation` runs."""
        _, request = invocation.reply_to
        return {
            "client": self,
            "client_sock_addr": self.address,
            "seq": request.sequence,
            "msg_flags": request.flags,
            "serializer_id": request.serializer_id,
            "annotations": invocation.annotations,
            "response_annotations": {},
            "correlation_id": invocation.correlation_id,
        }

    @property
    def tracked_resources(self) -> weakref.WeakSet[Any]:
        """What Pyro5's `current_context.track_resource` wants closed when this connection ends."""
        if self._tracked is None:
            self._tracked = weakref.WeakSet()
        return self._tracked

    # -- ending --------------------------------------------------------------------------------------

    def _refuse(self, problem: errors.ProtocolError) -> None:
        """Say what is wrong, then let the connection end."""
        sequence, serializer_id = getattr(problem, "header", (0, self.server.codecs.serpent.serializer_id))
        try:
            codec = self.server.codecs.get(serializer_id)
        except errors.SerializeError:
            codec = self.server.codecs.serpent
        log.info("%s: %s", self, problem)
        self.server.refused += 1
        if self.greeted:
            payload = codec.encode(problem)
            kind, flags = FrameType.RESULT, Flag.EXCEPTION
        else:
            payload, kind, flags = codec.encode(str(problem)), FrameType.CONNECT_FAIL, 0
        self.send(encode_frame(kind, codec.serializer_id, flags, sequence, payload))
        self.send_gathered()
        self._linger()

    def refuse_one_too_many(self) -> None:
        """The server has all the connections it takes."""
        most = self.server.settings.connections_max
        self._refuse(errors.ProtocolError(f"the server has {most} connections (setting connections_max)"))

    def _linger(self) -> None:
        self._account(0)
        self.parser = FrameParser(self.server.settings.limits)
        self.lingering, self._quick = True, False
        self.deadline = self.server.clock.monotonic() + LINGER_S
        self.server.hurried[self] = None
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.lingering:
            self.close()
        else:
            what = "no complete frame" if self.greeted else "no handshake"
            self._refuse(errors.ProtocolError(f"{what} came in the time allowed"))

    def expire_principal(self) -> None:
        """What proves who the client is has expired; it may come again with something newer."""
        if self.closed or self.lingering:
            return
        assert self.principal is not None
        self._refuse(errors.ProtocolError(f"what proves {self.principal.name!r} has expired"))

    def say_goodbye(self) -> None:
        """The server stops in good order: what has no reply yet was not begun, and may be asked elsewhere."""
        if self.greeted and self.peer is not None and not self.lingering:
            self.send(encode_frame(FrameType.GOODBYE, self.server.codecs.native.serializer_id, 0, 0, b""))

    def close(self) -> None:
        """Close the socket; a stock client's session ends with it.  Safe to call twice."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self.server.owe(-len(self._unsent))
            self._unsent.clear()
            self._gathered = None
        self.server.forget(self)
        self._account(0)
        if self._memory is not None:
            self._memory.close(LINGER_S)
        self.sock.close()
        if self.greeted:
            self.server.engine.submit(self._ended, next=True)  # so that what it asked for is not begun

    def _ended(self) -> None:
        for resource in list(self._tracked or ()):
            try:
                resource.close()
            except BaseException:
                log.exception("closing a resource that %s tracked failed", self)
        if self._conversation is not None:
            self._conversation.disconnected()
        self.server.adapter.disconnected(self)


def _connect_data(data: Any) -> dict[str, Any]:
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("object"), str)
        or len(data["object"]) > NAME_LENGTH_MAX
    ):
        raise errors.ProtocolError("the connect frame names no object, or by too long an id")
    return data
