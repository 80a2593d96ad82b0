"""Arrays and large bytes end to end: over every kind of connection, and past the death of either side."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import Pyro5.api
import pytest

from objserver import ObjectServer, Proxy, errors, expose, oneway
from objserver.client import sharing
from objserver.settings import Limits, ServerSettings

ROOT = pathlib.Path(__file__).parents[2]
MiB = 1 << 20


@expose
class Store:
    def __init__(self):
        self.kept = []

    def echo(self, value):
        return value

    def double(self, array):
        array *= 2
        return array

    def keep(self, array):
        self.kept.append(array)

    def first(self):
        return self.kept[0]

    def drop(self):
        self.kept.clear()

    @oneway
    def tell(self, array):
        self.kept.append(array)

    def fail(self, array):
        raise ValueError(array)

    def pieces(self):
        for n in range(3):
            yield np.full(MiB // 4, n)


@pytest.fixture(autouse=True)
def memory_of_this_test(monkeypatch):
    """What proxies of other tests, still open in this process, have lent is not counted here."""
    memory = sharing.SharedMemory(ServerSettings.shared_memory_max, Limits.shared_buffer_size_max)
    monkeypatch.setattr(sharing, "MEMORY", memory)


@pytest.fixture(params=["tcp", "unix", "tcp without shared memory"])
def served(request, tmp_path):
    """A server, a proxy, and whether they share memory."""
    shared = request.param != "tcp without shared memory"
    address = f"./u:{tmp_path}/socket" if request.param == "unix" else "localhost:0"
    settings = ServerSettings() if shared else ServerSettings(shared_memory_max=0)
    with ObjectServer(address, settings=settings) as server:
        proxy = Proxy(server.register(Store(), "Store"))
        yield server, proxy, shared
        proxy.release()


def wait_until(condition):
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def mapped(server):
    gc.collect()
    return server.memory.mapped, sharing.MEMORY.mapped


def test_large_arrays_come_back_writable(served):
    server, proxy, shared = served
    for array in (np.arange(MiB), np.asfortranarray(np.arange(MiB * 1.0).reshape(1024, -1))):
        result = proxy.double(array)
        assert (result == array * 2).all()
        assert result.flags.writeable
        assert result.flags.f_contiguous == array.flags.f_contiguous
        assert array.max() == MiB - 1  # what was sent is still as it was
        assert mapped(server)[1] == (array.nbytes if shared else 0)
    del result
    assert mapped(server)[1] == 0


def test_large_bytes_come_back_as_bytes(served):
    _, proxy, _ = served
    for size in (70_000, MiB, 5 * MiB):
        data = os.urandom(size)
        back = proxy.echo(data)
        assert type(back) is bytes
        assert back == data


def test_more_than_a_frame_needs_shared_memory(served):
    _, proxy, shared = served
    array = np.arange(8 * MiB)
    if shared:
        assert (proxy.echo(array) == array).all()
        assert (proxy.echo(array) == array).all()
    else:
        with pytest.raises(errors.MessageTooLarge, match="frame_size_max"):
            proxy.echo(array)
    assert proxy.echo(1) == 1


def test_what_a_servant_keeps_stays_its_own(served):
    _, proxy, _ = served
    array = np.arange(MiB)
    proxy.keep(array)
    array[:] = 0
    proxy.echo(np.ones(MiB))  # would overwrite memory that was used again too early
    first = proxy.first()
    assert (first == np.arange(MiB)).all()
    first[:] = 7
    assert (proxy.first() == np.arange(MiB)).all()
    proxy.drop()


def test_oneway_exceptions_streams_and_batches_carry_arrays(served):
    _, proxy, _ = served
    array = np.arange(MiB // 4)
    with pytest.raises(ValueError) as caught:
        proxy.fail(array)
    assert (caught.value.args[0] == array).all()
    assert [int(piece[-1]) for piece in proxy.pieces()] == [0, 1, 2]
    proxy.tell(array)
    assert (proxy.first() == array).all()


def test_many_threads_share_the_memory(served):
    _, proxy, _ = served
    wrong = []

    def use(number):
        array = np.full(MiB // 8, number)
        for _ in range(10):
            if not (proxy.double(array) == 2 * number).all():
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_bound_on_shared_memory_is_kept_and_told():
    settings = ServerSettings(shared_memory_max=8 * MiB, limits=Limits(shared_buffer_size_max=2 * MiB))
    with ObjectServer(settings=settings) as server, Proxy(server.register(Store(), "Store")) as proxy:
        with pytest.raises(errors.MessageTooLarge, match="shared_buffer_size_max"):
            proxy.echo(np.zeros(3 * MiB, "u1"))
        for _ in range(4):
            proxy.keep(np.zeros(2 * MiB, "u1"))
        with pytest.raises(errors.MessageTooLarge, match="shared_memory_max"):
            proxy.keep(np.zeros(2 * MiB, "u1"))
        figures = server.statistics()
        assert figures["shared_mapped_bytes"] == figures["shared_memory_max"] == 8 * MiB
        results = [
            proxy.first() for _ in range(4)
        ]  # beyond its half the server sends them through the socket
        assert 0 < server.statistics()["shared_lent_bytes"] <= 4 * MiB
        assert all(len(result) == 2 * MiB for result in results)
        proxy.drop()
        assert mapped(server)[0] == 0


def test_what_is_refused_is_given_back():
    with ObjectServer(settings=ServerSettings(receive_memory_max=100_000)) as server:
        with Proxy(server.register(Store(), "Store")) as proxy:
            for _ in range(3):
                with pytest.raises(errors.MessageTooLarge, match="receive_memory_max"):
                    proxy.echo([np.zeros(2 * MiB, "u1"), [[]] * 5_000])
            assert sharing.MEMORY.lent < 3 * MiB  # the same piece, each time
            assert not sharing.MEMORY.is_awaited


def test_a_reply_in_shared_memory_outlives_the_server():
    server = ObjectServer().start()
    proxy = Proxy(server.register(Store(), "Store"))
    result = proxy.echo(np.arange(MiB))
    proxy.release()
    server.stop()
    assert (result == np.arange(MiB)).all()


def named():
    """Shared memory with a name of ours; other tests have files there at the same time."""
    return sorted(name for name in os.listdir("/dev/shm") if "objserver" in name)


def test_nothing_is_left_of_a_server_and_its_clients():
    def open_things():
        gc.collect()
        maps = pathlib.Path("/proc/self/maps").read_text().count("memfd:objserver")
        return len(os.listdir("/proc/self/fd")), maps, named()

    before = open_things()
    for _ in range(3):
        with ObjectServer() as server, Proxy(server.register(Store(), "Store")) as proxy:
            proxy.keep(np.arange(MiB))
            assert (proxy.first() == np.arange(MiB)).all()
            assert open_things() != before
            proxy.drop()
        del server, proxy
    assert open_things() == before


def test_stock_clients_see_no_difference(served):
    server, _, _ = served
    if not server.address.startswith("./u"):
        with Pyro5.api.Proxy(f"PYRO:Store@{server.address}") as stock:
            stock._pyroSerializer = "msgpack"
            assert stock.echo(bytes(MiB)) == bytes(MiB)
            with pytest.raises(Exception, match="ndarray"):
                Proxy(f"PYRO:Store@{server.address}", serializer="json").echo(np.arange(3))


def test_a_proxy_with_a_stock_serializer_sends_bytes_as_ever(served):
    server, _, _ = served
    with Proxy(server.reference("Store"), serializer="msgpack") as proxy:
        assert proxy.echo(bytes(MiB)) == bytes(MiB)


OTHER_SIDE = """
import sys, numpy as np
from objserver import ObjectServer, Proxy, expose
if sys.argv[1] == "serve":
    @expose
    class Store:
        kept = []
        def keep(self, array): self.kept.append(array)
        def first(self): return self.kept[0]
    with ObjectServer() as server:
        print(server.register(Store, "Store"), flush=True)
        sys.stdin.read()
else:
    proxy = Proxy(sys.argv[1])
    proxy.keep(np.arange(1 << 20))
    held = proxy.first()
    print("ready", flush=True)
    sys.stdin.read()
"""


def other_side(argument):
    return subprocess.Popen(
        [sys.executable, "-c", OTHER_SIDE, argument],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def test_a_client_that_is_killed_leaves_nothing_with_the_server():
    shm = named()
    with ObjectServer() as server:
        store = Store()
        reference = server.register(store, "Store")
        before = len(os.listdir("/proc/self/fd"))
        with other_side(str(reference)) as client:
            assert client.stdout.readline() == "ready\n"
            assert server.memory.lent >= 8 * MiB
            client.send_signal(signal.SIGKILL)
            client.wait()
        wait_until(lambda: server.statistics()["connections"] == 0)
        assert (store.kept[0] == np.arange(MiB)).all()  # it is the servant's, and still there
        store.kept.clear()
        wait_until(lambda: mapped(server)[0] == 0)
        wait_until(lambda: server.memory.lent == 0)
        # One descriptor stays for the words of the next clients.
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)
    assert named() == shm


def test_a_server_that_is_killed_leaves_nothing_with_the_client():
    shm, before = named(), len(os.listdir("/proc/self/fd"))
    with other_side("serve") as server:
        proxy = Proxy(server.stdout.readline().strip())
        proxy.keep(np.arange(MiB))
        result = proxy.first()
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert (result == np.arange(MiB)).all()
    result[:] = 1
    with pytest.raises(errors.CommunicationError):
        proxy.first()
    proxy.release()
    del result, proxy
    gc.collect()
    assert sharing.MEMORY.mapped == sharing.MEMORY.lent == 0
    assert len(os.listdir("/proc/self/fd")) == before
    assert named() == shm
