"""A store in memory, its owner, and the store as another process has it."""

import pytest

from objserver.storage.owner import StoreServer
from objserver.storage.remote import RemoteStore
from objserver.storage.sqlite import SqliteStore


@pytest.fixture
def owned(tmp_path):
    """A store in memory, as a recorder of what the owner does with it."""

    class Recorder(SqliteStore):
        batches: list[int] = []

        def commit(self, changes):
            self.batches.append(len(changes))
            return super().commit(changes)

    store = Recorder("sqlite://", alone=False)
    store.batches = []
    yield store
    store.close()


@pytest.fixture
def owner(owned, tmp_path):
    server = StoreServer(owned, f"{tmp_path}/s")
    yield server
    server.close()


@pytest.fixture
def store(owner):
    store = RemoteStore(owner.path)
    yield store
    store.close()
