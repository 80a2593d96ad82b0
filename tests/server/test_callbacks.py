"""A client's process is a principal and an id; which connection it is called on is decided here."""

from types import SimpleNamespace

import pytest

from objserver import errors
from objserver.adapter import Invocation
from objserver.security import Principal
from objserver.server.callbacks import Callbacks, WayBack


def connection(whose, client="pid", principal=None):
    return SimpleNamespace(
        client=client, whose=whose, principal=principal, address=None, conversation=object()
    )


class Adapter:
    def __init__(self):
        self.generation = 0
        self.asked = []
        self.forbidden = set()

    def lend(self, givers, object_id, method, args=()):
        (giver,) = givers
        self.asked.append((giver.principal.name, object_id, method, args))
        if method in self.forbidden:
            raise errors.NotAuthorized(f"{giver.principal.name} may not")


def invocation(method, args=()):
    return Invocation(None, "Board", method, args)


def test_the_newest_connection_is_called_on():
    callbacks, first, second = Callbacks(), connection("a"), connection("a")
    callbacks.add(first)
    callbacks.add(second)
    assert callbacks.newest("pid", "a") is second
    callbacks.remove(second)
    assert callbacks.newest("pid", "a") is first
    callbacks.remove(first)
    callbacks.remove(first)
    with pytest.raises(errors.ConnectFailed, match="has no connection here"):
        callbacks.newest("pid", "a")
    assert len(callbacks) == 0


def test_a_reference_in_ones_own_message_means_oneself_whoever_else_says_so():
    callbacks, alice, bob = Callbacks(), connection("alice"), connection("bob")
    callbacks.add(bob)
    way = WayBack(callbacks, Adapter(), "pid", alice)
    with pytest.raises(errors.ConnectFailed):
        way()
    callbacks.add(alice)
    assert way() is alice.conversation


def test_a_reference_that_was_passed_on_means_the_only_one_it_can():
    callbacks, alice, bob = Callbacks(), connection("alice"), connection("bob")
    early = WayBack(callbacks, Adapter(), "pid", connection("carol", "another"))
    callbacks.add(alice)
    late = WayBack(callbacks, Adapter(), "pid", connection("carol", "another"))
    callbacks.add(bob)
    assert late() is alice.conversation
    with pytest.raises(errors.ConnectFailed):
        early()  # nobody can tell any more


def test_what_brought_it_is_asked_about_once_for_each_change_of_the_rules():
    alice, adapter, callbacks = Principal("alice"), Adapter(), Callbacks()
    link = connection("alice", principal=alice)
    callbacks.add(link)
    way = WayBack(callbacks, adapter, "pid", link)
    way.bring(invocation("subscribe", [object()]))
    way()
    assert adapter.asked == []
    adapter.generation = 1
    way()
    way()
    assert adapter.asked == [("alice", "Board", "subscribe", ())]


def test_as_long_as_it_is_forbidden_it_is_not_called():
    alice, adapter, callbacks = Principal("alice"), Adapter(), Callbacks()
    link = connection("alice", principal=alice)
    callbacks.add(link)
    way = WayBack(callbacks, adapter, "pid", link)
    way.bring(invocation("__setattr__", ["listener", object()]))
    adapter.generation, adapter.forbidden = 1, {"__setattr__"}
    for _ in range(2):
        with pytest.raises(errors.ConnectFailed, match="other rules hold than when it came, and alice may"):
            way()
    assert adapter.asked[0] == ("alice", "Board", "__setattr__", ("listener",))
    adapter.forbidden = set()
    assert way() is link.conversation


def test_what_came_in_no_call_ends_with_the_rules_that_it_came_under():
    callbacks, adapter = Callbacks(), Adapter()
    link = connection("alice", principal=Principal("alice"))
    callbacks.add(link)
    way = WayBack(callbacks, adapter, "pid", link)
    assert way() is link.conversation
    adapter.generation = 1
    with pytest.raises(errors.ConnectFailed, match="it came in no call"):
        way()


def test_a_newer_proof_of_the_same_principal_counts():
    old, new = Principal("alice", expires_at=1.0), Principal("alice", expires_at=2.0)
    callbacks, adapter, asked = Callbacks(), Adapter(), []
    adapter.lend = lambda givers, *what: asked.append(givers[0].principal)
    way = WayBack(callbacks, adapter, "pid", connection(old.whose, principal=old))
    way.bring(invocation("subscribe"))
    callbacks.add(connection(new.whose, principal=new))
    adapter.generation = 1
    way()
    assert asked == [new]


def test_where_nobody_is_known_nobody_is_asked():
    callbacks, adapter, link = Callbacks(), Adapter(), connection("")
    callbacks.add(link)
    way = WayBack(callbacks, adapter, "pid", link)
    assert way() is link.conversation
    assert adapter.asked == []
