"""One connection of a server: what it owes, what it holds, and whose it is."""

import contextlib
import socket
import threading
import time

import pytest

from objserver import (
    ObjectServer,
    PerClient,
    Proxy,
    Serial,
    ServerSettings,
    Shared,
    current,
    errors,
    expose,
    oneway,
    pyro5,
)
from objserver.codecs import Codecs
from objserver.settings import Limits
from objserver.wire import Flag, FrameParser, FrameType, encode_frame

WAIT_S = 10
MiB = 1 << 20
codecs = Codecs(Limits())


@expose
class Thing:
    go_on = threading.Event()

    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n

    def zeros(self, size):
        return bytes(size)

    @oneway
    def take(self, data):
        self.go_on.wait(WAIT_S)

    def mark(self, name, value=b"x"):
        current.response_annotations[name] = value
        return "marked"

    def awkward(self):
        class Awkward(Exception):
            def __str__(self):
                raise SystemExit("no text")

            @property
            def value(self):
                raise SystemExit("no value")

        raise Awkward(threading.Lock(), "\ud800")

    def surrogate(self):
        raise KeyError("\ud800")


class Peer:
    """A raw client."""

    def __init__(self, server, object_id="Thing", session=None, greet=True):
        host, _, port = server.address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), WAIT_S)
        self.parser = FrameParser(Limits(frame_size_max=1 << 30))
        self.frames = []
        if greet:
            data = {"handshake": "hello", "object": object_id}
            if session is not None:
                data["objserver"] = {"version": 1, "session": session}
            payload = codecs.serpent.encode(data)
            self.sock.sendall(encode_frame(FrameType.CONNECT, 1, 0, 0, payload))
            self.greeting = self.read()

    def read(self):
        while not self.frames:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.frames += self.parser.receive_data(data)
        return self.frames.pop(0)

    def send(self, method, *args, flags=0, codec=codecs.native, object_id="Thing", times=1):
        payload = codec.encode_call(object_id, method, args, {})
        frame = encode_frame(FrameType.INVOKE, codec.serializer_id, flags, 1, payload)
        self.sock.sendall(frame * times)

    def call(self, method, *args, codec=codecs.native, **options):
        self.send(method, *args, codec=codec, **options)
        return codec.decode(self.read().payload)


@contextlib.contextmanager
def serving(**settings):
    Thing.go_on.clear()
    with ObjectServer(settings=ServerSettings(**settings)) as server:
        server.register(Thing, "Thing", activation=Shared(), threading=Serial())
        try:
            yield server
        finally:
            Thing.go_on.set()


def wait_until(condition):
    pause = threading.Event()
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        pause.wait(0.005)


def test_replies_too_large_for_the_socket_arrive_whole_and_in_order():
    with serving() as server:
        peer = Peer(server)
        for n in range(1, 9):
            peer.send("zeros", n * MiB)
        wait_until(lambda: server.statistics()["unsent_bytes"] > MiB)
        for n in range(1, 9):
            frame = peer.read()
            assert codecs.native.decode(frame.payload) == bytes(n * MiB)
        wait_until(lambda: server.statistics()["unsent_bytes"] == 0)
        assert peer.call("add") == 1


@pytest.mark.parametrize("setting", ["send_memory_max", "unsent_memory_max"])
def test_who_never_reads_is_disconnected_and_owes_nothing(setting):
    limits = Limits(frame_size_max=2 * MiB)
    with serving(limits=limits, **{setting: 4 * MiB}) as server:
        peer = Peer(server)
        # All at once: one by one the server stops to read as soon as a reply waits, and owes no more.
        peer.send("zeros", MiB, times=64)
        wait_until(lambda: not server.statistics()["connections"])
        assert server.statistics()["unsent_bytes"] == 0
        assert Peer(server).call("add") == 1


def test_the_arguments_of_waiting_calls_count_until_they_have_run():
    with serving(receive_memory_max=8 * MiB) as server:
        peer = Peer(server)
        with contextlib.suppress(OSError):
            for _ in range(20):
                peer.send("take", bytes(MiB), flags=Flag.ONEWAY)
        other = Peer(server)
        refusal = peer.read()
        assert "receive_memory_max" in str(codecs.get(refusal.serializer_id).decode(refusal.payload))
        assert server.statistics()["receiving_bytes"] <= 8 * MiB
        Thing.go_on.set()
        assert other.call("add") == 1
        wait_until(lambda: server.statistics()["receiving_bytes"] == 0)


def test_one_connection_too_many_is_told_so():
    with serving(connections_max=2) as server:
        kept = [Peer(server), Peer(server)]
        with pytest.raises(errors.ConnectFailed, match=r"2 connections \(setting connections_max\)"):
            Proxy(f"PYRO:Thing@{server.address}", timeout_s=WAIT_S).add()
        assert [peer.call("add") for peer in kept] == [1, 2]
        kept.pop().sock.close()
        wait_until(lambda: server.statistics()["connections"] < 2)
        assert Proxy(f"PYRO:Thing@{server.address}", timeout_s=WAIT_S).add() == 3


def test_nobody_takes_the_session_of_a_stock_client():
    with serving() as server:
        server.register(Thing, "Mine", activation=PerClient())
        stock = Peer(server, "Mine")
        assert stock.call("add", object_id="Mine") == 1
        for n in range(5):
            thief = Peer(server, "Mine", session=f"connection:{n}")
            assert thief.call("add", object_id="Mine") == 1
            thief.send("release_session", object_id="Pyro.Daemon", flags=Flag.ONEWAY)
            assert thief.call("ping", object_id="Pyro.Daemon") is None
        assert stock.call("add", object_id="Mine") == 2


def test_a_slow_greeting_holds_up_nobody_else():
    asked, go_on = threading.Event(), threading.Event()

    class Doorman(ObjectServer):
        def validate_handshake(self, greeting):
            if greeting == "slow":
                asked.set()
                assert go_on.wait(WAIT_S)
            return "hello"

    with Doorman() as server:
        server.register(Thing, "Thing")
        slow = Proxy(f"PYRO:Thing@{server.address}", handshake="slow", timeout_s=WAIT_S)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(slow.add()))
        thread.start()
        assert asked.wait(WAIT_S)
        assert Proxy(f"PYRO:Thing@{server.address}", timeout_s=WAIT_S).add() == 1
        go_on.set()
        thread.join(WAIT_S)
        assert answers == [2]


def test_a_slow_locator_holds_up_nobody_else():
    asked, go_on = threading.Event(), threading.Event()

    def locate(key):
        asked.set()
        assert go_on.wait(WAIT_S)
        return Thing()

    with serving() as server:
        server.register(locate, "Located")
        answers = []
        slow = Proxy(f"PYRO:Located/a@{server.address}", timeout_s=WAIT_S)
        thread = threading.Thread(target=lambda: answers.append(slow.add()))
        thread.start()
        assert asked.wait(WAIT_S)
        assert Proxy(f"PYRO:Thing@{server.address}", timeout_s=WAIT_S).add() == 1
        go_on.set()
        thread.join(WAIT_S)
        assert answers == [1]


@pytest.mark.parametrize("codec", [codecs.native, codecs.serpent, *map(codecs.get, (3, 4))])
def test_what_cannot_be_sent_is_described_and_the_object_stays_usable(codec):
    with serving() as server:
        peer = Peer(server)
        for method, args in (
            ("mark", ("TOOLONG",)),
            ("mark", ("TEXT", "no bytes")),
            ("awkward", ()),
            ("surrogate", ()),
        ):
            error = peer.call(method, *args, codec=codec)
            assert isinstance(error, Exception), method
        assert peer.call("add", codec=codec) == 1


def test_frames_after_a_refusal_are_not_executed():
    with serving() as server:
        peer = Peer(server, greet=False)
        connect = encode_frame(
            FrameType.CONNECT, 1, 0, 0, codecs.serpent.encode({"handshake": "", "object": "Thing"})
        )
        bad = encode_frame(FrameType.CONNECT, 1, 0, 0, b"{}")
        call = encode_frame(FrameType.INVOKE, 79, 0, 1, codecs.native.encode_call("Thing", "add", (), {}))
        peer.sock.sendall(bad + connect + call)
        assert peer.read().type == FrameType.CONNECT_FAIL
        with pytest.raises((EOFError, ConnectionError)):
            peer.read()
        assert Peer(server).call("add") == 1


def test_a_server_with_blocked_servants_stops_in_the_time_allowed():
    with serving() as server:
        for n in range(10):
            server.register(Thing, f"T{n}")
            Peer(server).send("take", b"", object_id=f"T{n}", flags=Flag.ONEWAY)
        wait_until(lambda: server.statistics()["busy_objects"] == 10)
        before = time.monotonic()
        server.stop(drain_timeout_s=0.1)
        assert time.monotonic() - before < 5
        server.stop()


def test_serving_for_ever_ends_when_the_server_is_stopped():
    server = ObjectServer()
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (server.serve_forever(), ended.set()))
    thread.start()
    reference = server.register(Thing, "Thing")
    assert Proxy(reference, timeout_s=WAIT_S).add() == 1
    assert not ended.is_set()
    server.stop()
    assert ended.wait(WAIT_S)
    thread.join(WAIT_S)


@pytest.mark.parametrize("codec", [*codecs.by_id.values()], ids=lambda codec: codec.name)
def test_what_waits_counts_with_the_memory_that_it_takes_not_with_its_bytes(codec):
    """Of empty dicts, three megabytes take 256 in memory, and a mailbox holds a thousand calls."""
    with serving(receive_memory_max=9 * MiB) as server:
        peers = [Peer(server) for _ in range(4)]
        for size, peer in zip((60_000, 700, 60_000, 60_000), peers, strict=True):
            peer.send("take", [{}] * size, codec=codec)
            wait_until(lambda: server.statistics()["receiving_bytes"] > 3 * MiB)
        for peer in peers[2:]:
            refusal = codec.decode(peer.read().payload)
            assert isinstance(refusal, pyro5.MessageTooLargeError)
            assert "receive_memory_max" in str(refusal)
        assert 3 * MiB < server.statistics()["receiving_bytes"] < 9 * MiB
        Thing.go_on.set()
        assert [peer.read().flags for peer in peers[:2]] == [0, 0]
        wait_until(lambda: server.statistics()["receiving_bytes"] == 0)
