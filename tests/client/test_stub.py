"""The stub and its pool, with connections that only remember what was asked of them."""

import asyncio
import types

import pytest

from objserver import errors
from objserver.client import pool as pool_module
from objserver.client.attempts import PAUSE_MAX_S, PAUSE_S
from objserver.client.pool import IDLE_CONNECTIONS_MAX, SURELY_OPEN_S, ConnectionPool
from objserver.client.streams import ItemStream
from objserver.client.stub import Stub
from objserver.codecs import Codecs
from objserver.invocation import Facts, in_progress
from objserver.machine import Machine, machine
from objserver.references import Location, Reference
from objserver.settings import Limits
from objserver.wire import CallContext, Flag, Frame, FrameType
from objserver.wire.extension import ANNOTATION, CHAIN_MAX, MOVED

CODEC = Codecs(Limits()).native
REFERENCE = Reference("PYRO", "Thing", Location("localhost", 1))


class Connection:
    """Answers every call with its method's name, or raises `problem`, having closed itself if `breaks`."""

    made: list = []
    is_new = True

    def __init__(self, greeting, **options):
        self.location = greeting.location
        self.session = greeting.session
        self.codec = CODEC
        self.native = True
        self.takes_scalars = False
        metadata = types.SimpleNamespace(
            methods=frozenset(),
            oneway=frozenset(),
            attrs=frozenset(),
            repeatable=frozenset({"look"}),
            exactly_once=False,
        )
        self.greeted = types.SimpleNamespace(metadata=metadata, store="", entries=())
        self.last_used = machine.get().monotonic()
        self.is_open = True
        self.stale = self.breaks = False
        self.problem = None
        self.looks = 0
        self.requests = []
        self.made.append(self)

    def is_stale(self):
        self.looks += 1
        return self.stale or not self.is_open

    def close(self):
        self.is_open = False

    def call(self, codec, payload, flags, annotations, correlation, timeout_s, cancellable=None):
        _, method, _, _ = codec.decode_call(payload)
        self.requests.append(types.SimpleNamespace(method=method, annotations=annotations, flags=flags))
        if isinstance(self.problem, errors.Moved):  # the server answered
            answer = codec.encode(self.problem)
            return Frame(FrameType.RESULT, codec.serializer_id, Flag.EXCEPTION, 1, answer)
        if self.problem is not None:
            if self.breaks:
                self.close()
            raise self.problem
        if flags & Flag.ONEWAY:
            return None
        return Frame(FrameType.RESULT, codec.serializer_id, 0, 1, codec.encode(method))


class Clock(Machine):
    """A machine whose time passes only when `now` is changed, or somebody sleeps."""

    def __init__(self):
        super().__init__()
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def uniform(self, low, high):
        return high


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The time here; and no connection is a real one."""
    clock = Clock()
    before = machine.set(clock)
    monkeypatch.setattr(pool_module, "ClientConnection", Connection)
    Connection.made = []
    yield clock
    machine.reset(before)


def make_pool(session=None):
    return ConnectionPool(REFERENCE, lambda r, t: r, serializer=None, session=session, handshake="hello")


@pytest.fixture
def pool():
    return make_pool()


@pytest.fixture
def stub(pool):
    return Stub(pool, 5.0)


# -- the pool ------------------------------------------------------------------------------------------


def test_the_connection_put_back_last_is_taken_first(pool):
    first, second = pool.take(None), pool.take(None)
    pool.put(first)
    pool.put(second)
    assert pool.take(None) is second
    assert pool.take(None) is first
    assert pool.take(None) not in (first, second)


def test_only_so_many_connections_are_kept(pool):
    taken = [pool.take(None) for _ in range(IDLE_CONNECTIONS_MAX + 1)]
    for connection in taken:
        pool.put(connection)
    assert [c.is_open for c in taken] == [True] * IDLE_CONNECTIONS_MAX + [False]
    assert list(pool.idle) == taken[:-1]


def test_a_connection_is_looked_at_only_after_a_rest(pool, clock):
    connection = pool.take(None)
    for rest_s, looks in ((SURELY_OPEN_S / 2, 0), (SURELY_OPEN_S * 2, 1), (SURELY_OPEN_S / 2, 1)):
        pool.put(connection)
        clock.now += rest_s
        assert pool.take(None) is connection
        assert connection.looks == looks


def test_stale_connections_are_closed_and_the_next_one_is_tried(pool, clock):
    older, newer = pool.take(None), pool.take(None)
    pool.put(older)
    pool.put(newer)
    newer.stale = True
    clock.now += SURELY_OPEN_S * 2
    assert pool.take(None) is older
    assert (newer.is_open, len(Connection.made)) == (False, 2)
    older.stale = True
    pool.put(older)
    clock.now += SURELY_OPEN_S * 2
    assert pool.take(None) is Connection.made[2]
    assert not older.is_open


# -- failures ------------------------------------------------------------------------------------------


def test_what_failed_before_anything_was_sent_keeps_the_connection(pool, stub):
    stub.invoke("warm", (), {})
    (connection,) = Connection.made
    with pytest.raises(errors.SerializeError, match=r"an argument of Thing\.f"):
        stub.invoke("f", (object(),), {})
    connection.problem = errors.MessageTooLarge("much too large")
    with pytest.raises(errors.MessageTooLarge):
        stub.invoke("f", (), {})
    assert list(pool.idle) == [connection]


def test_a_connection_whose_server_stops_with_the_reply_is_not_kept(pool, stub, monkeypatch):
    def last(self, codec, *_):
        self.is_open = False  # as it is when a GOODBYE came with the reply
        return Frame(5, codec.serializer_id, 0, 1, codec.encode("done"))

    monkeypatch.setattr(Connection, "call", last)
    assert stub.invoke("f", (), {}) == "done"
    assert not pool.idle


@pytest.mark.parametrize("kind", [errors.ConnectionLost, errors.CallTimeout])
def test_a_connection_that_broke_is_not_kept(pool, stub, kind):
    stub.invoke("warm", (), {})
    (connection,) = Connection.made
    connection.problem, connection.breaks = kind("it broke"), True
    with pytest.raises(kind, match=r"^Thing\.f: it broke"):
        stub.invoke("f", (), {})
    assert not pool.idle


# -- calling again -------------------------------------------------------------------------------------


def breaks(connection, kind):
    connection.problem, connection.breaks = kind("it broke"), True


@pytest.fixture
def network(monkeypatch):
    """How the connections that are made from now on behave: what they raise when they are made or used."""
    network = types.SimpleNamespace(down=0, broken=[])

    class Fresh(Connection):
        def __init__(self, greeting, **options):
            super().__init__(greeting, **options)
            if network.down:
                network.down -= 1
                raise errors.ConnectFailed("nobody listens")
            if network.broken:
                breaks(self, network.broken.pop(0))

    monkeypatch.setattr(pool_module, "ClientConnection", Fresh)
    return network


def test_what_was_not_sent_is_sent_again_on_another_connection(stub, network):
    stub.invoke("warm", (), {})
    breaks(Connection.made[0], errors.ConnectFailed)
    assert stub.invoke("f", (), {}) == "f"
    assert [len(c.requests) for c in Connection.made] == [2, 1]


def test_without_a_time_it_is_tried_once_more(pool, network):
    stub = Stub(pool, None)
    stub.invoke("warm", (), {})
    breaks(Connection.made[0], errors.ConnectFailed)
    network.down = 1
    with pytest.raises(errors.ConnectFailed, match="nobody listens"):
        stub.invoke("f", (), {})
    assert len(Connection.made) == 2


def test_within_its_time_a_server_is_waited_for(pool, network, clock):
    stub = Stub(pool, 60.0)
    stub.invoke("warm", (), {})
    breaks(Connection.made[0], errors.ConnectFailed)
    network.down = 9
    began = clock.now
    assert stub.invoke("f", (), {}) == "f"
    waited = clock.now - began
    # Each pause is twice as long as the one before, up to a bound.
    pauses = [min(PAUSE_MAX_S, PAUSE_S * 2**n) for n in range(1, 10)]
    assert waited == pytest.approx(sum(pauses))


def test_the_deadline_ends_the_waiting(pool, network, clock):
    stub = Stub(pool, 5.0)
    stub.invoke("warm", (), {})
    breaks(Connection.made[0], errors.ConnectFailed)
    network.down = 10**6
    began = clock.now
    with pytest.raises(errors.ConnectFailed):
        stub.invoke("f", (), {})
    assert clock.now - began == pytest.approx(5.0, abs=0.002)


def test_a_server_that_is_not_there_when_the_pool_is_empty_is_waited_for_too(pool, network):
    stub = Stub(pool, 60.0)
    stub.invoke("warm", (), {})
    pool.idle.clear()
    network.down = 3
    assert stub.invoke("f", (), {}) == "f"


def test_who_was_never_reached_is_not_waited_for(pool, network, clock):
    network.down = 1
    began = clock.now
    with pytest.raises(errors.ConnectFailed):
        Stub(pool, 60.0).invoke("f", (), {})
    assert (clock.now, len(Connection.made)) == (began, 1)


def test_an_unknown_outcome_is_repeated_only_where_that_does_no_harm(pool, network):
    stub = Stub(pool, 60.0)
    stub.invoke("warm", (), {})
    breaks(Connection.made[0], errors.ConnectionLost)
    network.broken = [errors.ConnectionLost, errors.ConnectionLost]
    assert stub.invoke("look", (), {}) == "look"
    assert len(Connection.made) == 4
    breaks(Connection.made[3], errors.ConnectionLost)
    with pytest.raises(errors.ConnectionLost):
        stub.invoke("change", (), {})
    assert len(Connection.made) == 4


def test_what_was_not_sent_at_first_and_then_has_an_unknown_outcome_is_not_sent_thrice(pool, network):
    stub = Stub(pool, 60.0)
    stub.invoke("warm", (), {})
    breaks(Connection.made[0], errors.ConnectFailed)
    network.broken = [errors.ConnectionLost]
    with pytest.raises(errors.ConnectionLost):
        stub.invoke("change", (), {})
    assert len(Connection.made) == 2


def test_no_call_is_repeated_when_its_time_is_up(pool, network):
    stub = Stub(pool, 60.0)
    stub.invoke("warm", (), {})
    breaks(Connection.made[0], errors.CallTimeout)
    with pytest.raises(errors.CallTimeout):
        stub.invoke("look", (), {})
    assert len(Connection.made) == 1


# -- sessions ------------------------------------------------------------------------------------------


def test_release_ends_the_session_and_begins_another(pool, stub):
    stub.invoke("f", (), {})
    (connection,) = Connection.made
    stub.release()
    assert [r.method for r in connection.requests] == ["f", "release_session"]
    assert not connection.is_open
    stub.invoke("f", (), {})
    assert Connection.made[1].session not in ("", connection.session)


def test_release_begins_a_new_session_also_without_an_idle_connection(pool, stub):
    before = pool.session
    stub.release()
    assert pool.session != before


def test_a_connection_in_use_during_release_is_not_used_again(pool, stub):
    busy, idle = pool.take(None), pool.take(None)
    pool.put(idle)
    stub.release()
    pool.put(busy)
    assert [r.method for r in idle.requests] == ["release_session"]
    assert pool.take(None) not in (busy, idle)
    assert not busy.is_open


def test_a_session_that_cannot_be_ended_on_one_connection_is_ended_on_the_next(pool, stub):
    first, second = pool.take(None), pool.take(None)
    pool.put(first)
    pool.put(second)
    second.problem = errors.ConnectionLost("it broke")
    stub.release()
    assert [r.method for r in first.requests] == ["release_session"]
    assert (first.is_open, second.is_open) == (False, False)


def test_a_shared_session_outlives_release():
    pool = make_pool(session="ours")
    stub = Stub(pool, None)
    stub.invoke("f", (), {})
    stub.release()
    assert [r.method for r in Connection.made[0].requests] == ["f"]
    assert (pool.session, Connection.made[0].is_open) == ("ours", False)


# -- inside a servant ----------------------------------------------------------------------------------


class Caller:
    """Notes what it is told."""

    address, session = None, "s"

    def __init__(self):
        self.told = []
        self.refusal = None

    def about_to_block(self, location=None):
        if self.refusal is not None:
            raise self.refusal
        self.told.append("waits")

    def no_longer_blocked(self):
        self.told.append("goes on")


@pytest.fixture
def facts():
    facts = Facts(Caller(), "Outer", "run")
    token = in_progress.set(facts)
    yield facts
    in_progress.reset(token)


def chain_of(request):
    return CallContext.decode(request.annotations[ANNOTATION]).chain


def test_a_servant_that_calls_waits_and_goes_on(stub, facts):
    assert stub.invoke("f", (), {}) == "f"
    assert facts.caller.told == ["waits", "goes on"] * 2  # once to connect
    assert chain_of(Connection.made[0].requests[0]) == (facts.id,)
    Connection.made[0].problem = errors.CallTimeout("late")
    with pytest.raises(errors.CallTimeout):
        stub.invoke("f", (), {})
    assert facts.caller.told == ["waits", "goes on"] * 3


def test_a_servant_that_may_not_wait_keeps_its_connection(pool, stub, facts):
    stub.invoke("f", (), {})
    facts.caller.told.clear()
    facts.caller.refusal = errors.ServerBusy("too many wait")
    with pytest.raises(errors.ServerBusy):
        stub.invoke("f", (), {})
    assert facts.caller.told == []
    assert list(pool.idle) == Connection.made


def test_a_chain_is_as_deep_as_its_receiver_accepts(pool, stub, facts):
    facts.chain = ("id",) * (CHAIN_MAX - 1)
    stub.invoke("f", (), {})
    assert len(chain_of(Connection.made[0].requests[0])) == CHAIN_MAX
    facts.chain += ("id",)
    with pytest.raises(RecursionError, match=rf"^Thing\.f is called.*more than {CHAIN_MAX}"):
        stub.invoke("f", (), {})
    assert facts.caller.told == ["waits", "goes on"] * 2  # once to connect
    assert list(pool.idle) == Connection.made


def test_the_event_loop_of_a_server_is_not_blocked(pool, stub, facts):
    async def call():
        return stub.invoke("f", (), {})

    async def call_in_a_thread():
        return await asyncio.to_thread(stub.invoke, "f", (), {})

    with pytest.raises(RuntimeError, match=r"Thing\.f.*asyncio\.to_thread"):
        asyncio.run(call())
    assert facts.caller.told == ["waits", "goes on"]  # to connect
    assert list(pool.idle) == Connection.made
    assert asyncio.run(call_in_a_thread()) == "f"


def test_a_client_with_an_event_loop_of_its_own_may_block_it(stub):
    async def call():
        return stub.invoke("f", (), {})

    assert asyncio.run(call()) == "f"


# -- streams -------------------------------------------------------------------------------------------


def test_streams_are_drawn_and_closed_in_the_context_of_a_call(pool, stub, facts):
    connection = pool.take(None)
    stream = ItemStream(stub, connection, "id")
    assert next(stream) == "get_next_stream_item"
    assert facts.caller.told == ["waits", "goes on"] * 2  # once to connect
    stream.close()
    assert facts.caller.told == ["waits", "goes on"] * 2
    assert [r.method for r in connection.requests] == ["get_next_stream_item", "close_stream"]
    assert [chain_of(r) for r in connection.requests] == [(facts.id,)] * 2
    assert list(pool.idle) == [connection]


def test_streams_carry_the_annotations_of_the_view_they_were_opened_on(pool):
    connection = pool.take(None)
    stream = ItemStream(Stub(pool, None, {"WHOM": b"alice"}), connection, "id")
    next(stream)
    stream.close()
    assert [r.annotations for r in connection.requests] == [{"WHOM": b"alice"}] * 2


def test_a_stream_survives_a_draw_that_was_not_sent(pool, stub, facts):
    connection = pool.take(None)
    stream = ItemStream(stub, connection, "id")
    facts.caller.refusal = errors.ServerBusy("too many wait")
    with pytest.raises(errors.ServerBusy):
        next(stream)
    facts.caller.refusal = None
    assert next(stream) == "get_next_stream_item"
    connection.problem, connection.breaks = errors.ConnectionLost("it broke"), True
    with pytest.raises(errors.ConnectionLost):
        next(stream)
    assert list(stream) == []
    assert not pool.idle


def test_a_stream_whose_end_cannot_be_told_gives_its_connection_back(pool, stub, facts):
    connection = pool.take(None)
    stream = ItemStream(stub, connection, "id")
    facts.chain = ("id",) * CHAIN_MAX
    with pytest.raises(RecursionError):
        stream.close()
    assert list(pool.idle) == [connection]


# -- clusters ------------------------------------------------------------------------------------------


def moved(address):
    problem = errors.Moved(f"Thing is at {address}")
    problem.address = address
    return problem


def test_a_call_is_made_where_its_object_is_and_those_after_it_too(pool, stub):
    stub.invoke("warm", (), {})
    Connection.made[0].problem = moved("localhost:2")
    assert stub.invoke("f", (), {}) == "f"
    assert stub.invoke("g", (), {}) == "g"
    assert [(c.location.port, [r.method for r in c.requests]) for c in Connection.made] == [
        (1, ["warm", "f"]),
        (2, ["f", "g"]),
    ]
    assert not Connection.made[0].is_open
    sent_on, after = Connection.made[1].requests
    assert MOVED in sent_on.annotations
    assert MOVED not in after.annotations


def test_when_the_way_is_blocked_another_is_tried(pool, stub, network):
    pool._entries.told(REFERENCE.location, ["localhost:1", "localhost:2", "localhost:3"])
    network.down = 2
    assert stub.invoke("f", (), {}) == "f"
    assert [c.location.port for c in Connection.made] == [1, 2, 3]
    pool.moved(moved("localhost:7"))
    network.down = 1
    assert stub.invoke("f", (), {}) == "f"
    assert [c.location.port for c in Connection.made[3:]] == [7, 3]


def test_what_a_rule_excludes_is_not_followed(pool):
    pool.rule = lambda location: location.port == 1
    with pytest.raises(errors.ConnectFailed, match="connects_to"):
        pool.moved(moved("localhost:2"))
    with pytest.raises(errors.ProtocolError, match="is at 'nowhere'"):
        pool.moved(moved("nowhere"))
