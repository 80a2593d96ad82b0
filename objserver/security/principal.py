"""A principal: who the other end of a connection has proven to be.

It is what authentication gives to authorization, and all that passes between them: proving is over when a
call is judged.

What a server keeps for its clients (leases, replies of numbered calls, callbacks) it keeps under ids that
these make up.  An id proves nothing, so where it is known who calls, such a thing is kept under the id *and*
whose it is: another principal with the same id is another client.  Nothing has to be looked up or remembered
for that, and it is the same after every restart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from objserver import errors

__all__ = ["Principal", "Restrictions", "client_of"]


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
    or the name of a hook.  `expires_at` (seconds since 1970) ends it, and the session with it.  `key` is set
    where the holders of one key call themselves as they like, `key/name`.
    """

    name: str
    roles: frozenset[str] = frozenset()
    means: str = ""
    expires_at: float | None = None
    restrictions: Restrictions | None = None
    key: str = ""

    @property
    def family(self) -> str:
        """Who cannot be told apart for certain: all holders of one key.  Others are their own."""
        return self.key or self.name

    @property
    def whose(self) -> str:
        """What belongs to it is kept under this: by family, and apart from what a narrower token may have.

        The rates of a token say nothing of what is whose, and its expiry changes when it is renewed.
        """
        narrowed = self.restrictions
        if narrowed is None or not (narrowed.objects or narrowed.methods):
            return repr(self.family)
        return repr((self.family, narrowed.objects, narrowed.methods))

    def to_data(self) -> list[Any]:
        """As plain data, which `from_data` reads; without the rates of a token."""
        narrowed = self.restrictions or Restrictions()
        patterns = [[list(p) for p in narrowed.objects], [list(p) for p in narrowed.methods]]
        return [self.name, sorted(self.roles), self.means, self.expires_at, *patterns, self.key]

    @classmethod
    def from_data(cls, data: Any) -> Principal:
        """As a rule the same object for the same data; SerializeError if it is something else."""
        try:
            name, roles, means, expires_at, objects, methods, key = data
            texts = [name, means, key, *roles, *(p for patterns in (*objects, *methods) for p in patterns)]
            if all(type(text) is str for text in texts) and type(expires_at) in (int, float, type(None)):
                narrowed = tuple(map(tuple, objects)), tuple(map(tuple, methods))
                return _made(name, frozenset(roles), means, expires_at, *narrowed, key)
        except (TypeError, ValueError):
            pass
        raise errors.SerializeError("this names no principal")


@lru_cache(1024)
def _made(
    name: str,
    roles: frozenset[str],
    means: str,
    expires_at: float | None,
    objects: tuple[tuple[str, ...], ...],
    methods: tuple[tuple[str, ...], ...],
    key: str,
) -> Principal:
    restrictions = Restrictions(objects, methods) if objects or methods else None
    return Principal(name, roles, means, expires_at, restrictions, key)


def client_of(principal: Principal | None, id: bytes) -> bytes:
    """Under which id (16 bytes) the calls of a client are kept: its own where it is not known whose it is."""
    if principal is None:
        return id
    whose = principal.whose.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(len(whose).to_bytes(8, "big") + whose + id, digest_size=16).digest()
