"""Call numbers: what is acknowledged, and what may still be asked for."""

from objserver.client import books
from objserver.client.books import Book


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
