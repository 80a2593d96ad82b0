"""Large values: 1 MB of bytes there and back, and a 64 MB array one way, beside the peers.

    python -m benchmarks.large

Peers take turns, round after round, in unpinned processes; what counts is the median.  Whoever receives the
array touches every page of it, so that nobody gains by not having mapped it.  The floors: a raw socket that
sends from and receives into memory it has, and copying the array once within one process.
"""

from __future__ import annotations

import contextlib
import multiprocessing.managers
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.measures import Spread
from benchmarks.report import Sheet, Tables

SMALL = 1 << 20
LARGE = 64 << 20
SOCKET = "objserver, no shared memory"
KINDS = ("raw socket", "objserver", SOCKET, "multiprocessing.managers", "Pyro5 msgpack")


class Peer:
    """What every server hosts."""

    def echo(self, data: Any) -> Any:
        return data

    def total(self, data: Any) -> float:
        array = np.frombuffer(data) if isinstance(data, (bytes, bytearray)) else data
        return float(array[::512].sum())


class Manager(multiprocessing.managers.BaseManager):
    pass


Manager.register("Peer", Peer)


def _receive(sock: socket.socket, view: memoryview) -> None:
    at = 0
    while at < len(view):
        count = sock.recv_into(view[at:])
        if not count:
            raise SystemExit
        at += count


def _serve(kind: str) -> None:
    if kind == "raw socket":
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(SMALL)
        while True:
            _receive(sock, memoryview(buffer))
            sock.sendall(buffer)
    elif kind.startswith("objserver"):
        from objserver import ObjectServer, expose
        from objserver.settings import Limits, ServerSettings

        settings = ServerSettings()
        if kind == SOCKET:
            settings = ServerSettings(shared_memory_max=0, limits=Limits(frame_size_max=1 << 30))
        with ObjectServer("127.0.0.1:0", settings=settings) as server:
            server.register(expose(Peer), "Peer")
            print(server.address, flush=True)
            sys.stdin.read()
    elif kind == "multiprocessing.managers":
        manager = Manager(("127.0.0.1", 0), b"benchmark")
        server = manager.get_server()
        print(server.address[1], flush=True)
        server.serve_forever()
    else:
        import Pyro5.api

        daemon = Pyro5.api.Daemon("127.0.0.1")
        daemon.register(Pyro5.api.expose(Peer)(), "Peer")
        print(daemon.locationStr, flush=True)
        daemon.requestLoop()


@contextlib.contextmanager
def _server(kind: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.large", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _connect(kind: str, address: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any] | None]:
    """`echo`, and what sends an array, or None."""
    if kind == "raw socket":
        sock = socket.create_connection(("127.0.0.1", int(address)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(SMALL)

        def echo(data: bytes) -> bytearray:
            sock.sendall(data)
            _receive(sock, memoryview(buffer))
            return buffer

        return echo, None
    if kind.startswith("objserver"):
        from objserver import Proxy

        proxy = Proxy(f"PYRO:Peer@{address}")
        return proxy.echo, proxy.total
    if kind == "multiprocessing.managers":
        manager = Manager(("127.0.0.1", int(address)), b"benchmark")
        manager.connect()
        peer = manager.Peer()  # type: ignore[attr-defined]
        return (lambda data: peer.echo(data)), (lambda array: peer.total(array))
    import Pyro5.api

    stock = Pyro5.api.Proxy(f"PYRO:Peer@{address}")
    stock._pyroSerializer = "msgpack"
    return stock.echo, lambda array: stock.total(array.tobytes())


def _ms(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def measure(rounds: int, calls: int) -> dict[str, tuple[float, float]]:
    """Median ms of an echo of 1 MB and of sending 64 MB, by kind."""
    data, array = bytes(SMALL), np.random.default_rng(1).random(LARGE // 8)
    expected = float(array[::512].sum())
    echoes: dict[str, list[float]] = {kind: [] for kind in KINDS}
    sendings: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "memcpy")}
    with contextlib.ExitStack() as stack:
        peers = {kind: _connect(kind, stack.enter_context(_server(kind))) for kind in KINDS}
        target = array.copy()
        for number in range(rounds + 1):  # the first is not counted
            for kind, (echo, total) in peers.items():
                taken = [_ms(lambda echo=echo: echo(data)) for _ in range(calls)]  # type: ignore[misc]
                assert len(echo(data)) == SMALL
                if number:
                    echoes[kind] += taken
                if total is not None:
                    assert total(array) == expected
                    if number:
                        sendings[kind].append(_ms(lambda total=total: total(array)))  # type: ignore[misc]
            if number:
                sendings["memcpy"].append(_ms(lambda: np.copyto(target, array)))
    everything = dict.fromkeys([*echoes, *sendings])
    return {
        kind: (
            statistics.median(echoes.get(kind) or [float("nan")]),
            statistics.median(sendings[kind] or [float("nan")]),
        )
        for kind in everything
    }


def tables(quick: bool) -> Tables:
    """Several starts of all peers, and what came of them."""
    starts = [measure(rounds=2 if quick else 5, calls=20 if quick else 60) for _ in range(2 if quick else 5)]
    echo = {kind: Spread(tuple(start[kind][0] for start in starts)) for kind in starts[0]}
    sending = {kind: Spread(tuple(start[kind][1] for start in starts)) for kind in starts[0]}
    made = Tables()
    sheet = Sheet(
        "Large values, on one host",
        ["", "1 MB echo, ms", "to raw socket", "64 MB array, ms", "GB/s", "to Pyro5 msgpack"],
        note="The array is sent and a part of each of its pages is read; Pyro5 sends `tobytes()` of it. "
        f"'{SOCKET}' is objserver without shared memory, as between two hosts.",
    )
    for kind in starts[0]:
        row = [kind]
        row += [echo[kind].text(), echo[kind].over(echo["raw socket"]).text()] if kind in KINDS else ["", ""]
        if kind == "raw socket":
            row += ["", "", ""]
        else:
            rate = LARGE / sending[kind].median / 1e6
            row += [
                sending[kind].text(1),
                f"{rate:.2f}",
                sending["Pyro5 msgpack"].over(sending[kind]).text(1, "x"),
            ]
        sheet.rows.append(row)
    made.sheets.append(sheet)
    to_raw = echo["objserver"].over(echo["raw socket"])
    made.at_most("1 MB of bytes: at most 2x the raw socket", to_raw, 2)
    to_pyro = sending["Pyro5 msgpack"].over(sending["objserver"])
    made.at_least("64 MB array: at least 10x Pyro5 msgpack", to_pyro, 10)
    return made


def main() -> None:
    made = tables(quick=False)
    for sheet in made.sheets:
        sheet.print(Console(width=130))


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else _serve(sys.argv[1])
