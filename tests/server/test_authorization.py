"""Who may not call something does not get it, whatever way he goes, and is not told whether it is there."""

import asyncio
import contextlib
import logging
import time

import Pyro5.api
import Pyro5.errors
import pytest

from objserver import (
    AsyncProxy,
    Concurrent,
    ObjectServer,
    PerClient,
    PerRequest,
    Persistent,
    Proxy,
    ServerSettings,
    Shared,
    current,
    errors,
    expose,
    oneway,
    readonly,
)
from objserver.security import ALLOW_AUTHENTICATED, Authorization, Principal, Restrictions, Rules
from objserver.server.connection import Connection

OPERATOR = Principal("olga", frozenset({"operator"}), "key")
TELLER = Principal("tom", frozenset({"teller"}), "key")
ALICE = Principal("alice")
RULES = """
[[rule]]
effect = "allow"
principals = "alice"
objects = "Box/alice"
methods = ["set", "get", "items"]

[[rule]]
effect = "allow"
principals = "alice"
objects = ["Box/m*", "Box/l*", "Plain"]

[[rule]]
effect = "deny"
principals = "*"
objects = "Box/locked"
"""


@expose(roles={"operator"})
class Account:
    made = []

    def __init__(self):
        self.money = 0
        self.made.append(self)

    def deposit(self, amount: int) -> int:
        self.money += amount
        return self.money

    @expose(roles={"operator", "teller"})
    @readonly
    def statement(self) -> int:
        return self.money

    @expose(roles={"teller"})
    @property
    def balance(self):
        return self.money

    @expose(roles={"operator"})
    @balance.setter
    def balance(self, value):
        self.money = value

    @oneway
    def add(self, amount):
        self.money += amount

    def items(self):
        yield from range(3)

    def who(self):
        return current.caller and current.caller.name

    @readonly
    async def who_later(self):
        await asyncio.sleep(0)
        return current.caller and current.caller.name


@expose
class Plain:
    """Says nothing of roles."""

    def __init__(self):
        self.value = 0

    def set(self, value):
        self.value = value
        return value

    def get(self):
        return self.value

    def items(self):
        yield from range(3)

    def who(self):
        return current.caller and current.caller.name

    def ask(self, uri):
        with Proxy(uri) as other:
            return other.who()

    def cursor(self):
        return Plain()

    def kind(self, thing):
        return type(thing).__name__


@pytest.fixture
def served(monkeypatch):
    """Starts servers whose next connections belong to `served.who`, as if they had proven it."""
    started = []

    class Served:
        who = OPERATOR

        def __call__(self, authorization=None, **options):
            options.setdefault("store", "sqlite://")
            server = ObjectServer(authorization=authorization or Authorization(), **options)
            server.register(Account, "Account", activation=Persistent())
            server.register(Plain, "Plain", activation=Shared())
            server.register(Plain, "Box", activation=Persistent())
            started.append(server.start())
            return server

    it = Served()
    begin = Connection.__init__

    def known(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.principal = it.who

    monkeypatch.setattr(Connection, "__init__", known)
    Account.made.clear()
    yield it
    for server in started:
        server.stop()


def stock(server, object_id):
    proxy = Pyro5.api.Proxy(f"PYRO:{object_id}@{server.address}")
    proxy._pyroTimeout = 10
    return proxy


def ours(server, object_id, **options):
    return Proxy(f"PYRO:{object_id}@{server.address}", timeout_s=10, **options)


def test_roles_of_members_count_before_those_of_their_class(served):
    server = served()
    with ours(server, "Account/a") as account:
        assert account.deposit(5) == 5
        assert account.statement() == 5
    served.who = TELLER
    with ours(server, "Account/a") as account:
        assert account.statement() == 5
        with pytest.raises(errors.NotAuthorized, match="'tom' may not call deposit of 'Account/a'"):
            account.deposit(5)
        assert account.statement() == 5


def test_a_member_without_roles_is_allowed_by_nothing(served):
    server = served()
    with (
        pytest.raises(errors.NotAuthorized, match="'olga' may call nothing of 'Plain'"),
        ours(server, "Plain") as plain,
    ):
        plain.get()


def test_a_stranger_may_nothing_at_all(served):
    server = served(ALLOW_AUTHENTICATED)
    served.who = None
    for object_id in ("Plain", "Account/a", "nothing", "Pyro.Daemon"):
        with pytest.raises(errors.NotAuthorized, match="does not know who calls"):
            ours(server, object_id).get()
        with pytest.raises(Pyro5.errors.CommunicationError, match="does not know who calls"):
            stock(server, object_id).get()


def test_in_a_small_laboratory_everybody_may_call_what_has_no_roles(served):
    server = served(ALLOW_AUTHENTICATED)
    served.who = ALICE
    assert ours(server, "Plain").set(5) == 5
    with pytest.raises(errors.NotAuthorized):
        ours(server, "Account/a").deposit(5)


def test_a_stock_client_sees_a_security_error(served):
    server = served()
    served.who = TELLER
    with stock(server, "Account/a") as account:
        assert account.statement() == 0
        with pytest.raises(Pyro5.errors.SecurityError, match="may not call deposit"):
            account.deposit(5)


def test_no_servant_is_made_and_no_argument_looked_at_for_who_may_not_call(served):
    server = served()
    served.who = TELLER
    with ours(server, "Account/a") as account:
        with pytest.raises(errors.NotAuthorized):
            account.deposit("no number", nonsense=1)
        assert Account.made == []
    assert server.statistics()["active_objects"] == 1  # the daemon


@pytest.mark.parametrize(
    "object_id",
    [
        "Box/bob",
        "Box/Alice",
        "box/alice",
        "Box",
        "Box/",
        "Box//alice",
        "Box/alice/",
        "Box/bob/../alice",
        "Box/./alice",
        "Box/%61lice",
        "Box/alic\u0435",  # a Cyrillic letter
        "Box/\uff41lice",
        "Box/alice%00",
        "Box/alice\x00",
        "Box/alice%2F",
        "Box%2Falice",
        "Box/locked",
        "Box/%6cocked",
        "Box/lock%65d",
        "nothing",
        "nothing/alice",
    ],
)
def test_no_other_spelling_of_an_id_is_allowed(served, object_id):
    server = served(Authorization(rules=Rules.parse(RULES)))
    served.who = ALICE
    with ours(server, "Box/alice") as box:
        assert box.set(1) == 1
        box._objserver_stub.pool.object_id = object_id
        with pytest.raises(errors.NotAuthorized, match="or there is no such object"):
            box.set(1)
        with pytest.raises(errors.NotAuthorized, match="or there is no such object"):
            ours(server, object_id).set(1)
        assert server.statistics()["active_by_name"]["Box"] == 1


def test_what_exists_and_what_does_not_is_refused_in_the_same_words(served):
    server = served(Authorization(rules=Rules.parse(RULES)))
    served.who = ALICE
    sentences = set()
    for object_id in ("Account/x", "Missing/x", "Account/%78"):
        with stock(server, "Box/mine") as proxy:
            assert proxy.get() == 0
            with pytest.raises(Pyro5.errors.SecurityError) as caught:
                proxy._pyroInvoke("deposit", (1,), {}, objectId=object_id)
            sentences.add(str(caught.value).replace(object_id, "ID"))
    assert len(sentences) == 1


def test_an_encoded_key_is_allowed_by_its_exact_id(served):
    rules = '[[rule]]\neffect = "allow"\nprincipals = "alice"\nobjects = "Box/a%20b"'
    server = served(Authorization(rules=Rules.parse(rules)))
    served.who = ALICE
    assert ours(server, "Box/a%20b").set(1) == 1
    with pytest.raises(errors.NotAuthorized):
        ours(server, "Box/%61%20b").set(1)


def test_a_batch_is_called_as_a_whole_or_not_at_all(served):
    server = served()
    served.who = TELLER
    with ours(server, "Account/a") as account:
        batch = account.batch()
        batch.statement()
        batch.deposit(5)
        with pytest.raises(errors.NotAuthorized, match="may not call deposit"):
            list(batch())
        batch = account.batch()
        batch.statement()
        batch.statement()
        assert list(batch()) == [0, 0]
    with stock(server, "Account/a") as account:
        batch = Pyro5.api.BatchProxy(account)
        batch.statement()
        batch.deposit(5)
        with pytest.raises(Pyro5.errors.SecurityError):
            list(batch())
        batch = Pyro5.api.BatchProxy(account)
        batch.statement()
        assert list(batch()) == [0]


def test_an_empty_batch_tells_nothing(served):
    server = served()
    served.who = ALICE
    with stock(server, "Pyro.Daemon") as daemon:
        daemon._pyroBind()
        with pytest.raises(Pyro5.errors.SecurityError):
            daemon._pyroInvoke("<batch>", [], {}, 1 << 3, objectId="Account/a")


def test_attributes_are_read_and_set_by_different_rights(served):
    server = served()
    served.who = TELLER
    with ours(server, "Account/a") as account:
        assert account.balance == 0
        with pytest.raises(errors.NotAuthorized, match="may not call balance= of"):
            account.balance = 5
    served.who = OPERATOR
    with ours(server, "Account/a") as account:
        account.balance = 7
        with pytest.raises(errors.NotAuthorized, match="may not call balance of"):
            account.balance
    with stock(server, "Account/a") as account:
        account.balance = 9
        with pytest.raises(Pyro5.errors.SecurityError):
            account.balance


def test_a_rule_for_reading_an_attribute_does_not_allow_to_set_it(served):
    @expose
    class Dial:
        value = 1

        @property
        def turn(self):
            return self.value

        @turn.setter
        def turn(self, value):
            self.value = value

    rules = '[[rule]]\neffect = "allow"\nprincipals = "alice"\nobjects = "Dial"\nmethods = "turn"'
    server = served(Authorization(rules=Rules.parse(rules)))
    server.register(Dial, "Dial")
    served.who = ALICE
    with ours(server, "Dial") as dial:
        assert dial.turn == 1
        with pytest.raises(errors.NotAuthorized):
            dial.turn = 5
        assert dial.turn == 1


def test_a_method_is_not_reached_by_the_name_of_an_attribute(served):
    server = served(Authorization(rules=Rules.parse(RULES)))
    served.who = ALICE
    with stock(server, "Box/alice") as box:
        box._pyroBind()
        for attempt in ("who", "cursor"):
            for _ in range(2):
                with pytest.raises(AttributeError):
                    box._pyroInvoke("__getattr__", (attempt,), {})
                with pytest.raises(Pyro5.errors.SecurityError):
                    box._pyroInvoke(attempt, (), {})


def test_who_may_call_an_object_is_told_of_a_member_that_it_has_not(served):
    server = served()
    with stock(server, "Account/a") as account:
        account._pyroBind()
        with pytest.raises(AttributeError, match="no exposed method 'depsoit'; did you mean 'deposit'"):
            account._pyroInvoke("depsoit", (1,), {})
    served.who = ALICE
    with stock(server, "Pyro.Daemon") as daemon:
        daemon._pyroBind()
        with pytest.raises(Pyro5.errors.SecurityError, match="may not call depsoit of 'Account/a'"):
            daemon._pyroInvoke("depsoit", (1,), {}, objectId="Account/a")


def test_a_oneway_call_that_is_not_allowed_does_nothing(served, caplog):
    server = served()
    with ours(server, "Account/a") as account:
        account.add(5)
        assert account.statement() == 5
    served.who = TELLER
    with ours(server, "Account/a") as account:
        account.add(5)
        assert account.statement() == 5
    assert "may not call add" in caplog.text


def test_promises_and_pipelines_are_asked_for_one_by_one(served):
    server = served()
    with ours(server, "Account/a") as account:
        five = account.future.deposit(5)
        assert account.future.deposit(five).result(10) == 10
    served.who = TELLER
    with ours(server, "Account/a") as account:
        ten = account.future.statement()
        more = account.future.deposit(ten)
        assert ten.result(10) == 10
        with pytest.raises(errors.NotAuthorized):
            more.result(10)
        assert account.statement() == 10

    async def calls():
        async with AsyncProxy(f"PYRO:Account/a@{server.address}") as account:
            assert await account.statement() == 10
            with pytest.raises(errors.NotAuthorized):
                await account.deposit(5)

    asyncio.run(calls())


def test_items_of_a_stream_are_only_for_who_opened_it(served):
    server = served()
    with stock(server, "Account/a") as account:
        account._pyroBind()
        items = account.items()
        assert next(items) == 0
        stream_id = items.streamId
        account._pyroRelease()  # from now on a stock client needs the id only
    served.who = TELLER
    with stock(server, "Pyro.Daemon") as daemon:
        with pytest.raises(Exception, match="item stream terminated"):
            daemon.get_next_stream_item(stream_id)
        daemon.close_stream(stream_id)
        assert daemon.ping() is None
    served.who = OPERATOR
    with stock(server, "Pyro.Daemon") as daemon:
        assert daemon.get_next_stream_item(stream_id) == 1


def test_who_is_known_may_call_of_the_daemon_what_proxies_need(served):
    server = served()
    with stock(server, "Pyro.Daemon") as daemon:
        assert daemon.ping() is None
        assert "deposit" in daemon.get_metadata("Account/a")["methods"]
        assert "deposit" in str(daemon.describe("Account/a"))
        daemon.release_session()
        for method in ("registered", "info"):
            with pytest.raises(Pyro5.errors.SecurityError):
                getattr(daemon, method)()


def test_what_an_object_is_only_those_are_told_who_may_call_it(served):
    server = served()
    served.who = ALICE
    with stock(server, "Pyro.Daemon") as daemon:
        for object_id in ("Account/a", "Account/%61", "Plain", "nothing"):
            for method in ("get_metadata", "describe"):
                with pytest.raises(Pyro5.errors.SecurityError, match="may call nothing of"):
                    getattr(daemon, method)(object_id)


def test_a_rule_shows_the_registered_names(served):
    rules = '[[rule]]\neffect = "allow"\nroles = "operator"\nobjects = "Pyro.Daemon"\nmethods = "registered"'
    server = served(Authorization(rules=Rules.parse(rules)))
    with stock(server, "Pyro.Daemon") as daemon:
        assert "Account" in daemon.registered()


def test_a_locator_is_not_asked_for_who_could_be_allowed_nothing(served):
    asked = []

    def locate(key):
        asked.append(key)
        return Account()

    server = served()
    for name, activation in (("PerRequest", PerRequest()), ("PerClient", PerClient()), ("All", Shared())):
        server.register(locate, name, activation=activation)
    served.who = ALICE
    with stock(server, "Pyro.Daemon") as daemon:
        daemon._pyroBind()
        for name in ("PerRequest", "PerClient", "All"):
            with pytest.raises(Pyro5.errors.SecurityError):
                daemon._pyroInvoke("statement", (), {}, objectId=f"{name}/a")
            with pytest.raises(Pyro5.errors.SecurityError):
                daemon.get_metadata(f"{name}/a")
    assert asked == []


@pytest.mark.parametrize("activation", [PerRequest(), PerClient(), Shared(), Persistent()])
def test_roles_count_where_a_locator_tells_the_class(served, activation):
    kept = {}
    server = served()
    if isinstance(activation, Shared):
        server.register(lambda key: kept.setdefault(key, Account()), "Found", activation=activation)
    else:
        server.register(lambda key: Account(), "Found", activation=activation)
    served.who = TELLER
    with ours(server, "Found/a") as account:
        for _ in range(2):
            assert account.statement() == 0
            with pytest.raises(errors.NotAuthorized):
                account.deposit(5)
    served.who = OPERATOR
    with ours(server, "Found/a") as account:
        assert account.deposit(5) == 5


def test_a_name_that_changes_hands_is_judged_anew(served):
    server = served()
    server.register(Account, "Thing")
    with ours(server, "Thing") as thing:
        assert thing.who() == "olga"
        server.unregister("Thing")
        server.register(Plain, "Thing")
        with pytest.raises(errors.NotAuthorized):
            thing.who()


def test_what_a_servant_returned_needs_a_rule_like_everything_else(served):
    rules = '[[rule]]\neffect = "allow"\nprincipals = "alice"\nobjects = {}'
    served.who = ALICE
    server = served(Authorization(rules=Rules.parse(rules.format('["Plain", "~*"]'))))
    with ours(server, "Plain") as plain:
        assert plain.cursor().set(5) == 5
    server = served(Authorization(rules=Rules.parse(rules.format('["Plain"]'))))
    with ours(server, "Plain") as plain:
        with pytest.raises(errors.NotAuthorized):
            plain.cursor().set(5)
        with pytest.raises(errors.NotAuthorized):
            plain.future.cursor().set(5).result(10)


def test_a_reference_in_an_argument_is_no_way_around(served):
    rules = '[[rule]]\neffect = "allow"\nprincipals = "alice"\nobjects = ["Plain", "~*"]'
    server = served(Authorization(rules=Rules.parse(rules)))
    secret = server.register(Plain(), "Secret")
    served.who = ALICE
    with ours(server, "Plain") as plain:
        assert plain.kind(secret) == "Proxy"
        assert plain.kind(plain.cursor()) == "Plain"
    with ObjectServer() as open_to_all:
        secret = open_to_all.register(Plain(), "Secret")
        open_to_all.register(Plain, "Plain")
        with ours(open_to_all, "Plain") as plain:
            assert plain.kind(secret) == "Plain"


def test_other_rules_count_from_the_next_call_on(served):
    server = served()
    with ours(server, "Account/a") as account:
        assert account.deposit(1) == 1
        server.authorization = Authorization(
            rules=Rules.parse('[[rule]]\neffect = "deny"\nprincipals = "olga"\nobjects = "*"')
        )
        with pytest.raises(errors.NotAuthorized):
            account.deposit(1)
        server.authorization = Authorization()
        assert account.deposit(1) == 2
    with ObjectServer() as open_to_all, pytest.raises(errors.RegistrationError, match="does not ask who"):
        open_to_all.authorization = Authorization()


def test_what_expires_ends_what_was_allowed(served):
    server = served()
    served.who = Principal("olga", frozenset({"operator"}), expires_at=time.time() + 3600)
    with ours(server, "Account/a") as account:
        assert account.deposit(1) == 1
        server.adapter._guard._time = lambda: time.time() + 4000
        with pytest.raises(errors.NotAuthorized):
            account.deposit(1)


def test_a_token_leaves_what_it_covers(served):
    server = served()
    served.who = Principal(
        "olga", frozenset({"operator"}), "token", None, Restrictions((("Account/a",),), (("deposit",),))
    )
    with ours(server, "Account/a") as account:
        assert account.deposit(1) == 1
        with pytest.raises(errors.NotAuthorized):
            account.statement()
    with pytest.raises(errors.NotAuthorized):
        ours(server, "Account/b").deposit(1)


def test_a_policy_is_asked_for_every_call(served):
    asked = []

    def policy(principal, object_id, method):
        asked.append(method)
        return asked.count("set") < 3

    server = served(Authorization(policy=policy))
    served.who = ALICE
    with ours(server, "Plain") as plain:
        plain._objserver_stub.metadata()
        asked.clear()
        plain.set(1)
        plain.set(2)
        with pytest.raises(errors.NotAuthorized):
            plain.set(3)
    assert asked.count("set") >= 3


# -- who calls --------------------------------------------------------------------------------------


def test_a_servant_sees_who_calls(served):
    server = served()
    with ours(server, "Account/a") as account:
        assert account.who() == "olga"
        assert account.who_later() == "olga"
    with stock(server, "Account/a") as account:
        assert account.who() == "olga"


def test_without_authorization_nobody_is_asked_and_a_servant_sees_nobody():
    with ObjectServer() as server:
        server.register(Account, "Account")
        with ours(server, "Account") as account:
            assert account.who() is None
            assert account.deposit(5) == 5


def test_a_nested_call_is_one_of_the_server_and_not_of_its_client(served):
    server = served(ALLOW_AUTHENTICATED)
    server.register(Plain, "Front", threading=Concurrent())
    served.who = ALICE
    with ours(server, "Front") as front:
        assert front.who() == "alice"
        served.who = Principal("the server")
        assert front.ask(f"PYRO:Plain@{server.address}") == "the server"


def test_interceptors_see_who_calls(served):
    seen = []

    @contextlib.contextmanager
    def note(call):
        seen.append((call.method, call.caller and call.caller.name))
        yield

    server = served(interceptors=[note])
    with ours(server, "Account/a") as account:
        account.deposit(5)
        account.who_later()
    seen = [each for each in seen if "session" not in each[0]]
    assert seen == [("deposit", "olga"), ("who_later", "olga")]


def test_timers_are_the_servers_own_and_need_no_right(served):
    fired = []

    @expose(roles={"operator"})
    class Clockwork:
        def start(self):
            current.set_timer("tick", "tick", after_s=0.01)

        def tick(self):
            fired.append(current.caller)

    server = served()
    server.register(Clockwork, "Clockwork", activation=Persistent())
    ours(server, "Clockwork/a").start()
    deadline = time.monotonic() + 10
    while not fired and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fired == [None]


# -- quotas and records -----------------------------------------------------------------------------


def test_who_has_had_its_calls_is_told_when_there_are_more(served):
    server = served(settings=ServerSettings(calls_per_principal_s=0.001, quota_burst_s=2500))
    with ours(server, "Account/a") as account:

        def work():
            while True:
                account.statement()

        with pytest.raises(errors.QuotaExceeded) as caught:
            work()
    assert caught.value.quota == "calls_per_principal_s"
    assert caught.value.retry_after_s > 1
    served.who = TELLER
    assert ours(server, "Account/a").statement() == 0
    figures = server.statistics()
    assert figures["quota_refusals"] >= 1
    assert figures["by_principal"]["tom"]["refused"] == 0
    with stock(server, "Account/a") as account:
        account.statement()


def test_bytes_of_large_requests_are_counted(served):
    settings = ServerSettings(bytes_per_principal_s=1.0, quota_burst_s=1)
    server = served(ALLOW_AUTHENTICATED, settings=settings)
    with ours(server, "Plain") as plain:
        plain.set("small")
        plain.set("x" * 10_000)
        plain.set("small")
        with pytest.raises(errors.QuotaExceeded, match="bytes_per_principal_s"):
            plain.set("x" * 10_000)


def test_keys_cannot_be_flooded(served):
    settings = ServerSettings(activations_per_principal_s=0.001, quota_burst_s=2500)
    server = served(settings=settings)

    def flood():
        for number in range(10):
            ours(server, f"Account/{number}").deposit(1)

    with pytest.raises(errors.QuotaExceeded, match="activations_per_principal_s"):
        flood()
    assert ours(server, "Account/0").deposit(1) == 2


def test_connections_of_one_principal_are_bounded(served):
    server = served(settings=ServerSettings(connections_per_principal_max=2))
    first, second = stock(server, "Account/a"), stock(server, "Account/a")
    with first, second:
        first._pyroBind()
        second._pyroBind()
        with pytest.raises(errors.QuotaExceeded, match="close one first"):
            ours(server, "Account/a").statement()
        assert server.statistics()["by_principal"]["olga"]["connections"] == 2
        served.who = TELLER
        assert ours(server, "Account/a").statement() == 0


def test_every_decision_is_a_record(served, caplog):
    caplog.set_level(logging.INFO, "objserver.audit")
    server = served()
    served.who = TELLER
    with ours(server, "Account/a") as account:
        account.statement()
        account.statement()
        with pytest.raises(errors.NotAuthorized):
            account.deposit(5)
    with pytest.raises(errors.NotAuthorized):
        ours(server, "Plain").get()
    records = [record.audit for record in caplog.records if record.name == "objserver.audit"]
    told = [(r["object"], r["method"], r["allowed"], r["reason"]) for r in records]
    told = [each for each in told if each[0] != "Pyro.Daemon"]
    assert told == [
        ("Account/a", "statement", True, "role teller"),
        ("Account/a", "statement", True, "role teller"),
        ("Account/a", "deposit", False, "needs the role operator"),
        ("Plain", "get_metadata", False, "nothing could be allowed here"),
    ]
    assert all(r["principal"] == "tom" and r["means"] == "key" and r["address"] for r in records)
    assert records[-2]["correlation_id"]
    assert server.statistics()["calls_denied"] == 2
