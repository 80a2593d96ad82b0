"""Who this process is: the id under which servers know it as a client."""

from __future__ import annotations

import uuid

from objserver.machine import machine

__all__ = ["process_id"]


class _Identity:
    def __init__(self) -> None:
        self.id = uuid.uuid4().hex


def process_id() -> str:
    """The id; a forked child has one of its own."""
    return machine.get().own(_Identity).id
