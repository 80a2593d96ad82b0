"""A server does not connect where a client's argument says, and `connects_to` says where its servants may."""

import socket

import ormsgpack
import pytest
from Pyro5.api import URI
from Pyro5.api import Proxy as StockProxy
from Pyro5.errors import CommunicationError

from objserver import AsyncProxy, ObjectServer, Proxy, Reference, ServerSettings, errors, expose
from objserver.codecs.native import REFERENCE
from objserver.references import Location
from objserver.server.outgoing import rule_of

REFUSED = (errors.ConnectFailed, CommunicationError)
"""To a peer that does not know our classes it is the second."""


@expose
class Echo:
    def echo(self, value):
        return value


@expose
class Errand:
    """Keeps what it is given, and calls it when told to."""

    def __init__(self):
        self.kept = []

    def keep(self, *values, **named):
        self.kept += [values, named]
        repr(self.kept), hash(str(values)), values == (1,), bool(values)

    def call(self, target):
        return target.echo(5)

    def call_what_it_gives(self, target):
        return target.echo(target).echo(6)

    def call_by_uri(self, uri):
        with Proxy(uri) as target:
            return target.echo(7)

    async def call_asynchronously(self, target):
        async with AsyncProxy(target) as proxy:
            return await proxy.echo(8)


class Trap:
    """A listening socket that nobody should connect to."""

    def __init__(self):
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.setblocking(False)
        self.location = f"127.0.0.1:{self._sock.getsockname()[1]}"

    @property
    def was_visited(self):
        try:
            self._sock.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self):
        self._sock.close()


@pytest.fixture
def trap():
    trap = Trap()
    yield trap
    trap.close()


@pytest.fixture
def elsewhere():
    """Another server, which the servants of the first are asked to call."""
    with ObjectServer() as server:
        server.register(Echo, "echo")
        yield server


def serving(**options):
    server = ObjectServer(**options)
    server.register(Errand(), "errand")
    return server.start()


def uris(place):
    for protocol in ("PYRO", "PYRONAME"):
        for name in ("x", "~x", "Pyro.NameServer"):
            yield f"{protocol}:{name}@{place}"
    yield f"PYROMETA:a,b@{place}"


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack", "marshal"])
def test_a_stock_peers_uri_and_proxy_in_an_argument_are_not_connected_to(trap, serializer):
    with serving(settings=ServerSettings(marshal=True)) as server:
        with StockProxy(f"PYRO:errand@{server.address}") as errand:
            errand._pyroSerializer, errand._pyroTimeout = serializer, 10
            for uri in uris(trap.location):
                proxy = {"__class__": "Pyro5.client.Proxy", "state": (uri, (), (), (), "hello", None)}
                errand.keep(proxy, [{"deep": proxy}], named=proxy)
                if serializer != "marshal":  # which can write none of these itself
                    with StockProxy(uri) as stock:
                        errand.keep(URI(uri), {"deep": [stock]}, ValueError("x", URI(uri)), named=stock)
            errand.keep("last")
    assert not trap.was_visited


def test_our_own_peers_references_in_an_argument_are_not_connected_to(trap):
    with serving() as server, Proxy(f"PYRO:errand@{server.address}", timeout_s=10) as errand:
        for uri in uris(trap.location):
            held = Reference.parse(uri)
            errand.keep(held, [Proxy(uri)], {"deep": (held,)}, ValueError("x", held), named={1: Proxy(uri)})
            errand.keep(uri)
        errand.keep("last")
    assert not trap.was_visited


def test_a_leased_reference_is_not_connected_to_until_it_is_used(trap):
    """Its lease was renewed at once, by a thread of the server's, wherever the reference said."""
    from objserver.client import arrival

    with serving() as server, Proxy(f"PYRO:errand@{server.address}", timeout_s=10) as errand:
        errand.keep(Reference.parse(f"PYRO:~1@{trap.location}"))
        arrival._leases[0].take(0)
        arrival._leases[0].speak(float("inf"))
        assert not trap.was_visited


def test_what_a_client_sends_before_its_greeting_is_not_connected_to(trap):
    from objserver.codecs import Codecs
    from objserver.settings import Limits

    payload = ormsgpack.packb(ormsgpack.Ext(REFERENCE, f"PYRO:~x@{trap.location}".encode()))
    assert type(Codecs(Limits()).native.decode(payload)) is Proxy
    assert not trap.was_visited


@pytest.mark.parametrize(
    "name",
    ["__array__", "__array_interface__", "__array_struct__", "__index__", "__fspath__", "__deepcopy__",
     "__length_hint__", "__conform__", "__buffer__", "__dataclass_fields__", "_ipython_display_"],
)  # fmt: skip
def test_no_protocol_of_python_is_fetched_from_a_peer(trap, name):
    """Libraries ask arguments for such names; what a peer answered would be believed, perhaps executed."""
    with pytest.raises(AttributeError):
        getattr(Proxy(f"PYRO:x@{trap.location}"), name)
    assert not trap.was_visited


# -- the rule --------------------------------------------------------------------------------------------


@pytest.fixture(params=["serpent", "json", "msgpack", None])
def caller(request):
    """Makes a proxy of the errand, in each serializer and in our own."""
    return lambda server: Proxy(f"PYRO:errand@{server.address}", serializer=request.param, timeout_s=10)


def test_without_a_rule_a_servant_may_call_what_it_is_given(elsewhere, caller):
    with serving() as server, caller(server) as errand:
        assert errand.call(Proxy(f"PYRO:echo@{elsewhere.address}")) == 5


def test_a_rule_refuses_other_places_in_words(elsewhere, trap, caller):
    with serving(connects_to=[elsewhere.address]) as server, caller(server) as errand:
        assert errand.call(Proxy(f"PYRO:echo@{elsewhere.address}")) == 5
        for uri in (*uris(trap.location), f"PYRONAME:x@{elsewhere.address},{trap.location}"):
            with pytest.raises(REFUSED, match=r"named this address in a message, and .*connects_to"):
                errand.call(Proxy(uri))
        assert not trap.was_visited


def test_a_rule_goes_with_what_an_allowed_server_returns(elsewhere, trap, caller):
    with serving(connects_to=[elsewhere.address]) as server, caller(server) as errand:
        there = Proxy(f"PYRO:echo@{elsewhere.address}")
        assert errand.call_what_it_gives(there) == 6
    with serving(connects_to=[elsewhere.address]) as server, caller(server) as errand:
        elsewhere.register(Giver(f"PYRO:x@{trap.location}"), "giver")
        with pytest.raises(REFUSED, match="connects_to"):
            errand.call_what_it_gives(Proxy(f"PYRO:giver@{elsewhere.address}"))
        assert not trap.was_visited


@expose
class Giver:
    """Echoes, but gives a proxy of its own choice where it is given an object."""

    def __init__(self, uri):
        self._uri = uri

    def echo(self, value):
        return value if isinstance(value, int) else Proxy(self._uri)


def test_a_rule_holds_for_asynchronous_use(elsewhere, trap):
    with serving(connects_to=[elsewhere.address]) as server:
        with Proxy(f"PYRO:errand@{server.address}", timeout_s=10) as errand:
            assert errand.call_asynchronously(Proxy(f"PYRO:echo@{elsewhere.address}")) == 8
            with pytest.raises(errors.ConnectFailed, match="connects_to"):
                errand.call_asynchronously(Proxy(f"PYRO:x@{trap.location}"))
    assert not trap.was_visited


def test_a_rule_is_not_for_what_the_servant_chooses_itself(elsewhere):
    with serving(connects_to=[]) as server, Proxy(f"PYRO:errand@{server.address}", timeout_s=10) as errand:
        assert errand.call_by_uri(f"PYRO:echo@{elsewhere.address}") == 7


def test_the_servers_own_objects_and_those_of_its_clients_are_always_allowed():
    with serving(connects_to=[]) as server, Proxy(f"PYRO:errand@{server.address}", timeout_s=10) as errand:
        server.register(Echo, "echo")
        assert errand.call(Proxy(f"PYRO:echo@{server.address}")) == 5
        assert errand.call(Echo()) == 5  # an object of this process, called on the connection it made


def test_a_rule_may_be_a_callable(elsewhere):
    asked = []

    def rule(location):
        asked.append(location)
        return False

    with serving(connects_to=rule) as server, Proxy(f"PYRO:errand@{server.address}") as errand:
        with pytest.raises(errors.ConnectFailed, match="connects_to"):
            errand.call(Proxy(f"PYRO:echo@{elsewhere.address}"))
    assert asked == [Location.parse(elsewhere.address)]


@pytest.mark.parametrize(
    ("pattern", "fitting", "other"),
    [
        ("db.lab", ["db.lab:1", "DB.lab:2"], ["xdb.lab:1", "lab:1", "10.0.0.1:1", "./u:/db.lab"]),
        ("db.lab:9", ["db.lab:9"], ["db.lab:90", "db.lab:1"]),
        ("*.lab", ["db.lab:1", "a.b.lab:1"], ["lab:1", "lab.evil:1", "db.lab.evil:1", "evillab:1"]),
        ("10.1.0.0/16", ["10.1.2.3:1"], ["10.2.0.1:1", "10.1.evil:1", "[::ffff:10.1.2.3]:1", "0x0a010203:1"]),
        ("10.1.2.3:9", ["10.1.2.3:9"], ["10.1.2.3:8", "10.1.2.4:9"]),
        ("[fd00::/8]", ["[fd00::1]:5"], ["[fe80::1]:5", "10.0.0.1:5"]),
        ("[::1]:9090", ["[::1]:9090"], ["[::1]:90", "localhost:9090"]),
        ("./u:/run/a", ["./u:/run/a"], ["./u:/run/ab", "localhost:1"]),
    ],
)
def test_patterns(pattern, fitting, other):
    rule = rule_of([pattern])
    assert [text for text in fitting + other if rule(Location.parse(text))] == fitting


@pytest.mark.parametrize(
    "pattern", ["", "*", "a*.lab", "10.1.*.*", "10.1.2.3/8", "x/24", "h:port", "[x]", None]
)
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="connects_to has"):
        rule_of([pattern])


def test_one_text_is_not_a_list():
    with pytest.raises(ValueError, match=r"write connects_to=\['db.lab'\]"):
        rule_of("db.lab")
