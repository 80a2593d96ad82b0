"""A network of one's own; in a process of its own, since whoever makes it leaves the machine's."""

import json
import subprocess
import sys

import pytest

from objserver.testing import lan

CODE = """
import json, os, signal, socket
from objserver.testing.lan import CLIENTS, Lan

lan = Lan(2)
inside, outside = socket.socketpair()
child = os.fork()
if not child:
    lan.enter(1)
    listener = socket.create_server((lan.address(1), 7000))
    inside.sendall(b"!")
    while True:
        connection, _ = listener.accept()
        connection.sendall(connection.recv(1))
outside.recv(1)

def answers():
    try:
        with socket.create_connection((lan.address(1), 7000), 0.2) as connection:
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
    except TimeoutError:
        return False

found = [answers()]
for towards in ("", CLIENTS):
    lan.cut(1, towards)
    found.append(answers())
    lan.heal(1, towards)
    while not answers():  # whose address it is has to be asked for again
        pass
os.kill(child, signal.SIGKILL)
print(json.dumps([found, [name for _, name in socket.if_nameindex()]]))
"""


def test_a_link_can_be_cut_and_healed_and_the_machine_has_no_part_in_it():
    try:
        lan.check()
    except lan.Unavailable as reason:
        pytest.skip(f"no networks of our own: {reason}")
    ran = subprocess.run([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, timeout=60)
    found, interfaces = json.loads(ran.stdout)
    assert found == [True, False, False]
    assert set(interfaces) == {"lo", "switch", "port0", "port1"}


def test_it_says_why_there_can_be_none(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(lan.Unavailable, match="take root"):
        lan.check()
