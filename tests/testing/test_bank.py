"""The ledger's judgement, over histories that are made up."""

import pytest

from objserver import errors
from objserver.testing.bank import GIFTS, STUCK, Account, Ledger
from objserver.testing.linearizability import REFUSED, Outcome


def statement(*calls, received=()):
    """What an account says that executed these, in this order, and got the money of the others."""
    account = Account()
    for call in received:
        account.deposit(call.tag, call.amount)
    for call in calls:
        amount = call.amount if call.method in GIFTS else -call.amount
        account.deposit(call.tag, amount)
    return account.statement()


def made(*ends):
    """A ledger of deposits of different amounts to one account, one after the other, that ended so."""
    ledger = Ledger()
    for number, error in enumerate(ends):
        now = 10.0 * number
        call = ledger.begin("c", "A", "deposit", 7**number, now)
        if error is not Ellipsis:
            call.end(now + 1, None if error else sum(7**n for n in range(number + 1)), error)
    return ledger


LOST = errors.ConnectionLost("lost")


def test_what_was_answered_happened_once():
    ledger = made(None, None)
    first, second = ledger.calls
    assert ledger.judge({"A": statement(first, second)}, 99.0) == []
    assert "happened 0 times" in ledger.judge({"A": statement(first)}, 99.0)[0]
    assert "happened 2 times" in ledger.judge({"A": statement(first, second, second)}, 99.0)[0]


@pytest.mark.parametrize("end", [LOST, ..., errors.Cancelled("cancelled")])
def test_what_is_unknown_happened_once_or_not(end):
    ledger = made(end)
    (call,) = ledger.calls
    assert call.result is Outcome.UNKNOWN
    assert ledger.judge({"A": statement()}, 99.0) == []
    assert ledger.judge({"A": statement(call)}, 99.0) == []
    assert "happened 2 times" in ledger.judge({"A": statement(call, call)}, 99.0)[0]


@pytest.mark.parametrize(
    "end", [errors.ConnectFailed("not sent"), errors.ServerBusy("busy"), errors.StoreError("full")]
)
def test_what_is_said_not_to_have_happened_did_not(end):
    ledger = made(end)
    (call,) = ledger.calls
    assert call.result is Outcome.FAILED
    assert ledger.judge({"A": statement()}, 99.0) == []
    assert "happened 1 times" in ledger.judge({"A": statement(call)}, 99.0)[0]


def test_a_write_in_doubt_is_unknown():
    doubt = errors.StoreError("nobody knows")
    doubt.in_doubt = True
    assert made(doubt).calls[0].result is Outcome.UNKNOWN


def test_a_refusal_is_an_answer():
    ledger = Ledger()
    call = ledger.begin("c", "A", "withdraw", 5, 0.0)
    call.end(1.0, None, ValueError(REFUSED))
    assert ledger.judge({"A": statement()}, 99.0) == []
    assert ledger.outcomes() == {"refused": 1}


def test_an_answer_that_no_order_explains_is_found():
    ledger = made(None)
    look = ledger.begin("c", "A", "look", 0, 5.0)
    look.end(6.0, 0)  # after the deposit was answered
    assert "violated" in ledger.judge({"A": statement(ledger.calls[0])}, 99.0)[0]


def test_a_balance_that_its_calls_do_not_make_is_found():
    ledger = made(None)
    balance, tags = statement(ledger.calls[0])
    assert "its calls make 1" in ledger.judge({"A": (balance + 1, tags)}, 99.0)[0]


def test_an_error_that_nobody_expects_is_not_passed_over():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        made(ZeroDivisionError())


def test_a_withdrawal_that_the_balance_does_not_cover_changes_nothing():
    account = Account()
    account.deposit(1, 5)
    with pytest.raises(ValueError, match=REFUSED):
        account.withdraw(2, 6)
    assert (account.withdraw(3, 5), account.look()) == (0, 0)


def given(method, result, error=None):
    """A ledger of one call that gives 5 of what A got before to B, and its calls."""
    ledger = Ledger()
    first = ledger.begin("c", "A", "deposit", 5, 0.0)
    first.end(1.0, 5)
    call = ledger.begin("c", "A", method, 5, 2.0, "B")
    call.end(3.0, result, error)
    return ledger, first, call


@pytest.mark.parametrize("method", ["pay", "transfer"])
def test_what_is_given_arrives_once(method):
    ledger, first, call = given(method, 0)
    left = statement(first, call)
    assert ledger.judge({"A": left, "B": statement(received=[call])}, 9.0) == []
    assert "0 times at B" in ledger.judge({"A": left, "B": statement()}, 9.0)[0]
    assert "2 times at B" in ledger.judge({"A": left, "B": statement(received=[call, call])}, 9.0)[0]


def test_what_was_paid_has_left_if_it_has_arrived():
    ledger, first, call = given("pay", None, LOST)
    here, there = statement(first), statement(received=[call])
    assert "happened 0 times, and 1 times at B" in ledger.judge({"A": here, "B": there}, 9.0)[0]


def test_a_transfer_that_did_not_end_may_have_arrived():
    ledger, first, call = given("transfer", None, RuntimeError(STUCK))
    assert ledger.judge({"A": statement(first), "B": statement(received=[call])}, 9.0) == []
    assert "happened 1 times" in ledger.judge({"A": statement(first, call), "B": statement()}, 9.0)[0]


def test_a_change_by_a_call_to_another_account_is_found():
    ledger, first, call = given("pay", 0)
    wrong = ledger.judge({"A": statement(first, call), "B": statement(received=[call, first])}, 9.0)
    assert f"B was changed by {first}" in wrong


def test_settling_twice_is_settling_once():
    account = Account()
    assert [account.settle(7, 5), account.deposit(8, 1), account.settle(7, 5)] == [5, 6, 6]
