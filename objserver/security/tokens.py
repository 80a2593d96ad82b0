"""Tokens that expire, and that whoever has one can narrow without asking anybody.

The construction is that of macaroons (Birgisson et al., NDSS 2014): a token is a statement, then caveats,
then a signature that is a chain of HMAC-SHA-256, each link keyed by the one before it:

    seal_0 = HMAC(root key, statement)          statement   version, key id, nonce, principal, roles, expiry
    seal_n = HMAC(seal_n-1, caveat_n)           caveat      kind, value
    text   = "objserver1." + base64url(msgpack [statement, [caveat...], seal_n])

Who has seal_n can add caveats, and cannot take one away: that needs seal_n-1.  A server needs nothing but the
root key, found by its id, so that keys can be changed while tokens of both are about.  A caveat only ever
takes away; one of a kind that is not known here is refused with the token.

The rate of a caveat is counted in one bucket for all tokens that were made from the one that got it first:
adding a caveat to get another bucket gains nothing.

Pure: time and randomness are arguments.  The text is a secret, and in no `repr`, log or error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ormsgpack

from objserver import errors
from objserver.security.principal import Principal, Restrictions
from objserver.security.rules import check_patterns

__all__ = ["RootKeys", "Voucher"]

PREFIX = "objserver1."
"""Tells scanners for secrets what they have found."""
VERSION = 1
TEXT_MAX = 8_192
"""Characters of a token: it has to fit into a handshake beside the rest."""
CAVEATS_MAX = 32
PATTERNS_MAX = 100
NAME_MAX = 200
NONCE_SIZE = 16
KEY_SIZE_MIN = 32
CACHE_MAX = 1_000
"""Tokens whose signature need not be computed again: a text and a principal each, some 2 kB."""
_SEAL_SIZE = 32
_B64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_KINDS = ("objects", "methods", "calls_per_s", "expires_at", "audience")


def _seal(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")


@dataclass(frozen=True)
class Voucher:
    """One token.  `text` is what to hand over; whoever has it can use it.

    Made by `RootKeys.mint` or `parse`.  What it says is not verified: only a server with the key can.
    """

    key_id: str
    principal: str
    roles: frozenset[str]
    caveats: tuple[tuple[str, Any], ...]
    """Kind and value, in the order in which they were added."""
    _statement: bytes = field(repr=False)
    _seal: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form; AuthenticationFailed if it is none."""
        statement, caveats, seal = _taken_apart(text)
        key_id, _, principal, roles, expires_at = _read_statement(statement)
        known = (("expires_at", expires_at), *(_read_caveat(caveat) for caveat in caveats))
        return cls(key_id, principal, roles, known, ormsgpack.packb([statement, caveats]), seal)

    @property
    def text(self) -> str:
        """The secret."""
        statement, caveats = ormsgpack.unpackb(self._statement)
        content = ormsgpack.packb([statement, caveats, self._seal])
        return PREFIX + base64.urlsafe_b64encode(content).decode().rstrip("=")

    @property
    def expires_at(self) -> float:
        """The earliest that it says, in seconds since 1970."""
        return min(float(value) for kind, value in self.caveats if kind == "expires_at")

    def attenuate(
        self,
        *,
        objects: Iterable[str] | None = None,
        methods: Iterable[str] | None = None,
        calls_per_s: float | None = None,
        expires_at: float | None = None,
        audience: str | None = None,
    ) -> Self:
        """A token that can do less: only these objects and methods (exact, or a beginning and a `*`), so many
        calls per second, until then, at servers of that name.  Needs no key, and no connection.

        ValueError if something of it is no such thing, or if the token has too many caveats.
        """
        given = (objects, methods, calls_per_s, expires_at, audience)
        added = [_caveat(kind, value) for kind, value in zip(_KINDS, given, strict=True) if value is not None]
        if not added:
            raise ValueError(
                "nothing is taken away: give objects, methods, calls_per_s, expires_at, audience"
            )
        statement, caveats = ormsgpack.unpackb(self._statement)
        seal = self._seal
        for caveat in added:
            seal = _seal(seal, caveat)
        caveats = [*caveats, *added]
        if len(caveats) > CAVEATS_MAX:
            raise ValueError(f"a token has at most {CAVEATS_MAX} caveats")
        made = type(self)(
            self.key_id,
            self.principal,
            self.roles,
            (*self.caveats, *map(_read_caveat, added)),
            ormsgpack.packb([statement, caveats]),
            seal,
        )
        if len(made.text) > TEXT_MAX:
            raise ValueError(f"the token would have more than {TEXT_MAX} characters")
        return made


class RootKeys:
    """The keys of a server, by id, that make and verify tokens.

    Give the new key another id to change it, and remove the old one when its tokens have expired.  `audience`
    is the server's own name: a token that is for another is refused.  Any thread may call.
    """

    def __init__(self, keys: Mapping[str, bytes], *, audience: str = "") -> None:
        for key_id, key in keys.items():
            if not isinstance(key_id, str) or not 0 < len(key_id) <= NAME_MAX:
                raise ValueError(f"a key's id is a text of up to {NAME_MAX} characters")
            if not isinstance(key, bytes) or len(key) < KEY_SIZE_MIN:
                raise ValueError(
                    f"the key {key_id!r} has not {KEY_SIZE_MIN} random bytes, as of secrets.token_bytes(32)"
                )
        self._keys = dict(keys)
        self.audience = audience
        self._verified: dict[str, Principal] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | Path, *, audience: str = "") -> Self:
        """Read a file with a line for each key: its id, a blank, 64 hexadecimal digits or more.

        `objserver token key` writes them.  RegistrationError names the file and the line, not what is in it.
        """
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as problem:
            raise errors.RegistrationError(f"the keys in {path} cannot be read: {problem}") from None
        keys: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                key_id, digits = line.split()
                key = bytes.fromhex(digits)
            except ValueError:
                key_id, key = "", b""
            if len(key) < KEY_SIZE_MIN or key_id in keys:
                raise errors.RegistrationError(
                    f"{path}, line {number}: each has an id of its own, a blank and {2 * KEY_SIZE_MIN} "
                    "hexadecimal digits or more"
                )
            keys[key_id] = key
        if not keys:
            raise errors.RegistrationError(f"there is no key in {path}; make one: objserver token key {path}")
        return cls(keys, audience=audience)

    @property
    def ids(self) -> list[str]:
        """Of the keys, in their order: the last is the newest."""
        return list(self._keys)

    def __repr__(self) -> str:
        return f"<RootKeys {sorted(self._keys)} audience={self.audience!r}>"

    def mint(
        self,
        principal: str,
        roles: Iterable[str] = (),
        *,
        expires_at: float,
        nonce: bytes,
        key_id: str | None = None,
    ) -> Voucher:
        """A token for `principal`, with these roles, until `expires_at` (seconds since 1970).

        `nonce` are 16 random bytes, which tell tokens for the same principal apart.  `key_id` may be left out
        where there is one key.  ValueError.
        """
        if key_id is None:
            if len(self._keys) != 1:
                raise ValueError(f"which key: one of {sorted(self._keys)}")
            key_id = next(iter(self._keys))
        if key_id not in self._keys:
            raise ValueError(f"there is no key {key_id!r}{errors.did_you_mean(key_id, self._keys)}")
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"a nonce has {NONCE_SIZE} random bytes")
        if isinstance(roles, str):
            raise ValueError(f"roles are several names, and not {roles!r}")
        known = sorted(set(roles))
        for name in (principal, *known):
            if not isinstance(name, str) or not 0 < len(name) <= NAME_MAX:
                raise ValueError(f"names and roles are texts of up to {NAME_MAX} characters")
        if len(known) > PATTERNS_MAX:
            raise ValueError(f"a token has at most {PATTERNS_MAX} roles")
        until = _moment(expires_at)
        statement = ormsgpack.packb([VERSION, key_id, nonce, principal, known, until])
        made = Voucher(
            key_id,
            principal,
            frozenset(known),
            (("expires_at", until),),
            ormsgpack.packb([statement, []]),
            _seal(self._keys[key_id], statement),
        )
        if len(made.text) > TEXT_MAX:
            raise ValueError(f"the token would have more than {TEXT_MAX} characters")
        return made

    def verify(self, text: str, now: float) -> Principal:
        """Whose it is, restricted to what it covers; AuthenticationFailed.  `now` in seconds since 1970.

        The same text gives the same principal, for as long as it is remembered.
        """
        # Found by hash: what a comparison takes says nothing of how much of a guess was right.
        principal = self._verified.get(text)
        if principal is None:
            principal = self._verify(text)
            with self._lock:
                while len(self._verified) >= CACHE_MAX:
                    del self._verified[next(iter(self._verified))]
                principal = self._verified.setdefault(text, principal)
        assert principal.expires_at is not None
        if now >= principal.expires_at:
            raise errors.AuthenticationFailed(f"the token of {principal.name!r} has expired; get a new one")
        return principal

    def verifier(self, time: Callable[[], float]) -> Callable[[str], Principal]:
        """`verify` at the time of the call: what `Authentication(tokens=...)` takes."""
        return lambda text: self.verify(text, time())

    def _verify(self, text: str) -> Principal:
        statement, caveats, claimed = _taken_apart(text)
        key_id, _, name, roles, expires_at = _read_statement(statement)
        key = self._keys.get(key_id)
        seal = _seal(key if key is not None else bytes(KEY_SIZE_MIN), statement)
        seals = []
        for caveat in caveats:
            seal = _seal(seal, caveat)
            seals.append(seal)
        # Before anything that a caveat says is looked at: it is the stranger's own until then.
        if not hmac.compare_digest(seal, claimed) or key is None:
            raise errors.AuthenticationFailed(
                "the token was not made with a key of this server, or somebody has changed it"
            )
        objects, methods, rates = [], [], []
        for caveat, seal in zip(caveats, seals, strict=True):
            kind, value = _read_caveat(caveat)
            if kind == "objects":
                objects.append(value)
            elif kind == "methods":
                methods.append(value)
            elif kind == "calls_per_s":
                # The seal is a key: nobody is to see it, and its digest will do.
                rates.append((hashlib.blake2b(seal, digest_size=16).hexdigest(), value))
            elif kind == "expires_at":
                expires_at = min(expires_at, value)
            elif value != self.audience:
                raise errors.AuthenticationFailed(f"the token is for {value!r}, and not for this server")
        restrictions = Restrictions(tuple(objects), tuple(methods), tuple(rates))
        return Principal(
            name, roles, "token", expires_at, restrictions if objects or methods or rates else None
        )


def _caveat(kind: str, value: Any) -> bytes:
    """Encode one that the holder wishes for; ValueError."""
    if kind in ("objects", "methods"):
        if isinstance(value, str):
            value = [value]
        value = list(check_patterns(value, kind))
        if not 0 < len(value) <= PATTERNS_MAX:
            raise ValueError(f"{kind} are 1 to {PATTERNS_MAX} patterns")
    elif kind == "calls_per_s":
        value = float(value)
        if not 0 < value < math.inf:
            raise ValueError(f"calls_per_s={value}: a rate is a number above 0")
    elif kind == "expires_at":
        value = _moment(value)
    elif not isinstance(value, str) or not 0 < len(value) <= NAME_MAX:
        raise ValueError(f"an audience is a text of up to {NAME_MAX} characters")
    return ormsgpack.packb([kind, value])


def _moment(value: float) -> float:
    value = float(value)
    if not 0 < value < math.inf:
        raise ValueError(f"expires_at={value}: seconds since 1970 are wanted")
    return value


def _taken_apart(text: str) -> tuple[bytes, list[bytes], bytes]:
    """Statement, caveats and seal of a text; nothing of it goes into the error."""
    if not isinstance(text, str) or len(text) > TEXT_MAX:
        raise errors.AuthenticationFailed(f"a token is a text of up to {TEXT_MAX} characters")
    body = text.removeprefix(PREFIX)
    if body == text or not _B64.issuperset(body):
        raise errors.AuthenticationFailed(
            f"this is no token: it begins with {PREFIX} and goes on in base64url"
        )
    try:
        content = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        statement, caveats, seal = ormsgpack.unpackb(content)
    except (ValueError, TypeError, binascii.Error):
        raise _damaged() from None
    exact = type(statement) is bytes and type(caveats) is list and type(seal) is bytes
    if (
        not exact
        or len(seal) != _SEAL_SIZE
        or len(caveats) > CAVEATS_MAX
        or any(type(caveat) is not bytes for caveat in caveats)
        # One token has one text: both decoders are lenient, ormsgpack with what follows.
        or ormsgpack.packb([statement, caveats, seal]) != content
        or base64.urlsafe_b64encode(content).decode().rstrip("=") != body
    ):
        raise _damaged()
    return statement, caveats, seal


def _read_statement(statement: bytes) -> tuple[str, bytes, str, frozenset[str], float]:
    try:
        version, *rest = ormsgpack.unpackb(statement)
        if version != VERSION:
            raise errors.AuthenticationFailed(f"the token is of version {version!r}, unknown here")
        key_id, nonce, principal, roles, expires_at = rest
    except (ValueError, TypeError):
        raise _damaged() from None
    texts = type(key_id) is str and type(principal) is str and type(roles) is list
    if not texts or not all(type(r) is str for r in roles) or type(expires_at) is not float:
        raise _damaged()
    return key_id, nonce, principal, frozenset(roles), expires_at


def _read_caveat(caveat: bytes) -> tuple[str, Any]:
    """Kind and value; AuthenticationFailed also for a kind that is not known here: it may forbid anything."""
    try:
        kind, value = ormsgpack.unpackb(caveat)
        if kind not in _KINDS:
            raise errors.AuthenticationFailed("the token has a caveat of a kind that is not known here")
        if ormsgpack.packb([kind, value]) != caveat or _caveat(kind, value) != caveat:
            raise _damaged()
    except errors.AuthenticationFailed:
        raise
    except (ValueError, TypeError):
        raise _damaged() from None
    return kind, tuple(value) if type(value) is list else value


def _damaged() -> errors.AuthenticationFailed:
    return errors.AuthenticationFailed("the token is damaged; was all of it copied?")
