"""State is data with a version, never code."""

import collections
import dataclasses
import enum
import threading

import pytest

from objserver import errors
from objserver.adapter.state import capture, restore, state_version
from objserver.codecs import Codecs
from objserver.settings import Limits

CODECS = Codecs(Limits())


class Plain:
    def __init__(self):
        self.balance, self.tags = 5, {"a", "b"}


@dataclasses.dataclass
class Data:
    x: int = 1
    y: tuple = (1, 2)


class Slotted:
    __slots__ = ("x",)


class Own:
    def __getstate__(self):
        return [self.x]

    def __setstate__(self, state):
        (self.x,) = state


class Renamed:
    state_version = 2

    @classmethod
    def upgrade_state(cls, state, version):
        return {"cents": state["euros"] * 100}


def test_attributes_survive():
    servant = Plain()
    servant.balance = 7
    fresh = Plain()
    restore(fresh, capture(servant, CODECS), 1, CODECS)
    assert vars(fresh) == {"balance": 7, "tags": {"a", "b"}}


def test_dataclasses_survive():
    fresh = Data()
    restore(fresh, capture(Data(3, (4,)), CODECS), 1, CODECS)
    assert fresh == Data(3, (4,))


def test_slots_survive():
    servant, fresh = Slotted(), Slotted()
    servant.x = 9
    restore(fresh, capture(servant, CODECS), 1, CODECS)
    assert fresh.x == 9


def test_getstate_and_setstate_decide_for_themselves():
    servant, fresh = Own(), Own()
    servant.x = 9
    restore(fresh, capture(servant, CODECS), 1, CODECS)
    assert fresh.x == 9


def test_older_state_is_upgraded():
    fresh = Renamed()
    restore(fresh, CODECS.native.encode({"euros": 3}), 1, CODECS)
    assert (fresh.cents, state_version(type(fresh))) == (300, 2)


def test_state_of_every_older_version_is_upgraded():
    class Third:
        state_version = 3

        @classmethod
        def upgrade_state(cls, state, version):
            if version < 2:
                state = {"cents": state["euros"] * 100}
            return {"amount": (state["cents"], "cent")}

    for state, version in (({"euros": 3}, 1), ({"cents": 300}, 2), ({"amount": (300, "cent")}, 3)):
        fresh = Third()
        restore(fresh, CODECS.native.encode(state), version, CODECS)
        assert vars(fresh) == {"amount": (300, "cent")}


def test_newer_state_is_refused():
    with pytest.raises(errors.StateError, match="newer program"):
        restore(Plain(), CODECS.native.encode({}), 2, CODECS)


def test_older_state_without_an_upgrade_is_refused():
    class Bumped:
        state_version = 3

    with pytest.raises(errors.StateError, match="upgrade_state"):
        restore(Bumped(), CODECS.native.encode({}), 1, CODECS)


def test_what_is_not_data_is_refused_with_advice():
    servant = Plain()
    servant.balance = lambda: 5
    with pytest.raises(errors.StateError, match="__getstate__"):
        capture(servant, CODECS)


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (Color.RED, r"its attribute 'balance' is a Color: a .*Color could not come back after a restart"),
        ([Color.RED], r"its attribute 'balance' is a list: a .*Color could not come back after a restart"),
        (collections.defaultdict(int), "its attribute 'balance' is a defaultdict: "),
        (threading.Lock(), "its attribute 'balance' is a lock: a _thread.lock is not plain data; keep plain"),
    ],
)
def test_what_would_change_is_refused_by_name(value, sentence):
    servant = Plain()
    servant.balance = value
    with pytest.raises(errors.StateError, match=sentence):
        capture(servant, CODECS)


def test_a_bytearray_stays_one():
    servant, fresh = Plain(), Plain()
    servant.balance = bytearray(b"abc")
    restore(fresh, capture(servant, CODECS), 1, CODECS)
    assert type(fresh.balance) is bytearray


def test_what_could_not_be_loaded_is_not_saved():
    servant = Plain()
    servant.balance = []
    for _ in range(150):
        servant.balance = [servant.balance]
    with pytest.raises(
        errors.StateError, match=r"'balance' is a list: .*nesting_max=100 .*larger nesting_max"
    ):
        capture(servant, CODECS)
    small = Codecs(Limits(decoded_size_max=10_000))
    servant.balance = b"x" * 6_000
    capture(servant, small)
    servant.tags = b"x" * 6_000
    with pytest.raises(
        errors.StateError, match=r"Plain cannot be stored: decoding .*decoded_size_max=10000 .*less"
    ):
        capture(servant, small)


@pytest.mark.parametrize("problem", [KeyError("k"), SystemExit("s"), GeneratorExit()])
def test_a_getstate_that_fails_is_a_state_error(problem):
    class Broken:
        def __getstate__(self):
            raise problem

    with pytest.raises(
        errors.StateError, match=f"__getstate__ of Broken failed: {type(problem).__name__}"
    ) as e:
        capture(Broken(), CODECS)
    assert e.value.__cause__ is problem


@pytest.mark.parametrize("problem", [KeyError("k"), SystemExit("s"), GeneratorExit()])
def test_a_setstate_or_upgrade_that_fails_is_a_state_error(problem):
    class Broken:
        state_version = 2

        def __setstate__(self, state):
            raise problem

        @classmethod
        def upgrade_state(cls, state, version):
            raise problem

    for version, sentence in ((2, "__setstate__ of Broken"), (1, "upgrade_state of Broken, from version 1")):
        with pytest.raises(errors.StateError, match=sentence) as caught:
            restore(Broken(), CODECS.native.encode({}), version, CODECS)
        assert caught.value.__cause__ is problem


def test_an_interrupt_passes():
    class Interrupted:
        def __getstate__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(Interrupted(), CODECS)


@pytest.mark.parametrize(("cls", "state"), [(Plain, [1]), (Slotted, {"y": 1})])
def test_a_state_that_does_not_fit_the_class_is_a_state_error(cls, state):
    with pytest.raises(errors.StateError, match=f"attributes of {cls.__name__}"):
        restore(cls(), CODECS.native.encode(state), 1, CODECS)


def test_a_damaged_state_is_a_state_error():
    with pytest.raises(errors.StateError, match="state of Plain cannot be read"):
        restore(Plain(), b"\xc1", 1, CODECS)
