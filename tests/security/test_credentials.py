"""Credentials show themselves to the server, and to nobody else."""

import pytest

from objserver.security import AcceptedKey, Authentication, SharedKey, Token

SECRET = b"nobody can guess"


@pytest.mark.parametrize(
    "holder",
    [
        SharedKey("lab", SECRET),
        SharedKey("lab", SECRET.hex()),
        Token("nobody can guess"),
        AcceptedKey(SECRET),
        Authentication(keys={"lab": SECRET}),
    ],
)
def test_no_repr_shows_a_secret(holder):
    shown = repr(holder) + str(holder) + f"{holder}"
    assert "nobody" not in shown
    assert SECRET.hex() not in shown


def test_a_secret_that_can_be_guessed_is_refused():
    with pytest.raises(ValueError, match="can be guessed; it needs 16"):
        SharedKey("lab", b"secret")


def test_text_that_is_no_hexadecimal_is_no_secret():
    with pytest.raises(ValueError, match="hexadecimal") as refused:
        SharedKey("lab", "correct horse battery staple")
    assert "horse" not in str(refused.value)


def test_an_accepted_secret_that_can_be_guessed_is_refused_with_its_key():
    with pytest.raises(ValueError, match=r"the key 'old': .*can be guessed"):
        Authentication(keys={"old": b"secret"})
