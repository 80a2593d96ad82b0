"""Whatever a peer sends ends in time, within the budget of memory, and in words; others are served meanwhile.

The points of the list, and the tests that hold each.  `here` is this file; the bytes of points 1 to 10 and 13
are in objserver/testing/hostile.py, and are played against every listener.

 1  garbage, HTTP, TLS on a plain port     here::test_every_attack_..., test_bad_input.py
 2  every bit flipped, every truncation    here::test_every_attack_..., here::test_each_flip_and_cut_...,
                                           tests/testing/test_fuzz.py
 3  wrong magic, version, type, reserved   here::test_every_attack_..., tests/wire/test_parser.py
 4  lengths: 0, max, overflow, never sent  here::test_every_attack_...
 5  annotations                            here::test_every_attack_..., tests/wire/test_frames.py
 6  serializers; marshal is off            here::test_every_attack_..., tests/codecs/test_marshalled.py
 7  compression                            here::test_every_attack_..., test_bad_input.py
 8  values                                 here::test_every_attack_..., tests/codecs/test_attacks.py,
                                           tests/codecs/test_budget.py
 9  class dicts                            here::test_every_attack_..., tests/codecs/test_exceptions.py
10  names of methods and objects           here::test_every_attack_...
11  slow peers                             here::test_half_open_..., test_drops_..., test_who_never_reads_...
12  floods of connections                  here::test_a_flood_of_connections_..., test_without_descriptors_...
                                           (all together are bounded; there is no bound for each peer)
13  floods of requests, batches, streams   here::test_every_attack_..., test_a_flood_of_..., test_streams_...
14  replays of numbered calls              test_exactly_once.py, test_restart.py
15  floods of keys                         here::test_a_flood_of_keys_..., tests/adapter/test_adapter.py
16  methods that misbehave                 here::test_a_method_that_..., test_engine.py
17  secrets in errors, lines in logs       here::test_names_from_the_wire_..., test_no_traceback_...,
                                           tests/test_logs.py
18  stores that fail                       test_bad_stores.py, tests/testing/test_power_loss.py
19  addresses in arguments                 test_outgoing.py
20  redirects                              there are none: no answer sends a client of ours elsewhere
"""

import contextlib
import functools
import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from objserver import ObjectServer, Proxy, ServerSettings, errors, expose
from objserver.settings import Limits
from objserver.testing import fuzz, hostile
from objserver.testing.hostile import (
    JSON,
    Attack,
    Peer,
    call,
    forget_peak,
    greeting,
    peak_memory,
    play,
    raw_frame,
)
from objserver.wire import Flag, FrameType

HERE = Path(__file__).parent
MiB = 1 << 20
LIMIT_S = 0.5
WITHIN_S = LIMIT_S + 1.0
SLACK_S = 1.5
"""For a machine that has other things to do as well."""
BUDGET = (16 + 8 + 16) * MiB
"""What hostile_server.py allows for: received, unsent, and one value that is being decoded."""
ALLOWED = BUDGET + 32 * MiB
POINTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13)
INVOKE = FrameType.INVOKE


class Victim:
    """A server in a process of its own."""

    def __init__(self, kind, folder):
        self.kind = kind
        address = f"./u:{folder}/socket" if kind == "unix" else "localhost:0"
        command = [
            sys.executable,
            str(HERE / "hostile_server.py"),
            kind,
            address,
            f"sqlite:///{folder}/kept.db",
        ]
        self.log = Path(folder, "log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.log.read_text()
        self.object_id, self.method = ("Pyro.NameServer", "lookup") if kind == "names" else ("echo", "echo")

    def __repr__(self):
        return self.kind

    def peer(self):
        return Peer(self.address).greet("echo")

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(15)
        finally:
            self.process.kill()


@pytest.fixture(scope="module", params=["tcp", "unix", "names"])
def victim(request, tmp_path_factory):
    victim = Victim(request.param, tmp_path_factory.mktemp(request.param))
    yield victim
    victim.stop()


@pytest.fixture
def unharmed(victim):
    """Meanwhile another client is served all the time, and memory stays within its budget."""
    stop, started = threading.Event(), threading.Event()
    problems, slowest, calls = [], [0.0], [0]

    def work():
        try:
            with Proxy(f"PYRO:echo@{victim.address}", timeout_s=10) as proxy:
                while not stop.is_set():
                    begun = time.monotonic()
                    calls[0] += 1
                    assert proxy.echo(calls[0]) == calls[0]
                    slowest[0] = max(slowest[0], time.monotonic() - begun)
                    started.set()
                    stop.wait(0.002)  # the rate of its calls
        except BaseException as problem:
            problems.append(problem)
            started.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10)
    forget_peak(victim.process.pid)
    before = peak_memory(victim.process.pid)
    yield
    stop.set()
    thread.join(15)
    assert not problems
    assert slowest[0] < 5.0
    assert peak_memory(victim.process.pid) - before < ALLOWED
    assert victim.process.poll() is None


def wait_until(condition):
    pause, deadline = threading.Event(), time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        pause.wait(0.005)


# -- what is sent ----------------------------------------------------------------------------------------


attacks = functools.cache(lambda *target: [*hostile.attacks(*target)])


def withstood(victim, wanted):
    played = play(victim.address, victim.object_id, wanted, WITHIN_S + SLACK_S)
    assert len(played) == len(wanted) > 0
    assert [(p.attack.name, p.took_s) for p in played if p.outcome == "nothing"] == []
    wrong = [p for p in played if p.attack.refused and p.outcome == "answered"]
    assert [(p.attack.name, p.answer[:200]) for p in wrong] == []
    silent = [p for p in played if p.outcome == "refused" and not p.answer]
    # These are answered in HTTP, or in TLS.
    assert {p.attack.data[:4] for p in silent} <= {b"GET ", b"POST", b"\x16\x03\x01\x00"}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("victim", ["tcp"], indirect=True)
@pytest.mark.parametrize("point", POINTS)
def test_every_attack_is_refused_in_words_or_ended_in_time(victim, point):
    all_of_them = attacks(victim.object_id, victim.method)
    withstood(victim, [attack for attack in all_of_them if attack.point == point])


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("victim", ["unix", "names"], indirect=True)
def test_every_listener_withstands_attacks_of_each_kind(victim):
    """A part of them: the parser and the codecs are the same behind each."""
    some = attacks(victim.object_id, victim.method)[::9]
    assert {attack.point for attack in some} == {*POINTS}
    withstood(victim, some)


def test_each_flip_and_cut_of_a_frame_of_each_kind_raises_errors_of_the_protocol_only():
    small, _ = fuzz.sound_frames()
    examiner = fuzz.Examiner()
    for frame in small[:4] + small[4::40]:
        for bit in range(len(frame) * 8):
            flipped = bytearray(frame)
            flipped[bit // 8] ^= 1 << bit % 8
            examiner.examine(bytes(flipped))
        for size in range(len(frame)):
            examiner.examine(frame[:size], [size // 2])
    assert examiner.outcome.refused > 1_000


# -- slow peers ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unharmed")
def test_half_open_connections_end_in_time(victim):
    with contextlib.ExitStack() as stack:
        beginnings = (b"", b"P", greeting("echo")[:20], greeting("echo")[:-1])
        peers = [stack.enter_context(Peer(victim.address)) for _ in range(200)]
        begun = time.monotonic()
        for number, peer in enumerate(peers):
            peer.send(beginnings[number % 4])
        outcomes = [peer.outcome(Attack(11, "", b""), begun, begun + WITHIN_S + SLACK_S) for peer in peers]
    assert {outcome.outcome for outcome in outcomes} == {"refused"}
    assert all(b"no handshake came in the time allowed" in outcome.answer for outcome in outcomes)


@pytest.mark.usefixtures("unharmed")
def test_drops_do_not_stretch_the_time(victim):
    with Peer(victim.address) as before, victim.peer() as after:
        stop = threading.Event()

        def drip():
            for byte in greeting("echo")[:-1] + bytes(100):
                before.send(bytes([byte]))
            for byte in raw_frame(INVOKE, JSON, bytes(10_000)):
                if stop.wait(0.02):  # the rate of the drops
                    return
                with contextlib.suppress(OSError):
                    after.send(bytes([byte]))

        begun = time.monotonic()
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        outcome = after.outcome(Attack(11, "", b""), begun, begun + WITHIN_S + SLACK_S)
        stop.set()
        thread.join(10)
        assert outcome.outcome == "refused"


@pytest.mark.usefixtures("unharmed")
def test_who_never_reads_is_cut_off_or_no_longer_read_from(victim):
    argument = json.dumps("x" * 100_000).encode()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(victim.peer()) for _ in range(50)]
        frame = raw_frame(INVOKE, JSON, call(JSON, "echo", "echo", argument))
        for peer in peers:
            peer.sock.setblocking(False)
        for _ in range(60):
            for peer in peers:
                with contextlib.suppress(OSError):
                    peer.sock.send(frame)
        # Those that were cut off have their place free again.
        with victim.peer() as another:
            another.send(raw_frame(INVOKE, JSON, call(JSON, "echo", "echo", b"1")))
            assert another.read().payload == b"1"


# -- floods ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unharmed")
def test_a_flood_of_connections_is_told_and_leaves_no_trace(victim):
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(Peer(victim.address)) for _ in range(330)]
        last = flood[-1].outcome(Attack(12, "", b""), 0, time.monotonic() + 10)
        assert last.outcome in ("refused", "closed")
    wait_until(lambda: _may_enter(victim))


def _may_enter(victim):
    with Peer(victim.address) as peer:
        try:
            peer.greet("echo")
        except (errors.ProtocolError, EOFError):
            return False
        return True


def test_without_descriptors_a_server_waits_and_goes_on():
    @expose
    class Echo:
        def echo(self, value):
            return value

    with ObjectServer() as server, Proxy(server.register(Echo(), "echo"), timeout_s=10) as proxy:
        assert proxy.echo(1) == 1
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        kept = []
        try:
            used = max(map(int, os.listdir("/proc/self/fd"))) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
            with contextlib.suppress(OSError):
                for _ in range(200):
                    kept.append(Peer(server.address, timeout_s=1))
            before = time.process_time()
            assert proxy.echo(2) == 2
            threading.Event().wait(0.3)  # in which it would turn in circles
            assert time.process_time() - before < 0.2
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for peer in kept:
                peer.sock.close()
        assert Proxy(f"PYRO:echo@{server.address}", timeout_s=10).echo(3) == 3


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("flags", [0, Flag.ONEWAY], ids=["calls", "oneway"])
def test_a_flood_of_requests_fills_one_mailbox_and_no_memory(victim, flags):
    frame = raw_frame(INVOKE, JSON, call(JSON, "other", "note", b'"x"'), flags=flags)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(victim.peer()) for _ in range(4)]
        for peer in peers:
            peer.sock.settimeout(2)
            with contextlib.suppress(OSError):
                peer.send(frame * 2_000)
        if not flags:
            assert any(b"mailbox_size_max" in peers[0].read().payload for _ in range(300))


@pytest.mark.usefixtures("unharmed")
def test_streams_that_nobody_drains_are_bounded(victim):
    with victim.peer() as peer:
        frame = raw_frame(INVOKE, JSON, call(JSON, "streams", "items", b""))
        refused = 0
        for _ in range(40):
            peer.send(frame)
            refused += b"streams_per_session_max" in peer.read().payload
        assert refused == 30


@pytest.mark.usefixtures("unharmed")
def test_a_flood_of_keys_is_bounded(victim):
    if victim.kind == "names":
        return
    with victim.peer() as peer:
        answers = []
        for number in range(400):
            payload = call(JSON, f"kept/{number}", "key", b"")
            peer.send(raw_frame(INVOKE, JSON, payload))
            answers.append(peer.read())
    # Idle ones make room, so all may have been served; never are there more than the bound at a time.
    assert all(not a.flags & Flag.EXCEPTION or b"active_objects_max" in a.payload for a in answers)


def test_names_are_bounded_at_the_name_server(victim):
    if victim.kind != "names":
        return
    with Peer(victim.address).greet("Pyro.NameServer") as peer:
        for name, uri in (("x" * 501, "PYRO:x@h:1"), ("x", "PYRO:x@h:1" + "0" * 2_000), ("", "PYRO:x@h:1")):
            arguments = json.dumps([name, uri])[1:-1].encode()
            peer.send(raw_frame(INVOKE, JSON, call(JSON, "Pyro.NameServer", "register", arguments)))
            assert peer.read().flags & Flag.EXCEPTION
        for regex in ("(a+)+$" * 30, "x" * 201, "(?:(?:a{999}){999}){999}", "[[a--b]&&[c]]{1,9999}"):
            payload = call(JSON, "Pyro.NameServer", "list", b'null,"%s"' % regex.encode())
            begun = time.monotonic()
            peer.send(raw_frame(INVOKE, JSON, payload))
            peer.read()
            assert time.monotonic() - begun < WITHIN_S + SLACK_S


# -- servants that misbehave -----------------------------------------------------------------------------


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("how", ["exit", "interrupt", "recursion", "lock", "large", "stop", "base"])
def test_a_method_that_misbehaves_is_an_error_of_that_call(victim, how):
    with victim.peer() as peer:
        for serializer in (1, 3, 4):
            argument = {1: repr(how).encode(), 3: json.dumps(how).encode(), 4: b"%c" % (0xA0 | len(how))}
            raw = argument[serializer] + (how.encode() if serializer == 4 else b"")
            peer.send(raw_frame(INVOKE, serializer, call(serializer, "other", "fail", raw)))
            assert peer.read().flags & Flag.EXCEPTION
        peer.send(raw_frame(INVOKE, JSON, call(JSON, "echo", "echo", b"1")))
        assert peer.read().payload == b"1"


@pytest.mark.usefixtures("unharmed")
def test_methods_that_do_not_end_leave_workers_for_others(victim):
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            peer = stack.enter_context(victim.peer())
            peer.send(raw_frame(INVOKE, JSON, call(JSON, "other", "wait", b"0.5")))


# -- what is told ----------------------------------------------------------------------------------------


def test_names_from_the_wire_are_escaped_in_logs_and_errors(caplog):
    @expose
    class Echo:
        def echo(self, value):
            return value

    wicked = "x\r\nERROR root: all is lost\x1b[2J\x00\u2028\u202e"
    with caplog.at_level(logging.DEBUG), ObjectServer() as server:
        server.register(Echo(), "echo")
        with Peer(server.address).greet("echo") as peer:
            for object_id, method in (("echo", wicked), (wicked, "echo"), ("echo", "echo")):
                flags = 0
                peer.send(raw_frame(INVOKE, JSON, call(JSON, object_id, method, b"1"), flags=flags))
                said = json.loads(peer.read().payload)
                if isinstance(said, dict):
                    assert "\n" not in said["args"][0]
                    assert "\x1b" not in said["args"][0]
            peer.send(raw_frame(INVOKE, JSON, call(JSON, wicked, wicked, b"1"), flags=Flag.ONEWAY))
            peer.send(b"PYRO\r\n\x1b[2J" + bytes(40))
            with contextlib.suppress(EOFError):
                peer.read()
        with Peer(server.address) as peer:
            peer.send(greeting(wicked))
            peer.read()
        with Peer(server.address) as peer:
            peer.send(wicked.encode() * 4)
            peer.read()
    for record in caplog.records:
        message = record.getMessage()
        assert message.isprintable(), message


@pytest.mark.parametrize("tracebacks", [True, False])
def test_no_traceback_is_told_where_that_is_switched_off(tracebacks):
    @expose
    class Careless:
        def fail(self, value):
            password = "in the source"  # noqa: F841
            raise ValueError("wrong")

    with ObjectServer(settings=ServerSettings(tracebacks=tracebacks)) as server:
        server.register(Careless(), "careless")
        for serializer in (1, 3, 4, 79):
            with Peer(server.address).greet("careless") as peer:
                argument = b"1" if serializer < 4 else b"\x01"
                peer.send(raw_frame(INVOKE, serializer, call(serializer, "careless", "fail", argument)))
                told = bytes(peer.read().payload)
            assert b"wrong" in told
            assert (b"in the source" in told or b"Traceback (most" in told) == tracebacks
            assert (b"test_hostile_input" in told) == tracebacks


def test_the_settings_of_the_victim_are_those_that_the_tests_believe():
    source = (HERE / "hostile_server.py").read_text()
    assert f"LIMIT_S = {LIMIT_S}" in source
    assert "receive_memory_max=16 * MiB" in source
    assert "unsent_memory_max=8 * MiB" in source
    assert "decoded_size_max=16 * MiB" in source
    assert Limits().decoded_size_max == 256 * MiB
