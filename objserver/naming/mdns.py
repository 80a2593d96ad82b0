"""Name servers found by multicast DNS, which is how printers are found: nobody has to know an address.

A name server announces itself as a service, with its URI as text; `discover` listens for some seconds and
says which there are.  Nothing of it is authenticated: whoever is on the network can announce anything.  So it
is off unless asked for, and even then keeps to the own machine unless an interface is given; what is found is
shown to a person, and no proxy goes there by itself.

It needs the package zeroconf (`objserver[mdns]`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from objserver import errors
from objserver.naming.beacon import ANY
from objserver.references import NAMESERVER_ID, Location, Reference

if TYPE_CHECKING:
    from zeroconf import Zeroconf

__all__ = ["LOOPBACK", "Announcement", "discover"]

SERVICE = "_objserver-ns._tcp.local."
LOOPBACK = ("127.0.0.1",)
LISTEN_S = 3.0
"""Answers are held back a little, and asked for after one second for the second time (RFC 6762, 5.2)."""
FOUND_MAX = 1_000
"""Announcements listened to; anybody can send some."""


class Announcement:
    """Announces `reference` on the interfaces that have these IPv4 addresses, from `start` to `stop`."""

    def __init__(self, reference: Reference, interfaces: Sequence[str] = LOOPBACK) -> None:
        location = reference.location
        if location is None or location.path:
            raise errors.NamingError(f"{reference} cannot be announced: it has no host and port")
        if location.host in ANY:
            # "Every interface" is no address to call; the one that is announced on is.
            reference = dataclasses.replace(reference, location=Location(interfaces[0], location.port))
        self._reference = reference
        self._interfaces = interfaces
        self._zeroconf: Zeroconf | None = None

    def start(self) -> Self:
        """Begin to announce; NamingError without zeroconf or without such interfaces."""
        self._zeroconf = _open(self._interfaces)
        from zeroconf import ServiceInfo

        assert self._reference.location is not None
        info = ServiceInfo(
            SERVICE,
            f"{uuid.uuid4().hex[:12]}.{SERVICE}",
            addresses=[socket.inet_aton(address) for address in self._interfaces],
            port=self._reference.location.port,
            properties={"uri": str(self._reference)},
        )
        # The name is nobody else's, so nobody has to be asked whether it is free.
        self._zeroconf.register_service(info, cooperating_responders=True)
        return self

    def stop(self) -> None:
        """Take the announcement back; stopping twice is allowed."""
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            zeroconf.unregister_all_services()
            zeroconf.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Listener:
    """What zeroconf calls, in a thread of its own."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add_service(self, zeroconf: Any, type_: str, name: str) -> None:
        if len(self.names) < FOUND_MAX:
            self.names.add(name)

    def update_service(self, zeroconf: Any, type_: str, name: str) -> None:
        pass

    def remove_service(self, zeroconf: Any, type_: str, name: str) -> None:
        self.names.discard(name)


def discover(timeout_s: float = LISTEN_S, interfaces: Sequence[str] = LOOPBACK) -> list[Reference]:
    """The name servers that announce themselves there, of which one has heard after `timeout_s` seconds."""
    zeroconf = _open(interfaces)
    from zeroconf import ServiceBrowser

    listener = _Listener()
    try:
        ServiceBrowser(zeroconf, SERVICE, listener)  # type: ignore[arg-type]
        time.sleep(timeout_s)
        found = set()
        for name in sorted(listener.names):
            info = zeroconf.get_service_info(SERVICE, name, timeout=int(timeout_s * 1000))
            text = (info.properties.get(b"uri") if info is not None else None) or b""
            with contextlib.suppress(errors.NamingError, UnicodeDecodeError):
                reference = Reference.parse(text.decode())
                if (reference.protocol, reference.object_id) == ("PYRO", NAMESERVER_ID):
                    found.add(reference)
        return sorted(found, key=str)
    finally:
        zeroconf.close()


def _open(interfaces: Sequence[str]) -> Zeroconf:
    try:
        from zeroconf import IPVersion, Zeroconf
    except ImportError:
        raise errors.NamingError(
            "multicast DNS needs zeroconf; install it with: pip install 'objserver[mdns]'"
        ) from None
    try:
        return Zeroconf(interfaces=list(interfaces), ip_version=IPVersion.V4Only)
    except (OSError, ValueError) as problem:
        raise errors.NamingError(
            f"multicast DNS is not possible at {', '.join(interfaces)}: {problem}; give the IPv4 address of "
            "an interface of this machine"
        ) from None
