"""AsyncProxy, against servers of ours and stock daemons of both kinds."""

import asyncio
import contextlib
import gc
import threading
import uuid

import Pyro5.api
import Pyro5.server
import pytest

from objserver import (
    AsyncProxy,
    Concurrent,
    ObjectServer,
    Proxy,
    Serial,
    connect_async,
    current,
    errors,
    expose,
    oneway,
)
from objserver.client import multiplexed
from objserver.client.async_proxy import AHEAD
from objserver.client.multiplexed import IN_FLIGHT_MAX

BOUND_S = 10


@expose
class Thing:
    def __init__(self):
        self.go, self.began, self.ended = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
        self.drawn = 0
        self.notes = []
        self._colour = "red"
        self.outcome = None

    @property
    def colour(self):
        return self._colour

    @colour.setter
    def colour(self, value):
        self._colour = value

    def add(self, a, b):
        return a + b

    def boom(self):
        raise ValueError("boom")

    def wait(self):
        self.began.release()
        assert self.go.wait(BOUND_S)

    def wait_cancelled(self):
        told = threading.Event()
        current._facts().when_cancelled(told.set)
        self.began.release()
        assert told.wait(BOUND_S)
        self.outcome = current.cancelled
        self.ended.release()

    async def sleep(self):
        self.began.release()
        try:
            await asyncio.sleep(BOUND_S * 6)
        except asyncio.CancelledError:
            self.outcome = "cancelled"
            raise
        finally:
            self.ended.release()

    def call_other(self, uri):
        Proxy(uri).wait_cancelled()

    async def call_other_async(self, uri):
        async with AsyncProxy(uri) as other:
            await other.sleep()

    def numbers(self, count):
        try:
            for number in range(count):
                self.drawn += 1
                yield number
        finally:
            self.ended.release()

    async def numbers_async(self, count):
        try:
            for number in range(count):
                self.drawn += 1
                yield number
                await asyncio.sleep(0)
        finally:
            self.ended.release()

    def bad_items(self):
        try:
            yield 1
            yield object()
            yield 3
        finally:
            self.ended.release()

    def slow_stream(self):
        self.began.release()
        assert self.go.wait(BOUND_S)
        return iter([1])

    def some(self):
        return [1, 2, 3]

    @oneway
    def note(self, value):
        self.notes.append(value)
        self.ended.release()

    def who(self):
        return current.annotations.get("WHOM"), current.correlation_id


@pytest.fixture
def thing():
    thing = Thing()
    yield thing
    thing.go.set()


@pytest.fixture
def server(thing):
    with ObjectServer() as server:
        server.register(thing, "thing", threading=Concurrent())
        server.register(Thing, "serial", threading=Serial())
        yield server
        thing.go.set()


@pytest.fixture
def uri(server):
    return f"PYRO:thing@{server.address}"


@Pyro5.server.expose
class Stock:
    def __init__(self):
        self.calls = []
        self.go = threading.Event()

    def add(self, a, b):
        self.calls.append((a, b))
        return a + b

    def wait(self):
        assert self.go.wait(BOUND_S)
        return "waited"

    def boom(self):
        raise ValueError("boom")

    def numbers(self, count):
        yield from range(count)

    @Pyro5.server.oneway
    def note(self, value):
        self.calls.append(value)


@pytest.fixture(params=["thread", "multiplex"])
def stock(request, monkeypatch):
    monkeypatch.setattr(Pyro5.config, "SERVERTYPE", request.param)
    thing = Stock()
    daemon = Pyro5.server.Daemon(port=0)
    daemon.register(thing, "thing")
    thread = threading.Thread(target=daemon.requestLoop, daemon=True)
    thread.start()
    thing.uri = str(daemon.uriFor("thing"))
    yield thing
    thing.go.set()
    daemon.shutdown()
    thread.join(BOUND_S)
    daemon.close()


def run(main):
    async def bounded():
        async with asyncio.timeout(BOUND_S * 3):
            return await main

    return asyncio.run(bounded())


async def acquired(semaphore):
    assert await asyncio.to_thread(semaphore.acquire, timeout=BOUND_S)


async def eventually(ask):
    """Until `ask()` holds: the pause is how often we look, not what we rely on."""
    for _ in range(BOUND_S * 200):
        if ask():
            return
        await asyncio.sleep(0.005)
    assert ask()


# -- what it looks like ------------------------------------------------------------------------------


def test_calls_attributes_and_errors(uri):
    async def main():
        async with AsyncProxy(uri) as thing:
            assert await thing.add(2, b=3) == 5
            assert await thing.invoke("add", 1, 1) == 2
            assert await thing.colour == "red"
            await thing.set("colour", "blue")
            assert await thing.colour == "blue"
            with pytest.raises(ValueError, match="boom") as caught:
                await thing.boom()
            assert "in boom" in "".join(caught.value._pyroTraceback)
            with pytest.raises(errors.MemberNotFound):
                await thing.nothing()

    run(main())


def test_what_cannot_be_remote_is_refused_here(uri):
    async def main():
        thing = AsyncProxy(uri)
        with pytest.raises(AttributeError, match="private"):
            thing._secret
        with pytest.raises(AttributeError, match=r"await proxy\.set"):
            thing.colour = "green"
        with pytest.raises(errors.SerializeError, match=r"an argument of thing\.add"):
            await thing.add(object(), 1)
        assert await thing.add(1, 1) == 2
        await thing.release()

    run(main())


def test_it_is_the_same_object_as_its_reference(uri):
    one, other = AsyncProxy(uri), AsyncProxy(Proxy(uri))
    assert one == other
    assert len({one, other}) == 1
    assert one != Proxy(uri)
    assert str(one) == uri
    assert repr(one) == f"<AsyncProxy {uri}>"
    assert "add" in repr(one.add)


def test_connect_async_is_the_same_proxy(uri):
    assert connect_async(uri, Thing) == AsyncProxy(uri)


def test_views_differ_as_said(uri):
    async def main():
        async with AsyncProxy(uri) as thing:
            conversation = uuid.uuid4()
            view = thing.calling(annotations={"WHOM": b"alice"}, correlation_id=conversation)
            assert await view.who() == (b"alice", conversation)
            assert (await thing.who())[0] is None

    run(main())


def test_a_oneway_call_is_not_awaited(uri, thing):
    async def main():
        async with AsyncProxy(uri) as proxy:
            assert await proxy.note(5) is None
            await acquired(thing.ended)
            assert thing.notes == [5]

    run(main())


def test_a_batch_is_sent_at_the_end_of_its_block(uri):
    async def main():
        async with AsyncProxy(uri) as thing:
            async with thing.batch() as batch:
                batch.add(1, 1)
                batch.boom()
                batch.add(2, 2)
            results = batch.results()
            assert next(results) == 2
            with pytest.raises(ValueError, match="boom"):
                next(results)

    run(main())


def test_nobody_listens():
    async def main():
        with pytest.raises(errors.ConnectFailed, match=r"^cannot connect to 127.0.0.1:1: .*refused$"):
            await AsyncProxy("PYRO:thing@127.0.0.1:1").add(1, 1)
        with pytest.raises(errors.ConnectFailed, match=r"^cannot connect to nowhere.invalid:1: (?!Unknown)"):
            await AsyncProxy("PYRO:thing@nowhere.invalid:1").add(1, 1)

    run(main())


# -- many at once ------------------------------------------------------------------------------------


def test_answers_come_in_any_order(uri, thing):
    async def main():
        async with AsyncProxy(uri) as proxy:
            waiting = asyncio.create_task(proxy.invoke("wait"))
            await acquired(thing.began)
            assert await proxy.add(1, 2) == 3
            assert not waiting.done()
            thing.go.set()
            await waiting

    run(main())


def test_two_thousand_calls_of_one_serial_object_are_not_too_many(server):
    async def main():
        async with AsyncProxy(f"PYRO:serial@{server.address}") as serial:
            results = await asyncio.gather(*[serial.invoke("add", n, 1) for n in range(2_000)])
            assert results == [n + 1 for n in range(2_000)]
        assert server.statistics()["connections"] <= 1

    run(main())


def test_calls_that_wait_for_a_place_keep_their_order_and_leave_it_when_cancelled(uri, thing, monkeypatch):
    """The places of those who gave up waiting go to those behind them."""
    monkeypatch.setattr(multiplexed, "IN_FLIGHT_MAX", 4)

    async def main():
        async with AsyncProxy(uri) as proxy:
            flying = [asyncio.create_task(proxy.invoke("wait")) for _ in range(4)]
            for _ in flying:
                await acquired(thing.began)
            given_up = [asyncio.create_task(proxy.invoke("note", "never")) for _ in range(10)]
            last = [asyncio.create_task(proxy.invoke("add", n, 0)) for n in range(3)]
            await asyncio.sleep(0)
            for task in given_up:
                task.cancel()
            thing.go.set()
            await asyncio.gather(*flying)
            assert await asyncio.gather(*last) == [0, 1, 2]
            assert thing.notes == []

    run(main())


def test_the_time_of_a_call_passes_while_it_waits_for_a_place(uri, thing, monkeypatch):
    monkeypatch.setattr(multiplexed, "IN_FLIGHT_MAX", 1)

    async def main():
        async with AsyncProxy(uri) as proxy:
            flying = asyncio.create_task(proxy.invoke("wait"))
            await acquired(thing.began)
            with pytest.raises(errors.CallTimeout, match="it was not sent"):
                await proxy.calling(timeout_s=0.05).add(1, 1)
            thing.go.set()
            await flying
            assert await proxy.calling(timeout_s=BOUND_S).add(1, 1) == 2

    run(main())


def test_a_call_that_fails_before_it_is_sent_gives_its_place_on(uri, thing, monkeypatch):
    monkeypatch.setattr(multiplexed, "IN_FLIGHT_MAX", 1)

    async def main():
        async with AsyncProxy(uri) as proxy:
            flying = asyncio.create_task(proxy.invoke("wait"))
            await acquired(thing.began)
            large = asyncio.create_task(proxy.invoke("add", "x" * (17 << 20), ""))
            behind = asyncio.create_task(proxy.invoke("add", 1, 1))
            await asyncio.sleep(0)
            thing.go.set()
            await flying
            with pytest.raises(errors.MessageTooLarge):
                await large
            assert await behind == 2

    run(main())


# -- cancellation and time ---------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "outcome"), [("wait_cancelled", True), ("sleep", "cancelled")])
def test_cancelling_the_task_reaches_the_servant(uri, thing, method, outcome):
    async def main():
        async with AsyncProxy(uri) as proxy:
            task = asyncio.create_task(proxy.invoke(method))
            await acquired(thing.began)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await acquired(thing.ended)
            assert thing.outcome == outcome
            assert await proxy.add(1, 1) == 2

    run(main())


@pytest.mark.parametrize(("method", "outcome"), [("call_other", True), ("call_other_async", "cancelled")])
def test_the_calls_of_a_cancelled_servant_are_cancelled_too(uri, method, outcome):
    other = Thing()

    async def main():
        with ObjectServer() as second:
            reference = second.register(other, "other")
            async with AsyncProxy(uri) as proxy:
                task = asyncio.create_task(proxy.invoke(method, str(reference)))
                await acquired(other.began)
                task.cancel()
                await acquired(other.ended)
                assert other.outcome == outcome

    run(main())


def test_a_timeout_is_told_to_the_servant(uri, thing):
    async def main():
        async with AsyncProxy(uri) as proxy:
            with pytest.raises(errors.CallTimeout, match=r"thing.sleep: no reply"):
                await proxy.calling(timeout_s=0.1).sleep()
            await acquired(thing.ended)
            assert thing.outcome == "cancelled"

    run(main())


def test_a_stream_that_comes_for_a_cancelled_call_is_closed(uri, thing, server):
    async def main():
        async with AsyncProxy(uri) as proxy:
            task = asyncio.create_task(proxy.invoke("slow_stream"))
            await acquired(thing.began)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            thing.go.set()
            await eventually(lambda: not server.statistics()["busy_objects"])
            await eventually(lambda: not server.statistics()["streams"])

    run(main())


def test_a_server_that_goes_away_ends_all_calls(uri, thing, server):
    async def main():
        proxy = AsyncProxy(uri)
        tasks = [asyncio.create_task(proxy.invoke("wait")) for _ in range(3)]
        for _ in tasks:
            await acquired(thing.began)
        (connection,) = server.poller.connections.values()
        connection.close()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, errors.ConnectionLost)
        thing.go.set()
        assert await proxy.add(1, 1) == 2  # on a new connection
        await proxy.release()

    run(main())


# -- streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["numbers", "numbers_async"])
def test_a_stream_is_iterated(uri, method, server):
    async def main():
        async with AsyncProxy(uri) as proxy:
            assert [n async for n in getattr(proxy, method)(50)] == list(range(50))
            assert [n async for n in await getattr(proxy, method)(3)] == [0, 1, 2]
            assert server.statistics()["streams"] == 0

    run(main())


def test_a_list_is_iterated_like_a_stream(uri):
    async def main():
        async with AsyncProxy(uri) as proxy:
            assert [n async for n in proxy.some()] == [1, 2, 3]

    run(main())


@pytest.mark.parametrize("method", ["numbers", "numbers_async"])
def test_a_fast_producer_is_drawn_no_more_than_so_far_ahead(uri, thing, server, method):
    async def main():
        async with AsyncProxy(uri) as proxy:
            async with await getattr(proxy, method)(1_000) as stream:
                for taken in range(1, 4):
                    await anext(stream)
                    await eventually(lambda taken=taken: thing.drawn == taken + AHEAD - 1)
                    await proxy.add(1, 1)
                    assert thing.drawn == taken + AHEAD - 1
            await acquired(thing.ended)

    run(main())


@pytest.mark.parametrize("method", ["numbers", "numbers_async"])
def test_leaving_the_loop_closes_the_generator(uri, thing, server, method):
    async def main():
        async with AsyncProxy(uri) as proxy:
            async for number in getattr(proxy, method)(1_000):
                if number == 5:
                    break
            await acquired(thing.ended)
            assert thing.drawn < 6 + 2 * AHEAD
            await eventually(lambda: not server.statistics()["streams"])
            assert await proxy.add(1, 1) == 2

    run(main())


@pytest.mark.parametrize("method", ["numbers", "numbers_async"])
def test_a_stream_that_is_dropped_closes_the_generator(uri, thing, server, method):
    async def main():
        async with AsyncProxy(uri) as proxy:
            stream = await getattr(proxy, method)(1_000)
            await anext(stream)
            del stream
            gc.collect()
            await acquired(thing.ended)
            await eventually(lambda: not server.statistics()["streams"])

    run(main())


def test_an_item_that_cannot_be_sent_ends_the_stream_on_both_sides(uri, thing, server):
    async def main():
        async with AsyncProxy(uri) as proxy:
            stream = await proxy.bad_items()
            assert await anext(stream) == 1
            with pytest.raises(errors.SerializeError):
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await acquired(thing.ended)
            await eventually(lambda: not server.statistics()["streams"])

    run(main())


def test_many_streams_at_once_stay_within_what_the_server_takes(uri, monkeypatch):
    """Items asked for ahead count among the calls in flight."""
    monkeypatch.setattr(multiplexed, "IN_FLIGHT_MAX", 40)

    async def main():
        async with AsyncProxy(uri) as proxy:

            async def take():
                return [n async for n in proxy.numbers(40)]

            assert await asyncio.gather(*[take() for _ in range(30)]) == [list(range(40))] * 30

    run(main())


def test_the_time_of_an_item_is_bounded(uri, thing):
    @expose
    class Slow:
        def items(self):
            yield 1
            thing.go.wait(BOUND_S)
            yield 2

    async def main():
        with ObjectServer() as second:
            async with AsyncProxy(second.register(Slow, "slow"), timeout_s=0.2) as proxy:
                stream = await proxy.items()
                assert await anext(stream) == 1
                with pytest.raises(errors.CallTimeout, match="no item"):
                    await anext(stream)
                thing.go.set()

    run(main())


# -- loops -------------------------------------------------------------------------------------------


def test_one_loop_after_the_other(uri):
    proxy = AsyncProxy(uri)

    async def main():
        return await proxy.add(1, 2)

    assert [run(main()), run(main())] == [3, 3]
    run(proxy.release())


def test_to_release_on_a_second_loop_is_no_error(uri):
    proxy = AsyncProxy(uri)

    async def main():
        return await proxy.add(1, 2)

    run(main())
    run(proxy.release())
    assert run(main()) == 3


def test_two_loops_at_once_are_a_clear_error(uri):
    async def main():
        async with AsyncProxy(uri) as proxy:
            assert await proxy.add(1, 1) == 2

            async def elsewhere():
                return await proxy.add(1, 1)

            with pytest.raises(RuntimeError, match="belongs to the event loop that used it first"):
                await asyncio.to_thread(asyncio.run, elsewhere())
            assert await proxy.add(1, 1) == 2

    run(main())


def test_dropping_the_proxy_closes_its_socket(uri, server):
    async def main():
        proxy = AsyncProxy(uri)
        await proxy.add(1, 1)
        assert server.statistics()["connections"] == 1
        del proxy
        await eventually(lambda: not server.statistics()["connections"])

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_releasing_while_it_connects_is_a_clear_error(uri):
    async def main():
        proxy = AsyncProxy(uri)
        task = asyncio.create_task(proxy.invoke("add", 1, 1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await proxy.release()
        with pytest.raises(errors.ConnectFailed, match="released while it was connecting"):
            await task
        assert await proxy.add(1, 1) == 2
        await proxy.release()

    run(main())


def test_nothing_is_begun_for_a_program_that_gives_nothing_away(uri):
    """The home of objects, and its thread, begin with the first object."""
    from objserver.client.home import home

    before = dict(home.__dict__)
    home.__dict__.pop("adapter", None)

    async def main():
        async with AsyncProxy(uri) as proxy:
            assert await proxy.add(1, 1) == 2

    try:
        run(main())
        assert "adapter" not in home.__dict__
    finally:
        home.__dict__.update(before)


# -- stock daemons -----------------------------------------------------------------------------------


def test_a_stock_daemon_answers_in_order(stock):
    async def main():
        async with AsyncProxy(stock.uri) as proxy:
            results = await asyncio.gather(*[proxy.invoke("add", n, 1) for n in range(200)])
            assert results == [n + 1 for n in range(200)]
            assert stock.calls == [(n, 1) for n in range(200)]
            with pytest.raises(ValueError, match="boom"):
                await proxy.boom()
            await proxy.note("x")
            assert await proxy.add(0, 0) == 0
            assert [n async for n in proxy.numbers(40)] == list(range(40))

    run(main())


class Unheard:
    """A stock daemon has no such class, and hangs up on whoever sends one."""

    def __init__(self):
        self.text = ""


def test_a_stock_daemon_that_hangs_up_after_an_error_does_not_cost_the_next_call(stock):
    async def main():
        async with AsyncProxy(stock.uri) as proxy:
            for n in range(5):
                with pytest.raises(Pyro5.errors.PyroError, match="nsupported serialized class"):
                    await proxy.add(Unheard(), 1)
                assert await proxy.add(n, 1) == n + 1

    run(main())


def test_a_stock_daemon_cannot_be_cancelled_but_nothing_is_mixed_up(stock):
    async def main():
        async with AsyncProxy(stock.uri) as proxy:
            await proxy.add(0, 0)
            waiting = asyncio.create_task(proxy.invoke("wait"))
            behind = asyncio.create_task(proxy.invoke("add", 5, 5))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(errors.CallTimeout):
                await proxy.calling(timeout_s=0.05).add(7, 7)
            stock.go.set()
            assert await behind == 10
            assert await proxy.add(1, 1) == 2

    run(main())


def test_a_stream_of_a_stock_daemon_is_left_in_the_middle(stock):
    async def main():
        async with AsyncProxy(stock.uri) as proxy:
            async with contextlib.aclosing(await proxy.numbers(1_000)) as stream:
                assert await anext(stream) == 0
            assert await proxy.add(1, 1) == 2

    run(main())


def test_the_bound_of_calls_in_flight_is_half_of_what_a_server_takes():
    from objserver import ServerSettings

    assert ServerSettings().calls_per_connection_max >= 2 * IN_FLIGHT_MAX
    assert ServerSettings().mailbox_size_max >= 2 * IN_FLIGHT_MAX
