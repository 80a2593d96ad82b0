"""The retry rule, decision by decision."""

from objserver.client.attempts import LEFT_MIN_S, Attempts


def attempts(timeout_s):
    return Attempts("Account/a.deposit", timeout_s, 100.0, lambda low, high: high)


def test_what_is_left_is_always_a_timeout():
    assert attempts(None).left(1e9) is None
    assert attempts(5).left(102.0) == 3.0
    assert attempts(5).left(105.0) == attempts(5).left(200.0) == LEFT_MIN_S
