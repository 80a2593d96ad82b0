"""What our own peers add to the protocol, and how they find out about each other.

A client that knows the additions puts the key `objserver` into the data of its connect frame; a server
that knows them answers with the same key.  The key in the connect frame is all that a stock daemon sees of
this, and it ignores it; a stock client, which sends no such key, sees nothing.  The greeting carries a
version, the client's session id, the id of its process, and whether it takes calls and replies in any order;
the answer a version and the server's limit on frames.  Between two processes of one machine
both also offer shared memory (`shared_memory`).  A client may claim to hold a shared key, which it then
proves in a frame of its own, or show a token; the answer to the first has the server's proof.  A server that
calls itself says so, by something that nobody else knows.

A server of a cluster answers with the addresses of all its servers: each leads to every object.  It answers a
call of an object that another one has with the error `Moved`; the call is then made there, with the
annotation `MOVD`, which says that it was sent there and has to be taken.  It is empty, or, where a server
makes the call for its client, has the digest of what that sent.

`CallContext` travels in one request annotation, `OBJS`: a MessagePack array

    [remaining time in s or nil, [ids of the invocations that led to this call, outermost first],
     client, number, path, number through which the client has all answers, whether it only asks]

The last five, which may be missing, name the call so that it can be repeated (`CallId`).  One that only asks
wants to know what became of the call of that id, and that it does not happen later if it has not.  A reader
ignores what it does not know.  The annotation is left out when there is nothing to say.

`Promises` travels in the annotation `PROM` of a request that refers to results of requests before it on the
same connection: the array

    [sequence number of the request whose result is the object to call, or nil,
     {position of an argument or its name: sequence number of the request whose result it is}]

The reply to such a request has the annotation, empty, if the object to call is not at this server, or that of
a request which it refers to was not: then the call was not made, and its sender makes it where the object is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import ormsgpack

from objserver import errors
from objserver.invocation import CallId

__all__ = ["ANNOTATION", "KEY", "MOVED", "PROMISES", "CallContext", "Extension", "Promises"]

KEY = "objserver"
ANNOTATION = "OBJS"
PROMISES = "PROM"
MOVED = "MOVD"
VERSION = 1
CHAIN_MAX = 64
"""Nested calls in one chain; a deeper one is a recursion that has lost its way.  Its sender says so."""
CLIENT_SIZE = 16
"""Bytes of the client and the path of a call id."""
NUMBER_MAX = 1 << 62
"""Call numbers are below it: every store can hold them."""
SESSION_SIZE_MAX = 200
"""Characters of a session id; ours have 32, a person's name for one is short."""
ENTRIES_MAX = 256
"""Addresses of a cluster's servers in a greeting; each leads to all the others."""
TOKEN_SIZE_MAX = 32 * 1024
"""Characters of a token: half a handshake."""


_NO_ARGS: Mapping[int | str, int] = {}


class Extension(NamedTuple):
    """What the other side said in its greeting."""

    session: str = ""
    frame_size_max: int = 0
    client: str = ""
    """Id of the client's process: where the objects are that it passes on, and who holds what it got."""
    multiplexed: bool = False
    """It takes replies in any order, and calls."""
    shared: tuple[int, int, str, int] | None = None
    """Process id, descriptor, token and number of the word that proves we can open its memory."""
    store: str = ""
    """Id of the data that the server's objects are kept in: calls are numbered for each."""
    claim: tuple[str, str, str] | None = None
    """Id of the key that the client holds, its name among the holders, and its nonce."""
    token: str = ""
    proof: str = ""
    """That the server knows the key too."""
    own: str = ""
    """What only the server itself knows, from whom this connection comes then."""
    entries: tuple[str, ...] = ()
    """Addresses of the servers of the cluster, if it is one."""

    def __repr__(self) -> str:
        return f"<Extension session={self.session!r} client={self.client!r}>"  # and no token

    def to_data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"version": VERSION}
        if self.session:
            data["session"] = self.session
        if self.frame_size_max:
            data["frame_size_max"] = self.frame_size_max
        if self.client:
            data["client"] = self.client
        if self.multiplexed:
            data["multiplexed"] = True
        if self.shared:
            data["shared"] = list(self.shared)
        if self.store:
            data["store"] = self.store
        if self.claim:
            data["key"] = list(self.claim)
        if self.token:
            data["token"] = self.token
        if self.proof:
            data["proof"] = self.proof
        if self.own:
            data["own"] = self.own
        if self.entries:
            data["entries"] = list(self.entries[:ENTRIES_MAX])
        return data

    @classmethod
    def from_handshake(cls, handshake: Mapping[str, Any]) -> Extension | None:
        """The greeting inside the connect data, or None from a stock peer."""
        data = handshake.get(KEY)
        if not isinstance(data, Mapping):
            return None
        session, size = data.get("session", ""), data.get("frame_size_max", 0)
        client, store = data.get("client", ""), data.get("store", "")
        token, proof = data.get("token", ""), data.get("proof", "")
        own = data.get("own", "")
        claim = data.get("key")
        if claim is not None:  # a stock serializer carried it: a list may be a tuple here, and below
            claim = tuple(claim) if isinstance(claim, (list, tuple)) else ()
            if [type(part) for part in claim] != [str, str, str] or len("".join(claim)) > SESSION_SIZE_MAX:
                raise errors.ProtocolError("the greeting between objserver peers claims no key that can be")
        if (
            not isinstance(session, str)
            or len(session) > SESSION_SIZE_MAX
            or not isinstance(size, int)
            or size < 0
            or not isinstance(client, str)
            or len(client) > SESSION_SIZE_MAX
            or not isinstance(store, str)
            or len(store) > SESSION_SIZE_MAX
            or not isinstance(token, str)
            or len(token) > TOKEN_SIZE_MAX
            or not isinstance(proof, str)
            or len(proof) > SESSION_SIZE_MAX
            or not isinstance(own, str)
            or len(own) > SESSION_SIZE_MAX
        ):
            raise errors.ProtocolError("the greeting between objserver peers is malformed")
        entries = data.get("entries", ())
        if (
            not isinstance(entries, (list, tuple))
            or len(entries) > ENTRIES_MAX
            or not all(isinstance(entry, str) and len(entry) <= SESSION_SIZE_MAX for entry in entries)
        ):
            raise errors.ProtocolError("the greeting between objserver peers is malformed")
        multiplexed = data.get("multiplexed") is True
        shared = data.get("shared")
        if shared is None:
            return cls(
                session, size, client, multiplexed, None, store, claim, token, proof, own, tuple(entries)
            )
        if not isinstance(shared, (list, tuple)) or [type(part) for part in shared] != [int, int, str, int]:
            raise errors.ProtocolError("the greeting between objserver peers is malformed")
        process, descriptor, word, number = shared
        if len(word) > SESSION_SIZE_MAX or not all(0 <= n < 1 << 31 for n in (process, descriptor, number)):
            raise errors.ProtocolError("the greeting between objserver peers is malformed")
        offer = process, descriptor, word, number
        return cls(
            session, size, client, multiplexed, offer, store, claim, token, proof, own, tuple(entries)
        )


class Promises(NamedTuple):
    """What a request takes from requests before it, by their sequence numbers."""

    target: int | None = None
    args: Mapping[int | str, int] = _NO_ARGS

    def encode(self) -> bytes:
        return ormsgpack.packb([self.target, dict(self.args)], option=ormsgpack.OPT_NON_STR_KEYS)

    @classmethod
    def decode(cls, data: bytes) -> Promises:
        """ProtocolError if `data` is not what `encode` makes."""
        try:
            target, args = ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS)
            numbers = [*args.values(), *([] if target is None else [target])]
            if all(type(n) is int for n in numbers) and all(type(key) in (int, str) for key in args):
                return cls(target, args)
        except (ValueError, TypeError, AttributeError):
            pass
        raise errors.ProtocolError("the PROM annotation is malformed")

    @property
    def sequences(self) -> set[int]:
        """All the requests it refers to."""
        return {*self.args.values(), *([] if self.target is None else [self.target])}


class CallContext(NamedTuple):
    """What travels beside one request."""

    remaining_s: float | None = None
    chain: tuple[str, ...] = ()
    call: CallId | None = None
    acked: int = 0
    """Its client has the answers of all its calls up to this number."""
    asks: bool = False

    def encode(self) -> bytes:
        call = self.call
        if call is None:
            return ormsgpack.packb([self.remaining_s, list(self.chain)])
        return ormsgpack.packb([self.remaining_s, list(self.chain), *call, self.acked, self.asks])

    @classmethod
    def decode(cls, data: bytes) -> CallContext:
        """ProtocolError if `data` is not what `encode` makes."""
        try:
            remaining, chain, *rest = ormsgpack.unpackb(data)
            timed = remaining is None or (
                type(remaining) in (int, float) and math.isfinite(remaining) and remaining >= 0
            )
            ok = timed and type(chain) is list and len(chain) <= CHAIN_MAX
            if ok and (not chain or all(type(link) is str for link in chain)):
                if not rest:
                    return cls(remaining, tuple(chain))
                client, number, path, acked, asks, *_ = rest
                if (
                    type(client) is type(path) is bytes
                    and type(number) is type(acked) is int
                    and type(asks) is bool
                    and len(client) == CLIENT_SIZE
                    and len(path) in (0, CLIENT_SIZE)
                    and 0 < number < NUMBER_MAX
                    and 0 <= acked < NUMBER_MAX
                ):
                    return cls(remaining, tuple(chain), CallId(client, number, path), acked, asks)
        except (ValueError, TypeError):
            pass
        raise errors.ProtocolError("the OBJS annotation is malformed")
