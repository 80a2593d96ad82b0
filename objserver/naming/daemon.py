"""`NameServerDaemon`: the server that hosts a name server where everybody looks for it.

    with NameServerDaemon(store="sqlite:///names.db"): ...

It is an ObjectServer, and may host other objects too.  The name server is registered in itself with Pyro5's
tag for it, so that a yellow-pages lookup finds it.
"""

from __future__ import annotations

from typing import Any, Self

from objserver.adapter import ReadersWriter
from objserver.naming.beacon import Beacon
from objserver.naming.directory import NameServer, NamingLimits
from objserver.references import NAMESERVER_ID, NAMESERVER_PORT, Reference
from objserver.server import ObjectServer

__all__ = ["NameServerDaemon"]

TAG = "class:Pyro5.nameserver.NameServer"


class NameServerDaemon(ObjectServer):
    """Hosts `names`, a NameServer; `beacon` is the UDP address to be discovered at, None for no discovery.

    With a `store` (a URL) names outlive the process.  Other options as for ObjectServer.
    """

    def __init__(
        self,
        address: str = f"localhost:{NAMESERVER_PORT}",
        *,
        store: str | None = None,
        beacon: str | None = None,
        limits: NamingLimits | None = None,
        **options: Any,
    ) -> None:
        super().__init__(address, store=store, **options)
        self.beacon: Beacon | None = None
        try:
            self.names = NameServer(self._store, limits)
            self.nameserver: Reference = self.register(self.names, NAMESERVER_ID, threading=ReadersWriter())
            self.names.register(NAMESERVER_ID, self.nameserver, metadata={TAG})
            if beacon is not None:
                self.beacon = Beacon(self.nameserver, beacon)
        except BaseException:
            self.stop()
            raise

    def start(self) -> Self:
        super().start()
        if self.beacon is not None:
            self.beacon.start()
        return self

    def stop(self, drain_timeout_s: float | None = None) -> None:
        # Nobody new should be sent here while the calls in progress finish.
        if self.beacon is not None:
            self.beacon.stop()
        super().stop(drain_timeout_s)
