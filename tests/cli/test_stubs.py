"""`objserver stubs`, judged by mypy and ruff, and by programs that use the stubs rightly and wrongly."""

from __future__ import annotations

import asyncio
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import Pyro5.api
import pytest
from click.testing import CliRunner, Result

from objserver import ObjectServer, connect, connect_async, expose
from objserver.cli.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]

BANK = '''
"""The user's module."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from objserver import expose, oneway, readonly

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Entry:
    amount: Decimal
    at: datetime


class Range(NamedTuple):
    first: int
    last: int


@expose
class Account:
    """Money, and who has it."""

    owner = "alice"

    def __init__(self) -> None:
        self._colour = Colour.RED

    def deposit(self, amount: int, *, note: str = "a 'gift'") -> int:
        """Add to the balance.

        Says "thanks" and \\\\o/ if asked.
        """
        return amount

    def entries(self, between: Range | None = None) -> Iterator[Entry]:
        yield Entry(Decimal(1), datetime.now())

    async def rates(self) -> Mapping[str, Decimal]:
        return {}

    @oneway
    def forget(self, entry: Entry) -> None:
        pass

    @readonly
    def list(self, first: list[int], /, *more: int, deep: bool = False, **rest: str) -> list[Entry]:
        return []

    @property
    def colour(self) -> Colour:
        """Of the card."""
        return self._colour

    @colour.setter
    def colour(self, colour: Colour) -> None:
        self._colour = colour

    @property
    def balance(self) -> int:
        return 0

    def release(self) -> None:
        pass

    def _audit(self) -> None:
        pass


@expose
class Branch:
    def account(self, owner: str) -> Account:
        return Account()


class Hidden:
    def secret(self) -> None:
        pass
'''

RIGHT = """
import asyncio
from decimal import Decimal
from typing import assert_type

from objserver import connect, connect_async
from bank import Colour, Entry, Range
from stubs import Account, AsyncAccount, AsyncBranch, Branch

account = connect("PYRO:Account@localhost:9091", Account)
assert_type(account.deposit(5, note="x"), int)
assert_type(account.balance, int)
account.colour = Colour.RED
for entry in account.entries(Range(1, 2)):
    assert_type(entry, Entry)
assert_type(account.list([1], 2, deep=True, x="y"), list[Entry])
account.forget(entry)
rates = account.rates()
assert_type(rates["EUR"], Decimal)
branch = connect("PYRO:Branch@localhost:9091", Branch)
assert_type(branch.account("bob").deposit(1), int)


async def main() -> None:
    account = connect_async("PYRO:Account@localhost:9091", AsyncAccount)
    assert_type(await account.deposit(5), int)
    assert_type(await account.balance, int)
    async for entry in account.entries():
        assert_type(entry, Entry)
    await account.forget(entry)
    assert_type((await account.rates())["EUR"], Decimal)
    branch = connect_async("PYRO:Branch@localhost:9091", AsyncBranch)
    assert_type(await (await branch.account("bob")).deposit(1), int)


asyncio.run(main())
"""

WRONG = """
from objserver import connect, connect_async
from stubs import Account, AsyncAccount

account = connect("PYRO:Account@localhost:9091", Account)
account.deposit("5")  # arg-type
account.withdraw(5)  # attr-defined
account.release()  # attr-defined
account._audit()  # attr-defined
account.balance = 3  # misc
account.deposit(5, "note")  # call-arg
account.list()  # call-arg


async def main() -> None:
    await account.deposit(5)  # misc
    later = connect_async("PYRO:Account@localhost:9091", AsyncAccount)
    later.deposit(5)  # unused-coroutine
    later.deposit(5) + 1  # operator
    later.balance + 1  # operator
    for entry in later.entries():  # attr-defined
        pass
    await later.deposit("5")  # arg-type
"""

CLASS_ITSELF = """
from typing import assert_type

from objserver import connect
from bank import Account

account = connect("PYRO:Account@localhost:9091", Account)
assert_type(account.deposit(5), int)
account.deposit("5")  # arg-type
account.withdraw(5)  # attr-defined
"""


def stubs(directory: pathlib.Path, *args: str) -> str:
    """Run the command as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "objserver", "stubs", *args],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("stubs")
    (directory / "bank.py").write_text(BANK.lstrip())
    stubs(directory, "bank", "--output", "stubs.py")
    for name, text in (("right", RIGHT), ("wrong", WRONG), ("class_itself", CLASS_ITSELF)):
        (directory / f"{name}.py").write_text(text.lstrip())
    return directory


def mypy(directory: pathlib.Path, *files: str) -> dict[str, dict[int, str]]:
    """File -> line -> code of each error.  The cache is shared: what we import takes most of the time."""
    options = ["--strict", "--follow-imports=silent", "--config-file=", "--show-error-codes"]
    options += ["--cache-dir", str(directory.parent / "mypy-cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files],
        cwd=directory,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, dict[int, str]] = {file: {} for file in files}
    pattern = re.compile(r"^([\w/.]+):(\d+): error: .*\[([\w-]+)\]$", re.MULTILINE)
    for file, line, code in pattern.findall(done.stdout):
        found[file][int(line)] = code
    assert sum(map(len, found.values())) == len(re.findall(": error: ", done.stdout)), done.stdout
    return found


def expected(directory: pathlib.Path, file: str) -> dict[int, str]:
    """The errors that the lines of a program announce in their comments."""
    lines = (directory / file).read_text().splitlines()
    return {number: line.partition("  # ")[2] for number, line in enumerate(lines, 1) if "  # " in line}


def ruff_differences(*files: pathlib.Path) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_mypy_knows_what_proxies_offer(programs: pathlib.Path) -> None:
    files = ("stubs.py", "right.py", "wrong.py", "class_itself.py")
    found = mypy(programs, *files)
    assert found["stubs.py"] == {}
    assert found["right.py"] == {}
    assert found["wrong.py"] == expected(programs, "wrong.py")
    assert found["class_itself.py"] == expected(programs, "class_itself.py")
    assert len(found["wrong.py"]) == 13


def test_a_formatter_leaves_stubs_alone(programs: pathlib.Path) -> None:
    stubs(programs, "bank", "--output", "formatted.pyi")
    assert ruff_differences(programs / "stubs.py", programs / "formatted.pyi") == ""


def test_the_stubs_can_be_imported_and_keep_docstrings(programs: pathlib.Path) -> None:
    scope: dict[str, Any] = {}
    sys.path.insert(0, str(programs))
    try:
        exec((programs / "stubs.py").read_text(), scope)
    finally:
        sys.path.remove(str(programs))
        sys.modules.pop("bank", None)
    assert scope["__all__"] == ["Account", "AsyncAccount", "AsyncBranch", "Branch"]
    assert scope["Account"].__doc__.strip() == "Money, and who has it."
    assert scope["AsyncAccount"].deposit.__doc__.splitlines()[2].strip() == 'Says "thanks" and \\o/ if asked.'
    assert "connect_async(" in scope["__doc__"]
    assert not {"_audit", "release", "owner"} & set(vars(scope["Account"]))


def test_a_live_object_is_enough(programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "objserver", "serve", "bank:Account"]
    with subprocess.Popen(
        command,
        cwd=programs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            uri = process.stdout.readline().split()[1]
            assert process.stdout.readline() == "ready\n"
            first = stubs(tmp_path, uri, "--output", "live.py") + (tmp_path / "live.py").read_text()
            again = stubs(tmp_path, uri)
            stubs(tmp_path, uri, "--output", "live_stubs.pyi")
        finally:
            process.terminate()
    assert first == again
    assert first.count("# Classes of the server's program") == 1
    from_class = stubs(programs, "bank:Account")
    body = "class Account:"
    assert first.partition(body)[2] == from_class.partition(body)[2] != ""
    # Here nobody has the module `bank`, and type checkers live with it.
    assert mypy(tmp_path, "live.py", "live_stubs.pyi") == {"live.py": {}, "live_stubs.pyi": {}}
    assert ruff_differences(tmp_path / "live.py", tmp_path / "live_stubs.pyi") == ""


@expose
class Counter:
    def up_to(self, end: int) -> Iterator[int]:
        yield from range(end)

    def add(self, a: int, b: int = 2) -> int:
        return a + b

    @property
    def colour(self) -> str:
        return "red"


def test_what_the_stubs_promise_is_what_proxies_do() -> None:
    def promised(name: str) -> Any:
        scope: dict[str, Any] = {}
        exec(run(uri).output, scope)
        return scope[name]

    async def use(counter: Any) -> list[Any]:
        return [await counter.add(1), await counter.colour, [item async for item in counter.up_to(2)]]

    with ObjectServer() as server:
        uri = str(server.register(Counter, "Counter"))
        with connect(uri, promised("Counter")) as counter:
            assert [counter.add(1), counter.colour, [*counter.up_to(2)]] == [3, "red", [0, 1]]

        async def main() -> list[Any]:
            async with connect_async(uri, promised("AsyncCounter")) as counter:
                return await use(counter)

        assert asyncio.run(main()) == [3, "red", [0, 1]]


@Pyro5.api.expose
class Stock:
    @property
    def name(self) -> str:
        return "stock"

    def add(self, a: int, b: int) -> int:
        return a + b

    @Pyro5.api.oneway
    def note(self, text: str) -> None:
        pass


@pytest.fixture
def stock_uri() -> Iterator[str]:
    with Pyro5.api.Daemon(host="127.0.0.1", port=0) as daemon:
        uri = str(daemon.register(Stock(), "shop.stock"))
        thread = threading.Thread(target=daemon.requestLoop, daemon=True)
        thread.start()
        yield uri
        daemon.shutdown()
        thread.join(10)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["stubs", *args])


def test_a_stock_server_tells_names_only(stock_uri: str) -> None:
    text = run(stock_uri).output
    assert "class ShopStock:" in text
    assert "# This server does not tell signatures" in text
    assert "def add(self, *args: Any, **kwargs: Any) -> Any:" in text
    assert "def note(self, *args: Any, **kwargs: Any) -> None:" in text
    assert "def name(self) -> Awaitable[Any]:" in text


@pytest.fixture
def name_server() -> Iterator[str]:
    from objserver.naming import NameServerDaemon

    with NameServerDaemon("localhost:0") as daemon:
        yield daemon.address


def test_a_name_will_do_and_parts_can_be_had(name_server: str) -> None:
    uri = f"PYRONAME:Pyro.NameServer@{name_server}"
    sync, asynchronous = run(uri, "--sync").output, run(uri, "--async").output
    assert re.findall(r"^class (\w+)", sync, re.MULTILINE) == ["NameServer"]
    assert re.findall(r"^class (\w+)", asynchronous, re.MULTILINE) == ["AsyncNameServer"]
    assert "async def" not in sync
    # `list` is a method of it, and so no type in its signatures.
    assert "def list(" in sync


@pytest.mark.parametrize(
    ("target", "code", "sentence"),
    [
        ("nowhere", 1, "cannot import nowhere"),
        ("json", 1, "the module json has no class that exposes anything"),
        ("json:JSONEncoder", 1, "JSONEncoder exposes nothing"),
        ("json:Nothing", 1, "json has no Nothing"),
        ("bank.py", 2, "is a file, not a module; write bank"),
        ("PYRO:x@localhost:1", 3, "cannot connect to localhost:1"),
        ("PYRO:x", 3, "lacks a location"),
    ],
)
def test_what_cannot_be_described(target: str, code: int, sentence: str) -> None:
    result = run(target)
    assert (result.exit_code, sentence in result.stderr, result.stdout) == (code, True, "")


def test_an_unknown_object(tmp_path: pathlib.Path) -> None:
    with ObjectServer() as server:
        result = run(f"PYRO:nothing@{server.address}")
    assert (result.exit_code, "unknown object 'nothing'" in result.stderr) == (3, True)
    result = run("objserver.naming:NameServer", "--output", str(tmp_path / "no" / "file.py"))
    assert (result.exit_code, "cannot write" in result.stderr) == (1, True)
