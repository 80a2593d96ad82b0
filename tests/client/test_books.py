"""Call numbers: what is acknowledged, and what may still be asked for."""

from objserver.client import books
from objserver.client.books import Book
from objserver.machine import machine


def test_all_through_the_oldest_call_without_an_answer_is_acknowledged():
    book = Book("store")
    (one, _), (two, _), (three, _) = (book.begin() for _ in range(3))
    assert [one.number, two.number, three.number] == [1, 2, 3]
    assert book.acked == 0
    book.end(two)
    assert book.acked == 0
    book.end(one)
    assert book.acked == 2
    book.end(three)
    assert book.acked == 3


def test_an_unknown_outcome_is_not_acknowledged_until_many_calls_later(monkeypatch):
    monkeypatch.setattr(books, "UNKNOWN_KEPT", 3)
    book = Book("store")
    book.unknown(book.begin()[0])
    for _ in range(3):
        book.end(book.begin()[0])
        assert book.acked == 0
    book.end(book.begin()[0])
    assert book.acked == 5


def test_unknown_outcomes_do_not_fill_a_book():
    assert books.UNKNOWN_KEPT < books.OUTSTANDING_MAX
    book = Book("store")
    for _ in range(3 * books.OUTSTANDING_MAX):
        book.unknown(book.begin()[0])
        assert not book.is_full


def test_there_is_a_book_for_each_of_the_credentials_that_are_shown():
    shown = object()
    one, other = books.book_of("a store"), books.book_of("a store", shown)
    assert one.client != other.client
    assert books.book_of("a store", shown) is other
    books.close(other)
    assert books.book_of("a store") is one
    assert books.book_of("a store", shown) is not other


def test_a_client_of_others_is_introduced_by_whom_it_is_introduced():
    books.introduced("a store", "shown", b"client")
    assert books.is_introduced("a store", "shown", b"client")
    assert not books.is_introduced("a store", None, b"client")


def test_books_are_bounded(monkeypatch):
    monkeypatch.setattr(books, "BOOKS_MAX", 2)
    machine.get().own(books._Books)._books.clear()
    first = books.book_of("bounded", 1)
    again = books.book_of("bounded", 1)
    assert first is again
    for number in (2, 3):
        books.book_of("bounded", number)
    assert books.book_of("bounded", 1) is not first
