"""Discovery over UDP."""

from __future__ import annotations

import socket

import Pyro5.api
import pytest

from objserver import errors
from objserver.naming import Beacon, NameServerDaemon
from objserver.references import Location, Reference


def ask(beacon: Beacon, question: bytes = b"GET_NSURI") -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(10)
        # Noise first: the answer that arrives must be that to the real question.
        asker.sendto(b"noise", ("127.0.0.1", Location.parse(beacon.address).port))
        asker.sendto(question, ("127.0.0.1", Location.parse(beacon.address).port))
        return asker.recv(1000).decode()


def test_the_daemon_is_found_by_its_beacon() -> None:
    with NameServerDaemon("localhost:0", beacon="127.0.0.1:0") as daemon:
        assert daemon.beacon is not None
        uri = ask(daemon.beacon)
        assert uri == str(daemon.nameserver)
        with Pyro5.api.Proxy(uri) as names:
            assert names.count() == 1


def test_a_wildcard_is_answered_with_the_address_that_faces_the_asker() -> None:
    with Beacon(Reference.parse("PYRO:Pyro.NameServer@0.0.0.0:9090"), "127.0.0.1:0") as beacon:
        assert ask(beacon) == "PYRO:Pyro.NameServer@127.0.0.1:9090"


def test_stopping_frees_the_port_and_a_taken_port_is_said() -> None:
    reference = Reference.parse("PYRO:Pyro.NameServer@localhost:9090")
    beacon = Beacon(reference, "127.0.0.1:0").start()
    with pytest.raises(errors.NamingError, match="cannot listen"):
        Beacon(reference, beacon.address)
    with pytest.raises(errors.NamingError, match="cannot listen"):
        NameServerDaemon("localhost:0", beacon=beacon.address)
    beacon.stop()
    beacon.stop()
    Beacon(reference, beacon.address).stop()
