"""Our Proxy against a stock Pyro5 daemon and against our server: the same calls, the same outcome."""

import contextlib
import gc
import math
import socket
import threading
import typing
import uuid
import warnings
import weakref

import Pyro5.api
import pytest
from Pyro5.api import SerializedBlob, current_context

from objserver import (
    ObjectServer,
    PerClient,
    Proxy,
    Reentrant,
    Reference,
    Serial,
    connect,
    errors,
    expose,
    invoke,
)
from objserver.client.proxy import ProxyOptions

WAIT_S = 10
SERIALIZERS = [None, "serpent", "json", "msgpack"]


class Child:
    @Pyro5.api.expose
    def name(self):
        return "child"


@Pyro5.api.behavior(instance_mode="single")
class Bank:
    """Decorated with Pyro5's decorators, so that both kinds of server can host it."""

    def __init__(self):
        self.balance = 0
        self.told = threading.Event()
        self.drawn = threading.Event()
        self.items = ["a", "b", "c"]
        self.register = None

    @Pyro5.api.expose
    def add(self, amount, *, times=1):
        self.balance += amount * times
        return self.balance

    @Pyro5.api.expose
    def echo(self, value):
        return value

    @Pyro5.api.expose
    @property
    def level(self):
        return self.balance

    @level.setter
    def level(self, value):
        self.balance = value

    @Pyro5.api.expose
    @Pyro5.api.oneway
    def tell(self, value):
        self.balance = value
        self.told.set()

    @Pyro5.api.expose
    def fail(self):
        raise ValueError("no money")

    @Pyro5.api.expose
    def count(self, end):
        try:
            yield from range(end)
        finally:
            self.drawn.set()

    @Pyro5.api.expose
    def child(self):
        child = Child()
        self.register(child)
        return child

    @Pyro5.api.expose
    def context(self):
        current_context.response_annotations = {"RSPN": b"pong" + bytes(current_context.annotations["QEST"])}
        return str(current_context.correlation_id)

    @Pyro5.api.expose
    def release(self):
        return "remote release"

    @Pyro5.api.expose
    def __len__(self):
        return len(self.items)

    @Pyro5.api.expose
    def __getitem__(self, index):
        return self.items[index]

    @Pyro5.api.expose
    def __setitem__(self, index, value):
        self.items[index] = value

    @Pyro5.api.expose
    def blob(self, blob):
        return blob.info, blob.deserialized()

    @Pyro5.api.expose
    def forward(self, blob):
        """A gateway: passes on what it has not opened."""
        with Proxy(self.reference, timeout_s=WAIT_S) as onward:
            return onward.blob(blob)

    def hidden(self):
        raise AssertionError


@pytest.fixture(params=["stock", "ours"])
def bank(request):
    """A servant with its `reference`, hosted by either kind of server."""
    servant = Bank()
    if request.param == "ours":
        with ObjectServer() as server:
            servant.register = server.register
            servant.reference = str(server.register(servant, "bank"))
            yield servant
        return
    daemon = Pyro5.api.Daemon(host="127.0.0.1", port=0)
    servant.register = daemon.register
    servant.reference = str(daemon.register(servant, "bank"))
    thread = threading.Thread(target=daemon.requestLoop, daemon=True)
    thread.start()
    yield servant
    daemon.shutdown()
    thread.join(WAIT_S)
    daemon.close()
    assert not thread.is_alive()


@pytest.fixture(params=SERIALIZERS, ids=str)
def proxy(request, bank):
    with Proxy(bank.reference, serializer=request.param, timeout_s=WAIT_S) as proxy:
        yield proxy


def test_methods_take_positional_and_keyword_arguments(proxy):
    assert (proxy.add(2), proxy.add(5, times=2)) == (2, 12)


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "ü€", [], [1, [2]], {"a": {"b": None}}])
def test_values_come_back_as_they_went(proxy, value):
    assert proxy.echo(value) == value


def test_properties_are_read_and_written(proxy, bank):
    proxy.level = 7
    assert (proxy.level, bank.balance) == (7, 7)


def test_oneway_calls_return_none_and_are_executed(proxy, bank):
    assert proxy.tell(4) is None
    assert bank.told.wait(WAIT_S)


def test_batches_run_in_order_and_raise_where_a_call_failed(proxy, bank):
    with proxy.batch() as batch:
        batch.add(1)
        batch.add(2)
        batch.fail()
        batch.add(100)
    results = batch.results()
    assert [next(results), next(results)] == [1, 3]
    with pytest.raises(ValueError, match="no money"):
        next(results)
    assert bank.balance == 3


def test_a_oneway_batch_is_executed(proxy, bank):
    batch = proxy.batch()
    batch.tell(9)
    batch.send(oneway=True)
    assert bank.told.wait(WAIT_S)


def test_generators_are_drawn_item_by_item(proxy):
    assert list(proxy.count(4)) == [0, 1, 2, 3]
    assert proxy.echo(1) == 1


def test_a_closed_stream_ends_on_the_server_and_gives_its_connection_back(proxy, bank):
    with proxy.count(4) as stream:
        assert next(stream) == 0
        assert proxy.echo("beside") == "beside"
    assert bank.drawn.wait(WAIT_S)
    assert list(stream) == []
    assert proxy.echo(1) == 1


def test_exceptions_keep_class_arguments_and_traceback(proxy):
    with pytest.raises(ValueError, match="no money") as caught:
        proxy.fail()
    assert "in fail" in "".join(caught.value._pyroTraceback)


class Unheard:
    """Nobody has such a class; a stock daemon hangs up on whoever sends one."""

    def __init__(self):
        self.text = ""


def test_a_refused_argument_does_not_cost_the_next_call(bank):
    with Proxy(bank.reference, serializer="serpent", timeout_s=WAIT_S) as proxy:
        for n in range(1, 6):
            with contextlib.suppress(Pyro5.errors.SerializeError):  # ours hands it over as a dict
                proxy.echo(Unheard())
            assert proxy.add(1) == n


def test_annotations_and_correlation_ids_travel_both_ways(proxy):
    correlation_id = uuid.uuid4()
    view = proxy.calling(annotations={"QEST": b"!"}, correlation_id=correlation_id)
    assert view.context() == str(correlation_id)
    assert bytes(view.response_annotations["RSPN"]) == b"pong!"


def test_a_returned_registered_object_becomes_a_proxy(proxy):
    child = proxy.child()
    assert isinstance(child, Proxy)
    with child:
        assert child.name() == "child"


def test_containers_have_length_items_and_iteration(proxy):
    proxy[0] = "z"
    assert (len(proxy), proxy[1], list(proxy), "c" in proxy) == (3, "b", ["z", "b", "c"], True)


def test_names_that_are_not_exposed_are_refused_here_and_there(proxy):
    with pytest.raises(AttributeError):
        proxy.hidden
    with pytest.raises(AttributeError):
        proxy.balance = 3
    with pytest.raises(AttributeError):
        proxy._objserver_stub.invoke("hidden", (), {})


def test_remote_names_hidden_by_the_proxy_are_reached_with_invoke(proxy):
    assert invoke(proxy, "release") == "remote release"
    assert invoke(proxy, "level") == 0


def test_a_proxy_is_shared_by_threads(proxy):
    seen, together = [], threading.Barrier(8)

    def work(number):
        together.wait(WAIT_S)
        seen.extend(proxy.echo(number) for _ in range(20))

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(seen) == sorted(n for n in range(8) for _ in range(20))


def test_a_proxy_travels_as_an_argument(proxy, bank):
    returned = proxy.echo(proxy)
    assert isinstance(returned, Proxy)
    assert returned._objserver_reference == Reference.parse(bank.reference)
    returned.release()


def test_an_unknown_object_cannot_be_connected_to(bank):
    uri = bank.reference.replace("bank", "nobody")
    with pytest.raises((errors.ConnectFailed, errors.ObjectNotFound), match="unknown object"):
        Proxy(uri, timeout_s=WAIT_S).echo(1)


def test_compressed_replies_are_understood(proxy, monkeypatch):
    monkeypatch.setattr(Pyro5.config, "COMPRESSION", True)
    assert proxy.echo("compress me " * 1000) == "compress me " * 1000


def test_a_server_that_never_answers_is_a_failure_to_connect():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(errors.ConnectFailed):
            Proxy(f"PYRO:x@127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1).echo(1)


@pytest.mark.parametrize("options", [{"serializer": "pickle"}, {"timeout_s": 0}])
def test_unusable_options_are_refused(options):
    with pytest.raises(ValueError):
        Proxy("PYRO:x@localhost:1", **options)


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf])
def test_unusable_timeouts_are_refused_wherever_they_are_given(timeout_s):
    proxy = Proxy("PYRO:x@localhost:1", timeout_s=5)
    with pytest.raises(ValueError, match="positive"):
        Proxy("PYRO:x@localhost:1", timeout_s=timeout_s)
    with pytest.raises(ValueError, match="positive"):
        proxy.calling(timeout_s=timeout_s)
    if timeout_s:  # for Pyro5, 0 means to wait for ever
        with pytest.raises(ValueError, match="positive"):
            proxy._pyroTimeout = timeout_s
    assert proxy._pyroTimeout == 5


def test_a_view_keeps_changes_or_drops_the_timeout():
    proxy = Proxy("PYRO:x@localhost:1", timeout_s=5)
    assert proxy.calling()._pyroTimeout == 5
    assert proxy.calling(timeout_s=2)._pyroTimeout == 2
    assert proxy.calling(timeout_s=None)._pyroTimeout is None
    assert proxy.calling(timeout_s=None).calling()._pyroTimeout is None


def test_connect_has_the_options_of_proxy():
    hints = typing.get_type_hints(Proxy.__init__)
    del hints["reference"], hints["return"]
    assert typing.get_type_hints(ProxyOptions) == hints
    assert typing.get_type_hints(connect)["options"] == typing.Unpack[ProxyOptions]
    typed = connect("PYRO:x@localhost:1", Child, timeout_s=3)
    assert typed._pyroTimeout == 3


def test_a_serialized_blob_reaches_the_servant_unopened(proxy, bank):
    if proxy._objserver_stub.pool.serializer == "json":
        pytest.skip("Pyro5's SerializedBlob.deserialized() takes the keys of a json call for its values")
    assert [*proxy.blob(SerializedBlob("label", [1, {"two": 3}]))] == ["label", [1, {"two": 3}]]
    with pytest.raises(errors.SerializeError, match="only argument"):
        proxy.add(SerializedBlob("label", [1]), times=2)
    assert proxy.add(1) == 1


def test_a_serialized_blob_is_passed_on_unopened(proxy, bank):
    if proxy._objserver_stub.pool.serializer == "json":
        pytest.skip("see above")
    assert [*proxy.forward(SerializedBlob("label", [1, 2]))] == ["label", [1, 2]]


class Doorman(ObjectServer):
    def validate_handshake(self, greeting):
        if greeting != {"password": 42}:
            raise PermissionError("no entry")
        return ["welcome"]


class StockDoorman(Pyro5.api.Daemon):
    def validateHandshake(self, conn, data):
        return Doorman.validate_handshake(self, data)


@contextlib.contextmanager
def stock_daemon(daemon):
    thread = threading.Thread(target=daemon.requestLoop, daemon=True)
    thread.start()
    try:
        yield daemon
    finally:
        daemon.shutdown()
        thread.join(WAIT_S)
        daemon.close()
        assert not thread.is_alive()


@pytest.fixture(params=["stock", "ours"])
def host(request):
    """A function that starts a server of either kind, at an address of either kind."""
    with contextlib.ExitStack() as stack:

        def host(stock, ours):
            if request.param == "stock":
                return stack.enter_context(stock_daemon(stock()))
            return stack.enter_context(ours())

        yield host


def test_unix_sockets_are_connected_to(host, tmp_path):
    path = str(tmp_path / "s")
    server = host(lambda: Pyro5.api.Daemon(unixsocket=path), lambda: ObjectServer(f"./u:{path}"))
    reference = server.register(Child, "child")
    assert str(reference) == f"PYRO:child@./u:{path}"
    with Proxy(str(reference), timeout_s=WAIT_S) as proxy:
        assert proxy.name() == "child"


def test_ipv6_is_connected_to(host):
    server = host(lambda: Pyro5.api.Daemon(host="::1"), lambda: ObjectServer("[::1]:0"))
    reference = str(server.register(Child, "child"))
    assert "@[::1]:" in reference
    with Proxy(reference, timeout_s=WAIT_S) as proxy:
        assert proxy.name() == "child"


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_the_handshake_carries_data_of_the_user(host, serializer):
    server = host(StockDoorman, Doorman)
    reference = str(server.register(Child, "child"))
    with Proxy(reference, handshake={"password": 42}, serializer=serializer, timeout_s=WAIT_S) as proxy:
        assert proxy.name() == "child"
    with pytest.raises(errors.ConnectFailed, match="no entry"):
        Proxy(reference, handshake="open up", serializer=serializer, timeout_s=WAIT_S).name()


def test_what_was_not_sent_has_no_results(proxy):
    batch = proxy.batch()
    batch.add(1)
    with pytest.raises(RuntimeError, match="1 calls of this batch are not sent"):
        batch.results()
    assert [*batch()] == [1]


def test_unknown_names_come_with_a_suggestion(proxy):
    with pytest.raises(errors.MemberNotFound, match="did you mean 'level'"):
        proxy.levle
    with pytest.raises(errors.MemberNotFound, match="did you mean 'level'"):
        proxy.levle = 1


def test_names_of_stock_proxies_work_or_are_explained(proxy):
    proxy._pyroBind()
    proxy._pyroClaimOwnership()
    assert proxy._pyroTimeout == WAIT_S
    proxy._pyroTimeout = 5
    assert (proxy._pyroTimeout, proxy.add(1)) == (5, 1)
    assert str(proxy._pyroUri) == str(proxy)
    proxy._pyroRelease()
    with pytest.raises(AttributeError, match="options of Proxy"):
        proxy._pyroHandshake


def test_errors_name_what_was_called():
    go_on = threading.Event()

    class Slow:
        @Pyro5.api.expose
        def wait(self, *args):
            go_on.wait(WAIT_S)

        @Pyro5.api.expose
        def lock(self):
            return threading.Lock()

    with ObjectServer() as server:
        uri = server.register(Slow, "Slow")
        with Proxy(uri, timeout_s=0.1) as proxy, pytest.raises(errors.CallTimeout, match=r"^Slow\.wait: no"):
            proxy.wait()
        go_on.set()
        with Proxy(uri, timeout_s=WAIT_S) as proxy:
            with pytest.raises(errors.SerializeError, match=r"^an argument of Slow\.wait: .*lock"):
                proxy.wait(threading.Lock())
            with pytest.raises(errors.SerializeError, match=r"^the result of Slow\.lock: .*lock"):
                proxy.lock()


def test_an_unknown_object_is_not_found_at_our_server():
    with ObjectServer() as server, pytest.raises(errors.ObjectNotFound, match=r"^unknown object 'Nope'"):
        Proxy(f"PYRO:Nope@{server.address}", timeout_s=WAIT_S).anything()


def test_a_server_that_was_not_started_does_not_hang_its_clients(monkeypatch):
    monkeypatch.setattr("objserver.client.connection.HANDSHAKE_TIMEOUT_S", 0.1)
    server = ObjectServer()
    try:
        with pytest.raises(errors.ConnectFailed, match="has it been started"):
            Proxy(server.register(Child, "child")).name()
    finally:
        server.stop()


def test_a_dropped_proxy_closes_its_sockets_at_once(bank):
    proxy = Proxy(bank.reference, timeout_s=WAIT_S)
    gc.collect()
    gc.disable()
    try:
        assert proxy.add(1) == 1
        assert repr(proxy.add) == f"<remote method add of {bank.reference}>"
        kept = weakref.ref(proxy), weakref.ref(proxy._objserver_stub.pool.idle[0]._sock)
        del proxy
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_a_dropped_proxy_is_no_reason_for_a_warning(bank):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert Proxy(bank.reference, timeout_s=WAIT_S).add(1) == 1
        gc.collect()
    assert [str(warning.message) for warning in heard if warning.category is ResourceWarning] == []


def test_release_gives_the_next_call_a_new_session():
    @expose
    class Counter:
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n

    with ObjectServer() as server:
        uri = server.register(Counter, "Counter", activation=PerClient())
        for session, expected in ((None, 1), ("ours", 3)):
            with Proxy(uri, session=session, timeout_s=WAIT_S) as proxy:
                assert [proxy.add(), proxy.add()] == [1, 2]
                for connection in proxy._objserver_stub.pool.idle:
                    connection.close()  # nothing is left to end the session on
                proxy.release()
                assert proxy.add() == expected


@pytest.mark.parametrize(("policy", "outcome"), [(Serial(), "Deadlock"), (Reentrant(), "item")])
def test_drawing_from_a_stream_belongs_to_the_call_chain(policy, outcome):
    """Source waits for Reader, which draws from a stream of Source."""

    @expose
    class Source:
        def items(self):
            yield "item"

        def ask(self):
            try:
                return Proxy(f"PYRO:Reader@{server.address}", timeout_s=WAIT_S).draw()
            except errors.Deadlock:
                return "Deadlock"

    @expose
    class Reader:
        def open(self):
            self.stream = Proxy(f"PYRO:Source@{server.address}", timeout_s=WAIT_S).items()

        def draw(self):
            return next(self.stream)

    with ObjectServer() as server:
        server.register(Source, "Source", threading=policy)
        reader = Proxy(server.register(Reader, "Reader"), timeout_s=WAIT_S)
        source = Proxy(f"PYRO:Source@{server.address}", timeout_s=WAIT_S)
        reader.open()
        assert source.ask() == outcome
        reader.release()
        source.release()


def test_a_recursion_from_object_to_object_ends_with_a_sentence():
    @expose
    class Mirrors:
        def look(self, depth):
            with Proxy(f"PYRO:Mirrors@{server.address}", timeout_s=WAIT_S) as other:
                return other.look(depth + 1)

    with ObjectServer(workers=80) as server:
        uri = server.register(Mirrors, "Mirrors", threading=Reentrant())
        with Proxy(uri, timeout_s=WAIT_S) as proxy:
            with pytest.raises(RecursionError, match=r"^Mirrors\.look is called .* more than 64"):
                proxy.look(1)
