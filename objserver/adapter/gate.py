"""The output gate of a Persistent object: no reply leaves before what it tells is durable.

While earlier calls are being committed the next ones run already, on the state in memory; it is their
replies that wait.  All that ended during one commit goes into the next, as one state and many replies, so a
hot object does not pay for the disk with every call.

    ahead       has ended, and waits for the commit under way
    in flight   is being committed, or a read is being confirmed
    done        what is known of finished calls, for whoever asks again

The pair (epoch, version) fences all of it.  Once a change or a read is refused, or its fate is unknown, what
is in memory may never have been: the gate is then `poisoned`, and nothing that it holds is told to anybody.

A gate decides and does nothing: it has no lock, no thread and no store.  Its owner asks `step` what is to be
done, and says how that ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import ormsgpack

from objserver import errors
from objserver.adapter.invocation import Invocation
from objserver.adapter.state import CODEC
from objserver.invocation import CallId
from objserver.storage import Change, Message, Record, Reply, Timer

if TYPE_CHECKING:
    from objserver.adapter.timers import ObjectTimers

__all__ = ["DONE", "Gate", "Held", "Read", "Release"]

RETURNED, RAISED, STREAMED = 0, 1, 2
"""How a call ended, in the store.  The items of a stream cannot be told again."""
DONE = object()
"""In place of what is held: the call has been answered, and the record is in the store."""


class Held:
    """One ended invocation whose reply waits; `also` are repetitions of it that want the same reply."""

    __slots__ = (
        "also", "failure", "invocation", "messages", "record", "reply", "timers", "told", "writes"
    )  # fmt: skip

    def __init__(self, invocation: Invocation, reply: bytes, writes: bool = False) -> None:
        self.invocation = invocation
        self.reply = reply
        self.writes = writes
        self.record: Reply | None = None
        self.told = False
        """The reply is out already, to a call that contains this one."""
        self.messages: Sequence[tuple[str, str, bytes]] = ()
        """Target, method and encoded call of what it sends without waiting for an answer."""
        self.timers: Sequence[Timer] = ()
        """What it set, as it stands now, and cancelled."""
        self.failure: BaseException | None = None
        """Its own state could not be captured: when those before it are through, the servant has to go."""
        self.also: list[Invocation] = []


class Read(NamedTuple):
    """What has to be confirmed: that the object is still so."""

    type: str
    key: str
    epoch: int
    version: int


class Release(NamedTuple):
    """These may go out."""

    held: list[Held]


class Gate:
    """Of one activation.

    `source` names the object as a client of others, 16 bytes.  `confirms`: others may have the store open, so
    reads need its word.
    """

    __slots__ = (
        "_acks",
        "_ahead",
        "_in_flight",
        "_known",
        "_source",
        "_through",
        "_type",
        "confirms",
        "epoch",
        "inside",
        "key",
        "owner",
        "poisoned",
        "state",
        "state_version",
        "timers",
        "version",
    )

    def __init__(
        self,
        name: tuple[str, str],
        record: Record | None,
        replies: Sequence[Reply],
        *,
        owner: str = "",
        source: bytes = b"",
        confirms: bool = False,
    ) -> None:
        self._type, self.key = name
        self.owner = owner
        self._source = source
        self.confirms = confirms
        self.epoch, self.version = (record.epoch, record.version) if record is not None else (0, 0)
        self.state = record.state if record is not None else None
        """As it was captured last, durable or not."""
        self.state_version = record.state_version if record is not None else 1
        self.timers: ObjectTimers | None = None
        """As the calls that have run leave them; there from the first call on."""
        self.poisoned = False
        self.inside: list[Held] = []
        """Calls within a call that has not ended: stored with it."""
        self._ahead: list[Held] = []
        self._in_flight: list[Held] = []
        self._known: dict[bytes, dict[CallId, tuple[bytes, Held | object]]] = {}
        self._through: dict[bytes, int] = {}
        """By client, the number through which it has all its answers."""
        self._acks: dict[bytes, int] = {}
        for reply in replies:
            call = CallId(reply.client, reply.number, reply.path)
            self._known.setdefault(call.client, {})[call] = (reply.digest, DONE)
            self._through[call.client] = max(self._through.get(call.client, 0), reply.acked)

    def __len__(self) -> int:
        return len(self._ahead) + len(self._in_flight)

    def __contains__(self, held: Held) -> bool:
        return held in self._ahead or held in self._in_flight or held in self.inside

    # -- repetitions ---------------------------------------------------------------------------------

    def find(self, call: CallId, digest: bytes, *, asks: bool = False) -> Held | object | None:
        """What became of `call`: DONE, or what is held of it; None if it has not been made yet.

        SessionExpired if it was answered so long ago that it is forgotten, ProtocolError if it is another
        call under the same id.
        """
        known = self._known.get(call.client, {}).get(call)
        if known is None:
            if call.number <= self._through.get(call.client, 0):
                raise errors.SessionExpired(f"call {call} was answered before, and its answer is forgotten")
            return None
        if known[0] and digest != known[0] and not asks:
            raise errors.ProtocolError(f"call {call} was made before with other content, and not again")
        return known[1]

    def _acknowledge(self, client: bytes, through: int) -> None:
        """The client has all answers up to this number."""
        if through <= self._through.get(client, 0):
            return
        self._through[client] = self._acks[client] = through
        calls = self._known.get(client, {})
        for call in list(calls):
            if call.number <= through and calls[call][1] is DONE:
                del calls[call]

    # -- holding -------------------------------------------------------------------------------------

    def hold(self, held: Held) -> None:
        """It has ended; it goes out when `step` says so."""
        self._remember(held)
        if held.writes and self.inside:
            self._ahead += self.inside
            self.inside = []
        self._ahead.append(held)

    def hold_inside(self, held: Held) -> None:
        """It has ended, and been answered, within another call to this object that has not."""
        held.told = True
        self._remember(held)
        self.inside.append(held)

    def _remember(self, held: Held) -> None:
        record = held.record
        if record is not None:
            self._acknowledge(record.client, record.acked)
            call = held.invocation.call
            assert call is not None
            self._known.setdefault(record.client, {})[call] = (record.digest, held)

    def step(self, trusted: bool = True) -> Change | Read | Release | None:
        """What is to be done next; None as long as something is under way, or if there is nothing.

        Not `trusted`: somebody may have taken the object over, so reads are confirmed in any case.
        """
        if self._in_flight or not self._ahead or self.poisoned:
            return None
        held, self._ahead = self._ahead, []
        writes = [each for each in held if each.writes]
        if not writes:
            certain = trusted and not self.confirms
            if not certain and not all(each.failure or each.invocation.ends for each in held):
                self._in_flight = held
                return Read(self._type, self.key, self.epoch, self.version)
            return Release(held)
        self._in_flight = held
        acks, self._acks = self._acks, {}
        return Change(
            type=self._type,
            key=self.key,
            epoch=self.epoch,
            version=self.version,
            codec=CODEC,
            state_version=self.state_version,
            state=self.state,
            calls=len(writes),
            replies=[each.record for each in writes if each.record is not None],
            acked=list(acks.items()),
            messages=self._messages(writes),
            timers=[timer for each in writes for timer in each.timers],
            owner=self.owner,
        )

    def _messages(self, writes: Sequence[Held]) -> list[Message]:
        """Numbered by version and place, so that this object's messages have ids that only grow."""
        sent = [message for each in writes for message in each.messages]
        if not sent:
            return []
        first = (self.version << 20) + 1
        return [
            Message(self._source + (first + i).to_bytes(8, "big"), target, ormsgpack.packb([method, payload]))
            for i, (target, method, payload) in enumerate(sent)
        ]

    def accepted(self) -> list[Held]:
        """What was under way is durable; it goes out."""
        held, self._in_flight = self._in_flight, []
        for each in held:
            self.version += each.writes
            if each.record is not None:
                record = each.record
                calls = self._known.get(record.client, {})
                call = each.invocation.call
                assert call is not None
                if record.number <= self._through.get(record.client, 0) and calls:
                    calls.pop(call, None)
                else:
                    calls[call] = (record.digest, DONE)
        return held

    @property
    def is_busy(self) -> bool:
        """Something is under way; what comes now goes with the next."""
        return bool(self._in_flight)

    @property
    def waits(self) -> bool:
        """Something waits for what is under way."""
        return bool(self._ahead)

    @property
    def rests(self) -> bool:
        """What is in memory is what the store has."""
        return not (self._ahead or self._in_flight or self.inside or self.poisoned)

    def failed(self) -> tuple[list[Held], list[Held]]:
        """What was under way is not, or nobody knows: that, and what came after it."""
        self.poisoned = True
        in_flight, self._in_flight = self._in_flight, []
        ahead, self._ahead = self._ahead, []
        self._known.clear()  # nobody is told any more, and calls that know it would wait for the collector
        return in_flight, ahead

    def forget(self, client: bytes) -> None:
        """The client's session has ended, and its records are gone."""
        if client in self._known and all(what is DONE for _, what in self._known[client].values()):
            del self._known[client]
            self._through.pop(client, None)
            self._acks.pop(client, None)
