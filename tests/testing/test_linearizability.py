"""The checker accepts what a sequential object can explain, and nothing else."""

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objserver.testing.linearizability import (
    REFUSED,
    Operation,
    Outcome,
    Verdict,
    account,
    check,
    key_value,
    register,
)

UNKNOWN, FAILED = Outcome.UNKNOWN, Outcome.FAILED


def op(call, invoked, returned, result, name="o"):
    return Operation(name, call, invoked, returned, result)


def verdict(model, *operations, **options):
    return check(operations, model, **options).verdict


GOOD = {
    "empty": (register(), []),
    "one after the other": (
        register(0),
        [op(("read",), 0, 1, 0), op(("write", 5), 2, 3, None), op(("read",), 4, 5, 5)],
    ),
    "concurrent with the write, both values may be read, in this order": (
        register(0),
        [op(("write", 5), 0, 9, None), op(("read",), 1, 2, 0), op(("read",), 3, 4, 5)],
    ),
    "answers swap places": (account(), [op(("deposit", 5), 0, 9, 12), op(("deposit", 7), 1, 8, 7)]),
    "touching intervals are concurrent": (
        register(0),
        [op(("write", 5), 0, 1, None), op(("read",), 1, 2, 0)],
    ),
    "an unknown write that happened late": (
        register(0),
        [op(("write", 5), 0, 1, UNKNOWN), op(("read",), 2, 3, 0), op(("read",), 4, 5, 5)],
    ),
    "an unknown write that never happened": (
        register(0),
        [op(("write", 5), 0, 1, UNKNOWN), op(("read",), 2, 3, 0)],
    ),
    "a failed write did not happen": (register(0), [op(("write", 5), 0, 1, FAILED), op(("read",), 2, 3, 0)]),
    "a refusal changes nothing": (
        account(3),
        [op(("withdraw", 5), 0, 1, REFUSED), op(("withdraw", 2), 2, 3, 1), op(("balance",), 4, 5, 1)],
    ),
    "swaps": (register(1), [op(("swap", 1, 2), 0, 3, True), op(("swap", 1, 3), 0, 3, False)]),
    "a write that changes nothing where it could be first": (
        register(0),
        [
            op(("write", 1), 0, 0, None),
            op(("write", 2), 1, 1, None),
            op(("write", 1), 1, 2, None),
            op(("read",), 3, 3, 1),
        ],
    ),
    "a map": (
        key_value(),
        [
            op(("put", "a", 1), 0, 1, None),
            op(("put", "a", 2), 2, 3, 1),
            op(("get", "b"), 2, 3, None),
            op(("delete", "a"), 4, 5, 2),
            op(("get", "a"), 6, 7, None),
        ],
    ),
    "two objects": (register(0), [op(("write", 5), 0, 1, None, "a"), op(("read",), 2, 3, 0, "b")]),
}

BAD = {
    "a stale read": (register(0), [op(("write", 5), 0, 1, None), op(("read",), 2, 3, 0)]),
    "reads that go back": (
        register(0),
        [op(("write", 5), 0, 9, None), op(("read",), 1, 2, 5), op(("read",), 3, 4, 0)],
    ),
    "a lost update": (
        account(),
        [op(("deposit", 5), 0, 1, 5), op(("deposit", 7), 0, 1, 7), op(("balance",), 2, 3, 7)],
    ),
    "a double execution": (account(), [op(("deposit", 5), 0, 1, 5), op(("balance",), 2, 3, 10)]),
    "an unknown call that happened twice": (
        account(),
        [op(("deposit", 5), 0, 1, UNKNOWN), op(("balance",), 2, 3, 5), op(("balance",), 4, 5, 10)],
    ),
    "an unknown call before it was made": (
        register(0),
        [op(("read",), 0, 1, 5), op(("write", 5), 2, 3, UNKNOWN)],
    ),
    "a failed call that happened": (
        register(0),
        [op(("write", 5), 0, 1, FAILED), op(("read",), 2, 3, 5)],
    ),
    "an unknown write undone": (
        register(0),
        [
            op(("write", 5), 0, 1, UNKNOWN),
            op(("read",), 2, 3, 5),
            op(("write", 1), 4, 5, None),
            op(("read",), 6, 7, 5),
        ],
    ),
    "a refusal without a reason": (account(5), [op(("withdraw", 5), 0, 1, REFUSED)]),
    "two winners of a swap": (register(1), [op(("swap", 1, 2), 0, 3, True), op(("swap", 1, 3), 0, 3, True)]),
    "a map that forgets": (key_value(), [op(("put", "a", 1), 0, 1, None), op(("get", "a"), 2, 3, None)]),
    "one of two objects": (
        register(0),
        [op(("read",), 0, 1, 0, "a"), op(("write", 5), 0, 1, None, "b"), op(("read",), 2, 3, 0, "b")],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_histories_with_an_order(name):
    model, operations = GOOD[name]
    assert verdict(model, *operations) is Verdict.LINEARIZABLE
    assert verdict(model, *reversed(operations)) is Verdict.LINEARIZABLE


@pytest.mark.parametrize("name", BAD)
def test_histories_without_an_order(name):
    model, operations = BAD[name]
    assert verdict(model, *operations) is Verdict.VIOLATED
    assert verdict(model, *reversed(operations)) is Verdict.VIOLATED


def test_a_violation_is_explained_by_the_shortest_prefix():
    history = [
        op(("deposit", 5), 0, 1, 5),
        op(("deposit", 7), 2, 4, 12),
        op(("balance",), 3, 6, 5),
        op(("balance",), 5, 7, 5),
        op(("deposit", 1), 8, 9, 13),
        op(("balance",), 10, 11, 99),
    ]
    report = check(history, account())
    (violation,) = report.violations
    assert violation.prefix == tuple(history[:4])
    assert violation.state == 12
    assert violation.stuck == ((history[3], 12),)
    assert str(report) == (
        "6 operations on 1 objects: violated\n"
        "object 'o': no order of its first 4 operations explains them\n"
        "  the furthest that an order gets (its end):\n"
        "    [0, 1] deposit(5) -> 5\n"
        "    [3, 6] balance() -> 5\n"
        "    [2, 4] deposit(7) -> 12\n"
        "  then the state is 12, and none of these can be next:\n"
        "    [5, 7] balance() -> 5, but would answer 12"
    )


def test_beyond_the_bound_it_is_undecided():
    # Which of these unknown deposits happened?  No sum of them is the balance, but that takes 2**12 trials.
    history = [op(("deposit", 2**n), 0, 1, UNKNOWN, name) for n in range(1, 13) for name in "ab"]
    history += [op(("balance",), 2, 3, 2**13 + 1, "a"), op(("balance",), 2, 3, 6, "b")]
    report = check(history, account(), configurations_max=1000)
    assert report.undecided[:1] == ("a",)
    assert report.verdict is Verdict.UNDECIDED
    assert "object 'a': undecided" in str(report)
    assert verdict(account(), *history) is Verdict.VIOLATED


def test_equal_unknown_calls_are_tried_once():
    history = [op(("deposit", 1), n, n, UNKNOWN) for n in range(200)]
    history += [op(("balance",), 300, 301, 150), op(("balance",), 302, 303, 149)]
    assert verdict(account(), *history, configurations_max=1000) is Verdict.VIOLATED
    assert verdict(account(), *history[:-1], configurations_max=1000) is Verdict.LINEARIZABLE


def test_a_history_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="returned before it was invoked"):
        check([op(("read",), 2, 1, 0)], register())
    for model in register(), account():
        with pytest.raises(ValueError, match="knows no"):
            check([op(("nonsense",), 0, 1, 0)], model)


# Each model with calls for it.
MODELS = {
    "register": (
        register(0),
        [("read",), ("read",), ("write", 1), ("write", 2), ("swap", 0, 1), ("swap", 1, 2)],
    ),
    "account": (account(2), [("balance",), ("deposit", 1), ("deposit", 2), ("withdraw", 2), ("withdraw", 3)]),
    "map": (key_value(), [("get", "a"), ("put", "a", 1), ("put", "b", 2), ("delete", "a"), ("get", "b")]),
}


@st.composite
def histories(draw, size_max):
    """What clients of an atomic object see: each call takes effect at one moment within its interval."""
    model, calls = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    count = draw(st.integers(1, size_max))
    state, operations = model.initial, []
    for moment in range(count):
        call = draw(st.sampled_from(calls))
        fate = draw(
            st.sampled_from(["answered", "answered", "answered", "lost answer", "lost call", "failed"])
        )
        invoked, returned = moment - draw(st.floats(0, 4)), moment + draw(st.floats(0, 4))
        result = UNKNOWN
        if fate in ("answered", "lost answer"):
            state, answer = model.step(state, call)
            if fate == "answered":
                result = answer
        elif fate == "failed":
            result = FAILED
        operations.append(op(call, invoked, returned, result))
    return model, draw(st.permutations(operations))


def explained(model, operations):
    """By trying all orders of all choices of the unknown ones."""
    known = [o for o in operations if not isinstance(o.result, Outcome)]
    unknown = [o for o in operations if o.result is UNKNOWN]
    for count in range(len(unknown) + 1):
        for happened in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *happened]):
                pairs = itertools.combinations(order, 2)
                if any(late.result is not UNKNOWN and late.returned < early.invoked for early, late in pairs):
                    continue
                state = model.initial
                for operation in order:
                    state, answer = model.step(state, operation.call)
                    if operation.result is not UNKNOWN and answer != operation.result:
                        break
                else:
                    return True
    return False


@given(histories(size_max=40))
def test_an_atomic_object_is_always_accepted(made):
    model, operations = made
    assert str(check(operations, model)).endswith("linearizable")


@settings(max_examples=800)
@given(histories(size_max=6), st.data())
def test_it_agrees_with_trying_every_order(made, data):
    model, operations = made
    index = data.draw(st.integers(0, len(operations) - 1))
    wrong = data.draw(st.sampled_from([None, True, False, REFUSED, 0, 1, 2, 3, 4]))
    operations = [*operations]
    operations[index] = operations[index]._replace(result=wrong)
    report = check(operations, model)
    assert (report.verdict is Verdict.LINEARIZABLE) is explained(model, operations)
    for violation in report.violations:
        assert not explained(model, violation.prefix)
        # and it is the shortest: until the answer before, there is an order
        last = min(o.returned for o, _ in violation.stuck)
        before = max(
            (o.returned for o in violation.prefix if o.returned < last and o.result != UNKNOWN), default=-9
        )
        shorter = [o for o in violation.prefix if o.invoked <= before]
        assert explained(model, [o if o.returned <= before else o._replace(result=UNKNOWN) for o in shorter])


@given(histories(size_max=40), st.data())
def test_an_answer_that_nothing_explains_is_always_rejected(made, data):
    model, operations = made
    answered = [i for i, o in enumerate(operations) if not isinstance(o.result, Outcome)]
    operations = [*operations]
    for index in answered and [data.draw(st.sampled_from(answered))]:
        operations[index] = operations[index]._replace(result="never said")
        report = check(operations, model)
        assert report.verdict is Verdict.VIOLATED
        assert operations[index] in report.violations[0].prefix


def load(chance, objects, operations, clients=10, unknown=0.01):
    """Ten clients of each account; one call in a hundred has an unknown outcome."""
    model, history = account(), []
    for name in range(objects):
        free, calls = [0.0] * clients, []
        for _ in range(operations):
            client = chance.randrange(clients)
            invoked = free[client] + chance.random()
            moment = invoked + chance.random()
            free[client] = returned = moment + chance.random()
            kind = chance.choice(("balance", "deposit", "withdraw"))
            calls.append(
                (moment, invoked, returned, (kind,) if kind == "balance" else (kind, chance.randint(1, 9)))
            )
        state = model.initial
        for _, invoked, returned, call in sorted(calls):
            lost = chance.random() < unknown
            if not (lost and chance.random() < 0.5):  # else it never happened
                state, answer = model.step(state, call)
            history.append(op(call, invoked, returned, UNKNOWN if lost else answer, name))
    return history


def test_a_hundred_thousand_calls():
    history = load(random.Random(1), objects=1000, operations=100)
    start = time.perf_counter()
    report = check(history, account())
    print(f"{report.operations} calls in {time.perf_counter() - start:.2f} s")
    assert str(report) == "100000 operations on 1000 objects: linearizable"
    # one wrong answer among them is found
    index = next(i for i, o in enumerate(history) if o.object == 777 and isinstance(o.result, int))
    history[index] = history[index]._replace(result=-1)
    some = [o for o in history if 700 <= o.object < 800]
    assert [v.object for v in check(some, account()).violations] == [777]
