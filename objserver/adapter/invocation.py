"""One request inside the adapter, from its arrival to its reply.

An invocation is the facts that a servant sees through `current`, and what the adapter needs beside them.  One
object for both: every call makes one, and making two would show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from objserver.invocation import Facts

if TYPE_CHECKING:
    from objserver.adapter.activation import Activation

__all__ = ["Call", "Caller", "Invocation"]

Call = tuple[str, Sequence[Any], dict[str, Any]]
"""Method, positional and keyword arguments."""

_NOTHING: Mapping[str, bytes] = {}


class Caller(Protocol):
    """Where replies go.  Encoding is apart from sending: a result is encoded while its object is still
    held, and sent when its state is safe."""

    def encode_result(self, invocation: Invocation, value: Any) -> bytes: ...
    def encode_error(self, invocation: Invocation, error: BaseException) -> bytes: ...
    def encode_stream(self, invocation: Invocation, stream_id: str) -> bytes: ...
    def send(self, reply: bytes) -> None: ...


class Invocation(Facts):
    """A call of `method`, or of everything in `batch`.

    `work`, where set, replaces the call: the next item of a stream is drawn through the same mailbox as
    everybody's calls.  `reply_to` is the caller's own note of how to answer.
    """

    __slots__ = (
        "activation",
        "args",
        "batch",
        "caller",
        "ends",
        "kwargs",
        "members",
        "oneway",
        "plain",
        "readonly",
        "reply_to",
        "work",
    )

    activation: Activation

    def __init__(
        self,
        caller: Caller,
        object_id: str,
        method: str,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        reply_to: Any = None,
        annotations: Mapping[str, bytes] = _NOTHING,
        correlation: bytes = b"",
        chain: tuple[str, ...] = (),
        oneway: bool = False,
    ) -> None:
        super().__init__(object_id, "", method, annotations, correlation, chain)
        self.caller = caller
        self.reply_to = reply_to
        self.args = args
        self.kwargs = kwargs or {}
        self.oneway = oneway
        self.batch: Sequence[Call] | None = None
        self.work: Callable[[Any], Any] | None = None
        self.ends = False
        """This is the servant's last: it runs alone, and who comes after gets a new servant."""
        self.plain = False
        """One call that takes no preparation but its servant."""
        self.readonly = False
        self.members: list[tuple[Any, Sequence[Any], dict[str, Any]]] = []
