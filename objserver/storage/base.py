"""What a store is: rows of bytes under (type, key), each replaced only by who knows its version.

The rest of the server sees storage through these names and nothing of SQL.  The rule that every
engine keeps is compare-and-set: a change names the (epoch, version) it is based on and is accepted only
if the row still has them, so a late writer can never undo what another has already acknowledged.
Versions only grow.  Deleting therefore leaves a tombstone, a row whose state is None, and making the
object again is a change based on the tombstone's version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from objserver import errors

__all__ = ["Change", "Record", "Store", "Unstorable"]


class Record(NamedTuple):
    """What is stored of one object.  A state of None is a tombstone: deleted, its version kept."""

    epoch: int
    version: int
    codec: int
    state_version: int
    state: bytes | None


class Change(NamedTuple):
    """The next state of one object.  `version` is what it is based on: 0 for an object never stored."""

    type: str
    key: str
    epoch: int
    version: int
    codec: int
    state_version: int
    state: bytes | None


class Unstorable(errors.StoreError):
    """The store is well, but one of the changes is nothing that it can hold: too large, say.

    The committer finds out which, so that the others are stored; callers see a plain StoreError.
    """


class Store(Protocol):
    """Any thread may call any method.  Every failure is an `objserver.errors.StoreError`."""

    url: str

    def load(self, type: str, key: str) -> Record | None:
        """The object's row, which may be a tombstone; None if it was never stored."""

    def commit(self, changes: Sequence[Change]) -> set[tuple[str, str]]:
        """Apply the changes in one transaction, durable on return; the (type, key) of those accepted.

        At most one change per object, since the answer could not tell two apart.  Unstorable, with nothing
        applied, if a change among them is to blame and not the store.
        """

    def keys(self, type: str, prefix: str = "", limit: int | None = None) -> list[str]:
        """The keys of the living objects of a type, in order."""

    def items(self, type: str) -> Iterator[tuple[str, Record]]:
        """The living objects of a type in order of key; commits may happen in between."""

    def close(self) -> None:
        """Let go of the store; closing twice is allowed."""
