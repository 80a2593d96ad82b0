"""What `AsyncProxy.method(...)` gives: to be awaited once, by whatever takes a coroutine."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from objserver import AsyncProxy, ObjectServer, Reference, expose


@expose
class Tally:
    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count


@pytest.fixture
def tally() -> Iterator[Reference]:
    with ObjectServer() as server:
        yield server.register(Tally(), "tally")


def test_a_task_can_be_made_of_a_call(tally: Reference) -> None:
    async def run() -> list[int]:
        async with AsyncProxy(tally) as proxy, asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(proxy.add(1)) for _ in range(3)]
        return sorted(task.result() for task in made)

    assert asyncio.run(run()) == [1, 2, 3]


def test_asyncio_run_takes_a_call(tally: Reference) -> None:
    assert asyncio.run(AsyncProxy(tally).add(7)) == 7


def test_a_task_that_is_cancelled_before_it_begins_makes_no_call(
    tally: Reference, recwarn: pytest.WarningsRecorder
) -> None:
    async def run() -> int:
        async with AsyncProxy(tally) as proxy:
            task = asyncio.create_task(proxy.add(5))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return int(await proxy.add(1))

    assert asyncio.run(run()) == 1
    gc.collect()
    assert [str(warning.message) for warning in recwarn if warning.category is RuntimeWarning] == []


def test_a_call_that_is_thrown_away_warns() -> None:
    with pytest.warns(RuntimeWarning, match=r"tally\.add> was never awaited, so it was not made"):
        AsyncProxy("PYRO:tally@localhost:1").add(1)


def test_a_call_is_made_once(tally: Reference) -> None:
    async def run() -> None:
        async with AsyncProxy(tally) as proxy:
            call = proxy.add(1)
            assert await call == 1
            with pytest.raises(RuntimeError, match=r"tally\.add> has been awaited already"):
                await call
            assert await proxy.add(1) == 2

    asyncio.run(run())
