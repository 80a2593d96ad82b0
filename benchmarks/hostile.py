"""A good client's calls while others are hostile: its p99 beside that of a quiet server.

    python -m benchmarks.hostile

The server, the attackers and the client are a process each.  The server is with default settings except for
the time that a greeting may take, which is longer, so that half-open connections stay for the whole
measurement.  Rounds with and without the attack take turns; what counts is the median of the ratios.  The
client pauses between its calls, as a person's program does, so its p99 is of calls that find the server at
any moment.  Three busy processes need three processors: with fewer, the last two attacks also measure the
share of the processor that they leave.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from benchmarks.measures import Spread
from benchmarks.report import Sheet, Tables
from objserver import ObjectServer, Proxy, ServerSettings, expose
from objserver.testing.hostile import JSON, Attack, Peer, attacks, call, greeting, play, raw_frame
from objserver.wire import FrameType

HALF_OPEN, SLOW_READERS = 500, 200
LARGE = 500_000
PAUSE_S = 0.001
Attacking = Callable[[str], contextlib.AbstractContextManager[None]]


@expose
class Echo:
    def echo(self, value: object) -> object:
        return value


def serve() -> None:
    """The process that is attacked."""
    with ObjectServer(settings=ServerSettings(handshake_timeout_s=60.0)) as server:
        server.register(Echo(), "echo")
        server.register(Echo(), "other")
        print(server.address, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def half_open(address: str) -> Iterator[None]:
    """Many connections that have said the half of a greeting."""
    with contextlib.ExitStack() as stack:
        for _ in range(HALF_OPEN):
            stack.enter_context(Peer(address)).send(greeting("echo")[:30])
        yield


@contextlib.contextmanager
def slow_readers(address: str) -> Iterator[None]:
    """Many clients that have asked for half a megabyte, and read it in drops."""
    frame = raw_frame(FrameType.INVOKE, JSON, call(JSON, "other", "echo", json.dumps("x" * LARGE).encode()))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(address)).greet("other") for _ in range(SLOW_READERS)]
        for peer in peers:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.send(frame)
        for peer in peers:
            peer.sock.recv(1)  # from here on the server only waits for them

        def read() -> None:
            for peer in peers:
                with contextlib.suppress(BlockingIOError):
                    peer.sock.recv(512, socket.MSG_DONTWAIT)

        stack.enter_context(_repeated(read, 0.1))
        yield


@contextlib.contextmanager
def _repeated(work: Callable[[], object], pause_s: float = 0.01) -> Iterator[None]:
    """Do it again and again, with a short pause."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(pause_s):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def bad_frames(address: str) -> contextlib.AbstractContextManager[None]:
    """Frames that are refused: lengths, annotations, serializers, names."""
    some = [a for a in attacks("other", "echo") if a.point in (3, 5, 6, 10) and len(a.data) < 2_000][::8]
    return _repeated(lambda: play(address, "other", some, 10.0))


def bombs(address: str) -> contextlib.AbstractContextManager[None]:
    """Frames that inflate to more than is allowed, and values that would."""
    some: list[Attack] = [a for a in attacks("other", "echo") if a.point == 7 and a.greeted]
    some += [a for a in attacks("other", "echo") if a.name.startswith(("dicts in", "100000 lists"))]
    return _repeated(lambda: play(address, "other", some, 10.0))


ATTACKS: dict[str, Attacking] = {
    f"{HALF_OPEN} half-open connections": half_open,
    f"{SLOW_READERS} slow readers": slow_readers,
    "bad frames, again and again": bad_frames,
    "bombs, again and again": bombs,
}


def attack(name: str, address: str) -> None:
    """The process that attacks, until its input ends."""
    with ATTACKS[name](address):
        print("begun", flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[str]:
    """One of the other processes; what it says first."""
    command = [sys.executable, "-m", "benchmarks.hostile", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            yield other.stdout.readline().strip()
            other.stdin.close()
            other.wait(60)
        finally:
            other.kill()


def p99(proxy: Proxy, seconds: float) -> float:
    """Of one client's calls for so long, in seconds."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        proxy.echo(1)
        took.append(time.perf_counter() - begun)
        time.sleep(PAUSE_S)
    return sorted(took)[len(took) * 99 // 100]


def tables(quick: bool) -> Tables:
    """Measure, and show it."""
    rounds, seconds = (3, 1.0) if quick else (7, 3.0)
    sheet = Sheet("While others are hostile", ["attack", "p99 quiet", "p99 attacked", "ratio"])
    made = Tables([sheet])
    for name in ATTACKS:
        quiet: list[float] = []
        attacked: list[float] = []
        with process("serve") as address, Proxy(f"PYRO:echo@{address}", timeout_s=30) as proxy:
            p99(proxy, 0.3)
            for _ in range(rounds):
                quiet.append(p99(proxy, seconds))
                with process("attack", name, address):
                    attacked.append(p99(proxy, seconds))
        ratio = Spread(tuple(attacked)).over(Spread(tuple(quiet)))
        times = [f"{sorted(side)[rounds // 2] * 1e6:.0f} µs" for side in (quiet, attacked)]
        sheet.rows.append([name, *times, ratio.text(unit="x")])
        made.at_most(f"p99 of a good client beside {name} at most twice that of a quiet server", ratio, 2.0)
    return made


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    elif sys.argv[1:2] == ["attack"]:
        attack(*sys.argv[2:])
    else:
        shown = tables("--quick" in sys.argv)
        for one in shown.sheets:
            one.print(Console())
        for goal in shown.goals:
            print(*goal, sep="; ")
