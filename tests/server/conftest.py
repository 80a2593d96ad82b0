import pytest
from Pyro5.api import Proxy, current_context

from objserver import ObjectServer


@pytest.fixture(autouse=True)
def clean_context():
    """Stock Pyro5 keeps a thread's annotations and ids until somebody changes them."""
    current_context.annotations, current_context.response_annotations = {}, {}
    current_context.correlation_id = None
    yield
    current_context.annotations, current_context.response_annotations = {}, {}
    current_context.correlation_id = None


@pytest.fixture
def server():
    with ObjectServer() as server:
        yield server


@pytest.fixture(params=["serpent", "json", "msgpack"])
def serializer(request):
    return request.param


@pytest.fixture
def stock(serializer):
    """Makes stock proxies of one serializer; closes them at the end."""
    made = []

    def make(reference, name=serializer):
        proxy = Proxy(str(reference))
        proxy._pyroSerializer, proxy._pyroTimeout = name, 10
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        proxy._pyroClaimOwnership()
        proxy._pyroRelease()
