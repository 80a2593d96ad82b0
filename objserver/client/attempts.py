"""The retry rule: what of a failed call may be made again, and when.

Made again is what cannot happen twice where once was meant:

    not begun      it was not sent, or the server refused it, or stopped in good order before its turn
    repeatable     members marked @readonly or @idempotent
    numbered       calls of objects that remember them: the server knows a repetition by its id

Everything else has an outcome that nobody knows, and its caller is told so.  A server that is restarted is
waited for, with pauses that grow and are at random within it, so that its clients do not all come at once.

The rule decides, and does nothing: who makes the calls, and waits, asks it after each failure.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from objserver import errors
from objserver.client.books import Book, close
from objserver.invocation import CallId
from objserver.logs import escaping

__all__ = ["LEFT_MIN_S", "Attempts"]

log = escaping(logging.getLogger("objserver.client"))

PAUSE_S, PAUSE_MAX_S = 0.01, 1.0
"""Before a call is made again; twice as long each time."""
LEFT_MIN_S = 0.001
"""With less time than that no answer comes."""
MOVES_MAX = 3
"""So often a call follows its object at once.  One that is sent on and on waits as for a server that is not
there: the one that has the object may have died, and is believed to have it until its lease ends."""
WARN_AFTER_S = 10.0
"""A call without a deadline that has waited so long says so in the log, and again after twice the time."""


_TIME_IS_UP = (errors.CallTimeout, errors.DeadlineExceeded, errors.Cancelled)


class Attempts:
    """The state of one call that is being made, perhaps more than once.

    `timeout_s` counts from `now`, seconds of a clock that only grows.  `uniform(a, b)` is the randomness.
    """

    __slots__ = (
        "_deadline",
        "_failures",
        "_in_doubt",
        "_moves",
        "_problem",
        "_uniform",
        "_unknown",
        "_warn_at",
        "_warn_s",
        "acked_of_others",
        "answered",
        "asks",
        "book",
        "id",
        "moved",
        "patient",
        "payload",
        "refused",
        "remembered",
        "repeatable",
        "session_opened",
        "what",
    )

    def __init__(
        self, what: str, timeout_s: float | None, now: float, uniform: Callable[[float, float], float]
    ) -> None:
        self.what = what
        self._deadline = math.inf if timeout_s is None else now + timeout_s
        self._uniform = uniform
        self._failures = self._moves = 0
        self._problem: BaseException | None = None
        """Of the last attempt."""
        self._in_doubt = False
        """It may have been executed."""
        self._unknown = False
        """The caller was told that nobody knows its outcome."""
        self._warn_s = WARN_AFTER_S
        self._warn_at = now + WARN_AFTER_S
        self.repeatable = False
        self.patient = timeout_s is not None
        """It is worth waiting.  Without a deadline only a numbered call waits: another is made once more."""
        self.id: CallId | None = None
        self.remembered = True
        """The object knows a repetition by the id; others only pass it on to those that they call."""
        self.book: Book | None = None
        """To which the number belongs; a call within a numbered one has an id of that one's."""
        self.asks = False
        """It only wants to know what became of the call with this id."""
        self.answered = self.refused = False
        """The last attempt was answered; and that was a refusal, from before any servant."""
        self.moved = False
        """The server at which it is made next has the object, says another one."""
        self.session_opened = False
        """... for a call within a numbered one, whose client this store did not know."""
        self.payload: bytes | None = None
        """The call, if it is encoded already."""
        self.acked_of_others = 0
        """... and what its sender has the answers of."""

    def numbered(self, call: CallId, book: Book | None) -> None:
        """From now on it has this id."""
        self.id, self.book, self.patient = call, book, True

    def left(self, now: float) -> float | None:
        """Seconds until its deadline, None if it has none; raises what to tell if it has passed."""
        if self._deadline == math.inf:
            return None
        left = self._deadline - now
        if left < LEFT_MIN_S:
            late = errors.DeadlineExceeded(f"{self.what}: its time was up before it could be sent")
            raise self._told(self._problem or late)
        return left

    @property
    def acked(self) -> int:
        """All answers of its client up to this number have come."""
        return self.book.acked if self.book is not None else self.acked_of_others

    def may_open_session(self) -> bool:
        """Whether the server can be told, once, of the client of a call within a numbered one."""
        if self.asks:
            return False  # whose session has ended is forgotten, not unheard of
        first, self.session_opened = not self.session_opened, True
        # Who asks for an outcome had a session: in a new one, what happened before would seem not to have.
        return first and self.id is not None and self.book is None and not self._in_doubt and not self.asks

    def lost(self, why: str) -> errors.OutcomeUnknown:
        """The error for a call of which nobody knows any more."""
        unknown = errors.OutcomeUnknown(f"{self.what}: {why}")
        return self._named(unknown)

    def _named(self, unknown: errors.OutcomeUnknown) -> errors.OutcomeUnknown:
        """... with what to ask for."""
        unknown.call = self.id if self.remembered else None
        self._unknown = True
        return unknown

    def over(self) -> None:
        """It will not be made again."""
        if self.book is None or self.id is None:
            return
        if self._unknown:
            self.book.unknown(self.id)
        else:
            self.book.end(self.id)

    def pause(self, problem: BaseException, now: float) -> float:
        """After an attempt has failed: the seconds to wait before the next; or raises what to tell."""
        self._problem = problem
        self.moved = isinstance(problem, errors.Moved)
        # That a repetition was not stored says nothing of the attempt before.
        lost = self._in_doubt and self.id is None and isinstance(problem, errors.StoreError)
        if self.answered and not (self.refused or lost or isinstance(problem, errors.Unsettled)):
            raise problem  # of the servant's own
        deliberate = isinstance(problem, errors.CommunicationError) and problem.deliberate
        if deliberate or isinstance(problem, _TIME_IS_UP) or not self._may_repeat(problem):
            raise self._told(problem)
        if isinstance(problem, errors.SessionExpired):
            return 0.0
        if self.moved and self._moves < MOVES_MAX:
            self._moves += 1
            return 0.0
        pause_s = self._uniform(0, min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(self._failures, 16)))
        pause_s = pause_s if self._failures else 0.0
        self._failures += 1
        left = self._deadline - now
        if left < LEFT_MIN_S or (not self.patient and self._failures > 1):
            raise self._told(problem)
        if now >= self._warn_at:
            log.warning("%s has waited %.0f s for its server: %s", self.what, self._warn_s, problem)
            self._warn_at, self._warn_s = now + self._warn_s, 2 * self._warn_s
        return min(pause_s, left / 2)

    def _may_repeat(self, problem: BaseException) -> bool:
        if isinstance(problem, errors.SessionExpired):
            return self._renumbered()
        if isinstance(problem, errors.Moved):
            self.patient = True  # nothing was done, and the cluster knows where it can be
            return True
        if isinstance(problem, (errors.OutcomeUnknown, errors.Unsettled)):
            self._in_doubt = True
            self.patient = self.patient or isinstance(problem, errors.Unsettled)  # it did answer
            return self.repeatable or (self.id is not None and self.remembered)
        if isinstance(problem, errors.ConnectFailed) and not self.answered:
            return not isinstance(problem, errors.AuthenticationFailed)  # it would be refused again
        # A refusal says nothing of the attempt before.
        passes = isinstance(problem, (errors.StoreError, errors.ServerBusy))
        numbered = self.id is not None and self.remembered
        return self._in_doubt and (numbered or (self.repeatable and passes))

    def _renumbered(self) -> bool:
        """The server has forgotten the client.  What certainly did not happen is made under a new id."""
        if self._in_doubt or self.book is None or self.id is None:
            return False
        close(self.book)
        self.over()
        self.id = self.book = None
        return True

    def _told(self, problem: BaseException) -> BaseException:
        """What the caller gets to know."""
        if isinstance(problem, errors.Moved):
            problem = errors.ServerBusy(
                f"{self.what}: no server of the cluster had the object in time; the last said: {problem}"
            )
        elif isinstance(problem, errors.Unsettled):
            self._in_doubt = True
        if isinstance(problem, errors.OutcomeUnknown):
            return self._named(problem)
        if not self._in_doubt:
            return problem
        unknown = self.lost(f"its outcome was not to be had in time: {problem}")
        unknown.__cause__ = problem
        return unknown
