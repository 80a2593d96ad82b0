import marshal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import errors
from objserver.codecs import marshalled

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.text("abc", max_size=3)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(scalars, inner)
        | st.sets(scalars)
        | st.frozensets(scalars)
    ),
)


@given(values, st.sampled_from([0, 1, 2, 3, 4]))
def test_reads_what_marshal_writes(value, version):
    if version < 2 and "R" in repr(marshal.dumps(value, version)):
        return
    data = marshal.dumps(value, version)
    assert marshalled.loads(data) == marshal.loads(data)
    assert repr(marshalled.loads(memoryview(data))) == repr(marshal.loads(data))


def test_more_values():
    text = "shared"
    pair = (text, [text])
    for value in (
        ...,
        [pair, pair],
        "\ud800",
        "x" * 300,
        tuple(range(300)),
        2**100000,
        -(2**15),
        float("inf"),
    ):
        assert marshalled.loads(marshal.dumps(value)) == value


def test_code_is_refused():
    for value in (compile("1", "x", "eval"), [compile("1", "x", "eval")], StopIteration):
        with pytest.raises(errors.SerializeError, match="only plain data"):
            marshalled.loads(marshal.dumps(value))


def test_laughs_and_loops_are_refused():
    value = [1]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(errors.MessageTooLarge, match="decoded_size_max"):
        marshalled.loads(marshal.dumps(value, 4))
    chain = [1]
    for _ in range(99):
        chain = [chain]
    with pytest.raises(errors.MessageTooLarge, match="nesting_max"):
        marshalled.loads(marshal.dumps([chain, [[chain]]], 4), nesting_max=101)
    loop = []
    loop.append(loop)
    with pytest.raises(errors.SerializeError):
        marshalled.loads(marshal.dumps(loop))


@given(st.binary())
def test_noise_gives_only_our_errors(data):
    try:
        marshalled.loads(data)
    except errors.ProtocolError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0",
        b"[\xff\xff\xff\x7f",
        b"s\xff\xff\xff\xff",
        b"(\1\0\0\0",
        b"{N0",
        b"(\1\0\0\x000",
        b"l\0\0\0\x80",
        b"l\1\0\0\0\xff\xff",
        b"<\1\0\0\0[\0\0\0\0",
    ],
)
def test_damage(data):
    with pytest.raises(errors.SerializeError):
        marshalled.loads(data)


def test_a_flood_is_refused_before_its_items_are_read():
    for kind in b"[(<>":
        with pytest.raises(errors.MessageTooLarge, match="decoded_size_max"):
            marshalled.loads(bytes([kind]) + b"\x0a\0\0\0" + b"c" * 10, items_max=10)
    assert marshalled.loads(marshal.dumps([1] * 9), items_max=10) == [1] * 9
    assert marshalled.loads(marshal.dumps({1: 2}), items_max=4) == {1: 2}
    with pytest.raises(errors.MessageTooLarge):
        marshalled.loads(marshal.dumps({1: 2}), items_max=2)
