"""A connection of many calls, with a server that is told what to say: twice, out of turn, nonsense too."""

import asyncio
import threading

import pytest

from objserver import AsyncProxy, errors, expose
from objserver.client import multiplexed
from objserver.client.background import multiplex
from objserver.client.home import home
from objserver.codecs import Codecs
from objserver.settings import Limits
from objserver.wire import CallContext, Flag, FrameParser, FrameType, encode_frame
from objserver.wire.extension import ANNOTATION

BOUND_S = 10
CODECS = Codecs(Limits())
CODEC = CODECS.native
META = {"methods": {"add", "wait"}, "oneway": {"note"}, "attrs": set()}


def result(number, value, flags=0, kind=FrameType.RESULT, annotations=None):
    payload = CODEC.encode(value)
    return encode_frame(kind, CODEC.serializer_id, flags, number, payload, annotations)


def call(number, object_id, method, *args, flags=0, annotations=None):
    payload = CODEC.encode_call(object_id, method, args, {})
    return encode_frame(FrameType.INVOKE, CODEC.serializer_id, flags, number, payload, annotations)


class Server:
    """Greets, and then is the test's."""

    def __init__(self, native=True, greets=True):
        self.native, self.greets = native, greets
        self.connections = 0
        self.closed = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.uri = f"PYRO:thing@127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._frames = asyncio.Queue()
        return self

    async def leave(self):
        self._server.close()
        self.writer.close()

    async def __aexit__(self, *_):
        self._server.close()
        if self.connections:
            self.writer.close()

    async def _serve(self, reader, self_writer):
        self.connections += 1
        self.writer, parser = self_writer, FrameParser(Limits())
        while data := await reader.read(1 << 16):
            for frame in parser.receive_data(data):
                if frame.type == FrameType.CONNECT:
                    if self.greets:
                        answer = {"handshake": "hello", "meta": META}
                        if self.native:
                            answer["objserver"] = {"version": 1, "frame_size_max": 1000}
                        serpent = CODECS.serpent
                        self.say(
                            encode_frame(
                                FrameType.CONNECT_OK, serpent.serializer_id, 0, 0, serpent.encode(answer)
                            )
                        )
                else:
                    self._frames.put_nowait(frame)
        self.closed.set()

    def say(self, *frames):
        self.writer.write(b"".join(frames))

    async def heard(self):
        async with asyncio.timeout(BOUND_S):
            return await self._frames.get()


def run(main):
    async def bounded():
        async with asyncio.timeout(BOUND_S * 3):
            await main()

    asyncio.run(bounded())


def calls(proxy, count):
    return [asyncio.create_task(proxy.invoke("add", n, 0)) for n in range(count)]


def test_requests_of_one_turn_leave_in_one_piece_and_answers_come_in_any_order():
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            tasks = calls(proxy, 3)
            numbers = [(await server.heard()).sequence for _ in tasks]
            assert numbers == [1, 2, 3]
            server.say(result(3, "c"), result(1, "a"), result(2, "b"))
            assert await asyncio.gather(*tasks) == ["a", "b", "c"]

    run(main)


def test_answers_that_come_byte_by_byte():
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            tasks = calls(proxy, 2)
            for _ in tasks:
                await server.heard()
            for byte in result(2, "b") + result(1, "a"):
                server.say(bytes([byte]))
                await server.writer.drain()
            assert await asyncio.gather(*tasks) == ["a", "b"]

    run(main)


@pytest.mark.parametrize(
    "said",
    [
        [result(1, "a"), result(1, "a again")],
        [result(9, "nobody asked")],
        [result(0, "no request")],
        [b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(40)],
        [encode_frame(77, CODEC.serializer_id, 0, 2, b"")],
        [encode_frame(FrameType.CONNECT_OK, CODEC.serializer_id, 0, 2, b"")],
        [call(1, "x", "y", annotations={ANNOTATION: b"\xc1"})],
    ],
    ids=["twice", "unasked", "zero", "http", "type", "greeting", "context"],
)
def test_a_server_out_of_step_ends_the_connection_and_every_call(said):
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            tasks = calls(proxy, 3)
            for _ in tasks:
                await server.heard()
            server.say(*said)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, errors.ProtocolError) for outcome in outcomes[1:])
            async with asyncio.timeout(BOUND_S):
                await server.closed.wait()
            again = asyncio.create_task(proxy.invoke("add", 1, 1))
            frame = await server.heard()
            server.say(result(frame.sequence, "new"))
            assert await again == "new"
            assert server.connections == 2

    run(main)


@pytest.mark.parametrize(
    "error", [errors.ProtocolError("cannot read it"), StopIteration("odd"), ValueError("odd")]
)
def test_an_error_of_no_request_is_what_ends_the_calls(error):
    """A future takes no StopIteration: it must not leave anybody waiting."""

    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            tasks = calls(proxy, 2)
            for _ in tasks:
                await server.heard()
            server.say(result(0, error, Flag.EXCEPTION))
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            expected = errors.ProtocolError if isinstance(error, StopIteration) else type(error)
            assert [type(outcome) for outcome in outcomes] == [expected] * 2

    run(main)


def test_a_result_that_is_no_value_is_one_calls_error():
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            tasks = calls(proxy, 2)
            for _ in tasks:
                await server.heard()
            server.say(encode_frame(FrameType.RESULT, CODEC.serializer_id, 0, 1, b"\xc1"), result(2, "fine"))
            first, second = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(first, errors.SerializeError)
            assert second == "fine"

    run(main)


def test_a_cancelled_call_is_told_to_the_server_and_keeps_its_number():
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            (task,) = calls(proxy, 1)
            first = await server.heard()
            task.cancel()
            told = await server.heard()
            assert (told.type, told.sequence) == (FrameType.CANCEL, first.sequence)
            connection = proxy._objserver_stub.pool.live
            assert len(connection.calls) == 1
            server.say(result(first.sequence, "late"))
            (task,) = calls(proxy, 1)
            second = await server.heard()
            assert len(connection.calls) == 1
            server.say(result(second.sequence, "in time"))
            assert await task == "in time"

    run(main)


def test_a_stock_server_is_not_told():
    async def main():
        async with Server(native=False) as server, AsyncProxy(server.uri) as proxy:
            tasks = calls(proxy, 2)
            first = await server.heard()
            tasks[0].cancel()
            second = await server.heard()
            assert [first.type, second.type] == [FrameType.INVOKE] * 2
            serpent = CODECS.serpent
            for number in (1, 2):
                payload = serpent.encode(number)
                server.say(encode_frame(FrameType.RESULT, serpent.serializer_id, 0, number, payload))
            assert await tasks[1] == 2

    run(main)


def test_a_request_that_is_too_large_is_not_sent_and_takes_no_number():
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            with pytest.raises(errors.MessageTooLarge, match="frame_size_max"):
                await proxy.add(bytes(2000), 0)
            with pytest.raises(errors.ProtocolError, match="four ASCII"):
                await proxy.calling(annotations={"TOO LONG": b""}).add(1, 1)
            assert len(proxy._objserver_stub.pool.live.calls) == 0

    run(main)


def test_a_server_that_goes_silent_in_the_handshake():
    async def main():
        async with Server(greets=False) as server:
            with pytest.raises(errors.ConnectFailed, match="did not answer the handshake"):
                await AsyncProxy(server.uri, timeout_s=0.1).add(1, 1)

    run(main)


def test_a_server_that_hangs_up_in_the_handshake():
    async def main():
        async def hang_up(reader, writer):
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(errors.ConnectFailed, match="closed the connection during the handshake"):
            await AsyncProxy(f"PYRO:thing@127.0.0.1:{port}").add(1, 1)
        server.close()

    run(main)


def test_more_calls_than_may_fly_wait_here(monkeypatch):
    monkeypatch.setattr(multiplexed, "IN_FLIGHT_MAX", 3)

    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            tasks = calls(proxy, 10)
            heard = [(await server.heard()).sequence for _ in range(3)]
            for answered in range(10):
                assert server._frames.empty()
                assert len(proxy._objserver_stub.pool.live.calls) == len(heard)
                server.say(result(heard.pop(0), "x"))
                if answered < 7:
                    heard.append((await server.heard()).sequence)
                else:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    while len(proxy._objserver_stub.pool.live.calls) > len(heard):
                        await asyncio.sleep(0)
            assert await asyncio.gather(*tasks) == ["x"] * 10

    run(main)


def test_who_waits_for_a_place_when_the_connection_breaks_is_told(monkeypatch):
    monkeypatch.setattr(multiplexed, "IN_FLIGHT_MAX", 1)

    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            await multiplex(proxy._objserver_stub.pool, None)
            tasks = calls(proxy, 3)
            await server.heard()
            await server.leave()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(outcomes[0], errors.ConnectionLost)
            # What was not sent is sent once more, for which there is no server any more.
            assert all(isinstance(outcome, errors.ConnectFailed) for outcome in outcomes[1:])

    run(main)


def test_a_server_that_does_not_read_stops_the_callers():
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            connection = await multiplex(proxy._objserver_stub.pool, None)
            connection.pause_writing()
            (task,) = calls(proxy, 1)
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(connection.calls) == 0
            connection.resume_writing()
            frame = await server.heard()
            server.say(result(frame.sequence, "at last"))
            assert await task == "at last"

    run(main)


# -- being called ------------------------------------------------------------------------------------


@expose
class Listener:
    def __init__(self):
        self.go, self.began = threading.Event(), threading.Semaphore(0)

    def heard(self, value):
        return value

    def wait(self):
        self.began.release()
        assert self.go.wait(BOUND_S)


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.go.set()


def object_id(listener):
    return home.export(listener).object_id


def test_a_server_calls(listener):
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            await multiplex(proxy._objserver_stub.pool, None)
            server.say(call(7, object_id(listener), "heard", 5), call(8, "~unknown", "heard"))
            answers = {}
            for _ in range(2):
                frame = await server.heard()
                assert frame.type == FrameType.RESULT
                answers[frame.sequence] = CODEC.decode(frame.payload)
            assert answers[7] == 5
            assert isinstance(answers[8], errors.ObjectNotFound)

    run(main)


def test_what_cannot_be_read_is_answered_and_the_connection_lives(listener):
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            await multiplex(proxy._objserver_stub.pool, None)
            server.say(encode_frame(FrameType.INVOKE, CODEC.serializer_id, 0, 7, b"\xc1"))
            frame = await server.heard()
            assert frame.sequence == 7
            assert isinstance(CODEC.decode(frame.payload), errors.SerializeError)
            server.say(encode_frame(FrameType.INVOKE, CODEC.serializer_id, Flag.ONEWAY, 0, b"\xc1"))
            server.say(encode_frame(FrameType.CANCEL, CODEC.serializer_id, 0, 99, b""))
            server.say(call(8, object_id(listener), "heard", 1))
            assert (await server.heard()).sequence == 8

    run(main)


def test_a_call_whose_time_is_up_is_not_begun(listener):
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            await multiplex(proxy._objserver_stub.pool, None)
            context = {ANNOTATION: CallContext(0.0, ()).encode()}
            server.say(call(7, object_id(listener), "heard", 1, annotations=context))
            assert isinstance(CODEC.decode((await server.heard()).payload), errors.DeadlineExceeded)

    run(main)


def test_more_calls_than_the_client_bears_are_refused(listener, monkeypatch):
    monkeypatch.setattr(multiplexed, "CALLED_MAX", 2)

    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            connection = await multiplex(proxy._objserver_stub.pool, None)
            name = object_id(listener)
            server.say(*[call(number, name, "wait") for number in (1, 2, 3)])
            frame = await server.heard()
            assert frame.sequence == 3
            assert isinstance(CODEC.decode(frame.payload), errors.ServerBusy)
            listener.go.set()
            assert {(await server.heard()).sequence for _ in range(2)} == {1, 2}
            assert not connection._called

    run(main)


def test_a_call_that_waits_for_its_turn_can_be_cancelled(listener):
    async def main():
        async with Server() as server, AsyncProxy(server.uri) as proxy:
            await multiplex(proxy._objserver_stub.pool, None)
            name = object_id(listener)
            server.say(call(1, name, "wait"))
            assert await asyncio.to_thread(listener.began.acquire, timeout=BOUND_S)
            server.say(
                call(2, name, "heard", 1), encode_frame(FrameType.CANCEL, CODEC.serializer_id, 0, 2, b"")
            )
            frame = await server.heard()
            assert frame.sequence == 2
            assert isinstance(CODEC.decode(frame.payload), errors.Cancelled)
            listener.go.set()
            assert (await server.heard()).sequence == 1

    run(main)
