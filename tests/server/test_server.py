"""The object server, seen by clients over real sockets."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import Pyro5.api
import pytest

from objserver import (
    Concurrent,
    ObjectServer,
    PerClient,
    PerRequest,
    Persistent,
    Proxy,
    ReadersWriter,
    Reentrant,
    Serial,
    ServerSettings,
    Shared,
    current,
    errors,
    expose,
    oneway,
    readonly,
)
from objserver.testing.clock import ManualClock

WAIT_S = 10


@expose
class Counter:
    """Counts its calls, and its lives in `events`."""

    events: list = []

    def __init__(self):
        self.n = 0

    def on_activate(self):
        self.events.append("activate")

    def on_passivate(self):
        self.events.append("passivate")

    def close(self):
        self.events.append("close")

    def add(self, amount=1):
        self.n += amount
        return self.n

    @readonly
    def value(self):
        return self.n

    def count(self, upto):
        yield from range(upto)

    def who(self):
        return current.object_id, current.key, current.method

    def fail(self, amount):
        self.n += amount
        raise KeyError("wanted")

    def spoil(self):
        self.n = threading.Lock()

    async def later(self):
        self.n += 1
        return self.n


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def server(tmp_path, clock):
    Counter.events = []
    made = ObjectServer(store=f"sqlite:///{tmp_path}/store.db", clock=clock)
    with made:
        yield made


def proxies(server, object_id, count):
    return [Proxy(f"PYRO:{object_id}@{server.address}", timeout_s=WAIT_S) for _ in range(count)]


# -- activation ----------------------------------------------------------------------------------------


def test_per_request_makes_a_servant_for_every_call(server):
    server.register(Counter, "C", activation=PerRequest())
    (proxy,) = proxies(server, "C", 1)
    assert [proxy.add(), proxy.add()] == [1, 1]
    wait_until(lambda: Counter.events == ["activate", "close"] * 2)


def test_per_client_keeps_a_servant_for_each_proxy(server):
    server.register(Counter, "C", activation=PerClient())
    a, b = proxies(server, "C", 2)
    assert [a.add(), a.add(), b.add()] == [1, 2, 1]


def test_a_session_survives_the_loss_of_its_connection(server):
    server.register(Counter, "C", activation=PerClient())
    (a,) = proxies(server, "C", 1)
    a.add()
    for _ in a._objserver_stub.pool.drain():
        pass
    assert a.add() == 2


def test_a_named_session_is_shared(server):
    server.register(Counter, "C", activation=PerClient())
    a, b = (Proxy(f"PYRO:C@{server.address}", session="ours") for _ in range(2))
    assert [a.add(), b.add()] == [1, 2]


def test_releasing_a_proxy_ends_its_session(server):
    server.register(Counter, "C", activation=PerClient())
    (a,) = proxies(server, "C", 1)
    a.add()
    a.release()
    (probe,) = proxies(server, "Pyro.Daemon", 1)
    probe.ping()
    wait_until(lambda: server.adapter.active == 1)  # Pyro.Daemon itself
    assert Counter.events == ["activate", "passivate", "close"]
    assert a.add() == 1


def test_too_many_sessions_are_refused(server):
    server.register(Counter, "C", activation=PerClient(capacity=1))
    a, b = proxies(server, "C", 2)
    a.add()
    with pytest.raises(errors.ServerBusy, match="capacity"):
        b.add()


def test_shared_is_one_for_everybody(server):
    server.register(Counter, "C", activation=Shared())
    a, b = proxies(server, "C", 2)
    assert [a.add(), b.add()] == [1, 2]


def test_an_instance_is_served_as_it_is(server):
    counter = Counter()
    server.register(counter, "C")
    (a,) = proxies(server, "C", 1)
    a.add(5)
    assert counter.n == 5
    assert Counter.events == []


def test_persistent_objects_have_a_servant_for_each_key(server):
    server.register(Counter, "C", activation=Persistent())
    (a,), (b,) = proxies(server, "C/a", 1), proxies(server, "C/b%20c", 1)
    assert [a.add(), a.add(), b.add()] == [1, 2, 1]
    assert b.who() == ("C/b%20c", "b c", "who")


def test_a_locator_stands_in_for_a_class(server):
    counters = {"one": Counter(), "two": Counter()}
    server.register(lambda key: counters[key], "Located")
    (one,), (two,) = proxies(server, "Located/one", 1), proxies(server, "Located/two", 1)
    assert [one.add(), one.add(), two.add()] == [1, 2, 1]
    (missing,) = proxies(server, "Located/three", 1)
    with pytest.raises(errors.ActivationError, match=r"Located/three.*KeyError"):
        missing.add()


def test_one_class_under_two_names_is_two_objects(server):
    server.register(Counter, "A")
    server.register(Counter, "B")
    (a,), (b,) = proxies(server, "A", 1), proxies(server, "B", 1)
    assert [a.add(), a.add(), b.add()] == [1, 2, 1]


def test_a_failing_constructor_is_reported_and_tried_again(server):
    attempts = []

    @expose
    class Shy:
        def __init__(self):
            attempts.append(1)
            if len(attempts) == 1:
                raise OSError("no instrument")

        def hello(self):
            return "hello"

    server.register(Shy, "Shy")
    (proxy,) = proxies(server, "Shy", 1)
    with pytest.raises(errors.ActivationError, match="no instrument"):
        proxy.hello()
    assert proxy.hello() == "hello"


def test_unregistering_ends_the_servant_and_the_name(server):
    server.register(Counter, "C")
    (a,) = proxies(server, "C", 1)
    a.add()
    server.unregister("C")
    with pytest.raises(errors.ObjectNotFound):
        a.add()
    wait_until(lambda: "close" in Counter.events)
    assert Counter.events == ["activate", "passivate", "close"]


@pytest.mark.parametrize("name", ["", "a b", "a@b"])
def test_impossible_names_are_refused(server, name):
    with pytest.raises(errors.RegistrationError):
        server.register(Counter, name)


def test_a_class_that_offers_nothing_is_refused(server):
    with pytest.raises(errors.RegistrationError, match="@expose"):
        server.register(object, "Nothing")


def test_a_name_is_given_once(server):
    server.register(Counter, "C")
    with pytest.raises(errors.RegistrationError, match="taken"):
        server.register(Counter, "C")


# -- passivation ---------------------------------------------------------------------------------------


def test_idle_objects_are_passivated_and_come_back_with_their_state(server, clock):
    server.register(Counter, "C", activation=Persistent(idle_timeout_s=60))
    (a,) = proxies(server, "C/a", 1)
    a.add(5)
    let_time_pass_until(clock, lambda: "close" in Counter.events)
    assert a.add() == 6
    assert Counter.events == ["activate", "passivate", "close", "activate"]


def test_beyond_capacity_the_least_recently_used_go(server, clock):
    server.register(Counter, "C", activation=Persistent(capacity=4))
    for key in range(10):
        (a,) = proxies(server, f"C/{key}", 1)
        a.add(key)
        clock.advance(1)
    wait_until(lambda: server.adapter.active <= 5)
    assert [proxies(server, f"C/{key}", 1)[0].value() for key in range(10)] == list(range(10))


def test_an_open_stream_keeps_its_servant(server, clock):
    server.register(Counter, "C", activation=Persistent(idle_timeout_s=60))
    (a,) = proxies(server, "C/a", 1)
    stream = a.count(3)
    assert next(stream) == 0
    clock.advance(120)
    server.adapter.housekeeping(clock.monotonic())
    assert list(stream) == [1, 2]


# -- state ---------------------------------------------------------------------------------------------


def test_a_failed_call_leaves_memory_and_store_the_same(server, clock):
    server.register(Counter, "C", activation=Persistent(idle_timeout_s=60))
    (a,) = proxies(server, "C/a", 1)
    with pytest.raises(KeyError):
        a.fail(3)
    let_time_pass_until(clock, lambda: "close" in Counter.events)
    assert a.value() == 3


def test_a_state_that_is_no_data_changes_nothing(server):
    server.register(Counter, "C", activation=Persistent())
    (a,) = proxies(server, "C/a", 1)
    a.add(3)
    with pytest.raises(errors.StateError):
        a.spoil()
    assert a.add() == 4


def test_acknowledged_calls_survive_kill_9(tmp_path):
    program = textwrap.dedent(f"""
        import sys
        from objserver import ObjectServer, Persistent, expose
        @expose
        class Account:
            def __init__(self): self.balance = 0
            def deposit(self, amount):
                self.balance += amount
                return self.balance
        server = ObjectServer(store="sqlite:///{tmp_path}/bank.db")
        server.register(Account, "Account", activation=Persistent())
        server.start()
        print(server.address, flush=True)
        sys.stdin.read()
    """)
    acknowledged = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            address = process.stdout.readline().strip()
            alice = Proxy(f"PYRO:Account/alice@{address}", timeout_s=WAIT_S)
            for _ in range(20):
                acknowledged += 1
                assert alice.deposit(1) == acknowledged
            process.send_signal(signal.SIGKILL)
            alice.release()


# -- ordering ------------------------------------------------------------------------------------------


def test_many_threads_on_one_proxy_are_serialised_by_the_object(server):
    @expose
    class Racy:
        def __init__(self):
            self.n = self.inside = self.worst = 0

        def step(self):
            self.inside += 1
            self.worst = max(self.worst, self.inside)
            seen = self.n
            os.sched_yield()
            self.n = seen + 1
            self.inside -= 1

        def result(self):
            return self.n, self.worst

    server.register(Racy, "R", threading=Serial())
    (proxy,) = proxies(server, "R", 1)
    in_threads([lambda: [proxy.step() for _ in range(50)]] * 8)
    assert proxy.result() == (400, 1)


def test_oneways_keep_the_order_of_their_client(server):
    @expose
    class Log:
        def __init__(self):
            self.seen = []

        @oneway
        def note(self, n):
            self.seen.append(n)

        def all(self):
            return self.seen

    server.register(Log, "L")
    (proxy,) = proxies(server, "L", 1)
    for n in range(200):
        proxy.note(n)
    assert proxy.all() == list(range(200))


@pytest.mark.parametrize("threading_policy", [Concurrent(), ReadersWriter()])
def test_calls_meet_inside_where_the_policy_allows(server, threading_policy):
    barrier = threading.Barrier(3)

    @expose
    class Meeting:
        @readonly
        def meet(self):
            return barrier.wait(WAIT_S)

    server.register(Meeting, "M", threading=threading_policy)
    met = in_threads([p.meet for p in proxies(server, "M", 3)])
    assert sorted(met) == [0, 1, 2]


def test_decoding_a_large_request_holds_up_nobody_else(server):
    decoding, go_on = threading.Event(), threading.Event()

    def slow(name, data):
        decoding.set()
        assert go_on.wait(WAIT_S)
        return data["text"]

    @expose
    class Log:
        def __init__(self):
            self.seen = []

        @oneway
        def note(self, value):
            self.seen.append(len(value))

        def all(self):
            return self.seen

    server.register(Log, "L")
    server.register(Counter, "C")
    (log,) = proxies(server, "L", 1)
    (counter,) = proxies(server, "C", 1)
    Pyro5.api.register_dict_to_class("test.Slow", slow)
    try:
        log = Proxy(f"PYRO:L@{server.address}", serializer="serpent", timeout_s=WAIT_S)
        log.note({"__class__": "test.Slow", "text": "x" * 100_000})
        for n in range(5):
            log.note("y" * n)
        assert decoding.wait(WAIT_S)
        assert counter.add() == 1
        assert server.statistics()["receiving_bytes"] > 100_000
        go_on.set()
        assert log.all() == [100_000, 0, 1, 2, 3, 4]
        wait_until(lambda: server.statistics()["receiving_bytes"] == 0)
    finally:
        go_on.set()
        Pyro5.api.unregister_dict_to_class("test.Slow")


def test_a_blocked_servant_holds_up_nobody_else(server):
    release = threading.Event()

    @expose
    class Slow:
        def wait(self):
            return release.wait(WAIT_S)

    server.register(Slow, "Slow", activation=PerRequest())
    server.register(Counter, "C")
    blocked = [threading.Thread(target=p.wait) for p in proxies(server, "Slow", 20)]
    for thread in blocked:
        thread.start()
    (counter,) = proxies(server, "C", 1)
    assert [counter.add() for _ in range(100)][-1] == 100
    release.set()
    for thread in blocked:
        thread.join(WAIT_S)


def test_an_iterative_server_runs_one_invocation_at_a_time(tmp_path):
    inside, worst = [0], [0]

    @expose
    class Thing:
        def step(self):
            inside[0] += 1
            worst[0] = max(worst[0], inside[0])
            os.sched_yield()
            inside[0] -= 1

    with ObjectServer(workers=1) as server:
        server.register(Thing, "T", threading=Concurrent())
        in_threads([lambda p=p: [p.step() for _ in range(30)] for p in proxies(server, "T", 4)])
    assert worst == [1]


def test_coroutines_are_awaited_in_their_turn(server):
    server.register(Counter, "C", activation=Persistent())
    values = in_threads([p.later for p in proxies(server, "C/x", 5)])
    assert sorted(values) == [1, 2, 3, 4, 5]


def test_a_call_that_would_wait_for_itself_fails_at_once(server):
    @expose
    class Mirror:
        def look(self):
            return Proxy(f"PYRO:Mirror@{server.address}", timeout_s=WAIT_S).blink()

        def blink(self):
            return "blink"

    server.register(Mirror, "Mirror")
    (proxy,) = proxies(server, "Mirror", 1)
    with pytest.raises(errors.Deadlock):
        proxy.look()


def test_a_reentrant_object_lets_its_own_chain_in(server):
    @expose
    class Mirror:
        def look(self):
            return Proxy(f"PYRO:Mirror@{server.address}", timeout_s=WAIT_S).blink()

        def blink(self):
            return "blink"

    server.register(Mirror, "Mirror", threading=Reentrant())
    (proxy,) = proxies(server, "Mirror", 1)
    assert proxy.look() == "blink"


def test_a_full_mailbox_refuses_clearly():
    entered, release = threading.Event(), threading.Event()

    @expose
    class Slow:
        def wait(self):
            entered.set()
            return release.wait(WAIT_S)

    with ObjectServer(settings=ServerSettings(mailbox_size_max=1)) as server:
        server.register(Slow, "Slow")
        first, second, third = proxies(server, "Slow", 3)
        threads = [threading.Thread(target=first.wait)]
        threads[0].start()
        assert entered.wait(WAIT_S)
        threads.append(threading.Thread(target=second.wait))
        threads[1].start()
        wait_until(lambda: any(len(a.mailbox.waiting) for a in server.adapter._active.all()))
        with pytest.raises(errors.ServerBusy):
            third.wait()
        release.set()
        for thread in threads:
            thread.join(WAIT_S)


# -- life ----------------------------------------------------------------------------------------------


def test_stopping_lets_calls_in_progress_finish():
    entered, release, answers = threading.Event(), threading.Event(), []

    @expose
    class Slow:
        def wait(self):
            entered.set()
            release.wait(WAIT_S)
            return "done"

    server = ObjectServer().start()
    server.register(Slow, "Slow")
    (proxy,) = proxies(server, "Slow", 1)
    caller = threading.Thread(target=lambda: answers.append(proxy.wait()))
    caller.start()
    assert entered.wait(WAIT_S)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    release.set()
    stopper.join(WAIT_S)
    caller.join(WAIT_S)
    assert answers == ["done"]
    with pytest.raises(errors.ConnectFailed):
        Proxy(f"PYRO:Slow@{server.address}").wait()


def test_stopping_leaves_no_thread_and_closes_servants(tmp_path):
    Counter.events = []
    before = set(threading.enumerate())
    with ObjectServer(store=f"sqlite:///{tmp_path}/s.db") as server:
        server.register(Counter, "C", activation=Persistent())
        (proxy,) = proxies(server, "C/a", 1)
        proxy.add()
        proxy.later()
        proxy.release()
    assert Counter.events == ["activate", "passivate", "close"]
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_other_machines_are_not_let_in_by_accident():
    with pytest.raises(errors.RegistrationError, match="insecure=True"):
        ObjectServer("0.0.0.0:0")


def test_an_address_in_use_is_named():
    with ObjectServer() as server, pytest.raises(OSError, match="in use; choose another port"):
        ObjectServer(server.address)


def test_statistics_show_counts_beside_their_limits(server):
    figures = server.statistics()
    for name in ("connections_max", "workers_max", "streams_max", "mailbox_size_max", "receive_memory_max"):
        assert name in figures


# -- helpers -------------------------------------------------------------------------------------------


def wait_until(condition):
    """Poll for what another thread is about to do; bounded, and the pause decides nothing."""
    pause = threading.Event()
    for _ in range(WAIT_S * 200):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never became true")


def let_time_pass_until(clock, condition):
    """As `wait_until`; a reply comes before its object is left, so a single leap could come too soon."""

    def step():
        clock.advance(61)
        return condition()

    wait_until(step)


def in_threads(works):
    """Run all at once; their results, or the first error."""
    results, problems = [], []

    def run(work):
        try:
            results.append(work())
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    if problems:
        raise problems[0]
    return results


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activation": Persistent}, r"write Persistent\(\), with parentheses"),
        ({"activation": "persistent"}, "is no activation policy: choose one of PerRequest"),
        ({"activation": Serial()}, "the other kind of policy"),
        ({"threading": Serial}, r"write Serial\(\)"),
        ({"threading": Shared()}, "the other kind of policy"),
    ],
)
def test_what_is_no_policy_is_refused(server, options, sentence):
    with pytest.raises(errors.RegistrationError, match=sentence):
        server.register(Counter, "C", **options)


def test_without_a_key_it_is_the_object_whose_key_is_empty(server, clock):
    server.register(Counter, "C", activation=Persistent(idle_timeout_s=60))
    (plain,), (slash,), (other,) = (proxies(server, name, 1) for name in ("C", "C/", "C/a"))
    assert [plain.add(), slash.add(), plain.add(), other.add()] == [1, 2, 3, 1]
    let_time_pass_until(clock, lambda: Counter.events.count("close") == 2)
    assert (slash.add(), plain.who()) == (4, ("C", "", "who"))


def test_a_state_error_names_the_attribute(server):
    server.register(Counter, "C", activation=Persistent())
    (proxy,) = proxies(server, "C/a", 1)
    with pytest.raises(errors.StateError, match="its attribute 'n' is a lock"):
        proxy.spoil()


def test_nothing_is_registered_at_a_stopped_server():
    with ObjectServer() as server:
        pass
    with pytest.raises(errors.RegistrationError, match="has stopped"):
        server.register(Counter)


@expose
class Timed:
    """Tells how much time a call has, here and at the object it calls."""

    def remaining(self):
        return current.remaining_s

    def chain(self, uri, timeout_s=None):
        with Proxy(uri, timeout_s=timeout_s) as onward:
            left_s = onward.remaining()  # connecting took a part of it
            return current.remaining_s and round(current.remaining_s, 1), left_s and round(left_s, 1)


def test_the_time_of_a_call_is_that_of_the_calls_it_makes(server, clock):
    uri = str(server.register(Timed, "T", activation=PerRequest()))
    patient = Proxy(uri)
    assert patient.remaining() is None
    assert patient.chain(uri) == (None, None)
    assert patient.chain(uri, 3) == (None, 3)
    hurried = patient.calling(timeout_s=5)
    assert round(hurried.remaining(), 1) == 5
    assert hurried.chain(uri) == (5, 5)
    assert hurried.chain(uri, 3) == (5, 3)
    assert hurried.chain(uri, 8) == (5, 5)


def test_a_call_out_of_time_calls_nobody(server, clock):
    seen = []

    @expose
    class Late:
        def work(self, uri):
            onward = Proxy(uri)
            onward.remaining()
            clock.advance(6)
            try:
                onward.remaining()
            except errors.DeadlineExceeded as problem:
                seen.append(str(problem))

    uri = str(server.register(Timed, "T", activation=PerRequest()))
    server.register(Late, "L")
    Proxy(f"PYRO:L@{server.address}", timeout_s=5).work(uri)
    assert seen == ["T.remaining was not called: the time of L.work, which calls it, is up"]
