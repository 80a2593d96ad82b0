"""A client connection over TLS: a connection that shakes hands before it greets.

The handshake is done by the leader as its parts come, and never waits, so a client that is silent or slow
delays nobody.  Its time is that of the whole greeting.
"""

from __future__ import annotations

import logging
import socket
import ssl
from typing import TYPE_CHECKING, Any

from objserver import errors
from objserver.security.channel import PlainBytes, TLSSocket
from objserver.security.principal import Principal
from objserver.security.tls import Identity, certified, tls_problem
from objserver.server.connection import Connection
from objserver.wire.frames import MAGIC

if TYPE_CHECKING:
    from objserver.server.server import ObjectServer

__all__ = ["EncryptedConnection"]

log = logging.getLogger("objserver.server")


class EncryptedConnection(Connection):
    """Server side of one socket with TLS on it."""

    sock: Any
    receives_in_place = False

    def __init__(
        self, server: ObjectServer, sock: socket.socket, address: Any, serial: int, identity: Identity
    ) -> None:
        super().__init__(server, TLSSocket(sock, identity.context), address, serial)
        self.binding = identity.binding

    def certified(self) -> Principal | None:
        certificate = self.sock.peer_certificate()
        return None if certificate is None else certified(certificate, ssl.cert_time_to_seconds)

    def _is_secured(self) -> bool:
        # A greeted connection is established, and so is one that lingers.
        return self.greeted or self.lingering or self.sock.established or self._shaken()

    def _shaken(self) -> bool:
        """A step of the handshake; whether it is over."""
        tls = self.sock
        try:
            return bool(tls.shake())
        except PlainBytes as problem:
            self._be_plain()
            if problem.data[:4] == MAGIC[: len(problem.data[:4])]:
                self._refuse(
                    errors.ProtocolError("this server speaks TLS only; connect with tls=ClientTLS(...)")
                )
                return False
            reason = "it does not speak TLS"
        except OSError as problem:
            self._be_plain()
            reason = tls_problem(problem)
        finally:
            if tls.owes and self.sock is tls:
                with self._lock:
                    self.server.poller.watch(self)
        log.info("%s: no TLS connection: %s", self, reason)
        self.server.refused += 1
        self._linger()
        return False

    def _be_plain(self) -> None:
        """No TLS comes of it; what is still said and heard is plain."""
        raw = self.sock.raw
        self.sock, self._recv, self._send = raw, raw.recv, raw.send

    @property
    def interest(self) -> tuple[bool, bool]:
        read, write = super().interest
        return read, write or getattr(self.sock, "owes", False)

    def _refuse(self, problem: errors.ProtocolError) -> None:
        if getattr(self.sock, "established", True):
            super()._refuse(problem)
        else:
            log.info("%s: %s", self, problem)
            self.server.refused += 1
            self.close()
