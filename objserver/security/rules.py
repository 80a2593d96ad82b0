"""Rules: a file that says who may call what.

    [roles]
    teller = ["alice", "bob"]              # who has a role, beside those whom their proof gives it

    [[rule]]
    effect = "allow"                       # or "deny"
    roles = ["teller"]                     # and, or instead: principals = ["alice", "lab/*"]
    objects = ["Account/*"]
    methods = ["deposit", "statement"]     # left out: all of them

Their order means nothing: where a rule that denies applies, no rule that allows does.  So a file can be read
from any point, and a line that was added at the end is not overruled by one at the top.

A pattern is an identifier, compared exactly, or the beginning of one and a `*`.  There is no other wildcard,
since what everybody reads differently is no protection.  To read an attribute is the method `balance`, to set
it is `balance=`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objserver import errors
from objserver.security.principal import Principal

__all__ = ["Rule", "Rules", "covers"]

_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)


def covers(patterns: Iterable[str], identifier: str) -> bool:
    """Whether one of the patterns means this identifier."""
    for pattern in patterns:
        if pattern == identifier or (pattern[-1:] == "*" and identifier.startswith(pattern[:-1])):
            return True
    return False


def check_patterns(patterns: Iterable[str], what: str) -> tuple[str, ...]:
    """The patterns; ValueError with the reason if one of them is none."""
    checked = tuple(patterns)
    for pattern in checked:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"{what} are texts, and {pattern!r} is none")
        if "*" in pattern[:-1]:
            raise ValueError(f"{pattern!r}: a * means any rest, so it stands at the end and nowhere else")
    return checked


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule, for those of the `principals` and those with one of the `roles`.  `where` is its place."""

    allow: bool
    objects: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    principals: tuple[str, ...] = ()
    roles: frozenset[str] = frozenset()
    where: str = "a rule"

    def concerns(self, principal: Principal, roles: frozenset[str], object_id: str) -> bool:
        """Whether it says something of this principal and this object."""
        return covers(self.objects, object_id) and (
            not self.roles.isdisjoint(roles) or covers(self.principals, principal.name)
        )


@dataclass(frozen=True)
class Rules:
    """All rules of a server, and who has which `roles`."""

    rules: tuple[Rule, ...] = ()
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Rules:
        """Read a file; RegistrationError names it, the rule and its line if something is wrong."""
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise errors.RegistrationError(f"the rules in {path} cannot be read: {problem}") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, name: str = "rules") -> Rules:
        """Read the text of a file; see `load`."""
        import tomllib  # only who has rules needs it

        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as problem:
            raise errors.RegistrationError(f"{name} is not TOML: {problem}") from None
        _check_keys(data, {"rule", "roles"}, name)
        entries = data.get("rule", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise errors.RegistrationError(f"{name}: each rule begins with [[rule]]")
        lines = [text.count("\n", 0, found.start()) + 1 for found in _HEADER.finditer(text)]
        rules = []
        for number, entry in enumerate(entries, 1):
            # Headers that are not counted alike are not what they look like: one may be inside of a string.
            line = f" (line {lines[number - 1]})" if len(lines) == len(entries) else ""
            rules.append(_rule(entry, f"{name}, rule {number}{line}"))
        given = data.get("roles", {})
        if not isinstance(given, dict):
            raise errors.RegistrationError(f'{name}: [roles] has lines like teller = ["alice"]')
        roles = {role: _patterns(given, role, f"{name}, [roles]") for role in given}
        return cls(tuple(rules), roles)

    def roles_of(self, principal: Principal) -> frozenset[str]:
        """Those that its proof gives it, and those that are given here."""
        given = {role for role, who in self.roles.items() if covers(who, principal.name)}
        return principal.roles | given


def _rule(entry: dict[str, Any], where: str) -> Rule:
    _check_keys(entry, {"effect", "principals", "roles", "objects", "methods"}, where)
    effect = entry.get("effect")
    if effect not in ("allow", "deny"):
        raise errors.RegistrationError(f'{where}: effect is "allow" or "deny", and not {effect!r}')
    if "principals" not in entry and "roles" not in entry:
        raise errors.RegistrationError(f"{where} is for nobody: give principals, roles, or both")
    if "objects" not in entry:
        raise errors.RegistrationError(f'{where} is about nothing: give objects, "*" for all of them')
    roles = frozenset(_patterns(entry, "roles", where))
    if any("*" in role for role in roles):
        raise errors.RegistrationError(f"{where}: a role is named exactly, without a *")
    return Rule(
        allow=effect == "allow",
        objects=_patterns(entry, "objects", where),
        methods=_patterns(entry, "methods", where) if "methods" in entry else ("*",),
        principals=_patterns(entry, "principals", where),
        roles=roles,
        where=where,
    )


def _patterns(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or (key in entry and not value):
        raise errors.RegistrationError(f"{where}: {key} is a text or a list of texts, and not empty")
    try:
        return check_patterns(value, key)
    except ValueError as problem:
        raise errors.RegistrationError(f"{where}: {problem}") from None


def _check_keys(entry: dict[str, Any], known: set[str], where: str) -> None:
    for key in entry:
        if key not in known:
            hint = errors.did_you_mean(key, known)
            raise errors.RegistrationError(f"{where}: there is no {key!r} in rules{hint}")
