"""`Registrar`: keeps the names of a server registered for as long as the server lives.

    with Registrar("host1:9090,host2:9090") as names:
        names.register("town/clock", server.register(Clock), metadata={"shows:time"})
        server.serve_forever()

It has a lease, which it renews three times as often as needed at the first of the name servers that answers.
When the process dies nobody renews, and the names disappear; when it stops they are removed at once.  If the
lease has ended while the process lives, because it was suspended or cut off, all is registered again.

Where name servers want to know who registers, `NameServers` says as whom, and the names are that one's.  A
server whose credentials have expired loses its names with its lease; it is given others by
`names.name_servers = NameServers(...)`.

The nodes of a cluster have the same names.  One of them has each; when it stops it hands it over, and when
it is gone another one takes it, before the lease is over if the cluster knows it earlier.  So a name for
which some node could answer is never unknown.

With a stock Pyro5 name server, which knows no leases, names are registered as Pyro5 does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

from objserver import errors
from objserver.client.nameservers import NameServers
from objserver.client.proxy import ask_name_servers
from objserver.client.resolve import NobodyAnswers
from objserver.machine import machine
from objserver.references import Location, Reference
from objserver.server import ObjectServer

__all__ = ["Registrar", "load_of"]

LEASE_S = 10.0
"""Short enough for clients not to be sent to a dead server for long, and a restart of a name server or a lost
message is over three times as fast."""
RENEWALS_PER_LEASE = 3
TIMEOUT_S = 5.0
"""For an answer of a name server."""
AGAIN_S = 0.2
"""Between two tries for a name that a dead server still has."""

log = logging.getLogger("objserver.naming")


class _Name(NamedTuple):
    uri: str
    tags: frozenset[str]


Same = Callable[[], Sequence[str]]
"""The addresses at which now the same object is to be had."""


class Registrar:
    """The names of this process in the name servers at `name_servers`, by default the environment's.

    `lease_s`: how long they outlive the process.  `load` is asked at each renewal how busy the server is,
    from 0 to 1, which clients that pick the `LeastLoaded` go by.  To be started before names are registered
    if they are to be kept.
    """

    def __init__(
        self,
        name_servers: NameServers | str | Sequence[str] = (),
        *,
        lease_s: float = LEASE_S,
        load: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.name_servers = NameServers.of(name_servers)
        """Others, or other credentials, count from the next question on."""
        self._lease_s = lease_s
        self._load = load
        self._names: dict[str, _Name] = {}
        self._shared: dict[str, tuple[_Name, Same]] = {}
        """Names that others of the cluster may have as well, whether we have them or not."""
        self._ours: set[str] = set()
        """Addresses that have ever been the cluster's."""
        self._lease: str | None = None
        self._stock = False
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Begin to renew."""
        self._thread = threading.Thread(target=self._run, name="objserver-registrar", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Remove the names, and renew no more; a name server that does not answer is not waited for long."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            names, self._names = self._names, {}
            shared, self._shared = self._shared, {}
            lease, self._lease = self._lease, None
            try:
                if lease is not None:
                    for name in names.keys() & shared.keys():
                        self._leave_to_another(name, *shared[name])
                    self._ask("end_lease", lease)
                elif self._stock:
                    for name, (uri, _) in names.items():
                        self._remove(name, uri)
            except errors.ObjServerError as problem:
                log.warning("%d names could not be removed from the name server: %s", len(names), problem)

    def register(
        self,
        name: str,
        uri: Reference | str,
        metadata: Iterable[str] = (),
        *,
        wait_s: float = 0.0,
        same: Same | None = None,
    ) -> None:
        """Let `name` stand for `uri` as long as this process lives; NamingError if it stands for another.

        Up to `wait_s` seconds it is tried again, since the other may be a server that has died and whose
        lease is not over.  With `same` the name is left to another one of these, and comes to this server
        when that is gone.
        """
        wanted = _Name(str(uri), frozenset(metadata))
        until = machine.get().monotonic() + wait_s
        while True:
            try:
                with self._lock:
                    if same is None or not self._take_or_leave(name, wanted, same):
                        self._put({name: wanted}, wanted.tags)
                        self._names[name] = wanted
                    if same is not None:
                        self._shared[name] = wanted, same
                return
            except NobodyAnswers:
                raise
            except errors.NamingError:
                if machine.get().monotonic() >= until or self._stopping.wait(AGAIN_S):
                    raise

    def _take_or_leave(self, name: str, wanted: _Name, same: Same) -> bool:
        """See that a name of the cluster's stands for one that is there; False if it is not the cluster's."""
        there = set(same())
        self._ours |= there
        try:
            found = Reference.parse(str(self._ask("lookup", name)))
        except NobodyAnswers:
            raise
        except errors.NamingError:
            found = None
        if found is not None and str(found) != wanted.uri:
            if str(found.location) in there:
                self._names.pop(name, None)
                return True
            if str(found.location) not in self._ours:
                self._names.pop(name, None)
                return False
        if name not in self._names or found is None:
            self._put({name: wanted}, wanted.tags, safe=None if found is None else False)
            self._names[name] = wanted
        return True

    def _leave_to_another(self, name: str, wanted: _Name, same: Same) -> None:
        """It may take its time to notice, so the name is kept for it for as long as a lease is."""
        mine = Reference.parse(wanted.uri)
        other = next((address for address in same() if address != str(mine.location)), None)
        if other is not None:
            uri = str(Reference(mine.protocol, mine.object_id, Location.parse(other)))
            lease = self._ask("open_lease", self._lease_s)
            self._ask("register_all", {name: uri}, False, sorted(wanted.tags), lease)

    def unregister(self, name: str) -> None:
        """Remove one name, if it still stands for what was registered."""
        with self._lock:
            self._shared.pop(name, None)
            known = self._names.pop(name, None)
            if known is not None:
                self._remove(name, known.uri)

    def renew(self) -> None:
        """Say that this process lives; what the thread does now and then.  NamingError if nobody listens."""
        with self._lock:
            self._renew_lease()
            for name, (wanted, same) in self._shared.items():
                try:
                    self._take_or_leave(name, wanted, same)
                except NobodyAnswers:
                    raise
                except errors.NamingError:
                    pass  # another one was faster

    def _renew_lease(self) -> None:
        if self._lease is None or self._ask("renew_lease", self._lease, float(self._load())):
            return
        log.warning("the lease of %d names had ended; they are registered again", len(self._names))
        self._lease = self._ask("open_lease", self._lease_s)
        by_tags: dict[frozenset[str], dict[str, _Name]] = {}
        for name, wanted in self._names.items():
            by_tags.setdefault(wanted.tags, {})[name] = wanted
        for tags, names in by_tags.items():
            self._again(names, tags)

    def _again(self, names: dict[str, _Name], tags: frozenset[str]) -> None:
        try:
            self._put(names, tags)
        except errors.NamingError:
            if len(names) > 1:  # only one of them may be the reason
                for name, wanted in names.items():
                    self._again({name: wanted}, tags)
                return
            (name,) = names
            if name not in self._shared:
                log.exception("the name %s has been lost to somebody else", name)
            del self._names[name]

    def _put(self, names: dict[str, _Name], tags: frozenset[str], safe: bool | None = None) -> None:
        if self._lease is None and not self._stock:
            try:
                self._lease = self._ask("open_lease", self._lease_s)
            except errors.MemberNotFound:
                self._stock = True
        if self._stock:
            for name, (uri, _) in names.items():
                self._ask("register", name, uri, False, sorted(tags))
            return
        uris = {name: wanted.uri for name, wanted in names.items()}
        try:
            self._ask("register_all", uris, safe, sorted(tags), self._lease)
        except errors.NamingError:
            lease = self._lease
            self._renew_lease()
            if self._lease == lease:
                raise
            self._ask("register_all", uris, safe, sorted(tags), self._lease)

    def _remove(self, name: str, uri: str) -> None:
        if self._ask("list", name).get(name) == uri:
            self._ask("remove", name)

    def _ask(self, method: str, *args: Any) -> Any:
        return ask_name_servers(self.name_servers, TIMEOUT_S, method, *args)

    def _run(self) -> None:
        pause = self._lease_s / RENEWALS_PER_LEASE
        silent = False
        while not self._stopping.wait(pause):
            try:
                self.renew()
                silent = False
            except errors.ObjServerError as problem:
                if not silent:
                    log.warning("the names of this server may be lost: %s", problem)
                silent = True


def load_of(server: ObjectServer) -> Callable[[], float]:
    """How busy a server is: invocations that run or wait, to the threads that may run them."""

    def load() -> float:
        now = server.statistics()
        running = now["workers"] - now["idle"] - now["blocked"]
        waiting = now["ready"] + now["invocations_waiting"]
        return float((running + waiting) / now["workers_max"])

    return load
