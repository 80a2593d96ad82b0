"""Who holds which exported object, in virtual time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver.adapter.exports import ExportTable

LEASE_S = 30.0


@pytest.fixture
def table():
    return ExportTable(LEASE_S)


def test_a_reference_on_its_way_has_grace_of_one_lease(table):
    table.sent("a", 0.0)
    assert table.expire(LEASE_S - 1) == []
    assert "a" in table
    assert table.expire(LEASE_S) == ["a"]
    assert "a" not in table
    assert len(table) == 0


def test_sending_again_begins_a_new_grace(table):
    table.sent("a", 0.0)
    table.sent("a", 20.0)
    assert table.expire(LEASE_S + 1) == []
    assert table.expire(20.0 + LEASE_S) == ["a"]


def test_who_renews_holds(table):
    table.sent("a", 0.0)
    for now in range(0, 300, 10):
        table.renew("client", ["a"], float(now))
        assert table.expire(float(now)) == []
    assert table.expire(290.0 + LEASE_S) == ["a"]


def test_a_holder_that_drops_all_it_got_frees_at_once(table):
    table.sent("a", 0.0)
    table.renew("client", ["a"], 0.0)
    assert table.release("client", {"a": 1}, 1.0) == ["a"]


def test_a_reference_that_is_still_on_its_way_keeps_the_object(table):
    table.sent("a", 0.0)
    table.sent("a", 0.0)
    assert table.release("client", {"a": 1}, 1.0) == []
    assert table.release("client", {"a": 1}, 2.0) == ["a"]


def test_one_holder_does_not_release_for_another(table):
    table.sent("a", 0.0)
    table.sent("a", 0.0)
    table.renew("one", ["a"], 0.0)
    table.renew("two", ["a"], 0.0)
    assert table.release("one", {"a": 1}, 1.0) == []
    assert table.release("two", {"a": 1}, 2.0) == ["a"]


def test_a_killed_holder_is_forgotten_while_others_hold(table):
    """Or an object that lives long would collect everybody who ever held it."""
    table.sent("a", 0.0)
    for number in range(100):
        table.renew(f"killed {number}", ["a"], 0.0)
    table.renew("alive", ["a"], LEASE_S)
    assert table.expire(LEASE_S) == []
    assert list(table._exports["a"].holders) == ["alive"]


def test_what_is_not_exported_is_passed_over(table):
    table.renew("client", ["unknown"], 0.0)
    assert table.release("client", {"unknown": 1}, 0.0) == []
    assert len(table) == 0


def test_to_release_more_than_was_sent_frees_no_sooner_than_others_let_go(table):
    table.sent("a", 0.0)
    table.renew("other", ["a"], 0.0)
    assert table.release("liar", {"a": 1 << 40}, 1.0) == []
    assert table.expire(LEASE_S) == ["a"]


def test_only_those_to_whom_references_were_sent_say_that_they_have_dropped_them(table):
    table.sent("a", 0.0, "alice")
    assert table.release("bobs", {"a": 1 << 40}, 1.0, "bob") == []
    assert table.release("anybody", {"a": 1 << 40}, 1.0) == []
    table.sent("a", 1.0, "bob")
    assert table.release("bobs", {"a": 5}, 2.0, "bob") == []
    assert table.release("alices", {"a": 1}, 2.0, "alice") == ["a"]


def test_clear_frees_everybody(table):
    table.sent("a", 0.0)
    table.sent("b", 0.0)
    table.renew("client", ["a"], 0.0)
    assert sorted(table.clear()) == ["a", "b"]
    assert len(table) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "renew", "release", "expire"]),
            st.sampled_from(["one", "two"]),
            st.integers(0, 20),
        )
    )
)
def test_nobody_who_has_renewed_in_time_loses_the_object(steps):
    table, now, ends = ExportTable(LEASE_S), 0.0, {}
    for step, holder, pause in steps:
        now += pause
        if step == "sent":
            table.sent("a", now)
        elif step == "renew":
            table.renew(holder, ["a"], now)
            if "a" in table:
                ends[holder] = now + LEASE_S
        elif step == "release":
            table.release(holder, {"a": 1}, now)
            ends.pop(holder, None)
        else:
            table.expire(now)
        if any(end > now for end in ends.values()):
            assert "a" in table
