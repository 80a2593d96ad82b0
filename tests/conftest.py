"""What holds for all tests: a busy machine must not fail a property, and one PostgreSQL does for many."""

import pytest
from hypothesis import settings

for name in ("stores", "durable_stores", "store_cluster", "store_snapshots", "store_model"):
    pytest.register_assert_rewrite(f"objserver.testing.{name}")

from objserver.security import authority  # noqa: E402
from objserver.testing.postgres import PostgresServer, Unavailable  # noqa: E402

settings.register_profile("objserver", deadline=None)
settings.load_profile("objserver")


@pytest.fixture(scope="session")
def postgres():
    """A throw-away server for the tests of this process."""
    try:
        server = PostgresServer()
    except Unavailable as reason:
        pytest.skip(f"no PostgreSQL: {reason}")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A directory with a private authority, a server's certificate for this machine, and that of ann."""
    directory = tmp_path_factory.mktemp("lab")
    authority.make_authority(directory, "Lab")
    authority.issue_server(directory, ["localhost", "127.0.0.1"])
    authority.issue_client(directory, "ann")
    return directory
