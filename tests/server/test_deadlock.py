"""Calls that wait for each other, over real servers: one is refused with the cycle, the others go on."""

import asyncio
import contextlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from objserver import (
    AsyncProxy,
    Concurrent,
    ObjectServer,
    Persistent,
    Proxy,
    ReadersWriter,
    Reentrant,
    Serial,
    errors,
    expose,
    readonly,
)
from objserver.wire import CallContext, FrameType, Probe, encode_frame
from objserver.wire.extension import ANNOTATION
from objserver.wire.probe import SPREAD_MAX
from tests.server.test_conversation import CODEC, Raw

WAIT_S = 20.0
"""Longer than anything here may take: a deadlock that is not noticed ends as a CallTimeout."""
BOUND_S = 1.0
"""What a busy machine may need instead of the 50 ms."""


class Meeting:
    """Lets calls go on when so many are inside their objects, and notes how long each was told to wait."""

    def __init__(self, parties):
        self.barrier = threading.Barrier(parties)
        self.waited = []

    def call(self, call):
        self.barrier.wait(WAIT_S)
        begun = time.perf_counter()
        try:
            return call()
        except errors.Deadlock:
            self.waited.append(time.perf_counter() - begun)
            raise


@expose
class Node:
    """`pass_on` calls the first of `uris` with the rest; `meet` does so when all others are inside too."""

    def __init__(self, meeting=None):
        self.meeting = meeting

    def touch(self):
        return "touched"

    def pass_on(self, *uris):
        return Proxy(uris[0], timeout_s=WAIT_S).pass_on(*uris[1:]) if uris else "touched"

    def meet(self, *uris):
        return self.meeting.call(lambda: self.pass_on(*uris))

    @readonly
    def read(self, *uris):
        return self.meet(*uris)

    def in_future(self, uri):
        return self.meeting.call(lambda: Proxy(uri, timeout_s=WAIT_S).future.touch().result())

    async def in_coroutine(self, uri):
        await asyncio.to_thread(self.meeting.barrier.wait, WAIT_S)
        return await AsyncProxy(uri, timeout_s=WAIT_S).touch()

    async def in_thread(self, uri):
        return await asyncio.to_thread(self.meet, uri)


@pytest.fixture
def serve():
    """Starts servers that end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(ObjectServer(**options))


def outcomes(*calls):
    """What each call, in a thread of its own, returned or raised."""

    def outcome(call):
        try:
            return call()
        except Exception as problem:
            return problem

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(WAIT_S) for future in [pool.submit(outcome, call) for call in calls]]


def method(uri, name, *args):
    return lambda: getattr(Proxy(uri, timeout_s=WAIT_S), name)(*args)


def parted(found):
    """The one Deadlock of the outcomes, and the others."""
    victims = [outcome for outcome in found if isinstance(outcome, errors.Deadlock)]
    assert len(victims) == 1, found
    return victims[0], [outcome for outcome in found if outcome is not victims[0]]


def circle(cycle):
    """A cycle from its smallest member on: where it begins depends on who was the victim."""
    at = cycle.index(min(cycle))
    return cycle[at:] + cycle[:at]


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_a_chain_that_comes_back_is_refused_at_once(serve, servers):
    hosts = [serve() for _ in range(servers)]
    a, b, c = (str(hosts[i % servers].register(Node(), name)) for i, name in enumerate("ABC"))
    begun = time.perf_counter()
    with pytest.raises(errors.Deadlock) as caught:
        Proxy(a, timeout_s=WAIT_S).pass_on(b, c, a)
    assert time.perf_counter() - begun < BOUND_S
    assert caught.value.cycle == ("A.pass_on", "B.pass_on", "C.pass_on", "A.pass_on")


def test_a_reentrant_object_lets_its_own_chain_in(serve):
    hosts = [serve() for _ in range(3)]
    a, b, c = (
        str(host.register(Node(), name, threading=Reentrant()))
        for host, name in zip(hosts, "ABC", strict=True)
    )
    assert Proxy(a, timeout_s=WAIT_S).pass_on(b, c, a, b) == "touched"


@pytest.mark.parametrize("policy", [Serial(), Reentrant(), ReadersWriter()], ids=str)
@pytest.mark.parametrize("servers", [1, 2])
def test_of_two_chains_that_block_each_other_one_is_refused_and_one_goes_on(serve, servers, policy):
    hosts = [serve() for _ in range(servers)]
    meeting = Meeting(2)
    a, b = (str(hosts[i % servers].register(Node(meeting), n, threading=policy)) for i, n in enumerate("AB"))
    victim, others = parted(outcomes(method(a, "meet", b), method(b, "meet", a)))
    assert others == ["touched"]
    assert circle(victim.cycle) == ("A.meet", "B.pass_on", "B.meet", "A.pass_on")
    (waited,) = meeting.waited
    assert waited < BOUND_S
    deadline = time.monotonic() + WAIT_S
    while sum(host.statistics()["deadlocks"] for host in hosts) != 1:  # counted once it has been told
        assert time.monotonic() < deadline
    assert [Proxy(uri, timeout_s=WAIT_S).touch() for uri in (a, b)] == ["touched"] * 2


def test_persistent_objects_that_block_each_other(serve, tmp_path):
    """What the victim was asked has not happened; what the other did is stored."""

    @expose
    class Kept:
        def __init__(self):
            self.passed = 0

        def meet(self, *uris):
            return meeting.call(lambda: self.pass_on(*uris))

        def pass_on(self, *uris):
            self.passed += 1
            return Proxy(uris[0], timeout_s=WAIT_S).pass_on(*uris[1:]) if uris else self.passed

    meeting = Meeting(2)
    hosts = [serve(store=f"sqlite:///{tmp_path}/{name}.db") for name in "AB"]
    a, b = (str(host.register(Kept, n, activation=Persistent())) for host, n in zip(hosts, "AB", strict=True))
    _, others = parted(outcomes(method(a, "meet", b), method(b, "meet", a)))
    assert others == [2]
    assert sorted(Proxy(uri, timeout_s=WAIT_S).pass_on() for uri in (a, b)) == [2, 3]


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("chains", [3, 7])
def test_a_ring_of_chains_loses_one(serve, servers, chains):
    hosts = [serve() for _ in range(servers)]
    meeting = Meeting(chains)
    uris = [str(hosts[i % servers].register(Node(meeting), f"N{i}")) for i in range(chains)]
    calls = [method(uri, "meet", uris[i - 1]) for i, uri in enumerate(uris)]
    victim, others = parted(outcomes(*calls))
    assert others == ["touched"] * (chains - 1)
    assert len(victim.cycle) == 2 * chains
    assert {name.partition(".")[0] for name in victim.cycle} == {f"N{i}" for i in range(chains)}
    assert meeting.waited[0] < BOUND_S


def test_a_longer_way_to_the_object_is_followed(serve):
    """X is in A and goes over C to B; Y is in B and goes over D to A."""
    hosts = [serve() for _ in range(4)]
    meeting = Meeting(2)
    a, b, c, d = (str(host.register(Node(meeting), n)) for host, n in zip(hosts, "ABCD", strict=True))
    victim, others = parted(outcomes(method(a, "meet", c, b), method(b, "meet", d, a)))
    assert others == ["touched"]
    assert {"C.pass_on", "D.pass_on"} < set(victim.cycle)


@pytest.mark.parametrize("kind", ["in_future", "in_coroutine", "in_thread"])
def test_whichever_way_a_servant_waits(serve, kind):
    hosts = [serve() for _ in range(2)]
    meeting = Meeting(2)
    a, b = (str(host.register(Node(meeting), n)) for host, n in zip(hosts, "AB", strict=True))
    _, others = parted(outcomes(method(a, kind, b), method(b, kind, a)))
    assert others == ["touched"]


def test_two_readers_that_want_to_write(serve):
    server = serve()
    meeting = Meeting(2)
    a = str(server.register(Node(meeting), "A", threading=ReadersWriter()))
    b, c = (str(server.register(Node(meeting), n)) for n in "BC")
    # Each goes over an object of its own to write to A, where the other reads: but its own chain reads there.
    found = outcomes(method(a, "read", b, a), method(a, "read", c, a))
    assert [type(outcome) for outcome in found] == [errors.Deadlock] * 2
    assert {outcome.cycle[-1] for outcome in found} == {"A.pass_on"}


def test_a_concurrent_object_whose_places_are_all_taken_by_the_cycle(serve):
    """Two chains have the two places of A, and each wants another."""
    server = serve()
    meeting = Meeting(2)
    a = str(server.register(Node(meeting), "A", threading=Concurrent(limit=2)))
    _, others = parted(outcomes(method(a, "meet", a), method(a, "meet", a)))
    assert others == ["touched"]


def test_one_free_place_in_a_concurrent_object_is_no_deadlock(serve):
    """The third call in A would go on some time, so nobody is refused until it calls what is blocked too."""
    server = serve()
    both, last = Meeting(3), threading.Event()

    @expose
    class Late(Node):
        def wait(self):
            both.barrier.wait(WAIT_S)
            assert last.wait(WAIT_S)
            return "waited"

    a = str(server.register(Late(both), "A", threading=Concurrent(limit=3)))

    def release():
        while server.statistics()["nested_waiting"] < 2 or not _asked_twice(server):
            time.sleep(0.005)
        last.set()
        return "released"

    calls = method(a, "meet", a), method(a, "meet", a), method(a, "wait"), release
    assert outcomes(*calls) == ["touched", "touched", "waited", "released"]
    assert server.statistics()["deadlocks"] == 0


def _asked_twice(server):
    """Whether every call that waits has asked at least twice."""
    return all(wait.round >= 2 for wait in list(server.adapter.waits._waits.values()))


@expose
class Caller:
    """In a client process: an object that a server calls back."""

    def back(self, uri):
        return Proxy(uri, timeout_s=WAIT_S).touch()


def test_through_the_object_of_a_client(serve):
    """X is in A and calls the client's object, which calls B; Y is in B and calls A."""

    @expose
    class Host(Node):
        def over(self, caller: Caller, uri: str):
            return self.meeting.call(lambda: caller.back(uri))

    hosts = [serve() for _ in range(2)]
    meeting = Meeting(2)
    a, b = (str(host.register(Host(meeting), n)) for host, n in zip(hosts, "AB", strict=True))
    caller = Caller()
    victim, others = parted(outcomes(method(a, "over", caller, b), method(b, "meet", a)))
    assert others == ["touched"]
    assert any(name.endswith(".back") for name in victim.cycle)


def test_an_iterative_server_does_not_wait_for_itself(serve):
    server = serve(workers=1)
    a = str(server.register(Node(), "A"))
    b = str(server.register(Node(), "B"))
    with pytest.raises(errors.Deadlock, match="workers=1") as caught:
        Proxy(a, timeout_s=WAIT_S).pass_on(b)
    assert caught.value.cycle == ()  # it waits for no object, but for the server


def test_a_call_that_a_coroutine_does_not_wait_for_is_no_deadlock(serve):
    """X is in A and has a task call B; Y is in B and waits for A.  X can end without its task, and does."""
    server = serve()
    meeting, asked = Meeting(2), threading.Event()

    @expose
    class Busy(Node):
        async def beside(self, uri):
            await asyncio.to_thread(self.meeting.barrier.wait, WAIT_S)
            call = asyncio.ensure_future(AsyncProxy(uri, timeout_s=WAIT_S).invoke("touch"))
            await asyncio.to_thread(asked.wait, WAIT_S)
            self.call = call  # it goes on after this
            return "left"

    def release():
        while server.statistics()["nested_waiting"] < 2 or not _asked_twice(server):
            time.sleep(0.005)
        asked.set()
        return "released"

    busy = Busy(meeting)
    a, b = str(server.register(busy, "A")), str(server.register(Node(meeting), "B"))
    found = outcomes(method(a, "beside", b), method(b, "meet", a), release)
    assert found == ["left", "touched", "released"]
    assert server.statistics()["deadlocks"] == 0


def test_a_forged_question_does_nothing(serve):
    """A client asks about its own calls, those of others, and none, as if it had come back to them."""
    server = serve()
    entered, go = threading.Event(), threading.Event()

    @expose
    class Held(Node):
        def hold(self):
            entered.set()
            return go.wait(WAIT_S)

    server.register(Held(), "A")
    raw, other = Raw(server), Raw(server, client="other")
    raw.send(1, "A", "hold")
    assert entered.wait(WAIT_S)
    context = {ANNOTATION: CallContext(None, ("X.m 1",)).encode()}
    raw.send(2, "A", "touch", annotations=context)
    other.send(2, "A", "touch", annotations=context)
    while server.statistics()["nested_waiting"] < 2:
        time.sleep(0.001)
    for name in ("A.touch 1", "X.m 1"):
        for number in range(10):
            for sequence in (1, 2, 3):
                question = Probe(number, 0.0, SPREAD_MAX, ((name, 1), ("X.m 1", 1))).encode()
                raw.sock.sendall(encode_frame(FrameType.PROBE, CODEC.serializer_id, 0, sequence, question))
    assert raw.call("Pyro.Daemon", "ping") is None  # all of them have been read
    assert server.statistics()["nested_waiting"] == 2
    go.set()
    assert raw.replies(2) == {1: True, 2: "touched"}
    assert other.reply() == (2, "touched")
    assert (server.statistics()["deadlocks"], server.statistics()["probes_sent"]) == (0, 0)
    raw.sock.sendall(encode_frame(FrameType.PROBE, CODEC.serializer_id, 0, 1, b"nonsense"))
    (said,) = raw.ends()
    assert b"PROBE is malformed" in said.payload
    raw.close()
    other.close()


@pytest.mark.parametrize("servers", [1, 3])
def test_contention_without_a_cycle_refuses_nobody(serve, servers):
    """Chains that take objects in one order wait long and much, and never for each other."""
    hosts = [serve() for _ in range(servers)]
    uris = [str(hosts[i % servers].register(Busy(), f"N{i}")) for i in range(4)]
    chance = random.Random(1)

    def work(seed):
        chance = random.Random(seed)
        for _ in range(15):
            way = sorted(chance.sample(range(4), 3))
            assert Proxy(uris[way[0]], timeout_s=WAIT_S).through(*(uris[i] for i in way[1:])) == 3
        return "done"

    seeds = [chance.random() for _ in range(16)]
    assert outcomes(*[lambda seed=seed: work(seed) for seed in seeds]) == ["done"] * 16
    assert sum(host.statistics()["probes_sent"] for host in hosts) > 0
    assert sum(host.statistics()["deadlocks"] for host in hosts) == 0


@expose
class Busy:
    def through(self, *uris):
        time.sleep(0.004)  # work
        return 1 + (Proxy(uris[0], timeout_s=WAIT_S).through(*uris[1:]) if uris else 0)


def test_chains_in_any_order_all_end(serve):
    """Some are refused, the others have their result, and nobody waits for ever."""
    hosts = [serve() for _ in range(2)]
    uris = [str(hosts[i % 2].register(Busy(), f"N{i}")) for i in range(4)]

    def work(seed):
        chance = random.Random(seed)
        ended = []
        for _ in range(10):
            way = chance.sample(range(4), 3)
            try:
                ended.append(Proxy(uris[way[0]], timeout_s=WAIT_S).through(*(uris[i] for i in way[1:])))
            except errors.Deadlock:
                ended.append("Deadlock")
        return ended

    found = outcomes(*[lambda seed=seed: work(seed) for seed in range(12)])
    ended = [each for ends in found for each in ends]
    assert set(ended) == {3, "Deadlock"}
    assert len(ended) == 120
