"""What stores must do that are opened again, and those in a database with our tables: conformance tests.

The process that writes is killed; databases that older releases have made are opened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from objserver import errors
from objserver.storage import Record, Reply
from objserver.storage.base import Message, Timer
from objserver.testing.store_model import CLIENT, LEASE_S, change, message, reply
from objserver.testing.stores import StoreConformance

__all__ = ["DurableStoreConformance", "SqlStoreConformance"]

_WRITER = """
import itertools, sys
from objserver.testing.store_model import CLIENT, LEASE_S, change, message, reply
import importlib
module, _, name = sys.argv[2].partition(":")
store = getattr(importlib.import_module(module), name)(sys.argv[1])
store.open_session(CLIENT, LEASE_S)
start = store.load("T", "n")
for n in itertools.count(start.version if start else 0):
    acked = [(CLIENT, n - 4)]
    sent = [message(n + 1)]
    assert store.commit([change("n", n, b"%d" % (n + 1), replies=[reply(n + 1)], acked=acked, messages=sent)])
    print(n + 1, flush=True)
"""


class DurableStoreConformance(StoreConformance):
    """A store that can be opened again."""

    opener = "objserver.storage:open_store"
    """What opens it in another process, as module:function."""

    def test_it_is_all_there_after_opening_again(self, url: str) -> None:
        store = self.open(url)
        id = store.id
        store.open_session(CLIENT, LEASE_S)
        timer = Timer("t", 1.5)
        store.commit([change("a", calls=2, replies=[reply(1)], messages=[message(1)]), change("b")])
        store.commit([change("b", 1, None, timers=[timer])])
        store.close()
        store = self.open(url)
        found = store.load("T", "a"), store.load("T", "b"), store.replies("T", "a"), store.keys("T")
        others = store.id, store.messages(9), store.timers("T", "b"), store.renew_sessions([CLIENT], 1)
        store.close()
        assert found == (Record(0, 2, 1, 3, b"s"), Record(0, 2, 1, 3, None), [reply(1)], ["a"])
        assert others == (id, [message(1)], [timer], {CLIENT})

    def test_kill_9_loses_nothing_acknowledged(self, url: str) -> None:
        acknowledged = 0
        for _ in range(3):
            command = [sys.executable, "-c", _WRITER, url, self.opener]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
                assert victim.stdout is not None
                for _ in range(20):
                    acknowledged = int(victim.stdout.readline())
                os.kill(victim.pid, signal.SIGKILL)
                for line in victim.stdout:
                    if line.endswith("\n"):
                        acknowledged = int(line)
            store = self.open(url)
            record, replies, sent = store.load("T", "n"), store.replies("T", "n"), store.messages(10**6)
            store.close()
            assert record is not None
            assert record.version >= acknowledged
            assert record.state == b"%d" % record.version
            assert [r.number for r in replies] == list(range(max(1, record.version - 4), record.version + 1))
            assert sent == [message(n + 1) for n in range(record.version)]
        assert acknowledged >= 60


_VERSION_1 = [
    """CREATE TABLE object (type TEXT NOT NULL, key TEXT NOT NULL, owner TEXT, owner_inc BIGINT,
        epoch BIGINT DEFAULT '0' NOT NULL, version BIGINT DEFAULT '0' NOT NULL, codec SMALLINT NOT NULL,
        state_version INTEGER NOT NULL, state {blob}, deleted BOOLEAN DEFAULT false NOT NULL,
        PRIMARY KEY (type, key))""",
    """CREATE TABLE reply (type TEXT NOT NULL, key TEXT NOT NULL, client {blob} NOT NULL,
        seq BIGINT NOT NULL, digest {blob} NOT NULL, status SMALLINT NOT NULL, result {blob},
        PRIMARY KEY (type, key, client, seq))""",
    """CREATE TABLE cluster (one INTEGER NOT NULL CHECK (one = 1), cluster_id {uuid} NOT NULL,
        schema_version INTEGER NOT NULL, PRIMARY KEY (one))""",
    "INSERT INTO cluster VALUES (1, '0123456789abcdef0123456789abcdef', 1)",
    """INSERT INTO object (type, key, version, codec, state_version, state, deleted)
        VALUES ('T', 'a', 5, 1, 3, {state}, false), ('T', 'b', 2, 1, 3, NULL, true)""",
]
"""What made and filled a database of version 1."""
_VERSION_2 = [
    _VERSION_1[0],
    """CREATE TABLE session (client {blob} NOT NULL, expires_at {float} NOT NULL, PRIMARY KEY (client))""",
    """CREATE TABLE message (position {position}, id {blob} NOT NULL, target TEXT NOT NULL,
        payload {blob} NOT NULL, PRIMARY KEY (position), UNIQUE (id))""",
    """CREATE TABLE timer (type {name} NOT NULL, key {name} NOT NULL, name {name} NOT NULL,
        due {float} NOT NULL, payload {blob} NOT NULL, PRIMARY KEY (type, key, name))""",
    """CREATE INDEX timer_due ON timer (type, due)""",
    """CREATE TABLE reply (type {name} NOT NULL, key {name} NOT NULL, client {blob} NOT NULL,
        number BIGINT NOT NULL, path {blob} NOT NULL, acked BIGINT NOT NULL, digest {blob} NOT NULL,
        status SMALLINT NOT NULL, result {blob}, PRIMARY KEY (type, key, client, number, path))""",
    """CREATE INDEX reply_client ON reply (client)""",
    _VERSION_1[2],
    "INSERT INTO cluster VALUES (1, '0123456789abcdef0123456789abcdef', 2)",
    _VERSION_1[4],
    "INSERT INTO session VALUES ({state}, 1e12)",
    "INSERT INTO reply VALUES ('T', 'a', {state}, 1, {state}, 0, {state}, 0, NULL)",
    "INSERT INTO message (id, target, payload) VALUES ({state}, 't', {state})",
    "INSERT INTO timer VALUES ('T', 'a', 't', 1.5, {state})",
]
"""The same of version 2, with something of everything."""


def words(url: str) -> dict[str, str]:
    """What in these statements each engine says in its own way."""
    if url.startswith("postgresql"):
        name, position = 'TEXT COLLATE "C"', "BIGINT GENERATED BY DEFAULT AS IDENTITY"
        own = {"name": name, "position": position, "float": "DOUBLE PRECISION"}
        return {"blob": "BYTEA", "uuid": "UUID", "state": r"'\x0102'", **own}
    own = {"name": "TEXT", "position": "INTEGER NOT NULL", "float": "DOUBLE"}
    return {"blob": "BLOB", "uuid": "CHAR(32)", "state": "x'0102'", **own}


class SqlStoreConformance(DurableStoreConformance):
    """A store in a database that has the tables of `objserver.storage.schema`."""

    def sql(self, url: str, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement there, with no store open."""
        raise NotImplementedError

    def test_new_tables_and_their_version(self, url: str) -> None:
        self.open(url).close()
        assert self.sql(url, "select one, schema_version from cluster") == [(1, 3)]
        for table in ("object", "reply", "session", "message", "timer", "node"):
            assert self.sql(url, f"select count(*) from {table}") == [(0,)]

    def test_a_store_of_version_1_keeps_its_objects(self, url: str) -> None:
        for statement in _VERSION_1:
            self.sql(url, statement.format(**words(url)))
        for version in (1, 3):
            assert self.sql(url, "select schema_version from cluster") == [(version,)]
            store = self.open(url)
            assert store.load("T", "a") == Record(0, 5, 1, 3, b"\x01\x02")
            assert store.load("T", "b") == Record(0, 2, 1, 3, None)
            assert store.id == "0123456789abcdef" * 2
            assert store.keys("T") == ["a"]
            store.close()
        store = self.open(url)
        store.open_session(CLIENT, LEASE_S)
        answered = change("a", 5, b"t", replies=[reply(1)], messages=[message(1)], timers=[Timer("t", 1.0)])
        assert store.commit([answered, change("c")]) == {("T", "a"), ("T", "c")}
        assert store.replies("T", "a") == [reply(1)]
        assert set(store.acquire([("T", "a"), ("T", "b"), ("T", "c")], "")) == {("T", key) for key in "abc"}
        store.close()

    def test_a_store_of_version_2_keeps_everything_and_has_nodes(self, url: str) -> None:
        for statement in _VERSION_2:
            self.sql(url, statement.format(**words(url)))
        old, two = Message(b"\x01\x02", "t", b"\x01\x02"), b"\x01\x02"
        timer, answer = Timer("t", 1.5, two), Reply(two, 1, two, 0, two, 0, None)
        for version in (2, 3):
            assert self.sql(url, "select schema_version from cluster") == [(version,)]
            store = self.open(url)
            assert store.load("T", "a") == Record(0, 5, 1, 3, b"\x01\x02")
            assert (store.replies("T", "a"), store.timers("T", "a")) == ([answer], [timer])
            assert store.messages(9) == [old]
            assert store.renew_sessions([two], 1) == {two}
            store.close()
        # what a server of that release still writes
        self.sql(url, "INSERT INTO message (id, target, payload) VALUES ({blob}, 't', {blob})".format(
            blob=words(url)["state"].replace("0102", "03")))  # fmt: skip
        store = self.open(url)
        store.join("1", "me", "h:1", LEASE_S, b"")
        name = ("T", "a")
        assert store.acquire([name], "me", True) == {name: Record(1, 5, 1, 3, b"\x01\x02")}
        assert store.messages(9, "me", True) == [old, Message(b"\x03", "t", b"\x03")]
        assert store.commit([change("a", 5, epoch=1, messages=[message(1)], owner="me")]) == {name}
        assert len(store.messages(9, "me", True)) == 3
        assert store.owned("me", 9) == [name]
        store.close()

    def test_both_ways_the_tables_become_the_same(self, url: str) -> None:
        """Those of a new store, and those of an older one that was brought up to date."""
        for statement in _VERSION_2:
            self.sql(url, statement.format(**words(url)))
        self.open(url).close()
        listed = "select tablename, indexname from pg_indexes where schemaname = current_schema()"
        if not url.startswith("postgresql"):
            listed = "select tbl_name, name from sqlite_master where type = 'index' and sql is not null"
        upgraded = {name for _, name in self.sql(url, listed)}
        assert {"object_owner", "message_owner", "message_sender", "reply_client", "timer_due"} <= upgraded

    def test_a_newer_schema_is_refused_with_both_versions(self, url: str) -> None:
        self.open(url).close()
        self.sql(url, "update cluster set schema_version = 7")
        with pytest.raises(errors.StoreError, match=r"has schema version 7.* 3; upgrade"):
            self.open(url)

    def test_the_database_of_another_program_is_refused_and_untouched(self, url: str) -> None:
        self.sql(url, "create table bookmarks(x integer)")
        with pytest.raises(errors.StoreError, match="another program"):
            self.open(url)
        self.sql(url, "create table object(x integer)")  # is not there
        assert self.sql(url, "select * from bookmarks") == []
