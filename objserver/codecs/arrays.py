"""NumPy arrays as data: what they look like, and their bytes.

An array travels as `[dtype, shape, order, bytes]`.  Bytes of some size are not copied into the MessagePack
but stand beside it (`wire.buffers`), and the array that arrives is a view of the memory they were received
into: writable, C or Fortran order as it was.  A NumPy scalar travels as an array without dimensions.

This module never imports NumPy on its own account: nobody can have an array to send without having imported
it, and when one arrives it is imported then.  What arrives is not believed: a dtype is made only from the
few forms written here (no objects, no text that NumPy would interpret), and before an array is made its
size is computed with Python's integers and compared with the bytes that are there.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

from objserver import errors

__all__ = ["ASIDE_MIN", "bytes_of", "header_of", "is_numpy", "restore"]

ASIDE_MIN = 4 * 1024
"""Bytes from which a block stands beside the MessagePack: below it the copy costs less than the entry."""
DIMENSIONS_MAX = 64
FIELDS_MAX = 1_000
"""Fields of one structured dtype on one level."""
# Kind and size, and for times their unit; nothing else of what np.dtype() would interpret.
_SIMPLE = re.compile(r"[<>|=]?(?:[biufcSUV?]\d{0,9}|[mM]8(?:\[\d{0,9}[A-Za-zμ]{1,7}\])?)", re.ASCII)


def is_numpy(value: object) -> bool:
    """Whether it is an array or a scalar of NumPy, or of a class made from these."""
    numpy = sys.modules.get("numpy")
    # An attribute is missing while another thread is importing it.
    kinds = getattr(numpy, "ndarray", ()), getattr(numpy, "generic", ())
    # By its type: a proxy that is asked for its class would ask its object, over the network.
    return numpy is not None and issubclass(type(value), kinds)


def header_of(value: Any) -> tuple[list[Any], Any]:
    """`[dtype, shape, order]` of an array or scalar, and the array in that order, in one piece.

    SerializeError if it would not come back as it is.
    """
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.generic):
        array, order = numpy.asarray(value), "S"
    else:
        if type(value) is not numpy.ndarray and type(value) is not numpy.memmap:
            raise errors.SerializeError(
                f"a {type(value).__module__}.{type(value).__qualname__} would arrive as a plain array,"
                " without what it adds to one; send numpy.asarray(...) of it, and a mask beside it"
            )
        array, order = value, "C"
        if not array.flags.c_contiguous:
            if array.flags.f_contiguous:
                order = "F"
            else:
                array = numpy.ascontiguousarray(array)
    return [_describe(numpy, array.dtype), list(array.shape), order], array


def bytes_of(array: Any) -> memoryview:
    """The bytes of an array that is in one piece, without a copy."""
    if not array.size or not array.itemsize:
        return memoryview(b"")
    flat = array.T if not array.flags.c_contiguous else array
    data: memoryview = flat.reshape(-1).view("u1").data
    return data


def restore(header: list[Any], data: bytearray | memoryview) -> Any:
    """The array of `header` over the writable memory `data`; SerializeError unless both fit together."""
    try:
        import numpy
    except ImportError:
        raise errors.SerializeError("a NumPy array arrived, and NumPy is not installed here") from None
    form, shape, order = header
    if (
        type(shape) is not list
        or len(shape) > DIMENSIONS_MAX
        or not all(type(length) is int and 0 <= length < 1 << 63 for length in shape)
        or order not in ("C", "F", "S")
        or (order == "S" and shape)
    ):
        raise errors.SerializeError("the shape of an array is malformed")
    try:
        dtype = _dtype(numpy, form)
        if dtype.hasobject:
            raise errors.SerializeError("an array of Python objects cannot travel")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise errors.SerializeError(
                f"an array of shape {shape} and type {dtype.str} does not take {len(data)} bytes"
            )
        array = numpy.ndarray(shape, dtype, data, order="F" if order == "F" else "C")
    except (ValueError, TypeError, OverflowError, MemoryError, RecursionError) as problem:
        raise errors.SerializeError(f"an array is malformed: {problem}") from None
    return array[()] if order == "S" else array


def _describe(numpy: Any, dtype: Any) -> Any:
    """A dtype as text, `[names, formats, offsets, size]`, or `[format, shape]`."""
    if dtype.hasobject:
        raise errors.SerializeError(
            "an array of Python objects cannot travel: send a list, or an array of numbers or text"
        )
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        if any(len(field) > 2 for field in fields):
            raise errors.SerializeError("an array whose fields have titles cannot travel")
        form: Any = [
            list(dtype.names),
            [_describe(numpy, field[0]) for field in fields],
            [field[1] for field in fields],
            dtype.itemsize,
        ]
        same = len(fields) <= FIELDS_MAX
    elif dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_describe(numpy, base), list(shape)]
    else:
        form = dtype.str
        same = _SIMPLE.fullmatch(form) is not None and numpy.dtype(form) == dtype
    if not same:
        raise errors.SerializeError(f"an array of type {dtype!r} cannot travel")
    return form


def _dtype(numpy: Any, form: Any) -> Any:
    if type(form) is str:
        if not _SIMPLE.fullmatch(form):
            raise errors.SerializeError(f"arrays of type {form[:50]!r} are not accepted")
        return numpy.dtype(form)
    if type(form) is list and len(form) == 2:
        base, shape = form
        if type(shape) is list and len(shape) <= DIMENSIONS_MAX:
            return numpy.dtype((_dtype(numpy, base), tuple(map(_length, shape))))
    if type(form) is list and len(form) == 4:
        names, formats, offsets, size = form
        if (
            type(names) is type(formats) is type(offsets) is list
            and len(names) == len(formats) == len(offsets) <= FIELDS_MAX
            and all(type(name) is str for name in names)
        ):
            fields = {
                "names": names,
                "formats": [_dtype(numpy, inner) for inner in formats],
                "offsets": list(map(_length, offsets)),
                "itemsize": _length(size),
            }
            return numpy.dtype(fields)
    raise errors.SerializeError("the type of an array is malformed")


def _length(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise errors.SerializeError("the type of an array is malformed")
    return value
