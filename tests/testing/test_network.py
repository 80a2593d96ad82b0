"""The network in memory, as two processes see it."""

import errno
import select
import socket
import struct

import pytest

from objserver import errors
from objserver.references import Location
from objserver.testing.network import BUFFER_MAX, Weather
from objserver.testing.world import START_S, World

HERE, THERE = "10.0.1.1", "10.0.0.1"
AT = Location(THERE, 9000)
ALWAYS = 1.0


class House:
    """A server that listens, and a client.  What they do runs as threads, until nothing happens any more."""

    def __init__(self):
        self.world = World(1)
        self.network = self.world.network
        self.server = self.world.process("server", THERE)
        self.client = self.world.process("client", HERE)
        self.listener = self.server.listen(AT, True)
        self.seen = []

    def run(self, *, server=None, client=None, seconds=1000.0):
        """The server's function gets the accepted socket, the client's the connected one."""
        if server is not None:
            self.server.start(lambda: server(self.accept()), "server")
        if client is not None:
            self.client.start(lambda: client(self.client.connect(AT, 5.0)), "client")
        self.world.run(self.world.now + seconds)
        assert self.world.failures == []
        return self.seen

    def accept(self):
        epoll = self.server.epoll()
        epoll.register(self.listener.fileno(), select.EPOLLIN)
        epoll.poll(None, 1)
        sock, address = self.listener.accept()
        assert address[0] == HERE
        return sock


@pytest.fixture
def house():
    house = House()
    with house.world.in_place():
        yield house


def everything(sock):
    parts = []
    while part := sock.recv(1000):
        parts.append(part)
    return b"".join(parts)


def test_bytes_arrive_in_order_and_once(house):
    house.network.weather = Weather(split=0.5, slow=0.3)
    sent = bytes(range(256)) * 40

    def client(sock):
        for at in range(0, len(sent), 512):
            sock.sendall(sent[at : at + 512])
        sock.shutdown(socket.SHUT_WR)
        house.seen.append(sock.recv(10))

    def server(sock):
        house.seen.append(everything(sock) == sent)
        sock.sendall(b"thanks")

    assert house.run(server=server, client=client) == [True, b"thanks"]


def test_a_message_takes_its_time(house):
    house.network.weather = Weather(latency_s=1.0, slow=0.0)

    def server(sock):
        sock.recv(1)
        house.seen.append(house.world.now - START_S)

    house.run(server=server, client=lambda sock: sock.sendall(b"x"))
    assert 0.6 <= house.seen[0] <= 5.5  # a trip there and back, and one there


def test_who_sends_more_than_is_read_waits(house):
    def client(sock):
        sock.sendall(b"x" * (3 * BUFFER_MAX))
        house.seen.append(("sent", house.world.now - START_S > 60))

    def server(sock):
        house.server.sleep(60)
        size = 0
        while size < 3 * BUFFER_MAX:
            size += len(sock.recv(BUFFER_MAX))

    assert house.run(server=server, client=client) == [("sent", True)]


def test_a_socket_that_does_not_block_says_so(house):
    def client(sock):
        sock.setblocking(False)
        for call in (lambda: sock.recv(1), lambda: sock.recv(1, socket.MSG_PEEK)):
            with pytest.raises(BlockingIOError):
                call()
        assert sock.send(b"x" * (2 * BUFFER_MAX)) == BUFFER_MAX
        with pytest.raises(BlockingIOError):
            sock.send(b"x")
        house.seen.append("done")

    assert house.run(client=client) == ["done"]


def test_a_timeout_of_the_kernel_is_kept(house):
    def client(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 2, 500_000))
        began = house.world.now
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        house.seen.append(round(house.world.now - began, 2))

    assert house.run(client=client) == [2.5]


def test_nobody_listens(house):
    house.listener.close()

    def connect():
        with pytest.raises(ConnectionRefusedError):
            house.client.connect(AT, 5.0)
        house.seen.append("refused")

    house.client.start(connect, "c")
    assert house.run() == ["refused"]


def test_one_address_for_one_listener(house):
    with pytest.raises(errors.ListenFailed) as caught:
        house.client.listen(AT, True)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_partition_holds_back_one_direction_until_it_heals(house):
    def client(sock):
        house.network.cut(HERE, THERE, 30.0)
        sock.sendall(b"late")
        house.seen.append(sock.recv(10))

    def server(sock):
        sock.sendall(b"in time")
        house.seen.append((sock.recv(10), house.world.now - START_S > 30))

    assert house.run(server=server, client=client) == [b"in time", (b"late", True)]


def test_connecting_through_a_partition_takes_as_long_as_it_may(house):
    house.network.cut(HERE, THERE, 30.0)

    def connect():
        with pytest.raises(TimeoutError):
            house.client.connect(AT, 5.0)
        house.seen.append(round(house.world.now - START_S))

    house.client.start(connect, "c")
    assert house.run() == [5]


def test_a_broken_connection_is_reset_at_both_ends(house):
    house.network.weather = Weather(broken=ALWAYS, split=0.0)

    def client(sock):
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        house.seen.append("client")

    def server(sock):
        with pytest.raises(ConnectionResetError):
            everything(sock)
        house.seen.append("server")

    assert sorted(house.run(server=server, client=client)) == ["client", "server"]


def test_on_a_hung_connection_nothing_arrives(house):
    house.network.weather = Weather(hung=ALWAYS, split=0.0, broken=0.0)

    def client(sock):
        sock.sendall(b"x")
        sock.settimeout(100.0)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        house.seen.append("nothing")

    assert house.run(server=lambda sock: sock.recv(1), client=client) == ["nothing"]


def test_a_crash_ends_the_connections_of_a_process(house):
    def client(sock):
        house.seen.append(sock.recv(10))

    def server(sock):
        house.server.crash()

    assert house.run(server=server, client=client) == [b""]
    assert (THERE, 9000) not in house.network.listeners


def test_a_crash_with_unread_bytes_resets(house):
    def client(sock):
        sock.sendall(b"unread")
        house.client.sleep(5)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        house.seen.append("reset")

    def server(sock):
        house.server.sleep(1)
        house.server.crash()

    assert house.run(server=server, client=client) == ["reset"]


def test_a_machine_that_is_gone_says_nothing_until_it_is_back(house):
    def client(sock):
        sock.settimeout(0.1)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.settimeout(None)
        sock.sendall(b"are you there?")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        house.seen.append(house.world.now - START_S > 0.5)

    def server(sock):
        house.server.crash(silently=True)

    assert house.run(server=server, client=client) == [True]


def test_closing_with_unread_bytes_resets_the_peer(house):
    def server(sock):
        house.server.sleep(1)
        sock.close()
        sock.close()
        assert sock.fileno() == -1

    def client(sock):
        sock.sendall(b"unread")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        with pytest.raises(ConnectionResetError):
            sock.send(b"x")
        house.seen.append("reset")

    assert house.run(server=server, client=client) == ["reset"]


def test_an_epoll_tells_what_is_ready_as_long_as_it_is(house):
    def client(sock):
        sock.sendall(b"abc")
        house.client.sleep(10)
        sock.close()

    def server(sock):
        epoll, number = house.server.epoll(), sock.fileno()
        epoll.register(number, select.EPOLLIN)
        for _ in range(2):
            house.seen.append(epoll.poll(None, 9) == [(number, select.EPOLLIN)])
        epoll.modify(number, select.EPOLLOUT)
        house.seen.append(epoll.poll(0, 9) == [(number, select.EPOLLOUT)])
        epoll.modify(number, 0)
        house.seen.append(epoll.poll(0, 9) == [])
        assert sock.recv(9) == b"abc"
        epoll.modify(number, select.EPOLLIN)
        house.seen.append(epoll.poll(0, 9) == [])
        epoll.poll(None, 9)
        house.seen.append(sock.recv(9) == b"")
        epoll.unregister(number)
        with pytest.raises(OSError, match="not registered"):
            epoll.unregister(number)

    assert house.run(server=server, client=client) == [True] * 6


def test_a_bell_wakes_who_polls(house):
    bell, epoll = house.server.Bell(), house.server.epoll()
    epoll.register(bell.fileno(), select.EPOLLIN)

    def poll():
        house.seen.append(epoll.poll(None, 9))
        bell.silence()
        house.seen.append(epoll.poll(0, 9))

    house.server.start(poll, "poll")
    house.world.at(5.0, bell.ring)
    assert house.run() == [[(bell.fileno(), select.EPOLLIN)], []]
