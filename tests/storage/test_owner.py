import contextlib
import socket
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from objserver import errors
from objserver.storage import Unstorable, passing
from objserver.storage import owner as owning
from objserver.storage.owner import StoreServer
from objserver.storage.remote import RemoteStore
from objserver.storage.sqlite import SqliteStore
from objserver.testing.served import await_sent
from objserver.testing.store_model import CLIENT, LEASE_S, change, reply


def test_commits_of_several_processes_become_one_transaction(owned, owner, store):
    others = [connected(owner) for _ in range(5)]
    owned.batches.clear()
    with ThreadPoolExecutor(5) as pool:
        with owned._lock:  # the owner waits, as for a disk
            first = pool.submit(others[0].commit, [change("first")])
            while owned.batches != [1]:
                pass
            waiting = [pool.submit(o.commit, [change(f"{n}")]) for n, o in enumerate(others[1:])]
            await_sent(others[1:])
        assert first.result(30) == {("T", "first")}
        assert [w.result(30) for w in waiting] == [{("T", f"{n}")} for n in range(4)]
    assert owned.batches == [1, 4]
    assert owner.statistics()["largest_batch"] == 4
    for other in others:
        other.close()


def connected(owner):
    """With a connection for commits, too."""
    store = RemoteStore(owner.path)
    assert store.commit([]) == set()
    return store


def test_no_object_is_twice_in_a_transaction_and_none_is_too_large():
    requests = [owning._Request(None, [change(key) for key in keys]) for keys in ("ab", "c", "bd", "e", "e")]
    batches = [["".join(c.key for c in r.changes) for r in batch] for batch in owning._batches(requests)]
    assert batches == [["ab", "c"], ["bd", "e"], ["e"]]
    many = [owning._Request(None, [change(f"{n} {m}") for m in range(100)]) for n in range(5)]
    assert [len(batch) for batch in owning._batches(many)] == [2, 2, 1]
    more = [owning._Request(None, [change(f"{n}") for n in range(1000)])]
    assert list(owning._batches(more)) == [more]
    assert list(owning._batches([])) == []


def test_whoever_sends_what_cannot_be_stored_is_told_and_the_others_are_stored(owned, owner, store):
    store.open_session(CLIENT, LEASE_S)
    store.commit([change("a", replies=[reply(1)])])
    good, bad = connected(owner), connected(owner)
    owned.batches.clear()
    with ThreadPoolExecutor(3) as pool:
        with owned._lock:
            first = pool.submit(store.commit, [change("first")])
            while owned.batches != [1]:
                pass
            stored = pool.submit(good.commit, [change("b")])
            refused = pool.submit(bad.commit, [change("a", 1, replies=[reply(1)])])
            await_sent([good, bad])
        assert first.result(30)
        assert stored.result(30) == {("T", "b")}
        with pytest.raises(Unstorable, match=r"cannot write :memory:.*UNIQUE"):
            refused.result(30)
    good.close()
    bad.close()


def test_what_is_not_the_stores_own_error_leaves_a_commit_in_doubt(owned, store):
    def fail(*args):
        raise RuntimeError("a bug")

    owned.commit = owned.types = fail
    with pytest.raises(errors.StoreError, match="RuntimeError: a bug") as caught:
        store.commit([change("a")])
    assert caught.value.in_doubt
    with pytest.raises(errors.StoreError, match="RuntimeError: a bug") as caught:
        store.types()
    assert not caught.value.in_doubt


def test_of_large_requests_one_is_received_at_a_time(owner):
    stores = [RemoteStore(owner.path) for _ in range(4)]
    state = bytes(32 * 2**20)
    tracemalloc.start()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: stores[n].commit([change(f"{n}", state=state)]), range(4)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done == [{("T", f"{n}")} for n in range(4)]
    # In this process each client has its request twice; the owner has one, encoded and not.
    assert peak < (4 * 2 + 2 + 1) * len(state)
    assert owner._large == []
    for store in stores:
        store.close()


def test_who_stalls_in_a_large_request_loses_his_turn_and_holds_up_no_small_one(owner, store, monkeypatch):
    monkeypatch.setattr(owning, "ANSWER_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.connect(owner.path)
        passing.receive(stalled)
        stalled.sendall(passing.HEAD.pack(8 * 2**20) + b"x")
        while not owner._large:
            pass
        assert store.types() == []
        assert store.commit([change("a", state=bytes(2**21))])
        stalled.settimeout(30)
        assert stalled.recv(1) == b""


def test_too_many_snapshots_are_refused(owner, store, monkeypatch):
    monkeypatch.setattr(owning, "STREAMS_MAX", 1)
    store.commit([change(f"{n}", state=bytes(2**20)) for n in range(10)])
    first = store.snapshot()
    next(first)
    with pytest.raises(errors.StoreError, match="1 others read all of it"):
        next(store.snapshot())
    first.close()


def test_who_sends_nonsense_is_let_go_alone(owner, store):
    bodies = [b"", b"\xc1", b"\x93\x01\x02", b"\x07", b"\x93\x90\x90\x80"]
    for nonsense in [b"\xff" * 4, *(passing.HEAD.pack(len(body)) + body for body in bodies)]:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(owner.path)
            passing.receive(peer)
            peer.sendall(nonsense)
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(30)
            assert peer.recv(1) == b""
    assert store.types() == []


def test_a_method_that_the_owner_does_not_know_is_named(owner):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(owner.path)
        passing.receive(peer)
        passing.send(peer, passing.packed(("close", (), {})))
        assert passing.receive(peer)[1][:2] == [
            "StoreError",
            "the owner of sqlite:// knows no 'close'; restart it",
        ]


def test_a_store_whose_user_thinks_that_he_is_alone_is_not_shared(tmp_path):
    with contextlib.closing(SqliteStore("sqlite://")) as alone:
        with pytest.raises(errors.StoreError, match="alone=False"):
            StoreServer(alone, f"{tmp_path}/s")


def test_a_directory_that_others_may_enter_is_refused(owned, tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(errors.StoreError, match="chmod 700"):
        StoreServer(owned, f"{tmp_path}/s")
    with pytest.raises(errors.StoreError, match="No such file"):
        StoreServer(owned, f"{tmp_path}/none/s")


def test_two_owners_of_one_path_are_refused(owned, owner):
    with pytest.raises(errors.ListenFailed):
        StoreServer(owned, owner.path)
