"""One connection, to a server that answers as a test wants it to, and to ours when it refuses."""

import contextlib
import socket
import threading

import pytest

from objserver import Limits, ObjectServer, Proxy, ServerSettings, errors, expose
from objserver.codecs import Codecs
from objserver.wire import Extension, Flag, FrameParser, FrameType, encode_frame
from objserver.wire.frames import NO_CORRELATION

WAIT_S = 10
CODECS = Codecs(Limits())
NATIVE, SERPENT = CODECS.native, CODECS.serpent
RESULT = FrameType.RESULT


@contextlib.contextmanager
def scripted(answer):
    """The URI of a server that greets as ours do; then `answer(request)` gives the bytes of each reply."""

    def serve():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(WAIT_S)
                parser = FrameParser(Limits())
                with contextlib.suppress(ConnectionError):
                    while data := sock.recv(10_000):
                        for frame in parser.receive_data(data):
                            if not frame.flags & Flag.ONEWAY:
                                sock.sendall((answer if frame.type == FrameType.INVOKE else greeting)(frame))

    def greeting(frame):
        meta = {"methods": ["f"], "oneway": [], "attrs": []}
        data = {"handshake": "hello", "meta": meta, "objserver": Extension(frame_size_max=0).to_data()}
        codec = CODECS.get(frame.serializer_id)
        return encode_frame(FrameType.CONNECT_OK, codec.serializer_id, 0, frame.sequence, codec.encode(data))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"PYRO:x@127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(WAIT_S)
    assert not thread.is_alive()


def fine(request):
    return encode_frame(RESULT, NATIVE.serializer_id, 0, request.sequence, NATIVE.encode("fine"))


def pool_of(proxy):
    return proxy._objserver_stub.pool


# -- what a server says when it cannot read a request --------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "sequence"),
    [(SERPENT, lambda s: 0), (NATIVE, lambda s: 0), (SERPENT, lambda s: s)],
    ids=["as the server does", "in our serializer", "number known, serializer not"],
)
def test_a_refusal_is_raised_and_ends_the_connection(codec, sequence):
    refusals = [errors.ProtocolError("the frame header is damaged")]

    def answer(request):
        if not refusals:
            return fine(request)
        payload = codec.encode(refusals.pop())
        return encode_frame(RESULT, codec.serializer_id, Flag.EXCEPTION, sequence(request.sequence), payload)

    with scripted(answer) as uri, Proxy(uri, timeout_s=WAIT_S) as proxy:
        method = proxy.f
        with pytest.raises(Exception, match=r"^the frame header is damaged$"):
            method()
        assert not pool_of(proxy).idle
        assert method() == "fine"


def test_a_refusal_that_is_only_a_sentence_is_raised():
    def answer(request):
        return encode_frame(RESULT, SERPENT.serializer_id, Flag.EXCEPTION, 0, SERPENT.encode("go away"))

    with scripted(answer) as uri, Proxy(uri, timeout_s=WAIT_S) as proxy:
        with pytest.raises(errors.RemoteError, match=r"^go away$"):
            proxy.f()


@pytest.mark.parametrize("flags", [0, Flag.EXCEPTION])
def test_the_answer_to_another_request_is_out_of_step(flags):
    def answer(request):
        return encode_frame(RESULT, NATIVE.serializer_id, flags, request.sequence + 1, NATIVE.encode("late"))

    with scripted(answer) as uri, Proxy(uri, timeout_s=WAIT_S) as proxy:
        with pytest.raises(errors.ProtocolError, match="out of step"):
            proxy.f()
        assert not pool_of(proxy).idle


def test_no_request_has_the_number_of_refusals():
    seen = []

    def answer(request):
        seen.append(request.sequence)
        return fine(request)

    with scripted(answer) as uri, Proxy(uri, timeout_s=WAIT_S) as proxy:
        method = proxy.f
        pool_of(proxy).idle[0]._sequence = 0xFFFE
        method()
        method()
    assert seen == [0xFFFF, 1]


@expose
class Echo:
    def echo(self, value):
        return value


@pytest.fixture
def server():
    with ObjectServer(settings=ServerSettings(limits=Limits(frame_size_max=2000))) as server:
        server.register(Echo, "Echo")
        yield server


def make_proxy(server, **options):
    return Proxy(f"PYRO:Echo@{server.address}", timeout_s=WAIT_S, **options)


def test_the_sentence_of_our_server_arrives(server):
    annotations = {f"A{n:03}": b"" for n in range(65)}
    with make_proxy(server) as proxy:
        with pytest.raises(errors.pyro5.MessageTooLargeError, match="more than 64 annotations"):
            proxy.calling(annotations=annotations).echo(1)
        assert proxy.echo(2) == 2


# -- requests that are not sent ------------------------------------------------------------------------


def test_the_size_that_counts_is_that_of_the_whole_frame(server):
    annotations = {"NOTE": b"n" * 300}
    with make_proxy(server) as proxy:
        view = proxy.calling(annotations=annotations, timeout_s=None)  # so that no deadline travels
        rest = len(NATIVE.encode_call("Echo", "echo", ("x" * 1000,), {})) - 1000 + 40 + 8 + 300
        proxy.echo(1)
        (connection,) = pool_of(proxy).idle
        assert len(view.echo("x" * (2000 - rest))) == 2000 - rest
        for more in (1, 40, 41, 10_000):
            with pytest.raises(errors.MessageTooLarge, match="accepts 2000") as caught:
                view.echo("x" * (2000 - rest + more))
            assert caught.value.limit == "frame_size_max"
        assert list(pool_of(proxy).idle) == [connection]
        assert proxy.echo(1) == 1
    assert server.statistics()["refused"] == 0


def test_the_name_of_an_annotation_is_checked_and_the_connection_stays(server):
    with make_proxy(server) as proxy:
        proxy.echo(1)
        (connection,) = pool_of(proxy).idle
        with pytest.raises(errors.ProtocolError, match="'toolong' is not four"):
            proxy.calling(annotations={"toolong": b""}).echo(1)
        assert list(pool_of(proxy).idle) == [connection]
        assert proxy.echo(1) == 1


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack"])
def test_after_a_request_too_large_for_the_server_the_next_call_succeeds(server, serializer):
    """A stock conversation does not tell the limit; the server closes after its answer."""
    with make_proxy(server, serializer=serializer) as proxy:
        for n in range(3):
            with pytest.raises(errors.pyro5.MessageTooLargeError, match="frame_size_max"):
                proxy.echo("x" * 3000)
            assert proxy.echo(n) == n


# -- connections that break ----------------------------------------------------------------------------


def call(connection, codec=NATIVE):
    payload = codec.encode_call("x", "f", (), {})
    return connection.call(codec, payload, 0, None, NO_CORRELATION, WAIT_S)


def test_a_request_that_was_not_sent_whole_was_certainly_not_executed():
    with scripted(fine) as uri, Proxy(uri, timeout_s=WAIT_S) as proxy:
        connection = pool_of(proxy).take(WAIT_S)
        assert connection.is_open
        connection._sock.shutdown(socket.SHUT_WR)  # from now on the kernel takes no byte
        with pytest.raises(errors.ConnectFailed, match="before the request was sent: Broken pipe"):
            call(connection)
        assert not connection.is_open


def test_a_reply_that_does_not_come_leaves_the_outcome_unknown():
    with scripted(lambda request: b"") as uri, Proxy(uri, timeout_s=WAIT_S) as proxy:
        connection = pool_of(proxy).take(WAIT_S)
        connection._sock.shutdown(socket.SHUT_RD)
        with pytest.raises(errors.ConnectionLost, match="before the reply came"):
            call(connection)
        assert not connection.is_open
