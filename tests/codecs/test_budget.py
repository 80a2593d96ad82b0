import json
import time

import ormsgpack
import pytest
import serpent
from hypothesis import given
from hypothesis import strategies as st

from objserver import errors
from objserver.codecs import Codecs, budget
from objserver.codecs.native import NESTED
from objserver.settings import Limits

limits = Limits()
codecs = Codecs(limits, marshal=True)


def quickly_refused(codec, payload, limit):
    started = time.process_time()  # a busy machine must not fail this
    with pytest.raises(errors.ProtocolError) as caught:
        codec.decode(payload)
    assert time.process_time() - started < 3
    if limit:
        assert isinstance(caught.value, errors.MessageTooLarge)
        assert caught.value.limit == limit
        assert limit in str(caught.value)


@pytest.mark.parametrize("depth", [10**2 + 1, 10**3, 10**5, 10**6])
def test_deep_nesting(depth):
    for name in ("objserver", "msgpack"):
        quickly_refused(codecs.by_name[name], b"\x91" * depth + b"\x90", None)
    quickly_refused(
        codecs.by_name["json"], b"[" * depth + b"]" * depth, "nesting_max" if depth < 10**6 else None
    )
    quickly_refused(codecs.by_name["json"], b'{"a":' * depth + b"1" + b"}" * depth, None)
    for opening, closing in ((b"[", b"]"), (b"(", b",)"), (b"{1:", b"}"), (b"[", b"")):
        quickly_refused(codecs.serpent, opening * depth + b"1" + closing * depth, None)
    quickly_refused(codecs.by_name["marshal"], b"[\1\0\0\0" * depth + b"N", "nesting_max")


def test_deep_nesting_through_ext():
    value = ()
    for _ in range(150):
        value = (value,)
    payload = codecs.native.encode(value)
    quickly_refused(codecs.native, payload, "nesting_max")


def test_allowed_depth():
    value = 1
    for _ in range(99):
        value = [value]
    for codec in codecs.by_id.values():
        assert codec.decode(codec.encode(value)) == value


def test_floods():
    quickly_refused(codecs.native, b"\xdd\0\x98\x96\x80" + b"\x80" * 10_000_000, "decoded_size_max")
    quickly_refused(
        codecs.by_name["msgpack"], b"\xdd\0\x98\x96\x80" + b"\x80" * 10_000_000, "decoded_size_max"
    )
    quickly_refused(codecs.serpent, b"[" + b"1," * 1_000_000 + b"]", "decoded_size_max")
    quickly_refused(codecs.serpent, b"[" + b"''" * 1_000_000 + b"]", "decoded_size_max")
    quickly_refused(codecs.by_name["json"], b"[" + b"{}," * 5_000_000 + b"{}]", "decoded_size_max")
    quickly_refused(codecs.by_name["marshal"], b"[\0\0\x90\0" + b"N" * 0x900000, "decoded_size_max")


@pytest.mark.parametrize(
    "source",
    [
        b"-" * 9000 + b"1",
        b"1" + b"+1" * 9000,
        b"a" + b".a" * 9000,
        b"(1)" + b"(1)" * 9000,
        b"[1]" + b"[0]" * 9000,
        b"not " * 9000 + b"1",
        b"lambda:" * 9000 + b"1",
        b"f'{1}'" * 900,
        b"'a'" + b"[0]" * 900,
        b"1,\n;" * 90,
        b'"' * 10001,
        b"\\" * 9999,
        b"'\\" * 9999,
    ],
)
def test_serpent_accepts_literals_only(source):
    quickly_refused(codecs.serpent, source, None)


@pytest.mark.parametrize(
    "noise", [b'"\\' * 4_000_000, b'"' * 8_000_001, b"'''\\" * 2_000_000, b"#'" * 4_000_000]
)
def test_strings_are_skipped_in_linear_time(noise):
    started = time.process_time()  # a busy machine must not fail this
    for check in (budget.check_json, budget.check_serpent):
        try:
            check(noise, limits)
        except errors.ProtocolError:
            pass
    assert time.process_time() - started < 5


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=100,
)


@given(plain)
def test_ordinary_values_pass(value):
    budget._walk(ormsgpack.packb(value), limits, NESTED)
    budget.check_msgpack(ormsgpack.packb(value), limits)
    budget.check_json(json.dumps(value, ensure_ascii=False).encode(), limits)
    budget.check_serpent(serpent.dumps(value), limits)
    budget.check_serpent(
        serpent.dumps([value, (1 - 2e-7j,), {"it's", b"x"}], indent=True, bytes_repr=True), limits
    )


@given(st.binary())
def test_the_walk_of_noise_ends(data):
    try:
        budget._walk(data, limits, NESTED)
    except (errors.ProtocolError, IndexError):
        pass


def test_large_ordinary_values_are_quick():
    for value in ([1.5] * 500_000, [1] * 2_000_000, bytes(range(256)) * 40_000, ["x" * 1000] * 10_000):
        payload = codecs.native.encode(value)
        started = time.process_time()  # a busy machine must not fail this
        budget.check_msgpack(payload, limits, NESTED)
        assert time.process_time() - started < 0.5
        assert codecs.native.decode(payload) == value
    wrong = ormsgpack.packb(ormsgpack.Ext(1, b"\x90\x90")) + b"\x91" * 101
    with pytest.raises(errors.SerializeError, match="wrong length"):
        budget.check_msgpack(wrong, limits, NESTED)


# -- the compiled walk -----------------------------------------------------------------------------------

json_like = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.lists(st.floats(), min_size=65, max_size=80),
        st.lists(st.integers(0, 100), min_size=65, max_size=80),
        st.builds(
            lambda tag, value: ormsgpack.Ext(tag, value),
            st.sampled_from([1, 5, 64, 68, 70, 127]),
            inner.map(lambda value: ormsgpack.packb(value)),
        ),
    ),
    max_leaves=30,
)
packed = json_like.map(ormsgpack.packb)
damaged = st.one_of(
    packed,
    packed.map(lambda data: data[:-1]),
    packed.map(lambda data: data + b"\x01"),
    st.binary(max_size=60),
    st.tuples(packed, st.binary(max_size=3), st.integers(0, 50)).map(
        lambda p: p[0][: p[2]] + p[1] + p[0][p[2] :]
    ),
    st.integers(1, 12).map(lambda n: b"\x91" * n + b"\x01"),
    st.lists(packed, max_size=4).map(lambda items: bytes([0x80 | len(items) // 2]) + b"".join(items)),
)


@given(
    damaged,
    st.sampled_from([1, 3, 8, 100]),
    st.sampled_from([100, 1_000, 3_000, 10**6]),
    st.sampled_from([NESTED, frozenset()]),
)
def test_both_walks_end_alike(data, nesting_max, size_max, nested):
    if budget._compiled is None:
        return
    bounds = Limits(nesting_max=nesting_max, decoded_size_max=size_max)

    def outcome(walk):
        try:
            return walk()
        except IndexError:
            return errors.SerializeError, "the MessagePack data ends too early"
        except errors.ProtocolError as problem:
            return type(problem), str(problem)

    def in_c():
        ended, last, cost = budget._compiled.measure(
            data, nesting_max, size_max, budget._COSTS, budget._kinds(nested)
        )
        if ended:
            raise budget._ending(ended, last, bounds)
        return cost

    one, other = outcome(in_c), outcome(lambda: budget._walk(data, bounds, nested))
    refused = not isinstance(one, int) and not isinstance(other, int)
    if refused and errors.MessageTooLarge in (one[0], other[0]):
        return  # of a long run that is too large and too short, either may be noticed first
    assert one == other


@pytest.mark.parametrize(
    "arguments",
    [(), (b"", 1, 1, budget._COSTS, b"short"), ("text", 1, 1, budget._COSTS, bytes(256)),
     (b"", 10**7, 1, budget._COSTS, bytes(256)), (b"", 1, 1, (1,), bytes(256)),
     (b"", -1, "x", budget._COSTS, bytes(256))],
)  # fmt: skip
def test_wrong_arguments_are_refused(arguments):
    if budget._compiled is None:
        return
    with pytest.raises((TypeError, ValueError, OverflowError)):
        budget._compiled.measure(*arguments)
