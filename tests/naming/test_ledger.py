"""A dict that several processes share: here several ledgers over one store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from objserver import errors
from objserver.naming.ledger import Ledger
from objserver.storage import Store, open_store
from objserver.storage.sqlite import SqliteStore


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[[], Store]]:
    """Opens the same shared store for each process."""
    stores: list[Store] = []
    if request.param == "sqlite":
        shared = SqliteStore("sqlite://", alone=False)
        yield lambda: shared
        shared.close()
        return
    url = request.getfixturevalue("postgres").new_url()

    def open_it() -> Store:
        stores.append(open_store(url))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def ledger(store: Store | None, told: Callable[[Any], None] = lambda _: None) -> Ledger[str]:
    return Ledger(store, "words", 4, str, str, told)


def test_without_a_store_it_is_a_dict_that_tells_its_differences() -> None:
    told: list[Any] = []
    words = ledger(None, told.append)
    words.change(lambda: {"a": "1", "b": "2"})
    words.change(lambda: {"a": None, "b": "2", "c": None})
    assert (words.get("a"), words.get("b")) == (None, "2")
    assert {key: pair for each in told[:-1] for key, pair in each.items()} == {
        "a": (None, "1"),
        "b": (None, "2"),
    }
    assert told[-1] == {"a": ("1", None)}


def test_what_is_there_is_read_at_the_start(opened: Callable[[], Store]) -> None:
    ledger(opened()).change(lambda: {str(n): str(n * n) for n in range(50)})
    told: dict[str, Any] = {}
    words = ledger(opened(), told.update)
    assert all(words.get(str(n)) == str(n * n) for n in range(50))
    assert told == {str(n): (None, str(n * n)) for n in range(50)}


def test_another_sees_a_change_when_it_looks_at_the_key_or_follows(opened: Callable[[], Store]) -> None:
    ours, theirs = ledger(opened()), ledger(opened())
    ours.change(lambda: {"a": "1", "b": "1"})
    assert theirs.get("a") is None
    assert theirs.refresh("a") == "1"
    ours.change(lambda: {"a": "2", "b": None})
    theirs.follow()
    assert (theirs.get("a"), theirs.get("b")) == ("2", None)


def test_who_comes_second_decides_anew(opened: Callable[[], Store]) -> None:
    ours, theirs = ledger(opened()), ledger(opened())
    seen: list[str | None] = []

    def decide() -> dict[str, str | None]:
        seen.append(theirs.get("a"))
        if len(seen) == 1:
            ours.change(lambda: {"a": "first"})
        return {"a": f"{theirs.get('a')}, then me"}

    theirs.change(decide)
    assert seen == [None, "first"]
    assert theirs.get("a") == "first, then me"


def test_what_decide_raises_ends_the_change(opened: Callable[[], Store]) -> None:
    words = ledger(opened())

    def decide() -> dict[str, str | None]:
        raise errors.NamingError("no")

    with pytest.raises(errors.NamingError, match="no"):
        words.change(decide)


def test_after_a_commit_in_doubt_it_reads_again_though_it_is_alone() -> None:
    store = SqliteStore("sqlite://")
    words = ledger(store)
    commit = store.commit

    def lost(changes: Any) -> Any:
        commit(changes)
        failure = errors.StoreError("the answer was lost")
        failure.in_doubt = True
        raise failure

    store.commit = lost  # type: ignore[method-assign]
    with pytest.raises(errors.StoreError, match="lost"):
        words.change(lambda: {"a": "1"})
    store.commit = commit  # type: ignore[method-assign]
    assert words.get("a") is None
    words.follow()
    assert words.get("a") == "1"
    store.close()


def test_rows_of_another_release_are_refused() -> None:
    from objserver.storage import Change

    store = SqliteStore("sqlite://")
    store.commit([Change("words", "0000", 0, 0, 1, 99, b"\x80")])
    with pytest.raises(errors.StoreError, match="another release"):
        ledger(store)
    store.close()
    store = SqliteStore("sqlite://")
    store.commit([Change("words", "a word itself", 0, 0, 0, 0, b"{}")])
    with pytest.raises(errors.StoreError, match="another release"):
        ledger(store)
    store.close()
