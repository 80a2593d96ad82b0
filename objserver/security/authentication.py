"""How a server finds out who a client is: the means it accepts, and one client's way through them.

    certificate  TLS has verified it already (`ServerTLS(client_ca=...)`)
    key          proven by challenge and response, see `exchange`
    token        read by a function of the user's, such as a verifier of JWT

What a client presents itself, a key or a token, counts before its certificate, which may be its machine's.
Whoever presents nothing that is accepted is refused, before it learns which objects there are.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from objserver import errors
from objserver.security.credentials import secret_of
from objserver.security.exchange import Claim, proof
from objserver.security.principal import Principal

__all__ = ["AcceptedKey", "Authentication", "Proving"]

TOKEN_PREFIX = "token "
"""With it, text in a stock client's handshake is a token."""


@dataclass(frozen=True)
class AcceptedKey:
    """A shared key, and who its holders are: `name`, by default the key's id.

    A holder that says a name of its own is `name/its own`: the key vouches for it.  All its holders together
    have the share of one principal, and what one of them holds is no secret from the others, who could call
    themselves as it does: give a key to each whom you do not trust alike.  To rotate a key, accept
    the new one under another id with the same `name`, until no client uses the old one.
    """

    secret: bytes | str = field(repr=False)
    name: str = ""
    roles: frozenset[str] = frozenset()
    expires_at: float | None = None

    def __post_init__(self) -> None:
        secret_of(self.secret)


@dataclass(frozen=True, kw_only=True)
class Authentication:
    """What a server accepts.

    `keys` are secrets by key id; the mapping is looked at in each handshake, so it may change meanwhile.
    `tokens` reads a token: it returns whose it is, or raises, where the sentence of an AuthenticationFailed
    is passed on to the client and any other is not.  `hook` sees everybody who has proven something, and
    returns who that is here, with roles for instance, or raises.
    """

    keys: Mapping[str, AcceptedKey | bytes | str] = field(default_factory=dict, repr=False)
    tokens: Callable[[str], Principal] | None = None
    hook: Callable[[Principal], Principal] | None = None

    def __post_init__(self) -> None:
        for id, key in self.keys.items():
            try:
                name = _accepted(key).name or id
            except ValueError as problem:
                raise ValueError(f"the key {id!r}: {problem}") from None
            if "/" in name:
                raise ValueError(f"the key {id!r} is called {name!r}; a slash comes before holders' names")


def _accepted(key: AcceptedKey | bytes | str) -> AcceptedKey:
    return key if isinstance(key, AcceptedKey) else AcceptedKey(key)


class Proving:
    """One client's handshake.  `nonce` is random; `certificate` whom a certificate has proven it to be.

    `binding` is what proofs are bound to, `confidential` whether nobody else reads the connection.
    """

    def __init__(
        self,
        means: Authentication,
        certificate: Principal | None,
        *,
        nonce: bytes,
        binding: bytes,
        confidential: bool,
    ) -> None:
        self._means = means
        self._certificate = certificate
        self._binding = binding
        self._confidential = confidential
        self._claim: Claim | None = None
        self._key: AcceptedKey | None = None
        self.challenge = nonce
        self.proof = ""
        """The server's own, for a client that has proven a key."""

    def presented(self, claim: Claim | None, token: str, greeting: Any, now: float) -> Principal | None:
        """Who the client is; None if it is to answer the `challenge` first.  AuthenticationFailed."""
        if not token and isinstance(greeting, str) and greeting.startswith(TOKEN_PREFIX):
            token = greeting[len(TOKEN_PREFIX) :].strip()
        if claim is not None:
            # Of a key that is not known too: that is told to nobody who does not hold one.
            self._claim = claim
            return None
        if token:
            return self._admitted(self._bearer(token), now)
        if self._certificate is not None:
            return self._admitted(self._certificate, now)
        raise errors.AuthenticationFailed(
            "this server wants to know who calls: give the proxy credentials=SharedKey(...) or Token(...), "
            "or tls=ClientTLS(certificate=...), whichever this server accepts"
        )

    def proven(self, answer: bytes, now: float) -> Principal:
        """Who the client is that answers the challenge so; AuthenticationFailed."""
        claim = self._claim
        assert claim is not None
        found = self._means.keys.get(claim[0])
        key = _accepted(bytes(32) if found is None else found)
        secret = secret_of(key.secret)
        expected = proof(secret, "client", claim, self.challenge, self._binding)
        if not hmac.compare_digest(bytes(answer), expected) or found is None:
            raise errors.AuthenticationFailed(
                f"the key {claim[0]!r} was not accepted: it is not known here, its secret is another one, or "
                "somebody sits between client and server"
            )
        self.proof = proof(secret, "server", claim, self.challenge, self._binding).hex()
        name = key.name or claim[0]
        if "/" in name:  # it came after the start, and could be taken for one of another key's holders
            raise errors.AuthenticationFailed(f"the key {claim[0]!r} has a name with a slash here")
        principal = Principal(name, key.roles, "key", key.expires_at)
        if claim[1]:
            principal = replace(principal, name=f"{name}/{claim[1]}", key=name)
        return self._admitted(principal, now)

    def _bearer(self, token: str) -> Principal:
        if self._means.tokens is None:
            raise errors.AuthenticationFailed("this server accepts no tokens")
        if not self._confidential:
            raise errors.AuthenticationFailed(
                "a token is accepted over TLS only: others may have read this one, so replace it"
            )
        try:
            principal = self._means.tokens(token)
        except errors.AuthenticationFailed as problem:
            raise errors.AuthenticationFailed(str(problem).replace(token, "...")) from None
        except Exception as problem:
            # Its sentence may hold the token.
            raise errors.AuthenticationFailed(
                f"the token was not accepted: {type(problem).__name__}"
            ) from None
        return principal if principal.means else replace(principal, means="token")

    def _admitted(self, principal: Principal, now: float) -> Principal:
        if self._means.hook is not None:
            principal = self._means.hook(principal)
        if principal.expires_at is not None and principal.expires_at <= now:
            raise errors.AuthenticationFailed(f"what proves {principal.name!r} has expired")
        return principal
