"""The retry rule, asked after one failure or another.  What the simulator has found is here by its seed."""

import pytest

from objserver import errors
from objserver.client.attempts import MOVES_MAX, Attempts
from objserver.invocation import CallId

ID = CallId(b"c" * 16, 1)


def attempts(timeout_s=10.0, *, repeatable=False, id=None, asks=False):
    made = Attempts("A.m", timeout_s, 0.0, lambda low, high: high)
    made.repeatable, made.asks = repeatable, asks
    if id is not None:
        made.numbered(id, None)
    return made


def test_no_attempt_is_made_when_the_time_is_up():
    """Seed 3: the time ended while the session was opened, and the next attempt had a timeout of 0."""
    with pytest.raises(errors.DeadlineExceeded):
        attempts(id=ID).left(10.0)
    assert attempts(id=ID).left(9.0) == 1.0
    assert attempts(None, id=ID).left(1e9) is None


def test_what_was_sent_before_the_time_was_up_may_have_happened():
    made = attempts(id=ID)
    made.pause(errors.ConnectionLost("lost"), 1.0)
    with pytest.raises(errors.OutcomeUnknown) as caught:
        made.left(10.0)
    assert caught.value.call == ID


def test_unsettled_calls_are_made_again_until_they_have_an_outcome():
    """Seed 0: a read that was not confirmed was shown to its caller, who knows nothing of that."""
    made = attempts(None, repeatable=True)
    for _ in range(5):
        assert made.pause(errors.Unsettled("again"), 1.0) >= 0.0


def test_that_a_repetition_was_not_sent_says_nothing_of_the_attempt_before():
    made = attempts(repeatable=True)
    made.pause(errors.ConnectionLost("lost"), 1.0)
    with pytest.raises(errors.OutcomeUnknown):
        made.pause(errors.ConnectFailed("refused"), 10.0)
    with pytest.raises(errors.ConnectFailed):
        attempts(repeatable=True).pause(errors.ConnectFailed("refused"), 10.0)


def test_that_a_repetition_was_not_stored_says_nothing_of_the_attempt_before():
    """Seed 1007: an idempotent call happened, its repetition was not stored, and its caller believed that."""
    made = attempts(repeatable=True)
    made.pause(errors.ConnectionLost("lost"), 1.0)
    made.answered = True
    assert made.pause(errors.StoreError("the disk is full"), 2.0) >= 0.0
    with pytest.raises(errors.OutcomeUnknown):
        made.pause(errors.StoreError("the disk is full"), 10.0)
    first = attempts(repeatable=True)
    first.answered = True
    with pytest.raises(errors.StoreError):
        first.pause(errors.StoreError("the disk is full"), 2.0)


def test_who_asks_for_an_outcome_opens_no_session():
    """Seed 1040: with a new session under the old id, what had happened was said never to have."""
    assert attempts(id=ID).may_open_session()
    assert not attempts(id=ID, asks=True).may_open_session()


def test_who_is_not_let_in_does_not_knock_again():
    with pytest.raises(errors.AuthenticationFailed):
        attempts(repeatable=True).pause(errors.AuthenticationFailed("who?"), 1.0)


def test_that_a_repetition_was_not_let_in_says_nothing_of_the_attempt_before():
    made = attempts(id=ID)
    made.pause(errors.ConnectionLost("lost"), 1.0)
    with pytest.raises(errors.OutcomeUnknown) as caught:
        made.pause(errors.AuthenticationFailed("who?"), 2.0)
    assert caught.value.call == ID


def test_a_call_follows_its_object_at_once_and_after_a_few_moves_waits():
    made = attempts(None, repeatable=True)
    pauses = [made.pause(errors.Moved("at h:1"), 1.0) for _ in range(MOVES_MAX + 3)]
    assert pauses[: MOVES_MAX + 1] == [0.0] * (MOVES_MAX + 1)  # the first failure never waits
    assert all(pauses[MOVES_MAX + 1 :])
    assert made.moved
    made.pause(errors.ConnectFailed("refused"), 1.0)
    assert not made.moved


def test_nothing_was_done_where_an_object_was_not():
    made = attempts(2.0)
    made.pause(errors.Moved("at h:1"), 1.0)
    with pytest.raises(errors.ServerBusy, match=r"A\.m: no server of the cluster had the object in time"):
        made.left(2.0)
    doubtful = attempts(2.0, id=ID)
    doubtful.pause(errors.ConnectionLost("lost"), 1.0)
    doubtful.pause(errors.Moved("at h:1"), 1.0)
    with pytest.raises(errors.OutcomeUnknown):
        doubtful.left(2.0)
