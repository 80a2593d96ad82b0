"""Who may change which name."""

from __future__ import annotations

import pytest

from objserver.naming import Ownership
from objserver.security import Principal

RULES = Ownership(reserved={"bank/": frozenset({"tellers", "carol"})})
ALICE = Principal("alice")
TELLER = Principal("tom", frozenset({"tellers"}))
KEEPER = Principal("kim", frozenset({"names"}))


@pytest.mark.parametrize(
    ("who", "name", "owner", "sentence"),
    [
        (None, "a", None, None),
        (None, "a", "", None),
        (ALICE, "a", "alice", None),
        (ALICE, "a", "", None),
        (KEEPER, "bank/x", "alice", None),
        (TELLER, "bank/x", None, None),
        (Principal("carol"), "bank/x", None, None),
        (ALICE, "bank/x", None, "reserved, and not for 'alice'"),
        (None, "bank/x", None, "not for a caller whom nobody knows"),
        (None, "a", "alice", "belongs to 'alice'"),
        (TELLER, "bank/x", "alice", "belongs to 'alice', and not to 'tom'"),
        (Principal("Alice"), "a", "alice", "belongs to 'alice'"),
    ],
)
def test_a_change_is_allowed_or_refused_with_the_reason(
    who: Principal | None, name: str, owner: str | None, sentence: str | None
) -> None:
    refusal = RULES.refusal(who, name, owner)
    assert refusal is None if sentence is None else sentence in str(refusal)
