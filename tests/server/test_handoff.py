import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import Pyro5.api
import pytest

from objserver import ObjectServer, Proxy, errors, expose
from objserver.codecs import Codecs
from objserver.security import ClientTLS, ServerTLS
from objserver.server import handoff
from objserver.server.handoff import Adopter, Front, SharedPort, Standing, by_object, fewest
from objserver.settings import Limits, ServerSettings
from objserver.wire import Frame, FrameParser, FrameType, encode_frame

_WORKER = """
import os, socket, sys
import Pyro5.api
from objserver import ObjectServer, Shared
from objserver.server.handoff import Adopter, SharedPort

@Pyro5.api.expose
class Who:
    def pid(self):
        return os.getpid()
    def echo(self, value):
        return value
    def descriptors(self):
        return len(os.listdir("/proc/self/fd"))

server = ObjectServer()
for name in ("one", "two", "three", "four", "five", "six"):
    server.register(Who, name, activation=Shared())
with server:
    if sys.argv[1] == "port":
        entrance = SharedPort(server, sys.argv[2])
    else:
        entrance = Adopter(server, socket.socket(fileno=int(sys.argv[2])))
    print("ready", flush=True)
    sys.stdin.read()
    entrance.stop()
"""
NAMES = ("one", "two", "three", "four", "five", "six")


class Worker:
    """A server in another process, whose connections come from elsewhere."""

    def __init__(self, front=None, name="", port=""):
        self.name = name
        arguments, passed = ["port", port], ()
        if front is not None:
            channel = front.add(name)
            passed = (channel.fileno(),)
            arguments = ["channel", f"{channel.fileno()}"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=passed,
        )
        if front is not None:
            channel.close()
        assert self.process.stdout.readline() == "ready\n"
        self.pid = self.process.pid

    def signal(self, number):
        os.kill(self.pid, number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED)  # now it does nothing any more

    def close(self):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            with self.process:
                self.process.stdin.close()
                self.process.stdin = None


@pytest.fixture
def front():
    front = Front("localhost:0")
    front.start()
    yield front
    front.stop()


@pytest.fixture
def workers(front):
    workers = [Worker(front, name) for name in ("red", "blue")]
    yield workers
    for worker in workers:
        worker.close()


def calls(front, name):
    with Proxy(f"PYRO:{name}@{front.address}") as proxy:
        return proxy.pid()


def stock_calls(front, name):
    with Pyro5.api.Proxy(f"PYRO:{name}@{front.address}") as proxy:
        return proxy.pid()


def until(condition):
    """A bound and not a pause: it looks again at once."""
    for _ in range(10**9):
        if condition():
            return
        os.sched_yield()


# -- who chooses -----------------------------------------------------------------------------------------


def test_one_object_goes_to_one_worker_and_only_those_of_a_worker_that_goes_move():
    workers = [Standing(name, 0) for name in "abcd"]
    ids = [f"Account/{n}" for n in range(1000)]
    before = {id: by_object(id, None, workers) for id in ids}
    assert before == {id: by_object(id, None, workers[::-1]) for id in ids}
    after = {id: by_object(id, None, workers[:3]) for id in ids}
    assert {id for id in ids if before[id] != after[id]} == {id for id in ids if before[id] == "d"}
    shares = [[*before.values()].count(name) for name in "abcd"]
    assert min(shares) > 150
    assert by_object("\ud800", None, workers) in "abcd"


def test_the_server_itself_and_what_nobody_knows_go_to_whom_has_the_fewest():
    workers = [Standing("a", 3), Standing("b", 1), Standing("c", 1)]
    assert fewest("x", None, workers) == "b"
    assert by_object("", None, workers) == by_object("Pyro.Daemon", None, workers) == "b"


# -- handing over ----------------------------------------------------------------------------------------


def test_stock_clients_and_ours_come_to_the_worker_of_their_object(front, workers):
    pids = {worker.name: worker.pid for worker in workers}
    standings = [Standing(name, 0) for name in pids]
    for name in NAMES:
        expected = pids[by_object(name, None, standings)]
        assert {calls(front, name), stock_calls(front, name), calls(front, name)} == {expected}
    assert front.statistics()["handed_over"] >= 12
    with Pyro5.api.Proxy(f"PYRO:Pyro.Daemon@{front.address}") as daemon:
        assert "one" in daemon.registered()


def test_a_connection_lives_on_without_the_front(front, workers):
    ours, stock = Proxy(f"PYRO:one@{front.address}"), Pyro5.api.Proxy(f"PYRO:one@{front.address}")
    assert ours.pid() == stock.pid()
    front.stop()
    value = "x" * 300_000
    assert ours.echo(value) == stock.echo(value) == value
    ours._pyroRelease()
    stock._pyroRelease()


def test_an_unknown_object_is_refused_by_a_worker(front, workers):
    with pytest.raises(errors.ObjectNotFound), Proxy(f"PYRO:none@{front.address}") as proxy:
        proxy.pid()


def test_who_speaks_something_else_is_told_by_a_worker(front, workers):
    host, _, port = front.address.rpartition(":")
    for said, answer in (
        (b"GET / HTTP/1.0\r\n\r\n" + b" " * 40, b"HTTP/1.0 400"),
        (b"\x16\x03\x01" + bytes(60), b"\x15\x03"),
        (encode_frame(FrameType.INVOKE, 1, 0, 0, b"x"), b"PYRO"),
        (b"PYRO\x01\xf6" + b"\xff" * 40, b"PYRO"),
    ):
        with socket.create_connection((host, int(port)), 30) as sock:
            sock.sendall(said)
            assert sock.recv(1000).startswith(answer)


def connect_frame(object_id="one", size=0):
    codec = Codecs(Limits()).serpent
    payload = codec.encode({"handshake": "x" * size, "object": object_id})
    return encode_frame(FrameType.CONNECT, codec.serializer_id, 0, 0, payload)


def frames_from(sock):
    parser, frames = FrameParser(Limits()), []
    while not frames:
        frames = parser.receive_data(sock.recv(65536))
    return frames


@pytest.mark.parametrize("step", [1, 7, 10**6])
def test_a_connect_frame_may_come_in_any_portions_and_be_as_large_as_a_handshake_may(front, workers, step):
    host, _, port = front.address.rpartition(":")
    frame = connect_frame(size=10 if step < 100 else 60_000)
    with socket.create_connection((host, int(port)), 30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(frame), step):
            sock.sendall(frame[at : at + step])
        assert frames_from(sock)[0].type == FrameType.CONNECT_OK


def test_many_slow_peers_delay_nobody_and_are_refused_in_time():
    front = Front("localhost:0", settings=ServerSettings(handshake_timeout_s=1.0))
    front.start()
    worker = Worker(front, "red")
    host, _, port = front.address.rpartition(":")
    slow = [socket.create_connection((host, int(port)), 30) for _ in range(300)]
    for sock in slow:
        sock.sendall(b"PYRO\x01\xf6")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda n: calls(front, "one"), range(20))) == {worker.pid}
    assert frames_from(slow[0])[0].type == FrameType.CONNECT_FAIL
    for sock in slow[1:]:
        while sock.recv(1000):
            pass
    until(lambda: front.statistics()["guests"] == 0)
    assert front.statistics()["dropped"] == 300
    for sock in slow:
        sock.close()
    worker.close()
    front.stop()


def test_of_too_many_slow_peers_who_was_first_goes_first(front, workers, monkeypatch):
    monkeypatch.setattr(handoff, "GUESTS_MAX", 10)
    host, _, port = front.address.rpartition(":")
    slow = [socket.create_connection((host, int(port)), 30) for _ in range(15)]
    for name in NAMES:
        assert calls(front, name) in {worker.pid for worker in workers}
    assert frames_from(slow[0])[0].type == FrameType.CONNECT_FAIL
    assert front.statistics()["guests"] <= 10
    slow[-1].sendall(connect_frame())
    assert frames_from(slow[-1])[0].type == FrameType.CONNECT_OK
    for sock in slow:
        sock.close()


def test_descriptors_do_not_leak(front, workers):
    """Neither here nor in the workers."""

    def held():
        for name in NAMES:
            calls(front, name)
        with contextlib.ExitStack() as stack:
            proxies = [stack.enter_context(Proxy(f"PYRO:{name}@{front.address}")) for name in NAMES]
            return [proxy.descriptors() for proxy in proxies]

    calls(front, "one")
    before, mine = max(held()), len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: stock_calls(front, NAMES[n % 6]), range(100)))
    until(lambda: len(os.listdir("/proc/self/fd")) <= mine)
    until(lambda: max(held()) <= before + 2)


# -- workers that die, or do nothing ---------------------------------------------------------------------


def test_what_a_worker_had_not_taken_when_it_died_goes_to_others(front, workers):
    red, blue = workers
    red.signal(signal.SIGSTOP)
    blue.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(calls, front, name) for name in NAMES * 2]
        until(lambda: front.statistics()["guests"] == 12 and not front.statistics()["greeting"])
        red.signal(signal.SIGKILL)
        blue.signal(signal.SIGCONT)
        assert {call.result(30) for call in waiting} == {blue.pid}
    assert front.statistics()["given_again"] >= 1
    assert front.statistics()["workers"] == 1


def test_a_worker_that_takes_nothing_is_given_up_and_what_it_was_sent_is_served_once(
    front, workers, monkeypatch
):
    monkeypatch.setattr(handoff, "TAKE_TIMEOUT_S", 0.3)
    standings = [Standing(worker.name, 0) for worker in workers]
    stopped, other = sorted(workers, key=lambda worker: worker.name != by_object("one", None, standings))
    stopped.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit(calls, front, "one") for _ in range(100)]  # more than may be pending
        assert {call.result(30) for call in waiting} == {other.pid}
    assert front.statistics()["workers"] == 1
    # It finds them in its channel, and lets them be.
    stopped.signal(signal.SIGCONT)
    assert calls(front, "one") == other.pid


def test_while_there_is_no_worker_connections_wait_for_one(front):
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(calls, front, "one")
        until(lambda: front.statistics()["guests"] == 1 and not front.statistics()["greeting"])
        worker = Worker(front, "red")
        assert waiting.result(30) == worker.pid
        worker.close()


def test_where_none_comes_they_are_told(monkeypatch):
    front = Front("localhost:0", settings=ServerSettings(handshake_timeout_s=0.2))
    front.start()
    with pytest.raises(errors.ConnectFailed, match="no process of this server is there"):
        calls(front, "one")
    front.stop()


def test_clients_that_connect_while_a_worker_is_killed_come_to_another(front, workers):
    victims = [workers[0]]
    answered = threading.Semaphore(0)
    stop = threading.Event()

    def connect(n):
        failed = 0
        while not stop.is_set():
            try:
                assert calls(front, NAMES[n]) > 0
                answered.release()
            except errors.CommunicationError:  # it was with the one that was killed
                failed += 1
        return failed

    with ThreadPoolExecutor(6) as pool:
        working = [pool.submit(connect, n) for n in range(6)]
        for round in range(3):
            for _ in range(60):
                assert answered.acquire(timeout=30)
            victims[-1].signal(signal.SIGKILL)
            victims.append(Worker(front, f"again {round}"))
        for _ in range(60):
            assert answered.acquire(timeout=30)
        stop.set()
        failed = sum(each.result(30) for each in working)
    assert failed <= 3 * 6 * 3
    for victim in victims:
        victim.close()


def test_a_worker_that_stops_in_good_order_gets_no_more(front, workers):
    workers[0].close()
    assert {calls(front, name) for name in NAMES} == {workers[1].pid}
    front.remove("blue")
    workers.append(Worker(front, "green"))
    assert {calls(front, name) for name in NAMES} == {workers[2].pid}


def test_a_choice_that_fails_is_as_good_as_any():
    def choose(object_id, connect, workers):
        assert isinstance(connect, Frame)
        raise RuntimeError(object_id)

    front = Front("localhost:0", choose=choose)
    front.start()
    worker = Worker(front, "red")
    assert calls(front, "one") == worker.pid
    worker.close()
    front.stop()


# -- adopting --------------------------------------------------------------------------------------------


class Echo:
    def echo(self, value):
        return value


def test_with_tls_connections_go_to_whom_has_the_fewest(lab):

    front = Front("localhost:0", reads=False)
    front.start()
    tls = ServerTLS(certificate=str(lab / "server.pem"), key=str(lab / "server.key"))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ObjectServer(tls=tls)) for _ in range(2)]
        for number, server in enumerate(servers):
            server.register(expose(Echo), "echo")
            stack.callback(Adopter(server, front.add(f"{number}")).stop)
        proxies = []
        for _ in range(4):
            proxy = Proxy(f"PYRO:echo@{front.address}", tls=ClientTLS(ca=str(lab / "ca.pem")))
            proxies.append(stack.enter_context(proxy))
            assert proxy.echo(7) == 7
        assert [len(server.poller.connections) for server in servers] == [2, 2]
        with socket.socket() as sock, pytest.raises(ValueError, match="must not read"):
            servers[0].adopt(sock, b"PYRO")
    front.stop()


def test_a_server_that_stops_or_has_too_many_adopts_nobody():

    with ObjectServer(settings=ServerSettings(connections_max=1)) as server:
        server.register(expose(Echo), "echo")
        pairs = [socket.socketpair() for _ in range(3)]
        for _, theirs in pairs[:2]:
            server.adopt(theirs, connect_frame("echo"))
        answers = [frames_from(ours)[0] for ours, _ in pairs[:2]]
        assert [answer.type for answer in answers] == [FrameType.CONNECT_OK, FrameType.CONNECT_FAIL]
        assert b"connections_max" in bytes(answers[1].payload)
    server.adopt(pairs[2][1], b"")
    for ours, theirs in pairs:
        assert theirs.fileno() == -1
        ours.close()


def test_an_adopter_that_loses_its_front_says_so(front):
    lost = threading.Event()
    with ObjectServer() as server:
        adopter = Adopter(server, front.add("red"), lost.set)
        front.stop()
        assert lost.wait(30)
        adopter.stop()
    assert lost.is_set()


# -- the kernel as the front -----------------------------------------------------------------------------


def test_a_shared_port_is_served_by_all_and_by_those_that_are_left():
    with SharedPort.reserve("127.0.0.1:0") as reserved:
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        workers = [Worker(port=address) for _ in range(2)]

        def call(_):
            with Pyro5.api.Proxy(f"PYRO:one@{address}") as proxy:
                return proxy.pid()

        assert {call(n) for n in range(40)} == {worker.pid for worker in workers}
        workers[0].signal(signal.SIGKILL)
        workers[0].process.wait()
        assert {call(n) for n in range(10)} == {workers[1].pid}
        with pytest.raises(errors.ListenFailed):
            ObjectServer(address)
        for worker in workers:
            worker.close()
