import collections
import concurrent.futures
import contextlib
import time
import traceback

import psycopg
import pytest

from objserver import errors
from objserver.storage import Unstorable, open_store
from objserver.storage import postgres as engine
from objserver.storage import postgres_link as link
from objserver.storage.base import Record
from objserver.testing.durable_stores import SqlStoreConformance
from objserver.testing.postgres import PostgresServer
from objserver.testing.store_model import CLIENT, change, fight, message, race, reply
from objserver.testing.stores import SharedStoreConformance

SECRET = "s3cret"


@pytest.fixture
def url(postgres):
    return postgres.new_url()


@pytest.fixture
def store(url):
    store = open_store(url)
    yield store
    store.close()


class TestPostgres(SqlStoreConformance, SharedStoreConformance):
    @pytest.fixture(autouse=True)
    def server(self, postgres):
        self.server = postgres

    @pytest.fixture
    def url(self, postgres):
        return postgres.new_url()

    @pytest.fixture
    def stores(self, store, url):
        with contextlib.closing(open_store(url)) as other:
            yield [store, other]

    def sql(self, url, statement):
        return self.server.execute(statement, url)


def disconnect(postgres):
    """Every store loses its connections, as when the server is started anew."""
    ended = postgres.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = 'objserver' AND pid <> pg_backend_pid()"
    )
    assert ended
    assert all(done for (done,) in ended)


def test_two_stores_race_for_the_same_objects(url):
    stores = [open_store(url) for _ in range(4)]
    wins = race(stores, 25)
    assert sum(wins) == 25
    assert {r.version for _, r in stores[0].items("T")} == {25}
    for store in stores:
        store.close()


def test_two_stores_take_an_object_from_each_other(url):
    stores = [open_store(url) for _ in range(3)]
    fight(stores, 30)
    for store in stores:
        store.close()


def test_of_one_database_all_stores_have_the_id(postgres, url):
    stores = [open_store(url) for url in (url, url, postgres.new_url())]
    assert stores[0].id == stores[1].id != stores[2].id
    for store in stores:
        store.close()


@contextlib.contextmanager
def held_up(store, work):
    """Another transaction, in which `work` in a thread is waiting for a lock that the block lets go."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool, psycopg.connect(store.url) as other:

        def begin(statement, *parameters):
            other.execute(statement, parameters)
            future = pool.submit(work)
            # whoever waits, waits for this transaction: nobody else is in this schema
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
            with psycopg.connect(store.url, autocommit=True) as watcher:
                end = time.monotonic() + 20
                while watcher.execute(blocked, (other.info.backend_pid,)).fetchone() != (1,):
                    assert time.monotonic() < end
            other.commit()
            return future.result(20)

        yield begin


def test_who_takes_over_waits_for_a_commit_under_way(store):
    store.commit([change("a", owner="old")])
    with held_up(store, lambda: store.acquire([("T", "a")], "new")) as begin:
        found = begin("UPDATE object SET version = 2, state = 'late'")
    assert found == {("T", "a"): Record(1, 2, 1, 3, b"late")}


def test_who_takes_over_has_the_messages_of_a_commit_under_way(store):
    store.commit([change("a", owner="old", messages=[message(1)])])
    with held_up(store, lambda: store.acquire([("T", "a")], "new")) as begin:
        begin(
            "WITH o AS (UPDATE object SET version = 2 RETURNING type, key) INSERT INTO message"
            " (id, target, payload, type, key, owner) SELECT %s, %s, %s, type, key, 'old' FROM o",
            *message(2),
        )
    assert store._rows("read", b"SELECT owner FROM message") == [("new",), ("new",)]


def test_a_commit_that_waited_for_who_takes_over_is_refused(store):
    store.commit([change("a", owner="old")])
    with held_up(store, lambda: store.commit([change("a", 1)])) as begin:
        assert begin("UPDATE object SET epoch = 1, owner = 'new'") == set()


def test_a_commit_that_waited_for_the_end_of_its_session_is_refused(store):
    store.open_session(CLIENT, 0)
    late = [change("a", replies=[reply(1)]), change("b")]
    with held_up(store, lambda: store.commit(late)) as begin:
        assert begin("DELETE FROM session") == {("T", "b")}
    assert store.replies("T", "a") == []


def test_a_session_that_a_commit_needs_is_not_ended(store):
    store.open_session(CLIENT, 0)
    with psycopg.connect(store.url) as other:
        other.execute("SELECT * FROM session FOR KEY SHARE")
        assert store.expire_sessions() == []
        # renewing needs not wait for it
        assert store.renew_sessions([CLIENT], 0) == {CLIENT}
    assert store.expire_sessions() == [CLIENT]


def test_sessions_are_renewed_and_ended_while_commits_go_on(url):
    stores = [open_store(url) for _ in range(3)]
    accepted = collections.Counter()

    def commit(store, key):
        for number in range(40):
            store.open_session(CLIENT, 0)
            accepted[key] += len(store.commit([change(key, accepted[key], replies=[reply(number)])]))

    def expire(store):
        for _ in range(100):
            store.expire_sessions()
            store.renew_sessions([CLIENT], 0)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        work = [pool.submit(commit, store, key) for store, key in zip(stores, "ab", strict=False)]
        for future in [*work, pool.submit(expire, stores[2])]:
            future.result()
    assert all(accepted[key] for key in "ab")
    # a record without a session would never be forgotten
    stores[0].open_session(CLIENT, 0)
    stores[0].expire_sessions()
    assert stores[0].replies("T", "a") == stores[0].replies("T", "b") == []
    for store in stores:
        store.close()


def test_two_stores_are_made_at_the_same_time(url):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(open_store, [url] * 4))
    assert all(store.load("T", "a") is None for store in stores)
    for store in stores:
        store.close()


def test_lost_connections_are_made_again(postgres, store):
    store.commit([change("a")])
    assert store.load("T", "a").version == 1
    disconnect(postgres)
    assert store.load("T", "a").version == 1
    assert store.commit([change("a", 1)])
    disconnect(postgres)
    assert store.acquire([("T", "a")], "me") == {("T", "a"): Record(1, 2, 1, 3, b"s")}


def test_a_connection_that_breaks_in_a_commit_leaves_it_in_doubt(postgres, store):
    store.commit([change("a")])
    postgres.execute(
        "CREATE FUNCTION hang_up() RETURNS trigger AS 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid());"
        " RETURN NEW; END' LANGUAGE plpgsql; CREATE TRIGGER hang_up BEFORE UPDATE ON object"
        " FOR EACH ROW EXECUTE FUNCTION hang_up()",
        store.url,
    )
    with pytest.raises(errors.StoreError, match="cannot write") as caught:
        store.commit([change("a", 1)])
    assert caught.value.in_doubt
    assert not isinstance(caught.value, Unstorable)
    postgres.execute("DROP TRIGGER hang_up ON object", store.url)
    assert store.commit([change("a", 1)])


@pytest.mark.parametrize("level", ["WARNING", "EXCEPTION"])
def test_a_commit_that_is_not_certain_is_in_doubt_and_one_that_was_undone_is_not(postgres, store, level):
    store.commit([change("a")])
    postgres.execute(
        f"CREATE FUNCTION complain() RETURNS trigger AS 'BEGIN RAISE {level} ''no standby'';"
        " RETURN NULL; END' LANGUAGE plpgsql; CREATE CONSTRAINT TRIGGER complain AFTER UPDATE ON object"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION complain()",
        store.url,
    )
    with pytest.raises(errors.StoreError, match="no standby") as caught:
        store.commit([change("a", 1)])
    assert caught.value.in_doubt == (level == "WARNING")
    postgres.execute("DROP TRIGGER complain ON object", store.url)
    version = store.load("T", "a").version
    assert version == {"WARNING": 2, "EXCEPTION": 1}[level]
    assert store.commit([change("a", version)])


def test_an_error_that_says_nothing_of_the_transaction_is_in_doubt(postgres, store):
    store.commit([change("a")])
    postgres.execute(
        "CREATE FUNCTION complain() RETURNS trigger AS 'BEGIN RAISE ''who knows'' USING ERRCODE = ''40003'';"
        " END' LANGUAGE plpgsql; CREATE TRIGGER complain BEFORE UPDATE ON object"
        " FOR EACH ROW EXECUTE FUNCTION complain()",
        store.url,
    )
    with pytest.raises(errors.StoreError, match="who knows") as caught:
        store.commit([change("a", 1)])
    assert caught.value.in_doubt


def test_a_statement_that_waits_too_long_is_given_up(postgres, store):
    store.commit([change("a")])
    store._writing.connection.execute("SET statement_timeout = '50ms'")
    with psycopg.connect(store.url) as other:
        other.execute("SELECT * FROM object FOR UPDATE")
        with pytest.raises(errors.StoreError, match="took too long") as caught:
            store.commit([change("a", 1)])
    assert not caught.value.in_doubt
    assert store.commit([change("a", 1)])


def test_a_server_that_is_gone_leaves_nothing_in_doubt(postgres):  # without that one, skipped
    server = PostgresServer()
    store = open_store(server.url)
    store.commit([change("a")])
    server.stop()
    for use in (lambda: store.commit([change("a", 1)]), lambda: store.load("T", "a")):
        with pytest.raises(errors.StoreError, match="cannot reach postgres at /") as caught:
            use()
        assert not caught.value.in_doubt
        assert not isinstance(caught.value, Unstorable)
    store.close()


def test_too_large_for_one_transaction(store, monkeypatch):
    monkeypatch.setattr(engine, "TRANSACTION_SIZE_MAX", 100)
    with pytest.raises(Unstorable, match="101 bytes are too many"):
        store.commit([change("a", state=b"x" * 50), change("b", state=b"x" * 43, replies=[reply(1)])])
    assert store.commit([change("a", state=b"x" * 100)])


def another_history(postgres, store, monkeypatch, timeline, system="1"):
    """From now on its server shows this one, to new connections; and there are no others."""
    history = f"SELECT '{system}', '{timeline}'".encode()
    monkeypatch.setattr(link, "_HISTORY", history)
    disconnect(postgres)


def test_what_was_based_on_another_history_is_refused_once_and_somebody_is_told(
    postgres, url, monkeypatch, caplog
):
    monkeypatch.setattr(link, "_HISTORY", b"SELECT '1', '00000001'")
    store, said = open_store(url), []
    store.changed = said.append
    store.commit([change("a")])
    assert store.confirm([("T", "a", 0, 1)]) == {("T", "a")}
    disconnect(postgres)
    assert store.commit([change("a", 1)]) == {("T", "a")}  # the same server again
    another_history(postgres, store, monkeypatch, "00000002")
    assert store.load("T", "a").version == 2  # what is read now is of now
    (sentence,) = said
    assert "(timeline 00000001 before and 00000002 now): what was loaded before may never" in sentence
    assert sentence in caplog.text
    for accepted in (set(), {("T", "a")}):
        assert store.commit([change("a", 2)]) == accepted
        assert store.confirm([("T", "a", 0, 2 + len(accepted))]) == accepted
    another_history(postgres, store, monkeypatch, "00000002", system="2")
    assert store.commit([change("a", 3)]) == set()
    assert "(another database system, 1 before and 2 now)" in said[1]
    assert len(said) == 2
    store.close()


def test_a_server_that_does_not_show_its_history_is_used_with_a_warning(url, monkeypatch, caplog):
    monkeypatch.setattr(link, "_HISTORY", b"SELECT no_such_function()")
    store = open_store(url)
    assert store.commit([change("a")])
    assert "does not show which history it has" in caplog.text
    store.close()


def test_everybody_may_see_which_history_a_server_has(postgres, url):
    postgres.execute("CREATE ROLE plain LOGIN")
    plain = url.replace("objserver@", "plain@")
    ((system, timeline),) = postgres.execute(link._HISTORY.decode(), plain)
    assert system.isdigit()
    assert timeline == "00000001"


def test_a_database_that_is_called_replicated_and_is_not_is_refused(postgres, url):
    for replicated in (f"{url}&durability=replicated", url.replace("?", "?durability=replicated&")):
        with pytest.raises(errors.StoreError, match=r"synchronous_standby_names is ''.*name the standbys"):
            open_store(replicated)
    with pytest.raises(errors.StoreError, match="durability that is unknown"):
        open_store(f"{url}&durability=some")
    open_store(url).close()


def test_whether_a_database_is_replicated_is_looked_at_with_each_connection(postgres, url):
    def standbys(value):
        postgres.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{value}'")
        postgres.execute("SELECT pg_reload_conf()")
        with contextlib.closing(psycopg.connect(postgres.url.replace("+psycopg", ""))) as other:
            end = time.monotonic() + 20
            while other.execute("SHOW synchronous_standby_names").fetchone() != (value,):
                assert time.monotonic() < end

    open_store(url).close()  # where nobody waits for a standby yet
    standbys("ANY 1 (s1, s2)")
    try:
        store = open_store(f"{url}&durability=replicated")
        assert store.url == url.replace("+psycopg", "")
        assert store.load("T", "a") is None
        standbys("")
        disconnect(postgres)
        for use in (lambda: store.load("T", "a"), lambda: store.commit([change("a")])):
            with pytest.raises(errors.StoreError, match="URL says durability=replicated") as caught:
                use()
            assert not caught.value.in_doubt
        standbys("s1")
        assert store.load("T", "a") is None
    finally:
        standbys("")
    store.close()


def test_settings_in_force(postgres, url):
    postgres.execute("ALTER ROLE objserver SET synchronous_commit = off")
    postgres.execute("ALTER ROLE objserver SET default_transaction_isolation = 'serializable'")
    try:
        store = open_store(url)
    finally:
        postgres.execute("ALTER ROLE objserver RESET ALL")
    connection = store._writing.connection
    asked = {
        name: connection.execute(f"SHOW {name}").fetchone()[0]
        for name in ("synchronous_commit", "transaction_isolation", "statement_timeout", "fsync")
    }
    store.close()
    assert asked == {
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
        "statement_timeout": "30s",
        "fsync": "on",
    }


def test_errors_do_not_show_the_row(store):
    with pytest.raises(Unstorable) as caught:
        store.commit([change("a", state=SECRET.encode(), state_version=None)])
    assert SECRET not in str(caught.value)
    assert SECRET.encode().hex() not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:1/db",
        f"postgresql+psycopg://me:{SECRET}@[::1]:1/db?connect_timeout=2",
        f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}",
        f"postgresql://me:a@{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:a/{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:a#{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:{SECRET}@127.0.0.1:1/db?{SECRET}",
        f"postgresql://me:{SECRET}@127.0.0.1:{SECRET}/db",
        f"postgresql:me:{SECRET}@host/db",
    ],
)
def test_no_password_in_errors(url):
    with pytest.raises(errors.StoreError) as caught:
        open_store(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert "StoreError" in shown
    assert SECRET not in shown
    assert not caught.value.in_doubt


def test_no_password_in_what_the_store_shows(postgres, url):
    store = open_store(url.replace("objserver@", f"objserver:{SECRET}@"))
    assert store.url == url.replace("+psycopg", "")
    assert SECRET not in repr(store)
    store.close()


def test_who_refuses_is_named(postgres):
    with pytest.raises(errors.StoreError, match=r'cannot open nowhere at /.*"nowhere" does not exist'):
        open_store(postgres.url.replace("/postgres", "/nowhere"))


def test_a_database_that_cannot_hold_every_text_is_refused(postgres):
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(errors.StoreError, match="its encoding is LATIN1"):
        open_store(postgres.url.replace("/postgres", "/latin"))


def test_what_came_with_an_owners_last_commit_is_adopted_by_the_next_owner_only(postgres):
    url = postgres.new_url()
    store = open_store(url)
    for name in ("next", "other"):
        store.join(name, name, f"{name}:1", 60.0, b"")
    store.acquire([("T", "a")], "next", True)
    columns, values = "id, target, payload, type, key, owner", "'x', 't', 'p', 'T', 'a', 'gone'"
    postgres.execute(f"INSERT INTO message ({columns}) VALUES ({values})", url)
    assert store.messages(9, "other", True) == []
    assert [message.id for message in store.messages(9, "next", True)] == [b"x"]
    store.close()
