"""Group commit: one thread that makes many changes durable with one fsync.

While a commit waits for the disk, changes pile up; they become the next transaction.  Under load the
cost of the fsync is shared by all of them, without load nobody waits for company.  Changes wait in line
per object and a batch takes one from each line, so a hot object delays nobody and its changes keep their
order, each seeing the outcome of the one before.

A change that the store cannot hold fails alone: the batch it was in is halved until the change is found,
which takes a few transactions more and no other object's change with it.  When the store itself fails, all
that were in the batch fail with it.
"""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Callable
from typing import Any

from objserver import errors
from objserver.logs import escaping
from objserver.machine import machine
from objserver.storage.base import Change, Store, Superseded, Unstorable

__all__ = ["Committer"]

Done = Callable[[BaseException | None], None]

BATCH_MAX = 256
"""Changes in one transaction.  Shared by so many, an fsync is no longer what a change costs; a larger
transaction would only hold up the loads, which wait for it."""
QUEUE_MAX = 10_000
"""Changes that wait.  It is about what a good disk makes durable in a second: beyond it a caller is better
off with ServerBusy than with more waiting, and each holds a state in memory."""

_log = escaping(logging.getLogger("objserver.storage"))


class Committer:
    """Commits what is submitted.  `batch_max` bounds a transaction, `queue_max` what may wait for one."""

    def __init__(self, store: Store, *, batch_max: int = BATCH_MAX, queue_max: int = QUEUE_MAX) -> None:
        self._store = store
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._machine = machine.get()
        self._wake = self._machine.Condition()
        self._reads: list[tuple[tuple[str, str, int, int], Done]] = []
        self._lines: dict[tuple[str, str], collections.deque[tuple[Change, Done]]] = {}
        self._queued = self._commits = self._changes = self._largest_batch = 0
        self._closing = False
        self._thread: Any = None

    def submit(self, change: Change, done: Done) -> None:
        """Have the change committed; then the committer's thread calls `done` with None or the error."""
        with self._wake:
            if self._closing:
                raise errors.StoreError("the store is closing and takes no more changes")
            if self._queued >= self._queue_max:
                raise errors.ServerBusy(f"{self._queued} changes wait for the store (queue_max)")
            self._lines.setdefault((change.type, change.key), collections.deque()).append((change, done))
            self._queued += 1
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = self._machine.start(self._run, "objserver-committer")
        self._wake.notify()

    def confirm(self, read: tuple[str, str, int, int], done: Done) -> None:
        """Have (type, key, epoch, version) confirmed after the commits that are under way; then `done` as
        above."""
        with self._wake:
            if self._closing:
                raise errors.StoreError("the store is closing and confirms no more reads")
            if len(self._reads) >= self._queue_max:
                raise errors.ServerBusy(f"{len(self._reads)} reads wait for the store (queue_max)")
            self._reads.append((read, done))
            self._start()

    def close(self) -> None:
        """Finish what is queued, then stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None and self._thread is not self._machine.current_thread():
            self._thread.join()

    @property
    def has_more(self) -> bool:
        """Whether something waits for the next commit."""
        return bool(self._lines or self._reads)

    def statistics(self) -> dict[str, int]:
        with self._wake:
            return {
                "commits": self._commits,
                "changes": self._changes,
                "largest_batch": self._largest_batch,
                "queued": self._queued,
                "batch_max": self._batch_max,
                "queue_max": self._queue_max,
            }

    def _run(self) -> None:
        while True:
            batch, reads = self._take()
            if batch:
                self._commit(batch)
            if reads:
                self._confirm(reads)
            if not batch and not reads:
                return

    def _take(self) -> tuple[list[tuple[Change, Done]], list[tuple[tuple[str, str, int, int], Done]]]:
        """The next batch, one change per object, and the reads; both empty when all is done."""
        with self._wake:
            self._wake.wait_for(lambda: self._lines or self._reads or self._closing)
            reads, self._reads = self._reads, []
            batch = []
            for name in list(itertools.islice(self._lines, self._batch_max)):
                line = self._lines.pop(name)
                batch.append(line.popleft())
                if line:
                    self._lines[name] = line  # to the end: the others first
            self._queued -= len(batch)
            return batch, reads

    def _commit(self, batch: list[tuple[Change, Done]]) -> None:
        accepted: set[tuple[str, str]] = set()
        failure: Exception | None = None
        try:
            accepted = self._store.commit([change for change, _ in batch])
        except Unstorable as error:
            if len(batch) > 1:
                half = len(batch) // 2
                self._commit(batch[:half])
                self._commit(batch[half:])
                return
            failure = error
        except Exception as error:
            failure = error
        with self._wake:
            self._commits += failure is None
            self._changes += len(accepted)
            self._largest_batch = max(self._largest_batch, len(batch))
        for change, done in batch:
            # An error of its own for each: they are raised in different threads and collect tracebacks.
            outcome: errors.StoreError | None = None
            if failure is not None:
                # An error that is not the store's own tells nothing about the transaction.
                in_doubt = getattr(failure, "in_doubt", True)
                what = "may or may not have been stored" if in_doubt else "was not stored"
                outcome = errors.StoreError(f"{change.type} {change.key!r} {what}: {failure}")
                outcome.__cause__ = failure
                outcome.in_doubt, outcome.away = in_doubt, getattr(failure, "away", False)
            elif (change.type, change.key) not in accepted:
                outcome = Superseded(
                    f"{change.type} {change.key!r} was not stored: it is no longer at epoch {change.epoch}, "
                    f"version {change.version}, or a client of it has no session any more"
                )
            self._tell(done, outcome, change.type, change.key)
        # Or it and this frame, which its traceback names, would keep the calls until the collector comes.
        failure = outcome = None

    def _confirm(self, reads: list[tuple[tuple[str, str, int, int], Done]]) -> None:
        confirmed: set[tuple[str, str]] = set()
        failure: Exception | None = None
        try:
            confirmed = self._store.confirm([read for read, _ in reads])
        except Exception as error:
            failure = error
        for (type, key, epoch, version), done in reads:
            outcome: errors.StoreError | None = None
            if failure is not None:
                outcome = errors.StoreError(f"{type} {key!r} could not be confirmed: {failure}")
                outcome.__cause__ = failure
                outcome.away = getattr(failure, "away", False)
            elif (type, key) not in confirmed:
                outcome = Superseded(
                    f"{type} {key!r} was read at epoch {epoch}, version {version}, where it is no longer"
                )
            self._tell(done, outcome, type, key)
        failure = outcome = None  # as above

    @staticmethod
    def _tell(done: Done, outcome: BaseException | None, type: str, key: str) -> None:
        try:
            done(outcome)
        except BaseException:  # whatever it is, the others still need this thread
            _log.exception("a callback of the committer failed for %s %r", type, key)
