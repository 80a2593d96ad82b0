"""The guard judges what will be called, by the table that it is called from."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import Persistent, Serial, ServerSettings, Shared, errors, expose
from objserver.adapter import Invocation
from objserver.adapter.guard import ALLOWED_MAX, Giver, Guard, what_of
from objserver.adapter.registry import Registry
from objserver.adapter.skeleton import Skeleton
from objserver.references import object_id as reference_id
from objserver.security import ALLOW_AUTHENTICATED, Authorization, Principal, Rule, Rules
from objserver.testing.clock import ManualClock

OLGA = Principal("olga", frozenset({"operator"}))
ALICE = Principal("alice")


class Caller:
    address = ("127.0.0.1", 1)
    closed = False

    def __init__(self, principal):
        self.principal = principal
        self.link = self


@expose(roles={"operator"})
class Account:
    def deposit(self): ...
    @expose(roles={"auditor"})
    def statement(self): ...
    @property
    def size(self): ...
    @size.setter
    def size(self, value): ...


@expose
class Plain:
    def deposit(self): ...


@expose
class Daemon:
    def ping(self): ...
    def renew(self): ...


def guard(authorization=None, things=(), **settings):
    registry = Registry(has_store=True)
    for name, thing, activation in things or [("Account", Account, Persistent())]:
        registry.add(thing, name, activation, Serial())
    return Guard(authorization or Authorization(), registry, ServerSettings(**settings), ManualClock())


def call(principal, object_id, method, *args):
    return Invocation(Caller(principal), object_id, method, args)


def batch(principal, object_id, *calls):
    invocation = Invocation(Caller(principal), object_id, "<batch>")
    invocation.batch = [(method, args, {}) for method, *args in calls]
    return invocation


def allow(objects, methods="*"):
    return Authorization(
        rules=Rules((Rule(allow=True, objects=(objects,), methods=(methods,), principals=("alice",)),))
    )


def test_what_is_allowed_is_allowed_by_the_table_it_is_called_from():
    it = guard()
    for _ in range(2):
        assert it.admit(call(OLGA, "Account/a", "deposit")) is Skeleton.of(Account)
        with pytest.raises(errors.NotAuthorized):
            it.admit(call(OLGA, "Account/a", "statement"))
        with pytest.raises(errors.NotAuthorized):
            it.admit(call(ALICE, "Account/a", "deposit"))
    assert it.statistics()["decisions_kept"] == 1
    assert it.statistics()["calls_denied"] == 4


def test_two_principals_that_are_equal_have_decisions_of_their_own():
    it = guard()
    for _ in range(3):
        it.admit(call(Principal("olga", frozenset({"operator"})), "Account/a", "deposit"))
    assert it.statistics()["decisions_kept"] == 3


def test_a_decision_is_not_taken_over_by_who_comes_after_and_has_its_place_in_memory():
    it = guard()
    for number in range(1_000):
        known = Principal(f"p{number}", frozenset({"operator"} if number % 2 else ()))
        if number % 2:
            it.admit(call(known, "Account/a", "deposit"))
        else:
            with pytest.raises(errors.NotAuthorized):
                it.admit(call(known, "Account/a", "deposit"))


def test_decisions_are_kept_within_bounds():
    it = guard()
    for number in range(ALLOWED_MAX + 10):
        it.admit(call(OLGA, f"Account/{number}", "deposit"))
    assert it.statistics()["decisions_kept"] <= ALLOWED_MAX


def test_what_is_denied_fills_no_table():
    it = guard()
    for number in range(100):
        with pytest.raises(errors.NotAuthorized):
            it.admit(call(ALICE, f"Account/{number}", f"m{number}"))
    assert it.statistics()["decisions_kept"] == 0


def test_attributes_and_methods_of_one_name_are_different_things():
    it = guard(allow("Plain", "deposit"), [("Plain", Plain, Shared())])
    assert it.admit(call(ALICE, "Plain", "__getattr__", "deposit"))  # there is none, which is no secret
    it.admit(call(ALICE, "Plain", "deposit"))
    for name in ("__setattr__", "deposit="):
        it.admit(call(ALICE, "Plain", name, "deposit", 1))
    sized = guard(allow("Account", "size"), [("Account", Account, Shared())])
    with pytest.raises(errors.NotAuthorized):
        sized.admit(call(ALICE, "Account", "__getattr__", "size"))  # needs the role besides


@pytest.mark.parametrize("args", [(), (5,), ([],), ("",), (None, "size")])
def test_an_attribute_without_a_name_is_none(args):
    it = guard()
    with pytest.raises(errors.NotAuthorized):
        it.admit(call(ALICE, "Account/a", "__getattr__", *args))


def test_each_member_of_a_batch_is_asked_about_once_and_one_no_is_enough(caplog):
    caplog.set_level(logging.INFO, "objserver.audit")
    it = guard()
    assert it.admit(batch(OLGA, "Account/a", *[("deposit",)] * 100)) is Skeleton.of(Account)
    assert it.admit(batch(OLGA, "Account/a", ("deposit",), ("__setattr__", "size", 1)))
    told = [(record.audit["method"], record.audit["allowed"]) for record in caplog.records]
    assert told == [("deposit", True), ("deposit", True), ("size=", True)]
    with pytest.raises(errors.NotAuthorized, match="may not call statement"):
        it.admit(batch(OLGA, "Account/a", ("deposit",), ("statement",)))
    with pytest.raises(errors.NotAuthorized):
        it.admit(batch(ALICE, "Account/a"))


def test_a_batch_counts_as_its_calls():
    it = guard(calls_per_principal_s=1.0, quota_burst_s=0.5)
    it.admit(batch(OLGA, "Account/a", *[("deposit",)] * 100))
    with pytest.raises(errors.QuotaExceeded) as caught:
        it.admit(call(OLGA, "Account/a", "deposit"))
    assert caught.value.retry_after_s == pytest.approx(99.5)


def test_who_is_denied_is_counted_too():
    it = guard(calls_per_principal_s=1.0, quota_burst_s=0.5)
    with pytest.raises(errors.NotAuthorized):
        it.admit(call(ALICE, "Account/a", "deposit"))
    with pytest.raises(errors.QuotaExceeded):
        it.admit(call(ALICE, "Account/a", "deposit"))


def test_who_has_had_its_share_may_give_back_what_it_has():
    it = guard(things=[("Pyro.Daemon", Daemon, Shared())], calls_per_principal_s=1.0, quota_burst_s=0.5)
    it.admit(call(OLGA, "Pyro.Daemon", "ping"))
    for _ in range(3):
        it.admit(call(OLGA, "Pyro.Daemon", "renew"))
        with pytest.raises(errors.QuotaExceeded):
            it.admit(call(OLGA, "Pyro.Daemon", "ping"))


def test_another_class_is_asked_about_anew_where_the_name_changed_hands_in_between():
    it = guard()
    invocation = call(OLGA, "Account/a", "deposit")
    judged = it.admit(invocation)
    assert judged is not Skeleton.of(Plain)
    with pytest.raises(errors.NotAuthorized):
        it.confirm(invocation, Skeleton.of(Plain))
    it.confirm(invocation, Skeleton.of(Account))


def test_other_rules_are_a_new_generation_and_another_name_is_none():
    it = guard()
    before = it.generation
    it.forget("Account")
    assert it.generation == before
    it.change(ALLOW_AUTHENTICATED)
    assert it.generation == before + 1


@pytest.mark.parametrize(
    ("invocation", "what"),
    [
        (call(ALICE, "Account/a", "deposit", 5), ("deposit", ())),
        (call(ALICE, "Account/a", "__getattr__", "size"), ("__getattr__", ("size",))),
        (call(ALICE, "Account/a", "__setattr__", "size", 5), ("__setattr__", ("size",))),
        (
            batch(ALICE, "Account/a", ("deposit", 5), ("__getattr__", "size"), ("deposit", 6)),
            ("<batch>", [("deposit", (), {}), ("__getattr__", ("size",), {})]),
        ),
    ],
)
def test_what_a_decision_needs_of_a_call_is_enough_to_decide_again(invocation, what):
    assert what_of(invocation) == what
    again = Giver(ALICE).asking("Account/a", *what)
    with pytest.raises(errors.NotAuthorized) as first:
        guard().confirm(invocation, Skeleton.of(Account))
    with pytest.raises(errors.NotAuthorized) as second:
        guard().confirm(again, Skeleton.of(Account))
    assert str(first.value) == str(second.value)


def test_what_was_decided_before_a_change_does_not_outlive_it():
    it = guard(ALLOW_AUTHENTICATED, [("Plain", Plain, Shared())])
    decide = Authorization.decide

    class Slow(Authorization):
        def decide(self, *args):
            decision = decide(self, *args)
            it.change(Authorization())  # while this one is deciding
            return decision

    it.change(Slow(allow_authenticated=True))
    it.admit(call(ALICE, "Plain", "deposit"))  # was under way before
    with pytest.raises(errors.NotAuthorized):
        it.admit(call(ALICE, "Plain", "deposit"))


def test_a_policy_is_asked_each_time():
    answers = [True, False]
    it = guard(Authorization(policy=lambda *_: answers.pop(0)), [("Plain", Plain, Shared())])
    it.admit(call(ALICE, "Plain", "deposit"))
    with pytest.raises(errors.NotAuthorized):
        it.admit(call(ALICE, "Plain", "deposit"))


@given(
    st.one_of(
        st.text(max_size=30),
        st.text("aAlice/%.6c1fF*~ \x00\u0430", max_size=30).map(lambda key: f"Account/{key}"),
        st.builds(reference_id, st.just("Account"), st.text(max_size=10)),
        st.sampled_from(["Account", "Account/", "Account/alice", "Account/%61lice", "account/alice"]),
    )
)
def test_whatever_id_is_allowed_is_the_id_of_the_object_that_is_called(object_id):
    it = guard(allow("Account/a*"), [("Account", Plain, Persistent())])
    try:
        it.admit(call(ALICE, object_id, "deposit"))
    except errors.NotAuthorized:
        return
    assert object_id.startswith("Account/a")
    registration, key = it._registry.find(object_id)
    assert reference_id(registration.name, key) == object_id


@given(st.text(max_size=20))
def test_no_two_ids_that_are_allowed_are_of_one_object(key):
    it = guard(allow("*"), [("Account", Plain, Persistent())])
    exact = reference_id("Account", key) if key else "Account"
    it.admit(call(ALICE, exact, "deposit"))
    for other in {f"Account/{key}", exact + "/", exact.replace("a", "%61"), exact.upper(), exact + "%20"}:
        try:
            it.admit(call(ALICE, other, "deposit"))
            _, found = it._registry.find(other)
        except (errors.NotAuthorized, errors.ObjectNotFound):
            continue
        assert (other == exact) == (found == key)
