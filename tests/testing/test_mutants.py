"""Production code made wrong on purpose: the simulator must find each mutant within 60 seeds.

A check that never fails proves nothing.  Each mutant takes away one part of what makes calls safe, or brings
back a bug that the simulator has found.
"""

import contextlib

import pytest

from objserver import errors
from objserver.adapter import durability as durability_module
from objserver.adapter.durability import Durability
from objserver.adapter.gate import Gate, Held
from objserver.adapter.outbox import Outbox
from objserver.adapter.sessions import Sessions
from objserver.client.attempts import Attempts
from objserver.client.stub import Stub
from objserver.storage import Committer
from objserver.storage import sqlite as sqlite_module
from objserver.testing.faulty_store import Disk
from objserver.testing.simulator import simulate

SEEDS = 60
SECONDS = 60.0


# -- what makes calls safe -----------------------------------------------------------------------------


def no_fence(monkeypatch):
    """Whoever commits last wins, also one that owns the object no more."""
    replace_the_fence(monkeypatch, "")


def no_epoch(monkeypatch):
    """The version alone decides: who owns the object no more may still be the first with the next one."""
    replace_the_fence(monkeypatch, " AND o.version = v.column9")


def no_version(monkeypatch):
    """The owner's commits are in any order: one that was given up may come after those made instead of it."""
    replace_the_fence(monkeypatch, " AND o.epoch = v.column8")


FIRST = {no_version: 60}
"""About one seed in forty finds it, and the first sixty do not."""


def replace_the_fence(monkeypatch, other):
    fence = " AND o.epoch = v.column8 AND o.version = v.column9"
    assert fence in sqlite_module._UPDATE
    monkeypatch.setattr(sqlite_module, "_UPDATE", sqlite_module._UPDATE.replace(fence, other))


def no_confirmation(monkeypatch):
    """Reads are answered from memory, whoever has the object by now."""
    monkeypatch.setattr(Committer, "confirm", lambda self, read, done: done(None))


def no_record(monkeypatch):
    """The answer of a call is not stored with what it did."""
    record = Durability._record

    def forgetful(self, invocation, held, error):
        record(self, invocation, held, error)
        held.record = None

    monkeypatch.setattr(Durability, "_record", forgetful)


def no_digest(monkeypatch):
    """An id is enough to get an answer, whatever was asked."""
    find = Gate.find
    monkeypatch.setattr(
        Gate, "find", lambda self, call, digest, asks=False: find(self, call, digest, asks=True)
    )


def acknowledge_before_commit(monkeypatch):
    """A call is answered while its change is on its way to the disk."""
    submit = Committer.submit

    def at_once(self, change, done):
        submit(self, change, lambda problem: None)
        done(None)

    monkeypatch.setattr(Committer, "submit", at_once)


def no_poison(monkeypatch):
    """What a commit without an answer left is taken for stored."""
    done = Durability._done

    def hopeful(self, activation, gate, messages, problem):
        done(self, activation, gate, messages, None if getattr(problem, "in_doubt", False) else problem)

    monkeypatch.setattr(Durability, "_done", hopeful)


def no_session_check(monkeypatch):
    """Whoever was forgotten is welcome again."""

    def check(self, client, now):
        self._store.open_session(client, self._lease_s)

    monkeypatch.setattr(Sessions, "check", check)


def no_gate(monkeypatch):
    """Replies leave when the call has ended, and not when it is stored."""
    settle = Durability.settle

    def early(self, invocation, reply, error, inside):
        if invocation.begun and not invocation.oneway:
            invocation.caller.send(reply)
            invocation.oneway = True
        return settle(self, invocation, reply, error, inside)

    monkeypatch.setattr(Durability, "settle", early)


def outbox_outside_the_transaction(monkeypatch):
    """Messages are sent when the call has ended, and are stored nowhere."""
    settle, messages = Durability.settle, Gate._messages

    def early(self, invocation, reply, error, inside):
        if invocation.messages and invocation.gate is not None:
            held = Held(invocation, reply)
            held.messages, invocation.messages = invocation.messages, ()
            self.outbox.add(messages(invocation.gate, [held]))
        return settle(self, invocation, reply, error, inside)

    monkeypatch.setattr(Durability, "settle", early)


def resend_what_may_have_happened(monkeypatch):
    """A call without a number is made again, whatever it does."""
    monkeypatch.setattr(Stub, "counts", lambda self, method, flags: False)
    init = Attempts.__init__

    def repeatable(self, *args):
        init(self, *args)
        self.repeatable = True

    monkeypatch.setattr(Attempts, "__init__", repeatable)
    monkeypatch.setattr(Attempts, "repeatable", property(lambda self: True, lambda self, value: None))


def reply_before_state(monkeypatch):
    """The records of calls and what they did are stored one after the other."""
    commit = Committer._commit

    def halves(self, batch):
        for change, _ in batch:
            with contextlib.suppress(errors.StoreError):
                found = self._store.load(change.type, change.key)
                if found is not None and (found.epoch, found.version) == (change.epoch, change.version):
                    self._store.commit([change._replace(state=found.state, calls=0, messages=())])
        commit(self, [(change._replace(replies=(), acked=()), done) for change, done in batch])

    monkeypatch.setattr(Committer, "_commit", halves)


# -- what the simulator has found ----------------------------------------------------------------------


def time_may_be_negative(monkeypatch):
    """A call is sent although its time was up meanwhile."""
    monkeypatch.setattr(
        Attempts,
        "left",
        lambda self, now: None if self._deadline == float("inf") else max(0.0, self._deadline - now),
    )


def unsettled_reads_are_shown(monkeypatch):
    """Only numbered calls are made again when the server asks for it."""
    after = Stub._after

    def only_lost(self, problem, *rest):
        if isinstance(problem, errors.Unsettled):
            raise problem
        return after(self, problem, *rest)

    monkeypatch.setattr(Stub, "_after", only_lost)


def messages_are_acknowledged_by_who_knows_not_all(monkeypatch):
    """A server acknowledges what is older than the messages it knows of."""
    run = Outbox._run

    def bold(self, name, line):
        with self._lock:
            sender, _ = name
            self._through[sender] = int.from_bytes(line.messages[0].id[16:], "big") - 1
        run(self, name, line)

    monkeypatch.setattr(Outbox, "_run", bold)


def messages_in_doubt_are_forgotten(monkeypatch):
    """Nobody looks whether a commit without an answer has left messages."""
    monkeypatch.setattr(Outbox, "look", lambda self: None)


def asking_for_an_outcome_begins_a_session(monkeypatch):
    """... in which nothing has happened yet."""
    before = Attempts.may_open_session

    def always(self):
        self.asks, asks = False, self.asks
        may = before(self)
        self.asks = asks
        return may

    monkeypatch.setattr(Attempts, "may_open_session", always)


def superseded_is_shown(monkeypatch):
    """Callers get the errors that the store has for itself."""
    monkeypatch.setattr(durability_module, "Superseded", RuntimeError)


FORGETFUL = {"lease_s": 1.0, "think_s": 0.3, "threads": 1, "kinds": ("silent crash",)}
"""Clients hear late that their server is gone, and are forgotten meanwhile."""
QUIET = {"servers": 1, "alone": True, "kinds": ("client pause",), "disk": Disk(in_doubt=0.1)}
"""The server goes on for ever, so nobody finds what it has forgotten."""


@pytest.mark.parametrize(
    ("mutant", "plan"),
    [
        (no_fence, {}),
        (no_epoch, {}),
        (no_version, {}),
        (no_confirmation, {}),
        (no_record, {}),
        (no_digest, {}),
        (acknowledge_before_commit, {}),
        (no_poison, {}),
        (no_session_check, FORGETFUL),
        (no_gate, {}),
        (outbox_outside_the_transaction, {}),
        (resend_what_may_have_happened, {}),
        (reply_before_state, {}),
        (time_may_be_negative, {}),
        (unsettled_reads_are_shown, {}),
        (messages_are_acknowledged_by_who_knows_not_all, {}),
        (messages_in_doubt_are_forgotten, QUIET),
        (superseded_is_shown, {}),
        (asking_for_an_outcome_begins_a_session, FORGETFUL),
    ],
)
def test_a_mutant_is_caught(mutant, plan, monkeypatch):
    mutant(monkeypatch)
    first = FIRST.get(mutant, 0)
    for seed in range(first, first + SEEDS):
        failures = simulate(seed, SECONDS, **plan).failures
        if failures:
            print(f"seed {seed}: {failures[0]}")
            return
    pytest.fail(f"{SEEDS} seeds found nothing")
