"""`NameServerDaemon`: the server that hosts a name server where everybody looks for it.

    with NameServerDaemon(store="sqlite:///names.db"): ...

It is an ObjectServer, and may host other objects too.  The name server is registered in itself with Pyro5's
tag for it, so that a yellow-pages lookup finds it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Any, Self

from objserver import errors
from objserver.adapter import Concurrent
from objserver.naming.beacon import Beacon
from objserver.naming.directory import NameServer, NamingLimits, calling
from objserver.naming.mdns import Announcement
from objserver.naming.ownership import Ownership
from objserver.references import NAMESERVER_ID, NAMESERVER_PORT, Reference
from objserver.security import Principal
from objserver.server import ObjectServer

__all__ = ["NameServerDaemon"]

TAG = "class:Pyro5.nameserver.NameServer"
TICK_S = 0.2
"""How old an answer of several name servers over one store may be.  A tick costs the store some 4 ms."""

log = logging.getLogger("objserver.naming")


class NameServerDaemon(ObjectServer):
    """Hosts `names`, a NameServer.

    `beacon` is the UDP address to be discovered at as Pyro5 does it, and `mdns` the IPv4 address of the
    interface to be announced on by multicast DNS; None is neither.

    With `authentication`, names belong to who registered them; `authorization` says who may ask and who may
    register at all.

    With a `store` (a URL) names outlive the process, and several may share one in PostgreSQL.  `ownership`
    and `principal` as for NameServer; other options as for ObjectServer.
    """

    def __init__(
        self,
        address: str = f"localhost:{NAMESERVER_PORT}",
        *,
        store: str | None = None,
        beacon: str | None = None,
        mdns: str | None = None,
        limits: NamingLimits | None = None,
        ownership: Ownership | None = None,
        principal: Callable[[], Principal | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(address, store=store, **options)
        self.beacon: Beacon | None = None
        self.announcement: Announcement | None = None
        self._ticking: threading.Thread | None = None
        self._ended = False
        try:
            self.names = NameServer(
                self._store, limits, ownership=ownership, principal=principal or self._who, clock=self.clock
            )
            # It has locks of its own, and a lookup need not wait for a registration to be on the disk.
            self.nameserver: Reference = self.register(self.names, NAMESERVER_ID, threading=Concurrent())
            self.names.be_known_as(self.nameserver, {TAG})
            if beacon is not None:
                self.beacon = Beacon(self.nameserver, beacon)
            if mdns is not None:
                self.announcement = Announcement(self.nameserver, [mdns])
        except BaseException:
            self.stop()
            raise

    def start(self) -> Self:
        super().start()
        self._ticking = threading.Thread(target=self._tick, name="objserver-names", daemon=True)
        self._ticking.start()
        try:
            if self.beacon is not None:
                self.beacon.start()
            if self.announcement is not None:
                self.announcement.start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, drain_timeout_s: float | None = None) -> None:
        # Nobody new should be sent here while the calls in progress finish.
        if self.announcement is not None:
            self.announcement.stop()
        if self.beacon is not None:
            self.beacon.stop()
        self._ended = True
        if self._ticking is not None:
            self.names.watchers.noted.set()
            self._ticking.join()
        super().stop(drain_timeout_s)

    def _who(self) -> Principal | None:
        """Who calls, with the roles that the rules give."""
        who, authorization = calling(), self.authorization
        if who is None or authorization is None or not authorization.rules.roles:
            return who
        return dataclasses.replace(who, roles=authorization.rules.roles_of(who))

    def _tick(self) -> None:
        failed, due = "", 0.0
        while not self._ended:
            try:
                if self.clock.monotonic() >= due:
                    due = self.clock.monotonic() + TICK_S
                    self.names.tick()
                    failed = ""
                else:
                    self.names.watchers.tell()
            except errors.StoreError as problem:
                if str(problem) != failed:  # the same every tenth of a second helps nobody
                    log.error("the names of others, and of servers that are gone, are old: %s", problem)
                failed = str(problem)
            except Exception:
                log.exception("looking after the names failed; this is a bug of objserver")
            self.names.watchers.noted.wait(TICK_S)
