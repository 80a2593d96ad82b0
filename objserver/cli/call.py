"""`objserver call`: one call from the shell.

Arguments are read as Python literals, else as JSON, else they are text, so `5`, `[1, 2]`, `true` and `alice`
mean what they look like.  `key=value` is a keyword argument; quote text that has to stay text: `'"5"'`.
What begins like a list, a dict or a quoted text and is none is a slip, and not sent as text.

Connecting and calling are told apart, since a script has to know whether anything may have happened.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from objserver import errors
from objserver.cli import ExitCode, Failure, exit_code, in_options, visible
from objserver.cli.completion import complete_method, complete_uri
from objserver.cli.reaching import NAMESERVER, Names, Shown, reaches_names, reaches_objects

if TYPE_CHECKING:
    from objserver.client import Proxy

__all__ = ["call"]

_KEYWORD = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)
_ADVICE = (
    (errors.AuthenticationFailed, "Who may call, and how: objserver call --help"),
    (errors.ConnectFailed, "Is the server running, and is this its address?"),
    (errors.ObjectNotFound, "What a server has: objserver call PYRO:Pyro.Daemon@HOST:PORT registered"),
    (errors.NamingError, "What a name server knows: objserver names"),
)
_BEGINNINGS = {"[": "a list", "{": "a dict", "(": "a tuple", "'": "a quoted text", '"': "a quoted text"}


@click.command(
    short_help="Call a method of an object, or list its members.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("uri", shell_complete=complete_uri)
@click.argument("method", required=False, shell_complete=complete_method)
@click.argument("args", nargs=-1, metavar="[ARG|KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of as Python.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Per call.")
@reaches_objects
@NAMESERVER
@reaches_names
@click.option("--timing", is_flag=True, help="Say on standard error how long it took.")
@click.option("--repeat", type=click.IntRange(1), metavar="N", help="Call N times, print the last result.")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error was raised.")
def call(
    uri: str,
    method: str | None,
    args: tuple[str, ...],
    as_json: bool,
    timeout: float | None,
    shown: Shown,
    asked: Names,
    timing: bool,
    repeat: int | None,
    show_traceback: bool,
) -> None:
    """Call METHOD of the object at URI and print the result; an attribute is read.

    Without METHOD, the members of the object are listed.  An ARG is a Python literal or JSON, and text if it
    looks like neither.  Items of a stream are printed one a line, as they come.

    \b
    Exit codes:
      1  the call raised
      2  wrong usage
      3  certainly not called: no such server, name, object or member, or refused
      4  no answer came, so it may have happened

    \b
    Examples:
      objserver call PYRO:Account/alice@localhost:9091
      objserver call PYRO:Account/alice@localhost:9091 deposit 5
      objserver call PYRONAME:shop search "red shoes" limit=3 --json
      objserver call PYRONAME:calc add -1 2.5 --timeout 3 --timing --repeat 100
      objserver call PYRO:calc@lab.example:9091 add 1 2 --tls-ca ca.pem --credentials lab.toml
      objserver call PYRONAME:calc add 1 2 --nameserver lab.example --nameserver-tls-ca ca.pem \\
        --nameserver-credentials names.toml --tls-ca ca.pem --credentials lab.toml
    """
    from objserver.cli.unknown import ShowingTypes
    from objserver.client import Proxy

    # Before anybody is asked: slips on the command line are no reason to wait for a server.
    for arg in (method or "", *args):
        if re.match(r"--[a-z]", arg):
            raise click.UsageError(f"there is no option {arg}; text that begins so is written '\"{arg}\"'")
    positional = [_value(arg) for arg in args if not _KEYWORD.fullmatch(arg)]
    keywords = {found[1]: _value(found[2]) for arg in args if (found := _KEYWORD.fullmatch(arg))}
    with _in_sentences(show_traceback, timeout):
        began = perf_counter()
        with _connecting():
            tls, credentials = shown.load()
            proxy = Proxy(
                uri,
                timeout_s=timeout,
                types=ShowingTypes(),
                tls=tls,
                credentials=credentials,
                name_servers=asked.load(),
            )
            offered = proxy._objserver_stub.metadata()
        connected = perf_counter()
        with proxy:
            if method is None:
                with _connecting():
                    _list(proxy, as_json)
                return
            if method not in offered.methods | offered.attrs:
                raise Failure(
                    f"{uri} has no exposed method or attribute {method!r}"
                    f"{errors.did_you_mean(method, offered.methods | offered.attrs)}",
                    advice=f"Its members: objserver call {uri}",
                    code=ExitCode.NOT_CALLED,
                )
            durations = []
            for left in range((repeat or 1) - 1, -1, -1):
                start = perf_counter()
                _call(proxy, method, positional, keywords, as_json=as_json, shown=not left)
                durations.append(perf_counter() - start)
        if timing or repeat:
            _say_times(connected - began, durations, perf_counter() - began)


def _call(
    proxy: Proxy, method: str, args: list[Any], kwargs: dict[str, Any], *, as_json: bool, shown: bool
) -> None:
    from objserver.client import ItemStream, invoke

    result = invoke(proxy, method, *args, **kwargs)
    for value in result if isinstance(result, ItemStream) else [result]:
        if shown:
            click.echo(_json(value) if as_json else _python(value))


# -- what the arguments mean -------------------------------------------------------------------------


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as problem:
        slip = getattr(problem, "msg", "it holds more than literals")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if text[:1] in _BEGINNINGS:
            raise click.UsageError(
                f"{text} begins like {_BEGINNINGS[text[0]]}, but is neither a Python literal nor JSON: "
                f"{slip}; quote it for the shell, and quotes inside for text: '\"...\"'"
            ) from None
        return text


# -- how results are shown ---------------------------------------------------------------------------


def _json(value: Any) -> str:
    from objserver.cli.plain import to_json

    try:
        return to_json(value)
    except (TypeError, ValueError, RecursionError) as problem:
        raise Failure(f"JSON cannot say this result: {problem}; leave out --json") from problem


def _python(value: Any) -> str:
    """repr(), on as many lines as a terminal needs; a program gets it on one."""
    text = repr(value)
    if not sys.stdout.isatty():
        return text
    import pprint
    import shutil

    width = shutil.get_terminal_size().columns
    return text if len(text) <= width else pprint.pformat(value, width=width, sort_dicts=False)


def _list(proxy: Proxy, as_json: bool) -> None:
    from objserver.cli.objects import describe
    from objserver.cli.stub_source import signature

    described = describe(proxy)
    if as_json:
        click.echo(json.dumps(described))
        return
    members = described["members"]
    for kind, heading in (("attribute", "attributes"), ("method", "methods")):
        chosen = {name: member for name, member in members.items() if member["kind"] == kind}
        if not chosen:
            continue
        click.secho(heading, bold=True)
        for name, member in chosen.items():
            shown = signature(name, member)
            if kind == "attribute" and member["readonly"]:
                shown += "  (read only)"
            click.echo(f"  {visible(name)}{shown[len(name) :]}")
            if first := member["doc"].strip().partition("\n")[0]:
                click.secho(f"      {visible(first)}", dim=True)
    if described.get("unsigned"):
        click.echo("This server tells names only: it is not objserver, or an old one.", err=True)


def _say_times(connect_s: float, calls_s: list[float], total_s: float) -> None:
    calls_s.sort()
    many = len(calls_s)
    rows = [("connect", connect_s)]
    if many == 1:
        rows.append(("call", calls_s[0]))
    else:
        # The smallest time that 99 of 100 calls kept to.
        p99 = calls_s[min(many - 1, -(-many * 99 // 100) - 1)]
        rows += [("call, min", calls_s[0]), ("call, median", calls_s[many // 2]), ("call, p99", p99)]
    for label, seconds in (*rows, ("total", total_s)):
        click.echo(f"{label:<12} {seconds * 1000:10.3f} ms", err=True)


# -- how errors are shown ----------------------------------------------------------------------------


@contextmanager
def _connecting() -> Iterator[None]:
    """What fails here, even for want of an answer, was no call of the user's."""
    try:
        yield
    except Failure:
        raise
    except (errors.CommunicationError, errors.NamingError, errors.ObjectError) as problem:
        advice = next((text for kind, text in _ADVICE if isinstance(problem, kind)), "")
        raise _failure(problem, ExitCode.NOT_CALLED, advice) from problem


@contextmanager
def _in_sentences(show_traceback: bool, timeout_s: float | None) -> Iterator[None]:
    try:
        yield
    except click.ClickException as problem:
        cause = problem.__cause__
        if show_traceback and cause is not None:
            _show_traceback(cause)
        raise
    except Exception as problem:
        if isinstance(problem, BrokenPipeError) and not getattr(problem, "_pyroTraceback", None):
            raise  # who reads the output has seen enough, as `head` does; click ends the command silently
        # Whatever class it is: the object's own exceptions end here too.
        if show_traceback:
            _show_traceback(problem)
        code = ExitCode.FAILED if _from_servant(problem) else exit_code(problem)
        if timeout_s is not None and isinstance(problem, errors.CallTimeout):
            # The server may say it as soon as this side does, and which of the two is first is chance.
            code = ExitCode.UNKNOWN
        advice = ""
        if code is ExitCode.FAILED and getattr(problem, "_pyroTraceback", None) and not show_traceback:
            advice = "Where the object raised it: add --traceback."
        elif code is ExitCode.UNKNOWN:
            advice = "It may have happened: look before you repeat it."
        raise _failure(problem, code, advice) from problem


def _failure(problem: BaseException, code: ExitCode, advice: str) -> Failure:
    kind = getattr(problem, "type_name", "") or type(problem).__name__
    sentence = " ".join(str(problem).split())
    if not sentence.startswith(kind):  # a `RemoteError` begins with it
        sentence = f"{kind}: {sentence}" if sentence else kind
    if isinstance(problem, errors.ConnectFailed):  # ours for certain
        sentence = in_options(sentence)
    return Failure(sentence, advice=advice, code=code)


def _show_traceback(problem: BaseException) -> None:
    """Where the object raised it, else where it was raised here."""
    lines = getattr(problem, "_pyroTraceback", None) or traceback.format_exception(problem)
    click.echo("".join(map(str, lines)).rstrip(), err=True)


def _from_servant(problem: BaseException) -> bool:
    """Whether the object raised it, so it was called.  Some refusals of its server have a traceback too."""
    lines = getattr(problem, "_pyroTraceback", None)
    if not lines:
        return False
    first = next((line for line in map(str, lines) if line.lstrip().startswith("File ")), "")
    return re.search(r"[\\/]objserver[\\/](adapter|server)[\\/]", first) is None
