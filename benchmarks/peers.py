"""The systems that are compared, each as a server process and a client.

A number means something only beside another one from the same minute on the same machine, so every peer has
the same two ends: a server subprocess on loopback that hosts `add`, and a client that times calls of it.  All
of a measurement's servers run at once, and idle while another one is measured.  The raw socket is the floor:
two Python processes that pass 60 bytes back and forth and do nothing else.

Each peer is used the way its documentation does, at its fastest where there is a choice: thriftpy2 with its
Cython protocol, gRPC without protobuf around two integers.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

PING = b"x" * 60
SLEEPERS = 30

Times = Callable[[int], list[float]]
"""Make that many calls, one after the other; the seconds that each took."""


@dataclass(frozen=True)
class Peer:
    serve: str
    """The kind of server it talks to."""
    module: str = ""
    """What its client imports."""


PEERS = {
    "raw socket": Peer("raw"),
    "objserver": Peer("objserver", "objserver"),
    "objserver, serpent": Peer("objserver", "objserver"),
    "objserver, stock Pyro5 client": Peer("objserver", "Pyro5.api"),
    "thriftpy2": Peer("thriftpy2", "thriftpy2"),
    "managers": Peer("managers"),
    "Pyro5 msgpack": Peer("pyro5", "Pyro5.api"),
    "Pyro5 serpent": Peer("pyro5", "Pyro5.api"),
    "RPyC": Peer("rpyc", "rpyc"),
    "pycapnp": Peer("pycapnp", "capnp"),
    "gRPC": Peer("grpc", "grpc"),
    "zerorpc": Peer("zerorpc", "zerorpc"),
}
"""Each peer by the name in the tables."""


class Adder:
    """What every server hosts."""

    def add(self, a: int, b: int) -> int:
        return a + b

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


THRIFT = "service Adder { i64 add(1: i64 a, 2: i64 b) }"
CAPNP = str(Path(__file__).with_name("adder.capnp"))
TWO, ONE = struct.Struct("!qq"), struct.Struct("!q")


class Manager(BaseManager):
    """multiprocessing's own remote objects."""


Manager.register("Adder", Adder)


# -- servers -----------------------------------------------------------------------------------------


def _announce(address: str) -> None:
    print(address, flush=True)
    sys.stdin.read()


def _announce_and_serve(address: str, serve: Callable[[], object]) -> None:
    """For servers that want the main thread."""

    def wait() -> None:
        _announce(address)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
    serve()


def _free_port() -> int:
    """For servers that cannot say which port they got."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_connectable(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.01)


def _serve_raw() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(4096):
            connection.sendall(data)

    def accept() -> None:
        while True:
            threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    _announce(f"127.0.0.1:{listener.getsockname()[1]}")


def _serve_objserver() -> None:
    from objserver import ObjectServer, expose

    adder = expose(Adder)
    with ObjectServer("127.0.0.1:0") as server:
        server.register(adder, "Adder")
        for number in range(SLEEPERS):
            server.register(adder, f"Sleeper{number}")
        _announce(server.address)


def _serve_thriftpy2() -> None:
    import thriftpy2.parser
    from thriftpy2.rpc import make_server

    service = thriftpy2.parser.load_fp(io.StringIO(THRIFT), "adder_thrift").Adder
    port = _free_port()
    server = make_server(service, Adder(), "127.0.0.1", port, client_timeout=None)
    threading.Thread(target=server.serve, daemon=True).start()
    _wait_until_connectable(port)
    _announce(f"127.0.0.1:{port}")
    os._exit(0)  # its threads are no daemons


def _serve_managers() -> None:
    server: Any = Manager(("127.0.0.1", 0), b"benchmark").get_server()
    _announce_and_serve(f"127.0.0.1:{server.address[1]}", server.serve_forever)


def _serve_pyro5() -> None:
    import Pyro5.api

    daemon = Pyro5.api.Daemon("127.0.0.1")
    daemon.register(Pyro5.api.expose(Adder)(), "Adder")
    threading.Thread(target=daemon.requestLoop, daemon=True).start()
    _announce(daemon.locationStr)


def _serve_rpyc() -> None:
    import rpyc
    from rpyc.utils.server import ThreadedServer

    class Service(rpyc.Service):
        exposed_add = Adder.add

    server = ThreadedServer(Service, hostname="127.0.0.1", port=0)
    threading.Thread(target=server.start, daemon=True).start()
    _announce(f"127.0.0.1:{server.port}")


def _serve_pycapnp() -> None:
    import capnp

    schema = capnp.load(CAPNP)

    class Server(schema.Adder.Server):
        async def add(self, a: int, b: int, **_: object) -> int:
            return a + b

    async def connected(stream: Any) -> None:
        await capnp.TwoPartyServer(stream, bootstrap=Server()).on_disconnect()

    async def serve() -> None:
        server = await capnp.AsyncIoStream.create_server(connected, "127.0.0.1", port)
        async with server:
            await server.serve_forever()

    port = _free_port()
    threading.Thread(target=lambda: asyncio.run(capnp.run(serve())), daemon=True).start()
    _wait_until_connectable(port)
    _announce(f"127.0.0.1:{port}")
    os._exit(0)  # its event loop would complain


def _serve_grpc() -> None:
    import grpc

    def add(request: tuple[int, int], context: object) -> int:
        return request[0] + request[1]

    handler = grpc.unary_unary_rpc_method_handler(
        add, request_deserializer=TWO.unpack, response_serializer=ONE.pack
    )
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Adder", {"add": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _announce(f"127.0.0.1:{port}")


def _serve_zerorpc() -> None:
    import zerorpc

    address = f"127.0.0.1:{_free_port()}"
    server = zerorpc.Server(Adder())
    server.bind(f"tcp://{address}")
    _announce_and_serve(address, server.run)


SERVERS = {
    "raw": _serve_raw,
    "objserver": _serve_objserver,
    "thriftpy2": _serve_thriftpy2,
    "managers": _serve_managers,
    "pyro5": _serve_pyro5,
    "rpyc": _serve_rpyc,
    "pycapnp": _serve_pycapnp,
    "grpc": _serve_grpc,
    "zerorpc": _serve_zerorpc,
}


# -- clients -----------------------------------------------------------------------------------------


def timed(add: Callable[[int, int], object]) -> Times:
    def times(count: int) -> list[float]:
        clock, taken = time.perf_counter, []
        for _ in range(count):
            begin = clock()
            add(2, 3)
            taken.append(clock() - begin)
        return taken

    return times


def connect(peer: str, address: str) -> Times:
    """A client of the peer's server.  It is never closed: its process ends."""
    host, _, port = address.rpartition(":")
    match peer:
        case "raw socket":
            sock = socket.create_connection((host, int(port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def ping(a: int, b: int) -> None:
                sock.sendall(PING)
                sock.recv(4096)

            return timed(ping)
        case "objserver" | "objserver, serpent":
            from objserver import Proxy

            serializer = "serpent" if peer.endswith("serpent") else None
            return timed(Proxy(f"PYRO:Adder@{address}", serializer=serializer).add)
        case "objserver, stock Pyro5 client" | "Pyro5 msgpack" | "Pyro5 serpent":
            import Pyro5.api

            stock = Pyro5.api.Proxy(f"PYRO:Adder@{address}")
            stock._pyroSerializer = "msgpack" if peer == "Pyro5 msgpack" else "serpent"
            stock._pyroBind()
            return timed(stock.add)
        case "thriftpy2":
            import thriftpy2.parser
            from thriftpy2.rpc import make_client

            service = thriftpy2.parser.load_fp(io.StringIO(THRIFT), "adder_thrift").Adder
            return timed(make_client(service, host, int(port)).add)
        case "managers":
            manager: Any = Manager((host, int(port)), b"benchmark")
            manager.connect()
            return timed(manager.Adder().add)
        case "RPyC":
            import rpyc

            return timed(rpyc.connect(host, int(port)).root.add)
        case "pycapnp":
            return _connect_pycapnp(host, int(port))
        case "gRPC":
            import grpc

            call = grpc.insecure_channel(address).unary_unary(
                "/Adder/add",
                request_serializer=lambda both: TWO.pack(*both),
                response_deserializer=ONE.unpack,
            )
            return timed(lambda a, b: call((a, b)))
        case "zerorpc":
            import zerorpc

            client = zerorpc.Client(heartbeat=None)
            client.connect(f"tcp://{address}")
            return timed(client.add)
    raise LookupError(peer)


def _connect_pycapnp(host: str, port: int) -> Times:
    """It has coroutines only; timed inside its event loop, so that going there is not in the figures."""
    import capnp

    schema, ready = capnp.load(CAPNP), Future[Any]()

    async def run() -> None:
        stream = await capnp.AsyncIoStream.create_connection(host, port)
        client = capnp.TwoPartyClient(stream)
        ready.set_result((asyncio.get_running_loop(), client.bootstrap().cast_as(schema.Adder)))
        await client.on_disconnect()

    async def times(count: int) -> list[float]:
        clock, taken = time.perf_counter, []
        for _ in range(count):
            begin = clock()
            await adder.add(2, 3)
            taken.append(clock() - begin)
        return taken

    threading.Thread(target=lambda: asyncio.run(capnp.run(run())), daemon=True).start()
    loop, adder = ready.result()
    return lambda count: asyncio.run_coroutine_threadsafe(times(count), loop).result()
