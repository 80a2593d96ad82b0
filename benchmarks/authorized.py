"""What it costs to ask whether a call is allowed.

    python -m benchmarks.authorized

The check itself, in the thread that it runs in, with its decision kept and without; and whole calls of one
client over loopback to two servers in one process, one with authorization and one without, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.measures import Spread
from benchmarks.report import Sheet, Tables, run_alone
from objserver import ObjectServer, Proxy, ServerSettings, expose
from objserver.adapter import Invocation
from objserver.adapter.guard import Guard
from objserver.adapter.registry import Registry
from objserver.clock import SystemClock
from objserver.security import Authorization, Principal, RootKeys, Rules
from objserver.server.connection import Connection

US = 1e6
RULES = 100
OPERATOR = Principal("olga", frozenset({"operator"}), "key")


@expose(roles={"operator"})
class Account:
    def add(self, amount: int) -> int:
        return amount


class _Caller:
    """As much of a connection as a check asks for."""

    address = None
    closed = False

    def __init__(self, principal: Principal) -> None:
        self.principal = principal

    @property
    def link(self) -> object:
        return self


def _timed(work: Callable[[], Any], rounds: int, times: int) -> Spread:
    """Microseconds of one `work()`, which waits for nothing: of the thread's own time."""
    starts = []
    for _ in range(rounds):
        begun = time.thread_time()
        for _ in range(times):
            work()
        starts.append((time.thread_time() - begun) / times * US)
    return Spread(tuple(starts))


def _check(authorization: Authorization, settings: ServerSettings, principal: Principal) -> Any:
    registry = Registry(has_store=False)
    registry.add(Account, "Account", None, None)
    guard = Guard(authorization, registry, settings, SystemClock())
    caller: Any = _Caller(principal)
    invocation = Invocation(caller, "Account", "add", (1,))
    return lambda: guard.admit(invocation)


def _rules() -> Rules:
    lines = [f'[[rule]]\neffect = "deny"\nprincipals = "p{n}"\nobjects = "O{n}/*"\n' for n in range(RULES)]
    return Rules.parse("\n".join(lines))


def _calls(rounds: int, times: int) -> tuple[Spread, Spread]:
    """Microseconds of a call with authorization, and without."""
    begin = Connection.__init__

    def known(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.principal = OPERATOR

    Connection.__init__ = known  # type: ignore[method-assign]
    starts: dict[bool, list[float]] = {True: [], False: []}
    try:
        with ObjectServer(authorization=Authorization()) as asking, ObjectServer() as open_to_all:
            proxies = {
                True: Proxy(asking.register(Account, "Account")),
                False: Proxy(open_to_all.register(Account, "Account")),
            }
            for proxy in proxies.values():
                proxy.add(1)
            for _ in range(rounds):
                for asks, proxy in proxies.items():
                    begun = time.perf_counter()
                    for _ in range(times):
                        proxy.add(1)
                    starts[asks].append((time.perf_counter() - begun) / times * US)
            for proxy in proxies.values():
                proxy._pyroRelease()
    finally:
        Connection.__init__ = begin  # type: ignore[method-assign]
    return Spread(tuple(starts[True])), Spread(tuple(starts[False]))


def tables(quick: bool) -> Tables:
    """Everything above, and the goals."""
    rounds, times = (5, 20_000) if quick else (15, 100_000)
    made = Tables()
    settings = ServerSettings()
    kept = _timed(_check(Authorization(), settings, OPERATOR), rounds, times)
    until = Principal("olga", frozenset({"operator"}), "token", time.time() + 1e6)
    expiring = _timed(_check(Authorization(), settings, until), rounds, times)
    limited = ServerSettings(calls_per_principal_s=1e9)
    counted = _timed(_check(Authorization(), limited, until), rounds, times)
    anew = Authorization(policy=lambda *_: True, rules=_rules())
    asked = _timed(_check(anew, settings, OPERATOR), rounds, times // 20)
    keys = RootKeys({"k1": bytes(32)})
    token = keys.mint("olga", ["operator"], expires_at=time.time() + 1e6, nonce=bytes(16))
    text = token.attenuate(objects="Account/*", calls_per_s=100).text
    known = _timed(lambda: keys.verify(text, 0.0), rounds, times)
    first = _timed(lambda: keys._verify(text), rounds, times // 20)
    made.sheets.append(
        Sheet(
            "Authorization",
            ["the check of one call", "us"],
            [
                ["by the roles of the member, decided before", kept.text(2)],
                ["... of a principal that expires", expiring.text(2)],
                ["... and has a quota", counted.text(2)],
                [f"a policy, and {RULES} rules, asked anew", asked.text(2)],
                ["a token that is known", known.text(2)],
                ["a token with two caveats, verified", first.text(2)],
            ],
        )
    )
    with_it, without = _calls(rounds, times // 40)
    made.sheets.append(
        Sheet(
            "Calls with authorization and without",
            ["one call over loopback", "us"],
            [["with authorization", with_it.text(1)], ["without", without.text(1)]],
        )
    )
    made.at_most("authorization: at most 2 us for a call that was decided before", kept, 2, unit=" us")
    made.at_most("authorization: at most 2 us also with an expiry and a quota", counted, 2, unit=" us")
    made.at_most("tokens: at most 2 us to know one again", known, 2, unit=" us")
    return made


if __name__ == "__main__":
    run_alone(tables)
