"""Servers and clients that are wrong on purpose do not get through a kill campaign."""

import pytest

from objserver.testing.kill_server import MUTANTS
from objserver.testing.kills import run_apart

SEEDS = range(1, 6)
"""Tried until one finds it; the first nearly always does."""


@pytest.mark.parametrize(
    ("mutant", "moments", "found"),
    [
        ("replies are not recorded", ["before a reply"], "doubled"),
        ("replies leave before the commit", ["before the commit", "in the commit"], "lost"),
        ("messages are outside of the transaction", ["after the commit"], "lost"),
        ("messages are sent again under other ids", ["after a delivery"], "doubled"),
        ("nested calls have random ids", ["after a nested call"], "doubled"),
        ("clients repeat calls without a number", ["before a reply"], "doubled"),
    ],
)
def test_what_is_wrong_is_found(mutant, moments, found):
    telling = [word for moment in moments for word in ("--moment", moment)]
    for seed in SEEDS:
        _, total = run_apart("--mutant", mutant, "--cycles", "4", "--seed", str(seed), *telling)
        if total["counts"].get(found):
            return
    raise AssertionError(f"nobody noticed that {mutant}")


def test_every_mutant_is_tried():
    (mark,) = test_what_is_wrong_is_found.pytestmark
    assert {mutant for mutant, _, _ in mark.args[1]} == {*MUTANTS}
