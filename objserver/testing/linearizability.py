"""Is there one order of these calls that explains every answer?

A history is linearizable when each operation can be given one moment between its invocation and its return
such that a plain sequential object, asked in that order, gives the answers that were given.  This is what
the clients of one object may rely on, so it is what tests of failures check: a lost update, a stale read or
a call executed twice leaves a history that no order explains.

The search is that of Wing and Gong with Lowe's memory: from a state try each operation that no other one
must precede, go on from there, come back when stuck, and never look twice at the same pair (operations
done, state).  Objects are independent of each other (linearizability is local), so each is searched alone
and the work grows with the number of calls, not with their product.  Operations that were done are a bitset
over a window that moves along, so that its numbers stay small however long the history is.

An operation of unknown outcome may have happened at any time after its invocation, or never.

Three rules leave out what could only reach what is reached anyway.  A read that answers
right is done at once, since in any order it may be moved to here.  Of equal unknown operations
the earliest goes first, and only where it changes the state.  And an unknown one stands directly before one
that needs it: if that one could as well have gone first, it does.  The search can still be exponential, so it
is bounded; beyond the bound the answer is "undecided", never a guess.

References: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for
linearizability" (2017).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

__all__ = [
    "CONFIGURATIONS_MAX",
    "REFUSED",
    "Model",
    "Operation",
    "Outcome",
    "Report",
    "Verdict",
    "Violation",
    "account",
    "check",
    "key_value",
    "register",
]

CONFIGURATIONS_MAX = 500_000
"""Pairs (operations done, state) that are looked at for one object.  An ordinary history needs about one for
each operation; so many take some seconds and about 100 MB, and more seldom decides what these did not."""
SHOWN_MAX = 8
"""Operations of a violation that its text shows before those that cannot follow."""

REFUSED = "refused"
"""What `account` answers to a withdrawal that the balance does not cover."""

_FOREVER = float("inf")


class Outcome(enum.Enum):
    """Stands in the place of a result that was not received."""

    UNKNOWN = "unknown"  # it may have happened at any time after the invocation, or never
    FAILED = "failed"  # it is known not to have happened


class Operation(NamedTuple):
    """One call as its client saw it.  Times are in any unit, but of one clock."""

    object: Hashable
    call: tuple[Any, ...]
    """The member's name and its arguments, as the model takes them."""
    invoked: float
    returned: float
    """Does not count if the outcome is unknown."""
    result: Any
    """The answer, or `Outcome.UNKNOWN` or `Outcome.FAILED`."""

    def __str__(self) -> str:
        name, *arguments = self.call
        call = f"{name}({', '.join(map(repr, arguments))})"
        if self.result is Outcome.UNKNOWN:
            return f"[{self.invoked:g}, ...] {call}: outcome unknown"
        return f"[{self.invoked:g}, {self.returned:g}] {call} -> {self.result!r}"


class Model(NamedTuple):
    """A sequential object: `step(state, call)` is (next state, the answer).  States are hashable.

    `reads(call, answer)` says that the call, when it is answered so, changes no state whatever.  It makes
    the search shorter and may be left out.
    """

    initial: Hashable
    step: Callable[[Any, tuple[Any, ...]], tuple[Hashable, Any]]
    reads: Callable[[tuple[Any, ...], Any], bool] = lambda call, answer: False


class Verdict(enum.Enum):
    LINEARIZABLE = "linearizable"
    VIOLATED = "violated"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Violation:
    """Why the history of one object has no order.

    `prefix` is the shortest part of the history that cannot be ordered: all that was invoked until the return
    of its last answer, in order of invocation (what was still running then is there with its later answer).
    `ordered` is one of the orders that got furthest, its last operations only, `state` is where it led, and
    `stuck` are the operations one of which would have to be next, each with what it would have answered.
    """

    object: Hashable
    prefix: tuple[Operation, ...]
    ordered: tuple[Operation, ...]
    state: Hashable
    stuck: tuple[tuple[Operation, Any], ...]

    def __str__(self) -> str:
        lines = [f"object {self.object!r}: no order of its first {len(self.prefix)} operations explains them"]
        if self.ordered:
            lines += ["  the furthest that an order gets (its end):", *(f"    {o}" for o in self.ordered)]
        lines += [f"  then the state is {self.state!r}, and none of these can be next:"]
        lines += [f"    {operation}, but would answer {answer!r}" for operation, answer in self.stuck]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `check` found.  As text it says what is wrong, in full."""

    operations: int
    objects: int
    violations: tuple[Violation, ...]
    undecided: tuple[Hashable, ...]
    """The objects whose search hit `configurations_max`."""

    @property
    def verdict(self) -> Verdict:
        if self.violations:
            return Verdict.VIOLATED
        return Verdict.UNDECIDED if self.undecided else Verdict.LINEARIZABLE

    def __str__(self) -> str:
        lines = [f"{self.operations} operations on {self.objects} objects: {self.verdict.value}"]
        lines += map(str, self.violations)
        lines += [f"object {name!r}: undecided, the search was too long" for name in self.undecided]
        return "\n".join(lines)


def check(
    history: Iterable[Operation], model: Model, *, configurations_max: int = CONFIGURATIONS_MAX
) -> Report:
    """Search an order for each object of the history, which may be given in any order."""
    by_object: dict[Hashable, list[Operation]] = {}
    count = 0
    for operation in history:
        count += 1
        if operation.result is not Outcome.FAILED:
            by_object.setdefault(operation.object, []).append(operation)
    violations, undecided = [], []
    for name, operations in by_object.items():
        found = _Search(operations, model).run(configurations_max)
        if isinstance(found, Violation):
            violations.append(found)
        elif found is Verdict.UNDECIDED:
            undecided.append(name)
    return Report(
        operations=count, objects=len(by_object), violations=tuple(violations), undecided=tuple(undecided)
    )


class _Configuration(NamedTuple):
    """A place in the search.

    The answered operations before `low` are done, and those at `low + i` for each bit i of `done`; the
    unknown ones of the bits of `used` are taken to have happened.
    """

    low: int
    done: int
    used: int
    state: Hashable
    unknown: tuple[Hashable, tuple[Any, ...]] | None
    """If the operation just before is an unknown one: the state before it, and its call."""


class _Search:
    """The search over one object."""

    def __init__(self, operations: list[Operation], model: Model) -> None:
        operations.sort(key=lambda o: o.invoked)
        self._all = operations
        self._model = model
        self._answered = [o for o in operations if o.result is not Outcome.UNKNOWN]
        for operation in self._answered:
            if not operation.invoked <= operation.returned:
                raise ValueError(f"{operation} returned before it was invoked")
        self._unknown = [o for o in operations if o.result is Outcome.UNKNOWN]
        self._furthest = -_FOREVER
        self._violation: Violation | None = None

    def run(self, configurations_max: int) -> Verdict | Violation:
        at = _Configuration(0, 0, 0, self._model.initial, None)
        seen = {at}
        path: list[Operation] = []
        # With each place: what can still be tried from there, the next one last, and how to say it is stuck.
        stack = [(at, self._next(at))]
        while True:
            at, choices = stack[-1]
            if at.low == len(self._answered):
                return Verdict.LINEARIZABLE
            while choices:
                operation, at = choices.pop()
                if at not in seen:
                    if len(seen) >= configurations_max:
                        return Verdict.UNDECIDED
                    seen.add(at)
                    path.append(operation)
                    stack.append((at, self._next(at)))
                    break
            else:
                self._note_stuck(stack[-1][0], path)
                stack.pop()
                if not stack:
                    assert self._violation is not None
                    return self._violation
                path.pop()

    def _candidates(self, at: _Configuration) -> tuple[list[int], float]:
        """The answered operations that no other must precede, and the first return among all not done."""
        answered, low, done = self._answered, at.low, at.done
        limit, found = _FOREVER, []
        for index in range(low, len(answered)):
            operation = answered[index]
            if operation.invoked > limit:
                break
            if not done >> (index - low) & 1:
                found.append(index)
                if operation.returned < limit:
                    limit = operation.returned
        return found, limit

    def _next(self, at: _Configuration) -> list[tuple[Operation, _Configuration]]:
        """Where one more operation leads, the first to try last."""
        (_, step, reads), (low, done, used, state, unknown) = self._model, at
        candidates, limit = self._candidates(at)
        found: list[tuple[Operation, _Configuration]] = []
        if self._unknown:
            tried = set()
            for bit, operation in enumerate(self._unknown):
                if operation.invoked > limit:
                    break
                if not used >> bit & 1 and operation.call not in tried:
                    tried.add(operation.call)
                    after, _ = step(state, operation.call)
                    if after != state:
                        came = (state, operation.call)
                        found.append((operation, _Configuration(low, done, used | 1 << bit, after, came)))
        for index in reversed(candidates):
            operation = self._answered[index]
            after, answer = step(state, operation.call)
            if answer != operation.result or (unknown and self._idle(unknown, operation, after)):
                continue
            bits = done | 1 << (index - low)
            ones = (~bits & bits + 1).bit_length() - 1  # the window moves over what is done
            choice = operation, _Configuration(low + ones, bits >> ones, used, after, None)
            if after == state and reads(operation.call, answer):
                return [choice]
            found.append(choice)
        return found

    def _idle(self, unknown: tuple[Hashable, tuple[Any, ...]], operation: Operation, after: Hashable) -> bool:
        """Whether the unknown operation just before this one might as well come after it, or never."""
        before, call = unknown
        early, answer = self._model.step(before, operation.call)
        return bool(
            answer == operation.result and (early == after or self._model.step(early, call)[0] == after)
        )

    def _note_stuck(self, at: _Configuration, path: list[Operation]) -> None:
        """Keep the dead end that got past the most returns: what comes later is not to blame."""
        candidates, limit = self._candidates(at)
        if limit <= self._furthest:
            return
        self._furthest = limit
        stuck = [self._answered[index] for index in candidates]
        self._violation = Violation(
            object=self._all[0].object,
            prefix=tuple(o for o in self._all if o.invoked <= limit),
            ordered=tuple(path[-SHOWN_MAX:]),
            state=at.state,
            stuck=tuple((o, self._model.step(at.state, o.call)[1]) for o in stuck),
        )


def register(initial: Hashable = None) -> Model:
    """("read",) answers the value, ("write", value) None, ("swap", old, new) whether it was old."""

    def step(state: Hashable, call: tuple[Any, ...]) -> tuple[Hashable, Any]:
        match call:
            case ("read",):
                return state, state
            case ("write", value):
                return value, None
            case ("swap", old, new):
                return (new, True) if state == old else (state, False)
        raise ValueError(f"a register knows no {call!r}")

    return Model(initial, step, lambda call, answer: call[0] == "read" or answer is False)


def account(balance: int = 0) -> Model:
    """("balance",), ("deposit", n) and ("withdraw", n) answer the balance; the last may be `REFUSED`."""

    def step(state: int, call: tuple[Any, ...]) -> tuple[int, Any]:
        match call:
            case ("balance",):
                return state, state
            case ("deposit", amount):
                return state + amount, state + amount
            case ("withdraw", amount):
                return (state - amount, state - amount) if amount <= state else (state, REFUSED)
        raise ValueError(f"an account knows no {call!r}")

    return Model(balance, step, lambda call, answer: call[0] == "balance" or answer == REFUSED)


def key_value() -> Model:
    """("get", key) answers the value or None, ("put", key, value) and ("delete", key) the value before.

    Where calls name one key each, quicker is to make each key an object of its own with `register`.
    """

    def step(state: frozenset[Any], call: tuple[Any, ...]) -> tuple[frozenset[Any], Any]:
        before = dict(state).get(call[1])
        match call:
            case ("get", _):
                return state, before
            case ("put", key, value):
                return state - {(key, before)} | {(key, value)}, before
            case ("delete", key):
                return state - {(key, before)}, before
        raise ValueError(f"a key-value map knows no {call!r}")

    return Model(frozenset(), step, lambda call, answer: call[0] == "get")
