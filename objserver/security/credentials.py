"""What a client shows to be let in.  Secrets are in no `repr`, and no proxy passes them on.

A shared key never travels: its holder proves to know it (`objserver.security.exchange`).  A token does, so it
is sent over TLS, or to this very machine, and to nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["SECRET_SIZE_MIN", "Credentials", "SharedKey", "Token", "secret_of"]

SECRET_SIZE_MIN = 16
"""Bytes.  Who has listened to a handshake may try secrets at leisure, so it must not be one that people
remember; `objserver keys shared` makes 32 random ones."""


def secret_of(secret: bytes | str) -> bytes:
    """The bytes of a secret, of which text is the hexadecimal form; ValueError."""
    if isinstance(secret, str):
        try:
            secret = bytes.fromhex(secret)
        except ValueError:
            raise ValueError("a secret that is text is hexadecimal; others are bytes") from None
    if len(secret) < SECRET_SIZE_MIN:
        raise ValueError(
            f"a secret of {len(secret)} bytes can be guessed; it needs {SECRET_SIZE_MIN} at least: "
            "secrets.token_bytes(32)"
        )
    return secret


@dataclass(frozen=True)
class SharedKey:
    """Knows the secret of the key `id`.  Who shares the key with others may say its `name` among them."""

    id: str
    secret: bytes | str = field(repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        secret_of(self.secret)


@dataclass(frozen=True)
class Token:
    """Bears a token; who has it is believed."""

    text: str = field(repr=False)


Credentials = SharedKey | Token
