"""`objserver nameserver`: the name server that PYRONAME: and PYROMETA: references ask."""

from __future__ import annotations

import click

from objserver import errors
from objserver.cli import log_to_stderr, parse_address, until_stopped
from objserver.references import NAMESERVER_PORT

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
@click.option("--insecure", is_flag=True, help="Allow an address that other machines can reach.")
@click.option("--verbose", is_flag=True, help="Log to standard error also what is no problem.")
def nameserver(
    address: str,
    store: str | None,
    beacon: bool,
    beacon_address: str,
    mdns: str | None,
    insecure: bool,
    verbose: bool,
) -> None:
    """Run a name server; stock Pyro5 programs can use it too.

    Several over one store in PostgreSQL answer for each other.

    \b
    Examples:
      objserver nameserver
      objserver nameserver --store sqlite:///names.db --no-beacon
      objserver nameserver --store postgresql://names@db/names --address localhost:9095 --no-beacon
      objserver nameserver --address 0.0.0.0:9090 --beacon-address 0.0.0.0:9091 --insecure
    """
    from objserver.naming import BEACON_PORT, NameServerDaemon

    log_to_stderr(verbose)
    parse_address(address)
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
            insecure=insecure,
        )
    except errors.NamingError as problem:
        # The beacon's address: to whoever starts a server it is one that cannot be listened at.
        raise errors.ListenFailed(str(problem)) from problem
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
