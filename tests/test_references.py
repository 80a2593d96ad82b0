"""References and the URIs they are written as."""

import Pyro5.api
import pytest

from objserver import Reference, errors, object_id


@pytest.mark.parametrize(
    "uri",
    [
        "PYRO:Account/alice@localhost:9091",
        "PYRO:x@[::1]:9",
        "PYRO:x@./u:/tmp/socket",
        "PYRONAME:bank",
        "PYRONAME:bank@host:9090",
        "PYROMETA:a,b@host:9090",
    ],
)
def test_uris_survive_parsing(uri):
    assert str(Reference.parse(uri)) == uri


def test_what_we_write_pyro5_reads():
    uri = Pyro5.api.URI(str(Reference.parse(f"PYRO:{object_id('Account', 'a b@c')}@[::1]:9")))
    assert (uri.object, uri.host, uri.port) == ("Account/a%20b%40c", "::1", 9)


def test_the_name_server_has_a_default_port():
    assert str(Reference.parse("PYRONAME:bank@host")) == "PYRONAME:bank@host:9090"


@pytest.mark.parametrize(
    "uri", ["", "http://x", "PYRO:x", "PYRO:x@host", "PYRO:x@host:99999", "PYRO:x@./u:", "PYROFOO:x", None, 5]
)
def test_what_is_no_uri_is_refused(uri):
    with pytest.raises(errors.NamingError):
        Reference.parse(uri)


def test_of_a_name_several_name_servers_may_be_given():
    reference = Reference.parse("PYRONAME:clock@one,two:7,[::1]:8")
    assert [str(location) for location in (reference.location, *reference.others)] == [
        "one:9090",
        "two:7",
        "[::1]:8",
    ]
    assert str(reference) == "PYRONAME:clock@one:9090,two:7,[::1]:8"
    assert Reference.parse(str(reference)) == reference
    for uri in ("PYRO:clock@one:1,two:7", "PYRONAME:clock@one,", "PYRONAME:clock@one,x:y"):
        with pytest.raises(errors.NamingError):
            print(Reference.parse(uri))
