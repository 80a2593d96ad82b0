"""What the judge of the kill campaigns complains about, on small stories with one mistake each."""

import pytest

from objserver.testing.kill_clients import ANSWERED, FAILED, HASTY, MORTAL, STEADY, UNKNOWN, Call
from objserver.testing.kill_judge import judge
from objserver.testing.kill_server import REFUSAL

NOW = 10**6


def call(entry, method, *, at=0, to=-1, amount=5, kind=STEADY, result=None, outcome=ANSWERED, **more):
    times = {"invoked": entry, "returned": entry + 1, **more}
    return Call(entry, kind, method, at, amount, to, outcome=outcome, result=result, **times)


def wrong(calls, *accounts, **options):
    found = judge(calls, accounts, NOW, **options)
    kinds = {sentence.partition(":")[0] for sentence in found.wrong}
    assert all(found.counts[kind] for kind in kinds)
    return kinds


def test_a_story_in_which_all_is_well():
    calls = [
        call(4, "deposit", result=5),
        call(8, "withdraw", amount=9, result=REFUSAL),
        call(12, "batch", amount=1, result=[6, 7]),
        call(16, "pay", to=1, result=[2, 5]),
        call(20, "send", to=1, amount=1, result=1),
        call(24, "tell", to=1, result=1),
        call(28, "balance", result=1),
        call(32, "deposit", kind=HASTY, outcome=UNKNOWN),
        call(36, "deposit", kind=HASTY, outcome=FAILED, result="NotExecuted: never", asked=True),
        call(40, "deposit", kind=MORTAL, outcome=UNKNOWN, returned=0),
    ]
    accounts = (6, [4, 12, 13, 16, 20, 24, 32]), (6, [17, 21, 25, 26])
    found = judge(calls, accounts, NOW)
    assert found.wrong == []
    expected = {"calls": 10, "answered": 6, "refused": 1, "unknown": 2, "failed": 1, "messages": 3, "told": 1}
    assert {what: found.counts[what] for what in expected} == expected


@pytest.mark.parametrize(
    ("calls", "accounts", "kinds"),
    [
        ([call(4, "deposit", result=5)], [(0, [])], {"lost", "unordered"}),
        ([call(4, "deposit", result=5)], [(10, [4, 4])], {"doubled", "untrue", "unordered"}),
        ([call(4, "deposit", result=6)], [(5, [4])], {"untrue", "unordered"}),
        ([], [(5, [4])], {"untrue", "unordered"}),
        ([call(4, "deposit", result=5)], [(6, [4])], {"untrue", "unordered"}),
        ([call(4, "balance", result=5)], [(0, [])], {"unordered"}),
        ([call(4, "batch", outcome=UNKNOWN, kind=HASTY)], [(5, [4])], {"lost", "unordered"}),
        ([call(4, "tell", to=1, result=0)], [(0, [4]), (0, [5])], {"lost"}),
        ([call(4, "tell", to=1, result=0)], [(0, [4]), (0, [6, 5])], {"disordered"}),
        ([call(4, "pay", to=1, outcome=UNKNOWN, kind=HASTY)], [(-5, [4]), (0, [])], {"lost"}),
        ([call(4, "tell", to=1, outcome=UNKNOWN, kind=HASTY)], [(0, []), (0, [5, 6])], {"untrue"}),
        ([call(4, "deposit", outcome=FAILED, kind=HASTY, result="NotExecuted: ")], [(5, [4])], {"untrue"}),
        ([call(4, "deposit", outcome=UNKNOWN)], [(5, [4])], {"surprising"}),
        ([call(4, "deposit", outcome=FAILED, result="StoreError: away")], [(0, [])], {"surprising"}),
    ],
)
def test_each_mistake_has_its_name(calls, accounts, kinds):
    assert kinds <= wrong(calls, *accounts)


def test_a_payment_that_nobody_made_to_its_end_may_have_arrived():
    found = judge([call(4, "pay", to=1, outcome=UNKNOWN, kind=HASTY)], [(0, []), (5, [5])], NOW)
    assert found.wrong == []
    assert found.counts["orphans"] == 1


def test_while_the_store_is_away_calls_may_fail():
    calls = [call(4, "deposit", outcome=FAILED, result="StoreError: away")]
    assert wrong(calls, (0, []), outages=True) == set()
    assert "untrue" in wrong(calls, (5, [4]), outages=True)


def test_an_account_with_many_unknown_outcomes_is_decided_by_its_entries():
    unknown = [call(4 * n, "deposit", amount=n, kind=HASTY, outcome=UNKNOWN) for n in range(1, 25)]
    done = unknown[::2]
    balance = sum(each.amount for each in done)
    calls = [*unknown, call(400, "balance", result=balance)]
    found = judge(calls, [(balance, [each.entry for each in done])], NOW)
    assert found.wrong == []
    stale = [*unknown, call(400, "balance", result=balance), call(404, "balance", result=balance - 1)]
    assert "unordered" in wrong(stale, (balance, [each.entry for each in done]))
