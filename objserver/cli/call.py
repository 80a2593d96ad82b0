"""`objserver call`: one call from the shell.

Arguments are read as Python literals, else as JSON, else they are text, so `5`, `[1, 2]`, `true` and `alice`
mean what they look like.  `key=value` is a keyword argument; quote text that has to stay text: `'"5"'`.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import click

__all__ = ["call"]

_KEYWORD = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("uri")
@click.argument("method")
@click.argument("args", nargs=-1, metavar="[ARG|KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of as Python.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Per call.")
def call(uri: str, method: str, args: tuple[str, ...], as_json: bool, timeout: float | None) -> None:
    """Call METHOD of the object at URI and print the result; an attribute is read.

    Items of a stream are printed one a line.  The exit code is 1 if the call raises.

    \b
    Examples:
      objserver call PYRO:Account/alice@localhost:9091 deposit 5
      objserver call PYRONAME:shop search "red shoes" limit=3 --json
      objserver call PYRONAME:calc add -1 2.5 --timeout 3
    """
    from objserver.client import Proxy, invoke
    from objserver.client.proxy import ItemStream

    for arg in args:
        if re.match(r"--[a-z]", arg):
            raise click.UsageError(f"there is no option {arg}; text that begins so is written '\"{arg}\"'")
    positional = [_value(arg) for arg in args if not _KEYWORD.fullmatch(arg)]
    keywords = {found[1]: _value(found[2]) for arg in args if (found := _KEYWORD.fullmatch(arg))}
    try:
        with Proxy(uri, timeout_s=timeout) as proxy:
            result = invoke(proxy, method, *positional, **keywords)
            for value in result if isinstance(result, ItemStream) else [result]:
                click.echo(_json(value) if as_json else repr(value))
    except click.ClickException:
        raise
    except Exception as problem:
        # Whatever class it is: the object's own exceptions end here too.
        raise click.ClickException(f"{type(problem).__name__}: {' '.join(str(problem).split())}") from problem


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json(value: Any) -> str:
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError, RecursionError) as problem:
        raise click.ClickException(f"JSON cannot say this result: {problem}; leave out --json") from problem


def _plain(value: Any) -> Any:
    """What JSON has no word for: collections become lists, everything else text."""
    return sorted(value, key=repr) if isinstance(value, (set, frozenset)) else str(value)
