"""Names in order, by tag and in contexts, against what a plain dict says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from objserver.naming import index
from objserver.naming.index import Entry, NameIndex

NAMES = st.text("ab/.", min_size=1, max_size=6)
ENTRIES = st.dictionaries(NAMES, st.builds(Entry, st.just("u"), st.frozensets(st.sampled_from("xy"))))


def made(*changes: dict[str, Entry | None]) -> NameIndex:
    names = NameIndex()
    for each in changes:
        names.change(each)
    return names


@given(ENTRIES, st.dictionaries(NAMES, st.none() | st.just(Entry("v"))), st.text("ab/.", max_size=2), NAMES)
def test_pages_are_what_sorting_everything_gives(
    first: dict[str, Entry], then: dict[str, Entry | None], prefix: str, after: str
) -> None:
    names = made(first, then)  # type: ignore[arg-type]
    left = {name: entry for name, entry in (first | then).items() if entry is not None}
    assert names.entries == left
    assert list(names.names(prefix)) == sorted(name for name in left if name.startswith(prefix))
    behind = sorted(name for name in left if name.startswith(prefix) and name > after)
    assert list(names.page(prefix, after, 3, None)) == behind[:3]
    tagged = sorted(name for name in behind if "x" in left[name].tags)
    assert list(names.page(prefix, after, 3, names.tagged({"x"}, ()))) == tagged[:3]


@given(ENTRIES, st.sampled_from(["", "a", "a/b"]))
def test_children_are_found_page_by_page(entries: dict[str, Entry], context: str) -> None:
    names = made(entries)  # type: ignore[arg-type]
    start = f"{context}/" if context else ""
    expected: dict[str, str | int] = {}
    for name in entries:
        if name.startswith(start):
            child, slash, _ = name[len(start) :].partition("/")
            if slash:
                expected[child + "/"] = int(expected.get(child + "/", 0)) + 1
            elif child:  # a name that ends with / is only counted
                expected[child] = "u"
    assert names.children(context, "", 1000) == expected
    paged: dict[str, str | int] = {}
    while page := names.children(context, list(paged)[-1] if paged else "", 2):
        paged |= page
    assert paged == expected


def test_tags_are_combined() -> None:
    names = made(
        {"a": Entry("u", frozenset("xy")), "b": Entry("u", frozenset("x")), "c": Entry("u", frozenset("z"))}
    )
    assert names.tagged("xy", ()) == {"a"}
    assert names.tagged("x", "yz") == {"a"}
    assert names.tagged((), "yz") == {"a", "c"}
    assert names.tagged("q", ()) == set()
    assert names.tagged((), ()) is None


def test_names_are_found_by_their_lease() -> None:
    names = made({"a": Entry("u", lease="1"), "b": Entry("u", lease="1")}, {"a": Entry("u", lease="2")})
    assert (names.under("1"), names.under("2"), names.leases()) == ({"b"}, {"a"}, {"1", "2"})
    names.change({"b": None})
    assert names.leases() == {"2"}


def test_many_at_once_are_in_order_too() -> None:
    many = {str(n): Entry("u") for n in range(index.MANY + 1)}
    assert list(made(many).names()) == sorted(many)  # type: ignore[arg-type]
