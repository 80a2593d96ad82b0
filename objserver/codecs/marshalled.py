"""A reader of marshal that can read data only.

CPython's `marshal.loads` also builds code objects, and its documentation warns that crafted input can
crash the interpreter.  Old Pyro clients may still speak marshal, and Pyro5's SerializedBlob carries a
marshalled annotation always, so we read the data-only subset of versions 2 to 4 in Python: slower, and
incapable of anything else.  Shared references are bounded by what they would unfold to, since whoever
walks the value walks each occurrence.  Writing is safe: use `marshal.dumps`.
"""

from __future__ import annotations

import struct
from typing import Any

from objserver import errors
from objserver.codecs.budget import spread

__all__ = ["loads"]

_CONSTANTS = {"N": None, "T": True, "F": False, ".": ...}
_PENDING = object()
_END = object()


def loads(data: bytes | memoryview, *, nesting_max: int = 100, items_max: int = 3_000_000) -> Any:
    """The value in `data`; SerializeError for code, for damage and beyond the bounds."""
    try:
        reader = _Reader(bytes(data), nesting_max, items_max)
        reader._pay(1)
        value, _ = reader.read(0)
    except errors.ProtocolError:
        raise
    except Exception as problem:
        raise errors.SerializeError(f"cannot decode the marshal data: {problem}") from None
    if value is _END:
        raise errors.SerializeError("cannot decode the marshal data: it holds no value")
    return value


class _Reader:
    def __init__(self, data: bytes, nesting_max: int, items_max: int) -> None:
        self._data = data
        self._position = 0
        self._nesting_max = nesting_max
        self._left = items_max
        self._items_max = items_max
        self._seen: list[tuple[Any, int, int]] = []  # value, items that it unfolds to, its depth
        self._deepest = 0

    def _take(self, size: int) -> bytes:
        chunk = self._data[self._position : self._position + size]
        if size < 0 or len(chunk) != size:
            raise errors.SerializeError("the marshal data ends too early")
        self._position += size
        return chunk

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize(code)))[0]

    def _pay(self, items: int) -> None:
        self._left -= items
        if self._left < 0:
            error = errors.MessageTooLarge(
                f"the marshal data holds more than {self._items_max} items (decoded_size_max)"
            )
            error.limit = "decoded_size_max"
            raise error

    def _deep(self, depth: int) -> None:
        if depth > self._nesting_max:
            error = errors.MessageTooLarge(
                f"the value is nested deeper than nesting_max={self._nesting_max} levels"
            )
            error.limit = "nesting_max"
            raise error

    def read(self, depth: int) -> tuple[Any, int]:
        """The next value, and how many levels of containers it has; whoever calls has paid for it."""
        head = self._take(1)[0]
        kind = chr(head & 0x7F)
        if kind == "r":
            index = self._number("I")
            if index >= len(self._seen) or self._seen[index][0] is _PENDING:
                raise errors.SerializeError("the marshal data refers to a value that is not there yet")
            value, items, levels = self._seen[index]
            self._pay(items)
            self._deep(depth + levels)
            return value, levels
        slot = -1
        if head & 0x80:
            slot = len(self._seen)
            self._seen.append((_PENDING, 0, 0))
        before = self._left
        value, levels = self._container(kind, depth) if kind in "()[{<>" else (self._scalar(kind), 0)
        if slot >= 0:
            self._seen[slot] = (value, before - self._left, levels)
        return value, levels

    def _container(self, kind: str, depth: int) -> tuple[Any, int]:
        self._deep(depth + 1)
        items: list[Any] = []
        deepest = 0
        if kind == "{":
            while True:
                self._pay(1)
                item, levels = self.read(depth + 1)
                if item is _END and len(items) % 2 == 0:
                    break
                if item is _END:
                    raise errors.SerializeError("the marshal data has a dict key without a value")
                deepest = max(deepest, levels)
                items.append(item)
            return dict(zip(spread(items[::2]), items[1::2], strict=True)), deepest + 1
        count = self._number("B") if kind == ")" else self._number("i")
        if not 0 <= count <= len(self._data) - self._position:
            raise errors.SerializeError("the marshal data ends too early")
        self._pay(count)  # at once: a flood is refused before any of it is read
        for _ in range(count):
            item, levels = self.read(depth + 1)
            if item is _END:
                raise errors.SerializeError("the marshal data has an end where no dict is open")
            deepest = max(deepest, levels)
            items.append(item)
        make = {"[": list, "<": set, ">": frozenset}.get(kind, tuple)
        return make(spread(items) if kind in "<>" else items), deepest + 1

    def _scalar(self, kind: str) -> Any:
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind == "0":
            return _END
        if kind == "i":
            return self._number("i")
        if kind == "l":
            return self._long()
        if kind == "g":
            return self._number("d")
        if kind == "f":
            return float(self._take(self._number("B")))
        if kind == "y":
            return complex(self._number("d"), self._number("d"))
        if kind == "x":
            real = float(self._take(self._number("B")))
            return complex(real, float(self._take(self._number("B"))))
        if kind == "s":
            return self._take(self._number("i"))
        if kind in "tu":
            return self._take(self._number("i")).decode("utf-8", "surrogatepass")
        if kind in "aA":
            return self._take(self._number("i")).decode("ascii")
        if kind in "zZ":
            return self._take(self._number("B")).decode("ascii")
        raise errors.SerializeError(f"the marshal data holds a {kind!r} object; only plain data is accepted")

    def _long(self) -> int:
        """Digits of 15 bits, least significant first; joined as text of bits, which is linear."""
        count = self._number("i")
        digits = struct.unpack(f"<{abs(count)}H", self._take(2 * abs(count)))
        if any(digit > 0x7FFF for digit in digits):
            raise errors.SerializeError("the marshal data holds a damaged number")
        value = int("".join(f"{digit:015b}" for digit in reversed(digits)) or "0", 2)
        return -value if count < 0 else value
