"""Who watches is told what changed under its prefix, and only that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from objserver import Proxy, Reference, errors, expose
from objserver.naming import NameServerDaemon, NamingLimits

BOUND_S = 20


@expose
class Listener:
    def __init__(self) -> None:
        self.heard: dict[str, Any] = {}
        self.last = threading.Event()

    def names_changed(self, changes: dict[str, Any]) -> None:
        self.heard |= changes
        if any(name.endswith("last") for name in changes):
            self.last.set()


@pytest.fixture
def daemon() -> Iterator[NameServerDaemon]:
    with NameServerDaemon("localhost:0", limits=NamingLimits(watchers_max=2)) as daemon:
        yield daemon


def test_a_listener_is_told_on_its_own_connection(daemon: NameServerDaemon) -> None:
    all_names, shop = Listener(), Listener()
    with Proxy(daemon.nameserver) as names:
        names.watch(all_names)
        names.watch(shop, "shop/")
        names.register("shop/a", "PYRO:a@localhost:1")
        names.register("bank", "PYRO:b@localhost:1")
        names.remove("shop/a")
        names.register("shop/last", "PYRO:c@localhost:1")
        assert all_names.last.wait(BOUND_S)
        assert shop.last.wait(BOUND_S)
    assert shop.heard == {"shop/a": None, "shop/last": "PYRO:c@localhost:1"}
    assert all_names.heard == shop.heard | {"bank": "PYRO:b@localhost:1"}


def test_who_no_longer_watches_is_no_longer_told(daemon: NameServerDaemon) -> None:
    gone, here = Listener(), Listener()
    with Proxy(daemon.nameserver) as names:
        names.watch(gone)
        names.watch(here)
        names.unwatch(gone)
        names.register("last", "PYRO:c@localhost:1")
        assert here.last.wait(BOUND_S)
    assert gone.heard == {}


def test_one_too_many_is_refused(daemon: NameServerDaemon) -> None:
    with Proxy(daemon.nameserver) as names:
        listeners = [Listener() for _ in range(3)]
        names.watch(listeners[0], "a")
        names.watch(listeners[1], "b")
        with pytest.raises(errors.ServerBusy, match="watchers_max"):
            names.watch(listeners[2], "c")
        with pytest.raises(TypeError, match="exposed class"):
            names.watch("listener")
        with pytest.raises(TypeError, match="on your connection"):
            names.watch(Reference.parse("PYRO:x@localhost:1"))
        names.unwatch(listeners[0], "a")
        names.watch(listeners[2], "c")
        assert len(daemon.names.watchers) == 2
