"""The process that tests/server/test_hostile_input.py attacks: `tcp`, `unix` or `names`, at an address.

Its limits on time and memory are small, so that the tests are quick and a leak shows.
"""

import sys
import threading

from objserver import Limits, ObjectServer, Persistent, ServerSettings, current, expose, oneway
from objserver.naming import NameServerDaemon

MiB = 1 << 20
LIMIT_S = 0.5
SETTINGS = ServerSettings(
    limits=Limits(
        frame_size_max=1 * MiB,
        handshake_size_max=16 * 1024,
        annotations_size_max=MiB // 2,
        decoded_size_max=16 * MiB,
        batch_size_max=10_000,
    ),
    handshake_timeout_s=LIMIT_S,
    frame_timeout_s=LIMIT_S,
    connections_max=300,
    workers_max=8,
    mailbox_size_max=100,
    receive_memory_max=16 * MiB,
    send_memory_max=1 * MiB,
    unsent_memory_max=8 * MiB,
    active_objects_max=200,
    streams_max=50,
    streams_per_session_max=10,
)
BUDGET = SETTINGS.receive_memory_max + SETTINGS.unsent_memory_max + SETTINGS.limits.decoded_size_max


@expose
class Echo:
    def echo(self, value):
        return value

    def wait(self, seconds):
        threading.Event().wait(seconds)

    @oneway
    def note(self, value):
        threading.Event().wait(0.01)

    def items(self):
        yield from iter(range(10**9))

    def fail(self, how):
        if how == "exit":
            raise SystemExit("from a method")
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "recursion":
            return self.fail(how)
        if how == "lock":
            return threading.Lock()
        if how == "large":
            return bytes(4 * MiB)
        if how == "stop":
            raise StopIteration
        raise BaseException(how)


@expose
class Kept:
    def __init__(self):
        self.value = 0

    def key(self):
        return current.object_id


def main(kind, address, store):
    if kind == "names":
        server = NameServerDaemon(address, settings=SETTINGS)
    else:
        server = ObjectServer(address, store=store, settings=SETTINGS)
        server.register(Kept, "kept", activation=Persistent())
    server.register(Echo(), "echo")
    server.register(Echo(), "streams")
    server.register(Echo(), "other")  # so that a full mailbox is not that of the client who is watched
    with server:
        print(server.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
