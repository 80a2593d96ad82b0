"""A principal: who the other end of a connection has proven to be.

It is what authentication gives to authorization, and all that passes between them: proving is over when a
call is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Principal", "Restrictions"]


@dataclass(frozen=True, slots=True)
class Restrictions:
    """What a token leaves of its principal's rights; it never adds any.

    An id is covered if each member of `objects` has a pattern for it, a method likewise: whoever had the
    token could add one.  `rates` are calls per second, each with the id of the bucket they are taken from.
    """

    objects: tuple[tuple[str, ...], ...] = ()
    methods: tuple[tuple[str, ...], ...] = ()
    rates: tuple[tuple[str, float], ...] = ()


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
    restrictions: Restrictions | None = None
