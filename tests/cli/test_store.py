"""`objserver store` on stores that a server has filled."""

from __future__ import annotations

import dataclasses
import enum
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from objserver import ObjectServer, Persistent, Proxy, errors, expose, object_id
from objserver.cli.main import main
from objserver.client import books
from objserver.machine import machine
from objserver.storage import Change, Timer, open_store


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Order:
    item: str
    colour: Colour


@expose
class Account:
    executed = 0
    orders: list[Order]

    def __init__(self) -> None:
        self.balance = 0
        self.orders = []

    def deposit(self, amount: int) -> int:
        Account.executed += 1
        self.balance += amount
        self.orders.append(Order("té", Colour.RED))
        return self.balance


@expose
class Old:
    def __init__(self) -> None:
        self.euros = 3

    def touch(self) -> None:
        self.euros += 0


class New:
    state_version = 3

    @classmethod
    def upgrade_state(cls, state: dict[str, Any], version: int) -> dict[str, Any]:
        if version < 2:
            state = {"cents": state["euros"] * 100}
        return {"amount": (state["cents"], "cent")}

    @expose
    def touch(self) -> list[Any]:
        self.amount: tuple[int, str]
        return list(self.amount)


@pytest.fixture(autouse=True)
def fresh() -> None:
    Account.executed = 0
    machine.get().own(books._Books)._books.clear()


@pytest.fixture
def url(tmp_path: pathlib.Path) -> str:
    url = f"sqlite:///{tmp_path}/bank.db"
    with serving(url) as server:
        for key in ("alice", "b&b", None):
            assert proxy(server, object_id("Account", key)).deposit(5) == 5
    return url


def serving(
    url: str, cls: type = Account, name: str = "Account", address: str = "localhost:0"
) -> ObjectServer:
    server = ObjectServer(address, store=url)
    server.register(cls, name, activation=Persistent())
    return server.start()


def proxy(server: ObjectServer, id: str) -> Proxy:
    return Proxy(f"PYRO:{id}@{server.address}", timeout_s=20)


def run(*args: str, input: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["store", *args], input=input)


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """Where nothing is yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/other.db"
    else:
        yield request.getfixturevalue("postgres").new_url()


# -- looking -------------------------------------------------------------------------------------------


def test_types_and_keys(url: str) -> None:
    with serving(url, Old, "Box/old") as server:
        proxy(server, "Box/old/x").touch()
    assert run("ls", url).output == "Account\t3\nBox/old\t1\n"
    assert json.loads(run("ls", url, "--json").output) == {"Account": 3, "Box/old": 1}
    assert run("ls", url, "--prefix", "B").output == "Box/old\t1\n"
    assert run("ls", url, "Account").output == "\nalice\nb&b\n"
    assert json.loads(run("ls", url, "Account", "--limit", "2", "--json").output) == ["", "alice"]
    assert run("ls", url, "Account", "--after", "alice").output == "b&b\n"
    assert run("ls", url, "Account", "--prefix", "a", "--limit", "9").output == "alice\n"


def test_more_keys_than_a_page(tmp_path: pathlib.Path) -> None:
    url = f"sqlite:///{tmp_path}/many.db"
    store = open_store(url)
    store.commit([Change("T", f"{n:05}", 0, 0, 1, 1, b"\xc0") for n in range(2500)])
    store.close()
    assert run("ls", url, "T").output.split() == [f"{n:05}" for n in range(2500)]
    assert run("ls", url, "T", "--limit", "2100").output.split()[-1] == "02099"


def test_an_object(url: str) -> None:
    facts = json.loads(run("show", url, "Account/alice", "--json").output)
    colour = {"$object": {"class": f"{__name__}.Colour", "parts": ["RED"]}}
    order = {"class": f"{__name__}.Order", "fields": {"item": "té", "colour": colour}}
    assert facts.pop("size") > 20
    assert facts == {
        "type": "Account",
        "key": "alice",
        "deleted": False,
        "epoch": 0,
        "version": 1,
        "state_version": 1,
        "timers": [],
        "replies": 1,
        "state": {"balance": 5, "orders": [{"$object": order}]},
    }
    assert json.loads(run("show", url, "Account/b%26b", "--json").output)["key"] == "b&b"
    assert json.loads(run("show", url, "Account", "--json").output)["key"] == ""


def test_an_object_for_people(url: str) -> None:
    store = open_store(url)
    store.commit(
        [Change("Account", "alice", 0, 1, 1, 2, b"\x81\xa1n\xa2\x1b[", timers=[Timer("bell", 1.5e9)])]
    )
    store.commit([Change("Account", "b&b", 0, 1, 1, 2, None)])
    store.close()
    assert run("show", url, "Account/alice").output == (
        "object   Account/alice\n"
        "version  2, epoch 0\n"
        "layout   state_version 2\n"
        "size     6 bytes\n"
        "replies  1 remembered\n"
        "timer    bell due 2017-07-14T02:40:00+00:00\n"
        "\n"
        '{"n": "\\u001b["}\n'
    )
    assert run("show", url, "Account/b%26b").output.endswith("replies  1 remembered\ndeleted\n")


def test_a_state_that_cannot_be_read_is_still_an_object(url: str) -> None:
    store = open_store(url)
    store.commit([Change("T", "bad", 0, 0, 1, 1, b"\xc1"), Change("T", "codec", 0, 0, 7, 1, b"\xc0")])
    store.close()
    shown = run("show", url, "T/codec")
    assert (shown.exit_code, "version  1" in shown.output) == (1, True)
    assert "does not know the encoding 7 of the state" in shown.stderr
    facts = json.loads(run("show", url, "T/bad", "--json").output)
    assert "cannot be shown" in facts["unreadable"]
    assert "state" not in facts


def test_what_is_not_there(url: str, tmp_path: pathlib.Path) -> None:
    for args, sentence, code in (
        (
            ("ls", url, "Acount"),
            "no object of type 'Acount' was ever stored there; did you mean 'Account'?",
            3,
        ),
        (("show", url, "Acount/alice"), "no object of type 'Acount' was ever", 3),
        (("show", url, "Account/alise"), "no object with the key 'alise'; did you mean 'alice'?", 3),
        (("dump", url, "--type", "Acount"), "did you mean 'Account'?", 3),
        (("ls", f"sqlite:///{tmp_path}/none.db"), "there is no such file; check the path", 1),
        (("ls", "bank.db"), "did you mean sqlite:///bank.db?", 1),
        (("load", f"sqlite:///{tmp_path}/new.db", "none.jsonl"), "No such file", 2),
        (("ls", url, "--after", "a"), "--after is a key; it needs TYPE", 2),
    ):
        result = run(*args)
        assert sentence in result.stderr
        assert (result.exit_code, result.stdout) == (code, "")
    assert {path.name for path in tmp_path.iterdir()} == {"bank.db"}


def test_an_empty_database_is_left_alone(postgres: Any) -> None:
    url = postgres.new_url()
    result = run("ls", url)
    assert (result.exit_code, "is empty: no server has kept objects there" in result.stderr) == (1, True)
    assert postgres.execute("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()", url) == [
        (0,)
    ]


def test_the_file_of_a_running_server_is_dumped_by_that_server(url: str, tmp_path: pathlib.Path) -> None:
    with serving(url) as server:
        result = run("dump", url)
        assert result.exit_code == 1
        assert "another process has it open" in result.stderr
        assert "server.dump(path)" in result.stderr
        server.dump(str(tmp_path / "a.jsonl"))
        assert proxy(server, "Account/alice").deposit(1) == 6
    assert run("load", f"sqlite:///{tmp_path}/b.db", str(tmp_path / "a.jsonl")).exit_code == 0
    assert (
        json.loads(run("show", f"sqlite:///{tmp_path}/b.db", "Account/alice", "--json").output)["version"]
        == 1
    )
    with ObjectServer() as bare, pytest.raises(errors.StoreError, match="no store to dump"):
        bare.dump(str(tmp_path / "c.jsonl"))


# -- moving --------------------------------------------------------------------------------------------


def test_dump_and_load(url: str, other: str, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "bank.jsonl")
    dumped = run("dump", url, path)
    assert dumped.stderr == "dumped 3 objects, 3 replies, 1 session\n"
    assert dumped.stdout == ""
    piped = run("dump", url).stdout_bytes
    assert piped.splitlines()[1:] == pathlib.Path(path).read_bytes().splitlines()[1:]
    assert run("load", other, path).stderr == "loaded 3 objects, 3 replies, 1 session\n"
    assert run("dump", other).stdout_bytes.splitlines()[1:] == piped.splitlines()[1:]
    again = run("load", other, "-", input=piped)
    assert (again.exit_code, "has objects already" in again.stderr) == (1, True)
    assert "add --replace" in again.stderr
    assert run("load", other, "-", "--replace", input=piped).exit_code == 0


def test_clients_go_on_with_the_store_that_was_loaded(url: str, other: str) -> None:
    """Of three calls one had its answer lost, and one came when the server had been stopped for the move."""
    with serving(url) as server:
        address = server.address
        alice = proxy(server, "Account/alice")
        assert alice.deposit(5) == 10
        (book,) = machine.get().own(books._Books)._books.values()
        store = server._store
        assert store is not None
        (record,) = (r for r in store.replies("Account", "alice") if r.number == 4)
    executed = Account.executed
    assert run("load", other, "-", input=run("dump", url).stdout_bytes).exit_code == 0
    with serving(other, address=address) as server:
        # The same call again, as by a client that has not seen the reply.
        assert book.client == record.client
        call = alice.outcome(_call(record))
        assert call == 10
        assert Account.executed == executed
        assert alice.deposit(5) == 15
        assert list(machine.get().own(books._Books)._books.values()) == [book]
    assert Account.executed == executed + 1


def _call(record: Any) -> Any:
    from objserver.invocation import CallId

    return CallId(record.client, record.number, record.path)


def test_a_state_edited_by_hand_is_what_the_object_has(url: str, other: str) -> None:
    text = run("dump", url).stdout_bytes
    edited = text.replace(b'"balance": 5', b'"balance": 500').replace("té".encode(), b"tea")
    assert edited != text
    assert run("load", other, "-", input=edited).exit_code == 0
    with serving(other) as server:
        assert proxy(server, "Account/alice").deposit(1) == 501


def test_a_broken_file_makes_no_objects(url: str, other: str) -> None:
    lines = run("dump", url).stdout_bytes.splitlines(keepends=True)
    result = run("load", other, "-", input=b"".join(lines[:-1]))
    assert (result.exit_code, f"line {len(lines)}: the file ends before" in result.stderr) == (1, True)
    assert run("ls", other).output == ""


# -- layouts -------------------------------------------------------------------------------------------


def test_states_of_older_and_newer_layouts_are_shown_dumped_and_upgraded(url: str, other: str) -> None:
    with serving(url, Old, "Box") as server:
        proxy(server, "Box/x").touch()
    assert run("load", other, "-", input=run("dump", url).stdout_bytes).exit_code == 0
    with serving(other, New, "Box") as server:
        assert proxy(server, "Box/x").touch() == [300, "cent"]
    facts = json.loads(run("show", other, "Box/x", "--json").output)
    assert (facts["state_version"], facts["state"]) == (3, {"amount": {"$tuple": [300, "cent"]}})
    with serving(other, Old, "Box") as server:
        with pytest.raises(errors.StateError, match="has version 3, but this program knows only up to 1"):
            proxy(server, "Box/x").touch()
    after = json.loads(run("show", other, "Box/x", "--json").output)
    assert {**after, "epoch": 1} == {**facts, "epoch": 1}
