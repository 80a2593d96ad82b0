"""Interceptors: around every call, on either side."""

import asyncio
import contextlib
import threading
from contextvars import ContextVar

import pytest

from objserver import AsyncProxy, Concurrent, ObjectServer, Persistent, Proxy, current, expose, oneway

BOUND_S = 10
inside: ContextVar[str] = ContextVar("inside", default="nothing")


class Recorder:
    """Notes what passes; refuses what is called `forbidden`."""

    def __init__(self, name="r"):
        self.seen, self.name, self.left = [], name, threading.Semaphore(0)

    @contextlib.contextmanager
    def __call__(self, call):
        self.seen.append((self.name, "enter", call.object_id, call.method, call.args, call.kwargs))
        token = inside.set(call.method)
        if call.method == "forbidden":
            raise PermissionError("not allowed")
        try:
            yield
            self.seen.append((self.name, "leave"))
        except Exception as problem:
            self.seen.append((self.name, type(problem).__name__))
            raise
        finally:
            inside.reset(token)
            self.left.release()

    def events(self):
        return [event[1] for event in self.seen]


@expose
class Thing:
    def __init__(self):
        self.called = False

    def add(self, a, b):
        return a + b

    async def add_async(self, a, b):
        await asyncio.sleep(0)
        return a + b

    def boom(self):
        raise ValueError("boom")

    async def boom_async(self):
        raise ValueError("boom")

    def forbidden(self):
        self.called = True

    def where(self):
        return inside.get()

    async def where_async(self):
        await asyncio.sleep(0)
        return inside.get()

    def token(self):
        return current.annotations.get("TOKN")

    def was_called(self):
        return self.called

    @oneway
    def note(self):
        self.called = True

    def numbers(self):
        yield from range(3)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def server(recorder):
    with ObjectServer(interceptors=[recorder]) as server:
        server.register(Thing, "thing", threading=Concurrent())
        yield server


@pytest.fixture
def plain():
    with ObjectServer() as server:
        yield Proxy(server.register(Thing, "thing"))


def proxy_of(server, **options):
    return Proxy(f"PYRO:thing@{server.address}", **options)


@pytest.mark.parametrize("method", ["add", "add_async"])
def test_a_server_sees_every_call(server, recorder, method):
    assert getattr(proxy_of(server), method)(1, b=2) == 3
    assert recorder.seen == [("r", "enter", "thing", method, (1,), {"b": 2}), ("r", "leave")]


@pytest.mark.parametrize("method", ["boom", "boom_async"])
def test_a_server_sees_the_error(server, recorder, method):
    with pytest.raises(ValueError, match="boom"):
        getattr(proxy_of(server), method)()
    assert recorder.events() == ["enter", "ValueError"]


def test_a_server_refuses(server, recorder):
    proxy = proxy_of(server)
    with pytest.raises(PermissionError, match="not allowed"):
        proxy.forbidden()
    assert not proxy.was_called()


@pytest.mark.parametrize("method", ["where", "where_async"])
def test_what_an_interceptor_sets_the_servant_sees(server, method):
    assert getattr(proxy_of(server), method)() == method


def test_each_call_of_a_batch_is_seen(server, recorder):
    with proxy_of(server).batch() as batch:
        batch.add(1, 1)
        batch.add_async(2, 2)
        batch.forbidden()
        batch.add(3, 3)
    results = batch.results()
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(PermissionError):
        next(results)
    assert [event[3] for event in recorder.seen if event[1] == "enter"] == ["add", "add_async", "forbidden"]


def test_a_oneway_call_is_seen(server, recorder):
    proxy = proxy_of(server)
    proxy.note()
    assert recorder.left.acquire(timeout=BOUND_S)
    assert proxy.was_called()


def test_streams_and_attributes_pass(server):
    assert list(proxy_of(server).numbers()) == [0, 1, 2]


def test_the_first_is_the_outermost():
    seen = []

    def named(name):
        @contextlib.contextmanager
        def interceptor(call):
            seen.append(name)
            yield
            seen.append(f"{name} left")

        return interceptor

    with ObjectServer(interceptors=[named("a"), named("b")]) as server:
        server.register(Thing, "thing")
        assert proxy_of(server, interceptors=[named("c"), named("d")]).add(1, 1) == 2
    assert seen == ["c", "d", "a", "b", "b left", "a left", "d left", "c left"]


def test_a_persistent_object_is_seen_too(recorder, tmp_path):
    with ObjectServer(store=f"sqlite:///{tmp_path}/x.db", interceptors=[recorder]) as server:
        server.register(Thing, "thing", activation=Persistent())
        assert Proxy(f"PYRO:thing/a@{server.address}").add(1, 1) == 2
    assert recorder.events() == 2 * ["enter", "leave"]  # before the call, the client opens its session


def test_a_proxy_puts_them_around_its_calls(plain):
    recorder = Recorder()
    proxy = Proxy(str(plain), interceptors=[recorder])
    assert proxy.add(1, 2) == 3
    with pytest.raises(ValueError, match="boom"):
        proxy.calling(timeout_s=5).boom()
    with pytest.raises(PermissionError):
        proxy.forbidden()
    assert not plain.was_called()
    assert recorder.events() == ["enter", "leave", "enter", "ValueError", "enter"]


def test_an_interceptor_of_a_proxy_adds_annotations(plain):
    @contextlib.contextmanager
    def sign(call):
        call.annotations["TOKN"] = b"secret"
        yield

    assert Proxy(str(plain), interceptors=[sign]).token() == b"secret"
    assert Proxy(str(plain), interceptors=[sign]).future.token().result(BOUND_S) == b"secret"

    async def main():
        async with AsyncProxy(str(plain), interceptors=[sign]) as proxy:
            return await proxy.token()

    assert asyncio.run(main()) == b"secret"
    assert plain.token() is None


def test_an_async_proxy_enters_and_leaves(plain):
    recorder = Recorder()

    async def main():
        async with AsyncProxy(str(plain), interceptors=[recorder]) as proxy:
            assert await proxy.add(1, 2) == 3
            with pytest.raises(ValueError, match="boom"):
                await proxy.boom()
            with pytest.raises(PermissionError):
                await proxy.forbidden()

    asyncio.run(main())
    assert recorder.events() == ["enter", "leave", "enter", "ValueError", "enter"]


def test_a_refused_promise_is_told_at_once(plain):
    proxy = Proxy(str(plain), interceptors=[Recorder()])
    with pytest.raises(PermissionError):
        proxy.future.forbidden()
