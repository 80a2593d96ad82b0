"""One request inside the adapter, from its arrival to its reply.

An invocation is the facts that a servant sees through `current`, and what the adapter needs beside them.  One
object for both: every call makes one, and making two would show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from objserver.adapter.skeleton import Member
from objserver.invocation import CallId, Client, Facts, Timers

if TYPE_CHECKING:
    from objserver.adapter.activation import Activation
    from objserver.adapter.gate import Gate

__all__ = ["EMPTY", "Call", "Caller", "Invocation"]

EMPTY: Any = type("Empty", (), {"__repr__": lambda self: "<no servant>"})()
"""In place of a servant: a servant may be falsy, or even None-like, so nothing but identity is asked."""

Call = tuple[str, Sequence[Any], dict[str, Any]]
"""Method, positional and keyword arguments."""

Bound = tuple[Member, Sequence[Any], dict[str, Any]]
"""A call whose method has been found."""


class Caller(Client, Protocol):
    """Where replies go.  Encoding is apart from sending: a result is encoded while its object is still
    held, and sent when its state is safe."""

    def encode_result(self, invocation: Invocation, value: Any) -> bytes: ...
    def encode_error(self, invocation: Invocation, error: BaseException) -> bytes: ...
    def encode_stream(self, invocation: Invocation, stream_id: str) -> bytes: ...
    def encode_again(self, invocation: Invocation, reply: bytes) -> bytes: ...
    def pyro5_context(self, invocation: Invocation) -> dict[str, Any]: ...
    def send(self, reply: bytes) -> None: ...


class Invocation(Facts):
    """A call of `method`, or of everything in `batch`.

    `reply_to` is the caller's own note of how to answer.  Once the servant's class is known, `member` is
    what to call, and for a batch `members`.
    """

    caller: Caller
    activation: Activation = cast("Activation", None)
    """Set by `admit`."""
    located: Any = EMPTY
    """What a Shared locator found."""
    member: Member | None = None
    members: Sequence[Bound] = ()
    errand = False
    """Of the adapter's own making: it cannot be refused, since nobody would repeat it."""
    weight: object = None
    """Lives as long as the invocation, and with it what the server counts for its arguments."""
    begun = False
    """A servant has been called, so that what came of it may have to be kept."""
    streams = False
    """Its result is a stream."""
    digest = b""
    """Of what it calls with what, if it can be repeated."""
    asks = False
    """It only wants to know what became of `call`."""
    gate: Gate | None = None
    """Through which its reply leaves, if the object is Persistent."""
    when_over: Callable[[], None] | None = None
    """To be called when it is cancelled, for its `work` may never have begun."""
    sent = False
    """Another server of the cluster has said that the object is here."""
    may_be_stale = True
    """If it only reads, a copy may answer it, where the policy of the object allows that."""
    owned_at = ""
    """Where the object is, when a copy is to answer: the copy may turn out not to be able to."""
    work: Callable[[Any], Any] | None = None
    """Replaces the call: the next item of a stream is drawn through the same mailbox as everybody's calls."""

    def __init__(
        self,
        caller: Caller,
        object_id: str,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        reply_to: Any = None,
    ) -> None:
        # What Facts.__init__ does, without the call.
        self.caller = caller
        self.object_id = object_id
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.reply_to = reply_to
        self.oneway = False
        self.call: CallId | None = None
        self.chain: tuple[str, ...] = ()
        self.batch: Sequence[Call] | None = None
        self.deadline: float | None = None
        self.plain = False
        """One call of one member, with a reply."""
        self.ends = False
        """This is the servant's last: it runs alone, and who comes after gets a new servant."""
        self._response_annotations: dict[str, bytes] | None = None

    @property
    def key(self) -> str:
        return self.activation.key

    def own_timers(self, change: bool) -> Timers:
        activation = self.activation
        if activation is None or not activation.registration.persistent:
            return super().own_timers(change)
        timers = self.gate.timers if self.gate is not None else None
        if change and self.readonly:
            raise RuntimeError(
                f"{self.object_id}.{self.method} is @readonly, so it keeps nothing that it does: "
                "it cannot set or cancel timers"
            )
        if timers is None or (change and not self.defers):
            raise RuntimeError(
                f"timers are set and cancelled in a call of {self.object_id}, and none is in progress here: "
                "not before the first has begun, as in on_activate, and not after it has ended"
            )
        return timers

    @property
    def readonly(self) -> bool:
        """Whether nothing that is called changes the servant.  False as long as that is not known."""
        if self.member is not None:
            return self.member.readonly
        return bool(self.members) and all(member.readonly for member, _, _ in self.members)
