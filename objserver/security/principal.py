"""A principal: who the other end of a connection has proven to be.

It is what authentication gives to authorization, and all that passes between them: proving is over when a
call is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Principal"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls.  Identifiers are compared exactly, and never normalised.

    `name` is what a certificate, a key or a token says.  `means` is how it was proven: "tls", "key", "token"
    or the name of a hook.  `expires_at` (seconds since 1970) ends it, and the session with it.
    """

    name: str
    roles: frozenset[str] = frozenset()
    means: str = ""
    expires_at: float | None = None
