"""Who a client is, by each of the means, and what it is told that is nobody."""

import pytest

from objserver import errors
from objserver.security import AcceptedKey, Authentication, Principal, SharedKey
from objserver.security.authentication import Proving
from objserver.security.exchange import Introduction

SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))
ANN = Principal("ann", means="tls")


def proving(means, certificate=None, binding=b"", confidential=True):
    return Proving(means, certificate, nonce=b"s" * 32, binding=binding, confidential=confidential)


def proven(means, key, server_binding=b"", client_binding=b"", now=0.0):
    client = Introduction(key, b"c" * 32, client_binding, True)
    server = proving(means, binding=server_binding)
    assert server.presented(client.claim, "", "hello", now) is None
    principal = server.proven(client.answer(server.challenge), now)
    client.check(server.proof)
    return principal


def test_the_holder_of_a_key_is_who_the_key_is():
    assert proven(Authentication(keys={"lab": SECRET}), SharedKey("lab", SECRET)) == Principal(
        "lab", means="key"
    )


def test_a_holder_that_says_a_name_is_that_one_among_the_holders():
    keys = {"lab-2026": AcceptedKey(SECRET.hex(), "lab", frozenset({"reader"}), 99.0)}
    found = proven(Authentication(keys=keys), SharedKey("lab-2026", SECRET, "ann"))
    assert found == Principal("lab/ann", frozenset({"reader"}), "key", 99.0, key="lab")


def test_no_key_is_called_like_a_holder_of_another():
    """`lab/ann` is ann, who holds the key lab."""
    for keys in ({"lab/ann": SECRET}, {"other": AcceptedKey(SECRET, "lab/ann")}):
        with pytest.raises(ValueError, match="a slash comes before holders' names"):
            Authentication(keys=keys)
    late = {}
    means = Authentication(keys=late)
    late["lab/ann"] = SECRET
    with pytest.raises(errors.AuthenticationFailed, match="a name with a slash"):
        proven(means, SharedKey("lab/ann", SECRET))


def test_while_a_key_is_rotated_both_are_the_same_principal():
    means = Authentication(keys={"old": AcceptedKey(SECRET, "lab"), "new": AcceptedKey(OTHER, "lab")})
    assert proven(means, SharedKey("old", SECRET)) == proven(means, SharedKey("new", OTHER))


@pytest.mark.parametrize(
    "key", [SharedKey("lab", OTHER), SharedKey("bal", SECRET), SharedKey("bal", bytes(32))]
)
def test_a_wrong_secret_and_an_unknown_key_are_refused_alike(key):
    with pytest.raises(
        errors.AuthenticationFailed, match="was not accepted: it is not known here, its secret"
    ):
        proven(Authentication(keys={"lab": SECRET}), key)


def test_a_proof_made_to_somebody_in_between_is_worth_nothing():
    with pytest.raises(errors.AuthenticationFailed, match="somebody sits between"):
        proven(Authentication(keys={"lab": SECRET}), SharedKey("lab", SECRET), b"server", b"between")


def test_an_expired_key_is_refused():
    keys = {"lab": AcceptedKey(SECRET, expires_at=10.0)}
    with pytest.raises(errors.AuthenticationFailed, match="'lab' has expired"):
        proven(Authentication(keys=keys), SharedKey("lab", SECRET), now=10.0)


def test_a_token_is_read_by_the_function():
    means = Authentication(tokens=lambda text: Principal(text.upper()))
    assert proving(means).presented(None, "tom", "hello", 0.0) == Principal("TOM", means="token")


def test_a_stock_client_shows_a_token_in_its_handshake():
    means = Authentication(tokens=lambda text: Principal(text, means="jwt"))
    assert proving(means).presented(None, "", "token tom", 0.0) == Principal("tom", means="jwt")


def test_what_a_verifier_says_of_a_token_is_not_passed_on():
    def verify(text):
        raise ValueError(f"bad token {text}")

    with pytest.raises(errors.AuthenticationFailed) as refused:
        proving(Authentication(tokens=verify)).presented(None, "hush", "hello", 0.0)
    assert str(refused.value) == "the token was not accepted: ValueError"
    assert refused.value.__cause__ is None


def test_a_verifier_has_a_sentence_for_the_client_but_without_the_token():
    def verify(text):
        raise errors.AuthenticationFailed(f"{text} is for another server")

    with pytest.raises(errors.AuthenticationFailed, match=r"^\.\.\. is for another server$"):
        proving(Authentication(tokens=verify)).presented(None, "hush", "hello", 0.0)


def test_a_token_that_others_could_read_is_refused():
    means = Authentication(tokens=Principal)
    with pytest.raises(errors.AuthenticationFailed, match="over TLS only"):
        proving(means, confidential=False).presented(None, "tom", "hello", 0.0)


def test_a_token_where_none_is_accepted_is_refused():
    with pytest.raises(errors.AuthenticationFailed, match="accepts no tokens"):
        proving(Authentication(keys={"lab": SECRET})).presented(None, "tom", "hello", 0.0)


def test_a_certificate_counts_where_nothing_else_is_shown():
    means = Authentication(tokens=Principal)
    assert proving(means, ANN).presented(None, "", "hello", 0.0) == ANN
    assert proving(means, ANN).presented(None, "tom", "hello", 0.0).name == "tom"


@pytest.mark.parametrize("greeting", ["hello", None, 5, b"token tom", ["token tom"], "Token tom"])
def test_who_shows_nothing_is_told_what_to_show(greeting):
    with pytest.raises(errors.AuthenticationFailed, match="wants to know who calls"):
        proving(Authentication(tokens=Principal)).presented(None, "", greeting, 0.0)


def test_the_hook_says_who_it_is_here():
    means = Authentication(hook=lambda found: Principal(found.name, frozenset({"admin"}), "directory"))
    assert proving(means, ANN).presented(None, "", "hello", 0.0).roles == {"admin"}
