"""Commands that ask others: a name service and servers that demand TLS and a key, end to end."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from click.testing import CliRunner, Result

import objserver
from objserver.cli.main import main
from objserver.cli.reaching import Names, Shown
from objserver.naming import NameServerDaemon
from objserver.security import ALLOW_AUTHENTICATED, AcceptedKey, Authentication, Principal
from objserver.security.files import credentials_text, keys_text

# The children run elsewhere, where a relative PYTHONPATH would not find the package.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(objserver.__file__).parents[1])}
MODULE = """
from objserver import expose

@expose
class Counter:
    n = 0
    def add(self, k: int) -> int:
        self.n += k
        return self.n
"""
SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(("registrar", "reader", "caller"))}


@pytest.fixture(scope="module")
def files(lab: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Keys for the name server and for the object server, and the credentials of each who has one."""
    directory = tmp_path_factory.mktemp("reaching")
    (directory / "counting.py").write_text(MODULE)
    for name, secret in SECRETS.items():
        (directory / f"{name}.toml").write_text(credentials_text(name, secret))
    for server, known in (("names", ("registrar", "reader")), ("objects", ("caller",))):
        text = "\n".join(keys_text(name, SECRETS[name], "") for name in known)
        (directory / f"{server}-keys.toml").write_text(text)
    (directory / "rules.toml").write_text(
        '[[rule]]\neffect = "allow"\nprincipals = ["registrar"]\nobjects = ["Pyro.NameServer"]\n'
        '[[rule]]\neffect = "allow"\nprincipals = ["reader"]\nobjects = ["Pyro.NameServer"]\n'
        'methods = ["resolve", "lookup", "list", "page", "children", "watch", "remove"]\n'
    )
    for file in directory.glob("*.toml"):
        file.chmod(0o600)
    return directory


@contextmanager
def started(files: pathlib.Path, *args: str) -> Iterator[str]:
    """A command that serves; gives the last word of its first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "objserver", *args],
        cwd=files,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        first = process.stdout.readline()
        assert first, process.stderr.read()
        assert process.stdout.readline() == "ready\n"
        yield first.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def at(lab: pathlib.Path, files: pathlib.Path) -> Iterator[str]:
    """The address of a name server where `Counter` is registered, each with TLS and keys of its own."""
    tls = ["--tls-cert", f"{lab}/server.pem", "--tls-key", f"{lab}/server.key"]
    guarded = [*tls, "--keys", "names-keys.toml", "--rules", "rules.toml", "--reserve", "Count=registrar"]
    with started(files, "nameserver", "--address", "localhost:0", "--no-beacon", *guarded) as uri:
        address = uri.partition("@")[2]
        register = ["--nameserver", address, "--nameserver-tls-ca", f"{lab}/ca.pem"]
        register += ["--nameserver-credentials", "registrar.toml"]
        own = [*tls, "--keys", "objects-keys.toml", "--allow-authenticated"]
        with started(files, "serve", "counting:Counter", *register, *own):
            yield address


@pytest.fixture
def names(lab: pathlib.Path, files: pathlib.Path, at: str) -> list[str]:
    """What reaches the name server, as `reader`."""
    return [
        *("--nameserver", at, "--nameserver-tls-ca", f"{lab}/ca.pem"),
        *("--nameserver-credentials", f"{files}/reader.toml"),
    ]


@pytest.fixture
def own(lab: pathlib.Path, files: pathlib.Path) -> list[str]:
    """What reaches the object's server."""
    return ["--tls-ca", f"{lab}/ca.pem", "--credentials", f"{files}/caller.toml"]


def run(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, list(args), env=env)


def test_an_object_is_found_and_called(names: list[str], own: list[str]) -> None:
    done = run("call", *names, *own, "PYRONAME:Counter", "add", "5")
    assert (done.exit_code, done.stdout) == (0, "5\n"), done.output
    assert "add(k: int) -> int" in run("call", *names, *own, "PYRONAME:Counter").stdout
    done = run("stubs", *names, *own, "PYRONAME:Counter")
    assert "def add(self, k: int) -> int:" in done.stdout


def test_what_is_for_names_is_not_for_objects_nor_the_other_way_round(
    names: list[str], own: list[str], files: pathlib.Path, at: str
) -> None:
    done = run("call", *names, *own[:2], "PYRONAME:Counter", "add", "5")
    assert done.exit_code == 3
    assert "add --credentials, or --tls-cert and --tls-key" in done.stderr
    done = run("call", *own, "--nameserver", at, "PYRONAME:Counter", "add", "5")
    assert done.exit_code == 3
    assert f"the name server at {at} could not be asked" in done.stderr
    assert "speaks TLS only; add --nameserver-tls-ca" in done.stderr
    done = run("call", *names[:4], *own, "PYRONAME:Counter", "add", "5")
    assert "add --nameserver-credentials, or --nameserver-tls-cert and --nameserver-tls-key" in done.stderr
    assert "NameServers" not in done.stderr


def test_names_are_listed_and_refused_as_the_rules_say(names: list[str]) -> None:
    assert set(json.loads(run("names", "ls", *names, "--json").stdout)) == {"Counter", "Pyro.NameServer"}
    assert run("names", *names, "--prefix", "Count").stdout.startswith("Counter\tPYRO:Counter@localhost:")
    assert run("names", "get", *names, "Counter").stdout.startswith("PYRO:Counter@localhost:")
    assert "Counter" in run("names", "tree", *names).stdout
    refused = run("names", "set", *names, "mine", "PYRO:x@localhost:1")
    assert (refused.exit_code, "'reader' may not call register" in refused.stderr) == (3, True)
    refused = run("names", "rm", *names, "Counter")
    assert refused.exit_code == 3
    assert "names that begin with 'Count' are reserved, and not for 'reader'" in refused.stderr


def test_the_environment_says_the_same_for_its_own_name_servers(
    lab: pathlib.Path, files: pathlib.Path, at: str, own: list[str]
) -> None:
    environment = {
        "OBJSERVER_NAMESERVERS": at,
        "OBJSERVER_NAMESERVERS_TLS_CA": f"{lab}/ca.pem",
        "OBJSERVER_NAMESERVERS_CREDENTIALS": f"{files}/reader.toml",
    }
    done = run("call", *own, "PYRONAME:Counter", "add", "0", env=environment)
    assert done.exit_code == 0, done.output
    assert run("names", "get", "Counter", env=environment).exit_code == 0
    port = at.rpartition(":")[2]
    other = run("names", "get", "Counter", "--nameserver", f"127.0.0.1:{port}", env=environment)
    assert (other.exit_code, "speaks TLS only" in other.stderr) == (3, True)


def test_a_server_whose_names_are_not_wanted_is_not_started(names: list[str], files: pathlib.Path) -> None:
    wrong = run("serve", "json:loads", *names[:4])
    assert wrong.exit_code == 3
    assert "add --nameserver-credentials" in wrong.stderr
    lost = run("serve", "json:loads", *names[2:])
    assert lost.exit_code == 2
    assert "what is shown to name servers goes with --nameserver" in lost.stderr


def test_at_sighup_names_are_registered_as_the_files_say_by_then(
    lab: pathlib.Path, files: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    accepted = {"old": AcceptedKey(bytes([8]) * 32, name="bench")}
    renewed: SimpleQueue[str] = SimpleQueue()
    authentication = Authentication(keys=accepted)
    with NameServerDaemon(
        "localhost:0", authentication=authentication, authorization=ALLOW_AUTHENTICATED
    ) as daemon:
        shown = tmp_path / "shown.toml"
        shown.write_text(credentials_text("old", bytes([8]) * 32))
        shown.chmod(0o600)
        options = ["--nameserver", daemon.address, "--nameserver-credentials", str(shown)]
        process = subprocess.Popen(
            [sys.executable, "-m", "objserver", "serve", "counting:Counter", *options],
            cwd=files,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline().startswith("Counter ")
            assert process.stdout.readline() == "ready\n"
            accepted["new"] = AcceptedKey(bytes([9]) * 32, name="bench")
            del accepted["old"]

            def hook(principal: Principal) -> Principal:
                renewed.put(principal.name)
                return principal

            daemon.authentication = Authentication(keys=accepted, hook=hook)
            shown.write_text("broken")
            process.send_signal(signal.SIGHUP)
            while "stay as they were" not in process.stderr.readline():
                assert process.poll() is None
            shown.write_text(credentials_text("new", bytes([9]) * 32))
            process.send_signal(signal.SIGHUP)
            while "were read again" not in process.stderr.readline():
                assert process.poll() is None
            assert renewed.get(timeout=30) == "bench"
            assert daemon.names._index.entries["Counter"].owner == "bench"
        finally:
            process.terminate()
            process.communicate(timeout=30)
        assert set(daemon.names.list()) == {"Pyro.NameServer"}


def test_a_watcher_is_let_in_and_told(names: list[str], files: pathlib.Path) -> None:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "objserver", "names", "watch", "new", "--json", *names],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watcher.stdout is not None
        as_registrar = [*names[:4], "--nameserver-credentials", f"{files}/registrar.toml"]
        told: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=lambda: told.put(watcher.stdout.readline()), daemon=True).start()
        for number in itertools.count():  # until it has begun to watch
            assert run("names", "set", *as_registrar, f"new{number}", "PYRO:x@localhost:1").exit_code == 0
            try:
                line = told.get(timeout=1)
                break
            except Empty:
                assert watcher.poll() is None
                assert number < 30
        assert json.loads(line)["uri"] == "PYRO:x@localhost:1"
        assert run("names", "rm", *as_registrar, "--prefix", "new", "--yes").exit_code == 0
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=30)


def test_options_are_apart() -> None:
    given: dict[str, Any] = {"tls_ca": "ca", "credentials": "mine", "nameserver_tls_ca": "other", "x": 1}
    assert Shown.taken(given) == Shown(tls_ca="ca", credentials="mine")
    assert Names.taken(given) == Names(None, Shown(tls_ca="other"))
    assert Shown().load() == (None, None)
