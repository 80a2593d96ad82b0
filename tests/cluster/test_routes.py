"""What a node remembers of where objects are."""

from objserver.cluster import routes
from objserver.cluster.routes import BELIEVED_S, Routes
from objserver.storage import Elsewhere

THERE = Elsewhere("life", "h:1")


def test_a_route_is_believed_for_a_moment():
    known = Routes()
    known.learn("T", "k", THERE, now=10.0)
    assert known.find("T", "k", 10.0 + BELIEVED_S / 2) == THERE
    assert known.find("T", "k", 10.0 + BELIEVED_S) is None
    assert len(known) == 0


def test_what_leads_to_the_dead_is_forgotten():
    known = Routes()
    known.learn("T", "k", THERE, now=0.0)
    known.learn("T", "other", Elsewhere("other", "h:2"), now=0.0)
    known.keep({"other"})
    assert known.find("T", "k", 0.0) is None
    assert known.find("T", "other", 0.0) is not None
    known.forget("T", "other")
    assert known.find("T", "other", 0.0) is None


def test_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(routes, "ROUTES_MAX", 2)
    known = Routes()
    for key in "abc":
        known.learn("T", key, THERE, now=0.0)
    assert [known.find("T", key, 0.0) is not None for key in "abc"] == [False, True, True]
