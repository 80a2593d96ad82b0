"""The `objserver` command: one group, a module for each command."""

from __future__ import annotations

import click

import objserver

__all__ = ["main"]


@click.group()
@click.version_option(objserver.__version__)
def main() -> None:
    """Host Python objects and let any process call them."""
