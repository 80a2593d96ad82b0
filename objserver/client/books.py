"""Call numbers: under which ids this process makes the calls that must happen exactly once.

For each store that it meets, a client process keeps a book: an id of its own, and a number for every call, by
which the store tells a repetition from a new call.  With each call goes the number through which all answers
have come, so that the store need not remember these.  A server that knows who calls keeps what it knows of a
client apart for each principal, so there is a book for each of the `credentials` that this process shows.

A call within a numbered one has an id of that one's client, which another process numbers and this store may
never have heard of: the process that makes it opens that client's session there first.  A call that was sent
before could be refused after its connection broke, and nobody would know whether it had been made meanwhile.

A book is begun with a session at the server.  If that expires because nothing was called for long, calls that
were never sent are made under a new book; others have an outcome that nobody knows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from uuid import uuid4

from objserver.invocation import CallId
from objserver.machine import machine

__all__ = ["Book", "book_of", "close", "introduced", "is_introduced"]

OUTSTANDING_MAX = 10_000
"""Calls of one book from the oldest that has no answer to the newest.  The store remembers that many for the
sake of one that takes long; beyond it a new book is begun, and the old one ends with its last call."""
UNKNOWN_KEPT = 5_000
"""So many calls later an outcome that nobody knows can still be asked for.  Until then its answer is not
acknowledged, and so neither are those after it: the store keeps them too."""

BOOKS_MAX = 1_000
"""Books kept: a process that lives long shows many tokens.  One that is forgotten ends with its last call."""
INTRODUCED_MAX = 10_000
"""Clients of others of which it is known that a store knows them; the session of one more is opened again,
which changes nothing."""


class Book:
    """Of one process for one store.  Any thread may call any method."""

    def __init__(self, store: str, shown: object = None) -> None:
        self.store = store
        self.shown = shown
        """What the server is shown with its calls; None is nothing."""
        self.client = uuid4().bytes
        self.opened = False
        """The server knows it."""
        self._lock = threading.Lock()
        self._last = 0
        self._outstanding: dict[int, None] = {}
        self.is_full = False
        """The oldest call without an answer is too far behind."""
        self._unknown: deque[int] = deque()

    def begin(self) -> tuple[CallId, int]:
        """The id of a new call, which `end` must be told when it has its answer; and `acked`."""
        with self._lock:
            self._last = number = self._last + 1
            outstanding = self._outstanding
            outstanding[number] = None
            while self._unknown and self._unknown[0] + UNKNOWN_KEPT < number:
                outstanding.pop(self._unknown.popleft(), None)
            acked = self.acked
        self.is_full = number - acked > OUTSTANDING_MAX
        return CallId(self.client, number), acked

    def end(self, call: CallId) -> None:
        """Nobody will make the call again."""
        self._outstanding.pop(call.number, None)

    def unknown(self, call: CallId) -> None:
        """Nobody will make the call again, but somebody may ask for its outcome."""
        with self._lock:
            self._unknown.append(call.number)

    @property
    def acked(self) -> int:
        """All answers up to this number have come."""
        while True:
            try:
                return next(iter(self._outstanding), self._last + 1) - 1
            except RuntimeError:  # a call has ended meanwhile
                pass


class _Books:
    """Of one process, by store and by what is shown to its server."""

    def __init__(self) -> None:
        self._books: OrderedDict[tuple[str, object], Book] = OrderedDict()
        self.introduced: OrderedDict[tuple[str, object, bytes], None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, store: str, shown: object) -> Book:
        book = self._books.get((store, shown))
        if book is None or book.is_full:
            with self._lock:
                book = self._books.get((store, shown))
                if book is None or book.is_full:
                    book = self._books[store, shown] = Book(store, shown)
                    if len(self._books) > BOOKS_MAX:
                        self._books.popitem(last=False)
        return book

    def close(self, book: Book) -> None:
        with self._lock:
            if self._books.get((book.store, book.shown)) is book:
                del self._books[book.store, book.shown]


def is_introduced(store: str, shown: object, client: bytes) -> bool:
    """Whether the store knows this client of another process."""
    return (store, shown, client) in machine.get().own(_Books).introduced


def introduced(store: str, shown: object, client: bytes) -> None:
    """From now on it does."""
    known = machine.get().own(_Books).introduced
    known[store, shown, client] = None
    if len(known) > INTRODUCED_MAX:
        known.popitem(last=False)


def book_of(store: str, shown: object = None) -> Book:
    """The book for new calls to objects in this store, whose server is shown `shown`, which is hashable."""
    return machine.get().own(_Books).of(store, shown)


def close(book: Book) -> None:
    """Its session has expired: new calls are made under another."""
    machine.get().own(_Books).close(book)
