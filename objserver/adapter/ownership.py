"""Whose a Persistent object is: which server may incarnate it.

Alone on its store, a server takes what it is asked for.  In a cluster the object may be another server's;
then nothing is done here, and the caller is told where it is (`errors.Moved`).
"""

from __future__ import annotations

from typing import Protocol

from objserver import errors
from objserver.storage import Elsewhere, Record, Store

__all__ = ["Alone", "Ownership"]


class Ownership(Protocol):
    """What decides it.  Any thread may call any method."""

    owner: str
    """Under what name this server owns objects: it lives once."""
    member: bool
    """It is the life of a node of a cluster."""

    @property
    def sends_on(self) -> bool:
        """Whether callers that can are told where an object is; else it is called for them."""

    @property
    def trusted(self) -> bool:
        """Whether what this server has is certainly not another's yet."""

    def look(self, type: str, key: str) -> None:
        """Before a call is given to an object that is not active here; Moved, if it is known to be elsewhere.

        Asks nobody.
        """

    def acquire(self, type: str, key: str, sent: bool) -> tuple[str, Record | None]:
        """From now on the object is this server's: as which owner, and what the store has of it, if anything.

        Moved, if it is another's, or is better placed there.  `sent`: the caller was told that it is here.
        """

    def pass_on(self, type: str, key: str, owner: str, record: Record) -> None:
        """What `owner` acquired has a state of a newer layout than the class here knows.

        Moved, to a server whose class knows it.  Returns if there is none.
        """

    def instead(self, problem: errors.StoreError) -> BaseException:
        """What to tell a caller whose call was not made because this server does not reach the store."""


class Alone:
    """Of a server that shares its objects with nobody."""

    member = False
    sends_on = True
    trusted = True
    """As far as it knows: see `Persistent.fast_reads`."""

    def __init__(self, store: Store | None, owner: str) -> None:
        self._store = store
        self.owner = owner

    def look(self, type: str, key: str) -> None:
        """It is here."""

    def instead(self, problem: errors.StoreError) -> BaseException:
        """That."""
        return problem

    def acquire(self, type: str, key: str, sent: bool) -> tuple[str, Record | None]:
        """See Ownership.  StoreError if a cluster has the object."""
        assert self._store is not None
        name = type, key
        found = self._store.acquire([name], self.owner).get(name)
        if isinstance(found, Elsewhere):
            raise errors.StoreError(
                f"{type} {key!r} is held by a server of a cluster, at {found.address}; join it with "
                "cluster=..., or use another store"
            )
        return self.owner, found

    def pass_on(self, type: str, key: str, owner: str, record: Record) -> None:
        """There is nobody."""
