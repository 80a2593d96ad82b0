"""Who calls is compared exactly."""

from objserver.security import Principal


def test_names_that_look_alike_are_different_principals():
    assert Principal("alice") == Principal("alice")
    assert Principal("alice") != Principal("Alice")
    assert Principal("caf\u00e9") != Principal("cafe\u0301")
