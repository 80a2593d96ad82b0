"""Every decision is a record that nobody can forge by his name."""

import json
import logging

import pytest

from objserver.security import JsonAuditFormatter, Principal, audit, write_audit

NASTY = "eve\n2026-01-01 allowed: root\x1b[2J\u202e"


@pytest.fixture
def records(caplog):
    caplog.set_level(logging.INFO, "objserver.audit")
    return caplog


def decision(**changes):
    given = {
        "now": 0.5,
        "principal": Principal("alice", means="key"),
        "address": ("127.0.0.1", 4711),
        "object_id": "Account/alice",
        "method": "deposit",
        "allowed": True,
        "reason": "role teller",
        "correlation_id": "1234",
    }
    audit.record_decision(**{**given, **changes})


def test_a_record_has_a_sentence_and_its_fields(records):
    decision()
    (record,) = records.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == (
        "allowed: alice at 127.0.0.1:4711 calls deposit of Account/alice: role teller"
    )
    assert record.audit == {
        "time": "1970-01-01T00:00:00.500000+00:00",
        "principal": "alice",
        "means": "key",
        "address": "127.0.0.1:4711",
        "object": "Account/alice",
        "method": "deposit",
        "allowed": True,
        "reason": "role teller",
        "correlation_id": "1234",
    }


def test_a_denial_is_a_warning_also_of_a_stranger_on_a_local_socket(records):
    decision(allowed=False, principal=None, address=None, reason="the caller is not known")
    (record,) = records.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("denied: somebody unknown at a local socket calls")
    assert (record.audit["principal"], record.audit["address"]) == (None, None)


def test_no_name_can_end_a_line_or_steer_a_terminal(records):
    decision(principal=Principal(NASTY), object_id=NASTY, method=NASTY, reason=NASTY)
    (record,) = records.records
    assert record.getMessage().isprintable()
    line = JsonAuditFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["object"] == NASTY


def test_a_name_of_any_length_makes_a_record_of_bounded_length(records):
    decision(object_id="x" * 100_000, method="\0" * 100_000)
    (record,) = records.records
    assert len(record.getMessage()) < 6_000
    assert len(JsonAuditFormatter().format(record)) < 10_000


def test_lone_surrogates_are_recorded(records):
    decision(object_id="\ud800")
    (record,) = records.records
    assert json.loads(JsonAuditFormatter().format(record))["object"] == "\ud800"
    record.getMessage().encode("utf-8")


def test_a_file_gets_every_decision_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "audit.jsonl"
    handler = write_audit(path)
    try:
        decision()
        decision(allowed=False)
    finally:
        audit.log.removeHandler(handler)
        audit.log.setLevel(logging.NOTSET)
        audit.log.propagate = True
        handler.close()
    assert [json.loads(line)["allowed"] for line in path.read_text().splitlines()] == [True, False]
    assert path.stat().st_mode & 0o777 == 0o600
