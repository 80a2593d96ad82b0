"""The command as a whole."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

import objserver
from objserver.cli.main import main


def test_version() -> None:
    done = subprocess.run([sys.executable, "-m", "objserver", "--version"], capture_output=True, text=True)
    assert done.stdout.strip().endswith(objserver.__version__)


@pytest.mark.parametrize("command", ["serve", "nameserver", "names", "call"])
def test_help_has_examples(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert f"  objserver {command}" in result.output


def test_importing_the_command_loads_no_database() -> None:
    program = "import sys, objserver.cli.main; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
