"""Who this process is: the id under which servers know it as a client."""

from __future__ import annotations

import os
import uuid

__all__ = ["process_id"]

_id = uuid.uuid4().hex


def process_id() -> str:
    """The id; a forked child has one of its own."""
    return _id


def _begin_anew() -> None:
    global _id
    _id = uuid.uuid4().hex


os.register_at_fork(after_in_child=_begin_anew)
