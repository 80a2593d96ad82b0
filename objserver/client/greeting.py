"""The first two frames of a connection, as its client sees them: the greeting, and what the answer means.

Sans-IO: the blocking and the asynchronous connection send and receive the same, each in its way.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from objserver import errors
from objserver.codecs import Codec, Codecs
from objserver.references import Location
from objserver.security import ClientTLS, Credentials
from objserver.security.authentication import TOKEN_PREFIX
from objserver.security.exchange import Introduction
from objserver.security.tls import tls_problem
from objserver.wire import Extension, Frame, FrameType, encode_frame
from objserver.wire import extension as wire_extension
from objserver.wire.shared_memory import Link, Offer

__all__ = ["HANDSHAKE_TIMEOUT_S", "NOBODY", "Greeted", "Greeting", "Metadata"]

_REFUSALS = (
    errors.ObjectNotFound, errors.AuthenticationFailed, errors.NotAuthorized, errors.QuotaExceeded
)  # fmt: skip
"""What a server of ours says as an error that its caller knows."""
HANDSHAKE_TIMEOUT_S = 10.0
"""For the answer to the greeting, where the user gave no timeout: a server that never answers is none."""


class Metadata:
    """What the server says of an object: names of its `methods`, `oneway` methods and attributes `attrs`.

    `exactly_once`: calls that have an id are remembered, and may be repeated.

    `repeatable` are those that may be called twice where once was meant; a stock server says nothing of them.
    """

    __slots__ = ("attrs", "exactly_once", "methods", "oneway", "repeatable")

    def __init__(self, data: Any) -> None:
        try:
            self.methods = frozenset(data["methods"])
            self.oneway = frozenset(data["oneway"])
            self.attrs = frozenset(data["attrs"])
            self.repeatable = frozenset(data.get("repeatable", ()))
            self.exactly_once = data.get("exactly_once") is True
        except (TypeError, KeyError, AttributeError):
            raise errors.ProtocolError("the server sent no usable description of the object") from None


NOBODY = Introduction(None, b"", b"", False)
"""What a client says of itself that has no credentials."""


class Greeting(NamedTuple):
    """What a client says first.

    `serializer` is the name of a stock one, for who wants a stock conversation, or None.  `tls` and
    `credentials` are how the connection is made, and what it is opened with.  By `own` a server knows the
    connections of its own servants.
    """

    location: Location
    object_id: str
    serializer: str | None
    handshake: Any
    session: str
    client: str = ""
    multiplexed: bool = False
    tls: ClientTLS | None = None
    credentials: Credentials | None = None
    own: str = ""

    @property
    def server_name(self) -> str:
        """What the server's certificate must say."""
        assert self.tls is not None
        return self.tls.server_name or self.location.host or "localhost"

    def frame(self, codecs: Codecs, memory: Link | None = None, introduction: Introduction = NOBODY) -> bytes:
        """Its bytes, with the offer to share `memory`."""
        codec = codecs.by_name[self.serializer or "serpent"]
        data = {"handshake": self.handshake, "object": self.object_id}
        if introduction.token and self.serializer is not None:
            data["handshake"] = TOKEN_PREFIX + introduction.token
        if self.serializer is None:
            peer = Extension(
                session=self.session,
                client=self.client,
                multiplexed=self.multiplexed,
                shared=memory.offer if memory is not None else None,
                claim=introduction.claim,
                token=introduction.token,
                own=self.own,
            )
            data[wire_extension.KEY] = peer.to_data()
        return encode_frame(FrameType.CONNECT, codec.serializer_id, 0, 0, codec.encode(data))

    def answered(self, reply: Frame, codecs: Codecs, introduction: Introduction = NOBODY) -> Greeted | bytes:
        """What the server said, or the frame to answer it with, if it wants a proof first.

        ObjectNotFound, ConnectFailed with its reason (AuthenticationFailed), or ProtocolError.
        """
        if reply.type == FrameType.PROOF:
            proof = introduction.answer(bytes(reply.payload))
            return encode_frame(FrameType.PROOF, reply.serializer_id, 0, 0, proof)
        answer = codecs.get(reply.serializer_id).decode(reply.payload) if reply.payload else None
        if isinstance(answer, _REFUSALS):
            raise answer
        if reply.type != FrameType.CONNECT_OK:
            raise _refused(f"{self.location} refused the connection: {answer}")
        if not isinstance(answer, dict):
            raise errors.ProtocolError(f"{self.location} answered the handshake with {type(answer).__name__}")
        peer = Extension.from_handshake(answer)
        introduction.check(peer.proof if peer is not None else "")
        return Greeted(
            handshake=answer.get("handshake"),
            metadata=Metadata(answer.get("meta")),
            native=peer is not None,
            frame_size_max=(peer and peer.frame_size_max) or sys.maxsize,
            codec=codecs.parts if peer else codecs.by_name[self.serializer or "serpent"],
            shared=peer.shared if peer is not None else None,
            store=peer.store if peer is not None else "",
            entries=peer.entries if peer is not None else (),
        )

    def not_encrypted(self, problem: BaseException) -> errors.ConnectFailed:
        """The error for a TLS connection that did not come about; AuthenticationFailed if it is the server's
        certificate that is not accepted."""
        sentence = f"no TLS connection to {self.location}: {tls_problem(problem)}"
        if getattr(problem, "verify_message", ""):
            return errors.AuthenticationFailed(sentence)
        reason = str(getattr(problem, "reason", ""))
        if "CERTIFICATE_REQUIRED" in reason:  # so says TLS 1.3
            return errors.AuthenticationFailed(f"{sentence}; connect with tls=ClientTLS(certificate=...)")
        if "WRONG_VERSION" in reason or "HANDSHAKE_FAILURE" in reason or "UNKNOWN_PROTOCOL" in reason:
            sentence += "; does the server speak TLS?"
        return _refused(sentence)

    def unanswered(self, timeout_s: float | None) -> errors.ConnectFailed:
        """The error for a server that keeps silent."""
        time = f"{timeout_s:.3g} s" if timeout_s is not None else "time"
        return errors.ConnectFailed(
            f"{self.location} accepted the connection, but did not answer the handshake in "
            f"{time}: is it a Pyro5 or objserver server, and has it been started?"
        )


class Greeted(NamedTuple):
    """What a client knows after the handshake.  `native`: the other side is one of our peers."""

    handshake: Any
    metadata: Metadata
    native: bool
    frame_size_max: int
    codec: Codec
    shared: Offer | None = None
    store: str = ""
    """Id of the data in which the server remembers calls."""
    entries: tuple[str, ...] = ()
    """Addresses of the servers of its cluster."""


def _refused(sentence: str) -> errors.ConnectFailed:
    problem = errors.ConnectFailed(sentence)
    problem.refused = True
    return problem


def too_large(location: object, size: int, most: int) -> errors.MessageTooLarge:
    """The error for a request that the server would not take."""
    problem = errors.MessageTooLarge(
        f"the request takes {size} bytes; {location} accepts {most} (its setting frame_size_max)"
    )
    problem.limit = "frame_size_max"
    return problem


def stream_id(reply: Frame) -> str:
    """The id of the stream that a reply opens; ProtocolError without one."""
    found = bytes(reply.annotations.get("STRM", b"")).decode("ascii", "replace")
    if not found:
        raise errors.ProtocolError("the result is an iterator, but the server does not stream items")
    return found
