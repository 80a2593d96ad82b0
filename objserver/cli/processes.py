"""`objserver serve --workers N`: several processes of this machine that are one server.

The process that was started supervises: it has the address and, where the store is an SQLite file, the
store, and runs none of the objects.  It starts the same command N times more; each finds its place in the
environment and serves, as a node of a cluster with a single entry, which is the supervisor's address.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from objserver.cli.clustering import Clustering
from objserver.references import Location

if TYPE_CHECKING:
    from objserver.cluster.workers import Place, Workers
    from objserver.server import ObjectServer

__all__ = ["place", "serving_as_worker", "supervising", "worker_options"]

HANDOFF, REUSEPORT = "handoff", "reuseport"


def place() -> Place | None:
    """This process's among the workers; None if it is none."""
    from objserver.cluster.workers import Place

    return Place.from_environment(os.environ)


@contextlib.contextmanager
def supervising(
    count: int, *, address: str, store: str | None, entry: str, reads: bool, insecure: bool
) -> Iterator[Workers]:
    """Run this very command in `count` processes behind `address`; SIGHUP is for all of them."""
    from objserver.cluster.entry import Entry
    from objserver.cluster.workers import Entry as Kind
    from objserver.cluster.workers import Workers
    from objserver.storage import open_store
    from objserver.storage.remote import RemoteStore

    owned = store if store is not None and store.startswith("sqlite:") else None
    workers = Workers(
        [sys.executable, "-m", "objserver", *sys.argv[1:]],
        count,
        address=address,
        store=owned,
        entry=Kind(entry),
        reads=reads,
        insecure=insecure,
    )
    before = signal.signal(signal.SIGHUP, lambda number, _: workers.signal(number))
    try:
        if store is not None:
            shared = RemoteStore(workers.store_path) if owned else open_store(store)
            with contextlib.closing(shared):
                Entry(single=workers.address).set(shared)
        workers.start()
        yield workers
    finally:
        signal.signal(signal.SIGHUP, before)
        workers.stop()


def worker_options(here: Place, address: str, store: str | None, clustering: Clustering) -> dict[str, Any]:
    """What the ObjectServer of a worker is made with, beside what any is."""
    found: dict[str, Any] = {"address": f"{_host(address)}:0", "store": here.open_store() or store}
    if store is not None:
        from objserver.cluster import ByHash

        # As the front spreads connections, so are objects placed: what comes in is there.
        found |= {"cluster": "workers", "placement": ByHash(), **clustering.options(), "node": here.name}
    return found


def _host(address: str) -> str:
    location = Location.parse(address)
    return f"[{location.host}]" if ":" in location.host else location.host


@contextlib.contextmanager
def serving_as_worker(here: Place, server: ObjectServer, insecure: bool) -> Iterator[None]:
    """The server gets its share of the connections."""
    adopter = here.enter(server, insecure=insecure)
    try:
        yield
    finally:
        adopter.stop()
