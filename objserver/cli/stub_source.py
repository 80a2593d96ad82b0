"""Typed stubs: descriptions of classes in, the source text of a Python module out.

For every class there are two that only type checkers and editors look at: `Account` for `connect()`, and
`AsyncAccount`, whose members are awaited, for `connect_async()`.  They are plain classes and not protocols,
since type checkers let nobody pass a protocol where a class is asked for.

Descriptions come from servers, and the text made of them is going to be imported.  So nothing of them gets
into it as it is: names must be identifiers, types and defaults are parsed and written anew from the few
kinds of syntax that they can consist of, docstrings are quoted.  What does not fit becomes `Any`.

The layout is the one that ruff (and black) would choose at 88 columns and leave alone above; tests hold it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import keyword
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from objserver.client import AsyncProxy, Proxy

__all__ = ["IDENTIFIER_MAX", "StubModule", "default_text", "signature", "type_text"]

WIDTH = 88
IDENTIFIER_MAX = 200
"""Characters of a name; longer ones are no work of a person."""
_OWN = {
    is_async: frozenset(name for name in dir(proxy) if not name.startswith("_"))
    for is_async, proxy in ((False, Proxy), (True, AsyncProxy))
}
"""Public names of a proxy hide remote members of the same name."""
_PASSED_ON = frozenset(name for name in vars(Proxy) if name in {
    "__contains__", "__delitem__", "__getitem__", "__iter__", "__len__", "__setitem__",
})  # fmt: skip
_IGNORED = "  # type: ignore[import-not-found, import-untyped, attr-defined, unused-ignore]"
Type = Mapping[str, Any] | None


class _Unfit(ValueError):
    """A text that is no type, or no literal, of the kinds that are written."""


def _is_name(text: object) -> bool:
    return (
        isinstance(text, str)
        and len(text) <= IDENTIFIER_MAX
        and text.isidentifier()
        and not keyword.iskeyword(text)
    )


# -- literals and types ------------------------------------------------------------------------------


def _quoted(value: str | bytes) -> str:
    """repr() in the quotes that formatters prefer: double ones, unless that takes more backslashes."""
    text = repr(value)
    prefix, text = ("b", text[1:]) if isinstance(value, bytes) else ("", text)
    quotes, body = text[0], text[1:-1]
    plain = body.replace("\\'", "'")
    if quotes == "'" and plain.count('"') <= plain.count("'"):
        plain = plain.replace('"', '\\"')
        return f'{prefix}"{plain}"'
    return prefix + text


def _constant(value: object) -> str:
    if isinstance(value, (str, bytes)):
        return _quoted(value)
    return "..." if value is ... else repr(value).replace("e+", "e")


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return _constant(value)


def default_text(text: str) -> str:
    """The source text of a default value: a literal, or `...` for anything else."""
    try:
        return _literal(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return "..."


class _Imports:
    """What the module imports, each under a local name that nothing else in it has."""

    def __init__(self, taken: Iterable[str], stubs: Mapping[tuple[str, str], str]) -> None:
        self._taken = {*taken, "TYPE_CHECKING", "annotations"}
        self._stubs = stubs
        self.asynchronous = False
        """An object that arrives through an asynchronous proxy has one of that kind."""
        self._locals: dict[tuple[str, str], str] = {}

    def local(self, module: str, qualname: str) -> str:
        """How the module says `qualname` of `module`."""
        if (module, qualname) in self._stubs:
            return "Async" * self.asynchronous + self._stubs[module, qualname]
        first, dot, rest = qualname.partition(".")
        name = self._locals.get((module, first))
        if name is None:
            if module == "builtins" and first not in self._taken:
                return qualname
            name = first
            while name in self._taken or (name != first and hasattr(builtins, name)):
                name = f"_{name}"
            self._taken.add(name)
            self._locals[module, first] = name
        return name + dot + rest

    def lines(self, *, pyi: bool, remote: bool) -> list[str]:
        """The import statements; of a live object, the server's own classes for type checkers only."""
        standard: dict[str, list[str]] = {}
        others: dict[str, list[str]] = {}
        for (module, first), name in sorted(self._locals.items()):
            known = module.partition(".")[0] in sys.stdlib_module_names
            importing = first if name == first else f"{first} as {name}"
            (standard if known else others).setdefault(module, []).append(importing)
        guarded = bool(others) and remote and not pyi
        if guarded:
            standard.setdefault("typing", []).append("TYPE_CHECKING")
        lines = [line for module in sorted(standard) for line in _import(module, standard[module])]
        if not others:
            return lines
        if lines:
            lines.append("")
        tail = _IGNORED if remote else ""
        theirs = [line for module in others for line in _import(module, others[module], tail)]
        if not remote:
            return lines + theirs
        comment = [
            "# Classes of the server's program: where it is not installed, they count as Any.",
        ]
        if guarded:
            return [*lines, "if TYPE_CHECKING:", *(f"    {line}" for line in comment + theirs)]
        return lines + comment + theirs

    # -- types ---------------------------------------------------------------------------------------

    def type_text(self, described: Type) -> str:
        """A described type in the words of this module; Any if there is none, or it is no type."""
        try:
            return self._type(described)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError, KeyError):
            return self.local("typing", "Any")

    def _type(self, described: Type) -> str:
        if described is None:
            raise _Unfit
        names = {f"{module}.{name}": (module, name) for module, name in described["names"]}
        if not all(_is_name(part) for dotted in names for part in dotted.split(".")):
            raise _Unfit
        return self._node(ast.parse(described["text"], mode="eval").body, names)

    def _node(self, node: ast.AST, names: Mapping[str, tuple[str, str]]) -> str:
        match node:
            case ast.Constant(value=value) if value is None or value is ... or type(value) in _CONSTANTS:
                return _constant(value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
                return f"-{value}"
            case ast.Name(id=name) if isinstance(getattr(builtins, name, None), type):
                return self.local("builtins", name)
            case ast.Attribute(value=of, attr=attribute):
                dotted = ast.unparse(node)
                if dotted in names:
                    return self.local(*names[dotted])
                if isinstance(of, ast.Attribute):  # a member of an enum
                    return f"{self._node(of, names)}.{attribute}"
            case ast.Subscript(value=of, slice=ast.Tuple(elts=[])):
                return f"{self._node(of, names)}[()]"
            case ast.Subscript(value=of, slice=ast.Tuple(elts=parts)):
                return f"{self._node(of, names)}[{', '.join(self._node(part, names) for part in parts)}]"
            case ast.Subscript(value=of, slice=part):
                return f"{self._node(of, names)}[{self._node(part, names)}]"
            case ast.List(elts=parts):
                return f"[{', '.join(self._node(part, names) for part in parts)}]"
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return f"{self._node(left, names)} | {self._node(right, names)}"
        raise _Unfit


_CONSTANTS = (str, bytes, int, bool)


def type_text(described: Type) -> str:
    """A described type for people: `Any` is written out, names are short."""
    return _Imports((), {}).type_text(described)


# -- signatures --------------------------------------------------------------------------------------


def _parameters(member: Mapping[str, Any], imports: _Imports) -> list[str]:
    """The parameters after `self`, with the markers that belong between them."""
    texts: list[str] = []
    before = ""
    keyword_only = False
    for parameter in member["parameters"]:
        kind, name = parameter["kind"], parameter["name"]
        if not _is_name(name):
            return [f"*args: {imports.type_text(None)}", f"**kwargs: {imports.type_text(None)}"]
        if before == "positional_only" and kind != before:
            texts.append("/")
        if kind == "keyword_only" and not keyword_only:
            texts.append("*")
        keyword_only = keyword_only or kind in ("keyword_only", "var_positional")
        stars = {"var_positional": "*", "var_keyword": "**"}.get(kind, "")
        text = f"{stars}{name}: {imports.type_text(parameter['type'])}"
        if parameter["default"] is not None and not stars:
            default = default_text(parameter["default"])
            if default == "None" and not text.endswith(("None", "Any", "object")):
                text += " | None"  # as everybody reads it, but type checkers
            text += f" = {default}"
        texts.append(text)
        before = kind
    return [*texts, "/"] if before == "positional_only" else texts


def _returned(member: Mapping[str, Any], imports: _Imports, *, is_async: bool) -> str:
    if member.get("oneway"):
        return "None"
    text = imports.type_text(member["returns"])
    if member.get("generator"):
        return f"{imports.local('collections.abc', 'AsyncIterator' if is_async else 'Iterator')}[{text}]"
    return text


def signature(name: str, member: Mapping[str, Any]) -> str:
    """A member in one line for people: `deposit(amount: int) -> int`, or `balance: int`."""
    imports = _Imports((), {})
    returned = _returned(member, imports, is_async=False)
    if member["kind"] == "attribute":
        return f"{name}: {returned}"
    return f"{name}({', '.join(_parameters(member, imports))}) -> {returned}"


# -- the module --------------------------------------------------------------------------------------


class StubModule:
    """The module for some descriptions (see `adapter.describe`).

    `source` is what it is written from: the TARGET of the command.  `remote` says that the classes live in a
    server's program, so that they can not be counted on here.
    """

    def __init__(
        self,
        descriptions: Iterable[Mapping[str, Any]],
        *,
        source: str,
        remote: bool = False,
        sync: bool = True,
        asynchronous: bool = True,
        pyi: bool = False,
    ) -> None:
        self._descriptions = [*descriptions]
        self._source = source
        self._remote = remote
        self._pyi = pyi
        self._kinds = [is_async for is_async, wanted in ((False, sync), (True, asynchronous)) if wanted]
        names = {(each["module"], each["name"]): _class_name(each["name"]) for each in self._descriptions}
        taken = {member for each in self._descriptions for member in each["members"]}
        for name in names.values():
            taken |= {name, f"Async{name}"}
        self._imports = _Imports(taken, names)

    def text(self) -> str:
        """The source of the module."""
        classes = [
            self._class(each, is_async=is_async) for each in self._descriptions for is_async in self._kinds
        ]
        exported = sorted(name for each in self._descriptions for name in self._names(each))
        lines = [*self._docstring(), ""]
        if not self._pyi:
            lines += ["from __future__ import annotations", ""]
        if imports := self._imports.lines(pyi=self._pyi, remote=self._remote):
            lines += [*imports, ""]
        lines += _list("__all__ = [", [_quoted(name) for name in exported], "]")
        for block in classes:
            lines += ["", *([] if self._pyi else [""]), *block]
        return "\n".join(lines) + "\n"

    def _names(self, description: Mapping[str, Any]) -> list[str]:
        name = _class_name(description["name"])
        return [f"Async{name}" if is_async else name for is_async in self._kinds]

    def _docstring(self) -> list[str]:
        first = self._descriptions[0]
        name = _class_name(first["name"])
        methods = [each for each, member in first["members"].items() if member["kind"] == "method"]
        method = next((each for each in methods if _usable(each, False) and _usable(each, True)), None)
        usage = []
        if False in self._kinds:
            usage += ["", f'    {name.lower()} = connect("PYRO:...", {name})']
            usage += [f"    {name.lower()}.{method}(...)"] if method else []
        if True in self._kinds:
            usage += ["", f'    {name.lower()} = connect_async("PYRO:...", Async{name})']
            usage += [f"    await {name.lower()}.{method}(...)"] if method else []
        functions = [["connect", "connect_async"][is_async] for is_async in self._kinds]
        text = f"""\
Typed stubs of {self._source}, for editors and type checkers.

Written by `objserver stubs`: write it anew instead of changing it. The classes here
have no code; they say what proxies offer.

    from objserver import {", ".join(functions)}
"""
        return _doc(text.rstrip() + "\n" + "\n".join(usage), "")

    def _class(self, description: Mapping[str, Any], *, is_async: bool) -> list[str]:
        self._imports.asynchronous = is_async
        name = _class_name(description["name"])
        lines = [f"class {'Async' * is_async}{name}:"]
        blocks: list[list[str]] = []
        if description["doc"]:
            blocks.append(_doc(description["doc"], "    "))
        if description.get("unsigned"):
            blocks.append(["    # This server does not tell signatures: it is not objserver, or an old one."])
        for member_name, member in sorted(description["members"].items()):
            blocks.append(self._member(member_name, member, is_async=is_async))
        if not blocks or all(line.lstrip().startswith("#") for block in blocks for line in block):
            blocks.append(["    pass"])
        for number, block in enumerate(blocks):
            lines += block if number == 0 or self._adjoins(lines, block) else ["", *block]
        return lines

    def _adjoins(self, before: list[str], block: list[str]) -> bool:
        """In a .pyi, functions without a docstring follow each other without a blank line."""
        if before[-1].endswith(": ..."):
            return self._pyi and not block[0].lstrip().startswith("#")
        return self._pyi and before[-1].endswith("# fmt: on")

    def _member(self, name: str, member: Mapping[str, Any], *, is_async: bool) -> list[str]:
        if not _usable(name, is_async) and not (name in _PASSED_ON and not is_async):
            shown = _quoted(name[:IDENTIFIER_MAX])
            instead = f"await proxy.invoke({shown}, ...)" if is_async else f"invoke(proxy, {shown}, ...)"
            return [f"    # {shown} cannot be written on a proxy; use {instead}."]
        lines = []
        if member.get("unresolved"):
            shown = " and ".join(" ".join(each.split())[:WIDTH] for each in member["unresolved"])
            lines.append(f"    # Any stands here for {_printable(shown)}".rstrip())
        if member["kind"] == "attribute":
            value = _returned(member, self._imports, is_async=is_async)
            if is_async:
                value = f"{self._imports.local('collections.abc', 'Awaitable')}[{value}]"
            lines += ["    @property", *self._function(name, ["self"], value, member["doc"])]
            if not member["readonly"] and not is_async:
                value_first = ["self", f"value: {value}"]
                setter = [f"    @{name}.setter", *self._function(name, value_first, "None", "")]
                lines += setter if self._adjoins(lines, setter) else ["", *setter]
        else:
            parameters = _parameters(member, self._imports)
            own = "_self" if any(text.split(":")[0].lstrip("*") == "self" for text in parameters) else "self"
            returned = _returned(member, self._imports, is_async=is_async)
            keyword_ = "async def" if is_async and not member["generator"] else "def"
            lines += self._function(name, [own, *parameters], returned, member["doc"], keyword_)
        if any(len(line) > WIDTH for line in _code(lines)):
            return ["    # fmt: off", *lines, "    # fmt: on"]
        return lines

    def _function(
        self, name: str, parameters: list[str], returned: str, doc: str, keyword_: str = "def"
    ) -> list[str]:
        end = f") -> {returned}:"
        ellipsis = self._pyi and not doc
        line = f"    {keyword_} {name}({', '.join(parameters)}{end}"
        if len(line) + 4 * ellipsis <= WIDTH:
            lines = [line]
        else:
            lines = [f"    {keyword_} {name}(", *(f"        {each}," for each in parameters), f"    {end}"]
        if ellipsis:
            lines[-1] += " ..."
            return lines
        if doc:
            lines += _doc(doc, "        ")
        if not self._pyi:
            lines.append("        raise NotImplementedError")
        return lines


def _usable(name: str, is_async: bool) -> bool:
    return _is_name(name) and not name.startswith("_") and name not in _OWN[is_async]


def _class_name(name: str) -> str:
    """A name for a class: that of the class, else made of an object id."""
    words = "".join(c if c.isalnum() or c == "_" else " " for c in name).split()
    joined = "".join(word[:1].upper() + word[1:] for word in words)[:IDENTIFIER_MAX]
    return name if _is_name(name) and not name.startswith("_") else joined if _is_name(joined) else "Object"


def _import(module: str, names: list[str], tail: str = "") -> list[str]:
    names = sorted(names, key=lambda name: (not name.isupper(), name))  # constants first, as isort has it
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= WIDTH - 4:
        return [line + tail]
    return [f"from {module} import ({tail}", *(f"    {name}," for name in names), ")"]


def _list(start: str, items: list[str], end: str) -> list[str]:
    line = f"{start}{', '.join(items)}{end}"
    return [line] if len(line) <= WIDTH else [start, *(f"    {item}," for item in items), end]


def _code(lines: list[str]) -> Iterator[str]:
    """The lines that are not of a docstring."""
    inside = False
    for line in lines:
        text = line.lstrip()
        if inside:
            inside = text != '"""'
        elif text.startswith('"""'):
            inside = not (len(text) >= 6 and text.endswith('"""'))
        else:
            yield line


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def _doc(text: str, indent: str) -> list[str]:
    """A docstring, quoted, as formatters leave it."""
    text = inspect.cleandoc(inspect.cleandoc(text).strip()).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    lines = [_printable(line.rstrip()) for line in text.split("\n")]
    if lines[0].startswith('"'):
        lines[0] = "\\" + lines[0]
    if len(lines) == 1 and text.endswith('"') and not text.endswith('\\"\\"\\"'):
        lines[0] = lines[0].removesuffix('"').removesuffix("\\" if text == '"' else "") + '\\"'
    lines[0] = f'"""{lines[0]}'
    if len(lines) == 1:
        lines[0] += '"""'
    else:
        lines.append('"""')
    return [f"{indent}{line}" if line else "" for line in lines]
