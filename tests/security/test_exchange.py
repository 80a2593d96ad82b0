"""Both ends prove that they know a key, to each other and on this connection only."""

import pytest

from objserver import errors
from objserver.security import SharedKey, Token
from objserver.security.exchange import Introduction, proof

SECRET = bytes(range(32))
CLAIM = ("lab", "ann", "00" * 32)
S, BINDING = b"s" * 32, b"b" * 32


def test_every_part_is_in_the_proof():
    made = {
        proof(SECRET, "client", CLAIM, S, BINDING),
        proof(SECRET, "server", CLAIM, S, BINDING),
        proof(bytes(32), "client", CLAIM, S, BINDING),
        proof(SECRET, "client", ("lab", "bob", CLAIM[2]), S, BINDING),
        proof(SECRET, "client", ("labann", "", CLAIM[2]), S, BINDING),
        proof(SECRET, "client", ("lab", "ann", "01" * 32), S, BINDING),
        proof(SECRET, "client", CLAIM, b"t" * 32, BINDING),
        proof(SECRET, "client", CLAIM, S, b""),
    }
    assert len(made) == 8


def test_the_proof_is_the_same_for_ever():
    """Peers of other versions depend on it."""
    made = proof(SECRET, "client", CLAIM, S, b"").hex()
    assert made == "099944828b310a53af7da81dfc902d7bd841e66531f25d1a2b28131fb241bc80"


def test_a_server_that_proves_the_key_is_believed():
    ann = Introduction(SharedKey("lab", SECRET, "ann"), bytes(32), BINDING, True)
    assert ann.claim == CLAIM
    assert ann.answer(S) == proof(SECRET, "client", CLAIM, S, BINDING)
    ann.check(proof(SECRET, "server", CLAIM, S, BINDING).hex())


@pytest.mark.parametrize("answer", ["", "\u00e9", "00" * 32])
def test_a_server_that_does_not_is_not(answer):
    ann = Introduction(SharedKey("lab", SECRET, "ann"), bytes(32), b"", True)
    ann.answer(S)
    with pytest.raises(errors.AuthenticationFailed, match="did not prove that it knows the key 'lab'"):
        ann.check(answer)


def test_a_server_that_does_not_even_ask_is_not_believed():
    ann = Introduction(SharedKey("lab", SECRET), bytes(32), b"", True)
    with pytest.raises(errors.AuthenticationFailed, match="did not prove"):
        ann.check("")


def test_one_claim_is_proven_once():
    ann = Introduction(SharedKey("lab", SECRET), bytes(32), b"", True)
    ann.answer(S)
    with pytest.raises(errors.ProtocolError, match="wants a proof"):
        ann.answer(b"t" * 32)


def test_a_token_is_not_sent_where_others_can_read_it():
    with pytest.raises(errors.AuthenticationFailed, match="was not sent") as refused:
        Introduction(Token("hush"), b"", b"", False)
    assert "hush" not in str(refused.value)
    assert Introduction(Token("hush"), b"", b"", True).token == "hush"
