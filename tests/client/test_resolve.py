"""From logical references to locations, with a name server that is a function."""

import pytest

from objserver import Reference, errors
from objserver.client.nameservers import NameServers, contacts
from objserver.client.resolve import ask_any, name_server, name_servers, resolve


class Names:
    """Stands for the call of a name server; `asked` is what it was asked."""

    def __init__(self, entries=(), found=(), problem=None):
        self.entries = dict(entries)
        self.found = dict(found)
        self.problem = problem
        self.asked = []

    def __call__(self, server, timeout_s, method, *args):
        if method not in ("lookup", "yplookup"):
            raise errors.MemberNotFound(f"a stock name server has no {method}")
        self.asked.append((str(server.reference), timeout_s, method, *args))
        if self.problem is not None:
            raise self.problem
        if method == "yplookup":
            return self.found
        if args[0] not in self.entries:
            raise errors.NamingError(f"unknown name {args[0]!r}")
        return self.entries[args[0]]

    @property
    def names(self):
        return [request[3] for request in self.asked]


def resolved(uri, names, timeout_s=None):
    return str(resolve(Reference.parse(uri), names, timeout_s))


def test_a_reference_that_says_where_needs_nobody():
    names = Names()
    assert resolved("PYRO:Account/alice@localhost:1", names) == "PYRO:Account/alice@localhost:1"
    assert names.asked == []


def test_a_name_is_looked_up_at_the_name_server_given():
    names = Names({"Account": "PYRO:obj_1@localhost:7"})
    assert resolved("PYRONAME:Account@localhost:5", names, 2.5) == "PYRO:obj_1@localhost:7"
    assert names.asked == [("PYRO:Pyro.NameServer@localhost:5", 2.5, "lookup", "Account")]


@pytest.mark.parametrize(
    ("name", "object_id", "asked"),
    [
        ("Account/alice", "Account/alice", ["Account/alice", "Account"]),
        ("Account/a/b", "Account/a/b", ["Account/a/b", "Account/a", "Account"]),
        ("Account/a%20b", "Account/a%20b", ["Account/a%20b", "Account"]),
    ],
)
def test_the_key_of_a_registered_name_is_kept(name, object_id, asked):
    names = Names({"Account": "PYRO:Account@localhost:7"})
    assert resolved(f"PYRONAME:{name}", names) == f"PYRO:{object_id}@localhost:7"
    assert names.names == asked


def test_the_longest_registered_name_wins():
    names = Names({"Account": "PYRO:A@localhost:7", "Account/alice": "PYRO:B@localhost:8"})
    assert resolved("PYRONAME:Account/alice", names) == "PYRO:B@localhost:8"
    assert resolved("PYRONAME:Account/alice/x", names) == "PYRO:B/x@localhost:8"


def test_a_name_of_which_no_part_is_known_is_an_error():
    names = Names({"Other": "PYRO:Other@localhost:7"})
    with pytest.raises(errors.NamingError, match="unknown name 'Account'"):
        resolved("PYRONAME:Account/alice", names)


def test_pyrometa_asks_for_an_object_with_all_of_the_tags():
    names = Names(found={"x": "PYRO:x@localhost:7"})
    assert resolved("PYROMETA:red,big@localhost:5", names, 1.0) == "PYRO:x@localhost:7"
    ((server, timeout_s, method, meta_all, meta_any, return_metadata),) = names.asked
    assert (server, timeout_s, method) == ("PYRO:Pyro.NameServer@localhost:5", 1.0, "yplookup")
    assert (meta_all, meta_any, return_metadata) == (["big", "red"], None, False)


def test_pyrometa_spreads_over_what_was_found():
    names = Names(found={"x": "PYRO:x@localhost:7", "y": "PYRO:y@localhost:7"})
    seen = {resolved("PYROMETA:red", names) for _ in range(200)}
    assert seen == {"PYRO:x@localhost:7", "PYRO:y@localhost:7"}


def test_tags_that_nobody_has_are_named():
    with pytest.raises(errors.NamingError, match=r"\['big', 'red'\]"):
        resolved("PYROMETA:red,big", Names())


@pytest.mark.parametrize("uri", ["PYRONAME:Account@localhost:5", "PYROMETA:red@localhost:5"])
def test_a_name_server_that_does_not_answer_is_named(uri):
    names = Names(problem=errors.ConnectFailed("connection refused"))
    with pytest.raises(errors.NamingError, match="no name server answers at localhost:5; start one with"):
        resolved(uri, names)


def test_without_a_location_the_environment_says_which_name_server(monkeypatch):
    monkeypatch.delenv("PYRO_NS_HOST", raising=False)
    monkeypatch.delenv("PYRO_NS_PORT", raising=False)
    assert str(name_server()) == "PYRO:Pyro.NameServer@localhost:9090"
    monkeypatch.setenv("PYRO_NS_HOST", "names")
    monkeypatch.setenv("PYRO_NS_PORT", "7")
    assert str(name_server()) == "PYRO:Pyro.NameServer@names:7"


class Several:
    """Name servers, of which some do not answer; `asked` is whom, and for how long."""

    def __init__(self, **problems):
        self.problems = problems
        self.asked = []

    def __call__(self, server, timeout_s, method, *args):
        self.asked.append((server.location.host, timeout_s))
        problem = self.problems.get(server.location.host)
        if problem is not None:
            raise problem
        return f"from {server.location.host}"


SERVERS = contacts(Reference.parse("PYRONAME:x@one,two,three"), NameServers())


def test_the_first_that_answers_is_believed_and_nobody_gets_much_time_while_others_are_left():
    several = Several(one=errors.ConnectFailed("refused"), two=errors.CallTimeout("no answer"))
    failed = []
    ask = ask_any(SERVERS, several, 5.0, failed=lambda location: failed.append(location.host))
    assert ask("lookup", "x") == ask("lookup", "y") == "from three"
    assert several.asked == [("one", 0.3), ("two", 0.3), ("three", 0.3), ("three", 0.3)]
    assert failed == ["one", "two"]


def test_those_that_failed_lately_are_asked_last():
    several = Several()
    ask_any(SERVERS, several, 5.0, is_ill=lambda location: location.host == "one")("lookup", "x")
    assert several.asked == [("two", 0.3)]


@pytest.mark.parametrize(("timeout_s", "then_s"), [(5.0, 5.0), (0.1, 0.1), (None, 10.0)])
def test_if_all_are_slow_each_gets_all_the_time_there_is(timeout_s, then_s):
    slow = errors.CallTimeout("no answer")
    several = Several(one=slow, two=slow, three=slow)
    with pytest.raises(errors.NamingError, match="at one:9090 or two:9090 or three:9090"):
        ask_any(SERVERS, several, timeout_s)("lookup", "x")
    first_s = min(0.3, then_s)
    assert several.asked == [(host, s) for s in (first_s, then_s) for host in ("one", "two", "three")]


def test_an_error_is_an_answer():
    several = Several(one=errors.NamingError("unknown name"))
    with pytest.raises(errors.NamingError, match="unknown name"):
        ask_any(SERVERS, several, 5.0)("lookup", "x")
    assert len(several.asked) == 1


def test_one_name_server_has_the_time_of_the_caller():
    several = Several(one=errors.CallTimeout("no answer"))
    with pytest.raises(errors.CallTimeout):
        ask_any(SERVERS[:1], several, 5.0)("lookup", "x")
    assert several.asked == [("one", 5.0)]


def test_who_does_not_let_this_client_in_is_passed_over_and_asked_once():
    several = Several(one=errors.AuthenticationFailed("no key"), two=errors.CallTimeout("no answer"))
    assert ask_any(SERVERS, several, 5.0)("lookup", "x") == "from three"
    several.problems["three"] = errors.ConnectFailed("refused")
    several.asked.clear()
    with pytest.raises(
        errors.AuthenticationFailed, match="the name server at one:9090 could not be asked: no key"
    ):
        ask_any(SERVERS, several, 5.0)("lookup", "x")
    assert [host for host, _ in several.asked] == ["one", "two", "three", "two", "three"]


def test_advice_that_is_for_proxies_says_how_a_name_server_is_shown_something():
    several = Several(one=errors.AuthenticationFailed("give the proxy credentials=..."))
    with pytest.raises(errors.AuthenticationFailed, match=r"name_servers=NameServers\("):
        ask_any(SERVERS[:1], several, 5.0)("lookup", "x")
    several = Several(one=errors.AuthenticationFailed("it has expired"))
    with pytest.raises(errors.AuthenticationFailed, match=r"it has expired$"):
        ask_any(SERVERS[:1], several, 5.0)("lookup", "x")


def test_without_an_option_the_environment_says_where_name_servers_are(monkeypatch):
    monkeypatch.setenv("OBJSERVER_NAMESERVERS", "three:1, four")
    assert [str(s.location) for s in name_servers(Reference.parse("PYRONAME:x@one"))] == ["one:9090"]
    found = [str(s.location) for s in name_servers(Reference.parse("PYROMETA:x"))]
    assert found == ["three:1", "four:9090"]
    assert str(name_server()) == "PYRO:Pyro.NameServer@three:1"
