"""Which name server is shown what; nobody is asked here."""

import os

import pytest

from objserver import Reference, errors
from objserver.client.nameservers import Contact, NameServers, contacts, usual, with_name_servers
from objserver.references import Location
from objserver.security import ClientTLS, SharedKey
from objserver.security.files import credentials_text

ONE, TWO, THREE = (Location(host, 9090) for host in ("one", "two", "three"))
KEY, OTHER = SharedKey("lab", bytes(32)), SharedKey("other", bytes(32))
TLS = ClientTLS(ca="ca.pem")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("OBJSERVER_NAMESERVERS", "PYRO_NS_")):
            monkeypatch.delenv(name)
    return monkeypatch


def asked(uri, given=()):
    """As a proxy of `uri` does."""
    given = NameServers.of(given)
    return contacts(with_name_servers(Reference.parse(uri), given), given)


def test_plain_addresses_do():
    assert NameServers("one, two:5") == NameServers(["one", "two:5"]) == NameServers.of("one,two:5")
    assert asked("PYRONAME:x", "one,two") == (Contact(ONE), Contact(TWO))
    assert asked("PYRONAME:x") == (Contact(Location("localhost", 9090)),)
    with pytest.raises(ValueError, match="a comma too many"):
        NameServers("one,,two")


def test_the_uri_goes_before_the_option_and_that_before_the_environment(environment):
    environment.setenv("OBJSERVER_NAMESERVERS", "three")
    assert asked("PYRONAME:x@one", "two") == (Contact(ONE),)
    assert asked("PYRONAME:x", "two") == (Contact(TWO),)
    assert asked("PYROMETA:x") == (Contact(THREE),)


def test_what_is_given_with_addresses_is_shown_there_and_nowhere_else():
    given = NameServers("one,two", tls=TLS, credentials=KEY)
    assert asked("PYRONAME:x", given) == (Contact(ONE, TLS, KEY), Contact(TWO, TLS, KEY))
    assert asked("PYRONAME:x@two", given) == (Contact(TWO, TLS, KEY),)
    assert asked("PYRONAME:x@two,three", given) == (Contact(TWO, TLS, KEY), Contact(THREE))
    assert asked("PYRONAME:x@two:9091,ONE", given) == (
        Contact(Location("two", 9091)),
        Contact(Location("ONE", 9090)),
    )


def test_what_is_given_without_addresses_is_for_those_that_are_asked(environment):
    given = NameServers(credentials=KEY)
    assert asked("PYRONAME:x@three", given) == (Contact(THREE, None, KEY),)
    environment.setenv("OBJSERVER_NAMESERVERS", "one")
    assert asked("PYRONAME:x", given) == (Contact(ONE, None, KEY),)


def written(path, key):
    path.write_text(credentials_text(key.id, key.secret))
    path.chmod(0o600)
    return str(path)


def test_the_environment_says_what_its_name_servers_are_shown(environment, tmp_path):
    environment.setenv("OBJSERVER_NAMESERVERS", "one,two")
    environment.setenv("OBJSERVER_NAMESERVERS_TLS_CA", "ca.pem")
    environment.setenv("OBJSERVER_NAMESERVERS_CREDENTIALS", written(tmp_path / "lab.toml", KEY))
    key = SharedKey("lab", KEY.secret.hex())
    assert asked("PYRONAME:x") == (Contact(ONE, TLS, key), Contact(TWO, TLS, key))
    assert asked("PYRONAME:x@two,three") == (Contact(TWO, TLS, key), Contact(THREE))
    assert asked("PYRONAME:x@one", "one") == (Contact(ONE, TLS, key),)
    assert asked("PYRONAME:x", NameServers("one", credentials=OTHER)) == (Contact(ONE, None, OTHER),)


def test_files_of_the_environment_are_read_again_when_they_have_changed(environment, tmp_path):
    environment.setenv("OBJSERVER_NAMESERVERS_CREDENTIALS", written(tmp_path / "lab.toml", KEY))
    assert asked("PYRONAME:x")[0].credentials.id == "lab"
    written(tmp_path / "new.toml", OTHER)
    (tmp_path / "new.toml").rename(tmp_path / "lab.toml")
    assert asked("PYRONAME:x")[0].credentials.id == "other"


def test_what_the_environment_says_wrongly_is_named(environment, tmp_path):
    environment.setenv("OBJSERVER_NAMESERVERS_CREDENTIALS", str(tmp_path / "none.toml"))
    with pytest.raises(errors.ConnectFailed, match=r"_CREDENTIALS: cannot read .*none\.toml"):
        asked("PYRONAME:x")
    assert asked("PYRONAME:x@one") == (Contact(ONE),)  # which needs it not
    environment.setenv("PYRO_NS_PORT", "many")
    with pytest.raises(errors.NamingError, match="PYRO_NS_PORT is not a port"):
        usual()
    environment.setenv("OBJSERVER_NAMESERVERS", "one:x")
    with pytest.raises(errors.NamingError, match="OBJSERVER_NAMESERVERS"):
        usual()


def test_no_secret_is_in_a_repr():
    given = NameServers("one", tls=TLS, credentials=SharedKey("lab", bytes(range(32))))
    for shown in (repr(given), str(given), repr(asked("PYRONAME:x", given))):
        assert bytes(range(32)).hex() not in shown
        assert "x1f" not in shown
