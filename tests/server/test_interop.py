"""Stock Pyro5 clients against our server, in each serializer."""

import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import Pyro5.api
import Pyro5.errors
import pytest
from Pyro5 import protocol, serializers, socketutil
from Pyro5.api import BatchProxy, SerializedBlob, current_context
from Pyro5.core import DAEMON_NAME

from objserver import ObjectServer, ServerSettings, Shared, current, expose, oneway

WAIT_S = 10


class Child:
    @expose
    def name(self):
        return "child"


class Bank:
    def __init__(self, server=None):
        self.server = server
        self.balance = 0
        self.told = threading.Event()
        self.items = ["a", "b", "c"]
        self.closed = threading.Event()

    @expose
    def add(self, amount, *, times=1):
        self.balance += amount * times
        return self.balance

    @expose
    def echo(self, value):
        return value

    @expose
    @property
    def level(self):
        return self.balance

    @level.setter
    def level(self, value):
        self.balance = value

    @expose
    @oneway
    def tell(self, value):
        self.balance = value
        self.told.set()

    @expose
    def fail(self):
        raise ValueError("no money")

    @expose
    def fail_oddly(self):
        raise type("Odd", (Exception,), {})("odd", 3)

    @expose
    def count(self, end):
        try:
            yield from range(end)
        finally:
            self.closed.set()

    @expose
    def child(self):
        child = Child()
        self.server.register(child)
        return child

    @expose
    def context(self):
        current.response_annotations["RSPN"] = b"pong" + bytes(current.annotations["QEST"])
        return str(current.correlation_id), current.object_id, current.method

    @expose
    def blob(self, blob):
        return blob.info, blob.deserialized()

    @expose
    def __len__(self):
        return len(self.items)

    @expose
    def __iter__(self):
        return iter(self.items)

    @expose
    def __getitem__(self, index):
        return self.items[index]

    def hidden(self):
        raise AssertionError

    def _private(self):
        raise AssertionError

    _private._pyroExposed = True


@pytest.fixture
def bank(server):
    servant = Bank(server)
    servant.reference = server.register(servant, "bank")
    return servant


@pytest.fixture
def proxy(bank, stock):
    return stock(bank.reference)


def test_the_handshake_brings_metadata_of_the_object(proxy):
    proxy._pyroBind()
    assert {"add", "tell", "__len__"} <= proxy._pyroMethods
    assert not {"hidden", "_private", "level"} & proxy._pyroMethods
    assert (proxy._pyroOneway, proxy._pyroAttrs) == ({"tell"}, {"level"})


def test_the_handshake_of_an_unknown_object_fails_with_a_reason(server, stock):
    with pytest.raises(Pyro5.errors.CommunicationError, match="nobody"):
        stock(f"PYRO:nobody@{server.address}")._pyroBind()


def test_a_subclass_may_refuse_and_answer_handshakes(stock):
    class Picky(ObjectServer):
        def validate_handshake(self, greeting):
            if greeting != {"pass": "word"}:
                raise ValueError("wrong password")
            return ["welcome"]

    with Picky() as server:
        reference = server.register(Bank(server))
        proxy = stock(reference)
        with pytest.raises(Pyro5.errors.CommunicationError, match="wrong password"):
            proxy._pyroBind()
        proxy._pyroHandshake = {"pass": "word"}
        answers = []
        object.__setattr__(proxy, "_pyroValidateHandshake", answers.append)
        proxy._pyroBind()
        assert answers == [["welcome"]]


def test_methods_take_positional_and_keyword_arguments(proxy):
    assert proxy.add(2) == 2
    assert proxy.add(5, times=2) == 12


@pytest.mark.parametrize("value", [None, True, -1, 2**40, 1.5, "ü€", [], [1, [2]], {"a": {"b": None}}])
def test_values_come_back_as_they_went(proxy, value):
    assert proxy.echo(value) == value


def test_properties_are_read_and_written(proxy, bank):
    proxy.level = 7
    assert (proxy.level, bank.balance) == (7, 7)


def test_oneway_calls_return_none_and_are_executed(proxy, bank):
    assert proxy.tell(4) is None
    assert bank.told.wait(WAIT_S)
    assert bank.balance == 4


def test_batches_run_in_order_and_stop_at_the_first_failure(proxy, bank):
    batch = BatchProxy(proxy)
    batch.add(1)
    batch.add(2)
    assert list(batch()) == [1, 3]
    batch.add(1)
    batch.fail()
    batch.add(100)
    results = batch()
    assert next(results) == 4
    with pytest.raises(ValueError, match="no money") as caught:
        next(results)
    assert "fail" in "".join(caught.value._pyroTraceback)
    assert bank.balance == 4


def test_a_oneway_batch_is_executed(proxy, bank):
    batch = BatchProxy(proxy)
    batch.add(1)
    batch.tell(9)
    assert batch(oneway=True) is None
    assert bank.told.wait(WAIT_S)
    assert bank.balance == 9


def test_generators_are_drawn_item_by_item(proxy, server):
    assert list(proxy.count(5)) == [0, 1, 2, 3, 4]
    assert server.statistics()["streams"] == 0


def test_a_closed_stream_ends_on_the_server(proxy, bank, server):
    stream = proxy.count(5)
    assert next(stream) == 0
    stream_id = stream.streamId
    stream.close()
    with pytest.raises(Pyro5.errors.PyroError, match="terminated"):
        proxy._pyroInvoke("get_next_stream_item", [stream_id], {}, objectId=DAEMON_NAME)
    assert server.statistics()["streams"] == 0
    assert bank.closed.wait(WAIT_S)


def test_a_stream_of_another_client_is_refused(proxy, bank, stock):
    stream = proxy.count(5)
    other = stock(bank.reference)
    with pytest.raises(Pyro5.errors.PyroError, match="terminated"):
        other._pyroInvoke("get_next_stream_item", [stream.streamId], {}, objectId=DAEMON_NAME)
    assert list(stream) == [0, 1, 2, 3, 4]


def test_a_stream_outlives_its_connection_for_the_linger(proxy, server, bank):
    stream = proxy.count(3)
    assert next(stream) == 0
    orphaned = threading.Event()
    orphan = server.adapter.streams.table.orphan

    def observed(*args):
        ended = orphan(*args)
        orphaned.set()
        return ended

    server.adapter.streams.table.orphan = observed
    proxy._pyroRelease()
    assert orphaned.wait(WAIT_S)
    proxy._pyroBind()
    assert list(stream) == [1, 2]


def test_without_linger_a_stream_ends_with_its_connection(stock):
    with ObjectServer(settings=ServerSettings(stream_linger_s=0)) as server:
        bank = Bank(server)
        proxy = stock(server.register(bank))
        stream = proxy.count(3)
        next(stream)
        proxy._pyroRelease()
        assert bank.closed.wait(WAIT_S)
        proxy._pyroBind()
        with pytest.raises(Pyro5.errors.PyroError, match="terminated"):
            next(stream)


def test_exceptions_keep_class_arguments_and_traceback(proxy):
    with pytest.raises(ValueError, match="no money") as caught:
        proxy.fail()
    assert caught.value.args == ("no money",)
    assert "in fail" in "".join(caught.value._pyroTraceback)


def test_an_exception_of_an_unknown_class_is_named_as_a_stock_daemon_names_it(proxy):
    with pytest.raises(Pyro5.errors.SerializeError, match="Odd"):
        proxy.fail_oddly()
    assert proxy.echo(1) == 1


def test_annotations_and_correlation_ids_travel_both_ways(proxy):
    current_context.annotations = {"QEST": b"!"}
    current_context.correlation_id = uuid.uuid4()
    assert list(proxy.context()) == [str(current_context.correlation_id), "bank", "context"]
    assert bytes(current_context.response_annotations["RSPN"]) == b"pong!"


def test_the_context_of_pyro5_shows_the_call_to_its_classes(server, stock):
    @Pyro5.api.expose
    class Old:
        def look(self):
            context = Pyro5.api.current_context
            context.response_annotations = {"OLDR": bytes(context.annotations["OLDQ"]) * 2}
            return str(context.correlation_id), list(context.client_sock_addr), context.seq

    proxy = stock(server.register(Old))
    proxy._pyroBind()
    current_context.annotations = {"OLDQ": b"x"}
    current_context.correlation_id = uuid.uuid4()
    correlation_id, address, sequence = proxy.look()
    assert correlation_id == str(current_context.correlation_id)
    assert tuple(address) == proxy._pyroLocalSocket
    assert sequence == proxy._pyroSeq
    assert bytes(current_context.response_annotations["OLDR"]) == b"xx"


def test_a_serialized_blob_reaches_the_servant_unopened(proxy, serializer):
    info, value = proxy.blob(SerializedBlob("label", [1, {"two": 3}]))
    assert info == "label"
    # Pyro5's own SerializedBlob.deserialized() unpacks the keys of a json call instead of its values.
    assert value == ("params" if serializer == "json" else [1, {"two": 3}])


def test_a_returned_registered_object_becomes_a_proxy(proxy, serializer):
    child = proxy.child()
    assert isinstance(child, Pyro5.api.Proxy)
    child._pyroSerializer = serializer
    with child:
        assert child.name() == "child"


def test_containers_have_length_items_and_iteration(proxy):
    assert (len(proxy), proxy[1], list(proxy)) == (3, "b", ["a", "b", "c"])
    with pytest.raises(IndexError):
        proxy[9]


def test_the_daemon_object_tells_of_the_server(server, bank, stock):
    daemon = stock(f"PYRO:{DAEMON_NAME}@{server.address}")
    assert set(daemon.registered()) == {"bank", DAEMON_NAME}
    assert daemon.ping() is None
    assert server.address in daemon.info()
    metadata = daemon.get_metadata("bank")
    assert set(metadata["attrs"]) == {"level"}
    assert set(metadata["oneway"]) == {"tell"}
    assert "add" in metadata["methods"]


def test_a_ping_message_is_answered(proxy):
    proxy._pyroBind()
    protocol.SendingMessage.ping(proxy._pyroConnection)
    assert proxy.echo(1) == 1


def test_unix_sockets_are_served_and_removed(tmp_path, stock):
    path = tmp_path / "s"
    with ObjectServer(f"./u:{path}") as server:
        proxy = stock(server.register(Bank(server), "bank"))
        assert proxy.add(1) == 1
    assert not path.exists()


def test_ipv6_is_served(stock):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no ::1 here")
    with ObjectServer("[::1]:0") as server:
        assert stock(server.register(Bank(server))).add(1) == 1


@pytest.mark.parametrize(
    ("mode", "counts"), [("percall", (1, 1, 1)), ("session", (1, 2, 1)), ("single", (1, 2, 3))]
)
def test_the_behavior_decorator_of_pyro5_keeps_its_meaning(server, stock, mode, counts):
    @Pyro5.api.expose
    @Pyro5.api.behavior(instance_mode=mode)
    class Counter:
        calls = 0

        def count(self):
            self.calls += 1
            return self.calls

    reference = server.register(Counter)
    first, second = stock(reference), stock(reference)
    assert (first.count(), first.count(), second.count()) == counts


def test_the_instance_creator_of_pyro5_makes_the_servants(server, stock):
    @Pyro5.api.behavior(instance_mode="single", instance_creator=lambda cls: cls("made"))
    class Made:
        def __init__(self, how):
            self.how = how

        @Pyro5.api.expose
        @property
        def way(self):
            return self.how

    assert stock(server.register(Made)).way == "made"


def test_compressed_requests_are_understood(proxy, monkeypatch):
    monkeypatch.setattr(Pyro5.config, "COMPRESSION", True)
    text = "compress me " * 1000
    assert proxy.echo(text) == text


@pytest.mark.parametrize("mode", ["single", "session"])
def test_falsy_servants_keep_their_state(server, stock, mode):
    @Pyro5.api.expose
    @Pyro5.api.behavior(instance_mode=mode)
    class Empty:
        calls = 0

        def __len__(self):
            return 0

        def count(self):
            self.calls += 1
            return self.calls

    proxy = stock(server.register(Empty))
    assert [proxy.count(), proxy.count(), len(proxy)] == [1, 2, 0]


def test_one_class_under_two_names_is_two_objects(server, stock):
    @expose
    class Counter:
        calls = 0

        def count(self):
            self.calls += 1
            return self.calls

    one, two = (stock(server.register(Counter, name)) for name in ("one", "two"))
    assert [one.count(), one.count(), two.count()] == [1, 2, 1]


@pytest.mark.parametrize(
    "name", ["_private", "__class__", "__init__", "hidden", "echo.__globals__", "level", "balance", ""]
)
def test_what_is_not_exposed_cannot_be_called(proxy, name):
    with pytest.raises(AttributeError):
        proxy._pyroInvoke(name, (), {})
    assert proxy.echo(1) == 1


@pytest.mark.parametrize("name", ["_private", "__dict__", "balance", "echo", "hidden"])
def test_what_is_not_exposed_cannot_be_read_or_written(proxy, bank, name):
    with pytest.raises(AttributeError):
        proxy._pyroInvoke("__getattr__", (name,), {})
    with pytest.raises(AttributeError):
        proxy._pyroInvoke("__setattr__", (name, 5), {})
    assert bank.balance == 0


def test_many_stock_connections_are_served_at_once(server, bank):
    count = 300
    together = threading.Barrier(count)

    def visit(number):
        with Pyro5.api.Proxy(str(bank.reference)) as proxy:
            proxy._pyroTimeout = 30
            proxy._pyroBind()
            together.wait(30)
            first = proxy.echo(number)
            together.wait(30)
            return first, len(server.poller.connections)

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(visit, range(count)))
    assert [number for number, _ in results] == list(range(count))
    assert max(connections for _, connections in results) == count


def test_marshal_is_refused_unless_the_server_allows_it(server, bank, stock):
    with pytest.raises(Pyro5.errors.CommunicationError):
        stock(bank.reference, "marshal").echo(1)
    with ObjectServer(settings=ServerSettings(marshal=True)) as lenient:
        proxy = stock(lenient.register(Bank(lenient)), "marshal")
        assert proxy.echo([1, {"a": (2,)}]) == [1, {"a": (2,)}]


@pytest.mark.parametrize("kind", [protocol.MSG_CONNECT, protocol.MSG_INVOKE])
def test_an_unknown_serializer_is_refused_with_a_readable_answer(bank, stock, kind):
    proxy = stock(bank.reference)
    proxy._pyroBind()
    connection = proxy._pyroConnection
    if kind == protocol.MSG_CONNECT:
        proxy._pyroRelease()
        host, port = proxy._pyroUri.host, proxy._pyroUri.port
        connection = socketutil.SocketConnection(socket.create_connection((host, port), 10), "bank")
    connection.send(protocol.SendingMessage(kind, 0, 1, 99, b"data").data)
    answer = protocol.recv_stub(connection)
    connection.close()
    text = repr(serializers.serializers_by_id[answer.serializer_id].loads(answer.data))
    assert "99" in text
    assert answer.type == (protocol.MSG_CONNECTFAIL if kind == protocol.MSG_CONNECT else protocol.MSG_RESULT)


def test_a_servant_written_for_pyro5_knows_its_daemon(server, stock):
    closed = threading.Event()

    class Resource:
        def close(self):
            closed.set()

    class Part:
        @Pyro5.api.expose
        def name(self):
            return "part"

    class Factory:
        @Pyro5.api.expose
        def make(self):
            part = Part()
            self._pyroDaemon.register(part)
            assert str(self._pyroDaemon.uriFor(part)) == f"PYRO:{part._pyroId}@{self._pyroDaemon.locationStr}"
            return part

        @Pyro5.api.expose
        def hold(self):
            self.resource = Resource()
            current_context.track_resource(self.resource)
            return self._pyroId

    with stock(server.register(Factory, "Factory", activation=Shared())) as proxy:
        with proxy.make() as part:
            assert part.name() == "part"
        assert proxy.hold() == "Factory"
    assert closed.wait(WAIT_S)


def test_a_reference_travels_to_stock_peers_as_a_uri(server):
    class Book:
        @Pyro5.api.expose
        def note(self, uri):
            return type(uri).__name__, str(uri)

    reference = server.register(Child, "child")
    daemon = Pyro5.api.Daemon(host="127.0.0.1", port=0)
    uri = daemon.register(Book)
    thread = threading.Thread(target=daemon.requestLoop, daemon=True)
    thread.start()
    try:
        for serializer in ("serpent", "json", "msgpack", "marshal"):
            with Pyro5.api.Proxy(uri) as proxy:
                proxy._pyroSerializer = serializer
                assert [*proxy.note(reference)] == ["URI", str(reference)]
    finally:
        daemon.shutdown()
        thread.join(WAIT_S)
        daemon.close()
