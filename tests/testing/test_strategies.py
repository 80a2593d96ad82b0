"""What the strategies make travels through every codec and the parser, there and back."""

import contextlib
import dataclasses
import datetime
import enum
import itertools
import subprocess
import sys
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import errors, pyro5
from objserver.codecs import Codecs, Types
from objserver.settings import Limits
from objserver.testing.fuzz import Examiner
from objserver.testing.strategies import alike, broken_frames, frames, portable_values, references, values
from objserver.wire import FrameParser, encode_frame


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


@dataclasses.dataclass
class Point:
    x: object
    y: object = None


class Pair(NamedTuple):
    left: object
    right: object


ARRAYS = st.builds(
    lambda numbers, kind: np.array(numbers, dtype=kind),
    st.lists(st.integers(0, 100), max_size=8),
    st.sampled_from(["i8", "u1", ">f4", "c16", "?"]),
)
OWN = (
    st.sampled_from(Colour),
    st.builds(Point, st.integers(), st.text()),
    st.builds(Pair, st.floats(), st.binary()),
    st.builds(ValueError, st.integers(), st.text()),
    ARRAYS,
    references(),
)
codecs = Codecs(
    Limits(), marshal=True, arrive=lambda reference: reference, types=Types([Colour, Point, Pair])
)


@given(values(*OWN))
def test_a_value_comes_back_through_our_codec_as_what_it_was(value):
    assert alike(codecs.native.decode(codecs.native.encode(value)), value)
    _, _, [argument], named = codecs.native.decode_call(
        codecs.native.encode_call("object", "method", [value], {"named": value})
    )
    assert alike([argument, named["named"]], [value, value])


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack", "marshal"])
def test_a_value_comes_back_through_a_stock_serializer(serializer):
    codec = codecs.by_name[serializer]

    @given(portable_values(serializer))
    def comes_back(value):
        assert alike(codec.decode(codec.encode(value)), value)
        _, _, [argument], _ = codec.decode_call(codec.encode_call("object", "method", [value], {}))
        assert alike(argument, value)

    comes_back()


@pytest.mark.parametrize("serializer", ["serpent", "json", "msgpack", "marshal"])
def test_any_value_is_written_by_a_stock_serializer_or_refused_in_words(serializer):
    codec = codecs.by_name[serializer]

    @given(values(*OWN))
    def is_written(value):
        # What is written need not be read: of a class of the application's own, no stock peer knows anything.
        with contextlib.suppress(errors.SerializeError):
            codec.decode(codec.encode(value))

    is_written()


@given(values(*OWN))
def test_what_a_value_weighs_is_no_less_than_half_of_its_bytes(value):
    payload = codecs.native.encode(value)
    assert codecs.native.weigh(payload) * 2 >= len(payload)


@given(st.lists(frames(), max_size=4), st.lists(st.integers(0, 2_000), max_size=4))
def test_frames_are_read_whole_however_they_are_cut(some, cuts):
    stream = b"".join(some)
    whole = FrameParser(Limits()).receive_data(stream)
    parser, pieces = FrameParser(Limits()), []
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(bounds):
        pieces += parser.receive_data(stream[start:end])
    assert len(whole) == len(some)
    for frame, piece, sent in zip(whole, pieces, some, strict=True):
        again = encode_frame(
            frame.type, frame.serializer_id, frame.flags, frame.sequence, frame.payload, frame.annotations
        )
        assert again == sent
        assert (piece.payload, piece.annotations) == (frame.payload, frame.annotations)


@given(
    broken_frames() | broken_frames(frames(values().map(codecs.native.encode))), st.lists(st.integers(0, 300))
)
def test_broken_frames_raise_errors_of_the_protocol_only(data, cuts):
    Examiner().examine(data, sorted(min(cut, len(data)) for cut in cuts))


@given(references())
def test_a_reference_is_read_from_its_text(reference):
    assert type(reference).parse(str(reference)) == reference


NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1, True), (1, True, False), (1, 1.0, False), (NAN, NAN, True), (0.0, -0.0, False),
        ([1], (1,), False),
        ([NAN, {NAN}], [NAN, {float("nan")}], True),
        ({1: NAN}, {1: float("nan")}, True), ({1: 2}, {1: 3}, False),
        ({1}, {1, 2}, False), ({1, 2}, {1}, False), (Decimal("1.0"), Decimal("1.00"), False),
        (Point(1, NAN), Point(1, NAN), True), (Point(1), Point(2), False),
        (ValueError(1), ValueError(2), False),
        (complex(0, NAN), complex(0, NAN), True), (Colour.RED, Colour.BLUE, False),
        (datetime.time(1, fold=0), datetime.time(1, fold=1), False),
        (np.zeros(2), np.zeros(2), True), (np.zeros(2), np.zeros(2, "f4"), False),
    ],
)  # fmt: skip
def test_alike_minds_types_and_not_that_nothing_equals_nan(one, other, same):
    assert alike(one, other) == same


def test_hypothesis_is_loaded_only_for_a_strategy():
    program = "import objserver.testing.strategies, sys; print('hypothesis' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


def test_pyro5s_own_reference_is_no_value_of_ours():
    assert type(codecs.native.decode(codecs.native.encode(pyro5.URI("PYRO:a@b:1")))).__name__ == "Reference"
