"""Which policies go together, and why not."""

import pytest

from objserver import (
    Concurrent,
    PerClient,
    PerRequest,
    Persistent,
    ReadersWriter,
    Reentrant,
    Serial,
    Shared,
    errors,
)
from objserver.adapter.policies import check_combination

LEGAL = [
    (activation, threading)
    for activation in (PerRequest(), PerClient(), Persistent(), Shared())
    for threading in (Serial(), Reentrant(), ReadersWriter(), Concurrent())
]
ILLEGAL = [
    (PerRequest(), Reentrant(), "means nothing"),
    (PerRequest(), ReadersWriter(), "means nothing"),
    (Persistent(), Concurrent(), "middle of another call"),
]
LEGAL = [pair for pair in LEGAL if pair not in [bad[:2] for bad in ILLEGAL]]


@pytest.mark.parametrize(("activation", "threading"), LEGAL)
def test_legal_pairs_pass(activation, threading):
    check_combination(activation, threading, instance=False, store=True)


@pytest.mark.parametrize(("activation", "threading", "reason"), ILLEGAL)
def test_illegal_pairs_are_refused_with_the_reason(activation, threading, reason):
    with pytest.raises(errors.RegistrationError, match=reason):
        check_combination(activation, threading, instance=False, store=True)


@pytest.mark.parametrize("activation", [PerRequest(), PerClient(), Persistent()])
def test_an_instance_is_shared(activation):
    with pytest.raises(errors.RegistrationError, match="Shared"):
        check_combination(activation, Serial(), instance=True, store=True)


def test_persistent_objects_need_a_store():
    with pytest.raises(errors.RegistrationError, match="store="):
        check_combination(Persistent(), Serial(), instance=False, store=False)


def test_concurrent_allows_at_least_one():
    with pytest.raises(ValueError, match="at least one"):
        Concurrent(limit=0)
