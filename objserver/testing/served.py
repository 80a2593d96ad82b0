"""A store whose owner and whose user are one process, which talk as if they were two.

The conformance suite opens one store by a URL, and opens it again when it was closed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Iterable

from objserver.storage.owner import StoreServer
from objserver.storage.remote import RemoteStore
from objserver.storage.sqlite import SqliteStore

__all__ = ["ServedStore", "await_sent"]


class ServedStore(RemoteStore):
    """The SQLite store at `url`, a file in a private directory, through a socket beside it."""

    def __init__(self, url: str) -> None:
        path = url.removeprefix("sqlite:///")
        self._store = SqliteStore(url, alone=False)
        try:
            self.owner = StoreServer(self._store, os.path.splitext(path)[0] + ".sock")
        except BaseException:
            self._store.close()
            raise
        super().__init__(self.owner.path)

    def close(self) -> None:
        super().close()
        self.owner.close()
        self._store.close()


def await_sent(stores: Iterable[RemoteStore]) -> None:
    """Until each has sent its request: what was sent, and not read by the other end, is counted."""
    for store in stores:
        while True:
            sock = store._writing.sock
            if sock is not None:
                (unread,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))
                if unread:
                    break
