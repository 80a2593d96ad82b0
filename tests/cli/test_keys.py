"""`objserver keys`, and that what it makes lets people in."""

from __future__ import annotations

import os
import pathlib
import signal
import stat
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

import objserver
from objserver.cli.main import main

# The children run elsewhere, where a relative PYTHONPATH would not find the package.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(objserver.__file__).parents[1])}
MODULE = """
from objserver import expose

@expose
class Counter:
    n = 0
    def add(self, k):
        self.n += k
        return self.n
"""


def start(directory: pathlib.Path, *args: str) -> tuple[subprocess.Popen[str], str]:
    """A server process that is ready, and the URI of what it serves."""
    (directory / "counting.py").write_text(MODULE)
    command = [sys.executable, "-m", "objserver", "serve", "counting:Counter", "--allow-authenticated", *args]
    with open(directory / "stderr", "w") as stderr:
        process = subprocess.Popen(
            command, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    assert process.stdout is not None
    uri = process.stdout.readline().split()[-1]
    assert process.stdout.readline() == "ready\n"
    return process, uri


def told(directory: pathlib.Path) -> str:
    """Standard error of the server."""
    return (directory / "stderr").read_text()


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=30)


def run(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def call(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "objserver", "call", *args]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.fixture
def made(tmp_path: pathlib.Path) -> pathlib.Path:
    for args in (
        ["ca", tmp_path],
        ["server", tmp_path, "localhost", "127.0.0.1"],
        ["client", tmp_path, "ann"],
        ["shared", tmp_path, "lab-1", "--name", "lab"],
    ):
        result = run("keys", *args)
        assert result.exit_code == 0, result.output
    return tmp_path


def test_who_gets_which_file_is_said(tmp_path: pathlib.Path) -> None:
    result = run("keys", "ca", tmp_path)
    assert f"{tmp_path}/ca.pem  for every server and client" in result.output
    assert f"{tmp_path}/ca.key  SECRET, stays here" in result.output


def test_secrets_are_for_their_owner_only(made: pathlib.Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        "ca.key", "server.key", "ann.key", "keys.toml", "lab-1.toml",
    }  # fmt: skip
    assert {name for name, mode in modes.items() if mode == 0o644} == {"ca.pem", "server.pem", "ann.pem"}


def test_no_secret_is_printed(tmp_path: pathlib.Path) -> None:
    result = run("keys", "shared", tmp_path, "lab")
    secret = (tmp_path / "lab.toml").read_text().split('"')[3]
    assert len(secret) == 64
    assert secret not in result.output


def test_nothing_is_made_twice(made: pathlib.Path) -> None:
    for args in (["ca", made], ["client", made, "ann"]):
        result = run("keys", *args)
        assert (result.exit_code, "exists and is not overwritten" in result.output) == (1, True)
    result = run("keys", "shared", made, "lab-1")
    assert (result.exit_code, "has a key lab-1 already" in result.output) == (1, True)


def test_without_an_authority_it_is_said_how_to_make_one(tmp_path: pathlib.Path) -> None:
    result = run("keys", "client", tmp_path, "ann")
    assert f"make one first: objserver keys ca {tmp_path}" in result.output


@pytest.mark.parametrize("id", ["", "../x", ".x", "keys", "a b"])
def test_an_id_that_is_no_file_is_refused(tmp_path: pathlib.Path, id: str) -> None:
    assert run("keys", "shared", tmp_path, id).exit_code == 2


def test_the_server_lets_in_who_has_a_key_or_a_certificate(made: pathlib.Path) -> None:
    pem, key, ca = (str(made / name) for name in ("server.pem", "server.key", "ca.pem"))
    options = ["--tls-cert", pem, "--tls-key", key, "--tls-client-ca", ca, "--keys", str(made / "keys.toml")]
    process, uri = start(made, *options)
    try:
        tls = ["--tls-ca", ca]
        own = ["--tls-cert", str(made / "ann.pem"), "--tls-key", str(made / "ann.key")]
        assert call(uri, "add", "5", *tls, "--credentials", str(made / "lab-1.toml")).stdout == "5\n"
        assert call(uri, "add", "5", *tls, *own).stdout == "10\n"
        nobody = call(uri, "add", "5", *tls)
        assert nobody.returncode == 3
        assert "add --credentials, or --tls-cert and --tls-key" in nobody.stderr
        plain = call(uri, "add", "5")
        assert plain.returncode == 3
        assert "this server speaks TLS only; add --tls-ca" in plain.stderr
    finally:
        end(process)


def test_files_are_read_again_at_sighup(made: pathlib.Path) -> None:
    accepted = made / "keys.toml"
    process, uri = start(made, "--keys", str(accepted))
    try:
        credentials = ["--credentials", str(made / "lab-1.toml")]
        assert call(uri, "add", "5", *credentials).stdout == "5\n"
        for text, sentence in (("hush", "stay as they were"), ('[x]\nsecret = "' + "00" * 32 + '"', "again")):
            accepted.write_text(text)
            process.send_signal(signal.SIGHUP)
            while sentence not in told(made):
                assert process.poll() is None
        assert "hush" not in told(made)
        assert call(uri, "add", "5", *credentials).returncode == 3
    finally:
        end(process)


def test_options_that_need_a_certificate_say_so(made: pathlib.Path) -> None:
    result = run("serve", "counting:Counter", "--tls-key", made / "server.key")
    assert result.exit_code == 2
