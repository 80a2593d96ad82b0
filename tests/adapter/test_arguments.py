"""What the annotations of a member refuse, in which words, and what they let pass."""

import collections
import collections.abc
import dataclasses
import datetime
import enum
import functools
import time
import typing
from decimal import Decimal

import Pyro5.api
import pytest

from objserver import Reference, errors, expose
from objserver.adapter import arguments
from objserver.adapter.arguments import Arguments
from objserver.adapter.skeleton import Skeleton
from objserver.codecs import exceptions

T = typing.TypeVar("T")
Bound = typing.TypeVar("Bound", bound=int)
Either = typing.TypeVar("Either", int, str)
Id = typing.NewType("Id", int)


class Color(enum.Enum):
    RED = 1


class Text(str):
    """Arrives as the str it is."""


@dataclasses.dataclass
class Point:
    x: int
    next: "Point | None" = None


class Pair(typing.NamedTuple):
    one: int
    two: str


class Person(typing.TypedDict):
    name: str
    age: typing.NotRequired[int]


class Duck(typing.Protocol):
    def quack(self): ...


class Service: ...


class Child(Service): ...


class Proxy:
    """As the client's: whoever asks it for anything makes a network call."""

    _objserver_is_proxy = True
    _objserver_reference = Reference.parse("PYRO:p@h:1")

    def __getattr__(self, name):
        raise AssertionError(f"the proxy was asked for {name}")

    def __iter__(self):
        raise AssertionError("the proxy was asked for its items")

    __len__ = __getitem__ = __eq__ = __hash__ = __iter__


def check_of(annotation):
    def member(self, value): ...

    member.__annotations__ = {"value": annotation}
    return Arguments(Service, "member", member, bound=True)


def by_type(value):
    """The id of a test's parameter: the values themselves have none that stays, or must not be asked."""
    return type(value).__name__


PROXY = Proxy()
TAKEN = [
    (int, [1, True, 2**80]),
    (float, [1.5, 2, True, float("nan")]),
    (complex, [1j, 1.0, 1]),
    (bool, [True]),
    (str, ["x", Text("x")]),
    (bytes, [b"x", bytearray(b"x")]),
    (Text, [Text("x"), "x"]),
    (None, [None]),
    (object, [1, None, PROXY]),
    (typing.Any, [1, PROXY]),
    (int | None, [1, None]),
    (typing.Union[int, list[str]], [1, [], ["x"]]),  # noqa: UP007
    (typing.Literal["a", 1, Color.RED], ["a", 1, Color.RED]),
    (list, [[], [1, "x"]]),
    (list[int], [[], [1, 2, True]]),
    (list[float], [[1, 2.5]]),
    (list[T], [[1, "x"]]),
    (Bound, [5]),
    (Either, [5, "x"]),
    (list[list[int]], [[[1], []]]),
    (dict[str, int], [{}, {"a": 1}]),
    (collections.OrderedDict[str, int], [{"a": 1}, collections.OrderedDict(a=1)]),
    (dict[tuple[int, int], Point], [{(1, 2): Point(3)}]),
    (tuple, [(), (1, "x")]),
    (tuple[int, str], [(1, "x")]),
    (tuple[int, ...], [(), (1, 2, 3)]),
    (tuple[()], [()]),
    (set[str], [{"x"}, set()]),
    (frozenset[int], [frozenset({1})]),
    (collections.abc.Sequence[int], [[1], (1, 2), range(3), PROXY]),
    (typing.Sequence[str], [["x"], "xy"]),
    (collections.abc.Mapping[str, int], [{"a": 1}, PROXY]),
    (collections.abc.Iterable[int], [[1], {1}, {1: "x"}, PROXY]),
    (collections.abc.Iterator[int], [5]),
    (collections.abc.Callable[[int], str], [PROXY, print]),
    (Duck, [5, PROXY]),
    (Id, [5]),
    (typing.Annotated[int, "positive"], [5]),
    (Person, [{"name": "x"}, {"name": "x", "age": 5, "more": 1}]),
    (Color, [Color.RED]),
    (Pair, [Pair(1, "x")]),
    (Point, [Point(1), Point(1, Point(2)), PROXY]),
    (Service, [Service(), Child(), PROXY]),
    (list[Service], [[PROXY, Child()]]),
    (datetime.date, [datetime.date.min, datetime.datetime.min]),
    (Decimal, [Decimal(1)]),
    ("NotThere", [1, "x"]),
    (list["NotThere"], [[1, "x"]]),  # noqa: F821
    (5, [1, "x"]),
]


@pytest.mark.parametrize(
    ("annotation", "value"), [(a, v) for a, values in TAKEN for v in values], ids=by_type
)
def test_what_is_taken(annotation, value):
    check = check_of(annotation)
    check([value], {}, False)
    check([], {"value": value}, False)
    check([value], {}, True)


REFUSED = [
    (int, "five", "is a str ('five'), not an int"),
    (int, 1.0, "is a float (1.0), not an int"),
    (int, None, "is None, not an int"),
    (int, PROXY, "is a Proxy, not an int"),
    (bool, 1, "is an int (1), not a bool"),
    (float, "x", "is a str ('x'), not a float"),
    (str, b"x", "is a bytes (b'x'), not a str"),
    (bytes, "x", "is a str ('x'), not a bytes"),
    (None, 0, "is an int (0), not None"),
    (int | None, "x", "is a str ('x'), not an int or None"),
    (int | list[str], [1], "[0] is an int (1), not a str"),
    (typing.Literal["a", 1], True, "is a bool (True), not one of 'a', 1"),
    (list, (1,), "is a tuple, not a list"),
    (list[int], [1, 2, "x"], "[2] is a str ('x'), not an int"),
    (list[int], PROXY, "is a Proxy, not a list[int]"),
    (list[list[int]], [[1], [2, None]], "[1][1] is None, not an int"),
    (Either, 1.5, "is a float (1.5), not an int or a str"),
    (dict[str, int], {"a": 1, "{x}": "y"}, "['{x}'] is a str ('y'), not an int"),
    (dict[str, int], {1: 1}, " (a key) is an int (1), not a str"),
    (dict[str, int], [], "is a list, not a dict[str, int]"),
    (tuple[int, str], (1, 2), "[1] is an int (2), not a str"),
    (tuple[int, str], (1,), "is a tuple, not a tuple[int, str]"),
    (tuple[int, ...], (1, "x"), "[1] is a str ('x'), not an int"),
    (tuple[()], (1,), "is a tuple, not an empty tuple"),
    (set[str], {1}, " (an item) is an int (1), not a str"),
    (set[str], ["x"], "is a list, not a set[str]"),
    (collections.abc.Sequence[int], {1}, "is a set, not a Sequence[int]"),
    (collections.abc.Iterable[int], [1, "x"], "[1] is a str ('x'), not an int"),
    (collections.abc.Callable[[int], str], 5, "is an int (5), not a Callable"),
    (Id, "x", "is a str ('x'), not an int"),
    (typing.Annotated[int, "positive"], "x", "is a str ('x'), not an int"),
    (Person, {"age": 1}, "is a dict, not a Person, for it lacks the key 'name'"),
    (Person, {"name": "x", "age": "old"}, "['age'] is a str ('old'), not an int"),
    (Color, 1, "is an int (1), not a Color"),
    (Color, PROXY, "is a Proxy, not a Color"),
    (Pair, (1, "x"), "is a tuple, not a Pair"),
    (Pair, Pair("x", "y"), ".one is a str ('x'), not an int"),
    (Point, {"x": 1}, "is a dict, not a Point"),
    (Point, Point(1, Point("y")), ".next.x is a str ('y'), not an int"),
    (list[Point], [Point(1), Point(2), Point(3), Point(4.0)], "[3].x is a float (4.0), not an int"),
    (dict[str, list[Point]], {"k": [Point(None)]}, "['k'][0].x is None, not an int"),
    (Service, 5, "is an int (5), not a Service"),
    (datetime.datetime, "2024", "is a str ('2024'), not a datetime"),
]


@pytest.mark.parametrize(("annotation", "value", "sentence"), REFUSED, ids=by_type)
def test_what_is_refused(annotation, value, sentence):
    check = check_of(annotation)
    for args, kwargs in (([value], {}), ([], {"value": value})):
        for _ in range(2):
            with pytest.raises(errors.ArgumentError) as caught:
                check(args, kwargs, False)
            blank = "" if sentence[0] in "[. " else " "
            assert str(caught.value).startswith(f"Service.member: parameter 'value'{blank}{sentence}")
    assert check.accepted == set()


def test_an_argument_error_is_a_type_error_and_a_refusal():
    assert issubclass(errors.ArgumentError, (TypeError, errors.ObjectError))
    assert exceptions.stock_name(errors.ArgumentError()) == "builtins.TypeError"


# -- how many ------------------------------------------------------------------------------------------


class Members:
    def plain(self, amount: int, note: str = "", *, when: int = 0): ...

    def only(self, a, /, b): ...

    def any_number(self, first: int, *rest: int, **others: str): ...

    def none(self, x: int = None): ...  # noqa: RUF013

    @staticmethod
    def static(x: int): ...

    @classmethod
    def of_class(cls, x: int): ...


def member(name):
    raw = vars(Members)[name]
    function = getattr(raw, "__func__", raw)
    return Arguments(Members, name, function, bound=not isinstance(raw, staticmethod))


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("plain", [1], {}),
        ("plain", [1, "x"], {"when": 5}),
        ("plain", [], {"note": "x", "amount": 1}),
        ("only", [1, 2], {}),
        ("only", [1], {"b": 2}),
        ("any_number", [1, 2, 3], {"x": "y", "rest": "z"}),
        ("none", [None], {}),
        ("none", [], {}),
        ("static", [1], {}),
        ("of_class", [1], {}),
    ],
)
def test_what_fits(name, args, kwargs):
    member(name)(args, kwargs, False)
    getattr(Members(), name)(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "sentence"),
    [
        ("plain", [], {}, "Members.plain: parameter 'amount' is missing"),
        ("plain", [1, "x", 2], {}, "Members.plain takes 2 arguments by position, and got 3"),
        ("plain", [1], {"amont": 5}, "Members.plain has no parameter 'amont'; did you mean 'amount'?"),
        ("plain", [1], {"amount": 5}, "Members.plain: parameter 'amount' was given twice"),
        ("plain", [1], {"when": "x"}, "Members.plain: parameter 'when' is a str ('x'), not an int"),
        ("only", [], {"a": 1, "b": 2}, "Members.only has no parameter 'a'"),
        ("only", [1], {}, "Members.only: parameter 'b' is missing"),
        ("any_number", [1, 2, "x"], {}, "Members.any_number: parameter 'rest'[1] is a str ('x'), not an int"),
        ("any_number", [1], {"k": 5}, "Members.any_number: parameter 'k' is an int (5), not a str"),
        ("none", ["x"], {}, "Members.none: parameter 'x' is a str ('x'), not an int or None"),
        ("static", ["x"], {}, "Members.static: parameter 'x' is a str ('x'), not an int"),
        ("of_class", [1, 2], {}, "Members.of_class takes 1 argument, and got 2"),
    ],
)
def test_what_does_not_fit(name, args, kwargs, sentence):
    with pytest.raises(errors.ArgumentError) as caught:
        member(name)(args, kwargs, False)
    assert str(caught.value) == sentence


# -- stock serializers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (tuple[int, str], [1, "x"]),
        (set[int], [1]),
        (list[int], (1,)),
        (dict[int, str], {"1": "x"}),
        (bytes, {"data": "eA==", "encoding": "base64"}),
        (Decimal, "1.5"),
        (datetime.date, "2024-01-01"),
        (Point, {"x": 1}),
        (bool, 0.0),
    ],
)
def test_a_stock_serializer_cannot_send_all_types(annotation, value):
    check = check_of(annotation)
    check([value], {}, True)
    with pytest.raises(errors.ArgumentError):
        check([value], {}, False)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "x"),
        (str, 5),
        (list[int], ["x"]),
        (dict[str, int], {"a": "b"}),
        (tuple[int, str], [1]),
        (list, 5),
    ],
)
def test_what_all_serializers_have_is_checked_for_all(annotation, value):
    with pytest.raises(errors.ArgumentError):
        check_of(annotation)([value], {}, True)


# -- cost ----------------------------------------------------------------------------------------------


def test_types_that_decide_are_remembered():
    check = check_of(int | Service)
    for value in (5, PROXY, Child()):
        check([value], {}, False)
        assert check.usual == [type(value)]
    assert check.accepted == {(int,), (Proxy,), (Child,)}
    check([5], {}, False)
    assert check.usual == [int]
    for annotation, value in ((list[int], [1]), (typing.Literal[1], 1), (Point, Point(1))):
        check = check_of(annotation)
        check([value], {}, False)
        assert check.accepted == set()
    check = check_of(typing.Any)
    for number in range(arguments.ACCEPTED_MAX + 10):
        check([type(f"T{number}", (), {})()], {}, False)
    assert len(check.accepted) == arguments.ACCEPTED_MAX


def test_the_work_is_bounded():
    many = [Point(1)] * arguments.LOOKS_MAX
    check = check_of(list[list[Point]])
    with pytest.raises(errors.ArgumentError):
        check([[[*many[:-10], Point("x")]]], {}, False)
    check([[many, [Point("beyond")]]], {}, False)
    check = check_of(list[float])
    before = time.process_time()
    check([[1.5] * 1_000_000], {}, False)
    with pytest.raises(errors.ArgumentError, match=r"\[1000000\] is None"):
        check([[1.5] * 1_000_000 + [None]], {}, False)
    assert time.process_time() - before < 2


# -- which members -------------------------------------------------------------------------------------


def logged(function):
    @functools.wraps(function)
    def wrapper(self, *args):
        return function(self, "injected", *args)

    return wrapper


def test_only_members_of_ours_are_checked():
    class Ours:
        @expose
        def checked(self, x: int): ...

        @expose
        @logged
        def wrapped(self, log: str, x: int): ...

        @expose
        @property
        def attribute(self) -> int: ...

        @attribute.setter
        def attribute(self, value: int): ...

        @Pyro5.api.expose
        def theirs(self, x: int): ...

    skeleton = Skeleton(Ours)
    with pytest.raises(errors.ArgumentError, match=r"Ours\.checked: parameter 'x'"):
        skeleton.methods["checked"].check(["x"], {}, False)
    with pytest.raises(errors.ArgumentError, match=r"Ours\.attribute: parameter 'value'"):
        skeleton.setters["attribute"].check(["x"], {}, False)
    skeleton.methods["wrapped"].check([5], {}, False)
    assert skeleton.methods["theirs"].check is None
    assert skeleton.getters["attribute"].check is None
