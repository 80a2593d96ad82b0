"""Which addresses lead into the same cluster."""

import pytest

from objserver import errors
from objserver.client import entries as entries_module
from objserver.client.entries import AVOIDED_S, Entries
from objserver.references import Location

A, B, C = (Location("h", port) for port in (1, 2, 3))


def test_an_address_of_which_nothing_is_known_leads_to_itself():
    assert [*Entries().of(A, 0.0)] == [A]


def test_what_one_server_tells_holds_for_all_their_addresses():
    entries = Entries()
    entries.told(A, ["h:1", "h:2", "h:3"])
    assert [*entries.of(B, 0.0)] == [B, A, C]


def test_what_failed_is_tried_last_for_a_while():
    entries = Entries()
    entries.told(A, ["h:1", "h:2", "h:3"])
    entries.failed(A, 100.0)
    assert [*entries.of(A, 101.0)] == [B, C, A]
    assert [*entries.of(A, 100.0 + AVOIDED_S)] == [A, B, C]
    entries.answered(A)
    assert [*entries.of(A, 101.0)] == [A, B, C]


def test_who_is_alone_leads_to_no_others_any_more():
    entries = Entries()
    entries.told(A, ["h:1", "h:2"])
    entries.alone(A)
    assert [*entries.of(A, 0.0)] == [A]
    assert [*entries.of(B, 0.0)] == [B, A]


def test_what_is_no_address_is_refused():
    with pytest.raises(errors.ProtocolError, match="h:1 names an address that is none"):
        Entries().told(A, ["h:1", "nonsense"])


def test_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(entries_module, "ADDRESSES_MAX", 2)
    entries = Entries()
    entries.told(A, ["h:1", "h:2"])
    entries.told(C, ["h:3"])
    assert [len(entries.of(way, 0.0)) for way in (A, B, C)].count(1) >= 2
