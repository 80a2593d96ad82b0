"""TLS over a socket, with threads and kernels that take only a part: compiled, and in Python."""

import contextlib
import gc
import importlib.util
import os
import pathlib
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
import weakref

import pytest

from objserver.security import ClientTLS, ServerTLS, channel

WAIT_S = 10
RECEIVE_1_MS = (0).to_bytes(8, "little") + (1000).to_bytes(8, "little")


def pure_channel():
    """The module once more, as it is where nothing has been compiled."""
    spec = importlib.util.spec_from_file_location("pure_channel", channel.__file__)
    made = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBJSERVER_PURE", "1")
        spec.loader.exec_module(made)
    return made


@pytest.fixture(params=["compiled", "pure"])
def module(request):
    if request.param == "pure":
        return pure_channel()
    if channel.records is None:
        pytest.skip("this run is without the compiled part")
    return channel


@pytest.fixture
def TLSSocket(module):
    return module.TLSSocket


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
def ends(TLSSocket, contexts, pair):
    """An established server's end and a client's."""
    server, client = TLSSocket(pair[0], contexts[0]), TLSSocket(pair[1], contexts[1], "localhost")
    shaken(server, client)
    yield server, client
    server.close()
    client.close()


def shaken(server, client):
    shaking = threading.Thread(target=client.shake_as_client, args=(WAIT_S,))
    shaking.start()
    while not server.shake():
        pass
    shaking.join(WAIT_S)
    assert client.established


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


def test_the_handshake_takes_a_hello_of_any_pieces(TLSSocket, contexts, pair):
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


def test_a_handshake_never_waits(TLSSocket, contexts, pair):
    assert TLSSocket(pair[0], contexts[0]).shake() is False


@pytest.mark.parametrize("hello", [b"PYRO", b"GET / HTTP/1.0\r\n", b"\x00"])
def test_plain_bytes_are_told_from_a_hello(module, contexts, pair, hello):
    pair[1].sendall(hello)
    with pytest.raises(module.PlainBytes) as found:
        module.TLSSocket(pair[0], contexts[0]).shake()
    assert found.value.data == hello


def test_a_peer_that_goes_away_during_the_handshake_is_an_error(TLSSocket, contexts, pair):
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


def test_a_client_keeps_the_kernels_time(TLSSocket, contexts, pair):
    client = TLSSocket(pair[1], contexts[1], "localhost")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, RECEIVE_1_MS)
    with pytest.raises(BlockingIOError):
        client.shake_as_client(WAIT_S)


def test_a_client_keeps_the_kernels_time_after_the_handshake(ends):
    server, client = ends
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, RECEIVE_1_MS)
    with pytest.raises(BlockingIOError):
        client.recv(8192)
    server.send(b"late")
    assert client.recv(8192) == b"late"


# -- one record, and what is not one -------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8170, 8192, 16_383, 16_384, 16_385, 100_000])
def test_a_message_of_any_size_arrives_whole_both_ways(ends, size):
    server, client = ends
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    client.sendall(data)
    assert received(server, size) == data
    assert server.send(memoryview(data)) == size
    assert received(client, size) == data
    with pytest.raises(BlockingIOError):
        server.recv(8192)


def test_nothing_is_sent_as_nothing(ends):
    server, client = ends
    assert server.send(b"") == 0
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, RECEIVE_1_MS)
    with pytest.raises(BlockingIOError):
        client.recv(8192)


def test_a_record_that_comes_byte_by_byte_is_one_message(ends, contexts, pair):
    server, client = ends
    relay, far = socket.socketpair()
    with relay, far:
        client._sendall, client._fd = far.sendall, -1
        client.sendall(b"in drops")
        record = relay.recv(8192)
    for byte in record[:-1]:
        pair[1].sendall(bytes([byte]))
        with pytest.raises(BlockingIOError):
            server.recv(8192)
    pair[1].sendall(record[-1:])
    assert server.recv(8192) == b"in drops"


def test_a_record_and_half_of_another_are_one_message_and_the_next(ends, pair):
    server, client = ends
    relay, far = socket.socketpair()
    with relay, far:
        client._sendall, client._fd = far.sendall, -1
        client.sendall(b"one")
        client.sendall(b"two")
        records = relay.recv(8192)
    pair[1].sendall(records[:-1])
    assert server.recv(8192) == b"one"
    pair[1].sendall(records[-1:])
    assert server.recv(8192) == b"two"


def test_tickets_of_a_server_that_sends_them_are_no_message(TLSSocket, lab, contexts, pair):
    giving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    giving.load_cert_chain(lab / "server.pem", lab / "server.key")
    server, client = TLSSocket(pair[0], giving), TLSSocket(pair[1], contexts[1], "localhost")
    shaken(server, client)
    client.sendall(b"request")
    assert received(server, 7) == b"request"
    server.send(b"reply")
    assert client.recv(8192) == b"reply"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="nobody here who asks for new keys")
def test_new_keys_are_no_message_and_are_answered(TLSSocket, contexts):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        sock, _ = listener.accept()
    with peer, contextlib.closing(TLSSocket(sock, contexts[0])) as server:

        def says(text):
            peer.stdin.write(text)
            peer.stdin.flush()
            select.select([sock], [], [], WAIT_S)

        sock.setblocking(False)
        while not server.shake():
            select.select([sock], [], [], WAIT_S)
        for _ in range(2):
            says(b"before\n")
            assert received(server, 7) == b"before\n"
            says(b"K\n")  # its command for new keys of both
            with pytest.raises(BlockingIOError):
                server.recv(8192)
            assert not server.owes
            says(b"after\n")
            assert received(server, 6) == b"after\n"
            assert server.send(b"heard\n") == 6
            assert b"heard\n" in iter(peer.stdout.readline, b"")
        peer.kill()


def test_what_tls_has_to_say_itself_goes_before_the_next_message(ends):
    """The kernel did not take it at once."""
    server, client = ends
    client._write(b"first")
    client._owed = client._encrypted()
    client.sendall(b"second")
    assert not client.owes
    assert received(server, 11) == b"firstsecond"


def test_a_reply_that_the_kernel_takes_a_part_of_is_not_encrypted_twice(ends, pair):
    server, client = ends
    taken = []
    server._fd, server._send = -1, lambda out: taken.append(out[:5]) or 5
    assert server.send(b"reply") == 0
    assert server.owes
    pair[0].sendall(taken[0])
    assert server.send(b"reply") == 5
    assert client.recv(8192) == b"reply"


def test_a_socket_that_is_none_of_the_kernels_is_asked_itself(TLSSocket, contexts, pair):
    class Asked:
        family = socket.AF_UNIX

        def __init__(self, sock):
            self.asked, self.sock = [], sock

        def __getattr__(self, name):
            self.asked.append(name)
            return getattr(self.sock, name)

    server = TLSSocket(Asked(pair[0]), contexts[0])
    client = TLSSocket(Asked(pair[1]), contexts[1], "localhost")
    assert (server._fd, client._fd) == (-1, -1)
    shaken(server, client)
    client.sendall(b"request")
    assert received(server, 7) == b"request"
    server.send(b"reply")
    assert client.recv(8192) == b"reply"


def test_a_socket_that_was_closed_is_not_mistaken_for_a_new_one_of_its_number(ends):
    _, client = ends
    number = client.fileno()
    client.close()
    new, other = socket.socketpair()
    with new, other:
        if number not in (new.fileno(), other.fileno()):
            pytest.skip("the number was given to something else")
        other.setblocking(False)
        new.setblocking(False)
        for use in (lambda: client.sendall(b"x"), lambda: client.send(b"x"), lambda: client.recv(8192)):
            with pytest.raises(OSError, match=r"Bad file descriptor|protocol is shutdown"):
                use()
        for sock in (new, other):
            with pytest.raises(BlockingIOError):
                sock.recv(1)


@pytest.fixture
def alarm():
    """Calls what it is given in the middle of what the main thread waits for."""

    def ring(handler):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)

    before = signal.getsignal(signal.SIGALRM)
    yield ring
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_ends_no_wait(ends, alarm):
    server, client = ends

    def answer(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        server.send(b"answer")

    alarm(answer)
    assert client.recv(8192) == b"answer"


def test_a_signal_whose_handler_raises_ends_the_wait(ends, alarm):
    server, client = ends

    def interrupt(*_):
        raise KeyboardInterrupt

    alarm(interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.recv(8192)
    signal.setitimer(signal.ITIMER_REAL, 0)
    server.send(b"later")
    assert client.recv(8192) == b"later"


def test_one_thread_at_a_time_has_its_turn_and_a_signal_reaches_who_waits(ends, alarm):
    _, client = ends

    def interrupt(*_):
        raise KeyboardInterrupt

    client._acquire()
    assert client._acquire(False) is False
    alarm(interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.sendall(b"x")
    signal.setitimer(signal.ITIMER_REAL, 0)
    client._release()
    assert client._acquire(False) is True
    client._release()


def test_an_error_ends_the_turn(ends):
    server, client = ends
    server._read = server._write = client._write = lambda *_: 1 / 0
    client.raw.sendall(b"x")
    for use in (lambda: server.recv(8192), lambda: server.send(b"x"), lambda: client.sendall(b"x")):
        with pytest.raises(ZeroDivisionError):
            use()
    for end in ends:
        assert end._acquire(False) is True
        end._release()


# -- what is compiled ----------------------------------------------------------------------------------


def test_it_is_compiled_where_it_can_be():
    header = pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h"
    compiler = shutil.which(os.environ.get("CC", "cc")) and header.exists()
    wanted = compiler and not os.environ.get("OBJSERVER_PURE")
    assert channel.records is not None or not wanted


@pytest.mark.parametrize(
    "use",
    [
        lambda end: end.recv(),
        lambda end: end.recv("8"),
        lambda end: end.recv(1, 2, 3),
        lambda end: end.send(),
        lambda end: end.send(5),
        lambda end: end.sendall(5),
    ],
)
def test_wrong_arguments_are_refused(ends, use):
    with pytest.raises(TypeError):
        use(ends[0])


@pytest.mark.skipif(channel.records is None, reason="this run is without the compiled part")
def test_what_was_not_set_up_is_an_error_and_no_crash():
    bare = channel.records.Records()
    uses = (lambda: bare.recv(1), lambda: bare.send(b"x"), lambda: bare.sendall(b"x"))
    for use in uses:
        with pytest.raises(RuntimeError):
            use()
    with pytest.raises(TypeError):
        bare.recv(1, 1)
    bare._recv, bare._write, bare._encrypted = str, len, int
    for use in uses:
        with pytest.raises(TypeError):
            use()
    del bare._owed
    for use in uses[1:]:
        with pytest.raises(AttributeError):
            use()


def test_what_it_holds_is_given_back(TLSSocket, contexts, pair):
    server, client = TLSSocket(pair[0], contexts[0]), TLSSocket(pair[1], contexts[1], "localhost")
    shaken(server, client)
    data = bytes(100)
    before = sys.getrefcount(data)
    for _ in range(100):
        client.sendall(data)
        server.send(data)
        client.recv(8192)
        received(server, 100)
    assert sys.getrefcount(data) == before
    gone = [weakref.ref(server), weakref.ref(client)]
    del server, client
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
