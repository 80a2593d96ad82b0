"""`Beacon`: answers who asks the network where the name server is.

Pyro5's discovery is one datagram, `GET_NSURI`, sent to a known port; the answer is the name server's URI as
text.  It is unauthenticated both ways and the answer is bigger than the question, so the beacon listens on
the own machine only unless another address is given, and answers nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import selectors
import socket
import threading
from typing import Self

from objserver import errors
from objserver.logs import escaping
from objserver.references import Location, Reference

__all__ = ["BEACON_PORT", "Beacon"]

BEACON_PORT = 9091
QUESTION = b"GET_NSURI"
ANY = ("", "0.0.0.0", "::")

log = escaping(logging.getLogger("objserver.naming"))


class Beacon:
    """Answers for `reference` at the UDP `address` (port 0: any free one), in a thread of its own."""

    def __init__(self, reference: Reference, address: str = f"localhost:{BEACON_PORT}") -> None:
        self._reference = reference
        location = Location.parse(address, BEACON_PORT)
        if location.path:
            raise ValueError(f"{address!r}: discovery uses UDP; give host:port")
        try:
            family, _, _, _, target = socket.getaddrinfo(
                location.host, location.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as problem:
            raise errors.NamingError(f"the beacon cannot listen on {location}: {problem}") from None
        try:
            self._socket.bind(target)
        except OSError as problem:
            self._socket.close()
            raise errors.NamingError(
                f"the beacon cannot listen on {location}: {problem.strerror}; "
                "choose another address or do without a beacon"
            ) from None
        self._socket.setblocking(False)
        self._location = Location(location.host, self._socket.getsockname()[1])
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="objserver-beacon", daemon=True)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self._location)

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering and let go of the port; stopping twice is allowed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.close()
        if self._thread.ident is not None:
            self._thread.join()
        self._woken.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closed:
                selector.select()
                # A datagram may be gone again, and an earlier answer's refusal is reported here.
                with contextlib.suppress(OSError):
                    question, asker = self._socket.recvfrom(100)
                    if question == QUESTION:
                        self._socket.sendto(self._answer(asker), asker)
                        log.debug("told %s where the name server is", asker[0])

    def _answer(self, asker: tuple[str, int]) -> bytes:
        reference, location = self._reference, self._reference.location
        if location is not None and not location.path and location.host in ANY:
            # "Every interface" is no address to call; name the one that faces the asker.
            with socket.socket(self._socket.family, socket.SOCK_DGRAM) as probe:
                probe.connect(asker)
                facing = Location(probe.getsockname()[0], location.port)
            reference = dataclasses.replace(reference, location=facing)
        return str(reference).encode("iso-8859-1", "replace")
