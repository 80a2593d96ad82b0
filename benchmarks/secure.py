"""What TLS costs a call, and what clients cost that do not play by the rules.

    python -m benchmarks.secure

The cost of a call is that of one sequential client, with its server on one core, as in `add`: plain and over
TLS 1.3 in turns.  The handshake is not in it, and is shown beside it.

The crowd is 500 connections that begin a TLS handshake and leave it there, new ones as soon as the server has
closed the old ones, and 200 clients that ask for large replies and do not read them.  What counts is the 99th
percentile of another client's calls, to the same over TLS without the crowd.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pathlib
import select
import shutil
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.measures import Spread
from benchmarks.report import Sheet, Tables, run_alone
from objserver import ObjectServer, Proxy, expose
from objserver.codecs import Codecs
from objserver.security import ALLOW_AUTHENTICATED, Authentication, ClientTLS, ServerTLS, SharedKey, authority
from objserver.settings import Limits
from objserver.wire import FrameType, encode_frame

HALF_OPEN, SLOW_READERS = 500, 200
REPLY_SIZE = 1_000_000
SECRET = bytes(range(32))
WAYS = ("plain", "TLS")
_MESSAGE = b"x" * 80


@expose
class Adder:
    def add(self, a: int, b: int) -> int:
        return a + b

    def large(self) -> str:
        return "x" * REPLY_SIZE


def _serve(pipe: Connection, keys: pathlib.Path) -> None:
    tls = ServerTLS(certificate=str(keys / "server.pem"), key=str(keys / "server.key"))
    means = Authentication(keys={"lab": SECRET})
    with contextlib.ExitStack() as stack:
        known = {"authentication": means, "authorization": ALLOW_AUTHENTICATED}
        servers = [ObjectServer(), ObjectServer(tls=tls), ObjectServer(tls=tls, **known)]
        for server in servers:
            stack.enter_context(server).register(Adder, "Adder")
        pipe.send([server.address for server in servers])
        pipe.recv()


def _crowd(pipe: Connection, address: str, keys: pathlib.Path) -> None:
    """Half-open connections and slow readers, until told to end."""
    host, _, port = address.rpartition(":")
    tls, codecs = ClientTLS(ca=str(keys / "ca.pem")), Codecs(Limits())

    def half_open() -> socket.socket:
        sock = socket.create_connection((host, int(port)))
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        return sock

    hello = codecs.serpent.encode({"handshake": "hello", "object": "Adder"})
    request = codecs.serpent.encode_call("Adder", "large", (), {})
    slow = []
    for _ in range(SLOW_READERS):
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        encrypted = tls.context.wrap_socket(sock, server_hostname=host)
        encrypted.sendall(encode_frame(FrameType.CONNECT, 1, 0, 0, hello))
        encrypted.sendall(encode_frame(FrameType.INVOKE, 1, 0, 1, request))
        slow.append(encrypted)
    poller = select.epoll()
    opened = {}
    for _ in range(HALF_OPEN):
        sock = half_open()
        opened[sock.fileno()] = sock
        poller.register(sock.fileno(), select.EPOLLIN)
    pipe.send("ready")
    while not pipe.poll(0.05):
        for descriptor, _ in poller.poll(0):
            poller.unregister(descriptor)
            opened.pop(descriptor).close()
            sock = half_open()
            opened[sock.fileno()] = sock
            poller.register(sock.fileno(), select.EPOLLIN)
        for one in slow[:: SLOW_READERS // 10]:
            one.recv(100)
    pipe.send("done")


def _client(pipe: Connection, addresses: list[str], keys: pathlib.Path) -> None:
    """Answers `(which, calls)` with the time that each call took."""
    tls = ClientTLS(ca=str(keys / "ca.pem"))
    proxies = [
        Proxy(f"PYRO:Adder@{addresses[0]}"),
        Proxy(f"PYRO:Adder@{addresses[1]}", tls=tls),
    ]
    calls = [proxy.add for proxy in proxies]
    while (order := pipe.recv()) is not None:
        if order[0] == "connect":
            made = []
            for options in ({}, {"tls": tls}, {"tls": tls, "credentials": SharedKey("lab", SECRET)}):
                taken = []
                for _ in range(order[1]):
                    begun = time.perf_counter()
                    with Proxy(f"PYRO:Adder@{addresses[len(made)]}", **options) as proxy:  # type: ignore[arg-type]
                        proxy.add(2, 3)
                        taken.append(time.perf_counter() - begun)
                made.append(statistics.median(taken))
            pipe.send(made)
            continue
        call, times = calls[order[0]], []
        for _ in range(order[1]):
            begun = time.perf_counter()
            call(2, 3)
            times.append(time.perf_counter() - begun)
            if len(order) > 2:
                time.sleep(order[2])
        pipe.send(times)


@contextlib.contextmanager
def _process(target: Any, *arguments: Any, cores: set[int] | None = None) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=target, args=(theirs, *arguments), daemon=True
    )
    process.start()
    assert process.pid is not None
    if cores:
        os.sched_setaffinity(process.pid, cores)
    try:
        yield ours
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)
        process.join(10)
        if process.is_alive():
            process.kill()


def _openssl_us(keys: pathlib.Path, count: int) -> float:
    """What OpenSSL itself takes for a request and its reply at both ends, in memory and in one process."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    identity = ServerTLS(certificate=str(keys / "server.pem"), key=str(keys / "server.key")).load(True)
    server = identity.context.wrap_bio(to_server, to_client, server_side=True)
    context = ClientTLS(ca=str(keys / "ca.pem")).context
    client = context.wrap_bio(to_client, to_server, server_hostname="localhost")
    for end in (client, server) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        client.write(_MESSAGE)
        server.read(16_384)
        server.write(_MESSAGE)
        client.read(16_384)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def _p99(times: list[float]) -> float:
    return sorted(times)[len(times) * 99 // 100]


def tables(quick: bool = False) -> Tables:
    """For the page of all benchmarks."""
    starts, rounds, count = (3, 4, 1_000) if quick else (9, 6, 2_000)
    keys = pathlib.Path(tempfile.mkdtemp(prefix=".bench-", dir=pathlib.Path(__file__).parent.parent))
    us: dict[str, list[float]] = {way: [] for way in WAYS}
    connect: list[list[float]] = []
    alone: list[float] = []
    crowded: list[float] = []
    openssl: list[float] = []
    try:
        authority.make_authority(keys, "Benchmark")
        authority.issue_server(keys, ["localhost"])
        core = {min(os.sched_getaffinity(0))}
        for _ in range(starts):
            openssl.append(_openssl_us(keys, count))
            with _process(_serve, keys, cores=core) as server:
                addresses = server.recv()
                with _process(_client, addresses, keys, cores=core) as client:
                    taken: dict[str, list[float]] = {way: [] for way in WAYS}
                    for _ in range(rounds + 1):
                        for n, way in enumerate(WAYS):
                            client.send((n, count))
                            taken[way] += client.recv()
                    for way, times in taken.items():
                        us[way].append(statistics.median(times[count:]) * 1e6)
                    client.send(("connect", 50))
                    connect.append(client.recv())
            with _process(_serve, keys) as server:
                addresses = server.recv()
                with _process(_client, addresses, keys) as client:
                    order = (1, 500 if quick else 2_000, 0.002)
                    client.send(order)
                    client.recv()
                    client.send(order)
                    alone.append(_p99(client.recv()))
                    with _process(_crowd, addresses[1], keys) as crowd:
                        crowd.recv()
                        client.send(order)
                        crowded.append(_p99(client.recv()))
                        crowd.send("end")
                        crowd.recv()
    finally:
        shutil.rmtree(keys, ignore_errors=True)
    made = Tables()
    plain, encrypted = (Spread(tuple(us[way])) for way in WAYS)
    kinds = [Spread(tuple(times[n] * 1e3 for times in connect)) for n in range(3)]
    made.sheets.append(
        Sheet(
            "TLS, one sequential client, add(2, 3), everything on one core",
            ["measured", "value"],
            [
                ["a call, plain", plain.text(1, " µs")],
                ["a call over TLS", encrypted.text(1, " µs")],
                ["of that OpenSSL alone, both ends, in memory", Spread(tuple(openssl)).text(1, " µs")],
                ["a connection and its first call, plain", kinds[0].text(2, " ms")],
                ["... over TLS", kinds[1].text(2, " ms")],
                ["... over TLS, with a shared key", kinds[2].text(2, " ms")],
            ],
            "Certificates of ECDSA P-256, as `objserver keys` makes them.",
        )
    )
    made.at_most("TLS: at most 1.25x a plain sequential call", encrypted.over(plain), 1.25)
    before, beside = (Spread(tuple(s * 1e6 for s in times)) for times in (alone, crowded))
    made.sheets.append(
        Sheet(
            f"One client over TLS beside {HALF_OPEN} half-open connections and {SLOW_READERS} slow readers",
            ["measured", "p99"],
            [["without them", before.text(0, " µs")], ["beside them", beside.text(0, " µs")]],
            "A call each 2 ms, unpinned.",
        )
    )
    sentence = f"{HALF_OPEN} half-open connections and {SLOW_READERS} slow readers: p99 of others at most 2x"
    made.at_most(sentence, beside.over(before), 2)
    return made


if __name__ == "__main__":
    run_alone(tables)
