"""Memory shared by two processes: proven first, reused only when let go of, and gone when both are."""

import fcntl
import gc
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from objserver import errors
from objserver.wire import shared_memory
from objserver.wire.buffers import Claim
from objserver.wire.shared_memory import PAGE, SEALS, SharedMemory, is_local

MiB = 1 << 20


@pytest.fixture
def memories():
    """Of two sides, which happen to be in one process."""
    both = SharedMemory(64 * MiB, 32 * MiB), SharedMemory(64 * MiB, 32 * MiB)
    yield both
    for memory in both:
        memory.close()


@pytest.fixture
def links(memories):
    one, other = (memory.link() for memory in memories)
    assert one.accept(other.offer)
    assert other.accept(one.offer)
    return one, other


def descriptors():
    gc.collect()  # what earlier tests left to the collector, in the frames of their errors
    return set(os.listdir("/proc/self/fd"))


def test_what_is_lent_arrives_and_is_nobody_elses(links):
    one, other = links
    data = bytearray(b"x" * MiB)
    view = other.borrow(one.lend(data))
    data[0] = 0
    assert view == b"x" * MiB
    view[0] = 1
    assert other.read(one.lend(b"y" * MiB)) == b"y" * MiB
    assert view[0] == 1


def test_nothing_is_lent_before_the_peer_has_proven_that_it_can_open_it(memories):
    one, other = (memory.link() for memory in memories)
    other.accept(one.offer)
    assert (one.is_proven, other.is_proven) == (True, False)
    assert other.lend(b"x" * MiB) is None
    assert one.lend(b"x" * MiB) is not None
    with pytest.raises(errors.SerializeError, match="did not offer"):
        one.borrow(Claim(1, 0, "token"))


def test_memory_is_used_again_when_it_is_let_go_of_and_not_before(memories, links):
    one, other = links
    first = one.lend(b"a" * MiB)
    second = one.lend(b"b" * MiB)  # the first has not been taken yet
    view = other.borrow(first)
    assert other.read(second) == b"b" * MiB
    third = one.lend(b"c" * MiB)
    assert third.token == second.token != first.token
    assert view == b"a" * MiB
    assert memories[1].mapped == MiB
    del view
    assert memories[1].mapped == 0
    assert one.lend(b"d" * MiB).token == first.token
    assert memories[0].lent == 2 * MiB


def test_beyond_the_bound_nothing_is_lent(memories, links):
    one, _ = links
    lent = [one.lend(bytes(8 * MiB)) for _ in range(8)]
    assert [claim is not None for claim in lent] == [True] * 4 + [False] * 4  # half of it for one link
    another, peer = memories[0].link(), memories[1].link()
    peer.accept(another.offer)
    assert another.lend(bytes(8 * MiB)) is not None
    assert memories[0].lent <= 64 * MiB


def test_beyond_the_bound_nothing_is_mapped(links):
    one, other = links
    keep = []
    for _ in range(4):
        keep.append(other.borrow(one.lend(bytes(8 * MiB))))
    other._memory.memory_max = 33 * MiB
    tiny = one._memory.link()
    other.accept(tiny.offer)
    with pytest.raises(errors.MessageTooLarge, match="shared_memory_max"):
        keep += [other.borrow(tiny.lend(b"1")) for _ in range(3)]  # each costs a mapping, however small
    assert len(keep) == 4


def test_what_is_refused_is_given_back_at_once(memories, links):
    one, other = links
    other._memory.buffer_size_max = MiB
    claim = one.lend(bytes(2 * MiB))
    with pytest.raises(errors.MessageTooLarge, match="shared_buffer_size_max"):
        other.borrow(claim)
    other.dismiss(second := one.lend(bytes(2 * MiB)))
    assert claim.token == second.token == one.lend(bytes(2 * MiB)).token


def test_what_was_not_taken_ends_with_its_link_after_a_while(memories, links, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(shared_memory.time, "monotonic", lambda: now[0])
    one, other = links
    claim = one.lend(b"x" * MiB)
    one.close(linger_s=1.0)
    assert memories[0].is_awaited
    memories[0].sweep()
    assert other.read(claim) == b"x" * MiB
    assert not memories[0].is_awaited
    memories[0].sweep()
    assert memories[0].lent == 0


def test_idle_memory_is_given_back(memories, links, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(shared_memory.time, "monotonic", lambda: now[0])
    one, other = links
    other.read(one.lend(b"x" * MiB))
    memories[0].sweep()
    assert memories[0].lent == MiB
    now[0] += shared_memory.IDLE_S
    memories[0].sweep()
    assert memories[0].lent == 0


def test_without_links_there_is_nothing_left():
    before = descriptors()
    memory = SharedMemory(64 * MiB, 32 * MiB)
    one, other = memory.link(), memory.link()
    one.accept(other.offer)
    other.accept(one.offer)
    view = other.borrow(one.lend(b"x" * MiB))
    one.lend(b"not taken" * 100_000)
    one.close()
    other.close()
    assert view == b"x" * MiB  # it is the borrower's
    del view
    assert descriptors() == before
    assert (memory.lent, memory.mapped) == (0, 0)


def test_a_link_that_is_forgotten_is_closed(memories):
    before = descriptors()
    link = memories[0].link()
    assert descriptors() != before
    del link
    assert descriptors() == before


def test_switched_off_there_is_no_link():
    assert SharedMemory(0, 0).link() is None


def made(name, size=PAGE * 2, seals=SEALS, flags=os.MFD_ALLOW_SEALING):
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | flags)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.mark.parametrize(
    ("memory", "token", "length"),
    [
        (lambda: made("objserver-other"), "x", 1),
        (lambda: made("x"), "x", 1),
        (lambda: made("objserver-x", seals=0), "x", 1),
        (lambda: made("objserver-x", seals=fcntl.F_SEAL_GROW), "x", 1),
        (lambda: made("objserver-x"), "x", PAGE + 1),
        (lambda: made("objserver-x", seals=SEALS | fcntl.F_SEAL_WRITE), "x", 1),
        (lambda: made("objserver-x"), "x", -1),
        (lambda: os.open("/dev/null", os.O_RDWR), "x", 1),
        (lambda: os.open("/dev/zero", os.O_RDWR), "x", 1),
        (lambda: os.open("/proc/self/exe", os.O_RDONLY), "x", 1),
        (lambda: os.pipe()[0], "x", 1),
        (lambda: socket.socket().detach(), "x", 1),
        (lambda: 999_999, "x", 1),
        (lambda: -1, "x", 1),
        (lambda: 1 << 70, "x", 1),
    ],
)
def test_what_is_not_safe_memory_is_not_mapped(links, memory, token, length):
    descriptor = memory()
    before = descriptors()
    for act in (links[0].borrow, links[0].read):
        with pytest.raises((errors.SerializeError, errors.MessageTooLarge)):
            act(Claim(length, descriptor, token))
    assert descriptors() == before
    assert links[0]._memory.mapped == 0
    if 0 <= descriptor < 999_999:
        os.close(descriptor)


@pytest.mark.parametrize(
    "wrong", [(1 << 30, 3, "t", 0), (os.getpid(), 0, "t", 0), (os.getpid(), 1 << 70, "t", 0)]
)
def test_an_offer_that_cannot_be_opened_is_not_accepted(links, wrong):
    assert not links[0].accept(wrong)


def test_a_word_beyond_the_end_is_not_accepted(links):
    process, descriptor, token, _ = links[1].offer
    assert not links[0].accept((process, descriptor, token, 1 << 30))


def test_two_threads_never_get_the_same_memory(links):
    one, other = links
    wrong = []

    def use(letter):
        data = bytes([letter]) * (600 * 1024)
        for _ in range(50):
            claim = one.lend(data)
            if claim is not None and other.read(claim) != data:
                wrong.append(letter)

    threads = [threading.Thread(target=use, args=(letter,)) for letter in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_fork_starts_with_nothing(memories, links):
    child = os.fork()
    if not child:
        ok = memories[0].link().offer[0] == os.getpid() and memories[0].lent == 0
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert links[1].read(links[0].lend(b"x" * MiB)) == b"x" * MiB


def test_only_who_may_be_local_is_made_an_offer():
    one, other = socket.socketpair()
    with one, other, socket.create_server(("127.0.0.1", 0)) as listener:
        assert is_local(one)
        with socket.create_connection(listener.getsockname()) as sock:
            assert is_local(sock)


HOLDER = """
import sys
from objserver.wire.shared_memory import SharedMemory
from objserver.wire.buffers import Claim
memory = SharedMemory(1 << 26, 1 << 26)
link = memory.link()
print(*link.offer, flush=True)
p, d, t, n = input().split()
link.accept((int(p), int(d), t, int(n)))
n, d, t = input().split()
view = link.borrow(Claim(int(n), int(d), t))
print(bytes(view[:3]).decode(), flush=True)
input()
"""


def named():
    """Shared memory with a name of ours; other tests have files there at the same time."""
    return {name for name in os.listdir("/dev/shm") if "objserver" in name}


def test_who_is_killed_lets_go(memories):
    shm_before = named()
    link = memories[0].link()
    command = [sys.executable, "-c", HOLDER]
    root = pathlib.Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=root
    ) as peer:
        process, descriptor, token, number = peer.stdout.readline().split()
        assert link.accept((int(process), int(descriptor), token, int(number)))
        print(*link.offer, file=peer.stdin, flush=True)
        while not link.is_proven:
            pass
        claim = link.lend(b"abc" * MiB)
        print(*claim, file=peer.stdin, flush=True)
        assert peer.stdout.readline() == "abc\n"
        assert link.lend(b"d" * (3 * MiB)).token != claim.token  # it is held
        peer.send_signal(signal.SIGKILL)
        peer.wait()
        assert link.lend(b"e" * (3 * MiB)).token == claim.token
    assert named() == shm_before
