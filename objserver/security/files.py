"""Keys and credentials in files, as `objserver keys` writes them and the command line reads them.  TOML:

    [lab-2026]                      a server's file of keys: a table for each key id
    secret = "<hexadecimal>"
    name = "lab"                    who its holders are; by default the id
    roles = ["reader"]              ... and their roles

    key = "lab-2026"                a client's credentials: a key and the client's own name among its holders
    secret = "<hexadecimal>"
    name = "ann"

    token = "..."                   ... or a token

No sentence of an error here quotes what stands in a file.
"""

from __future__ import annotations

import logging
import os
import stat
import tomllib
from typing import Any

from objserver import errors
from objserver.security.authentication import AcceptedKey
from objserver.security.credentials import Credentials, SharedKey, Token

__all__ = ["credentials_text", "keys_text", "load_credentials", "load_keys"]

log = logging.getLogger("objserver.security")


def load_keys(path: str) -> dict[str, AcceptedKey]:
    """A server's keys by id; RegistrationError."""
    found = {}
    for id, entry in _read(path).items():
        if not isinstance(entry, dict):
            raise errors.RegistrationError(f"{path}: {id} stands outside a table; each key is one, as [{id}]")
        options = dict(entry)
        roles = options.pop("roles", [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise errors.RegistrationError(f"{path}: the roles of the key {id!r} are not a list of names")
        _only(path, f"key {id!r}", options, {"secret", "name"})
        try:
            found[id] = AcceptedKey(**options, roles=frozenset(roles))
        except (TypeError, ValueError) as problem:
            raise errors.RegistrationError(
                f"{path}: the key {id!r} has no usable secret: {problem}"
            ) from None
    if not found:
        raise errors.RegistrationError(f"{path} has no keys; make one with `objserver keys shared`")
    return found


def load_credentials(path: str) -> Credentials:
    """What a client shows; ConnectFailed."""
    try:
        entry = _read(path)
        if "token" in entry:
            _only(path, "token", entry, {"token"})
            return Token(entry["token"])
        _only(path, "key", entry, {"key", "secret", "name"})
        return SharedKey(entry["key"], entry["secret"], entry.get("name", ""))
    except errors.RegistrationError as problem:
        raise errors.ConnectFailed(str(problem)) from None
    except (KeyError, TypeError, ValueError):
        raise errors.ConnectFailed(
            f"{path} holds no credentials: neither `token`, nor `key` and a `secret` in hexadecimal"
        ) from None


def keys_text(id: str, secret: bytes, name: str) -> str:
    """An entry of a server's file."""
    named = f"name = {_quoted(name)}\n" if name else ""
    return f'[{_quoted(id)}]\nsecret = "{secret.hex()}"\n{named}'


def credentials_text(id: str, secret: bytes, name: str = "") -> str:
    """A client's file."""
    named = f"name = {_quoted(name)}\n" if name else ""
    return f'key = {_quoted(id)}\nsecret = "{secret.hex()}"\n{named}'


def _quoted(text: str) -> str:
    if not text.isprintable():
        raise errors.RegistrationError(f"{text!r} is no name: it has characters that cannot be seen")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                log.warning("%s holds secrets, and others can read it: chmod 600 %s", path, path)
            return tomllib.load(file)
    except OSError as problem:
        raise errors.RegistrationError(f"cannot read {path}: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise errors.RegistrationError(f"{path} is not TOML") from None


def _only(path: str, what: str, entry: dict[str, Any], known: set[str]) -> None:
    """RegistrationError where something else stands, or what is no text."""
    for name, value in entry.items():
        if name not in known:
            raise errors.RegistrationError(f"{path}: the {what} has no setting {name!r}")
        if not isinstance(value, str):
            raise errors.RegistrationError(f"{path}: {name} of the {what} is no text")
