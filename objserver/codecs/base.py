"""What a codec is: the one shape in which every serializer is seen by the rest.

A codec turns a call or a value into bytes and back.  It never lets a foreign exception out: whatever its
library raises on a value it cannot write or on bytes it cannot read, the caller sees a `SerializeError`
(or `MessageTooLarge`, when a limit decides), because the connection stays usable after either.  Values bring
code of their own (`__getstate__`, `__str__`, registered converters), and what that raises is treated alike,
be it SystemExit, which would end a worker thread.  Only KeyboardInterrupt passes: it is the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, TypeVar

from objserver import errors
from objserver.codecs.exceptions import repr_of, text_of
from objserver.codecs.types import Types
from objserver.references import Reference

__all__ = [
    "Call",
    "Codec",
    "Encoded",
    "Payload",
    "Substitute",
    "call_of",
    "cannot",
    "pass_on",
    "proxy_reference",
    "twin",
    "where",
]

T = TypeVar("T")

NAME_LENGTH_MAX = 1_000
"""Characters of an object id or a method name: enough for any key, and both are looked up and quoted."""

PATH_LOOKS_MAX = 10_000
"""Values that are looked at for the one that cannot be encoded: an error message is worth milliseconds."""

Call = tuple[str, str, Sequence[Any], dict[str, Any]]
Payload = bytes | bytearray | memoryview
Encoded = Any
"""Bytes; only of our own codec it may be `wire.buffers.Parts`, and what it decodes `Arrived`."""
Substitute = Callable[[object], Reference | None]
"""Says which objects travel as references: registered servants do, everything else gives None."""


class Codec(Protocol):
    """A serializer, under the id and the name that Pyro's protocol gives it."""

    serializer_id: int
    name: str

    def encode_call(
        self, object_id: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> Encoded: ...
    def decode_call(self, payload: Payload) -> Call: ...
    def encode(self, value: Any) -> Encoded: ...
    def decode(self, payload: Payload) -> Any: ...
    def weigh(self, payload: Payload) -> int:
        """About how many bytes of memory the decoded value will take; refuses what `decode` would."""


def call_of(parts: Any) -> Call:
    """Check that what a peer sent is a call; the peer may have sent anything."""
    # Not unpacked before it is known to be a list: a proxy would go and ask its object for the items.
    if type(parts) not in (list, tuple) or len(parts) != 4:
        raise errors.SerializeError("a call is (object, method, args, kwargs); this is not one") from None
    object_id, method, args, kwargs = parts
    if kwargs is None:
        kwargs = {}
    if type(object_id) is not str or type(method) is not str:
        raise errors.SerializeError("the object id and the method name of a call are strings")
    if len(object_id) > NAME_LENGTH_MAX or len(method) > NAME_LENGTH_MAX:
        raise errors.MessageTooLarge(f"an object id or method name has at most {NAME_LENGTH_MAX} characters")
    if type(args) not in (list, tuple) or type(kwargs) is not dict:
        raise errors.SerializeError("the arguments of a call are a list and a dict")
    for key in kwargs:
        if type(key) is not str:
            raise errors.SerializeError("the names of keyword arguments are strings")
    return object_id, method, args, kwargs


def cannot(action: str, name: str, problem: BaseException, path: str = "") -> errors.ProtocolError:
    """The one error for all failures of a serializer library; our own sentences pass unchanged.

    `path` says where in the value it was.
    """
    if isinstance(problem, errors.ProtocolError):
        if path:
            problem.args = (f"{path}: {problem}",)
        return problem
    what = text_of(problem) or type(problem).__name__
    if isinstance(problem, RecursionError):
        what = "it is nested too deeply, or contains itself"
    return errors.SerializeError(f"cannot {action} {path or 'the value'} with {name}: {what}")


def where(
    roots: Sequence[tuple[str, Any]],
    problem_with: Callable[[Any], BaseException | None],
    types: Types | None = None,
) -> tuple[str, BaseException | None]:
    """The path to the first thing that cannot be encoded, like `result['rows'][3].owner`, and why.

    Asked only after a failure, and only of the first `PATH_LOOKS_MAX` values; beyond, nothing is found.
    """
    opened: list[Iterator[tuple[str, Any]]] = [iter(roots)]
    seen: set[int] = set()
    for _ in range(PATH_LOOKS_MAX):
        while opened and (found := next(opened[-1], None)) is None:
            opened.pop()
        if not opened:
            break
        path, value = found  # type: ignore[misc]
        inside = None if id(value) in seen else _inside(path, value, types)
        if inside is not None:
            seen.add(id(value))
            opened.append(inside)
        elif id(value) not in seen:
            problem = problem_with(value)
            if problem is not None:
                return path, problem
    return "", None


def _inside(path: str, value: Any, types: Types | None) -> Iterator[tuple[str, Any]] | None:
    """What a container or a value of an application's class holds, each with its path."""
    kind = type(value)
    if kind in (list, tuple):
        return ((f"{path}[{index}]", item) for index, item in enumerate(value))
    if kind in (set, frozenset):
        return ((f"an item of {path}", item) for item in value)
    if kind is dict:
        keys = ((f"a key of {path}", key) for key in value)
        return chain(keys, ((f"{path}[{repr_of(key)[:50]}]", item) for key, item in value.items()))
    form = types.form(kind) if types is not None else None
    fields = form.fields(value) if form is not None else None
    return ((path + ending, item) for ending, item in fields) if fields else None


def twin(one: T) -> T:
    """A shallow copy; every connection of a client who is known takes several, and `copy.copy` takes long."""
    other = object.__new__(type(one))
    other.__dict__.update(one.__dict__)
    return other


def pass_on(value: object) -> None:
    """The reference of a proxy is sent on: what it holds must last until that has arrived."""
    lease = object.__getattribute__(value, "_objserver_stub").pool.lease
    if lease is not None:
        lease.passed_on()


def proxy_reference(value: object) -> Reference | None:
    """The reference of one of our proxies; read without waking the proxy's remote attributes."""
    if getattr(type(value), "_objserver_is_proxy", False):
        reference = object.__getattribute__(value, "_objserver_reference")
        return reference if isinstance(reference, Reference) else None
    return None
