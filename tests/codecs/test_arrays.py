"""NumPy arrays come back as they were, and nothing that only looks like one gets through."""

import subprocess
import sys

import numpy as np
import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from objserver import errors
from objserver.codecs.native import ARRAY, ASIDE, NativeCodec, PartsCodec
from objserver.settings import Limits
from objserver.wire import FrameParser, buffers

whole, parting = NativeCodec(Limits()), PartsCodec(Limits())

dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(sizes=(64, 128)),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.array_dtypes().filter(lambda dtype: len(dtype.fields) == len(dtype.names)),  # no titles
)


def arrived(parts):
    """What a peer sees of them that shares no memory."""
    frame = buffers.parts_frame(4, 79, 0, 1, parts, None, bytes(16), None, 1 << 30)
    parser = FrameParser(Limits())
    parser.parts_in = 79
    (one,) = parser.receive_data(frame[:100]) + parser.receive_data(frame[100:])
    return one.payload


def there_and_back(value):
    encoded = parting.encode(value)
    return parting.decode(arrived(encoded) if isinstance(encoded, buffers.Parts) else encoded)


def same(one, other):
    assert type(one) is type(other)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    # Between fields there may be anything.
    assert repr(one.tolist()) == repr(other.tolist()) if one.dtype.names else one.tobytes() == other.tobytes()


@given(hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_dims=4)), st.sampled_from("CF"))
def test_any_array_comes_back(array, order):
    array = np.asarray(array, order=order)
    for value in (there_and_back(array), whole.decode(whole.encode(array))):
        same(value, array)
        assert value.flags.writeable
        assert value.flags.f_contiguous == array.flags.f_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.arange(20_000)[::2],
        np.arange(20_000.0).reshape(100, 200)[:, 3:150],
        np.asfortranarray(np.arange(20_000).reshape(100, 200)),
        np.arange(20_000, dtype=">i4"),
        np.zeros((0, 5), "f2"),
        np.zeros(3, [("a", "<i4"), ("b", ">f8", (2, 2)), ("c", [("d", "U3")])]),
        np.zeros(3000, np.dtype([("a", "i1"), ("b", "i8")], align=True)),
        np.array(["2024-02-29", "NaT"], "datetime64[ns]"),
        np.zeros(3, "V0"),
        np.broadcast_to(np.int16(5), (100, 100)),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_an_unusual_array_comes_back(array):
    same(there_and_back(array), np.array(array))
    same(there_and_back({1: (array, [array])})[1][1][0], np.array(array))  # the slow way of encoding


@pytest.mark.parametrize("value", [np.float64(1.5), np.int8(-3), np.bool_(True), np.datetime64("2024-01-01")])
def test_a_scalar_keeps_its_type(value):
    for back in (there_and_back(value), whole.decode(whole.encode_exactly([value]))[0]):
        assert type(back) is type(value)
        assert back == value


def test_state_holds_arrays_inside():
    state = {"a": np.arange(50_000), 5: np.zeros((2, 2), order="F")}
    data = whole.encode_exactly(state)
    assert type(data) is bytes
    back = whole.decode(data)
    same(back["a"], state["a"])
    same(back[5], state[5])


def test_large_blocks_are_left_out_and_not_copied():
    array, text = np.arange(100_000), bytes(100_000)
    parts = parting.encode_call("o", "m", (array, text, b"small"), {"more": array.T})
    assert [len(buffer) for buffer in parts.buffers] == [len(text), array.nbytes, array.nbytes]
    assert len(parts.data) < 200
    assert np.shares_memory(np.frombuffer(parts.buffers[1]), array)
    _, _, args, kwargs = parting.decode_call(arrived(parts))
    same(args[0], array)
    assert args[1:] == [text, b"small"]
    same(kwargs["more"], array)


def test_an_array_of_a_large_message_is_where_it_was_received():
    payload = arrived(parting.encode(np.arange(100_000)))
    place = payload._payload
    array = parting.decode(payload)
    assert np.shares_memory(array, np.frombuffer(place, np.uint8))


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.zeros(1, [("a", "O")]),
        np.ma.masked_array([1, 2], [True, False]),
        np.zeros(2).view(np.recarray),
        np.zeros(1, np.dtype({"names": ["a"], "formats": ["i4"], "titles": ["t"]})),
    ],
    ids=["objects", "field of objects", "masked", "recarray", "titles"],
)
def test_what_would_not_come_back_is_refused(value):
    for encode in (whole.encode, whole.encode_exactly, parting.encode):
        with pytest.raises(errors.SerializeError, match=r"cannot travel|plain array"):
            encode(value)


def ext(*content):
    return ormsgpack.packb(ormsgpack.Ext(ARRAY, ormsgpack.packb(list(content))))


@pytest.mark.parametrize(
    "content",
    [
        ("O", [1], "C", bytes(8)),
        ("<f8,O", [1], "C", bytes(16)),
        ("float", [1], "C", bytes(8)),
        ("(2,2)f8", [1], "C", bytes(32)),
        ("<f8", [2], "C", bytes(8)),
        ("<f8", [-1], "C", bytes(8)),
        ("<f8", [1 << 40, 1 << 40], "C", bytes(8)),
        ("<f8", [0, 1 << 62, 1 << 62], "C", b""),
        ("<f8", [1.0], "C", bytes(8)),
        ("<f8", 1, "C", bytes(8)),
        ("<f8", [1], "K", bytes(8)),
        ("<f8", [1], "S", bytes(8)),
        ("<f8", [1] * 65, "C", bytes(8)),
        ("<f9", [1], "C", bytes(9)),
        ("<M8[year]", [1], "C", bytes(8)),
        (["f", ["<f8"], 3, 8], [1], "C", bytes(8)),
        ([["a"], ["O"], [0], 8], [1], "C", bytes(8)),
        ([["a"], ["<f8"], [4], 8], [1], "C", bytes(8)),
        ([["a", "a"], ["<f8", "<f8"], [0, 8], 16], [1], "C", bytes(16)),
        ([["a"], ["<f8"], [-8], 8], [1], "C", bytes(8)),
        (["<f8", [1 << 30, 1 << 30]], [1], "C", bytes(8)),
        ("V2147483647", [1 << 40], "C", b""),
        ("<f8", [1], "C"),
        ("<f8", [1], "C", "text"),
        ("<f8", [1], "C", 0),
        ("<f8", [1], ["C"], bytes(8)),
    ],
    ids=repr,
)
def test_a_hostile_array_is_refused(content):
    for codec in (whole, parting):
        with pytest.raises(errors.SerializeError):
            codec.decode(ext(*content))


@given(st.recursive(st.integers(-9, 1 << 63) | st.text() | st.binary(), st.lists, max_leaves=8))
def test_noise_is_refused(form):
    try:
        value = whole.decode(ext(form, [1], "C", bytes(8)))
    except (errors.SerializeError, errors.MessageTooLarge):
        return
    assert value.nbytes == 8


def test_a_block_is_given_out_once():
    twice = ormsgpack.packb([ormsgpack.Ext(ASIDE, ormsgpack.packb([0]))] * 2)
    with pytest.raises(errors.SerializeError, match="twice"):
        parting.decode(arrived(buffers.Parts(twice, [bytes(100)])))


def test_numpy_is_not_imported_for_what_is_no_array():
    code = (
        "import sys, objserver.codecs.native as n; n.NativeCodec(__import__('objserver').settings.Limits())"
    )
    code += ".encode([(1,), {2: 3}]); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_numpy_an_array_is_refused(monkeypatch):
    data = whole.encode(np.arange(3))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(errors.SerializeError, match="not installed"):
        whole.decode(data)
