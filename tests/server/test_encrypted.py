"""A server over TLS: who gets in, who is told why not, and that nobody delays anybody."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import threading
import time

import pytest

from objserver import (
    AsyncProxy,
    ObjectServer,
    Proxy,
    ServerSettings,
    errors,
    expose,
    oneway,
)
from objserver.security import ALLOW_AUTHENTICATED, ClientTLS, ServerTLS, authority

WAIT_S = 10
MiB = 1 << 20


@expose
class Thing:
    def __init__(self):
        self.seen = threading.Event()

    def add(self, a, b):
        return a + b

    def echo(self, value):
        return value

    def text(self, size):
        return "x" * size

    def call_back(self, other):
        return other.add(20, 3)

    def count(self, n):
        yield from range(n)

    @oneway
    def tell(self, value):
        self.seen.set()


def server_tls(lab, **more):
    return ServerTLS(certificate=str(lab / "server.pem"), key=str(lab / "server.key"), **more)


def client_tls(lab, name=None):
    own = {} if name is None else {"certificate": str(lab / f"{name}.pem"), "key": str(lab / f"{name}.key")}
    return ClientTLS(ca=str(lab / "ca.pem"), **own)


@contextlib.contextmanager
def serving(lab, address="localhost:0", settings=None, **more):
    tls = server_tls(lab, **more)
    allowed = ALLOW_AUTHENTICATED if tls.client_ca else None
    with ObjectServer(address, tls=tls, authorization=allowed, settings=settings) as server:
        server.register(Thing(), "Thing")
        yield server


@pytest.fixture
def server(lab):
    with serving(lab) as server:
        yield server


@pytest.fixture
def mutual(lab):
    with serving(lab, client_ca=str(lab / "ca.pem")) as server:
        yield server


def uri(server):
    return f"PYRO:Thing@{server.address}"


def raw(server):
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), WAIT_S)


def read_all(sock):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return data


# -- calls ---------------------------------------------------------------------------------------------


def test_a_proxy_calls_over_tls(lab, server):
    with Proxy(uri(server), tls=client_tls(lab)) as thing:
        assert thing.add(2, 3) == 5
        assert list(thing.count(3)) == [0, 1, 2]
        assert [thing.future.add(n, 1).result(WAIT_S) for n in range(3)] == [1, 2, 3]
        thing.tell(1)


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack", "marshal"])
def test_a_proxy_that_speaks_as_a_stock_one_does_calls_over_tls(lab, serializer):
    with serving(lab, settings=ServerSettings(marshal=True)) as server:
        with Proxy(uri(server), tls=client_tls(lab), serializer=serializer) as thing:
            assert thing.add(2, 3) == 5


@pytest.mark.parametrize("size", [1, 8 * 1024, 16 * 1024 + 1, 64 * 1024, MiB, 15 * MiB])
def test_values_of_any_size_travel_both_ways(lab, server, size):
    text = "x" * size
    with Proxy(uri(server), tls=client_tls(lab)) as thing:
        assert thing.echo(text) == text
        assert thing.add(2, 3) == 5


def test_a_large_value_goes_through_shared_memory_on_one_machine(lab, server):
    with Proxy(uri(server), tls=client_tls(lab)) as thing:
        data = bytes(4 * MiB)
        assert thing.echo(data) == data
        assert server.memory.lent > 0


def test_an_async_proxy_calls_over_tls(lab, server):
    async def main():
        async with AsyncProxy(uri(server), tls=client_tls(lab)) as thing:
            assert await asyncio.gather(*(thing.add(n, 1) for n in range(500))) == list(range(1, 501))
            assert len(await thing.echo("x" * MiB)) == MiB
            return [item async for item in thing.count(50)]

    assert asyncio.run(main()) == list(range(50))


def test_the_server_calls_back_over_tls(lab, server):
    with Proxy(uri(server), tls=client_tls(lab)) as thing:
        assert thing.call_back(Thing()) == 23


def test_tls_works_over_a_unix_socket_with_the_name_that_the_client_expects(lab, tmp_path):
    tls = ClientTLS(ca=str(lab / "ca.pem"), server_name="localhost")
    with serving(lab, f"./u:{tmp_path}/socket") as server:
        with Proxy(uri(server), tls=tls) as thing:
            assert thing.add(2, 3) == 5


def test_an_idle_connection_is_used_again(lab, server):
    with Proxy(uri(server), tls=client_tls(lab)) as thing:
        for _ in range(3):
            thing.add(1, 1)
            thing._objserver_stub.pool.idle[0].last_used -= 60
        assert next(server.poller._serials) == 2


def test_a_client_that_reads_late_gets_every_reply_whole(lab, server):
    """More than the kernel holds waits in the server, encrypted and not."""
    from objserver.codecs import Codecs
    from objserver.settings import Limits
    from objserver.wire import FrameParser, FrameType, encode_frame

    codecs, parser = Codecs(Limits()), FrameParser(Limits())
    sock = client_tls(lab).context.wrap_socket(raw(server), server_hostname="localhost")
    with sock:
        hello = codecs.serpent.encode({"handshake": "hello", "object": "Thing"})
        request = codecs.serpent.encode_call("Thing", "text", (200_000,), {})
        sock.sendall(encode_frame(FrameType.CONNECT, 1, 0, 0, hello))
        for sequence in range(1, 41):
            sock.sendall(encode_frame(FrameType.INVOKE, 1, 0, sequence, request))
        frames = []
        while len(frames) < 41:
            frames += parser.receive_data(sock.recv(1000))
    assert [frame.sequence for frame in frames] == list(range(41))
    assert {codecs.serpent.decode(frame.payload) for frame in frames[1:]} == {"x" * 200_000}


def test_tls_1_2_is_spoken_too(lab, server):
    context = client_tls(lab).context
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = client_tls(lab)
    tls.__dict__["context"] = context
    with Proxy(uri(server), tls=tls) as thing:
        assert thing.echo("x" * MiB) == "x" * MiB


def test_older_tls_is_refused(lab, server):
    context = client_tls(lab).context
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with raw(server) as sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock, server_hostname="localhost")


# -- who is not let in ---------------------------------------------------------------------------------


def test_a_plain_proxy_is_told_to_use_tls(server):
    with pytest.raises(errors.ConnectFailed, match=r"speaks TLS only; connect with tls=ClientTLS"):
        Proxy(uri(server)).add(1, 1)


def test_a_plain_async_proxy_is_told_to_use_tls(server):
    async def main():
        await AsyncProxy(uri(server)).add(1, 1)

    with pytest.raises(errors.ConnectFailed, match="speaks TLS only"):
        asyncio.run(main())


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n", b"\x00" * 100, b"\x16\x03\x01\x00\x05hello"])
def test_garbage_on_a_tls_port_is_closed_at_once(lab, server, garbage):
    with raw(server) as sock:
        sock.sendall(garbage)
        begun = time.monotonic()
        read_all(sock)
        assert time.monotonic() - begun < 1.5
    with Proxy(uri(server), tls=client_tls(lab)) as thing:
        assert thing.add(1, 1) == 2


def test_a_tls_hello_on_a_plain_port_is_told_in_tls(lab):
    with ObjectServer() as server, raw(server) as sock:
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            client_tls(lab).context.wrap_socket(sock, server_hostname="localhost")


def test_a_proxy_with_tls_learns_that_the_server_has_none(lab):
    with ObjectServer() as server:
        with pytest.raises(errors.ConnectFailed, match="does the server speak TLS"):
            Proxy(uri(server), tls=client_tls(lab)).add(1, 1)


@pytest.mark.parametrize("tls", [ClientTLS(), ClientTLS(server_name="elsewhere")])
def test_a_server_that_cannot_prove_who_it_is_is_not_called(lab, server, tls):
    if tls.server_name:
        tls = ClientTLS(ca=str(lab / "ca.pem"), server_name=tls.server_name)
    with pytest.raises(errors.AuthenticationFailed, match="the certificate is not accepted"):
        Proxy(uri(server), tls=tls, timeout_s=WAIT_S).add(1, 1)

    async def main():
        await AsyncProxy(uri(server), tls=tls).add(1, 1)

    with pytest.raises(errors.AuthenticationFailed, match="the certificate is not accepted"):
        asyncio.run(main())


def test_a_silent_client_is_closed_in_time_and_delays_nobody(lab):
    with serving(lab, settings=ServerSettings(handshake_timeout_s=0.2)) as server:
        silent = [raw(server) for _ in range(50)]
        with Proxy(uri(server), tls=client_tls(lab)) as thing:
            assert thing.add(1, 1) == 2
        for sock in silent:
            assert read_all(sock) == b""
            sock.close()


def test_a_hello_that_is_damaged_anywhere_is_closed_at_once_or_in_time(lab):
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_tls(lab).context.wrap_bio(to_client, to_server, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = to_server.read()
    with serving(lab, settings=ServerSettings(handshake_timeout_s=0.5)) as server:
        socks = []
        for at in range(0, len(hello), 3):
            damaged = bytearray(hello)
            damaged[at] ^= 1 << at % 8
            sock = raw(server)
            with contextlib.suppress(OSError):
                sock.sendall(damaged)
                sock.sendall(bytes(at))
            socks.append(sock)
        with Proxy(uri(server), tls=client_tls(lab)) as thing:
            assert thing.add(1, 1) == 2
        begun = time.monotonic()
        for sock in socks:
            read_all(sock)
            sock.close()
        assert time.monotonic() - begun < WAIT_S / 2


def test_garbage_after_the_handshake_ends_the_connection_and_no_other(lab, server):
    with Proxy(uri(server), tls=client_tls(lab)) as thing, raw(server) as sock:
        with client_tls(lab).context.wrap_socket(sock, server_hostname="localhost") as tls:
            with socket.socket(fileno=tls.detach()) as below:
                below.settimeout(WAIT_S)
                below.sendall(b"\x17\x03\x03\x00\x30" + bytes(48))
                read_all(below)
        assert thing.add(1, 1) == 2


def test_half_a_handshake_is_closed_in_time(lab):
    with serving(lab, settings=ServerSettings(handshake_timeout_s=0.2)) as server, raw(server) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert read_all(sock) == b""


def test_a_client_that_shakes_hands_and_says_nothing_is_closed_in_time(lab):
    with serving(lab, settings=ServerSettings(handshake_timeout_s=0.2)) as server, raw(server) as sock:
        with client_tls(lab).context.wrap_socket(sock, server_hostname="localhost") as tls:
            assert b"no handshake came in the time allowed" in read_all(tls)


def test_one_connection_too_many_is_closed(lab):
    with serving(lab, settings=ServerSettings(connections_max=1)) as server:
        with Proxy(uri(server), tls=client_tls(lab)) as thing:
            assert thing.add(1, 1) == 2
            with raw(server) as sock:
                assert read_all(sock) == b""


def test_a_server_that_never_shakes_hands_is_given_up_in_time(lab):
    with socket.create_server(("localhost", 0)) as silent:
        silent_uri = f"PYRO:Thing@localhost:{silent.getsockname()[1]}"
        with pytest.raises(errors.ConnectFailed, match=r"did not answer the handshake in 0\.2 s"):
            Proxy(silent_uri, tls=client_tls(lab), timeout_s=0.2).add(1, 1)

        async def main():
            await AsyncProxy(silent_uri, tls=client_tls(lab), timeout_s=0.2).add(1, 1)

        with pytest.raises(errors.ConnectFailed, match=r"cannot connect to .* in 0\.2 s"):
            asyncio.run(main())


# -- certificates of clients ---------------------------------------------------------------------------


def test_the_certificate_of_a_client_says_who_calls(lab, mutual):
    with Proxy(uri(mutual), tls=client_tls(lab, "ann")) as thing:
        assert thing.add(1, 1) == 2
        (connection,) = mutual.poller.connections.values()
        assert (connection.principal.name, connection.principal.means) == ("ann", "tls")
        assert connection.principal.expires_at > time.time()


def test_a_client_without_a_certificate_is_refused(lab, mutual):
    with pytest.raises(errors.ConnectFailed, match="certificate required"):
        Proxy(uri(mutual), tls=client_tls(lab)).add(1, 1)

    async def main():
        await AsyncProxy(uri(mutual), tls=client_tls(lab)).add(1, 1)

    with pytest.raises(errors.ConnectFailed, match="certificate required"):
        asyncio.run(main())


def test_a_certificate_of_another_authority_is_refused(lab, mutual, tmp_path):
    authority.make_authority(tmp_path, "Another")
    authority.issue_client(tmp_path, "ann")
    tls = ClientTLS(
        ca=str(lab / "ca.pem"), certificate=str(tmp_path / "ann.pem"), key=str(tmp_path / "ann.key")
    )
    with pytest.raises(errors.ConnectFailed, match=r"unknown ca|closed|decrypt error"):
        Proxy(uri(mutual), tls=tls).add(1, 1)


def test_the_certificate_of_a_server_does_not_make_a_client(lab, mutual):
    with pytest.raises(errors.ConnectFailed):
        Proxy(uri(mutual), tls=client_tls(lab, "server")).add(1, 1)


def test_nobody_is_anybody_where_nobody_is_asked(lab, server):
    with Proxy(uri(server), tls=client_tls(lab, "ann")) as thing:
        assert thing.add(1, 1) == 2
        assert [connection.principal for connection in server.poller.connections.values()] == [None]


def test_a_server_with_client_certificates_may_bind_to_every_address(lab):
    with serving(lab, "0.0.0.0:0", client_ca=str(lab / "ca.pem")):
        pass
    with pytest.raises(errors.RegistrationError, match=r"authentication=\.\.\. or tls=ServerTLS"):
        ObjectServer("0.0.0.0:0", tls=server_tls(lab))


# -- reloading -----------------------------------------------------------------------------------------


def test_certificates_are_replaced_while_connections_go_on(lab, tmp_path):
    for name in ("server.pem", "server.key"):
        shutil.copy(lab / name, tmp_path)
    new = tmp_path / "new"
    authority.make_authority(new, "New")
    authority.issue_server(new, ["localhost"])
    with serving(tmp_path) as server:
        with Proxy(uri(server), tls=client_tls(lab)) as old:
            assert old.add(1, 1) == 2
            for name in ("server.pem", "server.key"):
                shutil.copy(new / name, tmp_path)
            server.reload_tls()
            assert old.add(1, 1) == 2
            with Proxy(uri(server), tls=client_tls(new)) as thing:
                assert thing.add(1, 1) == 2
            with pytest.raises(errors.AuthenticationFailed):
                Proxy(uri(server), tls=client_tls(lab)).add(1, 1)


def test_files_that_cannot_be_used_change_nothing(lab, tmp_path):
    for name in ("server.pem", "server.key"):
        shutil.copy(lab / name, tmp_path)
    with serving(tmp_path) as server:
        (tmp_path / "server.key").write_text("none")
        with pytest.raises(errors.RegistrationError, match="cannot use its TLS files"):
            server.reload_tls()
        with Proxy(uri(server), tls=client_tls(lab)) as thing:
            assert thing.add(1, 1) == 2


def test_a_server_stops_in_good_order_over_tls(lab):
    with serving(lab) as server:
        thing = Proxy(uri(server), tls=client_tls(lab))
        assert thing.add(1, 1) == 2
    assert thing._objserver_stub.pool.idle[0].is_stale()
    thing.release()
