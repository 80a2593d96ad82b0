"""`objserver nameserver`: the name server that PYRONAME: and PYROMETA: references ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from objserver import errors
from objserver.cli import log_to_stderr, parse_address, until_stopped
from objserver.cli.guarding import Guarding, guarded, read_again_at_hangup
from objserver.references import NAMESERVER_PORT

if TYPE_CHECKING:
    from objserver.naming import Ownership

__all__ = ["nameserver"]


@click.command()
@click.option(
    "--address",
    default=f"localhost:{NAMESERVER_PORT}",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen.",
)
@click.option("--store", metavar="URL", help="Keep the names here, e.g. sqlite:///names.db.")
@click.option("--beacon/--no-beacon", default=True, show_default=True, help="Answer discovery over UDP.")
@click.option(
    "--beacon-address",
    default="localhost:9091",
    show_default=True,
    metavar="HOST:PORT",
    help="Where the beacon answers.",
)
@click.option(
    "--mdns",
    is_flag=False,
    flag_value="127.0.0.1",
    metavar="[ADDRESS]",
    help="Announce it by multicast DNS, on this machine or on the interface with that IPv4 address.",
)
@click.option(
    "--reserve",
    multiple=True,
    metavar="PREFIX=WHO,...",
    help="Only these principals or roles register names that begin so; may be repeated.",
)
@guarded
@click.option("--verbose", is_flag=True, help="Log to standard error also what is no problem.")
def nameserver(
    address: str,
    store: str | None,
    beacon: bool,
    beacon_address: str,
    mdns: str | None,
    reserve: tuple[str, ...],
    guarding: Guarding,
    verbose: bool,
) -> None:
    """Run a name server; stock Pyro5 programs can use it too.

    Several over one store in PostgreSQL answer for each other.  With --keys or --tls-client-ca a name belongs
    to who registered it, and nobody else changes it.  SIGHUP reads the files of certificates, keys and rules
    again.

    \b
    Examples:
      objserver nameserver
      objserver nameserver --store sqlite:///names.db --no-beacon
      objserver nameserver --store postgresql://names@db/names --address localhost:9095 --no-beacon
      objserver nameserver --address 0.0.0.0:9090 --tls-cert s.pem --keys k.toml --allow-authenticated
      objserver nameserver --keys k.toml --allow-authenticated --reserve bank/=tellers,carol
      objserver nameserver --address 0.0.0.0:9090 --beacon-address 0.0.0.0:9091 --insecure
    """
    from objserver.naming import BEACON_PORT, NameServerDaemon

    log_to_stderr(verbose)
    parse_address(address)
    ownership = _ownership(reserve, guarding)
    answer_at = parse_address(beacon_address, BEACON_PORT) if beacon else None
    if answer_at is not None and answer_at.path:
        raise click.UsageError(
            f"the beacon answers over UDP, so --beacon-address is HOST:PORT and not {beacon_address}"
        )
    try:
        daemon = NameServerDaemon(
            address,
            store=store,
            beacon=str(answer_at) if answer_at else None,
            mdns=mdns,
            ownership=ownership,
            **guarding.options(),
        )
    except errors.NamingError as problem:
        # The beacon's address: to whoever starts a server it is one that cannot be listened at.
        raise errors.ListenFailed(str(problem)) from problem
    read_again_at_hangup(daemon, guarding)
    try:
        with until_stopped():
            daemon.start()
            click.echo(f"name server {daemon.nameserver}")
            if daemon.beacon is not None:
                click.echo(f"beacon {daemon.beacon.address}")
            if daemon.announcement is not None:
                click.echo(f"announced by multicast DNS on {mdns}")
    finally:
        daemon.stop()


def _ownership(reserve: tuple[str, ...], guarding: Guarding) -> Ownership:
    from objserver.naming import Ownership

    if guarding.asks_who_calls and not guarding.allows_something:
        raise click.UsageError("nobody may ask this name server: add --rules, or --allow-authenticated")
    if not guarding.asks_who_calls and (guarding.allows_something or reserve):
        raise click.UsageError(
            "--rules, --allow-authenticated and --reserve are for who is known: add --keys or --tls-client-ca"
        )
    reserved: dict[str, frozenset[str]] = {}
    for entry in reserve:
        prefix, _, who = entry.rpartition("=")
        if not prefix or not all(who.split(",")):
            raise click.UsageError(f"{entry!r} reserves nothing; write for example --reserve bank/=tellers")
        reserved[prefix] = frozenset(who.split(","))
    return Ownership(reserved=reserved)
