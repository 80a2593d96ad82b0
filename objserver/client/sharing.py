"""The client's side of sharing memory with a server on the same machine, for either kind of connection.

An offer stands in the greeting, and the answer settles it: the parser of the connection learns that large
values may come beside the messages, and, if the server made an offer too, where those in shared memory are.
"""

from __future__ import annotations

import socket
import threading

from objserver.client.greeting import Greeted, Greeting
from objserver.settings import Limits, ServerSettings
from objserver.wire import FrameParser
from objserver.wire.shared_memory import Link, SharedMemory, is_local

__all__ = ["MEMORY", "ended", "offered", "settled"]

MEMORY = SharedMemory(ServerSettings.shared_memory_max, Limits.shared_buffer_size_max)
"""What all proxies of this process lend to servers on this machine, and borrow from them."""

LINGER_S = 1.0
"""How long the server may still take what was lent for a oneway, once the connection has ended."""


def offered(greeting: Greeting, sock: socket.socket) -> Link | None:
    """What to offer; nothing to another machine, nor in a stock conversation."""
    return MEMORY.link() if greeting.serializer is None and is_local(sock) else None


def settled(link: Link | None, greeted: Greeted, parser: FrameParser) -> Link | None:
    """What is left of the offer after the server's answer."""
    if greeted.native:
        parser.parts_in = greeted.codec.serializer_id
    if link is not None and greeted.shared is not None:
        link.accept(greeted.shared)
        parser.link = link
        return link
    if link is not None:
        link.close()
    return None


def ended(link: Link | None) -> None:
    """The connection is closed."""
    if link is not None:
        link.close(LINGER_S)
        if MEMORY.is_awaited:
            # Nobody keeps house in a client.
            later = threading.Timer(LINGER_S + 0.1, MEMORY.sweep)
            later.daemon = True
            later.start()
