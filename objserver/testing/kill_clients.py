"""The clients of a kill campaign: processes that call, and write down what they did and what they were told.

Four kinds, each a process of several threads:

    steady   have time: each of their calls must come to an end, whatever is killed
    hasty    have some milliseconds: what became of many calls they do not know, and of some they ask
    mortal   have time, but are killed themselves
    stock    are Pyro5's own: a call that fails they do not make again, and what became of it they do not know

Each call is written down before it is made, and again when it has come to something, with one write to a
file, so that nothing is missing there when its process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import Pyro5.api
import Pyro5.errors

from objserver import AsyncProxy, Proxy, errors
from objserver.testing.kill_server import MUTANTS, REFUSAL, Board, reach

__all__ = ["ANSWERED", "FAILED", "HASTY", "KINDS", "MORTAL", "STOCK", "UNKNOWN", "Call", "call", "read"]

STEADY, HASTY, MORTAL = KINDS = "steady", "hasty", "mortal"
STOCK = "stock"
TIMEOUT_S = {STEADY: 120.0, HASTY: 0.05, MORTAL: 120.0, STOCK: 2.0}
"""The least that a hasty client allows is a tenth of that.  Who has time has more than all restarts take."""
THREADS = {STEADY: 3, HASTY: 2, MORTAL: 2, STOCK: 2}
TASKS = {STEADY: 4, HASTY: 2, MORTAL: 0, STOCK: 0}
"""... of one event loop, with AsyncProxy."""
ASKS = 0.5
"""Of the calls whose outcome they do not know, hasty clients ask for so many."""
PAUSE_S = 0.02
"""Of a stock client that cannot connect."""
PARTS = 4
"""Entries that one call may make: they are numbered from a multiple of it."""
ANSWERED, FAILED, UNKNOWN = "answered", "failed", "unknown"
"""How a call ended: with a result or the servant's own refusal, certainly not made, or neither."""
METHODS = {"deposit": 4, "withdraw": 3, "balance": 3, "batch": 1, "pay": 2, "send": 2, "tell": 1}
"""With each, how often compared with the others it is called."""


class Call(NamedTuple):
    """What a client knows of one call.  `result` is the answer, or says why there is none."""

    entry: int
    kind: str
    method: str
    object: int
    amount: int
    to: int
    """Another object, for those that need one."""
    invoked: int
    """On the machine's monotonic clock, in nanoseconds."""
    returned: int = 0
    outcome: str = UNKNOWN
    result: Any = None
    asked: bool = False
    """It was unknown, and asked for."""


class Scribe:
    """Writes calls to the file at `path`."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, call: Call) -> None:
        """At once."""
        os.write(self._file, json.dumps(call).encode() + b"\n")


def read(paths: Iterable[str]) -> list[Call]:
    """The calls in these files, each as it was written last.  Who is killed early leaves no file."""
    calls: dict[int, Call] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError), open(path) as lines:
            for call in (Call(*json.loads(line)) for line in lines):
                calls[call.entry] = call
    return list(calls.values())


class _Choices:
    """What one thread or task calls next."""

    def __init__(self, kind: str, number: int, objects: int, seed: str) -> None:
        self._kind, self._number, self._objects = kind, number, objects
        self.chance = random.Random(seed)
        self._made = 0

    def next(self) -> Call:
        self._made += 1
        chance = self.chance
        method = chance.choices(list(METHODS), list(METHODS.values()))[0]
        at, to = chance.randrange(self._objects), -1
        if method in ("pay", "send", "tell"):
            # Only upwards, so that no two objects wait for each other.
            at, to = sorted(chance.sample(range(self._objects), 2))
        entry = PARTS * (self._made + (self._number << 24))
        return Call(entry, self._kind, method, at, chance.randint(1, 3), to, time.monotonic_ns())

    def timeout_s(self) -> float:
        longest = TIMEOUT_S[self._kind]
        return self.chance.uniform(longest / 10, longest) if self._kind == HASTY else longest


def _arguments(call: Call, uris: list[str]) -> tuple[Any, ...]:
    if call.method == "balance":
        return ()
    if call.method == "tell":
        return call.entry, uris[call.to]
    plain = call.entry, call.amount
    return plain if call.to < 0 else (*plain, uris[call.to])


def _ended(call: Call, outcome: str, result: Any, asked: bool = False) -> Call:
    return call._replace(returned=time.monotonic_ns(), outcome=outcome, result=result, asked=asked)


def _judged(call: Call, problem: BaseException, asked: bool = False) -> Call:
    """What an error says of the call."""
    words = f"{type(problem).__name__}: {problem}"
    if isinstance(problem, ValueError) and str(problem) == REFUSAL:
        return _ended(call, ANSWERED, REFUSAL, asked)
    certain = isinstance(problem, (errors.ObjectError, errors.ConnectFailed, errors.StoreError))
    if isinstance(problem, errors.SessionExpired) or asked:
        certain = isinstance(problem, errors.NotExecuted)
    if certain and not (isinstance(problem, errors.StoreError) and problem.in_doubt):
        return _ended(call, FAILED, words, asked)
    return _ended(call, UNKNOWN, words, asked)


def _to_ask(call: Call, problem: BaseException, chance: random.Random) -> Any:
    """The id of a call that its client asks for, now that it has ended so."""
    id = problem.call if isinstance(problem, errors.OutcomeUnknown) else None
    return id if call.kind == HASTY and chance.random() < ASKS else None


def _thread(choices: _Choices, uris: list[str], scribe: Scribe, board: Board) -> None:
    for uri in uris:
        reach(uri)
    while not board.over:
        call = choices.next()
        scribe.write(call)
        proxy = reach(uris[call.object])
        try:
            call = _ended(call, ANSWERED, _made(proxy.calling(timeout_s=choices.timeout_s()), call, uris))
        except Exception as problem:
            call, id = _judged(call, problem), _to_ask(call, problem, choices.chance)
            if id is not None:
                try:
                    result = proxy.calling(timeout_s=TIMEOUT_S[STEADY]).outcome(id)
                    call = _ended(call, ANSWERED, result, True)
                except Exception as told:
                    call = _judged(call, told, True)
        scribe.write(call)


def _stock_thread(choices: _Choices, uris: list[str], scribe: Scribe, board: Board) -> None:
    proxies = [Pyro5.api.Proxy(uri) for uri in uris]
    for proxy in proxies:
        proxy._pyroTimeout = TIMEOUT_S[STOCK]
    while not board.over:
        call = choices.next()
        proxy = proxies[call.object]
        try:
            proxy._pyroBind()
        except Pyro5.errors.CommunicationError:
            time.sleep(PAUSE_S)
            continue  # nobody has been called
        method = "deposit" if call.method == "batch" else call.method
        call = call._replace(method=method)
        scribe.write(call)
        try:
            call = _ended(call, ANSWERED, getattr(proxy, method)(*_arguments(call, uris)))
        except Exception as problem:
            refused = isinstance(problem, ValueError) and str(problem) == REFUSAL
            words = REFUSAL if refused else f"{type(problem).__name__}: {problem}"
            call = _ended(call, ANSWERED if refused else UNKNOWN, words)
        scribe.write(call)


def _made(proxy: Proxy, call: Call, uris: list[str]) -> Any:
    if call.method != "batch":
        return getattr(proxy, call.method)(*_arguments(call, uris))
    with proxy.batch() as batch:
        batch.deposit(call.entry, call.amount)
        batch.deposit(call.entry + 1, call.amount)
    return list(batch.results())


async def _task(
    choices: _Choices, uris: list[str], proxies: list[AsyncProxy], scribe: Scribe, board: Board
) -> None:
    while not board.over:
        call = choices.next()
        scribe.write(call)
        proxy = proxies[call.object]
        try:
            hurried = proxy.calling(timeout_s=choices.timeout_s())
            call = _ended(call, ANSWERED, await _made_async(hurried, call, uris))
        except Exception as problem:
            call, id = _judged(call, problem), _to_ask(call, problem, choices.chance)
            if id is not None:
                try:
                    result = await proxy.calling(timeout_s=TIMEOUT_S[STEADY]).outcome(id)
                    call = _ended(call, ANSWERED, result, True)
                except Exception as told:
                    call = _judged(call, told, True)
        scribe.write(call)


async def _made_async(proxy: AsyncProxy, call: Call, uris: list[str]) -> Any:
    if call.method != "batch":
        return await proxy.invoke(call.method, *_arguments(call, uris))
    async with proxy.batch() as batch:
        batch.deposit(call.entry, call.amount)
        batch.deposit(call.entry + 1, call.amount)
    return list(batch.results())


async def _tasks(choices: list[_Choices], uris: list[str], scribe: Scribe, board: Board) -> None:
    proxies = [AsyncProxy(uri, timeout_s=TIMEOUT_S[STEADY]) for uri in uris]
    for proxy in proxies:
        while True:
            try:
                await proxy.balance()
                break
            except (errors.ConnectFailed, errors.StoreError):
                await asyncio.sleep(0.01)
    await asyncio.gather(*(_task(each, uris, proxies, scribe, board) for each in choices))
    for proxy in proxies:
        await proxy.release()


def call(
    kind: str, number: int, uris: list[str], seed: str, path: str, board: Board, mutant: str = ""
) -> NoReturn:
    """Call until the board says that it is over; in a process of its own, which has no threads yet.

    `number` is of this process alone: entries are numbered by it.
    """
    if mutant:
        MUTANTS[mutant]()
    scribe, many = Scribe(path), THREADS[kind] + TASKS[kind]
    choices = [_Choices(kind, number * 16 + i, len(uris), f"{seed} {number} {i}") for i in range(many)]
    failures: list[BaseException] = []

    def guarded(work: Callable[..., Any], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as problem:
            failures.append(problem)
            raise

    work = _stock_thread if kind == STOCK else _thread
    threads = [
        threading.Thread(target=guarded, args=(work, each, uris, scribe, board))
        for each in choices[TASKS[kind] :]
    ]
    for thread in threads:
        thread.start()
    if TASKS[kind]:
        guarded(asyncio.run, _tasks(choices[: TASKS[kind]], uris, scribe, board))
    for thread in threads:
        thread.join()
    os._exit(1 if failures else 0)
