"""Discovery by multicast DNS, on the loopback interface."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from objserver import Proxy, errors
from objserver.cli.main import main
from objserver.naming import NameServerDaemon, mdns
from objserver.references import Reference


def is_found(reference: Reference) -> bool:
    """Others may announce themselves on this machine too, so it is looked for more than once."""
    return any(reference in mdns.discover() for _ in range(10))


def test_a_name_server_that_announces_itself_is_found_until_it_stops() -> None:
    with NameServerDaemon("localhost:0", mdns="127.0.0.1") as daemon:
        assert is_found(daemon.nameserver)
        with Proxy(daemon.nameserver) as names:
            assert names.count() == 1


def test_it_is_not_announced_unless_asked_for() -> None:
    with NameServerDaemon("localhost:0") as daemon:
        assert daemon.announcement is None


def test_a_wildcard_is_announced_as_the_address_of_the_interface() -> None:
    with mdns.Announcement(Reference.parse("PYRO:Pyro.NameServer@0.0.0.0:9090")):
        assert is_found(Reference.parse("PYRO:Pyro.NameServer@127.0.0.1:9090"))


def test_what_is_no_name_server_is_passed_over() -> None:
    with mdns.Announcement(Reference.parse("PYRO:Evil@localhost:1")):
        assert all(found.object_id == "Pyro.NameServer" for found in mdns.discover())


def test_the_command_prints_what_it_finds() -> None:
    with NameServerDaemon("localhost:0", mdns="127.0.0.1") as daemon:
        result = CliRunner().invoke(main, ["names", "discover", "--timeout", "4"])
    assert (result.exit_code, str(daemon.nameserver) in result.output) == (0, True)


def test_the_command_says_if_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "discover", lambda timeout_s, interfaces: [])
    nobody = CliRunner().invoke(main, ["names", "discover", "--timeout", "0.1", "--json"])
    assert (nobody.exit_code, nobody.stdout) == (3, "[]\n")
    assert "no name server announces itself at 127.0.0.1" in nobody.stderr


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.NamingError, match="give the IPv4 address"):
        mdns.discover(0.1, ["203.0.113.1"])
    with pytest.raises(errors.NamingError, match="has no host and port"):
        mdns.Announcement(Reference.parse("PYRO:Pyro.NameServer@./u:/tmp/x"))
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(errors.NamingError, match=r"objserver\[mdns\]"):
        NameServerDaemon("localhost:0", mdns="127.0.0.1").start()
