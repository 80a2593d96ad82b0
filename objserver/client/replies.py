"""What replies that carry errors mean to who called."""

from __future__ import annotations

from typing import Any

from objserver import errors, pyro5

__all__ = ["ends_connection", "raised"]


def ends_connection(value: Any, native: bool) -> bool:
    """Whether the server closes the connection, or may, once it has sent this error.

    A stock one does so after whatever it counts as a failure to communicate, an argument of an unknown class
    included.  A call sent there after it would get no answer.
    """
    if native:
        return isinstance(value, pyro5.MessageTooLargeError)
    return isinstance(value, (pyro5.CommunicationError, pyro5.SecurityError))


def raised(value: Any) -> BaseException:
    """What to raise for the value of a reply that is an exception."""
    return value if isinstance(value, BaseException) else errors.RemoteError(str(value))
