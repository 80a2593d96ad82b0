"""Sphinx configuration, and the one directive that lists the limits out of their source."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import itertools
import pathlib
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import objserver

project = "objserver"
author = "the objserver authors"
project_copyright = f"2026, {author}"
release = version = objserver.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"  # docstrings are written with single backticks
html_theme = "furo"
html_title = f"objserver {release}"
exclude_patterns = ["_build"]


class LimitsTable(SphinxDirective):
    """`{limits-table} package.Class`: name, default and reason of every field, from the class's source."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        body = ast.parse(inspect.getsource(cls)).body[0].body
        lines = ["| setting | default | reason |", "|---|---|---|"]
        for field, reason in itertools.pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(reason, ast.Expr)):
                continue
            name = field.target.id
            default = getattr(cls, name, None)
            text = " ".join(reason.value.value.split())
            lines.append(f"| `{name}` | {_shown(name, default)} | {text} |")
        return self.parse_text_to_nodes("\n".join(lines))


def _shown(name: str, value: object) -> str:
    is_size = name.endswith(("size_max", "memory_max"))
    if is_size and isinstance(value, int) and value >= 1024 and value % 1024 == 0:
        return f"{value // 2**20} MiB" if value % 2**20 == 0 else f"{value // 1024} KiB"
    return f"{value:,}" if type(value) is int else str(value)


def _indented_is_code(app: Sphinx, what: str, name: str, obj: object, opts: object, lines: list[str]) -> None:
    """Docstrings are written to be read in the source: an indented block there is code."""
    for at in range(len(lines) - 1, 0, -1):
        before = next((line for line in reversed(lines[:at]) if line.strip()), "")
        starts = lines[at].startswith("    ") and not lines[at - 1].strip()
        if starts and not before.startswith((" ", "-", "::", ">>>")):
            lines[at:at] = ["::", ""]


def _say_whose(app: Sphinx, name: str, obj: object, opts: object, bases: list[object]) -> None:
    """Bases are shown by their last name only, and Pyro5 has a TimeoutError too."""
    for at, base in enumerate(bases):
        module = getattr(base, "__module__", builtins.__name__)
        if module.startswith("Pyro5"):
            bases[at] = f"``{module}.{base.__qualname__}``"


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-bases", _say_whose)
    app.connect("autodoc-process-docstring", _indented_is_code)
    app.add_directive("limits-table", LimitsTable)
