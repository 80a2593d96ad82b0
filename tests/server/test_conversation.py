"""Many calls on one connection, spoken frame by frame to a real server: every request gets one reply."""

import socket
import threading

import ormsgpack
import pytest

from objserver import Concurrent, ObjectServer, Serial, ServerSettings, current, errors, expose, oneway
from objserver.codecs import Codecs
from objserver.references import Location, Reference
from objserver.settings import Limits
from objserver.testing.clock import ManualClock
from objserver.wire import Flag, FrameParser, FrameType, Promises, encode_frame
from objserver.wire.extension import PROMISES

BOUND_S = 10
CODEC = Codecs(Limits(), export=lambda value: value if type(value) is Reference else None).native


class Raw:
    """A client that says what it is told, and keeps all it hears."""

    def __init__(self, server, *, multiplexed=True, client="raw"):
        host, port = server.address.split(":")
        self.sock = socket.create_connection((host, int(port)), BOUND_S)
        self.parser = FrameParser(Limits())
        self.frames = []
        greeting = {"version": 1, "session": client, "client": client, "multiplexed": multiplexed}
        data = {"handshake": "hello", "object": "Pyro.Daemon", "objserver": greeting}
        serpent = Codecs(Limits()).serpent
        self.sock.sendall(encode_frame(FrameType.CONNECT, serpent.serializer_id, 0, 0, serpent.encode(data)))
        assert self.next().type == FrameType.CONNECT_OK

    def next(self):
        """The next frame; questions what an object of ours offers are answered on the way."""
        while True:
            while not self.frames:
                data = self.sock.recv(1 << 16)
                if not data:
                    raise EOFError
                self.frames += self.parser.receive_data(data)
            frame = self.frames.pop(0)
            if frame.type != FrameType.INVOKE or CODEC.decode_call(frame.payload)[1] != "get_metadata":
                return frame
            self.answer(frame, {"methods": {"heard"}, "oneway": set(), "attrs": set()})

    @staticmethod
    def request(number, object_id, method, *args, flags=0, promises=None, annotations=None, **kwargs):
        annotations = dict(annotations or {})
        if promises is not None:
            annotations[PROMISES] = promises if type(promises) is bytes else promises.encode()
        payload = CODEC.encode_call(object_id, method, args, kwargs)
        return encode_frame(FrameType.INVOKE, CODEC.serializer_id, flags, number, payload, annotations)

    def send(self, *args, **kwargs):
        self.sock.sendall(self.request(*args, **kwargs))

    def cancel(self, number):
        self.sock.sendall(encode_frame(FrameType.CANCEL, CODEC.serializer_id, 0, number, b""))

    def answer(self, frame, value, number=None):
        number = frame.sequence if number is None else number
        payload = CODEC.encode(value)
        self.sock.sendall(encode_frame(FrameType.RESULT, CODEC.serializer_id, 0, number, payload))

    def reply(self):
        """Number and value of the next reply."""
        frame = self.next()
        assert frame.type == FrameType.RESULT
        return frame.sequence, CODEC.decode(frame.payload)

    def replies(self, count):
        found = dict(self.reply() for _ in range(count))
        assert len(found) == count
        return found

    def call(self, *args, **kwargs):
        """A call that nothing else is under way beside."""
        self.send(999, *args, **kwargs)
        number, value = self.reply()
        assert number == 999
        return value

    def ends(self):
        """Read on until the server closes; what it said before."""
        said = []
        try:
            while True:
                said.append(self.next())
        except EOFError:
            return said

    def close(self):
        self.sock.close()


@expose
class Child:
    def __init__(self, number):
        self.number = number

    def get(self):
        return self.number

    def child(self, more):
        return Child(self.number + more)


@expose
class Thing:
    def __init__(self):
        self.go = threading.Event()
        self.began = threading.Semaphore(0)
        self.ended = threading.Event()
        self.seen = []
        self.items = [1, 2]

    def wait(self, value=None):
        self.began.release()
        assert self.go.wait(BOUND_S)
        return value

    def wait_cancelled(self):
        """Until it is told; no other way out."""
        told = threading.Event()
        facts = current._facts()
        facts.when_cancelled(told.set)
        self.began.release()
        assert told.wait(BOUND_S)
        self.ended.set()
        return "cancelled" if current.cancelled else "not"

    def echo(self, *args, **kwargs):
        self.seen.append(args)
        return [*args, kwargs] if kwargs else list(args)

    def boom(self):
        raise ValueError("boom")

    def wait_boom(self):
        self.wait()
        raise ValueError("late boom")

    def child(self, number):
        return Child(number)

    def own(self):
        return self.items

    def spoil(self, items):
        items.append("spoilt")
        return items

    def stream(self):
        yield from range(3)

    async def stream_async(self):
        for number in range(3):
            yield number

    def call_back(self, listener, *args):
        return listener.heard(*args)

    def call_back_and_tell(self, listener):
        try:
            listener.heard()
        except errors.ConnectionLost as problem:
            self.seen.append(problem)
            self.ended.set()

    @oneway
    def note(self, value):
        self.seen.append(value)
        self.ended.set()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def settings():
    return ServerSettings(calls_per_connection_max=20, kept_results_max=5, callbacks_per_connection_max=3)


@pytest.fixture
def thing():
    thing = Thing()
    yield thing
    thing.go.set()


@pytest.fixture
def server(thing, settings):
    with ObjectServer(settings=settings) as server:
        server.register(thing, "thing", threading=Concurrent())
        server.register(Thing, "serial", threading=Serial())
        yield server
        thing.go.set()


@pytest.fixture
def raw(server):
    raw = Raw(server)
    yield raw
    raw.close()


def eventually(ask, wanted):
    """Until `ask()` is `wanted`: the pause is how often we look, not what we rely on."""
    pause = threading.Event()
    for _ in range(BOUND_S * 500):
        if ask() == wanted:
            return
        pause.wait(0.002)
    assert ask() == wanted


def figures(server):
    names = "calls_in_flight", "kept_results", "callbacks_waiting", "busy_objects"
    statistics = server.statistics()
    return {name: statistics[name] for name in names if statistics[name]}


# -- in any order ------------------------------------------------------------------------------------


def test_a_later_call_overtakes_an_earlier_one(raw, thing, server):
    raw.send(1, "thing", "wait", "slow")
    raw.send(2, "thing", "echo", "fast")
    assert raw.reply() == (2, ["fast"])
    assert server.statistics()["calls_in_flight"] == 1
    thing.go.set()
    assert raw.reply() == (1, "slow")
    eventually(lambda: figures(server), {})


def test_a_burst_gets_a_reply_each(raw):
    raw.sock.sendall(b"".join(raw.request(n, "thing", "echo", n) for n in range(1, 20)))
    assert raw.replies(19) == {n: [n] for n in range(1, 20)}


def test_replies_do_not_wait_for_a_slow_servant_of_the_same_burst(raw, thing):
    raw.sock.sendall(
        raw.request(1, "thing", "echo", 1)
        + raw.request(2, "thing", "wait")
        + raw.request(3, "thing", "echo", 3)
    )
    assert set(raw.replies(2)) == {1, 3}
    thing.go.set()
    assert raw.reply() == (2, None)


def test_what_was_answered_in_a_burst_is_not_lost_to_a_refusal(raw, server):
    """The error, and the replies before it, leave before the connection is half closed."""
    bad = encode_frame(77, CODEC.serializer_id, 0, 3, b"")
    raw.sock.sendall(raw.request(1, "nowhere", "x") + raw.request(2, "nowhere", "x") + bad)
    said = [CODEC.decode(frame.payload) for frame in raw.ends() if frame.serializer_id == CODEC.serializer_id]
    assert [type(value) for value in said[:2]] == [errors.ObjectNotFound] * 2


def test_a_burst_that_ends_in_nonsense_is_told_why(raw):
    raw.sock.sendall(raw.request(1, "thing", "echo", 1) + encode_frame(77, 1, 0, 3, b""))
    last = raw.ends()[-1]
    assert last.flags & Flag.EXCEPTION
    assert "type 77" in str(Codecs(Limits()).get(last.serializer_id).decode(last.payload))


def test_a_number_in_use_is_refused_and_the_first_call_goes_on(raw, thing):
    raw.send(1, "thing", "wait", "first")
    assert thing.began.acquire(timeout=BOUND_S)
    raw.send(1, "thing", "echo")
    number, problem = raw.reply()
    assert number == 1
    assert isinstance(problem, errors.ProtocolError)
    assert "in flight already" in str(problem)
    thing.go.set()
    assert raw.reply() == (1, "first")
    raw.send(1, "thing", "echo", "again")
    assert raw.reply() == (1, ["again"])


def test_one_call_too_many_is_refused(raw, thing, server):
    for number in range(1, 21):
        raw.send(number, "thing", "wait")
        assert thing.began.acquire(timeout=BOUND_S)
    raw.send(21, "thing", "echo")
    number, problem = raw.reply()
    assert number == 21
    assert isinstance(problem, errors.ServerBusy)
    thing.go.set()
    assert set(raw.replies(20)) == set(range(1, 21))
    assert raw.call("thing", "echo", 1) == [1]


def test_a_bad_request_takes_no_number(raw, server):
    raw.sock.sendall(encode_frame(FrameType.INVOKE, CODEC.serializer_id, 0, 5, b"\xc1"))
    number, problem = raw.reply()
    assert number == 5
    assert isinstance(problem, errors.SerializeError)
    assert figures(server) == {}
    raw.send(5, "thing", "echo", 1)
    assert raw.reply() == (5, [1])


def test_oneway_calls_get_no_reply_and_take_no_number(raw, thing, server):
    raw.send(0, "thing", "note", 5, flags=Flag.ONEWAY)
    assert thing.ended.wait(BOUND_S)
    assert thing.seen == [5]
    assert raw.call("thing", "echo") == []


# -- cancel ------------------------------------------------------------------------------------------


def test_a_cancelled_call_that_runs_is_told_and_still_answers(raw, thing, server):
    raw.send(1, "thing", "wait_cancelled")
    assert thing.began.acquire(timeout=BOUND_S)
    raw.cancel(1)
    assert raw.reply() == (1, "cancelled")
    eventually(lambda: figures(server), {})


def test_a_cancelled_call_that_waits_is_not_begun(raw, thing, server):
    server.register(thing, "one", threading=Serial())
    raw.send(1, "one", "wait")
    assert thing.began.acquire(timeout=BOUND_S)
    raw.send(2, "one", "echo", "never")
    raw.send(3, "one", "echo", "later")
    raw.cancel(2)
    number, problem = raw.reply()
    assert number == 2
    assert isinstance(problem, errors.Cancelled)
    thing.go.set()
    assert raw.replies(2) == {1: None, 3: ["later"]}
    assert thing.seen == [("later",)]


def draw(raw, number, stream_id):
    raw.send(number, "Pyro.Daemon", "get_next_stream_item", stream_id)


@pytest.mark.parametrize("method", ["stream", "stream_async"])
def test_a_draw_that_waits_can_be_cancelled_and_the_next_one_is_drawn(raw, thing, server, method):
    server.register(thing, "one", threading=Serial())
    raw.send(1, "one", method)
    stream_id = raw.next().annotations["STRM"].decode()
    raw.send(2, "one", "wait")
    assert thing.began.acquire(timeout=BOUND_S)
    for number in (3, 4, 5):
        draw(raw, number, stream_id)
    for number in (3, 5):
        raw.cancel(number)
    number, problem = raw.reply()
    assert number == 3
    assert isinstance(problem, errors.Cancelled)
    thing.go.set()
    found = raw.replies(3)
    assert found[4] == 0
    assert isinstance(found[5], errors.Cancelled)
    draw(raw, 6, stream_id)
    assert raw.reply() == (6, 1)


def test_a_call_that_waits_for_a_result_can_be_cancelled(raw, thing, server):
    raw.send(1, "thing", "wait", "x", flags=Flag.KEEP)
    raw.send(2, "thing", "echo", None, promises=Promises(None, {0: 1}))
    raw.cancel(2)
    number, problem = raw.reply()
    assert number == 2
    assert isinstance(problem, errors.Cancelled)
    thing.go.set()
    assert raw.reply() == (1, "x")
    assert raw.call("thing", "echo") == []
    assert thing.seen == [()]
    eventually(lambda: figures(server), {"kept_results": 1})


def test_who_cancels_and_asks_again_leaves_nothing(raw, thing, server):
    """A list of those who wait for a slow call must not grow with each that gave up."""
    raw.send(1, "thing", "wait", "x", flags=Flag.KEEP)
    for _ in range(50):
        raw.send(2, "thing", "echo", None, promises=Promises(None, {0: 1}))
        raw.cancel(2)
        assert isinstance(raw.reply()[1], errors.Cancelled)
    (connection,) = server.poller.connections.values()
    assert [len(waiting) for waiting in connection.conversation._postponed.values()] == [0]


def test_late_unknown_and_repeated_cancels_are_passed_over(raw):
    for number in (0, 1, 5, 0xFFFF):
        raw.cancel(number)
    assert raw.call("thing", "echo", 1) == [1]
    raw.cancel(999)
    raw.cancel(999)
    assert raw.call("thing", "echo", 2) == [2]


def test_a_stock_client_sends_no_cancel(server):
    host, port = server.address.split(":")
    raw = object.__new__(Raw)
    raw.sock, raw.parser, raw.frames = (
        socket.create_connection((host, int(port)), BOUND_S),
        FrameParser(Limits()),
        [],
    )
    serpent = Codecs(Limits()).serpent
    data = serpent.encode({"handshake": "hello", "object": "Pyro.Daemon"})
    raw.sock.sendall(encode_frame(FrameType.CONNECT, serpent.serializer_id, 0, 0, data))
    raw.next()
    raw.cancel(1)
    assert raw.ends()[-1].flags & Flag.EXCEPTION
    raw.close()


# -- results of other requests -----------------------------------------------------------------------


def test_a_chain_of_calls_travels_at_once(raw, thing):
    raw.sock.sendall(
        raw.request(1, "thing", "child", 5, flags=Flag.KEEP)
        + raw.request(2, "thing", "child", 6, flags=Flag.KEEP, promises=Promises(1))
        + raw.request(3, "thing", "get", flags=Flag.KEEP, promises=Promises(2))
        + raw.request(4, "thing", "echo", None, 0, promises=Promises(None, {0: 3, "name": 3}))
    )
    found = raw.replies(4)
    assert found[3] == 11
    assert found[4] == [11, 0, {"name": 11}]


def test_a_result_is_kept_for_calls_that_come_later(raw, server):
    raw.send(1, "thing", "echo", 7, flags=Flag.KEEP)
    assert raw.reply() == (1, [7])
    raw.send(2, "thing", "echo", None, promises=Promises(None, {0: 1}))
    assert raw.reply() == (2, [[7]])
    assert server.statistics()["kept_results"] == 1


def test_a_result_is_given_as_the_client_would_have_sent_it(raw, thing):
    """A copy: the servant's own list is not to be had by way of a promise."""
    raw.send(1, "thing", "own", flags=Flag.KEEP)
    assert raw.reply() == (1, [1, 2])
    raw.send(2, "thing", "spoil", None, promises=Promises(None, {0: 1}))
    assert raw.reply() == (2, [1, 2, "spoilt"])
    assert thing.items == [1, 2]


def test_a_result_that_was_not_to_be_kept_cannot_be_referred_to(raw):
    raw.send(1, "thing", "echo", 7)
    raw.reply()
    raw.send(2, "thing", "echo", None, promises=Promises(None, {0: 1}))
    number, problem = raw.reply()
    assert number == 2
    assert "result of request 1 is not kept" in str(problem)


@pytest.mark.parametrize(
    "promises", [Promises(2), Promises(None, {0: 2}), Promises(None, {0: 0}), Promises(-1)]
)
def test_unknown_requests_and_itself_cannot_be_referred_to(raw, server, promises):
    raw.send(2, "thing", "echo", None, flags=Flag.KEEP, promises=promises)
    number, problem = raw.reply()
    assert number == 2
    assert isinstance(problem, errors.ProtocolError)
    assert raw.call("thing", "echo", 1) == [1]


def test_a_later_request_cannot_be_referred_to_so_there_is_no_cycle(raw):
    raw.sock.sendall(
        raw.request(1, "thing", "echo", None, flags=Flag.KEEP, promises=Promises(None, {0: 2}))
        + raw.request(2, "thing", "echo", None, flags=Flag.KEEP, promises=Promises(None, {0: 1}))
    )
    found = raw.replies(2)
    assert "request 2 is not kept" in str(found[1])
    assert "request 2 is not kept" in str(found[2])  # the first one's error is the second one's result


def test_a_number_that_is_used_again_means_the_new_request(raw, thing):
    raw.send(1, "thing", "echo", "old", flags=Flag.KEEP)
    raw.reply()
    raw.send(1, "thing", "wait", "new", flags=Flag.KEEP)
    raw.send(2, "thing", "echo", None, promises=Promises(None, {0: 1}))
    thing.go.set()
    assert raw.replies(2) == {1: "new", 2: ["new"]}


@pytest.mark.parametrize("method", ["boom", "wait_boom"])
def test_a_failed_call_fails_what_refers_to_it_with_the_same_error(raw, thing, server, method):
    raw.send(1, "thing", method, flags=Flag.KEEP)
    if method == "boom":
        raw.frames.insert(0, raw.next())
    raw.send(2, "thing", "echo", None, flags=Flag.KEEP, promises=Promises(None, {0: 1}))
    raw.send(3, "thing", "echo", None, promises=Promises(2))
    thing.go.set()
    found = raw.replies(3)
    for problem in found.values():
        assert isinstance(problem, ValueError)
        assert "in boom" in "".join(problem._pyroTraceback) or "in wait_boom" in "".join(
            problem._pyroTraceback
        )
    assert thing.seen == []


def test_a_chain_of_hundreds_fails_without_recursion(thing):
    with ObjectServer() as server:
        server.register(thing, "thing", threading=Concurrent())
        raw = Raw(server)
        raw.send(1, "thing", "wait_boom", flags=Flag.KEEP)
        for number in range(2, 900):
            raw.send(number, "thing", "echo", None, flags=Flag.KEEP, promises=Promises(None, {0: number - 1}))
        thing.go.set()
        found = raw.replies(899)
        assert {type(problem) for problem in found.values()} == {ValueError}
        raw.close()


def test_a_result_that_cannot_be_sent_fails_what_refers_to_it(raw, thing):
    thing.items = [object()]
    raw.send(1, "thing", "own", flags=Flag.KEEP)
    raw.send(2, "thing", "echo", None, promises=Promises(None, {0: 1}))
    assert all(isinstance(problem, errors.SerializeError) for problem in raw.replies(2).values())


def test_a_stream_cannot_be_referred_to(raw):
    raw.send(1, "thing", "stream", flags=Flag.KEEP)
    assert raw.next().flags & Flag.ITEM_STREAM
    raw.send(2, "thing", "echo", None, promises=Promises(None, {0: 1}))
    assert "stream of items" in str(raw.reply()[1])


def test_what_is_no_object_cannot_be_called(raw):
    raw.send(1, "thing", "echo", 1, flags=Flag.KEEP)
    raw.send(2, "thing", "get", promises=Promises(1))
    problem = raw.replies(2)[2]
    assert isinstance(problem, errors.MemberNotFound)
    assert "not an object that is served here" in str(problem)


@pytest.mark.parametrize("place", [1, 5, -1])
def test_an_argument_that_is_not_there_cannot_be_replaced(raw, place):
    raw.send(1, "thing", "echo", 1, flags=Flag.KEEP)
    raw.send(2, "thing", "echo", None, promises=Promises(None, {place: 1}))
    assert f"no argument {place}" in str(raw.replies(2)[2])


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", ormsgpack.packb([None, {"x": "y"}]), ormsgpack.packb([1.5, {}])]
)
def test_malformed_promises_are_an_answer_and_the_connection_goes_on(raw, data):
    raw.send(1, "thing", "echo", 1, promises=data)
    number, problem = raw.reply()
    assert number == 1
    assert "PROM" in str(problem)
    assert raw.call("thing", "echo", 2) == [2]


def test_a_batch_cannot_refer(raw):
    raw.send(1, "thing", "echo", 1, flags=Flag.KEEP)
    raw.send(2, "thing", "<batch>", ["echo", [None], {}], flags=Flag.BATCH, promises=Promises(None, {0: 1}))
    assert "batch" in str(raw.replies(2)[2])


def test_promises_are_heeded_on_a_connection_that_carries_one_call_at_a_time(server, thing):
    """Or the call would run without what it wants."""
    raw = Raw(server, multiplexed=False)
    raw.send(2, "thing", "echo", None, promises=Promises(None, {0: 1}))
    assert "not kept" in str(raw.reply()[1])
    assert thing.seen == []
    raw.close()


def test_a_oneway_gets_its_promise_but_never_an_answer(raw, thing):
    raw.send(1, "thing", "wait", "x", flags=Flag.KEEP)
    raw.send(0, "thing", "note", None, flags=Flag.ONEWAY, promises=Promises(None, {0: 1}))
    thing.go.set()
    assert raw.reply() == (1, "x")
    assert thing.ended.wait(BOUND_S)
    assert thing.seen == ["x"]


def test_a_oneway_whose_promise_fails_is_not_answered(raw, thing):
    raw.send(1, "thing", "wait_boom", flags=Flag.KEEP)
    raw.send(0, "thing", "note", None, flags=Flag.ONEWAY, promises=Promises(None, {0: 1}))
    thing.go.set()
    assert isinstance(raw.reply()[1], ValueError)
    assert raw.call("thing", "echo", 1) == [1]
    assert not thing.ended.is_set()


def test_oneway_calls_that_wait_are_bounded(raw, thing, server):
    raw.send(1, "thing", "wait", "x", flags=Flag.KEEP)
    for _ in range(30):
        raw.send(0, "thing", "note", None, flags=Flag.ONEWAY, promises=Promises(None, {0: 1}))
    assert raw.call("thing", "echo") == []
    (connection,) = server.poller.connections.values()
    assert connection.conversation._oneways == 20
    thing.go.set()
    raw.reply()
    eventually(lambda: thing.seen.count("x"), 20)
    assert connection.conversation._oneways == 0


def test_large_annotations_of_calls_that_wait_are_counted(raw, thing, server):
    raw.send(1, "thing", "wait", annotations={"LARG": bytes(100_000)})
    assert thing.began.acquire(timeout=BOUND_S)
    assert server.statistics()["receiving_bytes"] == 100_000
    thing.go.set()
    raw.reply()
    eventually(lambda: server.statistics()["receiving_bytes"], 0)


# -- results are kept for a while --------------------------------------------------------------------


def test_the_oldest_results_give_way(raw, server):
    for number in range(1, 8):
        raw.send(number, "thing", "echo", number, flags=Flag.KEEP)
        raw.reply()
    assert server.statistics()["kept_results"] == 5
    raw.send(8, "thing", "echo", None, promises=Promises(None, {0: 2}))
    assert "not kept here any more" in str(raw.reply()[1])
    raw.send(9, "thing", "echo", None, promises=Promises(None, {0: 3}))
    assert raw.reply() == (9, [[3]])


def test_results_are_kept_by_their_size(thing, clock):
    with ObjectServer(settings=ServerSettings(kept_results_memory_max=10_000)) as server:
        server.register(thing, "thing")
        raw = Raw(server)
        for number, size in ((1, 6_000), (2, 3_000), (3, 5_000)):
            raw.send(number, "thing", "echo", bytes(size), flags=Flag.KEEP)
            raw.reply()
        assert server.statistics()["kept_results"] == 2
        raw.close()


def test_results_are_forgotten_in_time(thing, clock):
    with ObjectServer(clock=clock) as server:
        server.register(thing, "thing")
        raw = Raw(server)
        raw.send(1, "thing", "echo", 1, flags=Flag.KEEP)
        raw.reply()
        assert server.statistics()["kept_results"] == 1
        clock.advance(29.0)
        server._housekeeping()
        assert server.statistics()["kept_results"] == 1
        clock.advance(1.5)
        server._housekeeping()
        assert server.statistics()["kept_results"] == 0
        assert not server.keeping
        raw.close()


# -- calls to the client's objects -------------------------------------------------------------------

LISTENER = Reference("PYRO", "listener", Location(client="raw"))


def test_a_servant_calls_its_client(raw, server):
    raw.send(1, "thing", "call_back", LISTENER, 5)
    call = raw.next()
    assert call.type == FrameType.INVOKE
    assert list(CODEC.decode_call(call.payload))[:3] == ["listener", "heard", [5]]
    assert server.statistics()["callbacks_waiting"] == 1
    raw.answer(call, "yes")
    assert raw.reply() == (1, "yes")
    eventually(lambda: figures(server), {})


def test_callbacks_are_answered_in_any_order(raw):
    for number in (1, 2, 3):
        raw.send(number, "thing", "call_back", LISTENER, number)
    calls = sorted((raw.next() for _ in range(3)), key=lambda call: -CODEC.decode_call(call.payload)[2][0])
    for call in calls:
        raw.answer(call, CODEC.decode_call(call.payload)[2])
    assert raw.replies(3) == {1: [1], 2: [2], 3: [3]}


def test_one_callback_too_many_is_refused(raw):
    for number in (1, 2, 3):
        raw.send(number, "thing", "call_back", LISTENER, number)
    calls = [raw.next() for _ in range(3)]
    raw.send(4, "thing", "call_back", LISTENER, 4)
    number, problem = raw.reply()
    assert number == 4
    assert "callbacks_per_connection_max" in str(problem)
    for call in calls:
        raw.answer(call, None)
    assert set(raw.replies(3)) == {1, 2, 3}


@pytest.mark.parametrize("number", [0, 77])
def test_an_answer_that_nobody_wants_ends_the_connection(raw, server, number):
    raw.send(1, "thing", "call_back", LISTENER)
    call = raw.next()
    raw.answer(call, None, number)
    said = raw.ends()
    assert any(
        "which was not made" in str(Codecs(Limits()).get(f.serializer_id).decode(f.payload)) for f in said
    )
    raw.close()
    eventually(lambda: figures(server), {})


def test_a_callback_that_is_answered_twice_ends_the_connection(raw, server):
    raw.send(1, "thing", "call_back", LISTENER)
    call = raw.next()
    raw.answer(call, "first")
    assert raw.reply() == (1, "first")
    raw.answer(call, "second")
    raw.ends()
    assert Raw(server, client="other").call("thing", "echo", 1) == [1]


def test_an_answer_that_is_no_value_is_the_servants_error(raw):
    raw.send(1, "thing", "call_back", LISTENER)
    call = raw.next()
    raw.sock.sendall(encode_frame(FrameType.RESULT, CODEC.serializer_id, 0, call.sequence, b"\xc1"))
    number, problem = raw.reply()
    assert number == 1
    assert isinstance(problem, errors.SerializeError)
    assert raw.call("thing", "echo", 1) == [1]


def test_a_client_that_vanishes_ends_the_wait_of_its_servant(raw, server, thing):
    raw.send(1, "thing", "call_back_and_tell", LISTENER)
    raw.next()
    raw.close()
    assert thing.ended.wait(BOUND_S)
    assert "went away" in str(thing.seen[0])
    eventually(lambda: figures(server), {})
    eventually(lambda: server.statistics()["blocked"], 0)


def test_a_client_that_is_gone_is_not_called(raw, server, thing):
    raw.send(0, "thing", "note", LISTENER, flags=Flag.ONEWAY)
    assert thing.ended.wait(BOUND_S)
    raw.close()
    eventually(lambda: server.statistics()["connections"], 0)
    with pytest.raises(errors.ConnectFailed):
        thing.seen[0].heard()


def test_a_cancelled_servant_passes_it_on_and_the_conversation_lives(raw, thing):
    """Its calls to the client are cancelled, but not what else is in flight with that client."""
    raw.send(1, "thing", "wait", "other")
    raw.send(2, "thing", "call_back", LISTENER)
    call = raw.next()
    raw.cancel(2)
    told = raw.next()
    assert (told.type, told.sequence) == (FrameType.CANCEL, call.sequence)
    raw.answer(call, "late")
    assert raw.reply() == (2, "late")
    raw.send(3, "thing", "call_back", LISTENER)
    raw.answer(raw.next(), "again")
    assert raw.reply() == (3, "again")
    assert thing.began.acquire(timeout=BOUND_S)
    thing.go.set()
    assert raw.reply() == (1, "other")


def test_a_cancel_does_not_overtake_its_request_in_a_burst(raw):
    raw.sock.sendall(raw.request(1, "thing", "call_back", LISTENER) + raw.request(2, "thing", "echo", 2))
    kinds = {}
    for _ in range(2):
        frame = raw.next()
        kinds[frame.type] = frame
    raw.cancel(1)
    assert raw.next().type == FrameType.CANCEL
    raw.answer(kinds[FrameType.INVOKE], None)
    assert raw.reply() == (1, None)


def test_a_client_that_vanishes_cancels_its_calls(raw, thing, server):
    raw.send(1, "thing", "wait_cancelled")
    assert thing.began.acquire(timeout=BOUND_S)
    raw.close()
    assert thing.ended.wait(BOUND_S)
    eventually(lambda: figures(server), {})


def test_a_server_that_stops_still_reads_what_its_servants_wait_for(thing):
    server = ObjectServer().start()
    server.register(thing, "thing", threading=Concurrent())
    raw = Raw(server)
    raw.send(1, "thing", "call_back", LISTENER)
    call = raw.next()
    stopping = threading.Thread(target=server.stop, args=(BOUND_S * 3,))
    stopping.start()
    eventually(lambda: server.poller.reading, False)
    raw.answer(call, "in time")
    assert raw.reply() == (1, "in time")
    stopping.join(BOUND_S)
    assert not stopping.is_alive()
    raw.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_with_one_worker_a_callback_is_refused_rather_than_awaited_for_ever(thing, workers):
    with ObjectServer(workers=workers) as server:
        server.register(thing, "thing")
        raw = Raw(server)
        raw.send(1, "thing", "call_back", LISTENER)
        if workers == 1:
            _, problem = raw.reply()
            assert isinstance(problem, errors.Deadlock)
            assert "workers=1" in str(problem)
        else:
            raw.answer(raw.next(), "yes")
            assert raw.reply() == (1, "yes")
        raw.close()


def test_with_one_worker_nothing_is_gathered(thing):
    """There is nobody who could notice that a reply waits."""
    with ObjectServer(workers=1) as server:
        server.register(thing, "thing")
        raw = Raw(server)
        raw.sock.sendall(raw.request(1, "thing", "echo", 1) + raw.request(2, "thing", "wait"))
        assert raw.reply() == (1, [1])
        thing.go.set()
        assert raw.reply() == (2, None)
        raw.close()
