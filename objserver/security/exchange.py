"""How both ends prove that they know a shared key, without saying it.

    client   connect: key id, name, nonce C
    server   challenge: nonce S
    client   proof     HMAC-SHA-256(secret, "client", key id, name, C, S, binding)
    server   connected HMAC-SHA-256(secret, "server", key id, name, C, S, binding)

Both nonces are in both proofs, so neither can be used again, and none is the other's.  Each part is preceded
by its length, so that no two lists of parts are the same bytes.  `binding` is the hash of the server's
certificate under TLS, else nothing: a proof that was made to somebody in between is worth nothing to the
server.  The client proves first; what it then tells a server that could not prove itself is nothing.

Pure: nonces are arguments.
"""

from __future__ import annotations

import hmac

from objserver import errors
from objserver.security.credentials import Credentials, SharedKey, Token, secret_of

__all__ = ["NONCE_SIZE", "Claim", "Introduction", "proof"]

NONCE_SIZE = 32

Claim = tuple[str, str, str]
"""Key id, name, and nonce of the client in hexadecimal."""


def proof(secret: bytes, side: str, claim: Claim, challenge: bytes, binding: bytes) -> bytes:
    """What only who knows the secret can say; `side` is "client" or "server"."""
    parts = [b"objserver shared key 1", side.encode(), *(part.encode() for part in claim), challenge, binding]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(secret, message, "sha256")


class Introduction:
    """What a client says of itself in one handshake, and whether it believes the answer.

    `confidential` says whether nobody else reads the connection.
    """

    def __init__(
        self, credentials: Credentials | None, nonce: bytes, binding: bytes, confidential: bool
    ) -> None:
        self.claim: Claim | None = None
        self.token = ""
        self._binding = binding
        self._expected = b""
        if isinstance(credentials, SharedKey):
            self.claim = credentials.id, credentials.name, nonce.hex()
            self._secret = secret_of(credentials.secret)
        elif isinstance(credentials, Token):
            if not confidential:
                raise errors.AuthenticationFailed(
                    "the token was not sent: others could read it on the way to another machine; "
                    "connect with tls=ClientTLS(...)"
                )
            self.token = credentials.text

    def answer(self, challenge: bytes) -> bytes:
        """The proof that the server wants; ProtocolError if it may want none."""
        if self.claim is None or self._expected or len(challenge) != NONCE_SIZE:
            raise errors.ProtocolError("the server wants a proof of something that was not claimed")
        self._expected = proof(self._secret, "server", self.claim, challenge, self._binding)
        return proof(self._secret, "client", self.claim, challenge, self._binding)

    def check(self, answer: str) -> None:
        """Whether the server knows the key too; AuthenticationFailed if not."""
        if self.claim is not None and not (
            self._expected and answer.isascii() and hmac.compare_digest(answer, self._expected.hex())
        ):
            raise errors.AuthenticationFailed(
                f"the server did not prove that it knows the key {self.claim[0]!r}: it has no authentication "
                "by key, or is not the server that was meant"
            )
