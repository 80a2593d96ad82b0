"""`objserver completion`: what the Tab key offers, beyond the commands and options that click knows.

URIs are completed from the name server, methods from the object.  Whoever presses Tab waits, so everything
that asks a server has a second in all, and what fails offers nothing and says nothing.

bash splits words at colons, `@` and `=`, so that `PYRONAME:shop` is three of them to it.  Its script hands
over the line as it was typed instead, and gets back only what belongs after the last of these characters.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

__all__ = ["complete_method", "complete_name", "complete_uri", "completion"]

T = TypeVar("T")

PATIENCE_S = 1.0
"""Who has pressed Tab does not wait longer."""
_VARIABLE = "_OBJSERVER_COMPLETE"
_WHERE = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/config.fish"}


class _Bash(BashComplete):
    """bash, with words that have colons in them."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = _line()
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        items = super().get_completions(args, incomplete)
        # In quotes bash splits nothing.
        word = _line().rsplit(None, 1)[-1]
        breaks = "" if word[0] in "'\"" else os.environ.get("COMP_WORDBREAKS", "")
        # A word begins after a colon, but with the `@`, where bash might complete the name of a host.
        cuts = {":": incomplete.rfind(":") + 1, "=": incomplete.rfind("=") + 1, "@": incomplete.rfind("@")}
        cut = max([0, *(at for c, at in cuts.items() if c in breaks)])
        return [CompletionItem(item.value[cut:], item.type, item.help) for item in items]


def _line() -> str:
    """What is typed, up to the cursor, which bash counts in bytes."""
    return os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="ignore")


add_completion_class(_Bash)


@click.command(short_help="Print the script for the Tab key of a shell.")
@click.argument("shell", type=click.Choice(list(_WHERE)))
def completion(shell: str) -> None:
    """Print the script that makes Tab complete commands, names and methods.

    \b
    For every new shell, put this into ~/.bashrc, or ~/.zshrc with zsh for bash:
      eval "$(objserver completion bash)"
    With fish, put this into ~/.config/fish/config.fish:
      objserver completion fish | source
    """
    found = get_completion_class(shell)
    assert found is not None
    main = click.get_current_context().find_root().command
    click.echo(found(main, {}, "objserver", _VARIABLE).source().rstrip())


# -- what a server has to be asked for ---------------------------------------------------------------


def complete_uri(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`PYRONAME:` with the names of the name server; after `PYRO:`, what they stand for."""
    typed = incomplete.upper()
    if typed.startswith("PYRO:"):
        return _fitting(((uri, name) for name, uri in _names(ctx).items()), incomplete)
    if "PYRONAME:".startswith(typed[:9]):
        start = incomplete[:9] if len(incomplete) >= 9 else "PYRONAME:"
        return _fitting(((start + name, uri) for name, uri in _names(ctx).items()), start + incomplete[9:])
    return []


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in the name server that the command asks."""
    return _fitting(_names(ctx).items(), incomplete)


def complete_method(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Members of the object at the URI before."""

    def ask() -> list[tuple[str, str]]:
        from objserver.cli.objects import describe
        from objserver.cli.reaching import Names, Shown
        from objserver.cli.stub_source import signature
        from objserver.client import Proxy

        tls, credentials = Shown.taken(ctx.params).load()
        with Proxy(
            ctx.params["uri"],
            timeout_s=PATIENCE_S,
            tls=tls,
            credentials=credentials,
            name_servers=Names.taken(ctx.params).load(),
        ) as proxy:
            members = describe(proxy)["members"]
        return [(name, signature(name, member)) for name, member in members.items()]

    return _fitting(_within_patience(ask) or [], incomplete)


def _names(ctx: click.Context) -> dict[str, str]:
    def ask() -> dict[str, str]:
        from objserver.cli import name_server_proxy
        from objserver.cli.reaching import Names

        with name_server_proxy(Names.taken(ctx.params).load(), PATIENCE_S) as directory:
            return {name: str(uri) for name, uri in directory.list().items()}

    return _within_patience(ask) or {}


def _within_patience(ask: Callable[[], T]) -> T | None:
    """What it returns, or None if it fails or takes too long; it may ask several servers one by one."""
    answers: list[T] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception:
            pass  # there is nothing to complete, and no place to say why

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return answers[0] if answers else None


def _fitting(offers: Iterable[tuple[str, Any]], incomplete: str) -> list[CompletionItem]:
    # What has blanks or steers the terminal is not completed: names come from anybody.
    return [
        CompletionItem(value, help=help_ if help_.isprintable() else None)
        for value, help_ in sorted(offers)
        if value.startswith(incomplete) and value.isprintable() and not set(value) & _UNSAFE
    ]


_UNSAFE = frozenset(" \t'\"\\$`;&|<>(){}[]*?!#~")
"""What a shell would act on if it were inserted as it is."""
