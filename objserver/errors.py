"""Every error of objserver, and what a caller may conclude from each.

    ObjServerError
    ├── RegistrationError          a class, name or mix of policies that cannot be served (also ValueError)
    │   └── ListenFailed           an address that cannot be listened at (also OSError)
    ├── NamingError                a name that nobody knows, or a name server that nobody finds
    ├── ObjectError                the server answered: this call was refused before the servant saw it
    │   ├── ObjectNotFound         no such object here (also LookupError)
    │   ├── MemberNotFound         no such exposed member (also AttributeError)
    │   ├── ArgumentError          arguments that the member does not take (also TypeError)
    │   ├── NotAuthorized          the caller may not do this (also Pyro5's SecurityError)
    │   ├── ServerBusy             a bounded queue or a capacity is full; later may work
    │   │   └── QuotaExceeded      ... or the caller has had its share; `retry_after_s` tells when
    │   ├── DeadlineExceeded       its time was up before it began (also TimeoutError)
    │   ├── Deadlock               the call would wait for itself
    │   ├── NotExecuted            `outcome` was asked: the call has not happened, and never will
    │   ├── SessionExpired         its client was not heard of for too long
    │   └── ActivationError        no servant could be made, or its stored state could not be read
    ├── Cancelled                  its caller cancelled the call: what it did until then is done
    ├── StoreError                 the store failed; the object is as it was, unless `in_doubt`
    │   └── StateError             the servant's state cannot be stored as data (also TypeError)
    ├── CommunicationError         the network
    │   ├── ConnectFailed          no connection: the call was not sent (also ConnectionError)
    │   │   └── AuthenticationFailed   one end did not prove to the other who it is (also PermissionError)
    │   ├── ProtocolError          the peer broke the protocol
    │   │   ├── MessageTooLarge    a limit on size, count or depth
    │   │   └── SerializeError     a value that cannot be encoded or decoded
    │   └── OutcomeUnknown         the call was sent and no answer came: it may have happened
    │       ├── ConnectionLost     ... because the connection broke (also ConnectionError)
    │       └── CallTimeout        ... in the time allowed (also TimeoutError)
    ├── Unsettled                  between server and proxy only: repeat the call
    │   └── Moved                  ... at another server of the cluster
    └── RemoteError                the servant raised something whose class the caller does not have

Each subclasses the Pyro5 or builtin exception that a user would already catch, so that an `except`
clause written for Pyro5 goes on working.  Evidence is in attributes, never only in the sentence.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Any

from objserver import pyro5

__all__ = [
    "ActivationError",
    "ArgumentError",
    "AuthenticationFailed",
    "CallTimeout",
    "Cancelled",
    "CommunicationError",
    "ConnectFailed",
    "ConnectionLost",
    "DeadlineExceeded",
    "Deadlock",
    "ListenFailed",
    "MemberNotFound",
    "MessageTooLarge",
    "Moved",
    "NamingError",
    "NotAuthorized",
    "NotExecuted",
    "ObjServerError",
    "ObjectError",
    "ObjectNotFound",
    "OutcomeUnknown",
    "ProtocolError",
    "QuotaExceeded",
    "RegistrationError",
    "RemoteError",
    "SerializeError",
    "ServerBusy",
    "SessionExpired",
    "StateError",
    "StoreError",
    "Unsettled",
]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown `name`: the likeliest of the known ones, or nothing."""
    import difflib  # only who mistypes needs it

    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


class ObjServerError(pyro5.PyroError):
    """Base of all errors that objserver raises on its own account."""


class RegistrationError(ObjServerError, pyro5.DaemonError, ValueError):
    """What was registered cannot be served as asked; the sentence says why and what would be."""


class ListenFailed(RegistrationError, OSError):
    """The server cannot listen at its address.  `errno` says why, as for any OSError."""

    def __init__(self, sentence: str, errno: int | None = None) -> None:
        super().__init__(sentence)
        self.errno = errno


class NamingError(ObjServerError, pyro5.NamingError):
    """A logical name could not be turned into a reference."""


class ObjectError(ObjServerError, pyro5.DaemonError):
    """The server refused the call before any servant saw it; it had no effect."""


class ObjectNotFound(ObjectError, LookupError):
    """No object of that id is served at that address."""


class NotAuthorized(pyro5.SecurityError, ObjectError):
    """Who calls may not call this, or there is no object of that id: which of the two, it is not told.

    The server's audit log has the reason.  No PermissionError, which is an OSError: the network is in order.
    """


class MemberNotFound(AttributeError, ObjectError):
    """The object has no exposed member of that name."""


class ArgumentError(TypeError, ObjectError):
    """The member does not take such arguments: one has the wrong type, is missing, or is not known."""


class ServerBusy(ObjectError):
    """A bounded queue or a capacity is full.  Nothing happened; the same call may work later."""


class QuotaExceeded(ServerBusy):
    """The caller has had its share of the server.  Nothing happened.

    `quota` is the name of the setting that decides, or "token" where the caller's token does.  The same call
    may work in `retry_after_s` seconds; None: when the caller gives something back.
    """

    quota: str = ""
    retry_after_s: float | None = None


class DeadlineExceeded(ObjectError, pyro5.TimeoutError, builtins.TimeoutError):
    """The time of the call was up before it began: it had no effect."""


class Deadlock(ObjectError):
    """The call would have waited for itself: for its own call chain, or for one that waits for its.

    `cycle` are the calls in question as `object.method`: each waits for the next, and the last, which is this
    one, for the first.  Empty if it was a call to an iterative server by its own servant.
    """

    cycle: tuple[str, ...] = ()


class NotExecuted(ObjectError):
    """The call in question has not happened, and it never will: its number is used up."""


class SessionExpired(ObjectError):
    """The server has heard nothing of the client for so long that it has forgotten which calls it made.

    So a call that may be a repetition is refused.  A proxy makes one that certainly is none under a new name.
    """


class ActivationError(ObjectError):
    """No servant could be made for the object."""


class Cancelled(ObjServerError):
    """The call was cancelled by its caller; it may have had a part of its effect.

    "before it began" in the sentence says that it had none.  A call that ran beyond its deadline is a
    CallTimeout.
    """


class StoreError(ObjServerError):
    """The store could not read or keep an object's state.

    `in_doubt`: its answer to a commit did not come, so the change may be stored all the same.  `away`: it was
    not reached, so nothing was done; another time, or from another server, it may be.
    """

    in_doubt: bool = False
    away: bool = False


class StateError(StoreError, TypeError):
    """The state of a servant is not plain data, so it cannot be stored."""


class CommunicationError(ObjServerError, pyro5.CommunicationError):
    """Something between the two processes went wrong.  `deliberate`: this side closed the connection."""

    deliberate: bool = False


class ConnectFailed(CommunicationError, ConnectionError):
    """No usable connection could be made, so the call was certainly not executed.

    `refused`: it is not that nobody answers; one of the two did not want the other, or could not speak to it.
    `after_s`: it took so long to find out, of the call's time.
    """

    refused: bool = False
    after_s: float = 0.0


class AuthenticationFailed(ConnectFailed, PermissionError):
    """The server does not know who the client is, or the client does not believe that it is the server.

    The call was not sent, and is not sent again: the next attempt would end the same.
    """

    refused = True


class ProtocolError(CommunicationError, pyro5.ProtocolError):
    """The peer sent something that is not the protocol, or is not allowed at this point of it."""


class MessageTooLarge(ProtocolError, pyro5.MessageTooLargeError):
    """A message exceeds a limit.  `limit` is the name of the setting that decides."""

    limit: str = ""


class SerializeError(ProtocolError, pyro5.SerializeError):
    """A value could not be encoded or decoded.  The connection stays usable."""


class OutcomeUnknown(CommunicationError):
    """The request was sent but no reply came: it may or may not have been executed.

    `call` names it, if the object is one that remembers its calls: see `Proxy.outcome`.
    """

    call: Any = None


class ConnectionLost(OutcomeUnknown, pyro5.ConnectionClosedError, ConnectionError):
    """The connection broke after the request was sent."""


class CallTimeout(OutcomeUnknown, pyro5.TimeoutError, builtins.TimeoutError):
    """No reply came in the time allowed."""


class Unsettled(ObjServerError):
    """The call has no outcome yet: what it did was given up before it was stored, or nobody knows.

    A proxy of ours repeats it with the same number and never shows this error.
    """


class Moved(Unsettled):
    """Another server of the cluster has the object; nothing was done here.

    `address` is that server's.  A proxy of ours makes the call there, and goes there from then on.
    """

    address: str = ""


class RemoteError(ObjServerError):
    """The servant raised an exception whose class does not exist here.

    `type_name` is the dotted name of that class, `remote_args` its arguments, `attributes` the rest of
    what it carried.
    """

    def __init__(
        self,
        message: str = "",
        *,
        type_name: str = "",
        remote_args: tuple[object, ...] = (),
        attributes: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_args = remote_args
        self.attributes = attributes or {}
