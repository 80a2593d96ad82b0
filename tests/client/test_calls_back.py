"""What a server can do with an object that its client passed."""

import asyncio
from collections.abc import Iterator

import pytest

from objserver import AsyncProxy, ObjectServer, Proxy, errors, expose


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
    with pytest.raises(RuntimeError, match="to_thread"):
        desk.ring_hastily(Bell())
    with pytest.raises(errors.ConnectFailed, match="to_thread"):
        desk.ring_asynchronously(Bell())
