"""Who calls is compared exactly."""

from dataclasses import replace

import pytest

from objserver import errors
from objserver.security import Principal, Restrictions
from objserver.security.principal import client_of


def test_names_that_look_alike_are_different_principals():
    assert Principal("alice") == Principal("alice")
    assert Principal("alice") != Principal("Alice")
    assert Principal("caf\u00e9") != Principal("cafe\u0301")


def test_holders_of_one_key_are_one_family_and_everybody_else_is_his_own():
    assert Principal("lab/ann", key="lab").family == Principal("lab", key="lab").family == "lab"
    assert Principal("lab/ann").family == "lab/ann"


def test_the_same_id_of_two_principals_is_two_clients():
    id = bytes(16)
    alice, bob = client_of(Principal("alice"), id), client_of(Principal("bob"), id)
    assert len({id, alice, bob}) == 3
    assert len(alice) == 16
    assert client_of(Principal("alice"), id) == alice
    assert client_of(Principal("alice"), bytes(15) + b"1") != alice


def test_where_nobody_is_known_a_client_is_kept_under_its_own_id():
    assert client_of(None, b"0123456789abcdef") == b"0123456789abcdef"


def test_a_client_stays_itself_when_its_proof_or_its_roles_are_renewed():
    id, alice = bytes(16), Principal("alice", frozenset({"teller"}), "token", 10.0)
    renewed = replace(alice, roles=frozenset(), means="key", expires_at=20.0)
    assert client_of(renewed, id) == client_of(alice, id)
    rated = replace(alice, restrictions=Restrictions(rates=(("seal", 5.0),)))
    assert client_of(rated, id) == client_of(alice, id)


def test_who_has_a_narrower_token_is_not_the_same_client():
    id, alice = bytes(16), Principal("alice")
    narrow = replace(alice, restrictions=Restrictions(methods=(("get",),)))
    objects = replace(alice, restrictions=Restrictions(objects=(("get",),)))
    assert len({client_of(one, id) for one in (alice, narrow, objects)}) == 3


def test_the_holders_of_a_key_are_one_client_under_whatever_name():
    id = bytes(16)
    ann, bob = Principal("lab/ann", key="lab"), Principal("lab/bob", key="lab")
    assert client_of(ann, id) == client_of(bob, id) == client_of(Principal("lab"), id)
    assert client_of(ann, id) != client_of(Principal("lab/ann"), id)


def test_a_principal_is_plain_data_and_back():
    narrow = Restrictions((("Account/*",),), (("get", "set"),))
    for one in (Principal("alice"), Principal("lab/ann", frozenset("ab"), "key", 9.5, narrow, key="lab")):
        assert Principal.from_data(one.to_data()) == one
        assert Principal.from_data(one.to_data()) is Principal.from_data(one.to_data())


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "alice",
        ["alice"],
        [1, [], "", None, [], [], ""],
        ["alice", [[]], "", None, [], [], ""],
        ["alice", [], "", "never", [], [], ""],
        ["alice", [], "", None, [[1]], [], ""],
        ["alice", [], "", None, [], [[[]]], ""],
        ["alice", [], "", None, 5, [], ""],
    ],
)
def test_other_data_is_no_principal(data):
    with pytest.raises(errors.SerializeError, match="names no principal"):
        Principal.from_data(data)
