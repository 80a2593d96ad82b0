"""Stores that fail under a server: who calls is told, the object stays as it was, others are served."""

import contextlib
import gc
import os
import shutil
import sqlite3
import subprocess
import threading
import time

import pytest
from Pyro5.errors import PyroError

from objserver import ObjectServer, Persistent, Proxy, ServerSettings, errors, expose, readonly
from objserver.client import books
from objserver.machine import machine
from objserver.settings import Limits
from objserver.storage import open_store
from objserver.storage.sqlite import SqliteStore

BOUND_S = 20


@expose
class Account:
    executed = 0

    def __init__(self):
        self.balance = 0
        self.note = b""

    def deposit(self, amount: int, note: bytes = b"") -> int:
        Account.executed += 1
        self.balance += amount
        self.note = note or self.note
        return self.balance

    def grow(self, note: bytes) -> None:
        self.note += note

    def spoil(self) -> None:
        self.balance = threading.Lock()

    @readonly
    def read(self) -> int:
        return self.balance


@expose
class Plain:
    def ping(self) -> str:
        return "pong"


@pytest.fixture(autouse=True)
def fresh():
    Account.executed = 0
    machine.get().own(books._Books)._books.clear()


class Served:
    """A server with some accounts, and what must hold of it whatever its store does."""

    def __init__(self, store, **settings):
        self.server = ObjectServer(store=store, settings=ServerSettings(**settings))
        self.server.register(Account, "Account", activation=Persistent())
        self.server.register(Plain(), "Plain")
        self.server.start()
        self.store = self.server._store
        for key in "ab":
            if self.account(key).read() == 0:
                assert self.account(key).deposit(5) == 5

    def account(self, key="a", **options):
        return Proxy(f"PYRO:Account/{key}@{self.server.address}", timeout_s=BOUND_S, **options)

    def refuses(self, sentence, key="a", kind=errors.StoreError, amount=1, note=b"", **options):
        """A deposit fails with this sentence, and leaves the object as it was."""
        before = self.account(key).read()
        with pytest.raises(kind, match=sentence) as caught:
            self.account(key, **options).deposit(amount, note)
        assert type(caught.value) is kind
        assert self.account(key).read() == before
        return caught.value

    def others_are_served(self):
        assert Proxy(f"PYRO:Plain@{self.server.address}", timeout_s=BOUND_S).ping() == "pong"

    def is_well(self, balance=5, key="a"):
        """Everything works again, and no call is lost or made twice."""
        executed = Account.executed
        assert self.account(key).read() == balance
        assert self.account(key).deposit(2) == balance + 2
        other = self.account("b").read()
        assert self.account("b").deposit(1) == other + 1
        assert Account.executed == executed + 2
        self.others_are_served()


@contextlib.contextmanager
def serving(store, **settings):
    served = Served(store, **settings)
    try:
        yield served
    finally:
        served.server.stop()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/a.db"


@pytest.fixture
def served(url):
    with serving(url) as served:
        yield served


@contextlib.contextmanager
def small_disk(tmp_path, size):
    """A file system of so many bytes; root can make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# -- no room -------------------------------------------------------------------------------------------

FULL = r"Account 'a' was not stored: cannot write .*a.db: the disk is full; free some space"


def test_a_store_without_room(served):
    run = served.store._connection.execute
    pages = run("PRAGMA page_count").fetchone()[0]
    run(f"PRAGMA max_page_count = {pages}")
    for _ in range(3):
        problem = served.refuses(FULL, note=b"x" * 100_000)
        assert not problem.in_doubt
        served.others_are_served()
    assert served.account("b").deposit(1) == 6  # needs no more room than it had
    run("PRAGMA max_page_count = 1000000")
    served.is_well()


def test_a_full_disk(tmp_path):
    with small_disk(tmp_path, 1_000_000) as disk, serving(f"sqlite:///{disk}/a.db") as served:
        with open(disk / "junk", "wb", buffering=0) as junk, contextlib.suppress(OSError):
            while junk.write(b"x" * 4096):
                pass
        for _ in range(3):
            problem = served.refuses(FULL, note=b"x" * 50_000)
            assert not problem.in_doubt
            served.others_are_served()
        # What a crash would leave now does not have it either.
        copies = tmp_path / "crashed"
        shutil.copytree(disk, copies)
        with contextlib.closing(open_store(f"sqlite:///{copies}/a.db")) as store:
            assert store.load("Account", "a").version == 1
        (disk / "junk").unlink()
        served.is_well()


def test_a_disk_that_is_full_when_the_server_starts(tmp_path):
    with small_disk(tmp_path, 8192) as disk:
        with pytest.raises(errors.StoreError, match=r"cannot open .*a.db: the disk is full"):
            ObjectServer(store=f"sqlite:///{disk}/a.db")


# -- read-only -----------------------------------------------------------------------------------------


def test_a_store_that_becomes_read_only(served):
    run = served.store._connection.execute
    run("PRAGMA query_only = ON")
    problem = served.refuses("'a' was not stored: cannot write .*: it is read-only; make the file and")
    assert not problem.in_doubt
    served.others_are_served()
    run("PRAGMA query_only = OFF")
    served.is_well()


def test_a_store_that_is_read_only_when_the_server_starts(tmp_path):
    with small_disk(tmp_path, 1_000_000) as disk:
        open_store(f"sqlite:///{disk}/a.db").close()
        remount = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(remount, check=True)
        for name, sentence in (("a.db", "may not read and write it"), ("new.db", "check that its directory")):
            with pytest.raises(errors.StoreError, match=rf"cannot open .*{name}: .*{sentence}"):
                ObjectServer(store=f"sqlite:///{disk}/{name}")


# -- damage --------------------------------------------------------------------------------------------


def damage(path, text):
    """Overwrite the page of the file that has the bytes."""
    with open(path, "r+b") as file:
        content = file.read()
        size = int.from_bytes(content[16:18], "big")
        at = content.index(text) // size * size
        assert at
        file.seek(at)
        file.write(b"\xa5" * size)


def many(served):
    """Enough objects to fill some pages."""
    for n in range(200):
        served.account(f"many{n:03}").deposit(1, b"%03d" % n * 100)


DAMAGED = r"cannot read .*a.db: it is damaged; restore it from a backup"


def hit(served):
    """Objects on the damaged page cannot be called, the others can."""
    for _ in range(3):
        with pytest.raises(errors.StoreError, match=DAMAGED):
            served.account("many100").deposit(1)
    assert served.account("many199").deposit(1) == 2
    served.others_are_served()


def test_damage_is_said_of_the_objects_that_it_hit(url):
    with serving(url) as served:
        many(served)
        path = served.store._path
    damage(path, b"100" * 100)
    with serving(url) as served:
        hit(served)


def test_damage_while_the_server_runs(url):
    with serving(url) as served:
        many(served)
    with serving(url) as served:  # has none of the pages in memory
        damage(served.store._path, b"100" * 100)
        hit(served)


def test_a_state_that_was_damaged_is_refused_and_left_alone(served):
    store = served.store
    store._connection.execute("INSERT INTO object SELECT 'Account', 'c', '', 0, 1, 1, 1, x'c1', 0")
    for _ in range(2):
        with pytest.raises(errors.StateError, match="the stored state of Account cannot be read"):
            served.account("c").deposit(1)
    assert store.load("Account", "c").state == b"\xc1"
    served.is_well()


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE cluster SET schema_version = 99", "a.db has schema version 99, but .* upgrade objserver"),
        ("DROP TABLE cluster", "a.db belongs to another program"),
    ],
)
def test_a_file_that_is_not_for_this_release(url, statement, sentence):
    open_store(url).close()
    path = url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(statement)
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(errors.StoreError, match=sentence):
            ObjectServer(store=url)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, descriptors)


# -- commits that end with an error --------------------------------------------------------------------


class Faulty(SqliteStore):
    """Does what the next of `faults` says, once for each commit."""

    def __init__(self, url="sqlite://", **options):
        super().__init__(url, **options)
        self.faults = []

    def commit(self, changes):
        fault = self.faults.pop(0) if self.faults else None
        if fault == "before":
            raise errors.StoreError("the disk said no")
        accepted = super().commit(changes) if fault in (None, "after") else set()
        if fault == "superseded":
            return set()
        if fault == "crash":
            raise RuntimeError("a bug in the store")
        if fault is not None:
            problem = errors.StoreError("no answer came")
            problem.in_doubt = True
            raise problem
        return accepted


@pytest.fixture
def faulty():
    with serving(Faulty()) as served:
        yield served


def test_an_error_that_is_definite_is_told_at_once(faulty):
    faulty.store.faults = ["before"]
    began = time.monotonic()
    problem = faulty.refuses("'a' was not stored: the disk said no")
    assert (problem.in_doubt, faulty.store.faults) == (False, [])
    assert time.monotonic() - began < BOUND_S / 2
    faulty.is_well()


@pytest.mark.parametrize("fault", ["after", "never", "superseded", "crash"])
def test_a_caller_rides_through_what_is_in_doubt_and_the_call_happens_once(faulty, fault):
    faulty.store.faults = [fault] * 3
    assert faulty.account().deposit(1) == 6
    assert faulty.account().deposit(1) == 7
    faulty.is_well(7)


def test_a_fault_that_lasts_longer_than_the_caller_waits_is_said(faulty):
    faulty.store.faults = ["never"] * 1000
    with pytest.raises(errors.OutcomeUnknown, match=r"no answer came|no reply") as caught:
        faulty.account().calling(timeout_s=0.5).deposit(1)
    assert caught.value.call is not None
    faulty.others_are_served()
    faulty.store.faults = []
    with pytest.raises(errors.NotExecuted):
        faulty.account().outcome(caught.value.call)
    faulty.is_well()


@pytest.mark.parametrize(("fault", "balance"), [("after", 6), ("never", 5), ("before", 5)])
def test_who_has_no_numbers_is_told_what_is_known(faulty, fault, balance):
    stock = faulty.account(serializer="serpent")
    faulty.store.faults = [fault]
    sentence = "was not stored" if fault == "before" else "may or may not have been stored"
    with pytest.raises(PyroError, match=sentence):
        stock.deposit(1)
    faulty.is_well(balance)


def test_of_many_callers_none_is_told_what_was_not_stored(faulty):
    """Faults of all kinds under eight callers: every answer is in the end in the balance, once."""
    faulty.store.faults = [None, "never", "after", None, "superseded", "before", "crash"] * 20
    answers, refusals = [], []

    def work():
        account = faulty.account()
        for _ in range(25):
            try:
                answers.append(account.deposit(1))
            except errors.StoreError as problem:
                refusals.append(problem)

    callers = [threading.Thread(target=work) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(BOUND_S * 2)
    assert len(answers) + len(refusals) == 200
    assert {problem.in_doubt for problem in refusals} == {False}
    assert sorted(answers) == list(range(6, 6 + len(answers)))
    faulty.store.faults = []
    faulty.is_well(5 + len(answers))


class Deaf(Faulty):
    """Cannot be read for a while."""

    deaf = False

    def load(self, type, key):
        return self._answer(super().load(type, key))

    def acquire(self, names, owner, member=False):
        return self._answer(super().acquire(names, owner))

    def replies(self, type, key):
        return self._answer(super().replies(type, key))

    def renew_sessions(self, clients, lease_s):
        return self._answer(super().renew_sessions(clients, lease_s))

    def _answer(self, answer):
        if self.deaf:
            raise errors.StoreError("cannot read it just now")
        return answer


def test_a_store_that_cannot_be_read(tmp_path):
    with serving(Deaf(f"sqlite:///{tmp_path}/a.db")) as served:
        served.store.deaf = True
        for _ in range(3):
            with pytest.raises(errors.StoreError, match="cannot read it just now"):
                served.account("c").deposit(1)
            assert served.account("b").deposit(1)  # is in memory
            served.others_are_served()
        served.store.deaf = False
        assert served.account("c").deposit(1) == 1
        served.is_well()


# -- states --------------------------------------------------------------------------------------------


def test_a_state_that_is_no_data(served):
    for _ in range(3):
        with pytest.raises(errors.StateError, match="its attribute 'balance' is a lock"):
            served.account().spoil()
        assert served.account().read() == 5
    served.is_well()


def test_a_state_over_the_limit(url):
    with serving(url, limits=Limits(decoded_size_max=200_000)) as served:
        served.account().grow(b"x" * 120_000)
        for _ in range(3):
            with pytest.raises(errors.StateError, match=r"cannot be stored: .*decoded_size_max=200000"):
                served.account().grow(b"x" * 120_000)
            assert served.account().read() == 5
        served.is_well()


# -- the clock -----------------------------------------------------------------------------------------

HOUR = 3600.0


def expire(served):
    adapter = served.server.adapter
    adapter._durability.expire_sessions(adapter._active.all(), served.server.clock.monotonic())


@pytest.mark.parametrize("jumps", [[HOUR], [-HOUR], [HOUR, -HOUR], [-HOUR, HOUR, HOUR, -HOUR]])
def test_a_wall_clock_that_jumps(tmp_path, jumps):
    now = [1e9]
    store = Faulty(f"sqlite:///{tmp_path}/a.db", clock=lambda: now[0])
    with serving(store, session_lease_s=HOUR / 2) as served:
        balance = 5
        for jump in jumps:
            now[0] += jump
            store.faults = ["after"]  # its answer is asked for after the jump
            assert served.account().deposit(1) == balance + 1
            expire(served)
            assert served.account().deposit(1) == balance + 2
            balance += 2
        served.is_well(balance)


def test_a_jump_that_ends_the_session_of_a_call_in_doubt(tmp_path):
    """Nobody knows then whether it happened, and it is not made again."""
    now = [1e9]

    class Jumping(Faulty):
        def commit(self, changes):
            if self.faults:
                now[0] += HOUR
            return super().commit(changes)

    store = Jumping(f"sqlite:///{tmp_path}/a.db", clock=lambda: now[0])
    with serving(store, session_lease_s=HOUR / 2) as served:
        discard = served.server.adapter.discard

        def discard_and_expire(activation):
            discard(activation)
            expire(served)

        served.server.adapter.discard = discard_and_expire
        store.faults = ["after"]
        with pytest.raises(errors.OutcomeUnknown, match=r"nothing was heard"):
            served.account().deposit(1)
        served.server.adapter.discard = discard
        served.is_well(6)


# -- PostgreSQL ----------------------------------------------------------------------------------------

TRIGGER = (
    "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF NEW.key = 'a' THEN {}; END IF; RETURN NEW; END $$;"
    "CREATE {} UPDATE ON object {} FOR EACH ROW EXECUTE FUNCTION fail()"
)


@pytest.fixture
def shared(postgres):
    with serving(postgres.new_url()) as served:

        def broken(what, *when):
            """From now on `what` happens in every commit that changes a; at its very end, or `when`."""
            postgres.execute("DROP FUNCTION IF EXISTS fail() CASCADE", served.store.url)
            when = when or ("CONSTRAINT TRIGGER fail AFTER", "DEFERRABLE INITIALLY DEFERRED")
            if what:
                postgres.execute(TRIGGER.format(what, *when), served.store.url)

        served.breaks = broken
        yield served


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("RAISE 'could not extend file' USING ERRCODE = '53100'", "its disk is full; free some space there"),
        ("RAISE 'over quota'", "over quota"),
        ("RAISE 'no' USING ERRCODE = '42501'", "give its user the right"),
    ],
)
def test_a_commit_that_postgresql_undid(shared, what, sentence):
    shared.breaks(what)
    for _ in range(3):
        problem = shared.refuses(f"'a' was not stored: cannot write .*{sentence}")
        assert not problem.in_doubt
        assert shared.account("b").deposit(1)
        shared.others_are_served()
    shared.breaks(None)
    shared.is_well()


def test_a_statement_that_takes_too_long_there(shared):
    shared.store._writing.connection.execute("SET statement_timeout = '100ms'")
    shared.breaks("PERFORM pg_sleep(60)", "TRIGGER fail BEFORE", "")
    problem = shared.refuses("'a' was not stored: cannot write .*: it took too long; look for locks")
    assert not problem.in_doubt
    assert shared.account("b").deposit(1) == 6
    shared.breaks(None)
    shared.is_well()


def test_a_database_that_becomes_read_only(shared):
    shared.store._writing.connection.execute("SET default_transaction_read_only = on")
    problem = shared.refuses("'a' was not stored: cannot write .*: it is read-only; name the primary")
    assert not problem.in_doubt
    shared.others_are_served()
    shared.store._writing.connection.execute("SET default_transaction_read_only = off")
    shared.is_well()


def test_a_backend_that_dies_in_a_commit(shared):
    shared.breaks("PERFORM pg_terminate_backend(pg_backend_pid())")
    done = []
    caller = threading.Thread(target=lambda: done.append(shared.account().deposit(1)))
    caller.start()
    while Account.executed < 5:  # two that filled it, and some attempts
        assert caller.is_alive()
        assert shared.account("b").read() == 5
    shared.breaks(None)
    caller.join(BOUND_S)
    assert done == [6]
    shared.is_well(6)


# -- what is left of it --------------------------------------------------------------------------------


def held():
    """Threads and descriptors of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def test_faults_leave_nothing_behind(faulty):
    """The calls are forgotten at once, before the garbage collector comes."""

    def round():
        faulty.store.faults = ["before", "never", "after", "superseded", "crash"]
        note = b"x" * 10_000  # large enough to be counted
        faulty.refuses("the disk said no", note=note)
        balance = faulty.account().read()
        assert faulty.account().deposit(1, note) == balance + 1
        with pytest.raises(errors.StateError):
            faulty.account().spoil()

    for _ in range(3):
        round()
    gc.collect()  # proxies that are garbage have connections
    before = held()
    gc.disable()
    try:
        for _ in range(20):
            round()
        figures = faulty.server.statistics()
    finally:
        gc.enable()
    assert figures["receiving_bytes"] == 0
    gc.collect()
    # (The server takes a moment to notice closed connections, and has workers as it needs them.)
    assert all(now < then + 10 for now, then in zip(held(), before, strict=True))
