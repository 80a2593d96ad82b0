"""The directory by itself: what it answers, refuses and keeps."""

from __future__ import annotations

import pathlib

import Pyro5.errors
import pytest

from objserver import Proxy, errors
from objserver.naming import NameServer, NamingLimits, Ownership
from objserver.references import Reference
from objserver.security import Principal
from objserver.storage import open_store
from objserver.storage.sqlite import SqliteStore

URI = "PYRO:thing@localhost:1234"


def test_lookup_gives_a_reference_and_its_metadata() -> None:
    names = NameServer()
    names.register("a", URI, metadata=["x", "y"])
    assert names.lookup("a") == Reference.parse(URI)
    assert names.lookup("a", return_metadata=True) == (Reference.parse(URI), {"x", "y"})
    names.set_metadata("a", None)
    assert names.list(return_metadata=True) == {"a": (URI, set())}
    assert names.count() == 1


def test_list_and_yplookup_filter() -> None:
    names = NameServer()
    names.register("shop.a", URI, metadata={"x"})
    names.register("shop.b", URI, metadata={"x", "y"})
    names.register("bank", URI)
    assert set(names.list(prefix="shop.")) == {"shop.a", "shop.b"}
    assert set(names.list(regex=".*a")) == {"shop.a", "bank"}
    assert set(names.yplookup(meta_all=["x", "y"])) == {"shop.b"}
    assert set(names.yplookup(meta_any=["x", "y"])) == {"shop.a", "shop.b"}
    assert names.yplookup(meta_any={"y"}, return_metadata=False) == {"shop.b": URI}
    assert names.yplookup() == {}


def test_remove_never_removes_the_name_server() -> None:
    names = NameServer()
    for name in ("Pyro.NameServer", "Pyro.x", "y"):
        names.register(name, URI)
    assert names.remove("Pyro.NameServer") == 0
    assert names.remove(prefix="Pyro.") == 1
    assert names.remove(regex=".*") == 1
    assert names.remove("gone") == names.remove() == 0
    assert list(names.list()) == ["Pyro.NameServer"]


def test_refusals_are_those_of_pyro5() -> None:
    names = NameServer(limits=NamingLimits(names_max=1))
    names.register("a", URI)
    with pytest.raises(Pyro5.errors.NamingError, match="unknown name: b"):
        names.lookup("b")
    with pytest.raises(errors.NamingError, match="already registered"):
        names.register("a", URI, safe=True)
    with pytest.raises(errors.NamingError, match="full"):
        names.register("b", URI)
    with pytest.raises(errors.NamingError, match="not a URI"):
        names.register("a", "nonsense")
    with pytest.raises(TypeError, match="only URIs"):
        names.register("a", 5)
    with pytest.raises(TypeError, match="not one str"):
        names.register("a", URI, metadata="tag")
    with pytest.raises(ValueError, match="not by both"):
        names.list(prefix="a", regex="a")
    with pytest.raises(ValueError, match="not for both"):
        names.yplookup(meta_all=["a"], meta_any=["a"])


def test_what_is_registered_is_bounded() -> None:
    names = NameServer()
    with pytest.raises(errors.NamingError, match="500 characters"):
        names.register("n" * 501, URI)
    with pytest.raises(errors.NamingError, match="tags"):
        names.register("a", URI, metadata=[*map(str, range(101))])
    with pytest.raises(errors.NamingError, match="200 characters"):
        names.list(regex="a" * 201)
    with pytest.raises(errors.NamingError, match="invalid regex"):
        names.list(regex="(")


def test_the_store_keeps_names_through_removal_and_return(tmp_path: pathlib.Path) -> None:
    url = f"sqlite:///{tmp_path}/names.db"
    store = open_store(url)
    names = NameServer(store)
    names.register("a", URI, metadata={"x"})
    names.register("b", URI)
    names.remove("a")
    names.register("a", URI, metadata={"z"})
    names.remove(prefix="b")
    store.close()
    store = open_store(url)
    assert NameServer(store).list(return_metadata=True) == {"a": (URI, {"z"})}
    store.close()


def test_an_expression_that_backtracks_without_end_is_stopped():
    names = NameServer(limits=NamingLimits(regex_timeout_s=0.05))
    for n in range(5):
        names.register("a" * 40 + str(n), "PYRO:x@h:1")
    with pytest.raises(errors.NamingError, match="took more than"):
        names.list(regex="(a|aa)+$")
    assert len(names.list(regex="(a|aa)+[0-4]$")) == 5


def test_what_is_no_text_is_refused_for_the_sake_of_the_others():
    names = NameServer()
    for bad in ("\ud800", 5, Proxy("PYRO:x@localhost:1")):
        with pytest.raises(TypeError):
            names.register(bad, "PYRO:x@h:1")
        with pytest.raises(TypeError):
            names.register("a", "PYRO:x@h:1", metadata=[bad])
        if bad != "\ud800":
            for filtered in (names.list, names.remove):
                with pytest.raises(TypeError):
                    filtered(prefix=bad)
                with pytest.raises(TypeError):
                    filtered(regex=bad)
    with pytest.raises(TypeError):
        names.register("a", "PYRO:x@h:1", metadata=Proxy("PYRO:x@localhost:1"))
    assert names.list() == {}


def test_our_own_may_repeat_a_registration_and_not_replace_another() -> None:
    names = NameServer()
    names.register("a", URI, metadata={"x"})
    names.register("a", URI, metadata={"y"})
    assert names.list(return_metadata=True) == {"a": (URI, {"y"})}
    with pytest.raises(errors.NamingError, match="already registered, for PYRO:thing"):
        names.register("a", "PYRO:other@localhost:1")
    with pytest.raises(errors.NamingError, match="already registered"):
        names.register_all({"b": URI, "a": "PYRO:other@localhost:1"})
    assert names.count() == 1
    names.register("a", "PYRO:other@localhost:1", safe=False)
    assert names.list() == {"a": "PYRO:other@localhost:1"}


def test_a_name_belongs_to_the_principal_that_registered_it(tmp_path: pathlib.Path) -> None:
    url = f"sqlite:///{tmp_path}/names.db"
    store = open_store(url)
    who: list[Principal | None] = [Principal("alice")]
    rules = Ownership(reserved={"bank/": frozenset({"tellers"})})
    names = NameServer(store, ownership=rules, principal=lambda: who[0])
    names.register("a", URI)
    with pytest.raises(errors.NamingError, match="reserved, and not for 'alice'"):
        names.register("bank/a", URI)
    store.close()
    store = open_store(url)
    names = NameServer(store, ownership=rules, principal=lambda: who[0])
    for other in (None, Principal("bob")):
        who[0] = other
        for change in (
            lambda: names.register("a", URI, safe=False),
            lambda: names.set_metadata("a", ["x"]),
            lambda: names.remove("a"),
            lambda: names.remove(prefix="a"),
        ):
            with pytest.raises(errors.NamingError, match="belongs to 'alice'"):
                change()
    who[0] = Principal("alice")
    assert names.remove("a") == 1
    store.close()


def test_names_are_paged_searched_and_in_contexts() -> None:
    names = NameServer(limits=NamingLimits(page_max=100))
    names.register_all({f"shop/{n % 3}/{n:03}": URI for n in range(150)}, metadata={"x"})
    names.register_all({"shop/till": URI, "bank": URI}, metadata={"x", "y"})
    first = names.page(prefix="shop/")
    second = names.page(prefix="shop/", after=list(first)[-1])
    assert (len(first), len(second)) == (100, 51)
    assert [*first, *second] == sorted(names.list(prefix="shop/"))
    assert names.page(meta_all=["y"], prefix="shop/") == {"shop/till": (URI, {"x", "y"})}
    assert list(names.page(meta_any=["y", "z"], limit=1)) == ["bank"]
    assert names.children() == {"bank": URI, "shop/": 151}
    assert names.children("shop") == {"0/": 50, "1/": 50, "2/": 50, "till": URI}
    assert names.children("/shop/", after="1/") == {"2/": 50, "till": URI}
    assert names.children("nothing") == {}
    with pytest.raises(ValueError, match="one name at least"):
        names.page(limit=0)


def test_candidates_say_how_loaded_their_servers_are() -> None:
    names = NameServer()
    lease = names.open_lease(10.0)
    names.register("a", URI, metadata={"t"}, lease=lease)
    names.register("b", URI, metadata={"t"})
    names.renew_lease(lease, 0.5)
    assert names.candidates(["t"]) == {"a": (URI, 0.5), "b": (URI, 0.0)}
    with pytest.raises(ValueError, match="says nothing"):
        names.renew_lease(lease, float("nan"))


def test_leases_are_bounded() -> None:
    names = NameServer(limits=NamingLimits(leases_max=1))
    for seconds in (0.5, 4000.0):
        with pytest.raises(errors.NamingError, match=r"it has 1\.0 to 3600\.0 s"):
            names.open_lease(seconds)
    names.open_lease(5.0)
    with pytest.raises(errors.NamingError, match="leases_max"):
        names.open_lease(5.0)


def test_the_key_of_an_object_is_found_behind_its_name() -> None:
    names = NameServer()
    names.register("Account", "PYRO:A@localhost:7")
    names.register("Account/alice", "PYRO:B@./u:/tmp/a@b")
    names.register("other", "PYRONAME:Account")
    assert names.resolve("Account") == "PYRO:A@localhost:7"
    assert names.resolve("Account/bob/x") == "PYRO:A/bob/x@localhost:7"
    assert names.resolve("Account/alice/x") == "PYRO:B/x@./u:/tmp/a@b"
    assert names.resolve("other") == "PYRONAME:Account"
    with pytest.raises(errors.NamingError, match="unknown name: Account2"):
        names.resolve("Account2/alice")


def test_without_its_store_a_name_server_answers_what_it_knows() -> None:
    store = SqliteStore("sqlite://", alone=False)
    names = NameServer(store)
    names.register("Account", "PYRO:A@localhost:7")
    store.close()
    assert names.resolve("Account/alice") == "PYRO:A/alice@localhost:7"
    assert str(names.lookup("Account")) == "PYRO:A@localhost:7"
    for asked in (lambda: names.lookup("nobody"), lambda: names.register("x", URI), names.tick):
        with pytest.raises(errors.StoreError):
            asked()
    assert names.list() == {"Account": "PYRO:A@localhost:7"}


@pytest.mark.parametrize(
    "regex", ["(?:(?:a{999}){999}){999}", "(?:a{9999}){9999}", "a{1,9999}", "(a{40}){40}"]
)
def test_a_regex_that_would_take_all_memory_is_refused_before_it_is_compiled(regex):
    with pytest.raises(errors.NamingError, match="may repeat something 1000 times at most"):
        NameServer().list(regex=regex)


@pytest.mark.parametrize("regex", ["a{3}b{2,}", "[0-9]{1,3}(x{2}){4}", "a{x}", "{", "}{"])
def test_an_ordinary_regex_may_repeat(regex):
    assert NameServer().list(regex=regex) == {}
