"""A store as a file of text."""

import base64
import io
import json
import os
import pathlib
import stat
import sys
import tracemalloc

import pytest

from objserver import errors
from objserver.adapter import state
from objserver.codecs import Codecs
from objserver.settings import Limits
from objserver.storage import dump, dump_file, load, open_store
from objserver.storage.base import Answered, Record, Session, Stored
from objserver.storage.sqlite import SqliteStore
from objserver.testing.store_model import CLIENT, LEASE_S, change, fill, reply

MODULE = sys.modules[dump.__module__]
NATIVE = Codecs(Limits()).native
ID = "0123456789abcdef" * 2
HEADER = {"row": "store", "format": 1, "schema": 3, "id": ID}
OBJECT = {
    "row": "object",
    "type": "T",
    "key": "a",
    "owner": "me",
    "epoch": 1,
    "version": 2,
    "codec": 1,
    "state_version": 3,
    "state": {"n": 1},
}
REPLY = {
    "row": "reply",
    "type": "T",
    "key": "a",
    "client": CLIENT.hex(),
    "number": 1,
    "path": "",
    "acked": 0,
    "digest": "",
    "status": 0,
    "result": None,
}
SESSION = {"row": "session", "client": CLIENT.hex(), "expires_at": 1e12}
TIMER = {"row": "timer", "type": "T", "key": "a", "name": "t", "due": 1.5, "payload": ""}
MESSAGE = {"row": "message", "id": "00ff", "target": "PYRO:x@h:1", "payload": "AAE="}
END = {"row": "end"}


@pytest.fixture
def store():
    store = open_store("sqlite://")
    yield store
    store.close()


def file(*lines):
    return io.BytesIO(
        b"".join(line if type(line) is bytes else json.dumps(line).encode() + b"\n" for line in lines)
    )


def lines(store, types=None):
    into = io.BytesIO()
    dump(store, into, types)
    return [json.loads(line) for line in into.getvalue().splitlines()]


def test_the_codec_that_is_read_here_is_the_adapters():
    assert MODULE._NATIVE == state.CODEC


def test_the_lines_of_a_dump(store):
    rows = [OBJECT, REPLY, TIMER, SESSION, MESSAGE]
    assert load(store, file(HEADER, *rows, END)) == {
        "object": 1,
        "reply": 1,
        "timer": 1,
        "session": 1,
        "message": 1,
    }
    header, *found, end = lines(store)
    assert (header.pop("types"), type(header.pop("made"))) == (None, str)
    assert (header, found, end) == (HEADER, rows, END)
    assert lines(store, ["T"])[0]["types"] == ["T"]
    assert [line["row"] for line in lines(store, ["U"])] == ["store", "session", "end"]


def test_everything_comes_back_in_another_store(store):
    store.open_session(CLIENT, LEASE_S)
    store.open_session(b"\xffother client \x00\x01", LEASE_S)
    fill(store)
    store.commit([change("null", state=NATIVE.encode(None))])
    into = io.BytesIO()
    counts = dump(store, into)
    assert counts == {"object": 5, "reply": 3, "timer": 2, "session": 2, "message": 2}
    other = open_store("sqlite://")
    into.seek(0)
    assert load(other, into) == counts
    assert list(other.snapshot()) == list(store.snapshot())
    assert other.id == store.id
    other.close()


# Bytes that our codec would have written in another way, that it did not write, and of an unknown codec.
@pytest.mark.parametrize(
    ("codec", "data", "shown"),
    [
        (1, b"\xcc\x01", 1),
        (1, b"\xcb\xff\xf8" + b"\0" * 6, {"$float": "nan"}),
        (1, b"\xc1", ...),
        (2, b"\x01", ...),
    ],
)
def test_bytes_that_text_does_not_give_back_are_beside_it(store, codec, data, shown):
    store.commit([change("a", state=data, codec=codec)])
    row = lines(store)[1]
    assert row["data"] == base64.b64encode(data).decode()
    assert row.get("state", ...) == shown
    other = open_store("sqlite://")
    load(other, file(HEADER, row, END))
    assert other.load("T", "a") == store.load("T", "a")
    other.close()


def test_an_edited_state_counts_and_never_silently_not(store):
    store.commit([change("a", state=b"\xcc\x01")])
    header, row, end = lines(store)
    row["state"] = {"$tuple": [5]}
    other = open_store("sqlite://")
    with pytest.raises(errors.StoreError, match="line 2: 'state' and 'data' say different things; remove"):
        load(other, file(header, row, end))
    del row["data"]
    load(other, file(header, row, end))
    assert NATIVE.decode(other.load("T", "a").state) == (5,)
    other.close()


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (b"{", "it is not JSON"),
        (b"\xff\n", "it is not JSON"),
        (b"\n", "it is not JSON"),
        (b"[" * 100_000 + b"\n", "it is not JSON"),
        (b"1\n", "it is not a JSON object"),
        (b'{"row": "object", "epoch": NaN}\n', "NaN is written"),
        ({"row": "orbject"}, "a row is one of object, reply, .*not 'orbject'"),
        ({"row": ["object"]}, "a row is one of"),
        (without(OBJECT, "row"), "a row is one of"),
        (without(OBJECT, "key"), "the field 'key' is missing"),
        (without(OBJECT, "owner"), "the field 'owner' is missing"),
        (without(OBJECT, "state"), "the field 'state' is missing"),
        (without(REPLY, "result"), "the field 'result' is missing"),
        ({**OBJECT, "colour": 1}, "no field 'colour'"),
        ({**OBJECT, "deleted": True}, "no field 'state'"),
        ({**OBJECT, "deleted": False}, "'deleted' is true or not there"),
        ({**OBJECT, "key": 1}, "'key' has to be text"),
        ({**OBJECT, "key": "\ud800"}, "'key' has to be text"),
        ({**OBJECT, "version": "2"}, "'version' has to be a whole number"),
        ({**OBJECT, "version": True}, "'version' has to be a whole number"),
        ({**OBJECT, "version": -1}, "'version' has to be a whole number"),
        ({**OBJECT, "epoch": 1 << 63}, "'epoch' has to be a whole number"),
        ({**OBJECT, "codec": 1 << 15}, "'codec' has to be a whole number"),
        ({**OBJECT, "codec": 2}, "encoding 2 needs the field 'data'"),
        ({**OBJECT, "codec": 2, "data": "AA=="}, "encoding 2"),
        ({**OBJECT, "data": "?"}, "'data' has to be base64"),
        ({**OBJECT, "data": 1}, "'data' has to be base64"),
        ({**OBJECT, "state": {"$date": "x"}}, r"\$date is not followed by"),
        ({**SESSION, "client": "0g"}, "'client' has to be hexadecimal"),
        ({**SESSION, "expires_at": "soon"}, "'expires_at' has to be a number of seconds"),
        ({**TIMER, "due": True}, "'due' has to be a number of seconds"),
        ({**MESSAGE, "payload": "AAE"}, "'payload' has to be base64"),
        (OBJECT, "UNIQUE constraint failed: object"),
        (END, "something comes after the end"),
        (b"", "line 5: the file ends before its last line"),
    ],
    ids=lambda each: ascii(each)[:40],
)
def test_a_broken_line_is_named_and_nothing_is_changed(store, bad, sentence):
    store.open_session(CLIENT, LEASE_S)
    store.commit([change("before", replies=[reply(1)])])
    id, rows = store.id, list(store.snapshot())
    good = OBJECT, SESSION, MESSAGE
    last = [END] if bad != b"" else []
    with pytest.raises(errors.StoreError, match=sentence) as caught:
        load(store, file(HEADER, *good, bad, *last), replace=True)
    assert str(caught.value).startswith(f"line {6 if bad == END else 5}: ")
    assert (store.id, list(store.snapshot())) == (id, rows)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (b"", "the file ends"),
        (OBJECT, "a dump begins with"),
        ({**HEADER, "format": 2}, "it has format 2, this release reads 1; use a newer one"),
        (without(HEADER, "format"), "it has format None"),
        ({**HEADER, "schema": 99}, "schema version 99, this release knows up to 3; use a newer one"),
        ({**HEADER, "schema": "2"}, "schema version '2'"),
        ({**HEADER, "id": ID[1:]}, "32 hexadecimal digits"),
    ],
    ids=lambda each: ascii(each)[:40],
)
def test_what_is_no_dump_or_of_a_newer_release_is_refused(store, header, sentence):
    with pytest.raises(errors.StoreError, match=f"^line 1: .*{sentence}"):
        load(store, file(header, *([END] if header else [])))
    assert store.id != ID


def test_a_line_without_end_is_refused(store, monkeypatch):
    monkeypatch.setattr(MODULE, "LINE_SIZE_MAX", 1000)
    with pytest.raises(errors.StoreError, match="line 2: it is longer than 1000 bytes"):
        load(store, file(HEADER, b"x" * 2000))


def test_a_store_with_objects_is_refused_unless_they_may_go(store):
    store.commit([change("a")])
    with pytest.raises(errors.StoreError, match="has objects already"):
        load(store, file(HEADER, OBJECT, END))
    load(store, file(HEADER, END), replace=True)
    assert store.keys("T") == []
    assert store.load("T", "a") == Record(1, 1, 1, 3, None)


def test_the_file_is_complete_or_not_there_and_nobody_elses(store, tmp_path):
    store.commit([change("a")])
    path = tmp_path / "a.jsonl"
    assert dump_file(store, str(path)) == {"object": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()

    class Broken(SqliteStore):
        def snapshot(self, types=None):
            yield from list(super().snapshot(types))[:1]
            raise errors.StoreError("broken")

    broken = Broken("sqlite://")
    broken.commit([change("b")])
    with pytest.raises(errors.StoreError, match="broken"):
        dump_file(broken, str(path))
    broken.close()
    assert (path.read_bytes(), os.listdir(tmp_path)) == (content, ["a.jsonl"])
    with pytest.raises(errors.StoreError, match=r"cannot write .*none/a.jsonl: No such file"):
        dump_file(store, str(tmp_path / "none" / "a.jsonl"))


def test_neither_way_holds_more_than_some_rows(tmp_path):
    """Of 60 MB, written and read with some of them in memory."""
    store, other = (open_store(f"sqlite:///{tmp_path}/{name}.db") for name in "ab")
    state = NATIVE.encode("x" * 1_000_000)
    for n in range(60):
        store.commit([change(f"{n}", state=state)])
    path = str(tmp_path / "a.jsonl")
    tracemalloc.start()
    try:
        dump_file(store, path)
        with open(path, "rb") as opened:
            load(other, opened)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert other.count("T") == 60
    assert peak < 20_000_000
    store.close()
    other.close()


def test_it_can_be_read_with_what_comes_with_a_path(store):
    data = NATIVE.encode_exactly(pathlib.Path("/a\udcff\u2028é"))
    store.commit([change("é\u2028", state=data)])
    into = io.BytesIO()
    dump(store, into)
    assert len(into.getvalue().split(b"\n")) == 4
    assert "é".encode() in into.getvalue()
    other = open_store("sqlite://")
    into.seek(0)
    load(other, into)
    assert other.load("T", "é\u2028").state == data
    other.close()


def test_a_dump_goes_from_engine_to_engine(store, postgres):
    store.open_session(CLIENT, LEASE_S)
    store.open_session(b"\xffother client \x00\x01", LEASE_S)
    fill(store)
    shared = open_store(postgres.new_url())
    back = open_store("sqlite://")
    for source, target in ((store, shared), (shared, back)):
        into = io.BytesIO()
        dump(source, into)
        into.seek(0)
        load(target, into)
    assert list(shared.snapshot()) == list(back.snapshot()) == list(store.snapshot())
    assert {type(row) for row in back.snapshot()} >= {Stored, Answered, Session}
    shared.close()
    back.close()


def test_an_object_that_a_node_has_reserved_is_dumped_and_loaded():
    before, after = SqliteStore("sqlite://", alone=False), SqliteStore("sqlite://")
    before.join("1", "me", "h:1", 60, b"")
    before.acquire([("T", "a")], "me", True)
    with io.BytesIO() as made:
        dump(before, made)
        made.seek(0)
        load(after, made)
    assert after.load("T", "a") == before.load("T", "a") == Record(1, 0, 0, 1, None)
    assert after.nodes() == []
