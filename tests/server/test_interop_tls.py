"""Stock Pyro5 over TLS, both ways, each in a process of its own: its TLS is the process's."""

import asyncio
import subprocess
import sys

import pytest

from objserver import AsyncProxy, ObjectServer, Proxy, errors, expose
from objserver.security import ALLOW_AUTHENTICATED, ClientTLS, ServerTLS

WAIT_S = 60
STOCK_SERVER = """
import sys, Pyro5.api
from Pyro5 import config
lab, mutual, kind = sys.argv[1:]
config.SSL = True
config.SERVERTYPE = kind
config.SSL_SERVERCERT, config.SSL_SERVERKEY = lab + "/server.pem", lab + "/server.key"
if mutual == "mutual":
    config.SSL_REQUIRECLIENTCERT, config.SSL_CACERTS = True, lab + "/ca.pem"

@Pyro5.api.expose
class Thing:
    def echo(self, value):
        return value

with Pyro5.api.Daemon(host="localhost") as daemon:
    print(daemon.register(Thing, "Thing"), flush=True)
    daemon.requestLoop()
"""
STOCK_CLIENT = """
import sys, Pyro5.api
from Pyro5 import config
lab, uri, name, handshake = sys.argv[1:]
config.SSL, config.SSL_CACERTS, config.COMMTIMEOUT = True, lab + "/ca.pem", 20
if name:
    config.SSL_CLIENTCERT, config.SSL_CLIENTKEY = f"{lab}/{name}.pem", f"{lab}/{name}.key"
with Pyro5.api.Proxy(uri) as thing:
    thing._pyroHandshake = handshake
    for serializer in ("serpent", "json", "msgpack"):
        thing._pyroSerializer = serializer
        for size in (1, 20_000, 3_000_000):
            assert thing.echo("x" * size) == "x" * size
    batch = Pyro5.api.BatchProxy(thing)
    batch.echo(1)
    batch.echo(2)
    print(list(batch()), list(thing.count(3)), thing.who())
"""


@pytest.fixture(params=[("plain", "thread"), ("mutual", "thread"), ("plain", "multiplex")])
def stock_server(lab, request):
    process = subprocess.Popen(
        [sys.executable, "-c", STOCK_SERVER, str(lab), *request.param], stdout=subprocess.PIPE, text=True
    )
    yield process.stdout.readline().strip(), request.param[0] == "mutual"
    process.kill()
    process.communicate()


def test_our_proxies_call_a_stock_server(lab, stock_server):
    uri, mutual = stock_server
    own = {"certificate": str(lab / "ann.pem"), "key": str(lab / "ann.key")} if mutual else {}
    tls = ClientTLS(ca=str(lab / "ca.pem"), **own)
    with Proxy(uri, tls=tls, timeout_s=WAIT_S) as thing:
        for size in (1, 20_000, 3_000_000):
            assert thing.echo("x" * size) == "x" * size

    async def main():
        async with AsyncProxy(uri, tls=tls) as thing:
            return await asyncio.gather(*(thing.echo(n) for n in range(20)))

    assert asyncio.run(main()) == list(range(20))
    if mutual:
        # The reason may be lost: a stock server resets the connection.
        with pytest.raises(errors.ConnectFailed, match=r"certificate required|closed the connection"):
            Proxy(uri, tls=ClientTLS(ca=str(lab / "ca.pem"))).echo(1)


class Thing:
    def __init__(self):
        self.server = None

    @expose
    def echo(self, value):
        return value

    @expose
    def count(self, n):
        yield from range(n)

    @expose
    def who(self):
        return [
            connection.principal and connection.principal.name
            for connection in self.server.poller.connections.values()
        ]


def call(lab, uri, name="", handshake="hello"):
    return subprocess.run(
        [sys.executable, "-c", STOCK_CLIENT, str(lab), uri, name, handshake],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


@pytest.fixture(params=[False, True])
def server(lab, request):
    tls = ServerTLS(
        certificate=str(lab / "server.pem"),
        key=str(lab / "server.key"),
        client_ca=str(lab / "ca.pem") if request.param else None,
    )
    with ObjectServer(tls=tls, authorization=ALLOW_AUTHENTICATED if request.param else None) as server:
        thing = Thing()
        thing.server = server
        server.register(thing, "Thing")
        yield server, request.param


def test_a_stock_client_calls_our_server(lab, server):
    server, mutual = server
    done = call(lab, f"PYRO:Thing@{server.address}", "ann" if mutual else "")
    expected = "['ann']" if mutual else "[None]"
    assert (done.stdout.strip(), done.stderr) == (f"[1, 2] [0, 1, 2] {expected}", "")


def test_a_stock_client_without_a_certificate_is_refused(lab, server):
    server, mutual = server
    done = call(lab, f"PYRO:Thing@{server.address}")
    assert (done.returncode != 0) == mutual
