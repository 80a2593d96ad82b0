"""Call numbers: under which ids this process makes the calls that must happen exactly once.

For each store that it meets, a client process keeps a book: an id of its own, and a number for every call, by
which the store tells a repetition from a new call.  With each call goes the number through which all answers
have come, so that the store need not remember these.

A book is begun with a session at the server.  If that expires because nothing was called for long, calls that
were never sent are made under a new book; others have an outcome that nobody knows.
"""

from __future__ import annotations

import threading
from uuid import uuid4

from objserver.invocation import CallId
from objserver.machine import machine

__all__ = ["Book", "book_of", "close"]

OUTSTANDING_MAX = 10_000
"""Calls of one book from the oldest that has no answer to the newest.  The store remembers that many for the
sake of one that takes long; beyond it a new book is begun, and the old one ends with its last call."""


class Book:
    """Of one process for one store.  Any thread may call any method."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.client = uuid4().bytes
        self.opened = False
        """The server knows it."""
        self._lock = threading.Lock()
        self._last = 0
        self._outstanding: dict[int, None] = {}
        self.is_full = False
        """The oldest call without an answer is too far behind."""

    def begin(self) -> tuple[CallId, int]:
        """The id of a new call, which `end` must be told when it has its answer; and `acked`."""
        with self._lock:
            self._last = number = self._last + 1
            outstanding = self._outstanding
            outstanding[number] = None
            acked = self.acked
        self.is_full = number - acked > OUTSTANDING_MAX
        return CallId(self.client, number), acked

    def end(self, call: CallId) -> None:
        """Nobody will make the call again."""
        self._outstanding.pop(call.number, None)

    @property
    def acked(self) -> int:
        """All answers up to this number have come."""
        while True:
            try:
                return next(iter(self._outstanding), self._last + 1) - 1
            except RuntimeError:  # a call has ended meanwhile
                pass


class _Books:
    """Of one process, by store."""

    def __init__(self) -> None:
        self._books: dict[str, Book] = {}
        self._lock = threading.Lock()

    def of(self, store: str) -> Book:
        book = self._books.get(store)
        if book is None or book.is_full:
            with self._lock:
                book = self._books.get(store)
                if book is None or book.is_full:
                    book = self._books[store] = Book(store)
        return book

    def close(self, book: Book) -> None:
        with self._lock:
            if self._books.get(book.store) is book:
                del self._books[book.store]


def book_of(store: str) -> Book:
    """The book for new calls to objects in this store."""
    return machine.get().own(_Books).of(store)


def close(book: Book) -> None:
    """Its session has expired: new calls are made under another."""
    machine.get().own(_Books).close(book)
