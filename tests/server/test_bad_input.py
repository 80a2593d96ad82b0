"""What a hostile or broken peer sends ends soon and in words, and other clients notice nothing."""

import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from Pyro5.api import Proxy
from Pyro5.serializers import serializers

from objserver import Limits, ObjectServer, ServerSettings, expose

LIMIT_S = 0.3
WITHIN_S = LIMIT_S + 1.5
MiB = 1 << 20
HEADER = struct.Struct("!4sHBBHHII16sHH")
CONNECT, CONNECT_OK, INVOKE, RESULT = 1, 2, 4, 5
COMPRESSED, EXCEPTION = 2, 1
MANY = b"".join(b"A%03d" % n + bytes(4) for n in range(65))
IDS = {"serpent": 1, "marshal": 2, "json": 3, "msgpack": 4}


@expose
class Echo:
    def echo(self, value):
        return value


def frame(kind, payload=b"", *, annotations=b"", flags=0, serializer=1, size=None, annotations_size=None):
    size = len(payload) if size is None else size
    annotations_size = len(annotations) if annotations_size is None else annotations_size
    header = HEADER.pack(
        b"PYRO", 502, kind, serializer, flags, 7, size, annotations_size, bytes(16), 0, 0x4DC5
    )
    return header + annotations + payload


@pytest.fixture
def server():
    limits = Limits(frame_size_max=4 * MiB, annotations_max=64)
    settings = ServerSettings(handshake_timeout_s=LIMIT_S, frame_timeout_s=LIMIT_S, limits=limits)
    with ObjectServer(settings=settings) as server:
        server.register(Echo, "echo")
        yield server


@pytest.fixture(autouse=True)
def bystander(server):
    """Another client, whose calls go on all the time and never take long."""
    stop, started = threading.Event(), threading.Event()
    slowest, problems = [0.0], []

    def work():
        try:
            with Proxy(f"PYRO:echo@{server.address}") as proxy:
                proxy._pyroTimeout = 5
                number = 0
                while not stop.is_set():
                    before = time.monotonic()
                    number += 1
                    assert proxy.echo(number) == number
                    slowest[0] = max(slowest[0], time.monotonic() - before)
                    started.set()
                    stop.wait(0.002)  # the rate of its calls
        except Exception as problem:
            problems.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(5), problems
    yield
    stop.set()
    thread.join(10)
    assert not problems
    assert slowest[0] < 1.0


@pytest.fixture
def wire(server):
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as sock:
        yield sock


@pytest.fixture
def greeted(wire):
    greet(wire)
    return wire


def greet(sock):
    sock.sendall(frame(CONNECT, serializers["serpent"].dumps({"handshake": "hello", "object": "echo"})))
    assert read_frame(sock)[0] == CONNECT_OK


def read_exactly(sock, size):
    data = b""
    while len(data) < size:
        received = sock.recv(size - len(data))
        assert received, "the connection ended inside a frame"
        data += received
    return data


def read_frame(sock):
    """(type, flags, decoded payload)"""
    _, _, kind, serializer, flags, _, size, annotations_size, _, _, _ = HEADER.unpack(read_exactly(sock, 40))
    payload = read_exactly(sock, annotations_size + size)[annotations_size:]
    codec = next(c for c in serializers.values() if c.serializer_id == serializer)
    return kind, flags, codec.loads(payload)


def ending(sock):
    """All that the server still says; fails unless it closes in time."""
    deadline = time.monotonic() + WITHIN_S
    said = b""
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return said
        if not data:
            return said
        said += data


def send(sock, data):
    try:
        sock.sendall(data)
    except OSError:
        pass  # the server may have closed already


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x00" * 64, b"not Pyro"),
        (bytes(range(256)) * 8, b"not Pyro"),
        (b"PYRO\x00\x01" + bytes(34), b"protocol version 1"),
        (frame(CONNECT)[:-1] + b"\x00", b"damaged"),
        (frame(INVOKE, b"x"), b"connect frame"),
        (frame(CONNECT, b"not serpent"), b""),
        (frame(CONNECT, b"[1]"), b"names no object"),
        (frame(CONNECT, size=MiB), b"more than"),
        (b"PYRO", b"no handshake"),
        (frame(CONNECT)[:20], b"no handshake"),
        (frame(CONNECT, size=1000), b"no handshake"),
        (b"", b"no handshake"),
    ],
    ids=[
        "zeros",
        "bytes",
        "version",
        "damaged",
        "order",
        "payload",
        "list",
        "oversize",
        "magic",
        "half",
        "body",
        "mute",
    ],
)
def test_a_bad_greeting_is_refused_in_words_and_in_time(wire, data, said):
    send(wire, data)
    answer = ending(wire)
    assert answer[6:7] == b"\x03"
    assert said in answer


@pytest.mark.parametrize("verb", ["GET", "POST", "HEAD", "OPTIONS"])
def test_http_is_answered_in_http(wire, verb):
    send(wire, f"{verb} / HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    answer = ending(wire)
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b"Pyro" in answer


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"garbage " * 20, b"not Pyro"),
        (frame(INVOKE)[:20], b"no complete frame"),
        (frame(INVOKE, b"abc", size=1000), b"no complete frame"),
        (frame(INVOKE, size=0xFFFFFFFF), b"more than"),
        (frame(INVOKE, size=5 * MiB), b"frame_size_max"),
        (frame(INVOKE, annotations_size=0xFFFFFFFF), b"more than"),
        (frame(INVOKE, b"x", annotations=MANY), b"annotations_max"),
        (frame(INVOKE, b"x", annotations=b"SAME\x00\x00\x00\x00" * 65), b"annotations_max"),
        (frame(INVOKE, b"x", annotations=b"ABCD\x00\x00\xff\xff"), b""),
        (frame(INVOKE, b"not deflated", flags=COMPRESSED), b""),
        (frame(INVOKE, zlib.compress(bytes(64 * MiB), 9), flags=COMPRESSED), b"frame_size_max"),
        (frame(RESULT, b"x"), b"type 5"),
        (frame(99, b"x"), b"type 99"),
    ],
    ids=[
        "garbage", "half", "body", "huge", "oversize", "annotations-huge", "annotations-many",
        "annotations-same",
        "annotation-long", "deflate", "bomb", "result", "type",
    ],
)  # fmt: skip
def test_a_bad_frame_ends_the_connection_in_words_and_in_time(greeted, data, said):
    send(greeted, data)
    answer = ending(greeted)
    assert answer[6:7] == b"\x05"
    assert answer[9] & EXCEPTION
    assert said in answer


def nested(serializer, levels):
    if serializer == "json":
        deep = "[" * levels + "]" * levels
        return f'{{"object":"echo","method":"echo","params":[{deep}],"kwargs":{{}}}}'.encode()
    if serializer == "msgpack":
        return b"\x94\xa4echo\xa4echo\x91" + b"\x91" * levels + b"\xc0\x80"
    if serializer == "marshal":
        call = b"(\x04\x00\x00\x00u\x04\x00\x00\x00echou\x04\x00\x00\x00echo(\x01\x00\x00\x00"
        return call + b"[\x01\x00\x00\x00" * levels + b"N{0"
    return b"# serpent utf-8 python3.2\n('echo','echo',(" + b"[" * levels + b"]" * levels + b",),{})"


@pytest.mark.parametrize("levels", [101, 1000, 100_000])
@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack", "marshal"])
def test_deep_nesting_is_an_error_of_that_call_only(greeted, serializer, levels):
    greeted.settimeout(WITHIN_S)
    greeted.sendall(frame(INVOKE, nested(serializer, levels), serializer=IDS[serializer]))
    kind, flags, problem = read_frame(greeted)
    assert (kind, flags & EXCEPTION) == (RESULT, EXCEPTION)
    assert isinstance(problem, Exception)
    greeted.sendall(frame(INVOKE, serializers["json"].dumpsCall("echo", "echo", (5,), {}), serializer=3))
    assert read_frame(greeted)[2] == 5


def test_frames_that_trickle_do_not_stretch_the_deadline(greeted):
    closed = threading.Event()
    trickle = frame(INVOKE, size=100_000)

    def send_slowly():
        for byte in trickle + bytes(1000):
            if closed.wait(0.01):  # the rate of the trickle
                return
            send(greeted, bytes([byte]))

    thread = threading.Thread(target=send_slowly, daemon=True)
    thread.start()
    try:
        assert b"no complete frame" in ending(greeted)
    finally:
        closed.set()
        thread.join(5)


PROGRAM = """
import sys
from objserver import ObjectServer, expose

@expose
class Echo:
    def echo(self, value):
        return value

with ObjectServer() as server:
    server.register(Echo, "echo")
    print(server.address, flush=True)
    sys.stdin.read()
"""


def peak_memory(pid):
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def test_a_compressed_gibibyte_costs_no_more_than_the_budget():
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(16 * MiB)) for _ in range(64)) + packer.flush()
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            host, port = process.stdout.readline().strip().rsplit(":", 1)
            with Proxy(f"PYRO:echo@{host}:{port}") as proxy:
                assert proxy.echo(1) == 1
                before = peak_memory(process.pid)
                with socket.create_connection((host, int(port)), 10) as sock:
                    greet(sock)
                    sock.sendall(frame(INVOKE, bomb, flags=COMPRESSED))
                    kind, flags, problem = read_frame(sock)
                assert (kind, flags & EXCEPTION) == (RESULT, EXCEPTION)
                assert "frame_size_max" in str(problem)
                assert proxy.echo(2) == 2
                assert peak_memory(process.pid) - before < Limits().frame_size_max + 32 * MiB
            process.stdin.close()
            assert process.wait(15) == 0
        finally:
            process.kill()
