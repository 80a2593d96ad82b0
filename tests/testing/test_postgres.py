import os
import pathlib
import select
import signal
import subprocess
import sys
import time

import pytest

from objserver.testing import postgres as module
from objserver.testing.postgres import PostgresReplicas, PostgresServer, Unavailable


def processes(directory):
    """The ids of those that have this server's directory on their command line."""
    found = []
    for line in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if directory.encode() in line.read_bytes():
                found.append(int(line.parent.name))
        except OSError:  # it ended meanwhile
            pass
    return found


def test_it_ends_with_all_it_had(postgres):
    server = PostgresServer(module.binaries())
    assert processes(server.directory)
    assert server.execute("SELECT 1") == [(1,)]
    server.stop()
    assert not os.path.exists(server.directory)
    assert not processes(server.directory)


def test_it_ends_also_when_its_user_is_killed(postgres):
    code = """
import sys
from objserver.testing.postgres import PostgresServer
server = PostgresServer()
print(server._watcher.pid, server.directory, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        watcher, directory = user.stdout.readline().split()
        assert processes(directory)
        ended = os.pidfd_open(int(watcher))
        user.send_signal(signal.SIGKILL)
    assert select.select([ended], [], [], 30)[0]
    os.close(ended)
    assert not os.path.exists(directory)
    assert not processes(directory)


def test_a_start_that_fails_says_why(tmp_path):
    place = tmp_path / "package" / "install" / "bin"  # which nobody but us may read: a copy is used
    place.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (place / name).write_text("#!/bin/sh\necho no luck today >&2; test $1 = --version")
        (place / name).chmod(0o755)
    with pytest.raises(Unavailable, match=r"did not start: .*no luck today"):
        PostgresServer(place)


def wait_until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_of_three_any_two_have_what_was_committed_whichever_is_killed():
    try:
        replicas = PostgresReplicas()
    except Unavailable as reason:
        pytest.skip(f"no PostgreSQL: {reason}")
    replicas.execute("CREATE TABLE kept (number int)")
    replicas.execute("INSERT INTO kept VALUES (1)")
    replicas.stop_replicating()
    assert replicas.fail_over() == "a"
    assert replicas.primary != "a"
    replicas.execute("INSERT INTO kept VALUES (2)")
    replicas.begin_again("a")
    wait_until(replicas.has_begun_again)
    wait_until(lambda: replicas.followers == 2)
    assert replicas.execute("SELECT * FROM kept") == [(1,), (2,)]
    assert replicas.execute("SHOW synchronous_standby_names") == [("ANY 1 (a, b, c)",)]
    replicas.stop()
    assert not os.path.exists(replicas.directory)
