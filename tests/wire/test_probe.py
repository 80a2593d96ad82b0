"""The question along the calls: it survives the wire, and damage is refused."""

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import errors
from objserver.wire import Probe
from objserver.wire.probe import PATH_MAX, SPREAD_MAX

steps = st.tuples(st.text(max_size=20), st.integers(1, SPREAD_MAX))
probes = st.builds(
    Probe,
    round=st.integers(0, 1 << 60),
    since=st.floats(allow_nan=False, allow_infinity=False),
    spread=st.integers(1, SPREAD_MAX),
    path=st.lists(steps, min_size=1, max_size=PATH_MAX).map(tuple),
)


@given(probes)
def test_it_survives(probe):
    assert Probe.decode(probe.encode()) == probe


def test_it_is_divided_among_the_ways():
    probe = Probe(1, 0.0, SPREAD_MAX).through("a", 1, 3)
    assert probe == Probe(1, 0.0, SPREAD_MAX // 3, (("a", 1),))


@pytest.mark.parametrize("parts", [0, 6])
def test_it_goes_nowhere_and_not_everywhere(parts):
    assert Probe(1, 0.0, 5).through("a", 1, parts) is None


def test_it_takes_so_many_steps():
    probe = Probe(1, 0.0, 1)
    for step in range(PATH_MAX):
        probe = probe.through(str(step), 1, 1)
    assert probe.through("one more", 1, 1) is None


def test_a_path_too_large_for_the_wire_does_not_travel():
    assert Probe(1, 0.0, 1, (("x" * 20_000, 1),)).encode() == b""


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xc1",
        *map(
            ormsgpack.packb,
            [
                5,
                [1, 0.0, 1],
                [1, 0.0, 1, []],
                ["1", 0.0, 1, [["a", 1]]],
                [True, 0.0, 1, [["a", 1]]],
                [1, 0, 1, [["a", 1]]],
                [1, None, 1, [["a", 1]]],
                [1, 0.0, 0, [["a", 1]]],
                [1, 0.0, SPREAD_MAX + 1, [["a", 1]]],
                [1, 0.0, 1, [["a", 1]] * (PATH_MAX + 1)],
                [1, 0.0, 1, [["a", 0]]],
                [1, 0.0, 1, [["a", SPREAD_MAX + 1]]],
                [1, 0.0, 1, [["a"]]],
                [1, 0.0, 1, [[1, "a"]]],
                [1, 0.0, 1, "path"],
                [1, 0.0, 1, [["x" * 20_000, 1]]],
            ],
        ),
        bytes.fromhex("9401cb7ff80000000000000191") + b"\x92\xa1a\x01",
    ],
)
def test_damage_is_refused(damaged):
    with pytest.raises(errors.ProtocolError, match="PROBE"):
        Probe.decode(damaged)


@given(st.binary())
def test_anything_is_a_question_or_refused(data):
    try:
        assert Probe.decode(data).path
    except errors.ProtocolError:
        pass
