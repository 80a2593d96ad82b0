"""Default deny: a call is allowed if something allows it and nothing forbids it."""

import pytest

from objserver import errors
from objserver.security import ALLOW_AUTHENTICATED, Authorization, Principal, Restrictions, Rule, Rules

ALICE = Principal("alice")
OPERATOR = Principal("olga", frozenset({"operator"}))
ROLES = frozenset({"operator"})


def rules(*rules):
    return Authorization(rules=Rules(rules))


def allow(objects, methods="*", principals=("alice",), roles=()):
    return Rule(
        allow=True,
        objects=(objects,),
        methods=(methods,),
        principals=principals,
        roles=frozenset(roles),
        where="rule 1",
    )


def deny(objects, methods="*", principals=("alice",)):
    return Rule(allow=False, objects=(objects,), methods=(methods,), principals=principals, where="rule 2")


def test_nothing_is_allowed_to_a_stranger():
    for authorization in (Authorization(), ALLOW_AUTHENTICATED, rules(allow("*", principals=("*",)))):
        assert authorization.decide(None, "A", "m") == (False, "the caller is not known")
        assert not authorization.decide(None, "Pyro.Daemon", "ping").allowed


def test_nothing_is_allowed_by_default():
    assert Authorization().decide(ALICE, "A", "m") == (False, "nothing allows it")
    assert not Authorization().decide(OPERATOR, "A", "m").allowed


def test_roles_of_a_member_allow_and_forbid():
    assert Authorization().decide(OPERATOR, "A", "m", ROLES) == (True, "role operator")
    assert Authorization().decide(ALICE, "A", "m", ROLES) == (False, "needs the role operator")
    assert rules(allow("*")).decide(ALICE, "A", "m", ROLES).allowed is False
    assert ALLOW_AUTHENTICATED.decide(ALICE, "A", "m", ROLES).allowed is False


def test_a_rule_allows_its_principals_its_objects_and_its_methods():
    authorization = rules(allow("Account/*", "deposit"))
    assert authorization.decide(ALICE, "Account/a", "deposit") == (True, "allowed by rule 1")
    assert not authorization.decide(ALICE, "Account/a", "close").allowed
    assert not authorization.decide(ALICE, "Account", "deposit").allowed
    assert not authorization.decide(Principal("Alice"), "Account/a", "deposit").allowed


def test_a_rule_may_be_for_a_role():
    authorization = rules(allow("A", principals=(), roles=("operator",)))
    assert authorization.decide(OPERATOR, "A", "m").allowed
    assert not authorization.decide(ALICE, "A", "m").allowed


def test_deny_overrides_whatever_allows_in_any_order():
    for order in ([allow("*"), deny("A")], [deny("A"), allow("*")]):
        authorization = rules(*order)
        assert authorization.decide(ALICE, "A", "m") == (False, "denied by rule 2")
        assert authorization.decide(ALICE, "B", "m").allowed
    assert not rules(deny("A", principals=("olga",))).decide(OPERATOR, "A", "m", ROLES).allowed
    assert not rules(deny("*")).decide(ALICE, "Pyro.Daemon", "ping").allowed


@pytest.mark.parametrize("method", ["m", "m=", "M", " m", "m ", "\uff4d", "m\x00", ""])
def test_methods_are_compared_exactly(method):
    assert rules(allow("A", "m")).decide(ALICE, "A", method).allowed == (method == "m")


def test_who_is_known_may_call_what_every_proxy_needs_and_no_more_of_the_daemon():
    decide = Authorization().decide
    assert decide(ALICE, "Pyro.Daemon", "ping").allowed
    assert decide(ALICE, "Pyro.Daemon", "release_session").allowed
    assert not decide(ALICE, "Pyro.Daemon", "registered").allowed
    assert not decide(ALICE, "Pyro.Daemon", "info").allowed
    assert not decide(ALICE, "pyro.daemon", "ping").allowed
    assert not decide(ALICE, "Other", "ping").allowed


def test_a_token_takes_away_and_adds_nothing():
    def narrowed(*objects, methods=()):
        return Principal("olga", ROLES, restrictions=Restrictions(objects, methods))

    decide = Authorization().decide
    assert decide(narrowed(("A", "B")), "A", "m", ROLES).allowed
    assert decide(narrowed(("A", "B")), "C", "m", ROLES) == (False, "the token is for other objects")
    assert not decide(narrowed(("A", "B"), ("B",)), "A", "m", ROLES).allowed
    assert decide(narrowed(methods=(("n",),)), "A", "m", ROLES) == (False, "the token is for other methods")
    assert not decide(narrowed(("A",)), "A", "m").allowed
    assert decide(narrowed(("A",), methods=(("m",),)), "Pyro.Daemon", "ping").allowed


def test_a_policy_has_the_last_word():
    asked = []

    def policy(principal, object_id, method):
        asked.append((principal.name, object_id, method))
        return object_id == "A"

    authorization = Authorization(policy=policy, rules=Rules((deny("A", "m"),)))
    assert authorization.decide(ALICE, "A", "n") == (True, "the policy allows it")
    assert authorization.decide(OPERATOR, "B", "n", ROLES) == (False, "the policy denies it")
    assert asked == [("alice", "A", "n"), ("olga", "B", "n")]
    assert not authorization.decide(ALICE, "A", "m").allowed
    assert not authorization.decide(ALICE, "A", "n", ROLES).allowed


@pytest.mark.parametrize("verdict", [1, "yes", None, object()])
def test_only_true_is_a_yes(verdict):
    assert not Authorization(policy=lambda *_: verdict).decide(ALICE, "A", "m").allowed


def test_a_policy_that_fails_allows_nothing(caplog):
    def policy(*_):
        raise KeyError("x")

    decision = Authorization(policy=policy).decide(ALICE, "A", "m")
    assert decision == (False, "the policy failed: KeyError")
    assert "the policy failed" in caplog.text


def test_what_would_never_count_is_refused():
    with pytest.raises(errors.RegistrationError, match="rule 1 would allow nothing"):
        Authorization(policy=lambda *_: True, rules=Rules((allow("A"),)))
    with pytest.raises(errors.RegistrationError, match="allow_authenticated would allow nothing"):
        Authorization(policy=lambda *_: True, allow_authenticated=True)

    async def policy(*_):
        return False

    with pytest.raises(errors.RegistrationError, match="async"):
        Authorization(policy=policy)


def test_who_could_be_allowed_nothing_of_an_object_may_not_know_of_it():
    def may_know(authorization, principal, by_role=False, object_id="A"):
        return authorization.may_know(principal, object_id, by_role=by_role)

    assert not may_know(ALLOW_AUTHENTICATED, None)
    assert may_know(ALLOW_AUTHENTICATED, ALICE)
    assert not may_know(Authorization(), OPERATOR)
    assert may_know(Authorization(), OPERATOR, by_role=True)
    assert not may_know(Authorization(), ALICE, by_role=True)
    assert may_know(rules(allow("A", "m")), ALICE)
    assert not may_know(rules(allow("B", "m")), ALICE)
    assert not may_know(rules(allow("A"), deny("*")), ALICE, by_role=True)
    assert not may_know(
        ALLOW_AUTHENTICATED, Principal("alice", restrictions=Restrictions((("B",),))), by_role=True
    )
