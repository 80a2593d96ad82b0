"""A socket on which everything is encrypted: what connections call a socket, with TLS inside.

OpenSSL works on memory here, and never on the socket itself.  So one system call receives what several
records hold, the times that the kernel keeps for a blocking socket stay what they are, and it is this module
that says who may be in OpenSSL when: one thread at a time, for a reply is encrypted by whoever has it while
another thread decrypts what comes.

A small message is one record, and what is done with it is compiled where it can be: `Records`, in C, and in
Python beside it.  All else is done by TLSSocket, which is called from there.

`recv` returns all that can be decrypted, even if that is more than was asked for.  Nothing is then left
behind that an epoll would not know of.

`send` encrypts a piece, and a piece that is encrypted has to leave, before anything else.  If the kernel does
not take all of it, it is reported as not sent; the caller comes again with the same bytes, as the connections
of this project do and OpenSSL expects too, and they are not encrypted twice.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from objserver.compiled import compiled

__all__ = ["PlainBytes", "TLSSocket"]

RECORD = 16 * 1024
"""Bytes of the largest record."""
PIECE = 16 * RECORD
"""Bytes that are encrypted ahead of what the kernel takes."""
OWED_MAX = 128 * 1024 + PIECE
"""Encrypted bytes that wait at most: more are answers to a peer that asks for new keys and reads nothing."""
OVERHEAD = 5 + 1 + 16
"""Bytes that a record of TLS 1.3 has beside what is in it: header, kind and tag.  With padding it has more,
and then `_uncounted` never comes to nothing, and OpenSSL is asked; it never has less."""
ALWAYS = 1 << 62
"""For older versions, whose records have less with some ciphers."""
_HANDSHAKE = 0x16
"""The first byte of every TLS connection."""


class PlainBytes(Exception):
    """The peer does not speak TLS; `data` is what it said first."""

    def __init__(self, data: bytes) -> None:
        super().__init__("no TLS hello")
        self.data = data


class _PureRecords:
    """What the compiled Records are, in Python: one small message, one record.

    Whatever else there is, the methods of TLSSocket do, in whose turn no other thread is in OpenSSL.
    """

    _recv: Callable[..., bytes]
    _send: Callable[..., int]
    _sendall: Callable[..., None]
    _feed: Callable[..., int]
    _encrypted: Callable[..., bytes]
    _read: Callable[..., bytes]
    _write: Callable[..., int]
    _rest: Callable[[bytes], bytes]
    _decrypted: Callable[[], bytes | None]
    _send_pieces: Callable[..., int]
    _send_all_pieces: Callable[[Any], None]
    _owe: Callable[[bytes, int, int], int]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._owed = b""
        """Encrypted bytes that the kernel has not taken yet ..."""
        self._uncounted = 0
        """Bytes that have come and are not accounted for by records that were decrypted.  None: all that has
        come is decrypted, and OpenSSL need not be asked, which costs as much as decrypting."""
        self._left = False
        """Something may be decrypted already."""
        self._fd = -1
        """Where the compiled Records receive and send without Python's socket; -1: nowhere."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        """What has come, decrypted; nothing at its end.  `flags` may look for what has come undecrypted."""
        if flags:
            return self._recv(size, flags)
        while True:
            piece: bytes | None
            if self._left:
                with self._lock:
                    self._left = False
                    piece = self._decrypted()
            else:
                data = self._recv(size)
                if not data:
                    return b""
                with self._lock:
                    self._uncounted += len(data)
                    self._feed(data)
                    try:
                        # What nearly always comes: one record, and nothing else.  Room for it and no more.
                        piece = self._read(min(self._uncounted, RECORD))
                    except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                        piece = self._decrypted()
                    else:
                        self._uncounted -= len(piece) + OVERHEAD
                        if self._uncounted:
                            piece = self._rest(piece)
            if piece is not None:
                return piece

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what the kernel takes, without blocking; how many bytes of `data` are on their way.

        BlockingIOError if none.  The rest must be sent next, and before anything else.
        """
        with self._lock:
            if flags or self._owed or not 0 < len(data) <= RECORD:
                return self._send_pieces(data, flags)
            # What nearly always goes.
            self._write(data)
            out = self._encrypted()
            try:
                sent = self._send(out)
            except (BlockingIOError, InterruptedError):
                sent = 0
            return len(data) if sent == len(out) else self._owe(out, sent, len(data))

    def sendall(self, data: Any) -> None:
        """Send all of it; blocks."""
        with self._lock:
            if self._owed or len(data) > RECORD:
                self._send_all_pieces(data)
            else:
                self._write(data)
                self._sendall(self._encrypted())


records = compiled("security._records")
_Base: type[_PureRecords] = _PureRecords if records is None else records.Records


class TLSSocket(_Base):  # type: ignore[valid-type, misc]
    """TLS over `sock`.  Servers `send` without blocking, clients `sendall`; both `recv`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str | None = None) -> None:
        """Of a client if there is a `server_name`."""
        super().__init__()
        self.raw = sock
        self.family = sock.family
        self.established = False
        self.is_server = server_name is None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=self.is_server, server_hostname=server_name
        )
        self._recv, self._send, self._sendall = sock.recv, sock.send, sock.sendall
        self._feed, self._encrypted = self._incoming.write, self._outgoing.read
        # What the methods of SSLObject do is call these, and it takes a tenth as long again.
        core = getattr(self._tls, "_sslobj", self._tls)
        self._read, self._write = core.read, core.write
        # Not of a socket whose time Python keeps, or that is none of the kernel's.
        if isinstance(sock, socket.socket) and not sock.gettimeout():
            self._fd = sock.fileno()
        self._heard = False
        self._begun = 0
        """... and how many of the caller's were reported as not sent because of them."""

    # -- the handshake -------------------------------------------------------------------------------

    def shake(self) -> bool:
        """One step of a server's handshake; whether it is over.  PlainBytes, or OSError if it has failed."""
        try:
            data = self._recv(RECORD)
        except (BlockingIOError, InterruptedError):
            return False
        if not data:
            raise ConnectionResetError("the connection was closed during the TLS handshake")
        if not self._heard and data[0] != _HANDSHAKE:
            raise PlainBytes(data)
        self._heard = True
        self._acquire()
        try:
            self._incoming.write(data)
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                return False
            finally:
                self._push()
            self._begin()
            return True
        finally:
            self._release()

    def shake_as_client(self, timeout_s: float | None) -> None:
        """The whole handshake of a client, on a socket that blocks; OSError.

        The kernel bounds each wait; `timeout_s` bounds all of them, for a server that answers in drops.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.established:
            try:
                self._tls.do_handshake()
                self._begin()
            except ssl.SSLWantReadError:
                pass
            except OSError:
                with contextlib.suppress(OSError):
                    self.raw.sendall(self._outgoing.read())  # the alert
                raise
            if out := self._outgoing.read():
                self.raw.sendall(out)
            if not self.established:
                data = self._recv(RECORD)
                if not data:
                    raise ConnectionResetError("the connection was closed during the TLS handshake")
                if deadline is not None and time.monotonic() >= deadline:
                    raise BlockingIOError("the TLS handshake took too long")
                self._incoming.write(data)

    def _begin(self) -> None:
        """The handshake is over; what came behind it waits in memory."""
        self.established = True
        self._left = self._incoming.pending > 0
        self._uncounted = self._incoming.pending + (0 if self._tls.version() == "TLSv1.3" else ALWAYS)

    def peer_certificate(self) -> dict[str, Any] | None:
        """That of the client as `getpeercert` tells it, or None if it has shown none."""
        return self._tls.getpeercert() or None

    def peer_certificate_bytes(self) -> bytes | None:
        """That of the server, in DER."""
        return self._tls.getpeercert(True)

    # -- what is not one record; called in the turn of this thread --------------------------------------

    def _rest(self, piece: bytes) -> bytes:
        """What came with `piece`, and behind it."""
        return piece + (self._decrypted() or b"")

    def _decrypted(self) -> bytes | None:
        """All that can be decrypted, None if that is nothing; empty at the end."""
        pieces = []
        try:
            while piece := self._read(RECORD):
                self._uncounted -= len(piece) + OVERHEAD
                pieces.append(piece)
        except ssl.SSLWantReadError:
            if not pieces:
                self._push()
                return None
        except ssl.SSLZeroReturnError:
            pass
        self._push()
        return b"".join(pieces)

    def _owe(self, out: bytes, sent: int, size: int) -> int:
        """The kernel took `sent` of `out`, which `size` bytes of the caller's became."""
        self._owed, self._begun = out[sent:], size
        return 0

    def _send_pieces(self, data: Any, flags: int = 0) -> int:
        with memoryview(data) as view:
            sent, self._begun = self._begun, 0
            if self._owed and not self._push(flags):
                self._begun = sent
                raise BlockingIOError("encrypted bytes wait")
            while sent < len(view):
                begin = sent
                sent = self._encrypt(view, begin)
                if not self._push(flags):
                    self._begun = sent - begin
                    return begin
            return sent

    def _send_all_pieces(self, data: Any) -> None:
        if self._owed:
            self._sendall(self._owed)
            self._owed = b""
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent = self._encrypt(view, sent)
                self._sendall(self._encrypted())

    def _encrypt(self, view: memoryview, begin: int) -> int:
        """The next piece of `view`; where it ends."""
        end = min(begin + PIECE, len(view))
        while begin < end:
            begin += self._write(view[begin:end])
        return end

    def _push(self, flags: int = 0) -> bool:
        """Give the kernel what is encrypted; whether it took all of it."""
        out = self._owed + self._encrypted() if self._owed else self._encrypted()
        if not out:
            return True
        try:
            sent = self.raw.send(out, flags)
        except (BlockingIOError, InterruptedError):
            sent = 0
        self._owed = out[sent:]
        if len(self._owed) > OWED_MAX:
            raise ConnectionAbortedError("the peer does not read what TLS has to tell it")
        return not self._owed

    # -- what else sockets do ------------------------------------------------------------------------

    @property
    def owes(self) -> bool:
        """Whether encrypted bytes wait for the kernel; `send(b"")` sends them."""
        return bool(self._owed)

    def fileno(self) -> int:
        return self.raw.fileno()

    def getpeername(self) -> Any:
        return self.raw.getpeername()

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self.raw.setsockopt(level, option, value)

    def shutdown(self, how: int) -> None:
        """Tell the peer that no more comes."""
        self._say_end()
        self.raw.shutdown(how)

    def close(self) -> None:
        """Safe to call twice."""
        if self.raw.fileno() >= 0:
            self._say_end()
            self._fd = -1  # before another socket gets that number
            self.raw.close()

    def _say_end(self) -> None:
        """TLS has a message of its own for it; best effort, and never a wait."""
        if self.established and self._acquire(False):
            try:
                with contextlib.suppress(OSError, ValueError):
                    self._tls.unwrap()
                with contextlib.suppress(OSError):
                    self._push(socket.MSG_DONTWAIT)
            finally:
                self._release()
