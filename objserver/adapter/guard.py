"""The guard: asks whether a call is allowed, before anything is done for it.

It stands where every request enters the adapter, before the servant is made, and before the arguments are
looked at.  What it asks about is what will be called: the id is the one by which the registry finds the
object, and has to be written exactly as that object's own (`Account/%61lice` is no other name for
`Account/alice` here), and roles are those of the member in the very table it is called from.

    a call              its member
    a batch             each member, before the first is called
    an attribute        `balance` to read it, `balance=` to set it
    an item of a stream for who opened it, as a part of the call that did, which is judged again where the
                        rules have changed since
    what a servant calls by a reference that came from a client: also for that client
    what an object is   for who may call something of it

Of an object whose class only its servant tells (a locator), roles are asked for when that is there; whoever
could not be allowed anything is refused before.  Who is refused is not told whether there is such an object.

What was allowed once is kept, so that it costs a look-up.  What was denied is decided, and logged, each time:
strangers with invented ids fill no table.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from objserver import errors
from objserver.adapter.activation import Registration
from objserver.adapter.invocation import Call, Caller, Invocation
from objserver.adapter.registry import Registry
from objserver.adapter.skeleton import Skeleton
from objserver.clock import Clock
from objserver.invocation import Client, principal_of
from objserver.references import DAEMON_ID, LEASED
from objserver.references import object_id as reference_id
from objserver.security.audit import log as audit
from objserver.security.audit import record_decision
from objserver.security.authorization import Authorization, Decision
from objserver.security.principal import Principal
from objserver.security.quotas import Quotas
from objserver.settings import ServerSettings

__all__ = ["Giver", "Guard", "what_of"]

ALLOWED_MAX = 10_000
"""Decisions that are kept: some 3 MB.  Beyond it all are forgotten, which costs each a few microseconds."""
BATCH = "<batch>"
"""As what a batch is asked about, where it is one call."""
GIVING_BACK = frozenset({"close_stream", "release", "release_session", "renew"})
"""Of `Pyro.Daemon`: who has had its share may still say what it needs no longer, and what it keeps."""
_ATTRIBUTES = frozenset({"__getattr__", "__setattr__"})
_INFO = logging.INFO


class _Allowed(NamedTuple):
    principal: Principal
    """Holds it, so that its id stays its own."""
    reason: str
    counted: bool
    """Its calls are counted."""
    skeleton: Skeleton | None
    """By whose table it was judged; None: roles are still to be asked for."""


class Giver(NamedTuple):
    """Whom a reference came from, in the place of who calls: a servant that calls by it does so with their
    rights."""

    principal: Principal
    address: Any = None
    """Where from, for the audit log."""

    @property
    def link(self) -> Giver:
        """What has the principal."""
        return self

    @property
    def as_caller(self) -> Caller:
        """No more is asked of it than is here."""
        return cast(Caller, self)

    def asking(self, object_id: str, method: str, args: Sequence[Any] = ()) -> Invocation:
        """What is to be judged, as if it called itself."""
        invocation = Invocation(self.as_caller, object_id, method, args)
        if method == BATCH:
            invocation.batch = cast("Sequence[Call]", args)
        return invocation


class Guard:
    """See the module's essay.  Every method may be called from any thread."""

    def __init__(
        self, authorization: Authorization, registry: Registry, settings: ServerSettings, clock: Clock
    ) -> None:
        self.authorization = authorization
        self.quotas = Quotas(settings)
        self._registry = registry
        self._time, self._monotonic = clock.time, clock.monotonic
        self._call_plainly = self.quotas.call_plainly
        self._allowed: dict[Any, _Allowed] = {}
        self.generation = 0
        """Of the rules; greater where others hold than before."""
        self.denied = 0

    def forget(self, name: str) -> None:
        """Something else is registered as `name` from now on, or nothing."""
        # Another dict: who is deciding now does it by what was there, and keeps it where nobody looks.
        if not name.startswith(LEASED):  # which nobody else will ever be called
            self._allowed = {}

    def change(self, authorization: Authorization) -> None:
        """Decide by another from now on: also of what was allowed and is still going on."""
        self.authorization = authorization
        self._allowed = {}  # in this order: see `forget`
        self.generation += 1

    # -- calls ---------------------------------------------------------------------------------------

    def admit(self, invocation: Invocation) -> Skeleton | None:
        """By whose table it is allowed; by another it has to be confirmed.  NotAuthorized, QuotaExceeded."""
        if invocation.batch is not None:
            return self._admit_batch(invocation)
        principal = getattr(invocation.caller.link, "principal", None)  # as principal_of, without a call
        method = invocation.method
        object_id = invocation.object_id
        name: Any = method if method not in _ATTRIBUTES else (method, _attribute(invocation.args))
        found = self._allowed.get((id(principal), object_id, name))
        if found is None:
            if principal is not None and self._counts(principal, object_id, name):
                self._count(invocation, principal)
            return self._decide(invocation, name)
        owner, reason, counted, skeleton = found
        until = owner.expires_at
        if until is not None and self._time() >= until:
            self._check_expiry(invocation, owner, name)
        if counted and not (invocation.weight is None and self._call_plainly(owner, self._monotonic())):
            self._count(invocation, owner)
        if audit.isEnabledFor(_INFO) and skeleton is not None:
            self._log(invocation, name, True, reason)
        return skeleton

    def _admit_batch(self, invocation: Invocation) -> Skeleton | None:
        """All of them, or none.  Each member is asked about once, however often it is called."""
        assert invocation.batch is not None
        principal = invocation.principal
        if principal is not None and self.quotas.counts_calls(principal):
            self._count(invocation, principal, len(invocation.batch))
        judged: set[Skeleton | None] = set()
        for name in _names(invocation):
            found = self._allowed.get((id(principal), invocation.object_id, name))
            if found is None:
                judged.add(self._decide(invocation, name))
                continue
            self._check_expiry(invocation, found.principal, name)
            if audit.isEnabledFor(_INFO) and found.skeleton is not None:
                self._log(invocation, name, True, found.reason)
            judged.add(found.skeleton)
        if not invocation.batch and not self.authorization.may_know(
            principal, invocation.object_id, by_role=True
        ):
            raise self._denied(invocation, "", "nothing could be allowed here")
        return judged.pop() if len(judged) == 1 else None

    def confirm(self, invocation: Invocation, skeleton: Skeleton) -> None:
        """As `admit`, when the class has turned out that `skeleton` is of."""
        principal = invocation.principal
        for name in _names(invocation) if invocation.batch is not None else (_name(invocation),):
            allowed = self._allowed
            key = (id(principal), invocation.object_id, name, skeleton)
            found = allowed.get(key)
            if found is None:
                decision = self._judge(principal, invocation.object_id, name, skeleton)
                if not decision.allowed or principal is None:
                    raise self._denied(invocation, name, decision.reason)
                found = _Allowed(principal, decision.reason, False, skeleton)
                self._keep(allowed, key, found)
            if audit.isEnabledFor(_INFO):
                self._log(invocation, name, True, found.reason)

    def activates(self, invocation: Invocation) -> None:
        """It is about to make a Persistent object active; QuotaExceeded."""
        principal = invocation.principal
        if principal is not None:
            try:
                self.quotas.activate(principal, self._monotonic())
            except errors.QuotaExceeded as problem:
                self._log(invocation, invocation.method, False, f"quota {problem.quota}")
                raise

    def _decide(self, invocation: Invocation, name: Any) -> Skeleton | None:
        principal, object_id = invocation.principal, invocation.object_id
        allowed = self._allowed
        if principal is not None:
            self._check_expiry(invocation, principal, name)
        skeleton = None
        due = False
        try:
            registration, key = self._registry.find(object_id)
        except errors.ObjectNotFound:
            decision = self.authorization.decide(principal, object_id, _plain(name))
        else:
            exact = registration.name if not key else reference_id(registration.name, key)
            skeleton = registration.skeleton
            if object_id != exact:
                decision = Decision(False, "not the exact id of an object")
            elif skeleton is not None:
                decision = self._judge(principal, object_id, name, skeleton)
            else:
                due = True
                own = self.authorization.rules.roles_of(principal) if principal is not None else frozenset()
                decision = self.authorization.decide(principal, object_id, _plain(name), own)
        if not decision.allowed or principal is None:
            raise self._denied(invocation, name, decision.reason)
        counted = self._counts(principal, object_id, name)
        kept = _Allowed(principal, decision.reason, counted, skeleton)
        self._keep(allowed, (id(principal), object_id, name), kept)
        if not due and audit.isEnabledFor(_INFO):
            self._log(invocation, name, True, decision.reason)
        return skeleton

    def _judge(self, principal: Principal | None, object_id: str, name: Any, skeleton: Skeleton) -> Decision:
        if type(name) is str:
            member = skeleton.methods.get(name)
        else:
            table = skeleton.getters if name[0] == "__getattr__" else skeleton.setters
            member = table.get(name[1])
        if member is not None:
            return self.authorization.decide(principal, object_id, _plain(name), member.roles)
        decision = self.authorization.decide(principal, object_id, _plain(name))
        if not decision.allowed and self.sees(principal, object_id, skeleton):
            # It knows the members, and is told that this is none of them.
            return Decision(True, "there is no such member")
        return decision

    def _keep(self, allowed: dict[Any, _Allowed], key: Any, decision: _Allowed) -> None:
        if self.authorization.lasting:
            if len(allowed) >= ALLOWED_MAX:
                allowed.clear()
            allowed[key] = decision

    def _check_expiry(self, invocation: Invocation, principal: Principal, name: Any) -> None:
        if self._has_expired(principal):
            raise self._denied(invocation, name, "what proves the caller has expired")

    def _has_expired(self, principal: Principal | None) -> bool:
        until = None if principal is None else principal.expires_at
        return until is not None and self._time() >= until

    def _counts(self, principal: Principal, object_id: str, name: Any) -> bool:
        """Whether such a call is part of its share."""
        return self.quotas.counts_calls(principal) and not (object_id == DAEMON_ID and name in GIVING_BACK)

    def _count(self, invocation: Invocation, principal: Principal, calls: int = 1) -> None:
        try:
            size = 0 if invocation.weight is None else _size(invocation.weight)
            self.quotas.call(principal, self._monotonic(), size, calls)
        except errors.QuotaExceeded as problem:
            self._log(invocation, _name(invocation), False, f"quota {problem.quota}")
            raise

    # -- what an object is ---------------------------------------------------------------------------

    def sees(self, principal: Principal | None, object_id: str, skeleton: Skeleton) -> bool:
        """Whether it may call something of the object: then it may know what there is."""
        decide = self.authorization.decide
        return (
            any(decide(principal, object_id, m.name, m.roles).allowed for m in skeleton.methods.values())
            or any(decide(principal, object_id, m.name, m.roles).allowed for m in skeleton.getters.values())
            or any(
                decide(principal, object_id, f"{m.name}=", m.roles).allowed for m in skeleton.setters.values()
            )
        )

    def find(self, caller: Client, object_id: str) -> tuple[Registration, str]:
        """What `registry.find` says, to who could be allowed something of it; else NotAuthorized."""
        principal = principal_of(caller)
        if self._has_expired(principal):
            raise self._unseen(caller, object_id, "what proves the caller has expired")
        try:
            registration, key = self._registry.find(object_id)
        except errors.ObjectNotFound:
            if self.authorization.may_know(principal, object_id, by_role=False):
                raise
            raise self._unseen(caller, object_id, "nothing allows it") from None
        if object_id != (registration.name if not key else reference_id(registration.name, key)):
            raise self._unseen(caller, object_id, "not the exact id of an object")
        known = registration.skeleton is not None
        if not known and not self.authorization.may_know(principal, object_id, by_role=True):
            raise self._unseen(caller, object_id, "nothing could be allowed here")
        return registration, key

    def show(self, caller: Client, object_id: str, skeleton: Skeleton) -> None:
        """NotAuthorized if `caller` is not to know what the object is."""
        if not self.sees(principal_of(caller), object_id, skeleton):
            raise self._unseen(caller, object_id, "nothing could be allowed here")

    def connect(self, caller: Client) -> None:
        """`caller` is a new connection; QuotaExceeded if its principal has all it may have."""
        principal = principal_of(caller)
        if principal is not None:
            self.quotas.connect(principal, caller.link)

    # -- records -------------------------------------------------------------------------------------

    def _denied(self, invocation: Invocation, name: Any, reason: str) -> errors.NotAuthorized:
        self.denied += 1
        self._log(invocation, name, False, reason)
        principal = invocation.principal
        if principal is None:
            return errors.NotAuthorized("this server does not know who calls, so it allows nothing")
        return errors.NotAuthorized(
            f"{principal.name!r} may not call {_plain(name) or 'nothing'} of {invocation.object_id!r}, or "
            "there is no such object; the audit log of the server has the reason"
        )

    def _unseen(self, caller: Client, object_id: str, reason: str) -> errors.NotAuthorized:
        self.denied += 1
        principal = principal_of(caller)
        record_decision(
            now=self._time(),
            principal=principal,
            address=caller.address,
            object_id=object_id,
            method="get_metadata",
            allowed=False,
            reason=reason,
        )
        if principal is None:
            return errors.NotAuthorized("this server does not know who calls, so it allows nothing")
        return errors.NotAuthorized(
            f"{principal.name!r} may call nothing of {object_id!r}, or there is no such object; the audit "
            "log of the server has the reason"
        )

    def _log(self, invocation: Invocation, name: Any, allowed: bool, reason: str) -> None:
        record_decision(
            now=self._time(),
            principal=invocation.principal,
            address=invocation.caller.address,
            object_id=invocation.object_id,
            method=_plain(name),
            allowed=allowed,
            reason=reason,
            correlation_id=str(invocation.correlation_id),
        )

    def statistics(self) -> dict[str, Any]:
        """Counts, and the bounds they run against."""
        return {
            "calls_denied": self.denied,
            "decisions_kept": len(self._allowed),
            "decisions_kept_max": ALLOWED_MAX,
            **self.quotas.statistics(),
        }


def what_of(invocation: Invocation) -> tuple[str, Sequence[Any]]:
    """Its method, and of the arguments no more than a decision needs; before the member is looked up."""
    names = _names(invocation) if invocation.batch is not None else [_name(invocation)]
    whole: list[Call] = [(name, (), {}) if type(name) is str else (name[0], (name[1],), {}) for name in names]
    return (BATCH, whole) if invocation.batch is not None else whole[0][:2]


def _attribute(args: Any) -> str:
    return args[0] if args and type(args[0]) is str else ""


def _name(invocation: Invocation) -> Any:
    """What a decision is kept under: attributes have names of their own, a method may be called alike."""
    method = invocation.method
    return method if method not in _ATTRIBUTES else (method, _attribute(invocation.args))


def _names(invocation: Invocation) -> list[Any]:
    """... of all members of a batch, each once, in the order of their first calls."""
    names: dict[Any, None] = {}
    for method, args, _ in invocation.batch or ():
        names[method if method not in _ATTRIBUTES else (method, _attribute(args))] = None
    return list(names)


def _plain(name: Any) -> str:
    """As it stands in rules."""
    if type(name) is str:
        return name
    return name[1] if name[0] == "__getattr__" else f"{name[1]}="


def _size(weight: Any) -> int:
    """The bytes of a request that are worth counting; see `Invocation.weight`."""
    if type(weight) is tuple:
        return sum(map(_size, weight))
    size: int = getattr(weight, "size", 0)
    return size
