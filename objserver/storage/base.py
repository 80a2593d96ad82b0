"""What a store is: rows of bytes under (type, key), each replaced only by who knows its version.

The rest of the server sees storage through these names and nothing of SQL.  The rule that every
engine keeps is compare-and-set: a change names the (epoch, version) it is based on and is accepted only
if the row still has them, so a late writer can never undo what another has already acknowledged.
Versions only grow.  Deleting therefore leaves a tombstone, a row whose state is None, and making the
object again is a change based on the tombstone's version.

What a call was answered is kept beside the state, in the same transaction: a client that lost the reply and
asks again gets the same one, and the call is not executed twice.  A record is kept until its client has
acknowledged it, also when the object is deleted meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from objserver import errors

__all__ = ["Change", "Record", "Reply", "Store", "Unstorable"]


class Record(NamedTuple):
    """What is stored of one object.  A state of None is a tombstone: deleted, its version kept."""

    epoch: int
    version: int
    codec: int
    state_version: int
    state: bytes | None


class Reply(NamedTuple):
    """How call `seq` of a client (16 bytes) to one object ended, so that a repetition can be answered.

    `digest` is of what was called with what: the same number with another content is no repetition.
    """

    client: bytes
    seq: int
    digest: bytes
    status: int
    result: bytes | None


class Change(NamedTuple):
    """The next state of one object.  `version` is what it is based on: 0 for an object never stored.

    It is the outcome of `calls` calls, by which the version grows; `replies` are theirs.  Each pair in
    `acked`, a client and a number, frees the stored records of that client's calls up to that number.
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


class Unstorable(errors.StoreError):
    """The store is well, but one of the changes is nothing that it can hold: too large, say,
    or the record of a call that has one already.

    The committer finds out which, so that the others are stored; callers see a plain StoreError.
    """


class Store(Protocol):
    """Any thread may call any method.  Every failure is an `objserver.errors.StoreError`."""

    url: str

    def load(self, type: str, key: str) -> Record | None:
        """The object's row, which may be a tombstone; None if it was never stored."""

    def commit(self, changes: Sequence[Change]) -> set[tuple[str, str]]:
        """Apply the changes in one transaction, durable on return; the (type, key) of those accepted.

        At most one change per object, since the answer could not tell two apart.  Of a change that is not
        accepted nothing is kept, neither state nor replies.  Unstorable, with nothing applied, if a change
        among them is to blame and not the store.  An error whose `in_doubt` is true says that nobody knows:
        all of them were applied, or none.
        """

    def replies(self, type: str, key: str) -> list[Reply]:
        """The object's records that no acknowledgement has freed, in order of client and number."""

    def keys(self, type: str, prefix: str = "", limit: int | None = None) -> list[str]:
        """The keys of the living objects of a type, in order."""

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        """The living objects of a type in order of key; commits may happen in between."""

    def close(self) -> None:
        """Let go of the store; closing twice is allowed."""
