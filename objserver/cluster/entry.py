"""How clients come into the cluster: by every node, or by a single address.

    distributed    clients know all nodes, go to whichever has their object, and need no particular one
    single         clients know one address, and whoever it leads to calls for them what is elsewhere

It is a setting of the whole cluster, kept in its store as one object more, which every node looks at when it
renews its lease.  It may be changed at any time: a proxy that was made before goes on as it did, and is told
the other way in when it asks for it, every few seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import ormsgpack

from objserver import errors
from objserver.references import Location
from objserver.storage import Change, Store

__all__ = ["Entry"]

_NAME = "objserver.cluster", "entry"


class Entry(NamedTuple):
    """`single` is the address that clients know; empty where they know all nodes."""

    single: str = ""

    @classmethod
    def of(cls, store: Store) -> Entry:
        """What is set; distributed, if nothing ever was."""
        record = store.load(*_NAME)
        if record is None or record.state is None:
            return cls()
        return cls(ormsgpack.unpackb(record.state))

    def set(self, store: Store) -> None:
        """Have all nodes see it at their next renewal.  ValueError if it is no address."""
        if self.single:
            Location.parse(self.single)
        while True:
            record = store.load(*_NAME)
            epoch, version = (record.epoch, record.version) if record is not None else (0, 0)
            change = Change(*_NAME, epoch, version, 0, 1, ormsgpack.packb(self.single))
            try:
                if store.commit([change]):
                    return
            except errors.StoreError as problem:
                if not problem.in_doubt:
                    raise
            # Somebody else has changed it meanwhile, or nobody knows: the last word counts.
