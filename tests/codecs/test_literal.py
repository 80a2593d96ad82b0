"""Our reading of literals gives what Python's own does."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objserver import errors
from objserver.codecs import Codecs
from objserver.settings import Limits

serpent = Codecs(Limits()).serpent
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.complex_numbers(allow_nan=False, allow_infinity=False) | st.text() | st.binary()
)  # fmt: skip
keys = st.recursive(leaves, lambda inner: st.tuples(inner, inner), max_leaves=3)
values = st.recursive(
    leaves | st.sets(keys, max_size=4),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(keys, inner),
    max_leaves=10,
)


@given(values)
def test_literals_are_read_as_python_reads_them(value):
    text = repr(value)
    if "\0" not in text and "__class__" not in text:
        assert serpent.decode(text.encode()) == ast.literal_eval(text)


@pytest.mark.parametrize(
    "text",
    [
        "f()",
        "set(x)",
        "a",
        "1 + 1",
        "1j + 1",
        "-'x'",
        "{**{}}",
        "[*()]",
        "1 if 1 else 2",
        "{[]}",
        "x.y",
        "1 ** 9",
    ],
)
def test_what_python_refuses_is_refused(text):
    with pytest.raises((ValueError, TypeError)):
        ast.literal_eval(text)
    with pytest.raises(errors.SerializeError):
        serpent.decode(text.encode())


@pytest.mark.parametrize(
    "text",
    ["set()", "[" + "set(), " * 40 + "]", " \t[1]", "+1", "1-2j", "(1,)", "()", "{1: {2: {3}}}", "..."],
)
def test_what_python_reads_is_read(text):
    assert serpent.decode(text.encode()) == ast.literal_eval(text)
