"""The `objserver` command: one group, a module for each command.

What fails for a reason that can be said in a sentence is said in one, on standard error, with an exit code
that `ExitCode` explains.  Our errors advise programmers; what they advise is said here in
options.  The command modules import what they need when they are run, so that `objserver --help` does not
wait for it.
"""

from __future__ import annotations

from typing import Any

import click

import objserver
from objserver import errors
from objserver.cli import Failure, exit_code, in_options
from objserver.cli.call import call
from objserver.cli.cluster import cluster, migrate
from objserver.cli.completion import completion
from objserver.cli.demo import demo
from objserver.cli.keys import keys
from objserver.cli.names import names
from objserver.cli.nameserver import nameserver
from objserver.cli.serve import serve
from objserver.cli.status import status, top
from objserver.cli.store import store
from objserver.cli.stubs import stubs
from objserver.cli.token import token

__all__ = ["main"]


class _Sentences(click.Group):
    """Turns our errors into one line for people."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.ObjServerError as problem:
            raise Failure(in_options(" ".join(str(problem).split())), code=exit_code(problem)) from problem


@click.group(cls=_Sentences)
@click.version_option(objserver.__version__, prog_name="objserver")
def main() -> None:
    """Host Python objects and let any process call them.

    \b
    Examples:
      objserver nameserver
      objserver serve bank:Account --activation persistent --store sqlite:///bank.db --nameserver
      objserver names
      objserver call PYRONAME:Account/alice deposit 5
      objserver stubs bank:Account
      objserver store show sqlite:///bank.db Account/alice

    \b
    Exit codes:
      0  done
      1  failed, or the object raised
      2  wrong usage
      3  certainly not called: no such server, name, object or member, or refused
      4  no answer came, so it may have happened
    """


for command in (
    call,
    cluster,
    completion,
    demo,
    keys,
    migrate,
    names,
    nameserver,
    serve,
    status,
    store,
    stubs,
    token,
    top,
):
    main.add_command(command)
