"""The source text of stubs: valid, laid out as formatters want it, and safe, whatever a server says."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objserver.cli.stub_source import StubModule, default_text, signature, type_text

TEXT = st.text(alphabet="ab \n\t\"'\\#{`é\r\x0c", max_size=40)


def method(**differently: Any) -> dict[str, Any]:
    usual = {"kind": "method", "doc": "", "returns": None, "readonly": False, "unresolved": []}
    return {**usual, "oneway": False, "generator": False, "async": False, "parameters": [], **differently}


def parameter(name: str, text: str | None = None, default: str | None = None, **names: str) -> dict[str, Any]:
    described = None if text is None else {"text": text, "names": [[m, n] for n, m in names.items()]}
    return {"name": name, "kind": "positional_or_keyword", "type": described, "default": default}


def module(members: dict[str, Any], *, name: str = "Account", doc: str = "", **options: Any) -> str:
    description = {"name": name, "module": "bank", "doc": doc, "members": members}
    return StubModule([description], source="bank", **options).text()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "int\nimport os",
        "int if print('x') else str",
        "[x for x in ()]",
        "lambda: 0",
        "print",
        "os.system",
        "list[int](print())",
        "list[" * 200,
        "f'{print()}'",
        "",
        "\x00",
    ],
)
def test_what_is_no_type_becomes_any(text: str) -> None:
    assert type_text({"text": text, "names": []}) == "Any"
    assert default_text(text) == "..."


def test_names_of_a_type_must_be_names() -> None:
    assert type_text({"text": "os.system", "names": [["os; import os", "system"]]}) == "Any"
    assert type_text({"text": "bank.Order", "names": [["bank", "Order"]]}) == "Order"
    assert type_text({"text": "bank.Colour.RED", "names": [["bank", "Colour"]]}) == "Colour.RED"
    assert type_text({"text": "bank.class", "names": [["bank", "class"]]}) == "Any"
    assert type_text({"text": 5, "names": []}) == "Any"


def test_no_name_of_a_server_gets_into_the_module_unless_it_is_one() -> None:
    evil = "x(self): pass\nimport os #"
    text = module({evil: method(doc=evil), "pass": method(), "_x": method()}, name=evil, doc=evil)
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["XSelfPassImportOs", "AsyncXSelfPassImportOs"]
    assert not [node for each in classes for node in each.body if isinstance(node, ast.FunctionDef)]


def test_a_method_whose_parameters_have_no_names_takes_anything() -> None:
    member = method(parameters=[parameter("x: int = os")])
    assert signature("f", member) == "f(*args: Any, **kwargs: Any) -> Any"


def test_signatures_for_people() -> None:
    member = method(parameters=[parameter("words", "str"), parameter("limit", "int", "None")], generator=True)
    assert signature("search", member) == "search(words: str, limit: int | None = None) -> Iterator[Any]"
    attribute = {"kind": "attribute", "returns": {"text": "int", "names": []}}
    assert signature("balance", attribute) == "balance: int"


def test_a_type_that_is_named_like_a_member_is_imported_under_another_name() -> None:
    text = module({"list": method(parameters=[parameter("x", "list[bank.Any]", Any="bank")])})
    assert "from builtins import list as _list" in text
    assert "def list(self, x: _list[Any]) -> _Any:" in text


def test_names_that_the_proxy_uses_itself_are_not_promised() -> None:
    text = module({"release": method(), "__len__": method(returns={"text": "int", "names": []})})
    assert '# "release" cannot be written on a proxy; use invoke(proxy, "release", ...).' in text
    assert '# "release" cannot be written on a proxy; use await proxy.invoke("release", ...).' in text
    assert "def release" not in text
    assert "def __len__(self) -> int:" in text
    assert "async def __len__" not in text
    assert module({"set": method(), "batch": method()}).count("    def set(") == 1


def test_a_class_that_offers_nothing_usable_is_still_one() -> None:
    ast.parse(module({"_x": method()}))
    ast.parse(module({}, pyi=True))


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=12), st.booleans())
@settings(max_examples=15, deadline=None)
def test_any_docstring_and_literal_comes_through_as_formatters_leave_it(
    texts: list[tuple[str, str, str]], pyi: bool
) -> None:
    members = {
        f"member{number}": method(
            doc=doc,
            unresolved=[other],
            parameters=[parameter("x", f"typing.Literal[{literal!r}]", repr(literal), Literal="typing")],
        )
        for number, (doc, literal, other) in enumerate(texts)
    }
    text = module(members, doc=texts[0][0], pyi=pyi)
    functions = {
        node.name: node
        for each in ast.parse(text).body
        if isinstance(each, ast.ClassDef) and each.name == "Account"
        for node in each.body
        if isinstance(node, ast.FunctionDef)
    }
    for number, (_, literal, _) in enumerate(texts):
        assert ast.literal_eval(functions[f"member{number}"].args.defaults[0]) == literal
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", "--stdin-filename"]
    done = subprocess.run([*command, f"x.py{'i' * pyi}", "-"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_signatures_that_are_too_long_are_laid_out_too(tmp_path: pathlib.Path) -> None:
    long = {f"{letter * 30}": method(parameters=[parameter(letter * 25, "int", "5")] * 1) for letter in "ab"}
    long["c"] = method(parameters=[parameter(f"{letter * 20}", "int", "5") for letter in "defgh"])
    long["i"] = method(returns={"text": f"dict[str, {'list[' * 20}int{']' * 20}]", "names": []})
    long["j"] = {**long["i"], "kind": "attribute"}
    for name in ("x.py", "x.pyi"):
        (tmp_path / name).write_text(module(long, pyi=name.endswith("i")))
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == ""
