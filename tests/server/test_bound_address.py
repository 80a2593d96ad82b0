"""What is really bound, as the kernel tells it: who asks for localhost gets nothing else."""

import ipaddress
import socket
import sys
from pathlib import Path

import pytest

from objserver import ObjectServer
from objserver.naming import Beacon, NameServerDaemon
from objserver.references import NAMESERVER_ID, Reference


def bound(port, protocol="tcp"):
    """The local addresses of all sockets of this machine with that port that are no connections."""
    found = set()
    for name in (protocol, f"{protocol}6"):
        table = Path("/proc/net", name)
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if int(number, 16) == port and state in ("0A", "07"):
                words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
                raw = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
                found.add(ipaddress.ip_address(raw))
    return found


def port_of(address):
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("address", ["localhost:0", "127.0.0.1:0", ":0", "[::1]:0"])
def test_a_server_is_bound_to_the_loopback_address_only(address):
    if address.startswith("[") and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with ObjectServer(address) as server:
        addresses = bound(port_of(server.address))
        assert len(addresses) == 1
        assert all(one.is_loopback for one in addresses)


def test_a_name_server_and_its_beacon_are_bound_to_the_loopback_address_only():
    with NameServerDaemon("localhost:0", beacon="localhost:0") as server:
        addresses = bound(port_of(server.address)) | bound(port_of(server.beacon.address), "udp")
        assert addresses
        assert all(one.is_loopback for one in addresses)


def test_it_is_told_apart_here():
    """The test can see the difference."""
    beacon = Beacon(Reference.parse(f"PYRO:{NAMESERVER_ID}@localhost:1"), "0.0.0.0:0")
    try:
        assert not any(one.is_loopback for one in bound(port_of(beacon.address), "udp"))
    finally:
        beacon._socket.close()
        beacon._wake.close()
        beacon._woken.close()
