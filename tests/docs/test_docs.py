"""The examples of README.md and the docs run as they stand."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import objserver
from objserver.cli.main import main
from objserver.codecs import native

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (objserver|make) +([^#\n]*)", re.MULTILINE)
ALL_PAGES = sorted(
    page for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "_build" not in page.parts
)
PAGES = [page for page in ALL_PAGES if BLOCK.search(page.read_text("utf-8"))]
COMMANDS = sorted({found for page in ALL_PAGES for found in COMMAND.findall(page.read_text("utf-8"))})


def program(page: pathlib.Path) -> str:
    """The blocks of a page on the lines where they stand, so that a traceback points into the page."""
    text = page.read_text("utf-8")
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        start = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines) + "\n"


def test_there_are_examples_to_run() -> None:
    assert ROOT / "README.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "page.py"
    script.write_text(program(page), "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{page}:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(("program", "arguments"), COMMANDS, ids=" ".join)
def test_the_commands_of_a_page_exist(program: str, arguments: str) -> None:
    if program == "make":
        assert f"\n{arguments.strip()}:" in (ROOT / "Makefile").read_text("utf-8")
        return
    name, *options = shlex.split(arguments)
    main.commands[name].make_context(name, options)  # parses, and runs nothing


def test_every_public_name_is_in_the_reference() -> None:
    pages = [ROOT / "docs" / "reference" / name for name in ("api.md", "limits.md")]
    reference = "".join(page.read_text("utf-8") for page in pages)
    documented = set(re.findall(r"objserver\.(?:\w+\.)*(\w+)", reference))
    assert set(objserver.__all__) - documented == set()


def test_every_logger_is_documented() -> None:
    page = (ROOT / "docs" / "howto" / "watch_a_server.md").read_text("utf-8")
    sources = (source.read_text("utf-8") for source in (ROOT / "objserver").rglob("*.py"))
    loggers = {name for source in sources for name in re.findall(r'getLogger\("([\w.]+)"\)', source)}
    assert {name for name in loggers if f"| `{name}` |" not in page} == set()


def test_every_figure_is_documented(tmp_path: pathlib.Path) -> None:
    page = (ROOT / "docs" / "howto" / "watch_a_server.md").read_text("utf-8")
    server = objserver.ObjectServer("localhost:0", store=f"sqlite:///{tmp_path}/figures.db")
    try:
        assert {figure for figure in server.statistics() if f"`{figure}`" not in page} == set()
    finally:
        server.stop()


def test_every_ext_tag_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "wire.md").read_text("utf-8")
    table = page.partition("| tag | type |")[2].partition("\n\n")[0]
    assert {int(tag) for tag in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == set(native._DECODERS)


def test_every_module_is_in_the_architecture() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
    for room in re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{room}` |"))
        modules = {file.stem for file in (ROOT / "objserver" / room).glob("[!_]*.py")}
        assert modules - set(re.findall(r"`(\w+)`", row)) == set(), room
