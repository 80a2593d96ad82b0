"""Nodes of clusters in this process, over a real PostgreSQL."""

import pytest

from objserver import ObjectServer, Persistent, ServerSettings, errors, expose, readonly

LEASE_S = 1.0
SETTINGS = ServerSettings(node_lease_s=LEASE_S)


@expose
class Account:
    """Counts what it is asked to."""

    made = 0

    def __init__(self):
        self.balance = 0
        Account.made += 1

    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @readonly
    def statement(self) -> int:
        return self.balance

    def fail(self):
        raise ValueError("no")

    def entries(self):
        yield from range(self.balance)


@pytest.fixture
def cluster(postgres):
    """Starts nodes: `cluster("a")`; they have one store, and stop with the test."""
    url = postgres.new_url()
    nodes = []

    def start(name, *, placement=None, cls=Account, settings=SETTINGS, activation=None, **options):
        node = ObjectServer(
            store=url, cluster="bank", node=name, placement=placement, settings=settings, **options
        )
        node.register(cls, "Account", activation=activation or Persistent())
        nodes.append(node)
        return node.start()

    start.url = url
    yield start
    for node in nodes:
        node.stop()


def renewed(*nodes):
    """Every node has seen the others."""
    for _ in range(2):
        for node in nodes:
            node.node.renew()


def where(node, key):
    """The address at which the store says that the account is."""
    found = node._store.owners([("Account", key)])
    return found["Account", key].address if found else None


def disappear(node):
    """As after kill -9: it is silent, takes no calls, and leaves its lease to end."""
    node.node._stopping = True
    node.node._store.leave = lambda life: None
    node.poller.stop_accepting()
    node._listener.close()
    for connection in list(node.poller.connections.values()):
        connection.close()


__all__ = ["LEASE_S", "SETTINGS", "Account", "disappear", "errors", "renewed", "where"]
