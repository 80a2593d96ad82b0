"""TLS over a socket, with threads and kernels that take only a part."""

import socket
import ssl
import threading

import pytest

from objserver.security import ClientTLS, ServerTLS
from objserver.security.channel import PlainBytes, TLSSocket

WAIT_S = 10


@pytest.fixture
def contexts(lab):
    server = ServerTLS(certificate=str(lab / "server.pem"), key=str(lab / "server.key")).load(True).context
    return server, ClientTLS(ca=str(lab / "ca.pem")).context


@pytest.fixture
def pair():
    server, client = socket.socketpair()
    server.setblocking(False)
    yield server, client
    server.close()
    client.close()


@pytest.fixture
def ends(contexts, pair):
    """An established server's end and a client's."""
    server, client = TLSSocket(pair[0], contexts[0]), TLSSocket(pair[1], contexts[1], "localhost")
    shaking = threading.Thread(target=client.shake_as_client, args=(WAIT_S,))
    shaking.start()
    while not server.shake():
        pass
    shaking.join(WAIT_S)
    assert client.established
    yield server, client
    server.close()
    client.close()


def received(end, size):
    data = b""
    while len(data) < size:
        try:
            piece = end.recv(8192)
        except BlockingIOError:
            continue
        assert piece
        data += piece
    return data


def test_the_handshake_takes_a_hello_of_any_pieces(contexts, pair):
    bio_in, bio_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = contexts[1].wrap_bio(bio_in, bio_out, server_hostname="localhost")
    server = TLSSocket(pair[0], contexts[0])
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    for byte in bio_out.read():
        pair[1].sendall(bytes([byte]))
        assert server.shake() is False
    bio_in.write(pair[1].recv(65536))
    tls.do_handshake()
    for byte in bio_out.read():
        assert not server.established
        pair[1].sendall(bytes([byte]))
        server.shake()
    assert server.established


def test_a_handshake_never_waits(contexts, pair):
    assert TLSSocket(pair[0], contexts[0]).shake() is False


@pytest.mark.parametrize("hello", [b"PYRO", b"GET / HTTP/1.0\r\n", b"\x00"])
def test_plain_bytes_are_told_from_a_hello(contexts, pair, hello):
    pair[1].sendall(hello)
    with pytest.raises(PlainBytes) as found:
        TLSSocket(pair[0], contexts[0]).shake()
    assert found.value.data == hello


def test_a_peer_that_goes_away_during_the_handshake_is_an_error(contexts, pair):
    pair[1].close()
    with pytest.raises(ConnectionResetError):
        TLSSocket(pair[0], contexts[0]).shake()


def test_what_was_sent_is_received_both_ways(ends):
    server, client = ends
    client.sendall(b"request")
    assert received(server, 7) == b"request"
    assert server.send(b"reply") == 5
    assert client.recv(8192) == b"reply"


def test_nothing_that_can_be_decrypted_is_left_behind(ends):
    """An epoll looks at the socket only."""
    server, client = ends
    client.sendall(b"x" * 40_000)
    client.sendall(b"y")
    assert server.recv(1 << 20) == b"x" * 40_000 + b"y"
    with pytest.raises(BlockingIOError):
        server.recv(1 << 20)


def test_a_server_does_not_wait_for_a_client_that_does_not_read(ends):
    server, client = ends
    data = bytearray(range(256)) * 40_000
    sent = server.send(data)
    assert sent < len(data)
    assert server.owes
    with pytest.raises(BlockingIOError):
        server.send(memoryview(data)[sent:])
    done = threading.Event()
    got = []
    threading.Thread(target=lambda: (got.append(received(client, len(data))), done.set())).start()
    while sent < len(data):
        try:
            sent += server.send(memoryview(data)[sent:])
        except BlockingIOError:
            pass
    assert done.wait(WAIT_S)
    assert got == [bytes(data)]
    assert not server.owes


def test_one_thread_sends_while_another_receives(ends):
    server, client = ends
    size = 3_000_000
    got = []
    reader = threading.Thread(target=lambda: got.append(received(client, size)))
    writer = threading.Thread(target=client.sendall, args=(b"c" * size,))
    reader.start()
    writer.start()
    data, sent, back = b"s" * size, 0, bytearray()
    while sent < size or len(back) < size:
        try:
            sent += server.send(data[sent : sent + 100_000]) if sent < size else 0
        except BlockingIOError:
            pass
        try:
            back += server.recv(65536)
        except BlockingIOError:
            pass
    reader.join(WAIT_S)
    writer.join(WAIT_S)
    assert got == [data]
    assert back == b"c" * size


def test_the_end_is_told(ends):
    server, client = ends
    server.shutdown(socket.SHUT_WR)
    assert client.recv(8192) == b""
    client.close()
    assert server.recv(8192) == b""


def test_what_is_looked_at_stays_there(ends):
    server, client = ends
    with pytest.raises(BlockingIOError):
        client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    server.send(b"x")
    assert client.recv(1, socket.MSG_PEEK)
    assert client.recv(1) == b"x"


def test_a_changed_byte_is_an_error(ends):
    server, client = ends
    client.raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        server.recv(8192)


def test_a_client_keeps_the_kernels_time(contexts, pair):
    client = TLSSocket(pair[1], contexts[1], "localhost")
    client.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, (0).to_bytes(8, "little") + (1000).to_bytes(8, "little")
    )
    with pytest.raises(BlockingIOError):
        client.shake_as_client(WAIT_S)
