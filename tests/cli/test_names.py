"""`objserver names` against a name server in this process."""

from __future__ import annotations

import json

from click.testing import CliRunner

from objserver.cli.main import main
from objserver.naming import NameServerDaemon


def test_names_as_a_table_and_as_json() -> None:
    with NameServerDaemon("localhost:0") as daemon:
        daemon.names.register("shop.[b]cart", "PYRO:cart@localhost:1", metadata={"t"})
        options = ["names", "--nameserver", daemon.address, "--prefix", "shop"]
        table = CliRunner().invoke(main, options)
        data = CliRunner().invoke(main, [*options, "--json"])
    assert "shop.[b]cart" in table.output
    assert "PYRO:cart@localhost:1" in table.output
    assert "Pyro.NameServer" not in table.output
    assert json.loads(data.output) == {"shop.[b]cart": {"uri": "PYRO:cart@localhost:1", "metadata": ["t"]}}


def test_no_name_server() -> None:
    result = CliRunner().invoke(main, ["names", "--nameserver", "localhost:1"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert CliRunner().invoke(main, ["names", "--nameserver", "x:y"]).exit_code == 2
