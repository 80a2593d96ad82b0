"""The options of commands that serve, and what SIGHUP does with their files."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

import objserver
from objserver import ObjectServer, Proxy, errors, expose
from objserver.cli.guarding import Guarding
from objserver.cli.main import main
from objserver.security import ClientTLS, SharedKey
from objserver.security.files import keys_text

# The children run elsewhere, where a relative PYTHONPATH would not find the package.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(objserver.__file__).parents[1])}
BOUND_S = 30
OLD, NEW = SharedKey("old", bytes([1]) * 32), SharedKey("new", bytes([2]) * 32)
RULE = '[[rule]]\neffect = "allow"\nprincipals = ["*"]\nobjects = ["{}"]\n'


@expose
class Thing:
    def add(self, a: int, b: int) -> int:
        return a + b


def write(path: pathlib.Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def write_keys(directory: pathlib.Path, *keys: SharedKey) -> str:
    return write(directory / "keys.toml", "\n".join(keys_text(k.id, bytes(k.secret), "") for k in keys))


@pytest.fixture
def files(lab: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with all that a server can be given."""
    for name in ("server.pem", "server.key", "ca.pem"):
        shutil.copy(lab / name, tmp_path)
    write_keys(tmp_path, OLD)
    write(tmp_path / "rules.toml", RULE.format("Thing"))
    return tmp_path


def guarding(files: pathlib.Path) -> Guarding:
    return Guarding(
        tls_cert=f"{files}/server.pem",
        tls_key=f"{files}/server.key",
        tls_client_ca=None,
        keys_file=f"{files}/keys.toml",
        rules=f"{files}/rules.toml",
        allow_authenticated=False,
        audit=None,
        insecure=False,
    )


def test_all_files_count_or_none(files: pathlib.Path) -> None:
    guard = guarding(files)
    with ObjectServer(**guard.options()) as server:
        uri = server.register(Thing, "Thing")
        tls = ClientTLS(ca=f"{files}/ca.pem")

        def lets_in(key: SharedKey) -> bool:
            try:
                with Proxy(uri, tls=tls, credentials=key) as thing:
                    return bool(thing.add(1, 1) == 2)
            except (errors.AuthenticationFailed, errors.NotAuthorized):
                return False

        certificate = (files / "server.pem").read_text()
        write_keys(files, NEW)
        for name, text, place in (
            (
                "rules.toml",
                RULE.format("Thing") + "\n[[rule]]\neffect = 5\n",
                r"rules\.toml, rule 2 \(line 6\)",
            ),
            ("rules.toml", "[[rule]\n", r"rules\.toml is not TOML: .* line 1"),
            ("server.pem", "nothing", r"certificate .*server\.pem"),
            ("keys.toml", '[new]\nsecret = "hush"', r"keys\.toml, line 1: the key 'new'"),
            ("keys.toml", keys_text("new", bytes(32), "a/b"), r"keys\.toml: .*a slash comes before"),
        ):
            kept = (files / name).read_text()
            write(files / name, text)
            with pytest.raises(errors.RegistrationError, match=place):
                guard.read_again(server)
            assert (lets_in(OLD), lets_in(NEW)) == (True, False)
            write(files / name, kept)
        assert certificate == (files / "server.pem").read_text()
        guard.read_again(server)
        assert (lets_in(OLD), lets_in(NEW)) == (False, True)
        write(files / "rules.toml", RULE.format("Another"))
        guard.read_again(server)
        assert not lets_in(NEW)


def test_a_connection_that_is_open_goes_on_by_the_new_rules(files: pathlib.Path) -> None:
    guard = guarding(files)
    with ObjectServer(**guard.options()) as server:
        uri = server.register(Thing, "Thing")
        with Proxy(uri, tls=ClientTLS(ca=f"{files}/ca.pem"), credentials=OLD) as thing:
            assert thing.add(1, 1) == 2
            write_keys(files, NEW)
            write(files / "rules.toml", RULE.format("Thing") + "methods = ['size']\n")
            guard.read_again(server)
            with pytest.raises(errors.NotAuthorized):
                thing.add(1, 1)


def test_a_certificate_is_what_the_others_go_with() -> None:
    with pytest.raises(click.UsageError, match="go with --tls-cert"):
        Guarding(
            tls_cert=None,
            tls_key="x",
            tls_client_ca=None,
            keys_file=None,
            rules=None,
            allow_authenticated=False,
            audit=None,
            insecure=False,
        )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--keys", "keys.toml"], "nobody may ask this name server: add --rules, or --allow-authenticated"),
        (["--rules", "rules.toml"], "are for who is known: add --keys or --tls-client-ca"),
        (["--reserve", "bank/=tellers"], "are for who is known: add --keys or --tls-client-ca"),
        (
            ["--keys", "k", "--rules", "r", "--reserve", "bank/"],
            "'bank/' reserves nothing; write for example",
        ),
        (["--keys", "k", "--rules", "r", "--reserve", "bank/=a,"], "'bank/=a,' reserves nothing"),
        (["--tls-key", "k"], "--tls-key and --tls-client-ca go with --tls-cert"),
    ],
)
def test_a_name_server_that_nobody_could_use_as_meant_is_not_started(
    options: list[str], sentence: str
) -> None:
    result = CliRunner().invoke(main, ["nameserver", "--address", "localhost:0", "--no-beacon", *options])
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.fixture(params=["serve", "nameserver"])
def process(files: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A server of `Thing`, or a name server, with everything in files."""
    write(files / "things.py", "from tests.cli.test_guarding import Thing\n")
    write(files / "rules.toml", RULE.format("*"))
    command = [sys.executable, "-m", "objserver", request.param, "--address", "localhost:0"]
    command += ["things:Thing"] if request.param == "serve" else ["--no-beacon"]
    for option, name in (("tls-cert", "server.pem"), ("tls-key", "server.key"), ("keys", "keys.toml")):
        command += [f"--{option}", name]
    command += ["--rules", "rules.toml"]
    with open(files / "stderr", "w") as stderr:
        process = subprocess.Popen(
            command, cwd=files, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    yield process
    process.terminate()
    process.communicate(timeout=BOUND_S)


def test_at_sighup_a_command_reads_its_files_again(
    process: subprocess.Popen[str], files: pathlib.Path
) -> None:
    assert process.stdout is not None
    uri = process.stdout.readline().split()[-1]
    assert process.stdout.readline() == "ready\n"
    tls = ClientTLS(ca=f"{files}/ca.pem")

    def hang_up(expected: str) -> None:
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + BOUND_S
        while expected not in (files / "stderr").read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline, (files / "stderr").read_text()

    def connects(key: SharedKey) -> bool:
        try:
            Proxy(uri, tls=tls, credentials=key)._pyroBind()
        except errors.AuthenticationFailed:
            return False
        return True

    write_keys(files, NEW)
    write(files / "rules.toml", RULE.format("*") + "\n[[rule]]\neffect = 'maybe'\n")
    hang_up("stay as they were: rules.toml, rule 2 (line 6): effect is")
    assert (connects(OLD), connects(NEW)) == (True, False)
    write(files / "rules.toml", RULE.format("*"))
    hang_up("certificates, keys and rules were read again\n")
    assert (connects(OLD), connects(NEW)) == (False, True)
    lines = (files / "stderr").read_text().splitlines()
    assert len([line for line in lines if "certificates, keys and rules" in line]) == 2
