"""Scalar calls: small ones whose arguments and result are numbers, texts and the like.

They are most calls, and what they take is mostly the steps between a value and its bytes.  Here these are one
step: between a call and the bytes of its whole frame, in C where that has been compiled.  The bytes are those
of our own codec, which has the general case: MessagePack of

    [object id, method, [argument, ...], {}]        in a plain frame INVOKE
    value                                           in a plain frame RESULT

Scalars are None, bool, int of 64 bits with a sign, float, str and bytes; the payload has at most 256 bytes, a
call at most 15 arguments.  Of everything else these functions say that it is something else, also of what is
broken: the long way says what is wrong.  They decide nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ormsgpack

from objserver.wire.frames import (
    HEADER_SIZE,
    NO_CORRELATION,
    Frame,
    _pure_plain_call,
    _pure_plain_frame,
    _pure_plain_frames,
    _pure_plain_reply,
    kernel,
    plain_start,
)

__all__ = ["SCALAR_FRAME_MAX", "scalar_call", "scalar_reply", "scalar_request", "scalar_value"]

SMALL = 256
"""Bytes of a payload: above it, a server counts what its arguments take."""
SCALAR_FRAME_MAX = HEADER_SIZE + SMALL
ARGUMENTS_MAX = 15
_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


def _are_scalars(values: Sequence[Any]) -> bool:
    return _SCALARS.issuperset(map(type, values)) and all(
        _INT_MIN <= value <= _INT_MAX for value in values if type(value) is int
    )


def _small_frame(start: bytes, sequence: int, value: Any) -> bytes | None:
    try:
        payload = ormsgpack.packb(value)
    except TypeError:  # half a character
        return None
    return _pure_plain_frame(start, sequence, payload) if len(payload) <= SMALL else None


def _pure_scalar_request(
    start: bytes, sequence: int, object_id: str, method: str, args: Sequence[Any]
) -> bytes | None:
    """The bytes of the frame that calls so, or None if these are not few scalars in a tuple or list."""
    if (
        type(args) not in (tuple, list)
        or len(args) > ARGUMENTS_MAX
        or type(object_id) is not str
        or type(method) is not str
        or not _are_scalars(args)
    ):
        return None
    return _small_frame(start, sequence, [object_id, method, list(args), {}])


def _pure_scalar_reply(start: bytes, sequence: int, value: Any) -> bytes | None:
    """The bytes of the frame that carries `value`, or None if it is no scalar."""
    return _small_frame(start, sequence, value) if _are_scalars((value,)) else None


def _pure_scalar_call(data: bytes, start: bytes) -> ScalarCall | None:
    """Object id, method, arguments and the frame, without its payload, if `data` is exactly one plain frame
    that begins with `start` and calls with scalars."""
    if data[:10] != start or len(data) > HEADER_SIZE + SMALL:
        return None
    frames, end = _pure_plain_frames(data, len(data))
    if len(frames) != 1 or end != len(data):
        return None
    call = _pure_scalar_call_in(frames[0], start)
    frames[0].payload = b""
    return call


def _pure_scalar_call_in(frame: Frame, start: bytes) -> ScalarCall | None:
    """As `scalar_call`, of a frame: if it begins with `start` and has nothing beside its payload."""
    payload = frame.payload
    if (
        type(payload) is not bytes
        or len(payload) > SMALL
        or plain_start(frame.type, frame.serializer_id) != start
        or frame.flags
        or frame.annotations
        or frame.correlation is not NO_CORRELATION
    ):
        return None
    try:
        call = _pure_plain_call(ormsgpack.unpackb(payload))
    except ValueError:
        return None
    if call is None or len(call[2]) > ARGUMENTS_MAX or not _SCALARS.issuperset(map(type, call[2])):
        return None
    return call[0], call[1], call[2], frame


def _pure_scalar_in(payload: Any) -> Any:
    """The scalar that a payload is, or Ellipsis, which no scalar is."""
    if type(payload) is not bytes or len(payload) > SMALL:
        return ...
    try:
        value = ormsgpack.unpackb(payload)
    except ValueError:
        return ...
    return value if type(value) in _SCALARS else ...


def _pure_scalar_value(data: bytes, start: bytes, sequence: int) -> Any:
    """The scalar, if `data` is exactly the plain frame that begins with `start` and has that number and one
    for a payload, or Ellipsis."""
    return _pure_scalar_in(_pure_plain_reply(data, start, sequence))


ScalarCall = tuple[str, str, list[Any], Frame]
scalar_request: Callable[[bytes, int, str, str, Sequence[Any]], bytes | None] = _pure_scalar_request
scalar_reply: Callable[[bytes, int, Any], bytes | None] = _pure_scalar_reply
scalar_call: Callable[[bytes, bytes], ScalarCall | None] = _pure_scalar_call
scalar_call_in: Callable[[Frame, bytes], ScalarCall | None] = _pure_scalar_call_in
scalar_value: Callable[[bytes, bytes, int], Any] = _pure_scalar_value
scalar_in: Callable[[Any], Any] = _pure_scalar_in
if kernel is not None:
    scalar_request, scalar_reply = kernel.scalar_request, kernel.scalar_reply
    scalar_call, scalar_call_in = kernel.scalar_call, kernel.scalar_call_in
    scalar_value, scalar_in = kernel.scalar_value, kernel.scalar_in
