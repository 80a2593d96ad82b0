"""Several processes of one machine behind one address, with one store.

    supervisor: Workers                       worker: a server of its own
    front, accepts and hands over     ==>     Place.enter(server)
    owner of the store, commits       <==     Place.open_store()

The supervisor runs no code of the application, so nothing of it can bring the address or the store down.  It
starts the same command so many times, each in a new interpreter, which is told its place in the environment.
A worker that dies is started again, after a pause that grows as long as it does not live; what it had is
served by the others meanwhile.  A worker whose supervisor died ends itself in good order: its store is gone,
and the next supervisor starts others.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from objserver import errors
from objserver.logs import escaping
from objserver.machine import machine
from objserver.server.handoff import Adopter, Choose, Front, SharedPort, by_object
from objserver.settings import ServerSettings
from objserver.storage import Store
from objserver.storage.owner import StoreServer
from objserver.storage.remote import RemoteStore

if TYPE_CHECKING:
    from objserver.server import ObjectServer

__all__ = ["Entry", "Place", "Workers", "pause_s"]

VARIABLE = "OBJSERVER_WORKER"
PAUSE_S, PAUSE_MAX_S = 0.1, 10.0
"""Before a worker that died is started again: at first so short that nobody notices; at last so long that a
worker which cannot start does not keep the machine busy."""
LIVED_S = 60.0
"""Who has lived so long had no trouble with its start."""
KILL_S = 5.0
"""How much longer than its drain a worker may take to end, before it is killed."""

log = escaping(logging.getLogger("objserver.cluster"))


class Entry(enum.Enum):
    """How connections come to the workers."""

    HANDOFF = "handoff"
    """A front reads what is wanted and hands the socket over."""
    REUSEPORT = "reuseport"
    """The kernel deals them out, whatever is wanted."""


def pause_s(deaths: int) -> float:
    """Before a worker is started that has died so often, one time after the other, soon after its start."""
    return min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(deaths - 1, 16)) if deaths else 0.0


class Place(NamedTuple):
    """What a worker is told: its name, and where what it shares with the others is."""

    name: str
    channel: int
    """Descriptor of its end of the front's channel; -1 if there is no front."""
    port: str
    """Address that it shares with the others; empty if there is a front."""
    store: str
    """Path of the owner's socket; empty if there is no store, or everybody opens it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Place | None:
        """That of this process; None if it is no worker."""
        told = environment.get(VARIABLE)
        return None if told is None else cls(*json.loads(told))

    def open_store(self) -> Store | None:
        """The store that the supervisor owns, or None."""
        return RemoteStore(self.store) if self.store else None

    def enter(self, server: ObjectServer, *, insecure: bool = False) -> Adopter | SharedPort:
        """Let connections come to `server`; when the supervisor is gone, this process gets SIGTERM."""
        if self.channel < 0:
            return SharedPort(server, self.port, insecure=insecure)
        return Adopter(server, socket.socket(fileno=self.channel), _end)


def _end() -> None:
    log.info("the supervisor is gone, or has given this worker up; it ends")
    os.kill(os.getpid(), signal.SIGTERM)


class Workers:
    """Runs `command` in `count` processes behind `address`.

    `store` is the URL of an SQLite store, which the supervisor then owns, or None: then the workers have
    none, or each opens one that is made to be shared.  `choose`, `reads` and `insecure` are the front's.
    `settings` are those of the workers' servers.

    Usable as a context manager; leaving it stops the workers.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        address: str = "localhost:0",
        store: str | None = None,
        entry: Entry = Entry.HANDOFF,
        choose: Choose = by_object,
        reads: bool = True,
        insecure: bool = False,
        settings: ServerSettings | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"{count} workers: there has to be one at least")
        self._command = list(command)
        self._settings = settings or ServerSettings()
        self._machine = machine.get()
        self._stopping = threading.Event()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._deaths = 0
        self._front: Front | None = None
        with contextlib.ExitStack() as stack:
            self._owner: StoreServer | None = None
            if store is not None:
                opened = _shared(store)
                stack.callback(opened.close)
                # Of this user alone, which mkdtemp sees to.
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="objserver-"))
                self._owner = StoreServer(opened, f"{directory}/store")
                stack.callback(self._owner.close)
            if entry is Entry.HANDOFF:
                self._front = Front(
                    address, choose=choose, reads=reads, insecure=insecure, settings=self._settings
                )
                stack.callback(self._front.stop)
                self.address = self._front.address
            else:
                reserved = stack.enter_context(SharedPort.reserve(address))
                self.address = f"{address.rpartition(':')[0]}:{reserved.getsockname()[1]}"
            # Of this machine's alone: the workers of another may be nodes of the same cluster.
            self._names = [f"{self.address}/{number}" for number in range(count)]
            self._closing = stack.pop_all()

    def start(self) -> Self:
        """Start the processes, and what starts them again; returns at once."""
        if self._front is not None:
            self._front.start()
        for name in self._names:
            thread = threading.Thread(
                target=self._keep, args=(name,), name=f"objserver-worker-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self

    def stop(self) -> None:
        """Accept no more, let the workers drain and end, then let go of the store; twice is allowed.

        One that takes longer than its drain may is killed.
        """
        self._stopping.set()
        if self._front is not None:
            self._front.stop()
        self.signal(signal.SIGTERM)
        end = self._machine.monotonic() + self._settings.drain_timeout_s + KILL_S
        for thread in self._threads:
            thread.join(max(0.0, end - self._machine.monotonic()))
        self.signal(signal.SIGKILL)
        for thread in self._threads:
            thread.join()
        self._closing.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def store_path(self) -> str:
        """Where the store is to be had that the supervisor owns; empty if there is none."""
        return self._owner.path if self._owner is not None else ""

    def pids(self) -> dict[str, int]:
        """The processes that run now, by the workers' names."""
        return {name: process.pid for name, process in list(self._processes.items())}

    def statistics(self) -> dict[str, object]:
        """What runs, and how often one had to be started again."""
        figures: dict[str, object] = {"workers": len(self._processes), "deaths": self._deaths}
        if self._front is not None:
            figures["front"] = self._front.statistics()
        if self._owner is not None:
            figures["store"] = self._owner.statistics()
        return figures

    def signal(self, number: int) -> None:
        """Send it to all of them."""
        for process in list(self._processes.values()):
            process.send_signal(number)

    def _keep(self, name: str) -> None:
        """Have a worker of that name run, until all are to stop."""
        deaths = 0
        while not self._stopping.wait(pause_s(deaths)):
            begin = self._machine.monotonic()
            try:
                process = self._begin(name)
            except OSError as problem:
                log.error("worker %s cannot be started: %s", name, problem)
                deaths += 1
                continue
            self._processes[name] = process
            if self._stopping.is_set():
                process.send_signal(signal.SIGTERM)  # it may have been missed
            status = process.wait()
            del self._processes[name]
            if not self._stopping.is_set():
                self._deaths += 1
                deaths = 1 if self._machine.monotonic() - begin >= LIVED_S else deaths + 1
                log.error("worker %s ended with %s; it is started again", name, status)

    def _begin(self, name: str) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            passed, port = [], self.address
            if self._front is not None:
                passed, port = [stack.enter_context(self._front.add(name)).fileno()], ""
            place = Place(name, passed[0] if passed else -1, port, self.store_path)
            environment = {**os.environ, VARIABLE: json.dumps(place)}
            # In a group of its own: Ctrl-C is for the supervisor, which then ends them in good order.
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=passed,
                process_group=0,
            )


def _shared(url: str) -> Store:
    """An SQLite store that is opened to be shared."""
    if not url.startswith("sqlite:"):
        raise errors.StoreError(
            f"workers open a store at {url.partition(':')[0]}: themselves; only an SQLite file has an owner"
        )
    from objserver.storage.sqlite import SqliteStore

    return SqliteStore(url, alone=False)
