"""`Ownership`: who may change which name; a decision, made of who asks and of what is there.

Who asks has been proven elsewhere, or is nobody.  A name that a principal registered is its own: others
cannot move or remove it.  What nobody owns anybody may change, as with Pyro5.  Prefixes can be kept for
some, so that nobody else takes a name there first.  Names are compared exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from objserver.security import Principal

__all__ = ["Ownership"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ownership:
    """`reserved`: by prefix, the principals (or roles) that may register names which begin so.

    `keepers` are roles that may change every name.
    """

    reserved: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    keepers: frozenset[str] = frozenset({"names"})

    def refusal(self, who: Principal | None, name: str, owner: str | None) -> str | None:
        """Why `who` may not change `name`, None if it may; `owner` has it ("": nobody, None: it is free)."""
        identities = frozenset() if who is None else {who.name} | who.roles
        if identities & self.keepers:
            return None
        caller = "a caller whom nobody knows" if who is None else repr(who.name)
        for prefix, allowed in self.reserved.items():
            if name.startswith(prefix) and not identities & allowed:
                return f"names that begin with {prefix!r} are reserved, and not for {caller}"
        if owner and (who is None or who.name != owner):
            return f"the name {name!r} belongs to {owner!r}, and not to {caller}"
        return None
