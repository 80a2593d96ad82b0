"""How calls of a Store travel between the processes of a machine: MessagePack of plain data, in frames.

A frame is its length and one value: a request, which is the name of a method with its arguments, or an
answer, which is what kind of answer it is and what it says.  How arguments and results are written and read
follows from the annotations of the method in the Protocol: a method that is added there needs nothing here.
"""

from __future__ import annotations

import errno
import inspect
import os
import socket
import struct
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

import ormsgpack

from objserver import errors
from objserver.storage.base import Row, Store, Superseded, Unstorable

__all__ = [
    "ANSWER_TIMEOUT_S",
    "END",
    "ERROR",
    "ERRORS",
    "FRAME_SIZE_MAX",
    "HEAD",
    "METHODS",
    "MORE",
    "RESULT",
    "ROWS",
    "STREAM_TIMEOUT_S",
    "VERSION",
    "Signature",
    "is_user",
    "packed",
    "portions",
    "read_row",
    "receive",
    "send",
    "write_row",
]

VERSION = 1
"""Of what is said here; both ends are of one installation, unless it was replaced under a running server."""
FRAME_SIZE_MAX = 256 * 2**20
"""Bytes of a request or an answer, and so of a state: as many as PostgreSQL gets in one transaction."""
PORTION = 256 * 2**10
"""Bytes of rows sent together, from which on they are."""
ANSWER_TIMEOUT_S = 30.0
"""A request that takes longer waits for a disk that is gone, or for a process that was stopped."""
STREAM_TIMEOUT_S = 600.0
"""... unless it is for everything there is, which begins with a copy of the file."""

HEAD = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")
RESULT, ERROR, ROWS, END, MORE = range(5)
"""What an answer is, in front of it.  Rows are followed by others, or by the end; who restores is asked for
more of them."""
ERRORS = {kind.__name__: kind for kind in (errors.StoreError, Superseded, Unstorable)}

_Convert = Callable[[Any], Any]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | set):  # a named tuple, that is
        return list(value)
    raise TypeError(f"a {type(value).__name__} is no plain data")


def _is(value: Any) -> Any:
    return value


def _kinds(hint: Any) -> list[Any]:
    """The classes of a union, without None; no union is a union of one."""
    if get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    return [kind for kind in get_args(hint) if kind is not types.NoneType]


def _reader(hint: Any) -> _Convert:
    """What makes a value of that type of the plain data that came; `_is` if it is what came."""
    if len(kinds := _kinds(hint)) > 1:
        readers = [_reader(kind) for kind in kinds]
        return lambda value: None if value is None else readers[value[0]](value[1])
    read = _reader_of(kinds[0])
    if kinds[0] is hint or read is _is:
        return read
    return lambda value: None if value is None else read(value)


def _reader_of(hint: Any) -> _Convert:
    origin, inner = get_origin(hint), [_reader(each) for each in get_args(hint) if each is not ...]
    if isinstance(hint, type) and hasattr(hint, "_make"):
        return _named_reader(hint)
    if origin is tuple:
        return tuple if all(f is _is for f in inner) else lambda value: tuple(_each(inner, value))
    if origin is set:
        return lambda value: set(map(inner[0], value))
    if origin is dict:
        return lambda value: {inner[0](key): inner[1](each) for key, each in value}
    if inner and inner[0] is not _is:
        return lambda value: list(map(inner[0], value))
    return _is


def _named_reader(hint: Any) -> _Convert:
    """Of a named tuple.  There are many changes, so of their fields only those that need it are looked at."""
    fields = [(place, each, _reader(each)) for place, each in enumerate(get_type_hints(hint).values())]
    fields = [field for field in fields if field[2] is not _is]
    lists = [(place, read) for place, each, read in fields if get_origin(each) is Sequence]
    others = [(place, read) for place, each, read in fields if get_origin(each) is not Sequence]

    def read_named(value: Any) -> Any:
        for place, read in lists:
            if value[place]:
                value[place] = read(value[place])
        for place, read in others:
            value[place] = read(value[place])
        return hint._make(value)

    return read_named if lists or others else hint._make


def _each(fields: Sequence[_Convert], values: Iterable[Any]) -> list[Any]:
    return [read(value) for read, value in zip(fields, values, strict=True)]


def _writer(hint: Any) -> _Convert:
    """What makes plain data of a value where `_plain` would not do: keys that are tuples, and unions."""
    if len(kinds := _kinds(hint)) > 1:
        places = {get_origin(kind) or kind: place for place, kind in enumerate(kinds)}
        writers = [_writer(kind) for kind in kinds]

        def write(value: Any) -> Any:
            return None if value is None else (place := places[type(value)], writers[place](value))

        return write
    origin, inner = get_origin(kinds[0]), [_writer(each) for each in get_args(kinds[0]) if each is not ...]
    if origin is dict:
        return lambda value: [(inner[0](key), inner[1](each)) for key, each in value.items()]
    if all(f is _is for f in inner):
        return _is
    if origin is tuple:
        return lambda value: _each(inner, value)
    return lambda value: list(map(inner[0], value))


class Signature:
    """How the arguments and the result of a method of the Protocol travel."""

    def __init__(self, method: Callable[..., Any]) -> None:
        hints = get_type_hints(method)
        result = hints.pop("return")
        self.name = method.__name__
        self.streams = get_origin(result) in (Iterator, Generator)
        if self.streams:
            result = get_args(result)[0]
        names = [name for name in inspect.signature(method).parameters if name != "self"]
        self._readers = {name: _reader(hints[name]) for name in names}
        self._writers = {name: _writer(hints[name]) for name in names}
        self._places = [*self._readers.values()]
        self._plain = all(write is _is for write in self._writers.values())
        self.read, self.write = _reader(result), _writer(result)

    def encode(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
        if not self._plain:
            args = [write(arg) for write, arg in zip(self._writers.values(), args, strict=False)]
            kwargs = {name: self._writers[name](arg) for name, arg in kwargs.items()}
        return packed((self.name, args, kwargs))

    def arguments(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        read = [read(arg) for read, arg in zip(self._places, args, strict=False)]
        return read, {name: self._readers[name](arg) for name, arg in kwargs.items()}


def packed(value: Any) -> bytes:
    return ormsgpack.packb(value, default=_plain)


METHODS = {
    name: Signature(method)
    for name, method in vars(Store).items()
    if inspect.isfunction(method) and not name.startswith("_") and name not in ("close", "restore")
}
read_row, write_row = _reader(Row), _writer(Row)


def portions(rows: Iterable[Any], write: _Convert) -> Iterator[list[ormsgpack.Fragment]]:
    """The rows as they are sent, in portions; Unstorable tells which cannot be."""
    portion: list[ormsgpack.Fragment] = []
    size = 0
    for number, row in enumerate(rows, 1):
        try:
            body = packed(write(row))
            if len(body) > FRAME_SIZE_MAX - PORTION:
                raise OverflowError(f"it has {len(body)} bytes, which are too many")
        except (TypeError, OverflowError) as error:
            failure = Unstorable(f"cannot write row {number}: {error}")
            failure.row = number
            raise failure from error
        if size and size + len(body) > PORTION:
            yield portion
            portion, size = [], 0
        portion.append(ormsgpack.Fragment(body))
        size += len(body)
    if portion:
        yield portion


def send(sock: socket.socket, body: bytes) -> None:
    sock.sendall(HEAD.pack(len(body)) + body)


def receive(sock: socket.socket) -> Any:
    """The next message; ConnectionError if there is none any more."""
    (size,) = HEAD.unpack(_exactly(sock, HEAD.size))
    if size > FRAME_SIZE_MAX:
        raise ConnectionError(f"it sends {size} bytes, more than {FRAME_SIZE_MAX}")
    return ormsgpack.unpackb(_exactly(sock, size))


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    with memoryview(data) as view:
        filled = 0
        while filled < size:
            count = sock.recv_into(view[filled:])
            if not count:
                raise ConnectionResetError(errno.ECONNRESET, "the connection broke")
            filled += count
    return data


def is_user(sock: socket.socket) -> bool:
    """Whether the other end is a process of the same user, or of the administrator."""
    size = _CREDENTIALS.size
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user in (os.geteuid(), 0)
