"""What a store must do that the nodes of a cluster share: the part of the conformance tests about that.

Leases are over at once here, or outlast the test: nothing waits for a clock.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from objserver.storage import Elsewhere, Record, Store
from objserver.storage.base import LOOKED_AHEAD, Due, Message, Session, Stored, Timer
from objserver.testing.store_model import CLIENT, LEASE_S, change, message, reply

__all__ = ["ClusterConformance"]

A, B = ("T", "a"), ("T", "b")
NEW = Record(1, 0, 0, 1, None)
"""Of an object that a node has reserved."""
ROUNDS = 30


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each returns; all begin together."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        start.wait(30)
        return work()

    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        return [future.result(30) for future in [pool.submit(run, work) for work in works]]


def record(found: dict[tuple[str, str], Record | Elsewhere], name: tuple[str, str]) -> Record:
    one = found[name]
    assert isinstance(one, Record)
    return one


class ClusterConformance:
    """Part of `objserver.testing.stores.SharedStoreConformance`.  "me" and "you" are lives of two nodes."""

    @pytest.fixture
    def stores(self, store: Store) -> Sequence[Store]:
        """Two that have the same data; to be overridden where that can be two."""
        return [store, store]

    @pytest.fixture
    def cluster(self, store: Store) -> Store:
        store.join("1", "me", "h:1", LEASE_S, b"\x00")
        store.join("2", "you", "h:2", LEASE_S, b"")
        return store

    # Nodes

    def test_nodes_join_renew_and_leave(self, store: Store) -> None:
        assert store.nodes() == []
        store.join("2", "b", "h:2", LEASE_S, b"\x00facts")
        store.join("1", "a", "unix:é", LEASE_S, b"")
        first, second = store.nodes()
        assert first[:4] + first[5:] == ("1", "a", "unix:é", "up", b"")
        assert second[:4] + second[5:] == ("2", "b", "h:2", "up", b"\x00facts")
        assert LEASE_S - 60 < first.left_s <= LEASE_S
        renewed = store.renew("a", 2 * LEASE_S, b"other", "draining")
        assert renewed is not None
        assert [node.name for node in renewed] == ["1", "2"]
        assert (renewed[0].state, renewed[0].facts, renewed[1].state) == ("draining", b"other", "up")
        assert renewed[0].left_s > LEASE_S >= renewed[1].left_s
        store.leave("a")
        assert store.renew("a", LEASE_S, b"") is None
        assert [(node.state, node.left_s > 0) for node in store.nodes()] == [("dead", False), ("up", True)]
        store.leave("a")
        store.leave("unknown")
        assert store.renew("unknown", LEASE_S, b"") is None

    def test_a_restart_under_the_same_name_ends_the_life_before(self, cluster: Store) -> None:
        assert cluster.acquire([A], "me", True) == {A: NEW}
        cluster.join("1", "again", "h:3", LEASE_S, b"")
        assert cluster.renew("me", LEASE_S, b"") is None
        cluster.leave("me")  # does not concern who is there now
        assert [(node.life, node.state) for node in cluster.nodes()] == [("again", "up"), ("you", "up")]
        assert cluster.acquire([A], "again", True) == {A: NEW._replace(epoch=2)}
        assert cluster.commit([change("a", epoch=1)]) == set()
        assert cluster.commit([change("a", epoch=2)]) == {A}

    def test_to_join_may_be_repeated(self, cluster: Store) -> None:
        cluster.acquire([A], "me", True)
        cluster.join("1", "me", "h:1", LEASE_S, b"")
        assert cluster.acquire([A], "me", True) == {A: NEW}

    def test_a_lapsed_life_goes_on_when_it_is_renewed(self, cluster: Store) -> None:
        cluster.acquire([A, B], "me", True)
        cluster.renew("me", 0, b"")
        assert cluster.nodes()[0].left_s <= 0
        assert cluster.nodes()[0].state == "up"
        assert cluster.acquire([B], "you", True) == {B: NEW._replace(epoch=2)}
        nodes = cluster.renew("me", LEASE_S, b"")
        assert nodes is not None
        assert nodes[0].left_s > 0
        assert cluster.acquire([A, B], "me", True) == {A: NEW, B: Elsewhere("you", "h:2")}

    # Owners

    def test_what_another_live_life_owns_stays_there(self, cluster: Store) -> None:
        assert cluster.acquire([A], "me", True) == {A: NEW}
        assert cluster.commit([change("a", epoch=1)]) == {A}
        for _ in range(2):
            assert cluster.acquire([A, B], "you", True) == {A: Elsewhere("me", "h:1"), B: NEW}
            assert cluster.acquire([A, B], "me", True) == {
                A: Record(1, 1, 1, 3, b"s"),
                B: Elsewhere("you", "h:2"),
            }

    @pytest.mark.parametrize("end", ["left", "lapsed", "joined"])
    def test_what_a_life_owned_that_is_not_live_is_free(self, cluster: Store, end: str) -> None:
        cluster.acquire([A], "me", True)
        cluster.commit([change("a", epoch=1)])
        if end == "left":
            cluster.leave("me")
        elif end == "lapsed":
            cluster.renew("me", 0, b"")
        else:
            cluster.join("1", "again", "h:3", LEASE_S, b"")
        assert cluster.acquire([A], "you", True) == {A: Record(2, 1, 1, 3, b"s")}
        # a deposed owner's late commit, and its reads
        late = change("a", 1, b"late", epoch=1, replies=[reply(1)], messages=[message(1)])
        assert cluster.commit([late]) == set()
        assert cluster.confirm([(*A, 1, 1)]) == set()
        assert cluster.confirm([(*A, 2, 1)]) == {A}
        assert (cluster.replies(*A), cluster.messages(9)) == ([], [])

    @pytest.mark.parametrize("end", ["draining", "left", "lapsed", "joined", "unknown"])
    def test_who_is_not_a_live_node_that_is_up_acquires_nothing(self, cluster: Store, end: str) -> None:
        mine, theirs, free, new = A, B, ("T", "free"), ("T", "new")
        cluster.commit([change("free", owner="somebody")])
        cluster.acquire([mine], "me", True)
        cluster.acquire([theirs], "you", True)
        if end == "draining":
            cluster.renew("me", LEASE_S, b"", "draining")
        elif end == "left":
            cluster.leave("me")
        elif end == "lapsed":
            cluster.renew("me", 0, b"")
        elif end == "joined":
            cluster.join("1", "again", "h:3", LEASE_S, b"")
        who = "nobody" if end == "unknown" else "me"
        found = cluster.acquire([mine, theirs, free, new], who, True)
        assert found.pop(theirs) == Elsewhere("you", "h:2")
        # what it has already it may have a look at: the epoch fences it
        assert found.pop(mine) == (Elsewhere("me", "h:1") if end == "unknown" else NEW)
        assert found == {}
        assert cluster.load(*free) == Record(0, 1, 1, 3, b"s")
        assert cluster.load(*new) is None

    def test_an_object_never_stored_is_reserved(self, cluster: Store) -> None:
        assert cluster.acquire([A, A], "me", True) == {A: NEW}
        assert cluster.load(*A) == NEW
        assert (cluster.keys("T"), cluster.count("T"), cluster.replies(*A)) == ([], 0, [])
        assert cluster.confirm([(*A, 1, 0)]) == {A}
        assert cluster.commit([change("a", owner="other")]) == set()
        assert cluster.commit([change("a", epoch=1)]) == {A}
        assert cluster.load(*A) == Record(1, 1, 1, 3, b"s")
        cluster.commit([change("a", 1, None, epoch=1)])
        cluster.leave("me")
        assert cluster.acquire([A], "you", True) == {A: Record(2, 2, 1, 3, None)}

    def test_a_server_of_no_cluster_takes_what_no_live_node_owns(self, cluster: Store) -> None:
        cluster.acquire([A], "me", True)
        cluster.commit([change("b", owner="old")])
        found = cluster.acquire([A, B, ("T", "new")], "outside")
        assert found == {A: Elsewhere("me", "h:1"), B: Record(1, 1, 1, 3, b"s")}
        assert cluster.load("T", "new") is None
        assert cluster.acquire([B], "me", True) == {B: Record(2, 1, 1, 3, b"s")}

    def test_very_many_are_acquired_by_a_node(self, cluster: Store) -> None:
        names = [("T", f"{n}") for n in range(1000)]
        cluster.acquire(names[::2], "you", True)
        found = cluster.acquire(names, "me", True)
        assert found == {name: Elsewhere("you", "h:2") if n % 2 == 0 else NEW for n, name in enumerate(names)}

    def test_release_gives_an_object_to_a_life_or_to_nobody(self, cluster: Store) -> None:
        cluster.acquire([A, B], "me", True)
        cluster.commit([change("a", epoch=1, messages=[message(1)])])
        objects = [(*A, 1), (*B, 1)]
        assert cluster.release([], "me", None) == set()
        assert cluster.release(objects, "you", "you") == set()  # has neither
        assert cluster.release([(*A, 2), ("T", "none", 1)], "me", "you") == set()
        for _ in range(2):  # an answer may get lost
            assert cluster.release(objects[:1], "me", "you") == {A}
            assert cluster.release(objects[1:], "me", None) == {B}
        assert cluster.commit([change("a", 1, epoch=1), change("b", 0, epoch=1)]) == set()
        assert cluster.owners([A, B]) == {A: Elsewhere("you", "h:2")}
        assert cluster.acquire([A], "me", True) == {A: Elsewhere("you", "h:2")}
        # who gets it finds itself the owner, and the epoch as it was given
        assert cluster.acquire([A], "you", True) == {A: Record(2, 1, 1, 3, b"s")}
        assert cluster.messages(9, "you", True) == [message(1)]
        assert cluster.acquire([B], "me", True) == {B: NEW._replace(epoch=3)}

    def test_what_is_given_to_a_life_that_is_over_is_free(self, cluster: Store) -> None:
        cluster.acquire([A], "me", True)
        cluster.leave("you")
        assert cluster.release([(*A, 1)], "me", "you") == {A}
        assert cluster.acquire([A], "me", True) == {A: NEW._replace(epoch=3)}

    def test_owners_and_what_they_own(self, cluster: Store) -> None:
        mine = [("T", "a"), ("T", "b"), ("T", "é"), ("U", ""), ("U", "a")]
        cluster.acquire([*mine, ("T", "gone"), ("T", "reserved")], "me", True)
        cluster.acquire([("T", "theirs")], "you", True)
        cluster.commit([change(key, type=type, epoch=1) for type, key in [*mine, ("T", "theirs")]])
        cluster.commit([change("gone", 0, None, epoch=1)])
        cluster.commit([change("free", owner="old")])
        names = [mine[0], ("T", "theirs"), ("T", "free"), ("T", "none"), mine[0], ("T", "gone")]
        here = Elsewhere("me", "h:1")
        assert cluster.owners([]) == {}
        assert cluster.owners(names) == {
            mine[0]: here,
            ("T", "gone"): here,
            ("T", "theirs"): Elsewhere("you", "h:2"),
        }
        assert cluster.owned("me", 9) == mine
        assert cluster.owned("me", 2) == mine[:2]
        assert cluster.owned("me", 9, after=mine[2]) == mine[3:]
        assert cluster.owned("me", 1, after=("T", "aa")) == [mine[1]]
        assert cluster.owned("unknown", 9) == []
        assert cluster.tally() == {"me": 5, "you": 1}
        cluster.leave("me")
        assert cluster.tally() == {"you": 1}
        assert cluster.owners(names) == {("T", "theirs"): Elsewhere("you", "h:2")}
        assert cluster.owned("me", 9) == mine  # though it is free

    # Who delivers, and who fires

    def test_a_node_has_the_messages_of_its_objects(self, cluster: Store) -> None:
        cluster.acquire([A], "me", True)
        cluster.acquire([B], "you", True)
        cluster.commit([change("a", epoch=1, messages=[message(1), message(2)], owner="me")])
        cluster.commit([change("b", epoch=1, messages=[message(3)], owner="you")])
        assert cluster.messages(9) == [message(1), message(2), message(3)]
        assert cluster.messages(9, "me", True) == [message(1), message(2)]
        assert cluster.messages(1, "me", True) == [message(1)]
        assert cluster.messages(9, "you", True) == [message(3)]
        cluster.delivered([message(1).id])
        assert cluster.messages(9, "me", True) == [message(2)]

    def test_messages_of_who_is_gone_are_adopted_by_one(self, cluster: Store) -> None:
        cluster.acquire([A], "me", True)
        cluster.commit([change("a", epoch=1, messages=[message(2)], owner="me")])
        cluster.commit([change("x", messages=[message(1)], owner="somebody")])
        cluster.leave("me")
        cluster.join("3", "third", "h:3", LEASE_S, b"")
        assert cluster.messages(1, "you", True)[0] in (message(1), message(2))
        assert cluster.messages(9, "you", True) == [message(2), message(1)]
        assert cluster.messages(9, "third", True) == []
        assert cluster.messages(9, "outside") == []

    def test_a_lapsed_life_delivers_nothing(self, cluster: Store) -> None:
        cluster.acquire([A], "me", True)
        cluster.commit([change("a", epoch=1, messages=[message(1)], owner="me")])
        cluster.renew("me", 0, b"")
        assert cluster.messages(9, "me", True) == []
        cluster.renew("me", LEASE_S, b"")
        assert cluster.messages(9, "me", True) == [message(1)]
        cluster.renew("me", LEASE_S, b"", "draining")
        assert cluster.messages(9, "me", True) == [message(1)]

    def test_messages_go_where_their_object_goes(self, cluster: Store) -> None:
        """In their order they stay: those to come are stored by the same node."""
        cluster.acquire([A], "me", True)
        cluster.commit([change("a", epoch=1, messages=[message(1)], owner="me")])
        cluster.join("3", "third", "h:3", LEASE_S, b"")
        cluster.leave("me")
        assert cluster.messages(9, "third", True) == [message(1)]
        # A life that only slept sends no more of them.
        assert cluster.commit([change("a", 1, epoch=1, messages=[message(3)], owner="me")]) == set()
        assert cluster.acquire([A], "you", True) == {A: Elsewhere("third", "h:3")}
        cluster.release([(*A, 2)], "third", "you")
        assert cluster.messages(9, "third", True) == []
        cluster.commit([change("a", 1, epoch=3, messages=[message(2)], owner="you")])
        assert cluster.messages(9, "you", True) == [message(1), message(2)]

    def test_timers_of_others_are_not_due_here(self, cluster: Store) -> None:
        for key, owner in [("mine", "me"), ("theirs", "you"), ("dead", "me")]:
            cluster.acquire([("T", key)], owner, True)
        timer = Timer("t", 2.0)
        cluster.commit([change(key, epoch=1, timers=[timer]) for key in ("mine", "theirs")])
        cluster.commit([change("free", owner="old", timers=[Timer("t", 1.0)])])
        free, mine, theirs = (
            Due("T", "free", Timer("t", 1.0)),
            Due("T", "mine", timer),
            Due("T", "theirs", timer),
        )
        assert len(cluster.due(9.0, ["T"], 9)) == 3
        assert cluster.due(9.0, ["T"], 9, "me") == [free, mine]
        assert cluster.due(9.0, ["T"], 9, "you") == [free, theirs]
        assert cluster.due(9.0, ["T"], 9, "outside") == [free]
        assert cluster.due(9.0, ["T", "U"], 1, "me") == [free]
        dues = [cluster.next_due(after, ["T"], owner) for after in (0.0, 1.0) for owner in ("me", "outside")]
        assert dues == [1.0, 1.0, 2.0, None]
        cluster.leave("you")
        assert cluster.due(9.0, ["T"], 9, "me")[1:] in ([mine, theirs], [theirs, mine])
        assert cluster.next_due(1.0, ["T"], "outside") == 2.0

    def test_behind_very_many_timers_of_others_it_asks_again(self, cluster: Store) -> None:
        names = [f"{n}" for n in range(2 * LOOKED_AHEAD)]
        cluster.acquire([("T", key) for key in names], "you", True)
        cluster.commit([change(k, epoch=1, timers=[Timer("t", 1.0 + n)]) for n, k in enumerate(names)])
        cluster.acquire([A], "me", True)
        cluster.commit([change("a", epoch=1, timers=[Timer("t", 150.5)])])
        times = [0.0]
        while (next := cluster.next_due(times[-1], ["T"], "me")) is not None:
            times.append(next)
        assert 150.5 in times
        assert len(times) < 6

    def test_the_first_message_of_each_sender(self, store: Store) -> None:
        one, two, three = (message(n)._replace(id=b"\xff\xff" + bytes([n])) for n in (1, 2, 3))
        other = message(4)._replace(id=b"\xff")
        store.commit([change("a", messages=[two, one, three, other])])
        assert store.first_messages([]) == []
        assert store.first_messages([b"\xff\xff"]) == [one.id]
        assert sorted(store.first_messages([b"\xff\xff", b"\xfe", b"\xff", b"\xff\xff\x02"])) == [
            b"\xff",
            one.id,
            two.id,
        ]

    def test_a_snapshot_has_no_nodes_and_restored_objects_are_free(self, cluster: Store) -> None:
        cluster.acquire([A, B], "me", True)
        cluster.commit([change("a", epoch=1, messages=[message(1)], owner="me")])
        rows = list(cluster.snapshot())
        assert [type(row) for row in rows] == [Stored, Stored, Session, Session, Message]
        assert rows[:2] == [Stored(*A, "me", Record(1, 1, 1, 3, b"s")), Stored(*B, "me", NEW)]
        cluster.leave("me")
        cluster.restore(cluster.id, rows, replace=True)
        assert len(cluster.nodes()) == 2
        assert cluster.messages(9, "you", True) == [message(1)]
        assert cluster.acquire([A, B], "you", True) == {
            A: Record(3, 1, 1, 3, b"s"),
            B: NEW._replace(epoch=3),
        }

    # Races

    def test_of_two_that_acquire_a_free_object_one_has_it(
        self, cluster: Store, stores: Sequence[Store]
    ) -> None:
        for n in range(ROUNDS):
            name = ("T", f"{n}")
            cluster.commit([change(f"{n}", owner="old")])
            self.one_has_it(stores, name, 1, 1)

    def test_of_two_that_acquire_an_object_never_stored_one_has_it(
        self, cluster: Store, stores: Sequence[Store]
    ) -> None:
        for n in range(ROUNDS):
            self.one_has_it(stores, ("T", f"{n}"), 1, 0)

    def test_of_two_that_acquire_what_a_dead_life_had_one_has_it(
        self, cluster: Store, stores: Sequence[Store]
    ) -> None:
        for n in range(ROUNDS):
            name = ("T", f"{n}")
            cluster.join("3", f"third{n}", "h:3", LEASE_S, b"")
            cluster.acquire([name], f"third{n}", True)
            cluster.leave(f"third{n}")
            self.one_has_it(stores, name, 2, 0)

    @staticmethod
    def one_has_it(stores: Sequence[Store], name: tuple[str, str], epoch: int, version: int) -> None:
        mine, yours = at_once(
            lambda: stores[0].acquire([name], "me", True)[name],
            lambda: stores[1].acquire([name], "you", True)[name],
        )
        has, has_not = (mine, yours) if isinstance(mine, Record) else (yours, mine)
        assert has[:2] == (epoch, version)
        assert has_not == (Elsewhere("me", "h:1") if has is mine else Elsewhere("you", "h:2"))

    def test_who_leaves_while_it_acquires_keeps_nothing(
        self, cluster: Store, stores: Sequence[Store]
    ) -> None:
        got = 0
        for n in range(ROUNDS):
            name, life = ("T", f"{n}"), f"third{n}"
            cluster.join("3", life, "h:3", LEASE_S, b"")
            found, _ = at_once(
                partial(stores[0].acquire, [name], life, True),
                partial(stores[1].leave, life),
            )
            got += len(found)
            epoch = 2 if found else 1
            assert cluster.acquire([name], "me", True) == {name: NEW._replace(epoch=epoch)}
            assert cluster.commit([change(f"{n}", epoch=1)]) == (set() if found else {name})

    def test_what_is_committed_while_it_is_released_goes_along_or_is_refused(
        self, cluster: Store, stores: Sequence[Store]
    ) -> None:
        for n in range(ROUNDS):
            name = ("T", f"{n}")
            cluster.acquire([name], "me", True)
            accepted, released, _ = at_once(
                partial(stores[0].commit, [change(f"{n}", epoch=1, messages=[message(n)], owner="me")]),
                partial(stores[1].release, [(*name, 1)], "me", "you"),
                partial(stores[1].acquire, [name], "you", True),
            )
            assert released == {name}
            kept = record(cluster.acquire([name], "you", True), name)
            assert kept[:2] == (2, len(accepted))
            assert cluster.messages(9) == [message(n)] * len(accepted)
            # also one that was stored while its object went
            assert cluster.messages(9, "me", True) + cluster.messages(9, "you", True) == cluster.messages(9)
            cluster.delivered([message(n).id])

    def test_a_lapsed_life_that_acquires_while_another_takes_its_objects(
        self, cluster: Store, stores: Sequence[Store]
    ) -> None:
        for n in range(ROUNDS):
            name = ("T", f"{n}")
            cluster.renew("me", LEASE_S, b"")
            cluster.acquire([name], "me", True)
            cluster.renew("me", 0, b"")
            mine, yours = at_once(
                partial(stores[0].acquire, [name], "me", True),
                partial(stores[1].acquire, [name], "you", True),
            )
            assert yours == {name: NEW._replace(epoch=2)}
            assert mine[name] in (NEW, Elsewhere("you", "h:2"))
            assert cluster.commit([change(f"{n}", epoch=1)]) == set()

    def test_two_adopt_what_one_has_left(self, cluster: Store, stores: Sequence[Store]) -> None:
        sent = [message(n) for n in range(200)]
        cluster.commit([change("a", owner="old", messages=sent)])
        mine, yours = at_once(
            lambda: stores[0].messages(1000, "me", True), lambda: stores[1].messages(1000, "you", True)
        )
        rest = [m for m in sent if m not in mine and m not in yours]
        assert rest == []
        assert not set(mine) & set(yours)
        assert sorted(mine + yours) == sorted(sent)

    def test_calls_of_nodes_that_come_and_go_are_neither_lost_nor_doubled(
        self, cluster: Store, stores: Sequence[Store]
    ) -> None:
        """Each adds to the same object until it loses it, and begins anew in another life."""
        cluster.open_session(CLIENT, LEASE_S)

        def work(n: int) -> list[int]:
            done = []
            for round in range(ROUNDS):
                life = f"{n}-{round}"
                stores[n].join(f"worker {n}", life, f"h:{n}", LEASE_S, b"")
                found = stores[n].acquire([A], life, True)[A]
                if isinstance(found, Record):
                    epoch, version, _, _, state = found
                    for _ in range(3):
                        state = b"%d" % (int(state or b"0") + 1)
                        if not stores[n].commit([change("a", version, state, epoch=epoch)]):
                            break
                        version += 1
                        done.append(version)
                    stores[n].release([(*A, epoch)], life, None if round % 2 else f"{1 - n}-{round}")
            stores[n].leave(f"{n}-{ROUNDS - 1}")
            return done

        mine, yours = at_once(lambda: work(0), lambda: work(1))
        kept = record(cluster.acquire([A], "me", True), A)
        assert sorted(mine + yours) == list(range(1, kept.version + 1))
        assert kept.state == b"%d" % kept.version
