"""What decoding would cost, told before it is done.

A decoder believes its input: a few bytes make it recurse or allocate without end.  These checks run over
the undecoded bytes at C speed (translate, regular expressions that never backtrack, replace) and estimate
two things from above: the levels of nesting and the memory of the result.  A payload with fewer bytes
than the allowed levels can break neither limit, so callers skip the check for it: most calls are that
small.  The estimates are for Python 3.11 on 64 bits; they need the right magnitude, not the last byte.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from objserver import errors
from objserver.compiled import compiled
from objserver.settings import Limits

__all__ = ["check_json", "check_msgpack", "check_serpent", "spread", "too_deep", "too_large", "weigh_msgpack"]

CONTAINER = 88  # an empty dict or list with its slot in the parent
SCALAR = 40  # a number with its slot
SLOT = 8  # None, bools and small ints are shared: only the slot counts
ITEM = 100  # a key's place in a dict, with the growth of its table
BYTE = 136  # no byte of MessagePack costs more; the worst are nested dicts of one empty string each
MARSHAL_BYTE = 16  # nor of marshal: an empty list has five bytes, a reference to what came before too
SAME_HASH_MAX = 1_000
"""Items of one set or dict whose hashes may coincide: they do by chance far more rarely."""
OBJECT = 2_048
"""Bytes of a value that becomes a proxy or a path, which are objects of several parts."""
_OBJECTS = frozenset({68, 70})
_COSTS = (SLOT, SCALAR, CONTAINER, ITEM, OBJECT)
KEY = "the key of a MessagePack map is a container"
"""The hashes of tuples are no secret either, see `spread`, and ormsgpack makes the dict before we see its
keys.  No peer sends such a key: stock decoders refuse it too, and our codec writes such a dict as a list of
pairs."""
NODE = 1024  # a syntax node of Python's parser and of the ast module, together

_compiled = compiled("codecs._budget")
_HEADS = bytes([*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)])
_MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_CONTAINERS = _MAPS | frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
_NOT_HEADS = bytes(set(range(256)) - set(_HEADS))
# First byte of a msgpack value -> how many bytes follow it (fixed), or how long its length field is.
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_BLOB = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_FIXEXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_EXT = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_MANY = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}

# The end of a string is optional, so that an unfinished one is swallowed whole: a pattern that could fail
# there would start again at each quote, in quadratic time.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_COMMENT = ord("#")
_PYTHON_STRING = re.compile(
    rb"#[^\n\r]*+"
    rb"|[bBuUrR]{0,2}(?:'''[^'\\]*+(?:(?:\\.|'(?!''))[^'\\]*+)*+(?:''')?"
    rb'|"""[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*+(?:""")?'
    rb"|'[^'\\\n\r]*+(?:\\.[^'\\\n\r]*+)*+'?"
    rb'|"[^"\\\n\r]*+(?:\\.[^"\\\n\r]*+)*+"?)',
    re.DOTALL,
)
_ALL = bytes(range(256))
_TO_PARENS = bytes.maketrans(b"[]{}", b"()()")
_NOT_BRACKETS = bytes(set(_ALL) - set(b"()[]{}"))
_NAMES = re.compile(rb"True|False|None")
_NOT_DATA = re.compile(
    rb"[^-+,:()\[\]{}'0-9.eEjJ]"  # a name or an operator: no literal has one
    rb"|[^,:(\[{][(\[{]"  # a call or a subscript
    rb"|(?:[-+][^-+,:()\[\]{}]*+){5}"  # a sum; a complex number has at most four signs
)


def too_deep(limits: Limits) -> errors.MessageTooLarge:
    return _exceeds("nesting_max", f"the value is nested deeper than nesting_max={limits.nesting_max} levels")


def too_large(limits: Limits) -> errors.MessageTooLarge:
    return _exceeds(
        "decoded_size_max", f"decoding would take more than decoded_size_max={limits.decoded_size_max} bytes"
    )


def _exceeds(limit: str, sentence: str) -> errors.MessageTooLarge:
    error = errors.MessageTooLarge(sentence)
    error.limit = limit
    return error


def check_msgpack(
    payload: bytes | bytearray | memoryview, limits: Limits, nested: frozenset[int] = frozenset()
) -> None:
    """Refuse MessagePack beyond the limits; `nested` are the Ext tags whose data is MessagePack again."""
    data = bytes(payload) if isinstance(payload, memoryview) else payload
    # Every container costs at least its head byte.  Where even that bound is within the limits, done.
    heads = len(data.translate(None, _NOT_HEADS))
    if heads <= limits.nesting_max and len(data) * 48 <= limits.decoded_size_max:
        return
    weigh_msgpack(data, limits, nested)


def weigh_msgpack(
    payload: bytes | bytearray | memoryview, limits: Limits, nested: frozenset[int] = frozenset()
) -> int:
    """As `check_msgpack`; about how many bytes of memory the value will take."""
    data = bytes(payload) if isinstance(payload, memoryview) else payload
    if _compiled is None:
        try:
            return _walk(data, limits, nested)
        except IndexError:
            raise errors.SerializeError("the MessagePack data ends too early") from None
    ended, last, cost = _compiled.measure(
        data, limits.nesting_max, limits.decoded_size_max, _COSTS, _kinds(nested)
    )
    if ended:
        raise _ending(ended, last, limits)
    return int(cost)


def _ending(ended: int, last: int, limits: Limits) -> errors.ProtocolError:
    """What the compiled walk means by its answer."""
    if ended == 4:
        return too_large(limits)
    if ended == 5:
        return too_deep(limits)
    return errors.SerializeError(
        {
            1: "the MessagePack data ends too early",
            2: "the MessagePack data has an Ext of the wrong length",
            6: KEY,
        }.get(ended, f"byte {last:#x} starts no MessagePack value")
    )


@functools.cache
def _kinds(nested: frozenset[int]) -> bytes:
    """Of each Ext tag: 1 if its data is MessagePack, 2 if it becomes an object, else 0."""
    return bytes(1 if tag in nested else 2 if tag in _OBJECTS else 0 for tag in range(256))


def _walk(data: bytes | bytearray, limits: Limits, nested: frozenset[int]) -> int:
    """Skip through the value, item by item, keeping only what is open: (items left, where an Ext ends,
    whether every other item is a key)."""
    position, cost, size = 0, 0, len(data)
    left, end, keyed = 1, -1, False
    opened: list[tuple[int, int, bool]] = []
    while True:
        while left == 0:
            # Bytes after the value of an Ext would be ignored by the decoder but read by us.
            if end >= 0 and position != end:
                raise errors.SerializeError("the MessagePack data has an Ext of the wrong length")
            if not opened:
                return cost
            left, end, keyed = opened.pop()
        left -= 1
        byte = data[position]
        position += 1
        if keyed and left & 1 and byte in _CONTAINERS:
            raise errors.SerializeError(KEY)
        many = 0
        inside = -1
        if byte < 0x80 or byte in (0xC0, 0xC2, 0xC3):
            cost += SLOT
        elif byte >= 0xE0:
            cost += SCALAR
        elif byte < 0x90:
            many = (byte & 15) * 2
            cost += CONTAINER + many // 2 * ITEM
        elif byte < 0xA0:
            many = byte & 15
            cost += CONTAINER
        elif byte < 0xC0:
            position += byte & 31
            cost += SCALAR + 31
        elif byte in _FIXED:
            position += _FIXED[byte]
            cost += SCALAR
        elif byte in _BLOB:
            width = _BLOB[byte]
            length = int.from_bytes(data[position : position + width], "big")
            position += width + length
            cost += SCALAR + 24 + length
        elif byte in _MANY:
            width, factor = _MANY[byte]
            count = int.from_bytes(data[position : position + width], "big")
            position += width
            many = count * factor
            cost += CONTAINER + (count * ITEM if factor == 2 else 0)
            if many > size - position:
                raise errors.SerializeError("the MessagePack data ends too early")
        elif byte in _FIXEXT or byte in _EXT:
            if byte in _FIXEXT:
                length = _FIXEXT[byte]
            else:
                length = int.from_bytes(data[position : position + _EXT[byte]], "big")
                position += _EXT[byte]
            tag = data[position]
            position += 1
            cost += OBJECT + length if tag in _OBJECTS else CONTAINER + length
            if tag in nested:
                many, inside = 1, position + length
            else:
                position += length
        else:
            raise errors.SerializeError(f"byte {byte:#x} starts no MessagePack value")
        if position > size or inside > size:
            raise errors.SerializeError("the MessagePack data ends too early")
        if cost > limits.decoded_size_max:
            raise too_large(limits)
        if byte not in _HEADS:
            continue
        if (many or inside >= 0) and len(opened) >= limits.nesting_max:
            raise too_deep(limits)
        # Long runs of one kind of number are what large payloads consist of; they are skipped at once.
        doubles = many > 64 and data[position] == 0xCB
        if doubles and data[position : position + 9 * many : 9] == b"\xcb" * many:
            position += 9 * many
            cost += SCALAR * many
            many = 0
        elif many > 64 and data[position : position + many].isascii():
            position += many
            cost += SLOT * many
            many = 0
        if position > size:
            raise errors.SerializeError("the MessagePack data ends too early")
        if cost > limits.decoded_size_max:
            raise too_large(limits)
        if many or inside >= 0:
            opened.append((left, end, keyed))
            left, end, keyed = many, inside, byte in _MAPS


def _check_brackets(text: bytes, limits: Limits) -> None:
    """Peel the innermost pairs off; what is left after the allowed number of peelings is too deep."""
    brackets = text.translate(_TO_PARENS, _NOT_BRACKETS)
    for _ in range(limits.nesting_max):
        if not brackets:
            return
        shorter = brackets.replace(b"()", b"")
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    # Unbalanced text within the limit is left to the parser, which says where it is wrong.
    if b"()" in brackets or len(brackets) > limits.nesting_max:
        raise too_deep(limits)


def _weight(text: bytes) -> int:
    """What the containers and scalars take in JSON or serpent, of which the strings have been taken out."""
    containers = text.count(b"[") + text.count(b"{") + text.count(b"(")
    return containers * CONTAINER + text.count(b",") * SCALAR + text.count(b":") * ITEM


def check_json(payload: bytes | bytearray | memoryview, limits: Limits) -> int:
    """Refuse JSON beyond the limits; about how many bytes of memory the value will take."""
    data = bytes(payload)
    text = _JSON_STRING.sub(b"", data)
    cost = _weight(text) + len(data)
    if cost > limits.decoded_size_max:
        raise too_large(limits)
    _check_brackets(text, limits)
    return cost


def spread(items: list[Any]) -> list[Any]:
    """The items of a set, or the keys of a dict, unless too many of them have the same hash.

    The hashes of numbers are no secret; with chosen ones, building a set takes time in the square of its
    size, inside a single call of C.
    """
    if len(items) > SAME_HASH_MAX and len(items) - len(set(map(hash, items))) > SAME_HASH_MAX:
        raise errors.SerializeError("too many items of a set or dict have the same hash")
    return items


def _without_strings(data: bytes, limits: Limits) -> tuple[bytes, int]:
    """Python source with a quote for each string and nothing for each comment; how many of both there were.

    Too many are refused before their pieces take more memory than the value may.
    """
    most = limits.decoded_size_max // NODE
    pieces: list[bytes] = []
    at = number = 0
    for number, found in enumerate(_PYTHON_STRING.finditer(data), 1):
        if number > most:
            raise too_large(limits)
        begin = found.start()
        if begin != at:
            pieces.append(data[at:begin])
        if data[begin] != _COMMENT:
            pieces.append(b"'")
        at = found.end()
    pieces.append(data[at:])
    return b"".join(pieces), number


def check_serpent(payload: bytes | bytearray | memoryview, limits: Limits) -> int:
    """Refuse serpent beyond the limits, and Python source that is more than literals; about how many bytes of
    memory the value will take.

    `ast.literal_eval` refuses the latter too, but only after the parser built trees of it, for which
    memory and depth follow no simple rule.
    """
    text, strings = _without_strings(bytes(payload), limits)
    text = text.translate(None, b" \t\r\n\f")
    text = text.replace(b"set()", b"0")  # the one call that is a literal
    nodes = max(strings, len(text.translate(None, b"0123456789.eEjJTrueFalsNon'")))
    if nodes * NODE > limits.decoded_size_max:
        raise too_large(limits)
    _check_brackets(text, limits)
    if _NOT_DATA.search(_NAMES.sub(b"0", text)):
        raise errors.SerializeError("serpent data holds something that is not a literal")
    return _weight(text) + len(payload)
