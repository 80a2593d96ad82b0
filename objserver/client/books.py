"""Call numbers: under which ids this process makes the calls that must happen exactly once.

For each store that it meets, a client process keeps a book: an id of its own, and a number for every call, by
which the store tells a repetition from a new call.  With each call goes the number through which all answers
have come, so that the store need not remember these.

A book is begun with a session at the server.  If that expires because nothing was called for long, calls that
were never sent are made under a new book; others have an outcome that nobody knows.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from uuid import uuid4

from objserver.invocation import CallId

__all__ = ["Book", "book_of", "close"]

OUTSTANDING_MAX = 10_000
"""Calls of one book from the oldest that has no answer to the newest.  The store remembers that many for the
sake of one that takes long; beyond it a new book is begun, and the old one ends with its last call."""
UNKNOWN_KEPT = 5_000
"""So many calls later an outcome that nobody knows can still be asked for.  Until then its answer is not
acknowledged, and so neither are those after it: the store keeps them too."""


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
        self._unknown: deque[int] = deque()

    def begin(self) -> tuple[CallId, int]:
        """The id of a new call, which `end` must be told when it has its answer; and `acked`."""
        with self._lock:
            self._last = number = self._last + 1
            outstanding = self._outstanding
            outstanding[number] = None
            while self._unknown and self._unknown[0] + UNKNOWN_KEPT < number:
                outstanding.pop(self._unknown.popleft(), None)
            return CallId(self.client, number), next(iter(outstanding)) - 1

    def end(self, call: CallId) -> None:
        """Nobody will make the call again."""
        with self._lock:
            self._outstanding.pop(call.number, None)

    def unknown(self, call: CallId) -> None:
        """Nobody will make the call again, but somebody may ask for its outcome."""
        with self._lock:
            self._unknown.append(call.number)

    @property
    def acked(self) -> int:
        """All answers up to this number have come."""
        with self._lock:
            return next(iter(self._outstanding), self._last + 1) - 1

    @property
    def is_full(self) -> bool:
        """The oldest call without an answer is too far behind."""
        return self._last - self.acked >= OUTSTANDING_MAX


_books: dict[str, Book] = {}
_lock = threading.Lock()


def book_of(store: str) -> Book:
    """The book for new calls to objects in this store."""
    book = _books.get(store)
    if book is None or book.is_full:
        with _lock:
            book = _books.get(store)
            if book is None or book.is_full:
                book = _books[store] = Book(store)
    return book


def close(book: Book) -> None:
    """Its session has expired: new calls are made under another."""
    with _lock:
        if _books.get(book.store) is book:
            del _books[book.store]


def _begin_anew() -> None:
    global _lock
    _lock = threading.Lock()
    _books.clear()


os.register_at_fork(after_in_child=_begin_anew)
