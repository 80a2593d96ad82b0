"""What is wrong with a bank after a kill campaign, given what its clients saw and what its accounts hold.

Every call that changes something leaves entries of its own, so for each call there is no doubt what became of
it; the order of an account's entries is the order in which it was changed.

    lost         answered, or promised by what is there, and not there
    doubled      there twice
    untrue       an answer other than that order gives, or an effect of a call that certainly had none
    disordered   messages that arrived in another order than they were sent
    surprising   an error that a caller should never see
    unordered    answers that no order explains at all (`linearizability`), unknown outcomes included

What a call caused within itself may be there without the call, if nobody made that to its end: its client was
killed, had no time, or was told that it failed.  It is counted, and no mistake: nested calls are made once,
not together.  Messages are together with the call that sent them, always.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from objserver.testing import linearizability
from objserver.testing.kill_clients import ANSWERED, FAILED, HASTY, MORTAL, STOCK, UNKNOWN, Call
from objserver.testing.kill_server import REFUSAL
from objserver.testing.linearizability import REFUSED, Model, Operation, Outcome, Verdict

__all__ = ["Findings", "judge"]

COMPLAINTS_MAX = 20
"""Of each kind that are told in words; all are counted."""
HURRY = ("DeadlineExceeded", "ConnectFailed", "NotExecuted", "CallTimeout", "ServerBusy")
"""With what a call of a client in a hurry may certainly fail."""
CONFIGURATIONS_MAX = 5_000
"""For one account while nothing is known of unknown outcomes; beyond it, its entries tell them."""


@dataclasses.dataclass
class Findings:
    """Counts, and in words what is wrong.  Empty `wrong`: nothing is."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def note(self, what: str, sentence: object) -> None:
        """One more mistake of a kind."""
        self.counts[what] += 1
        if self.counts[what] <= COMPLAINTS_MAX:
            self.wrong.append(f"{what}: {sentence}")


def _entries(call: Call) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What a call leaves in its account, and in the other: entries with what they add."""
    entry, amount = call.entry, call.amount
    match call.method:
        case "deposit":
            return [(entry, amount)], []
        case "withdraw":
            return [(entry, -amount)], []
        case "batch":
            return [(entry, amount), (entry + 1, amount)], []
        case "pay" | "send":
            return [(entry, -amount)], [(entry + 1, amount)]
        case "tell":
            return [(entry, 0)], [(entry + 1, 0), (entry + 2, 0)]
    return [], []


class _Case:
    def __init__(
        self, calls: Iterable[Call], accounts: Sequence[tuple[int, list[int]]], now: int, outages: bool
    ) -> None:
        self.calls = list(calls)
        self.accounts = accounts
        self.now = now
        self.outages = outages
        self.found = Findings()
        self.after: dict[int, int] = {}
        """By entry, the balance after it."""
        self.place: dict[int, tuple[int, int]] = {}

    def run(self) -> Findings:
        self._replay()
        for call in self.calls:
            self._look_at(call)
        self._look_at_order()
        self._look_for_an_order()
        return self.found

    def _replay(self) -> None:
        expected = {}
        for call in self.calls:
            here, there = _entries(call)
            expected.update({entry: (call.object, amount) for entry, amount in here})
            expected.update({entry: (call.to, amount) for entry, amount in there})
        for number, (money, entries) in enumerate(self.accounts):
            balance = 0
            for index, entry in enumerate(entries):
                if entry in self.place:
                    self.found.note("doubled", f"entry {entry} of account {number}")
                at, amount = expected.get(entry, (None, 0))
                if at != number:
                    self.found.note("untrue", f"entry {entry} of account {number}, which nobody made there")
                balance += amount
                self.place[entry], self.after[entry] = (number, index), balance
            if balance != money:
                self.found.note("untrue", f"account {number} holds {money}, its entries make {balance}")

    def _look_at(self, call: Call) -> None:
        note, counts = self.found.note, self.found.counts
        entries, others = _entries(call)
        here = {entry in self.place for entry, _ in entries}
        there = {entry in self.place for entry, _ in others}
        counts["calls"] += 1
        counts[call.outcome if call.result != REFUSAL else "refused"] += 1
        counts["asked"] += call.asked
        counts["told"] += call.asked and call.outcome != UNKNOWN
        self._look_at_errors(call)
        if len(here) > 1 or (len(there) > 1):
            note("lost", f"a part of {call}")
        done, caused = True in here, True in there
        if call.outcome == ANSWERED and call.result != REFUSAL:
            if entries and not done:
                note("lost", call)
            elif call.method != "balance":
                self._look_at_answer(call, entries, others)
        elif call.outcome != UNKNOWN and done:
            note("untrue", f"it is there: {call}")
        if done and others and not caused:
            note("lost", f"what was sent by {call}")
        if caused and not done:
            if call.method == "pay" and call.outcome != ANSWERED:
                counts["orphans"] += 1
            else:
                note("untrue", f"its messages are there and it is not: {call}")

    def _look_at_answer(
        self, call: Call, entries: list[tuple[int, int]], others: list[tuple[int, int]]
    ) -> None:
        answers = [self.after[entry] for entry, _ in entries]
        if call.method == "pay":
            answers += [self.after.get(entry, -1) for entry, _ in others]
        given = call.result if isinstance(call.result, list) else [call.result]
        if given != answers:
            self.found.note("untrue", f"it should have been answered {answers}: {call}")

    def _look_at_errors(self, call: Call) -> None:
        if call.outcome == ANSWERED or call.kind == STOCK or (call.kind == MORTAL and not call.returned):
            return
        name = str(call.result).partition(":")[0]
        if self.outages and name == "StoreError" and call.outcome == FAILED:
            return
        if call.kind != HASTY or (call.outcome == FAILED and name not in HURRY):
            self.found.note("surprising", call)

    def _look_at_order(self) -> None:
        sent: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        by_entry = {call.entry: call for call in self.calls if call.method in ("send", "tell")}
        for number, (_, entries) in enumerate(self.accounts):
            for entry in entries:
                call = by_entry.get(entry)
                if call is not None and call.object == number:
                    sent[number, call.to] += [other for other, _ in _entries(call)[1]]
        for (number, to), entries in sent.items():
            arrived = [self.place[entry][1] for entry in entries if entry in self.place]
            self.found.counts["messages"] += len(arrived)
            if arrived != sorted(arrived):
                self.found.note("disordered", f"messages of account {number} to {to}")

    # -- is there one order of all answers? ----------------------------------------------------------

    def _look_for_an_order(self) -> None:
        history = [operation for call in self.calls for operation in self._operations(call, False)]
        for number, (money, _) in enumerate(self.accounts):
            history.append(Operation(number, ("balance",), self.now, self.now + 1, money))
        self.found.counts["checked"] += len(history)
        self.found.counts["checked, unknown"] += sum(o.result is Outcome.UNKNOWN for o in history)
        report = linearizability.check(history, _MODEL, configurations_max=CONFIGURATIONS_MAX)
        undecided = set(report.undecided)
        wrong = list(report.violations)
        if undecided:
            self.found.counts["undecided at first"] += len(undecided)
            history = [operation for call in self.calls for operation in self._operations(call, True)]
            report = linearizability.check((o for o in history if o.object in undecided), _MODEL)
            wrong += report.violations
            assert report.verdict is not Verdict.UNDECIDED, str(report)
        for violation in wrong:
            self.found.note("unordered", violation)

    def _operations(self, call: Call, told: bool) -> Iterable[Operation]:
        """The call on its account, and what it caused on the other.

        When the effect of the latter happened its client cannot know, so its answer is the account's word;
        with `told` this goes for unknown outcomes too.
        """
        if call.outcome != FAILED:
            what, result = _asked(call), _answered(call)
            returned = float(call.returned)
            if call.outcome == UNKNOWN:
                result, returned = Outcome.UNKNOWN, float(self.now)
                if told or call.method == "balance":
                    entries = _entries(call)[0]
                    if entries and entries[0][0] in self.place:
                        result = tuple(self.after[entry] for entry, _ in entries)
                    else:
                        result = Outcome.FAILED
            yield Operation(call.object, what, call.invoked, returned, result)
        for entry, amount in _entries(call)[1]:
            if entry in self.place:
                ended = call.method == "pay" and call.outcome == ANSWERED and not call.asked
                returned = float(call.returned if ended else self.now)
                yield Operation(call.to, ("add", amount), call.invoked, returned, (self.after[entry],))


def _asked(call: Call) -> tuple[Any, ...]:
    match call.method:
        case "deposit":
            return "add", call.amount
        case "batch":
            return "add", call.amount, call.amount
        case "pay":
            return "add", -call.amount
        case "tell":
            return "add", 0
        case "balance":
            return ("balance",)
    return "take", call.amount


def _answered(call: Call) -> Any:
    if call.result == REFUSAL:
        return REFUSED
    if call.method == "balance":
        return call.result
    given = call.result if isinstance(call.result, list) else [call.result]
    return tuple(given[:1] if call.method == "pay" else given)


def _step(state: int, call: tuple[Any, ...]) -> tuple[int, Any]:
    if call[0] == "balance":
        return state, state
    if call[0] == "take":
        return (state, REFUSED) if call[1] > state else (state - call[1], (state - call[1],))
    answers = []
    for amount in call[1:]:
        state += amount
        answers.append(state)
    return state, tuple(answers)


_MODEL = Model(0, _step, lambda call, answer: call[0] == "balance" or answer == REFUSED or not any(call[1:]))


def judge(
    calls: Iterable[Call], accounts: Sequence[tuple[int, list[int]]], now: int, *, outages: bool = False
) -> Findings:
    """`accounts` is what each holds, money and entries, read at `now` after the last call.

    `outages`: the store itself was away at times, so calls may have failed with a StoreError.
    """
    return _Case(calls, accounts, now, outages).run()
