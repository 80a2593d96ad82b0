"""One request inside the adapter, from its arrival to its reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from objserver.invocation import Facts

if TYPE_CHECKING:
    from objserver.adapter.activation import Activation

__all__ = ["Caller", "Invocation"]


class Caller(Protocol):
    """Where replies go.  Encoding is apart from sending: a result is encoded while its object is still
    held, and sent when its state is safe."""

    def encode_result(self, value: Any, facts: Facts) -> bytes: ...
    def encode_error(self, error: BaseException, facts: Facts) -> bytes: ...
    def encode_stream(self, stream_id: str, facts: Facts) -> bytes: ...
    def send(self, reply: bytes) -> None: ...


class Invocation:
    """`calls` holds (method, args, kwargs): one for a plain call, several for a batch.

    `work`, where given, replaces the calls: the adapter's own errands (the next item of a stream, a
    passivation) go through the same mailbox as everybody's calls.
    """

    __slots__ = (
        "activation",
        "batch",
        "caller",
        "calls",
        "ends",
        "facts",
        "members",
        "oneway",
        "readonly",
        "work",
    )

    def __init__(
        self,
        facts: Facts,
        calls: Sequence[tuple[str, Sequence[Any], dict[str, Any]]],
        caller: Caller,
        *,
        batch: bool = False,
        oneway: bool = False,
        work: Callable[[Any], Any] | None = None,
    ) -> None:
        self.facts = facts
        self.calls = calls
        self.caller = caller
        self.batch = batch
        self.oneway = oneway
        self.work = work
        self.ends = False
        """This is the servant's last: it runs alone, and who comes after gets a new servant."""
        self.readonly = False
        self.members: list[Any] = []
        self.activation: Activation
