"""A table of calls in flight gives each its number, and finds it again once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver.wire import CallTable
from objserver.wire.session import SEQUENCE_MAX


def test_numbers_begin_with_one_and_go_up():
    table = CallTable()
    assert [table.add("call") for _ in range(3)] == [1, 2, 3]


def test_a_reply_is_taken_once():
    table = CallTable()
    number = table.add("a")
    assert table.take(number) == "a"
    with pytest.raises(KeyError):
        table.take(number)


@pytest.mark.parametrize("number", [0, 2, SEQUENCE_MAX, -1])
def test_a_reply_that_nobody_asked_for_is_a_key_error(number):
    table = CallTable()
    table.add("a")
    with pytest.raises(KeyError):
        table.take(number)


def test_an_abandoned_call_keeps_its_number_until_its_reply():
    table = CallTable()
    number = table.add("a")
    assert table.abandon(number)
    assert len(table) == 1
    assert table.take(number) is None
    assert len(table) == 0


def test_to_abandon_what_was_answered_is_false():
    table = CallTable()
    number = table.add("a")
    table.take(number)
    assert not table.abandon(number)
    assert not table.abandon(77)


def test_numbers_start_again_after_the_last_and_are_never_zero():
    table = CallTable()
    for _ in range(SEQUENCE_MAX):
        table.take(table.add("x"))
    assert table.add("again") == 1


def test_a_number_in_use_is_passed_over():
    table = CallTable()
    held = [table.add("held"), table.add("held")]
    for _ in range(SEQUENCE_MAX - 2):
        table.take(table.add("x"))
    assert held == [1, 2]
    assert table.add("new") == 3


def test_more_calls_than_numbers_are_refused_and_change_nothing():
    table = CallTable()
    for _ in range(SEQUENCE_MAX):
        table.add("x")
    with pytest.raises(OverflowError):
        table.add("one too many")
    assert len(table) == SEQUENCE_MAX
    table.take(500)
    assert table.add("y") == 500


def test_clear_gives_those_who_still_wait():
    table = CallTable()
    first, second = table.add("first"), table.add("second")
    table.abandon(first)
    assert table.clear() == ["second"]
    assert len(table) == 0
    with pytest.raises(KeyError):
        table.take(second)


@given(st.lists(st.sampled_from(["add", "take", "abandon"]), max_size=60))
def test_no_two_calls_in_flight_share_a_number(steps):
    table, flying = CallTable(), []
    for step in steps:
        if step == "add":
            number = table.add(object())
            assert number not in flying
            flying.append(number)
        elif flying and step == "take":
            table.take(flying.pop(0))
        elif flying:
            assert table.abandon(flying[-1])
        assert len(table) == len(flying)
