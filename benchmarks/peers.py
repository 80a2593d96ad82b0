"""The systems that are compared, each as a server process and a client.

A number means something only beside another one from the same minute on the same machine, so every peer has
the same two ends: a server subprocess on loopback that hosts `add` and `sleep`, and a `connect` that returns
`add` as a local callable.  All servers of a measurement run at once and idle while another one is measured.
The raw socket is the floor: two Python processes that pass 60 bytes back and forth and do nothing else.

Run as a module this file is the subprocess: `serve KIND`, `load KIND ADDRESS SECONDS` (calls `add` for that
long) or `sleepers ADDRESS COUNT SECONDS`.  Servers end when their standard input does, so they never outlive
the benchmark, even one that is killed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PING = b"x" * 60
SLEEPERS = 30

SERVER_OF = {
    "raw socket": "raw",
    "objserver": "objserver",
    "objserver, serpent": "objserver",
    "objserver, stock Pyro5 client": "objserver",
    "Pyro5 msgpack": "pyro5",
    "Pyro5 serpent": "pyro5",
    "rpyc": "rpyc",
}
"""Each peer by the name in the tables, and the kind of server it talks to."""


class Adder:
    """What every server hosts."""

    def add(self, a: int, b: int) -> int:
        return a + b

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


# -- processes ---------------------------------------------------------------------------------------


class Child:
    """A subprocess of this module; the first line it prints says that it is ready."""

    def __init__(self, *arguments: object, cores: set[int] | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.peers", *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        if cores:
            os.sched_setaffinity(self.pid, cores)  # before it has threads, so they all inherit it
        self.first_line = self.read()

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.end()
            raise RuntimeError("a benchmark subprocess ended early; its error is above")
        return line.strip()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def children(*commands: tuple[object, ...], cores: set[int] | None = None) -> Iterator[list[Child]]:
    """Subprocesses that are ready, and ended at the end whatever happens."""
    started: list[Child] = []
    try:
        for command in commands:
            started.append(Child(*command, cores=cores))
        yield started
    finally:
        for child in started:
            child.end()


# -- servers -----------------------------------------------------------------------------------------


def _announce(address: str) -> None:
    print(address, flush=True)
    sys.stdin.read()


def _serve_raw() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(4096):
                connection.sendall(data)

    threading.Thread(target=answer, daemon=True).start()
    _announce(f"127.0.0.1:{listener.getsockname()[1]}")


def _serve_objserver() -> None:
    from objserver import ObjectServer, expose

    adder = expose(Adder)
    with ObjectServer("127.0.0.1:0") as server:
        server.register(adder, "Adder")
        for number in range(SLEEPERS):
            server.register(adder, f"Sleeper{number}")
        _announce(server.address)


def _serve_pyro5() -> None:
    import Pyro5.api

    daemon = Pyro5.api.Daemon("127.0.0.1")
    daemon.register(Pyro5.api.expose(Adder)(), "Adder")
    threading.Thread(target=daemon.requestLoop, daemon=True).start()
    _announce(daemon.locationStr)


def _serve_rpyc() -> None:
    import rpyc
    from rpyc.utils.server import ThreadedServer

    class Service(rpyc.Service):
        exposed_add = Adder.add

    server = ThreadedServer(Service, hostname="127.0.0.1", port=0)
    threading.Thread(target=server.start, daemon=True).start()
    _announce(f"127.0.0.1:{server.port}")


SERVERS = {"raw": _serve_raw, "objserver": _serve_objserver, "pyro5": _serve_pyro5, "rpyc": _serve_rpyc}


# -- clients -----------------------------------------------------------------------------------------


def connect(peer: str, address: str) -> tuple[Callable[[int, int], Any], Callable[[], None]]:
    """The peer's remote `add` as a callable, and what closes it."""
    host, _, port = address.rpartition(":")
    if peer == "raw socket":
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ping(a: int, b: int) -> int:
            sock.sendall(PING)
            sock.recv(4096)
            return 5

        return ping, sock.close
    if peer == "rpyc":
        import rpyc

        connection = rpyc.connect(host, int(port))
        return connection.root.add, connection.close
    if peer in ("objserver", "objserver, serpent"):
        from objserver import Proxy

        proxy = Proxy(f"PYRO:Adder@{address}", serializer="serpent" if "serpent" in peer else None)
        return proxy.add, proxy.release
    import Pyro5.api

    stock = Pyro5.api.Proxy(f"PYRO:Adder@{address}")
    stock._pyroSerializer = "msgpack" if peer == "Pyro5 msgpack" else "serpent"
    stock._pyroBind()
    return stock.add, stock._pyroRelease


def _load(peer: str, address: str, seconds: float) -> None:
    add, close = connect(peer, address)
    for _ in range(200):
        add(2, 3)
    print("ready", flush=True)
    for _ in iter(sys.stdin.readline, ""):
        calls, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            add(2, 3)
            calls += 1
        print(calls, flush=True)
    close()


def _sleepers(address: str, count: int, seconds: float) -> None:
    from objserver import Proxy

    proxies = [Proxy(f"PYRO:Sleeper{number}@{address}") for number in range(count)]
    for proxy in proxies:
        proxy.add(2, 3)
    print("ready", flush=True)
    for _ in iter(sys.stdin.readline, ""):
        threads = [threading.Thread(target=proxy.sleep, args=(seconds,)) for proxy in proxies]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(time.perf_counter() - begin, flush=True)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["serve", kind]:
            SERVERS[kind]()
        case ["load", peer, address, seconds]:
            _load(peer, address, float(seconds))
        case ["sleepers", address, count, seconds]:
            _sleepers(address, int(count), float(seconds))
        case _:
            raise SystemExit(f"unknown: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
