"""Values, exceptions and arguments from end to end: a real server, a real proxy."""

import asyncio
import dataclasses
import enum
import io
import traceback
import typing

import Pyro5.api
import pytest

from objserver import ObjectServer, Persistent, Proxy, ServerSettings, connect, errors, expose, oneway


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass
class Shape:
    points: list[Point]
    color: Color


@dataclasses.dataclass
class Unmentioned:
    x: typing.Any


class Problem(Exception):
    def __init__(self, code, *, hint):
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


@expose
class Painter:
    def __init__(self):
        self.calls = []
        self._size = 1

    def echo(self, value: typing.Any) -> typing.Any:
        return value

    def corner(self, shape: Shape, index: int = 0) -> Point:
        self.calls.append(shape)
        return shape.points[index]

    def surprise(self):
        return {"found": [Unmentioned(1)]}

    def unsendable(self):
        return {"rows": [1, 2, 3, Unmentioned(io.StringIO())]}

    @oneway
    def later(self, x: int):
        self.calls.append(x)

    def seen(self):
        return len(self.calls)

    def lend(self, painter: "Painter", other: "Painter | None" = None) -> bool:
        return getattr(type(painter), "_objserver_is_proxy", False)

    def me(self):
        return self

    @property
    def size(self) -> int:
        return self._size

    @size.setter
    def size(self, value: int):
        self._size = value

    def fail(self):
        try:
            try:
                {}["key"]
            except KeyError as problem:
                raise ValueError("bad") from problem
        except ValueError as problem:
            problem.add_note("a note")
            raise Problem(5, hint=Point(1)) from None

    def chain(self):
        try:
            {}["key"]
        except KeyError as problem:
            problem.add_note("look in the drawer")
            raise ValueError("bad") from problem

    def context(self):
        try:
            {}["key"]
        except KeyError:
            raise ValueError("bad")

    def group(self):
        inner = ExceptionGroup("inner", [KeyError("k")])
        raise ExceptionGroup("many", [ValueError(1), Problem(2, hint=None), inner])

    async def slowly(self, x: int) -> int:
        await asyncio.sleep(0)
        return x


@pytest.fixture
def uri(server):
    return server.register(Painter(), "painter")


@pytest.fixture
def painter(uri):
    with connect(uri, Painter) as proxy:
        yield proxy


SHAPE = Shape([Point(1), Point(2, 3)], Color.RED)


def test_values_arrive_as_what_they_are(painter):
    assert painter.corner(SHAPE, index=1) == Point(2, 3)
    for value in (SHAPE, {Color.RED: [(Point(1),)]}, [bytearray(b"x"), b"x"], {1: bytearray(300)}):
        again = painter.echo(value)
        assert (type(again), again) == (type(value), value)
    assert type(painter.echo([bytearray(70_000)])[0]) is bytearray


def test_a_class_nobody_mentioned(server, uri, painter):
    with pytest.raises(
        errors.SerializeError, match=r"Unmentioned came, .* ObjectServer\(types=\[Unmentioned\]\)"
    ):
        painter.echo(Unmentioned(1))
    with pytest.raises(
        errors.SerializeError, match=r"Unmentioned came, .* Proxy\(uri, types=\[Unmentioned\]\)"
    ):
        Proxy(uri).surprise()
    with Proxy(uri, types=[Unmentioned]) as proxy:
        assert proxy.surprise() == {"found": [Unmentioned(1)]}
    assert painter.echo(Unmentioned(2)) == Unmentioned(2), "by now, both sides have sent one"


def test_a_server_may_be_given_types():
    with ObjectServer(types=[Unmentioned]) as server, Proxy(server.register(Painter, "p")) as proxy:
        assert proxy.echo(Unmentioned((1, 2))) == Unmentioned((1, 2))
    with pytest.raises(TypeError, match="cannot be among the types"):
        ObjectServer(types=[Painter])


def test_the_servants_of_a_locator_count():
    with ObjectServer() as server, connect(server.register(lambda key: Painter(), "p"), Painter) as proxy:
        assert proxy.corner(SHAPE) == Point(1)


def test_a_proxy_that_arrives_knows_what_its_receiver_knows(server, uri):
    with Proxy(uri, types=[Unmentioned]) as proxy, proxy.me() as same:
        assert same.surprise() == {"found": [Unmentioned(1)]}


def test_what_cannot_travel_is_named_with_its_place(painter):
    sentence = (
        r"^the result of painter\.unsendable: result\['rows'\]\[3\]\.x is a _io\.StringIO, which cannot"
    )
    with pytest.raises(errors.SerializeError, match=sentence):
        painter.unsendable()
    sentence = (
        r"^an argument of painter\.echo: kwargs\['value'\]\[0\]\.x is a _io\.StringIO, which cannot travel"
    )
    with pytest.raises(errors.SerializeError, match=sentence):
        painter.echo(value=[Unmentioned(io.StringIO())])
    with pytest.raises(errors.SerializeError, match=r"args\[0\]\[1\] with objserver: .*surrogates"):
        painter.echo(["good", "\ud800"])
    assert painter.echo(1) == 1


# -- exceptions ----------------------------------------------------------------------------------------


def raised(call):
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_an_exception_of_the_application(uri):
    with Proxy(uri, types=[Problem, Point]) as proxy:
        problem = raised(proxy.fail)
    assert type(problem) is Problem
    assert (problem.args, problem.code, problem.hint) == (("code 5",), 5, Point(1))
    assert problem.__suppress_context__
    assert (problem.__cause__, problem.__context__) == (None, None)
    assert "in fail\n" in problem.__notes__[-1]


def test_an_exception_whose_parts_are_not_known_arrives_all_the_same(uri):
    with Proxy(uri) as proxy:
        problem = raised(proxy.fail)
    assert type(problem) is errors.RemoteError
    assert problem.attributes["code"] == 5
    assert "Point" in problem.attributes["hint"]
    assert "not known here" in problem.attributes["hint"]


def test_a_chain_is_kept_and_each_has_its_own_traceback(painter):
    problem = raised(painter.chain)
    assert (type(problem), type(problem.__cause__)) == (ValueError, KeyError)
    assert problem.__suppress_context__
    (own,) = problem.__notes__
    note, causes = problem.__cause__.__notes__
    assert note == "look in the drawer"
    assert 'raise ValueError("bad")' in own
    assert '{}["key"]' not in own
    assert '{}["key"]' in causes
    assert 'raise ValueError("bad")' not in causes
    text = "".join(traceback.format_exception(problem))
    assert text.count("Remote traceback:") == 2
    assert text.count("direct cause") == 1

    problem = raised(painter.context)
    assert (type(problem.__context__), problem.__cause__) == (KeyError, None)
    assert not problem.__suppress_context__


def test_a_group_is_kept(uri):
    with Proxy(uri) as proxy:
        problem = raised(proxy.group)
        assert (type(problem), problem.message) == (ExceptionGroup, "many")
        assert [type(inner) for inner in problem.exceptions] == [
            ValueError,
            errors.RemoteError,
            ExceptionGroup,
        ]
        assert repr(problem.exceptions[2].exceptions[0]) == "KeyError('k')"
    with Proxy(uri, types=[Problem]) as proxy:
        assert type(raised(proxy.group).exceptions[1]) is Problem


def test_tracebacks_can_be_switched_off():
    with ObjectServer(settings=ServerSettings(tracebacks=False)) as server:
        with connect(server.register(Painter, "p"), Painter) as proxy:
            problem = raised(proxy.chain)
    assert not hasattr(problem, "__notes__")
    assert problem.__cause__.__notes__ == ["look in the drawer"]


# -- arguments -----------------------------------------------------------------------------------------


def test_a_wrong_argument_does_not_reach_the_servant(painter):
    wrong = Shape([Point(1), Point("two")], Color.RED)
    with pytest.raises(TypeError) as caught:
        painter.corner(wrong)
    sentence = "Painter.corner: parameter 'shape'.points[1].x is a str ('two'), not an int"
    assert (type(caught.value), str(caught.value)) == (errors.ArgumentError, sentence)
    assert not hasattr(caught.value, "__notes__"), "a traceback of the server's own code says nothing"
    for call in (
        lambda: painter.corner(),
        lambda: painter.corner(SHAPE, inde=1),
        lambda: painter.corner(SHAPE, 0, 0),
        lambda: painter.corner(SHAPE, index="0"),
        lambda: asyncio.run(asyncio.to_thread(painter.slowly, "x")),
        lambda: setattr(painter, "size", "big"),
    ):
        with pytest.raises(errors.ArgumentError):
            call()
    painter.later("x")
    assert painter.seen() == 0
    painter.size = 5
    assert (painter.size, painter.slowly(3)) == (5, 3)


def test_a_batch_with_a_wrong_argument_is_refused_whole(painter):
    batch = painter.batch()
    batch.corner(SHAPE)
    batch.corner(5)
    with pytest.raises(errors.ArgumentError, match="is an int"):
        batch.send()
    assert painter.seen() == 0


def test_a_proxy_is_taken_for_the_class_it_stands_for(painter):
    with ObjectServer() as elsewhere, Proxy(elsewhere.register(Painter, "other")) as other:
        assert painter.lend(other, other) is True
    assert painter.lend(painter.me()) is False, "at its own server it is the servant itself"


def test_stock_clients_are_checked_by_what_they_can_send(uri):
    with Pyro5.api.Proxy(str(uri)) as proxy:
        assert proxy.echo((1, 2)) == (1, 2)
        with pytest.raises(TypeError, match=r"Painter\.slowly: parameter 'x' is a str \('x'\), not an int"):
            proxy.slowly("x")


# -- state ---------------------------------------------------------------------------------------------


@expose
class Canvas:
    shapes: dict[str, Shape]

    def __init__(self):
        self.shapes = {}

    def add(self, name: str, shape: Shape):
        self.shapes[name] = shape

    def get(self, name: str) -> Shape:
        return self.shapes[name]


def test_values_of_classes_are_stored(tmp_path):
    for begin in (True, False):
        with ObjectServer(store=f"sqlite:///{tmp_path}/canvas.db") as server:
            uri = server.register(Canvas, "canvas", activation=Persistent())
            with connect(uri, Canvas) as canvas:
                if begin:
                    canvas.add("first", SHAPE)
                assert canvas.get("first") == SHAPE
