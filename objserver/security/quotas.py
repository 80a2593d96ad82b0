"""Quotas: what share of a server each principal may have.

A bucket is one number, the time at which it is full again; whoever takes from it moves that time on.  So a
bucket costs no timer, and time is an argument.  It may be overdrawn once: a request that is larger than the
whole bucket passes when that is full, and the next one waits the longer.

Principals are told apart by name, whatever connections and proofs they come with.  Holders of one key, who
call themselves as they like, are one: each name of a key would else be a share of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, OrderedDict
from typing import Any

from objserver import errors
from objserver.security.principal import Principal
from objserver.settings import ServerSettings

__all__ = ["Bucket", "Quotas", "Share"]

PRINCIPALS_MAX = 10_000
"""Whose shares are remembered, and buckets of tokens: some 300 bytes each.  The longest unused is forgotten,
and by then its bucket is as a rule full again."""
SHOWN_MAX = 100
"""Principals in `statistics()`, those that called last."""


class Bucket:
    """Lets `rate` per second pass, and after a pause what has gathered in `burst_s` seconds."""

    __slots__ = ("_full_at", "burst_s", "rate")

    def __init__(self, rate: float, burst_s: float) -> None:
        self.rate = rate
        self.burst_s = burst_s
        self._full_at = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until something can be taken; 0 is now."""
        return max(0.0, self._full_at - now - self.burst_s)

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take it, whether it is there or not."""
        self._full_at = max(self._full_at, now) + amount / self.rate


class Share:
    """What one principal has had, and its buckets."""

    __slots__ = ("activations", "bytes", "calls", "connections", "refused", "taken")

    def __init__(self, settings: ServerSettings) -> None:
        def bucket(rate: float) -> Bucket | None:
            return Bucket(rate, settings.quota_burst_s) if rate > 0 else None

        self.calls = bucket(settings.calls_per_principal_s)
        self.bytes = bucket(settings.bytes_per_principal_s)
        self.activations = bucket(settings.activations_per_principal_s)
        self.connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self.taken = 0
        """Calls that were counted."""
        self.refused = 0

    @property
    def connected(self) -> int:
        """Open connections."""
        return sum(not connection.closed for connection in self.connections)

    @property
    def names(self) -> dict[str, int]:
        """Open connections by the name that their principal goes by."""
        open_ones = [connection for connection in self.connections if not connection.closed]
        return dict(Counter(str(connection.principal_name) for connection in open_ones))


class Quotas:
    """The shares of all principals of a server.  Every method may be called from any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._shares: OrderedDict[str, Share] = OrderedDict()
        self._of_tokens: OrderedDict[str, Bucket] = OrderedDict()
        self.refused = 0

    def counts_calls(self, principal: Principal) -> bool:
        """Whether anything has to be counted when it calls."""
        settings, restrictions = self._settings, principal.restrictions
        limited = settings.calls_per_principal_s > 0 or settings.bytes_per_principal_s > 0
        return limited or (restrictions is not None and bool(restrictions.rates))

    def call(self, principal: Principal, now: float, size: int = 0, calls: int = 1) -> None:
        """`principal` makes so many calls, with so many bytes; QuotaExceeded if it has had its share."""
        restrictions = principal.restrictions
        with self._lock:
            share = self._share(principal.family)
            due: list[tuple[Bucket, float, str]] = []
            if share.calls is not None:
                due.append((share.calls, calls, "calls_per_principal_s"))
            if share.bytes is not None and size:
                due.append((share.bytes, size, "bytes_per_principal_s"))
            if restrictions is not None:
                for id, rate in restrictions.rates:
                    due.append((self._of_token(id, rate), calls, "token"))
            for bucket, _, quota in due:  # nothing is taken of one where another refuses
                if bucket.wait_s(now) > 0:
                    raise self._exceeded(principal, share, quota, bucket.rate, bucket.wait_s(now))
            for bucket, amount, _ in due:
                bucket.take(now, amount)
            share.taken += calls

    def call_plainly(self, principal: Principal, now: float) -> bool:
        """As `call`, of one small call, if nothing but the calls of its principal has to be counted.

        What nearly always is, without a function for each step, and without a `with`, which takes twice
        as long as the two calls that it makes.  False: nothing was done.
        """
        if principal.restrictions is not None:
            return False
        self._acquire()
        try:
            family = principal.key or principal.name  # as it says, without a call
            share = self._shares.get(family)
            if share is None or share.calls is None:
                return False
            bucket = share.calls
            full_at = bucket._full_at
            if full_at < now:
                full_at = now
            elif full_at - now > bucket.burst_s:
                return False
            bucket._full_at = full_at + 1.0 / bucket.rate
            share.taken += 1
            self._shares.move_to_end(family)
            return True
        finally:
            self._release()

    def activate(self, principal: Principal, now: float) -> None:
        """A call of `principal` makes a Persistent object active; QuotaExceeded if it has had its share."""
        with self._lock:
            share = self._share(principal.family)
            bucket = share.activations
            if bucket is None:
                return
            if bucket.wait_s(now) > 0:
                quota = "activations_per_principal_s"
                raise self._exceeded(principal, share, quota, bucket.rate, bucket.wait_s(now))
            bucket.take(now)

    def connect(self, principal: Principal, connection: Any) -> None:
        """`principal` opens one more; QuotaExceeded if it has all it may have.  Closing is seen by itself."""
        most = self._settings.connections_per_principal_max
        with self._lock:
            share = self._share(principal.family)
            if connection not in share.connections and share.connected >= most:
                raise self._exceeded(principal, share, "connections_per_principal_max", most, None)
            share.connections.add(connection)

    def _share(self, name: str) -> Share:
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = Share(self._settings)
            if len(self._shares) > PRINCIPALS_MAX:
                self._shares.popitem(last=False)
        self._shares.move_to_end(name)
        return share

    def _of_token(self, id: str, rate: float) -> Bucket:
        bucket = self._of_tokens.get(id)
        if bucket is None:
            bucket = self._of_tokens[id] = Bucket(rate, self._settings.quota_burst_s)
            if len(self._of_tokens) > PRINCIPALS_MAX:
                self._of_tokens.popitem(last=False)
        self._of_tokens.move_to_end(id)
        return bucket

    def _exceeded(
        self, principal: Principal, share: Share, quota: str, most: float, wait_s: float | None
    ) -> errors.QuotaExceeded:
        share.refused += 1
        self.refused += 1
        when = "close one first" if wait_s is None else f"try again in {wait_s:.3f} s"
        whose = "the caller's token allows" if quota == "token" else f"setting {quota} allows"
        who = repr(principal.name)
        if principal.family != principal.name:
            who += f", with all who have the key {principal.family!r},"
        problem = errors.QuotaExceeded(f"{who} has had its share: {whose} {most:g}; {when}")
        problem.quota, problem.retry_after_s = quota, wait_s
        return problem

    def statistics(self) -> dict[str, Any]:
        """Counts, and the bounds they run against."""
        settings = self._settings
        with self._lock:
            last = list(self._shares.items())[-SHOWN_MAX:]
            return {
                "quota_refusals": self.refused,
                "calls_per_principal_s": settings.calls_per_principal_s,
                "bytes_per_principal_s": settings.bytes_per_principal_s,
                "activations_per_principal_s": settings.activations_per_principal_s,
                "connections_per_principal_max": settings.connections_per_principal_max,
                "principals": len(self._shares),
                "principals_max": PRINCIPALS_MAX,
                "by_principal": {
                    name: {
                        "calls": s.taken,
                        "refused": s.refused,
                        "connections": s.connected,
                        "connections_by_name": s.names,
                    }
                    for name, s in last
                },
            }
