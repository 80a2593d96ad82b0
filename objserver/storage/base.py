"""What a store is: rows of bytes under (type, key), each replaced only by who knows its version.

The rest of the server sees storage through these names and nothing of SQL.  The rule that every
engine keeps is compare-and-set: a change names the (epoch, version) it is based on and is accepted only
if the row still has them, so a late writer can never undo what another has already acknowledged.
Versions only grow.  Deleting therefore leaves a tombstone, a row whose state is None, and making the
object again is a change based on the tombstone's version.

What a call was answered is kept beside the state, in the same transaction: a client that lost the reply and
asks again gets the same one, and the call is not executed twice.  A record is kept until its client has
acknowledged it, also when the object is deleted meanwhile.  Clients have sessions, which end when nothing was
heard of them for their lease; with a session go all its records, and nothing is ever committed for a client
without a session.  So whoever comes back too late is refused, and not executed a second time.

What a call sets going, a message to another object or a timer, is in the same transaction too: it happens if
and only if the call did.

An object belongs to one owner at a time, a server in one of its lives.  Who acquires it raises its epoch, and
what the owner before still wanted to commit is then refused.  An engine that nobody else can have open at the
same time (an SQLite file) needs no epochs: its lock says that the owner before is gone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from objserver import errors

__all__ = [
    "Answered",
    "Change",
    "Due",
    "Message",
    "Record",
    "Reply",
    "Row",
    "Session",
    "Store",
    "Stored",
    "Superseded",
    "Timer",
    "Unstorable",
]


class Record(NamedTuple):
    """What is stored of one object.  A state of None is a tombstone: deleted, its version kept."""

    epoch: int
    version: int
    codec: int
    state_version: int
    state: bytes | None


class Reply(NamedTuple):
    """How one call to an object ended, so that a repetition can be answered.

    `client`, `number` and `path` are the call's id.  `acked` is the number through which its client had all
    answers when it made the call: a request of an older one that turns up late was answered long ago.
    `digest` is of what was called with what: the same id with another content is no repetition.
    """

    client: bytes
    number: int
    path: bytes
    acked: int
    digest: bytes
    status: int
    result: bytes | None


class Message(NamedTuple):
    """A call that one object makes of another, without waiting, if and only if its own call is stored.

    `id` is unique: the id of the call to be made.  `target` is the URI of the object to be called.
    """

    id: bytes
    target: str
    payload: bytes


class Timer(NamedTuple):
    """When to call a method of the object.  `due` is in seconds since 1970; None: no longer.

    A timer replaces that of the same name.
    """

    name: str
    due: float | None
    payload: bytes = b""


class Due(NamedTuple):
    """A timer whose time has come, and whose it is."""

    type: str
    key: str
    timer: Timer


class Stored(NamedTuple):
    """An object in a snapshot: its name, whose it was, and its record."""

    type: str
    key: str
    owner: str | None
    record: Record


class Answered(NamedTuple):
    """A reply in a snapshot, and which object gave it."""

    type: str
    key: str
    reply: Reply


class Session(NamedTuple):
    """A client that the store remembers until `expires_at`, in seconds since 1970."""

    client: bytes
    expires_at: float


Row = Stored | Answered | Due | Session | Message
"""What a snapshot is made of."""


class Change(NamedTuple):
    """The next state of one object.  `version` is what it is based on: 0 for an object never stored.

    It is the outcome of `calls` calls, by which the version grows; `replies` are theirs.  Each pair in
    `acked`, a client and a number, frees the stored records of that client's calls up to that number, and
    of what these calls caused; it comes with a record that says so in its own `acked`.  `owner` is written
    when the object is stored for the first time.
    """

    type: str
    key: str
    epoch: int
    version: int
    codec: int
    state_version: int
    state: bytes | None
    calls: int = 1
    replies: Sequence[Reply] = ()
    acked: Sequence[tuple[bytes, int]] = ()
    messages: Sequence[Message] = ()
    timers: Sequence[Timer] = ()
    owner: str = ""


class Superseded(errors.StoreError):
    """The object is no longer at the epoch and version that a change or a read was based on: another server
    has it now.  Nothing was stored."""


class Unstorable(errors.StoreError):
    """The store is well, but one of the changes is nothing that it can hold: too large, say,
    or the record of a call that has one already.

    The committer finds out which, so that the others are stored; callers see a plain StoreError.  `row` says
    which of those that `restore` was given it is, counted from 1.
    """

    row: int | None = None


class Store(Protocol):
    """Any thread may call any method.  Every failure is an `objserver.errors.StoreError`."""

    url: str
    id: str
    """Of the data, 32 hexadecimal digits: the same for everybody who opens it, and for no other."""
    alone: bool
    """Nobody else can have it open, so what was loaded can only be changed by who loaded it."""

    def load(self, type: str, key: str) -> Record | None:
        """The object's row, which may be a tombstone; None if it was never stored."""

    def acquire(self, names: Sequence[tuple[str, str]], owner: str) -> dict[tuple[str, str], Record]:
        """As `load`, of many, which from now on belong to `owner`: an owner before can commit no more.

        What was never stored belongs to who stores it first, and is missing from the answer.
        """

    def commit(self, changes: Sequence[Change]) -> set[tuple[str, str]]:
        """Apply the changes in one transaction, durable on return; the (type, key) of those accepted.

        At most one change per object, since the answer could not tell two apart.  Not accepted is a change
        whose object is no longer at its epoch and version, or that has a reply to a client without a session;
        of it nothing is kept.  Unstorable, with nothing applied, if a change among them is to blame and not
        the store.  An error whose `in_doubt` is true says that nobody knows: all of them were applied, or
        none.
        """

    def confirm(self, reads: Sequence[tuple[str, str, int, int]]) -> set[tuple[str, str]]:
        """Of (type, key, epoch, version) those that are still so now; (0, 0) is an object never stored."""

    def replies(self, type: str, key: str) -> list[Reply]:
        """The object's records that no acknowledgement has freed, in order of their ids."""

    def open_session(self, client: bytes, lease_s: float) -> None:
        """The client's session begins, or goes on: nothing is forgotten of it for `lease_s` seconds."""

    def renew_sessions(self, clients: Sequence[bytes], lease_s: float) -> set[bytes]:
        """Those of `clients` whose sessions go on from now for `lease_s`; the sessions of others have
        ended."""

    def expire_sessions(self) -> list[bytes]:
        """End the sessions whose leases are over, and forget their records; whose they were."""

    def messages(self, limit: int) -> list[Message]:
        """Messages that have not been delivered, oldest first."""

    def delivered(self, ids: Sequence[bytes]) -> None:
        """Forget these messages."""

    def due(self, now: float, types: Sequence[str], limit: int) -> list[Due]:
        """Timers of objects of these types whose time has come at `now`, earliest first."""

    def next_due(self, after: float, types: Sequence[str]) -> float | None:
        """When the earliest of these types' timers is due, of those that are due later than `after`."""

    def timers(self, type: str, key: str) -> list[Timer]:
        """The object's timers, in order of name."""

    def keys(
        self, type: str, prefix: str = "", limit: int | None = None, *, after: str | None = None
    ) -> list[str]:
        """The keys of the living objects of a type, in order; only those behind the key `after`."""

    def count(self, type: str) -> int:
        """How many living objects of a type there are."""

    def types(self) -> list[str]:
        """The types of which there is an object, living or deleted, in order."""

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        """The living objects of a type in order of key; commits may happen in between."""

    def snapshot(self, types: Sequence[str] | None = None) -> Generator[Row, None, None]:
        """All that is stored, as it was at one moment, while commits go on.

        Objects, the deleted ones too, then replies, timers, sessions and messages, each kind in its order.
        Of `types` alone: their objects, replies and timers, and all sessions.  What it holds it lets go when
        it ends or is closed.
        """

    def restore(self, id: str, rows: Iterable[Row], *, replace: bool = False) -> None:
        """Make this store the one a snapshot is of, its id included, in one transaction.

        If there are objects already, `replace` has to be true, else it is refused.  Those that the snapshot
        does not have are then deleted, and all of them get an epoch that was never used, so that a server
        which had one before commits nothing to it; versions only grow.  Nothing is changed if `rows` raises,
        or if one of them cannot be stored, which an Unstorable tells.
        """

    def close(self) -> None:
        """Let go of the store; closing twice is allowed."""
