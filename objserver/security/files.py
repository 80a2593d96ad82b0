"""Keys and credentials in files, as `objserver keys` writes them and the command line reads them.  TOML:

    [lab-2026]                      a server's file of keys: a table for each key id
    secret = "<hexadecimal>"
    name = "lab"                    who its holders are; by default the id
    roles = ["reader"]              ... and their roles

    key = "lab-2026"                a client's credentials: a key and the client's own name among its holders
    secret = "<hexadecimal>"
    name = "ann"

    token = "..."                   ... or a token

No sentence of an error here quotes what stands in a file; it says in which line.
"""

from __future__ import annotations

import logging
import os
import re
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
    entries, text = _read(path)
    for id, entry in entries.items():
        if not isinstance(entry, dict):
            raise errors.RegistrationError(f"{path}: {id} stands outside a table; each key is one, as [{id}]")
        where = _place(path, text, id)
        options = dict(entry)
        roles = options.pop("roles", [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise errors.RegistrationError(f"{where}: the roles of the key {id!r} are not a list of names")
        _only(where, f"key {id!r}", options, {"secret", "name"})
        try:
            found[id] = AcceptedKey(**options, roles=frozenset(roles))
        except (TypeError, ValueError) as problem:
            raise errors.RegistrationError(
                f"{where}: the key {id!r} has no usable secret: {problem}"
            ) from None
    if not found:
        raise errors.RegistrationError(f"{path} has no keys; make one with `objserver keys shared`")
    return found


def load_credentials(path: str) -> Credentials:
    """What a client shows; ConnectFailed."""
    try:
        entry, _ = _read(path)
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


def _read(path: str) -> tuple[dict[str, Any], str]:
    """What stands in the file, and its text."""
    try:
        with open(path, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                log.warning("%s holds secrets, and others can read it: chmod 600 %s", path, path)
            text = file.read().decode()
        return tomllib.loads(text), text
    except OSError as problem:
        raise errors.RegistrationError(f"cannot read {path}: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        # The rest of its sentence may quote a secret.
        place = re.search(r" \(at [\w ,]+\)$", str(problem))
        raise errors.RegistrationError(f"{path} is not TOML{place[0] if place else ''}") from None


def _place(path: str, text: str, table: str) -> str:
    """The file, and the line at which the table begins."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.partition("#")[0].strip() in (f"[{table}]", f'["{table}"]'):
            return f"{path}, line {number}"
    return path


def _only(where: str, what: str, entry: dict[str, Any], known: set[str]) -> None:
    """RegistrationError if something else stands there, or what is no text."""
    for name, value in entry.items():
        if name not in known:
            raise errors.RegistrationError(f"{where}: the {what} has no setting {name!r}")
        if not isinstance(value, str):
            raise errors.RegistrationError(f"{where}: {name} of the {what} is no text")
