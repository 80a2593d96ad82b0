"""What a server can do with an object that its client passed."""

import asyncio
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from objserver import AsyncProxy, ObjectServer, Proxy, Reference, errors, expose
from objserver.client.leases import LeaseKeeper


@expose
class Bell:
    def ring(self, times: int) -> str:
        return "ding " * times


@expose
class Desk:
    def ring_in_a_batch(self, bell: Proxy) -> list[str]:
        with bell.batch() as batch:
            batch.ring(1)
            batch.ring(2)
        return list(batch.results())

    def pick(self, bells: list[Proxy]) -> Proxy:
        return bells[1]

    async def ring_in_a_thread(self, bell: Proxy) -> str:
        return str(await asyncio.to_thread(bell.ring, 1))

    async def ring_hastily(self, bell: Proxy) -> str:
        return str(bell.ring(1))

    async def ring_asynchronously(self, bell: Proxy) -> str:
        return str(await AsyncProxy(bell).ring(1))


@pytest.fixture
def desk() -> Iterator[Proxy]:
    with ObjectServer() as server, Proxy(server.register(Desk(), "desk"), timeout_s=10) as proxy:
        yield proxy


def test_it_is_called_in_a_batch(desk: Proxy) -> None:
    assert desk.ring_in_a_batch(Bell()) == ["ding ", "ding ding "]


def test_a_coroutine_calls_it_from_a_thread(desk: Proxy) -> None:
    assert desk.ring_in_a_thread(Bell()) == "ding "


def test_a_coroutine_that_would_block_the_server_is_told_to_use_a_thread(desk: Proxy) -> None:
    with pytest.raises(RuntimeError, match=r"^calling ~\w+\.ring here would block .*to_thread"):
        desk.ring_hastily(Bell())
    with pytest.raises(errors.ConnectFailed, match="to_thread"):
        desk.ring_asynchronously(Bell())


def test_it_comes_home_as_itself_however_often_it_is_passed(desk: Proxy) -> None:
    bells = [Bell(), Bell(), Bell()]
    assert [desk.pick(bells) is bells[1] for _ in range(200)] == [True] * 200


def test_a_reference_that_is_passed_on_holds_its_object_until_it_must_have_arrived() -> None:
    said: list[tuple[str, Any]] = []

    def ask(daemon: Reference, method: str, argument: Any) -> float:
        said.append((method, argument))
        return 30.0

    keeper = LeaseKeeper()
    keeper._started = True  # this test is its thread
    lease = keeper.arrived(Reference.parse("PYRO:~7@localhost:1"), ask)
    lease.passed_on()
    del lease
    now = monotonic()
    keeper.take(0)
    keeper.speak(now)
    keeper.take(0)
    keeper.speak(now + 1)
    assert said == [("renew", ["~7"])]
    keeper.speak(now + 5)
    keeper.take(0)
    keeper.speak(now + 5)
    assert said == [("renew", ["~7"]), ("release", {"~7": 1})]
