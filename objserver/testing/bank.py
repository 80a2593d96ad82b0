"""The application that the simulator runs: a bank, its clients, and what must be true of both at the end.

Each account remembers, as part of its state, the tag of every call that changed it, in order.  So it can be
said afterwards of each single call how often it happened, whatever its caller was told: answered means
once, refused means never, unknown means at most once.  Money that one account pays to another arrives if
and only if it left. What the clients saw must also have an order that explains it.  Amounts are large and
drawn by lot, so that every balance tells how it came about.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import Counter
from collections.abc import Iterable
from typing import Any

from objserver import errors, expose, idempotent, oneway, readonly
from objserver.client import Proxy
from objserver.machine import machine
from objserver.testing.linearizability import REFUSED, Operation, Outcome, Verdict, account, check

__all__ = ["Account", "Call", "Ledger", "Statement"]

_TAG = struct.Struct("<I")
NEVER = (errors.ObjectError, errors.ConnectFailed)
"""Errors that promise that the call had no effect and never will."""
STUCK = "the other account did not answer"
"""What `transfer` and `pay` raise instead of the error of the call that they make."""
GIFTS = ("deposit", "settle")
Statement = tuple[int, bytes]
"""Balance and tags of an account."""


class _Peers:
    """The proxies that a process has for the other accounts."""

    def __init__(self) -> None:
        self._proxies: dict[str, Any] = {}

    def at(self, uri: str) -> Any:
        return self._proxies.get(uri) or self._proxies.setdefault(uri, Proxy(uri, timeout_s=5.0))


@expose
class Account:
    """A Persistent object.  `tags` has the numbers of the calls that changed it, as bytes, which are stored
    and loaded fast."""

    def __init__(self) -> None:
        self.balance = 0
        self.tags = b""

    def deposit(self, tag: int, amount: int) -> int:
        self.tags += _TAG.pack(tag)
        self.balance += amount
        return self.balance

    @idempotent
    def settle(self, tag: int, amount: int) -> int:
        """A deposit that may be repeated."""
        if not self._has(tag):
            self.deposit(tag, amount)
        return self.balance

    def _has(self, tag: int) -> bool:
        return any(known == tag for (known,) in _TAG.iter_unpack(self.tags))

    @oneway
    def receive(self, tag: int, amount: int) -> None:
        self.deposit(tag, amount)

    def withdraw(self, tag: int, amount: int) -> int:
        if amount > self.balance:
            raise ValueError(REFUSED)
        return self.deposit(tag, -amount)

    def transfer(self, tag: int, amount: int, to: str) -> int:
        """Give it to another account, and wait for that."""
        if amount > self.balance:
            raise ValueError(REFUSED)
        try:
            machine.get().own(_Peers).at(to).deposit(tag, amount)
        except errors.ObjServerError as problem:
            raise RuntimeError(STUCK) from problem
        return self.deposit(tag, -amount)

    def pay(self, tag: int, amount: int, to: str) -> int:
        """Give it to another account, without waiting."""
        if amount > self.balance:
            raise ValueError(REFUSED)
        try:
            machine.get().own(_Peers).at(to).receive(tag, amount)
        except errors.ObjServerError as problem:
            raise RuntimeError(STUCK) from problem
        return self.deposit(tag, -amount)

    @readonly
    def look(self) -> int:
        return self.balance

    @readonly
    def statement(self) -> tuple[int, bytes]:
        return self.balance, self.tags


@dataclasses.dataclass(slots=True)
class Call:
    """A call as its client saw it.  Until it has ended its outcome is unknown, also if its client crashes."""

    account: str
    method: str
    tag: int
    client: str
    amount: int
    other: str
    """The account that gets the money, if it is given to one."""
    invoked: float
    returned: float = 0.0
    result: Any = Outcome.UNKNOWN
    error: str = ""
    ended: bool = False

    def __str__(self) -> str:
        to = f", {self.other}" if self.other else ""
        what = f"{self.client}: {self.account}.{self.method}({self.tag}, {self.amount}{to})"
        return f"{what} -> {self.result}{self.error and f' ({self.error})'}"

    def end(self, now: float, result: Any, error: BaseException | None = None) -> None:
        """Its client got this answer, or this error."""
        self.ended, self.returned = True, now
        if error is None:
            self.result = result
            return
        self.error = f"{type(error).__name__}: {error}"
        if isinstance(error, (ValueError, RuntimeError)) and str(error) in (REFUSED, STUCK):
            self.result = str(error)
        elif isinstance(error, NEVER) or (isinstance(error, errors.StoreError) and not error.in_doubt):
            self.result = Outcome.FAILED
        elif not isinstance(error, (errors.OutcomeUnknown, errors.StoreError, errors.Cancelled)):
            raise AssertionError(f"{self} ended with {self.error}") from error

    def agrees(self, here: int, there: int) -> bool:
        """Whether it may have happened so often at its account, and at the other one."""
        if self.result in (REFUSED, STUCK):
            # A transfer may find less money than before, when a server was in it that is no more.
            return here == 0 and there <= (self.method == "transfer")
        if self.result is Outcome.FAILED:
            # What a transfer did before its own account failed, or was taken from it, remains.
            undone = self.error.startswith(("StoreError", "NotExecuted"))
            return here == 0 and there <= (self.method == "transfer" and undone)
        if self.result is Outcome.UNKNOWN:
            return max(here, there) <= 1 and (self._pair(here, there) if self.other else there == 0)
        return (here, there) == (1, 1 if self.other else 0)

    def _pair(self, here: int, there: int) -> bool:
        return here == there if self.method == "pay" else here <= there


class Ledger:
    """Every call that was made, and the judgement over them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def begin(self, client: str, account: str, method: str, amount: int, now: float, other: str = "") -> Call:
        call = Call(account, method, len(self.calls), client, amount, other, now)
        self.calls.append(call)
        return call

    def judge(self, statements: dict[str, Statement], now: float) -> list[str]:
        """What is wrong, given each account's last statement; nothing if all is well."""
        done = {
            name: Counter(tag for (tag,) in _TAG.iter_unpack(tags)) for name, (_, tags) in statements.items()
        }
        wrong = [*self._tags(statements, done)]
        history = [Operation(name, ("balance",), now, now, end[0]) for name, end in statements.items()]
        for call in self.calls:
            history += self._operations(call, done)
        report = check(history, account(), configurations_max=20_000)
        if report.verdict is Verdict.VIOLATED:
            wrong.append(str(report))
        return wrong

    def _tags(self, statements: dict[str, Statement], done: dict[str, Counter[int]]) -> Iterable[str]:
        for name, (balance, _) in statements.items():
            expected = 0
            for tag, times in done[name].items():
                call = self.calls[tag]
                if name not in (call.account, call.other):
                    yield f"{name} was changed by {call}"
                gives = call.method not in GIFTS and name == call.account
                expected += times * (-call.amount if gives else call.amount)
            if balance != expected:
                yield f"the balance of {name} is {balance}, but its calls make {expected}"
        for call in self.calls:
            if call.method != "look":
                here = done[call.account][call.tag]
                there = done[call.other][call.tag] if call.other else 0
                if not call.agrees(here, there):
                    at = f", and {there} times at {call.other}" if call.other else ""
                    yield f"{call} happened {here} times{at}"

    @staticmethod
    def _operations(call: Call, done: dict[str, Counter[int]]) -> Iterable[Operation]:
        """What its account, and the other one, should have answered when."""
        what: tuple[Any, ...] = ("deposit" if call.method in GIFTS else "withdraw", call.amount)
        result = call.result
        if call.method == "look":
            what = ("balance",)
        elif result is Outcome.UNKNOWN and not done[call.account][call.tag]:
            result = Outcome.FAILED  # as we know now
        elif call.method == "settle":
            result = Outcome.UNKNOWN  # the answer may be that of a repetition
        if result != STUCK:
            yield Operation(call.account, what, call.invoked, call.returned, result)
        if call.other and done[call.other][call.tag]:
            what = ("deposit", call.amount)
            yield Operation(call.other, what, call.invoked, call.returned, Outcome.UNKNOWN)

    def outcomes(self) -> dict[str, int]:
        """How many calls ended how."""
        kinds = {Outcome.UNKNOWN: "unknown", Outcome.FAILED: "failed", REFUSED: "refused", STUCK: "stuck"}
        return dict(Counter(kinds.get(call.result, "answered") for call in self.calls))
