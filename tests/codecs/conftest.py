import pytest

from objserver import references


@pytest.fixture(autouse=True)
def references_arrive_as_they_are(monkeypatch):
    """Whatever the client room made of arriving references, here they are compared as values."""
    monkeypatch.setattr(references, "_arrival", [])
