"""State is data with a version, never code."""

import dataclasses

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
    assert (fresh.cents, state_version(fresh)) == (300, 2)


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
