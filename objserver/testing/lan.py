"""A network of one's own, of which every link can be cut: hosts are network namespaces, the links veth pairs.

The process that makes it leaves the machine's network for a new one, in which there is nothing but a switch
that joins the hosts, so it disturbs nobody and meets nobody.  It takes root and the commands of iproute2 and
util-linux.  Nothing has to be cleared away: a namespace is gone when no process is in it, and the process
that holds one for a host ends when its input does.

A link that is cut loses what is sent, in both directions, and says nothing.  It can also be cut towards one
address only: then what the host sends there is refused on the spot, and what comes from there arrives.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

__all__ = ["CLIENTS", "DATABASE", "Lan", "Unavailable", "check"]

CLIENTS, DATABASE = "10.77.0.200", "10.77.0.100"
"""Two addresses of the process that makes the network: that from which it connects, and another."""
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class Unavailable(Exception):
    """There can be no such network here; the sentence says why."""


def check() -> None:
    """Unavailable, if there can be no such network here."""
    if os.geteuid() != 0:
        raise Unavailable("network namespaces take root")
    for command in ("ip", "unshare", "nsenter"):
        if shutil.which(command) is None:
            raise Unavailable(f"network namespaces take the command {command}, of iproute2 or util-linux")
    for what in ("s0 type bridge", "v0 type veth peer name p0"):
        tried = subprocess.run(
            ["unshare", "-n", "ip", "link", "add", *what.split()], capture_output=True, text=True
        )
        if tried.returncode:
            raise Unavailable(f"ip link add {what}: {tried.stderr.strip()}")


class Lan:
    """Moves this process, which must have one thread, into a new network with so many hosts."""

    def __init__(self, hosts: int) -> None:
        check()
        _done(ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK))
        _ip("link set lo up", "link add switch type bridge", "link set switch up")
        _ip(f"addr add {CLIENTS}/24 dev switch", f"addr add {DATABASE}/24 dev switch")
        self._holders: list[subprocess.Popen[bytes]] = []
        for host in range(hosts):
            holder = subprocess.Popen(
                ["unshare", "-n", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._holders.append(holder)
            assert holder.stdout is not None
            holder.stdout.readline()  # it is in its network
            _ip(f"link add port{host} type veth peer name link{host}")
            _ip(f"link set link{host} netns {holder.pid}", f"link set port{host} master switch up")
            self._within(host, f"addr add {self.address(host)}/24 dev link{host}")
            self._within(host, f"link set link{host} up", "link set lo up")

    def address(self, host: int) -> str:
        """The address of a host, the first of which is 0."""
        return f"10.77.0.{host + 1}"

    def enter(self, host: int) -> None:
        """Move this process, which must have one thread, into a host."""
        with open(f"/proc/{self._holders[host].pid}/ns/net") as network:
            _done(ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _NEW_NETWORK))

    def cut(self, host: int, towards: str = "") -> None:
        """Cut the link of a host; or only what it sends towards an address."""
        if towards:
            self._within(host, f"route add blackhole {towards}/32")
        else:
            _ip(f"link set port{host} down")

    def heal(self, host: int, towards: str = "") -> None:
        """Undo `cut`."""
        if towards:
            self._within(host, f"route del blackhole {towards}/32")
        else:
            _ip(f"link set port{host} up")

    def _within(self, host: int, *commands: str) -> None:
        _ip(*commands, within=("nsenter", "-t", str(self._holders[host].pid), "-n"))

    def close(self) -> None:
        """The hosts are gone when nobody is in them any more."""
        for holder in self._holders:
            holder.communicate()


def _ip(*commands: str, within: tuple[str, ...] = ()) -> None:
    for command in commands:
        subprocess.run([*within, "ip", *command.split()], check=True)


def _done(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise Unavailable(f"this process may not change its network: {os.strerror(number)}")
