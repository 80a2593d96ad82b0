"""Asking live objects what they offer."""

from __future__ import annotations

import threading
from typing import Any

import Pyro5.api
import pytest

from objserver import ObjectServer, Proxy, ServerSettings, errors, expose, oneway
from objserver.adapter import DaemonObject
from objserver.adapter import describe as describe_class
from objserver.cli.objects import describe


@expose
class Thing:
    """A thing."""

    def add(self, a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    @oneway
    def tell(self, text: str) -> None: ...

    @property
    def colour(self) -> str:
        return "red"


@pytest.mark.parametrize("serializer", [None, "serpent", "json", "msgpack"])
def test_a_server_of_ours_tells_all_in_every_serializer(serializer: str | None) -> None:
    with ObjectServer() as server:
        uri = server.register(Thing, "Thing")
        with Proxy(f"PYRO:Pyro.Daemon@{server.address}", serializer=serializer) as daemon:
            assert daemon.describe("Thing") == describe_class(Thing)
        with Proxy(uri) as proxy:
            assert describe(proxy) == describe_class(Thing)


def test_a_stock_client_can_ask_too() -> None:
    with ObjectServer() as server:
        server.register(Thing, "Thing")
        with Pyro5.api.Proxy(f"PYRO:Pyro.Daemon@{server.address}") as daemon:
            assert daemon.describe("Thing") == describe_class(Thing)


def test_of_a_locators_objects_the_first_stands_for_all() -> None:
    with ObjectServer() as server:
        server.register(lambda key: Thing(), "things")
        with Proxy(f"PYRO:things/one@{server.address}") as proxy:
            assert describe(proxy) == describe_class(Thing)


def test_the_unknown_is_not_described() -> None:
    with ObjectServer() as server, Proxy(f"PYRO:Pyro.Daemon@{server.address}") as daemon:
        with pytest.raises(errors.ObjectNotFound, match="unknown object 'nothing'"):
            daemon.describe("nothing")
        with pytest.raises(TypeError, match="'object_id' is an int"):
            daemon.describe(5)


def test_a_stock_server_tells_names() -> None:
    @Pyro5.api.expose
    class Stock:
        def add(self, a: int) -> int:
            return a

        @property
        def colour(self) -> str:
            return "red"

    with Pyro5.api.Daemon(host="127.0.0.1", port=0) as stock:
        uri = stock.register(Stock(), "stock/one")
        thread = threading.Thread(target=stock.requestLoop, daemon=True)
        thread.start()
        with Proxy(str(uri)) as proxy:
            described = describe(proxy)
        stock.shutdown()
        thread.join(10)
    assert described["unsigned"]
    assert described["name"] == "stock"
    assert {name: member["kind"] for name, member in described["members"].items()} == {
        "add": "method",
        "colour": "attribute",
    }


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"name": "x", "module": "m", "doc": "", "members": []},
        {"name": "x", "module": "m", "doc": "", "members": {1: {}}},
        {"name": "x", "module": "m", "doc": "", "members": {"f": {"kind": "method"}}},
        {
            "name": "x",
            "module": "m",
            "doc": "",
            "members": {
                "f": {"kind": "attribute", "doc": "", "unresolved": [1], "readonly": True, "returns": None}
            },
        },
    ],
)
def test_what_is_not_understood_is_not_used(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objserver.adapter.daemon.describe", lambda cls: told)
    with ObjectServer(settings=ServerSettings()) as server:
        with Proxy(server.register(Thing, "Thing")) as proxy:
            with pytest.raises(errors.ProtocolError, match="in a way that is not understood here"):
                describe(proxy)


def test_the_daemon_describes_itself() -> None:
    with ObjectServer() as server, Proxy(f"PYRO:Pyro.Daemon@{server.address}") as proxy:
        assert describe(proxy) == describe_class(DaemonObject)
