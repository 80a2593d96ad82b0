"""`objserver keys`: a private authority, certificates and shared keys for a lab.

Everything is in one directory.  What each file is for, and who gets it, is said when it is written: it is the
one thing that people get wrong with keys.
"""

from __future__ import annotations

import os
import pathlib
import re

import click

from objserver import errors
from objserver.cli import visible

__all__ = ["keys"]

_DAYS = click.option(
    "--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it is valid."
)
_DIRECTORY = click.argument("directory", type=click.Path(file_okay=False, path_type=pathlib.Path))
_HOST = re.compile(r"[\w.:*-]+")


@click.group(short_help="Make an authority, certificates and shared keys.")
def keys() -> None:
    """Make what servers and clients prove with who they are.

    Certificates need an authority, which signs them. Shared keys need nothing else. Secrets are written for
    their owner only (mode 0600), and no file is overwritten.

    \b
    Examples:
      objserver keys ca lab-keys
      objserver keys server lab-keys lab.example 192.0.2.7
      objserver keys client lab-keys ann@lab.example
      objserver keys shared lab-keys lab-2026 --name lab
    """


@keys.command(short_help="Make an authority.")
@_DIRECTORY
@click.option("--name", default="objserver lab", show_default=True, help="What the authority is called.")
def ca(directory: pathlib.Path, name: str) -> None:
    """Make a private authority in DIRECTORY: ca.pem and ca.key.

    \b
    Examples:
      objserver keys ca lab-keys
      objserver keys ca lab-keys --name "Physics lab"
    """
    from objserver.security.authority import make_authority

    _need_cryptography()
    key, certificate = make_authority(directory, name)
    _say(certificate, "for every server and client: whom to believe")
    _say(key, "SECRET, stays here: who has it can be anybody")
    _next(f"objserver keys server {directory} localhost {_host_name()}")


@keys.command(short_help="Make a server's certificate.")
@_DIRECTORY
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@_DAYS
def server(directory: pathlib.Path, hosts: tuple[str, ...], days: int) -> None:
    """Make the certificate of a server that clients reach at HOST, signed by the authority in DIRECTORY.

    HOST is a name or an address, as it stands in the URIs of the server's objects.

    \b
    Examples:
      objserver keys server lab-keys lab.example 192.0.2.7
      objserver keys server lab-keys localhost --days 30
    """
    from objserver.security.authority import issue_server

    for host in hosts:
        if not _HOST.fullmatch(host):
            raise click.UsageError(f"{host!r} is no host; write for example lab.example or 192.0.2.7")
    _need_cryptography()
    key, certificate = issue_server(directory, hosts, days)
    _say(certificate, "for the server")
    _say(key, "SECRET, for the server")
    _next(f"objserver serve MODULE:NAME --tls-cert {certificate} --tls-key {key}")


@keys.command(short_help="Make a client's certificate.")
@_DIRECTORY
@click.argument("name")
@_DAYS
def client(directory: pathlib.Path, name: str, days: int) -> None:
    """Make the certificate of a client, whom servers will know as NAME, signed by the authority in DIRECTORY.

    NAME is an address of e-mail, a URI, or any other name.

    \b
    Examples:
      objserver keys client lab-keys ann@lab.example
      objserver keys client lab-keys spiffe://lab.example/microscope
    """
    from objserver.security.authority import issue_client

    _need_cryptography()
    key, certificate = issue_client(directory, name, days)
    _say(certificate, f"for {name}")
    _say(key, f"SECRET, for {name}")
    _next(
        f"objserver call URI --tls-ca {directory / 'ca.pem'} --tls-cert {certificate} --tls-key {key}\n"
        f"The server asks for certificates with --tls-client-ca {directory / 'ca.pem'}"
    )


@keys.command(short_help="Make a shared key.")
@_DIRECTORY
@click.argument("id")
@click.option("--name", default="", help="Who its holders are, the same for several keys; by default ID.")
def shared(directory: pathlib.Path, id: str, name: str) -> None:
    """Make a shared key ID, add it to the server's keys.toml in DIRECTORY, and write ID.toml for clients.

    To rotate a key make another one with the same --name, give it to the clients, then delete the old one
    from keys.toml.

    \b
    Examples:
      objserver keys shared lab-keys lab-2026 --name lab
      objserver keys shared lab-keys microscope
    """
    import secrets

    from objserver.security.authority import write_new
    from objserver.security.files import credentials_text, keys_text, load_keys

    if not re.fullmatch(r"[\w.-]+", id, re.ASCII) or id.startswith(".") or id == "keys":
        raise click.UsageError(
            f"{id!r} cannot be a key's id: letters, digits, '.', '_' and '-', and not 'keys'"
        )
    directory.mkdir(parents=True, exist_ok=True)
    accepted = directory / "keys.toml"
    if accepted.exists() and id in load_keys(str(accepted)):
        raise errors.RegistrationError(f"{accepted} has a key {id} already; choose another id")
    secret = secrets.token_bytes(32)
    credentials = write_new(directory / f"{id}.toml", credentials_text(id, secret).encode(), secret=True)
    descriptor = os.open(accepted, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write((("\n" if os.fstat(descriptor).st_size else "") + keys_text(id, secret, name)).encode())
    _say(accepted, "SECRET, for the server: it accepts these keys")
    _say(
        credentials,
        f'SECRET, for every client that is {name or id}; add a line name = "..." to tell them apart',
    )
    _next(f"objserver serve MODULE:NAME --keys {accepted}\nobjserver call URI --credentials {credentials}")


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise errors.RegistrationError(
            "certificates are made with `cryptography`, which is not installed: pip install 'objserver[keys]'"
        ) from None


def _host_name() -> str:
    import socket

    return socket.gethostname() or "HOST"


def _say(path: pathlib.Path, what: str) -> None:
    click.echo(f"{click.style(str(path), bold=True)}  {visible(what)}")


def _next(text: str) -> None:
    for line in text.splitlines():
        click.secho(f"  {visible(line)}", dim=True, err=True)
