"""Values of classes: made again where the class is allowed, and only there."""

from __future__ import annotations

import collections
import dataclasses
import enum
import typing

import attrs
import msgspec
import ormsgpack
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import Proxy, errors, references
from objserver.codecs import native
from objserver.codecs import types as types_module
from objserver.codecs.native import NativeCodec
from objserver.codecs.types import Types, hints_of, takes_proxy
from objserver.settings import Limits
from tests.codecs.test_native import typed, values

P, Ext = ormsgpack.packb, ormsgpack.Ext
HERE = __name__


class Color(enum.Enum):
    RED = 1
    ROSE = 1  # noqa: PIE796
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "y"


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Bits(enum.IntFlag):
    A = 1


Pair = collections.namedtuple("Pair", "one two")


class Named(typing.NamedTuple):
    name: str
    color: Color = Color.RED


@dataclasses.dataclass
class Point:
    x: typing.Any
    y: typing.Any = 0
    twice: typing.Any = dataclasses.field(init=False, default=None)

    def __post_init__(self):
        self.twice = (self.x, self.x)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    x: typing.Any
    tags: tuple = ()


@attrs.define
class Attrs:
    _x: typing.Any
    y: list = attrs.Factory(list)
    later: typing.Any = attrs.field(init=False, default=5)


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    x: typing.Any
    y: int = 0


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    x: typing.Any
    inner: Model | None = None
    name: str = pydantic.Field(default="n", alias="Name")


class Ints(pydantic.RootModel):
    root: list[int]


class Problem(Exception):
    def __init__(self, code, *, hint):
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


ALL = [Color, Level, Word, Permission, Bits, Pair, Named, Point, Frozen, Attrs, Struct, Model, Ints, Problem]
sender = NativeCodec(Limits())
knower = NativeCodec(Limits(), types=Types(ALL))


def sent(value, to=knower):
    return to.decode(sender.encode(value))


def spread(value):
    """A value of these classes as (class, parts), so that neither equality nor order hides a difference."""
    if isinstance(value, enum.Enum):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value), [spread(item) for item in value]
    for names in (
        lambda: [field.name for field in dataclasses.fields(value)],
        lambda: [field.name for field in type(value).__attrs_attrs__],
        lambda: value.__struct_fields__,
        lambda: type(value).model_fields,
    ):
        try:
            found = names()
        except (TypeError, AttributeError):
            continue
        return type(value), [(name, spread(getattr(value, name))) for name in found]
    if isinstance(value, dict):
        return dict, [(spread(key), spread(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [spread(item) for item in value]
    return typed(value)


members = st.sampled_from([*Color, *Level, *Word, *Permission, Permission(3), Permission(0), Bits(5)])
nested = st.recursive(
    values | members,
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(members, inner),
        st.builds(Pair, inner, inner),
        st.builds(Named, st.text(), members),
        st.builds(Point, inner, inner),
        st.builds(Frozen, x=inner, tags=st.lists(inner).map(tuple)),
        st.builds(Attrs, inner, st.lists(inner)),
        st.builds(Struct, x=inner, y=st.integers()),
        st.builds(lambda x, name: Model(x=x, Name=name), inner, st.text()),
    ),
    max_leaves=10,
)


@given(nested)
def test_nested_values_keep_their_classes(value):
    assert spread(sent(value)) == spread(value)
    assert spread(sender.decode_call(sender.encode_call("o", "m", [value], {"k": value}))[2][0]) == spread(
        value
    )


@given(st.lists(nested, max_size=5))
def test_keys_and_items_of_sets(items):
    items = [Frozen(x=repr(item)) for item in items]
    assert sent(dict.fromkeys(items, 1)) == dict.fromkeys(items, 1)
    assert sent((set(items), frozenset(items))) == (set(items), frozenset(items))


def test_what_a_constructor_does_not_take():
    point = Point(1)
    point.twice = "changed"
    assert sent(point).twice == "changed"
    value = Attrs(1)
    value.later = 7
    assert sent(value) == value
    assert sent(value)._x == 1
    assert sent(Ints([1, 2])) == Ints([1, 2])
    model = Model(x=1, Name="z", extra=(1, 2))
    assert (sent(model), sent(model).extra) == (model, (1, 2))
    assert sent(Color.ROSE) is Color.RED


def test_a_class_is_known_once_an_instance_was_sent():
    codec = NativeCodec(Limits())
    data = knower.encode(Point(1, 2))
    with pytest.raises(errors.SerializeError, match=rf"{HERE}\.Point came, .*types=\[Point\]"):
        codec.decode(data)
    codec.encode([Point(3)])
    assert codec.decode(data) == Point(1, 2)
    assert type(codec.decode(codec.encode(Problem(1, hint=2)))) is Problem


def test_what_was_learned_is_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr(types_module, "LEARNED_MAX", 3)
    types = Types([Point])
    made = [enum.Enum(f"E{number}", "one") for number in range(10)]
    for cls in made:
        types.form(cls)
    assert [types.find(f"{HERE}.{cls.__name__}") for cls in made] == [None] * 7 + made[7:]
    assert types.find(f"{HERE}.Point") is Point
    assert repr(types) == "<Types allowed=1 learned=3>"


def test_a_class_in_another_module_is_found_by_its_own_name():
    types = Types([Point, Color])
    assert types.find("__main__.Point") is Point
    assert types.find("a.b.c.Color") is Color
    assert types.find("Outer.Other") is None

    class Elsewhere(enum.Enum):
        A = 1

    Elsewhere.__qualname__ = "Point"
    Elsewhere.__module__ = "elsewhere"
    types.add(Elsewhere)
    assert types.find("elsewhere.Point") is Elsewhere
    assert types.find("__main__.Point") is None, "two have the name"
    assert types.find(f"{HERE}.Point") is Point


def test_a_class_defined_again_takes_the_place_of_the_old():
    def define():
        @dataclasses.dataclass
        class Cell:
            x: int

        return Cell

    old, new = define(), define()
    types = Types([old])
    types.form(new)
    assert types.find(f"{HERE}.{old.__qualname__}") is old, "sending does not displace what was allowed"
    types.add(new)
    assert types.find(f"{HERE}.{old.__qualname__}") is new
    assert types.find(f"__main__.{old.__qualname__}") is new


def test_what_cannot_be_a_type():
    @dataclasses.dataclass
    class NeedsMore:
        x: int
        more: dataclasses.InitVar[int]

    for thing in (int, dict, object, Types, NeedsMore, Point(1), "Point"):
        with pytest.raises(TypeError, match="cannot be among the types"):
            Types([thing])
    with pytest.raises(errors.SerializeError, match=r"result is a .*NeedsMore, which cannot travel"):
        sender.encode(NeedsMore(1, 2))


# -- signatures ----------------------------------------------------------------------------------------


class Deep(enum.Enum):
    A = 1


@dataclasses.dataclass
class Leaf:
    deep: list[Deep] | None = None
    again: Leaf | None = None


class Keys(typing.TypedDict):
    named: Named


@dataclasses.dataclass
class Hidden:
    x: int


class Service:
    state: dict[str, Struct]

    def method(
        self,
        a: typing.Annotated[typing.Sequence[Leaf], Hidden],
        b: typing.Callable[[Frozen], Attrs],
        missing: NotThere,  # noqa: F821
        c: typing.Literal[Level.LOW] = Level.LOW,
        *args: Keys,
        **kwargs: typing.NewType("Id", Pair),
    ) -> Problem | None: ...

    @property
    def attribute(self) -> tuple[Model, ...]: ...

    @staticmethod
    def static(word: Word): ...

    @classmethod
    def of_class(cls) -> type[Point]: ...

    def _private(self, hidden: Hidden): ...


def test_signatures():
    types = Types()
    types.add_signatures(Service)
    mentioned = [Leaf, Deep, Frozen, Attrs, Level, Named, Color, Pair, Problem, Model, Word, Point, Struct]
    assert [cls for cls in mentioned if not types.allows(cls)] == []
    assert not types.allows(Hidden)
    assert types.find(f"{HERE}.Hidden") is None


def test_only_what_is_exposed_counts():
    class Partly:
        def shown(self, color: Color): ...

        def hidden(self, level: Level): ...

    Partly.shown._pyroExposed = True
    types = Types()
    types.add_signatures(Partly)
    assert (types.allows(Color), types.allows(Level)) == (True, False)


def test_hints_are_resolved_one_by_one():
    assert hints_of(Service.method)["return"] == Problem | None
    assert "missing" not in hints_of(Service.method)
    assert hints_of(Leaf)["again"] == Leaf | None

    class Broken(Leaf):
        other: NotThere  # noqa: F821
        good: int

    assert hints_of(Broken) == {**hints_of(Leaf), "good": int}


@pytest.mark.parametrize(
    ("annotation", "taken"),
    [
        (int, False),
        (list[Service], False),
        (typing.Sequence[int], False),
        (Color, False),
        (int | None, False),
        (typing.NewType("N", int), False),
        (Service, True),
        (Service | None, True),
        (typing.Any, True),
        (typing.Annotated[Service, 1], True),
        (Point, True),
    ],
)
def test_where_a_proxy_may_stand(annotation, taken):
    assert takes_proxy(annotation) is taken


# -- attacks -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Greedy:
    numbers: list[int]
    owner: Service | None = None

    def __post_init__(self):
        self.numbers = list(self.numbers)


class GreedyModel(pydantic.BaseModel):
    numbers: list[list[int]]


@pytest.fixture
def no_proxy_is_asked(monkeypatch):
    def connect(*args):
        raise AssertionError("decoding asked a proxy for something")

    monkeypatch.setattr(references, "_arrival", [lambda reference, *_: Proxy(reference)])
    monkeypatch.setattr("objserver.client.pool.ConnectionPool.connect", connect)


REFERENCE = Ext(native.REFERENCE, b"PYRO:x@127.0.0.1:1")


def test_no_constructor_goes_through_a_proxy(no_proxy_is_asked):
    codec = NativeCodec(Limits(), types=Types([Greedy, GreedyModel, Pair]))

    def decode(*content):
        return codec.decode(P(Ext(native.OBJECT, P(list(content)))))

    for bad in (REFERENCE, [REFERENCE], [[REFERENCE]]):
        with pytest.raises(errors.SerializeError, match="a proxy"):
            decode(f"{HERE}.GreedyModel", "numbers", bad)
    with pytest.raises(errors.SerializeError, match="'numbers' is plain data, a proxy came"):
        decode(f"{HERE}.Greedy", "numbers", REFERENCE)
    assert type(decode(f"{HERE}.Greedy", "numbers", [], "owner", REFERENCE).owner) is Proxy
    assert type(decode(f"{HERE}.Pair", REFERENCE, 1).one) is Proxy
    with pytest.raises(errors.SerializeError):
        decode(REFERENCE)


@pytest.mark.parametrize(
    "content",
    [
        [],
        [1],
        [None, 1],
        ["os.system", "x"],
        ["builtins.int", "5"],
        [f"{HERE}.Point.__init__", 1],
        [f"{HERE}.Problem", 1],
        [f"{HERE}.Color"],
        [f"{HERE}.Color", "GREEN"],
        [f"{HERE}.Color", "RED", 1],
        [f"{HERE}.Color", "__class__"],
        [f"{HERE}.Color", ["RED"]],
        [f"{HERE}.Permission", "READ"],
        [f"{HERE}.Permission", 8],
        [f"{HERE}.Permission", True],
        [f"{HERE}.Pair", 1],
        [f"{HERE}.Pair", 1, 2, 3],
        [f"{HERE}.Point"],
        [f"{HERE}.Point", "x"],
        [f"{HERE}.Point", "z", 1, "x", 1],
        [f"{HERE}.Point", "__class__", 1, "x", 1],
        [f"{HERE}.Point", 1, 1],
        [f"{HERE}.Point", ["x"], 1],
        [f"{HERE}.Struct", "y", 1],
        [f"{HERE}.Struct", "x", 1, "__dict__", {}],
        [f"{HERE}.Attrs", "x", 1],
        [f"{HERE}.Ints", "root", ["no"]],
        [f"{HERE}.Ints", "other", 1],
        [f"{HERE}.Model", "name", 5, "x", 1],
        ["." * 1000, 1],
    ],
)
def test_whatever_comes_is_refused_with_our_error(content):
    with pytest.raises(errors.SerializeError):
        knower.decode(P(Ext(native.OBJECT, P(content))))


def test_combinations_of_a_flag_are_bounded(monkeypatch):
    class Wide(enum.IntFlag):
        A = 1

    monkeypatch.setattr(types_module, "FLAG_VALUES_MAX", 20)
    codec = NativeCodec(Limits(), types=Types([Wide]))
    name = f"{HERE}.{Wide.__qualname__}"
    while len(Wide._value2member_map_) < 20:
        codec.decode(P(Ext(native.OBJECT, P([name, len(Wide._value2member_map_) + 1]))))
    with pytest.raises(errors.SerializeError, match="more than 20 combinations"):
        codec.decode(P(Ext(native.OBJECT, P([name, 1000]))))
    assert codec.decode(P(Ext(native.OBJECT, P([name, 3])))) == Wide(3)


# -- state ---------------------------------------------------------------------------------------------


def test_state_takes_what_is_certain_to_come_back():
    for value in (Color.RED, Level.LOW, Permission(3), Pair(1, (2,)), Frozen(x={1: Point(2)}), Struct(x=1)):
        again = knower.decode(knower.encode_exactly([value, {"k": value}]))
        assert spread(again) == spread([value, {"k": value}])
        learned = NativeCodec(Limits())
        learned.encode(value)
        with pytest.raises(errors.SerializeError, match="could not come back after a restart"):
            learned.encode_exactly(value)
    point = Point(1)
    point.more = 5
    with pytest.raises(errors.SerializeError, match="without its attribute 'more', which is no field"):
        knower.encode_exactly([point])
