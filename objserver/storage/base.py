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

Servers that form a cluster are its nodes, and the store has a row for each: its name, and the life that it is
in.  A life begins when the node joins, and is live as long as its lease has not run out, by the clock of the
store; a life that is over, by `leave` or because the name has joined anew, never returns.  What a live life
owns nobody else can acquire; what another has owned is free, without a row being touched.  That says when an
object may be taken over, and no more: what fences is the epoch.

    join -> up -> draining -> leave: dead      lease over: not live, until it is renewed
             ^------'                          name joins with another life: gone
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from objserver import errors

__all__ = [
    "Answered",
    "Change",
    "Due",
    "Elsewhere",
    "Message",
    "Node",
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

FORGOTTEN_S = 24 * 3600.0
"""For so long a node that is dead, or that nobody hears of, is still shown."""
LOOKED_AHEAD = 100
"""Timers of any owner among which the next of one owner is looked for; beyond, it may ask again."""


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


class Node(NamedTuple):
    """A node of the cluster, in the life that it began last.

    `address` is where it takes calls.  `state` is "up", "draining" (it keeps what it owns, and acquires no
    more) or "dead".  `left_s` are the seconds until its lease is over, when the store was asked: 0 or less if
    it is over, or the life is.  `facts` is what the node says of itself; the store only keeps it.
    """

    name: str
    life: str
    address: str
    state: str
    left_s: float
    facts: bytes


class Elsewhere(NamedTuple):
    """In place of the record of an object that another life owns, which is live: which, and where."""

    life: str
    address: str


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
    when the object is stored for the first time; and the messages are its, to deliver.
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
    changed: Callable[[str], None] | None
    """Is called, if set, when behind the URL there is suddenly another history: a standby that took over, a
    backup that was restored; with a sentence.  All that was loaded before may never have been.  Commits and
    reads that were based on it are refused at first; whoever is told has to drop the rest.  It is called
    within an operation, and must not use the store."""

    def load(self, type: str, key: str) -> Record | None:
        """The object's row, which may be a tombstone; None if it was never stored."""

    def acquire(
        self, names: Sequence[tuple[str, str]], owner: str, member: bool = False
    ) -> dict[tuple[str, str], Record | Elsewhere]:
        """As `load`, of many, which from now on belong to `owner`: an owner before can commit no more.

        But what another live life owns stays there, and the answer says where.  With `member` the owner is
        the life of a node.  Then what is free is acquired only if that is live and up, and is missing from
        the answer if not.  And then what was never stored is reserved, so that no other node makes it too:
        its record is of epoch 1 and version 0, without a state.  Without `member` it belongs to who stores
        it first, and is missing from the answer.
        """

    def release(
        self, objects: Sequence[tuple[str, str, int]], owner: str, to: str | None
    ) -> set[tuple[str, str]]:
        """Of (type, key, epoch) those that `owner` has at that epoch now belong to `to`, or to nobody.

        The epoch grows by 1, so `owner` can commit no more.  Messages that the object has sent go with it.
        To do it again changes nothing and has the same answer.
        """

    def owners(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Elsewhere]:
        """Whose they are, and where that is, of those that a live life owns.  Nothing is acquired."""

    def owned(self, life: str, limit: int, after: tuple[str, str] | None = None) -> list[tuple[str, str]]:
        """The living objects that a life owns, in order; only those behind `after`."""

    def tally(self) -> dict[str, int]:
        """By live life, how many living objects it owns."""

    def join(self, name: str, life: str, address: str, lease_s: float, facts: bytes) -> None:
        """A node of this name is up, in a life that is live for `lease_s`.  The life that it had before is
        over."""

    def renew(self, life: str, lease_s: float, facts: bytes, state: str = "up") -> list[Node] | None:
        """The life goes on from now for `lease_s`; all nodes, in order of name.

        None if it is over for ever.  One whose lease has run out goes on, if nothing else has happened: what
        others have acquired meanwhile they keep.
        """

    def leave(self, life: str) -> None:
        """The life is over: what it owns is free at once."""

    def nodes(self) -> list[Node]:
        """All nodes, in order of name; the dead are forgotten after a day."""

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

    def messages(self, limit: int, owner: str | None = None, member: bool = False) -> list[Message]:
        """Messages that have not been delivered, oldest first.

        With `owner` only its own; those of lives that are not live become its own before.  A message is whose
        the object is that sent it.  With `member` the owner is the life of a node, and has none, and gets
        none, while it is not live; and it acquires the objects of those that become its own.
        """

    def delivered(self, ids: Sequence[bytes]) -> None:
        """Forget these messages."""

    def first_messages(self, prefixes: Sequence[bytes]) -> list[bytes]:
        """For each prefix the least id of a message, whoever's, that begins so; those that there are."""

    def due(self, now: float, types: Sequence[str], limit: int, owner: str | None = None) -> list[Due]:
        """Timers of objects of these types whose time has come at `now`, earliest first.

        With `owner` none of those that another live life owns.
        """

    def next_due(self, after: float, types: Sequence[str], owner: str | None = None) -> float | None:
        """When the earliest of these types' timers is due, of those that are due later than `after`.

        With `owner` as above; then it may be a time before that, when to ask again.
        """

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
