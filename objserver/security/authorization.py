"""Authorization: whether a principal may call a member of an object.  Default deny.

A call is allowed if something allows it and nothing forbids it.

    forbids                                          allows
    the caller is not known                          the member's roles, of which the caller has one
    a rule denies it                                 a rule allows it
    the caller's token does not cover it             `ALLOW_AUTHENTICATED`, what has no roles
    the member has roles, and the caller none        the policy, which has the last word where there is one

Apart from that, who is known may call the few members of `Pyro.Daemon` without which no proxy works.
A decision is a pure function of what it is about: whoever asks may keep it, unless there is a policy.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from objserver import errors
from objserver.references import DAEMON_ID
from objserver.security.principal import Principal
from objserver.security.rules import Rules, covers

__all__ = ["ALLOW_AUTHENTICATED", "Authorization", "Decision", "Policy"]

log = logging.getLogger("objserver.security")

PLUMBING = frozenset(
    {
        "close_stream",
        "describe",
        "get_metadata",
        "get_next_stream_item",
        "open_session",
        "ping",
        "release",
        "release_session",
        "renew",
    }
)
"""Of `Pyro.Daemon`: each is about the caller's own session, streams and references, or about one object, and
then only answered to who may call something of it.  `registered` and `info` tell of everything, and are not
among them."""
_NOBODY: frozenset[str] = frozenset()

Policy = Callable[[Principal, str, str], bool]
"""(principal, object id, method) -> whether it may.  Anything but True is a no, an exception too."""


class Decision(NamedTuple):
    """Whether, and why: a phrase for the audit log, not for the caller."""

    allowed: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Authorization:
    """How a server decides; see the module's essay.

    `policy` is asked for every call that nothing forbids, in the thread that reads from the clients: it has
    to be quick.  Where there is one, rules can only deny.  `allow_authenticated` allows whoever is known what
    has no roles.
    """

    rules: Rules = field(default_factory=Rules)
    policy: Policy | None = None
    allow_authenticated: bool = False

    def __post_init__(self) -> None:
        if self.policy is None:
            return
        if inspect.iscoroutinefunction(self.policy):
            raise errors.RegistrationError("the policy is async, and must not be: nobody awaits it")
        idle = next((rule for rule in self.rules.rules if rule.allow), None)
        if idle is not None or self.allow_authenticated:
            what = idle.where if idle is not None else "allow_authenticated"
            raise errors.RegistrationError(
                f"{what} would allow nothing: where there is a policy, it has the last word; leave one away"
            )

    @property
    def lasting(self) -> bool:
        """Whether the same question always gets the same answer."""
        return self.policy is None

    def decide(
        self,
        principal: Principal | None,
        object_id: str,
        method: str,
        required_roles: frozenset[str] = _NOBODY,
    ) -> Decision:
        """Whether `principal` may call `method` of the object, of which the class says `required_roles`."""
        if principal is None:
            return Decision(False, "the caller is not known")
        roles = self.rules.roles_of(principal)
        concerning = [rule for rule in self.rules.rules if rule.concerns(principal, roles, object_id)]
        for rule in concerning:
            if not rule.allow and covers(rule.methods, method):
                return Decision(False, f"denied by {rule.where}")
        if object_id == DAEMON_ID and method in PLUMBING:
            return Decision(True, "every client needs it")
        restrictions = principal.restrictions
        if restrictions is not None:
            if not all(covers(patterns, object_id) for patterns in restrictions.objects):
                return Decision(False, "the token is for other objects")
            if not all(covers(patterns, method) for patterns in restrictions.methods):
                return Decision(False, "the token is for other methods")
        if required_roles and not required_roles & roles:
            return Decision(False, f"needs the role {' or '.join(sorted(required_roles))}")
        if self.policy is not None:
            return self._asked(self.policy, principal, object_id, method)
        if required_roles:
            return Decision(True, f"role {min(required_roles & roles)}")
        for rule in concerning:
            if rule.allow and covers(rule.methods, method):
                return Decision(True, f"allowed by {rule.where}")
        if self.allow_authenticated:
            return Decision(True, "the caller is known")
        return Decision(False, "nothing allows it")

    @staticmethod
    def _asked(policy: Policy, principal: Principal, object_id: str, method: str) -> Decision:
        try:
            verdict = policy(principal, object_id, method)
        except Exception as problem:
            log.exception("the policy failed, so the call is not allowed")
            return Decision(False, f"the policy failed: {type(problem).__name__}")
        allowed = verdict is True
        return Decision(allowed, "the policy allows it" if allowed else "the policy denies it")

    def may_know(self, principal: Principal | None, object_id: str, *, by_role: bool) -> bool:
        """Whether it could be allowed any member at all: of an object whose members are not known.

        `by_role`: there is an object, and it may turn out that its members have roles.
        """
        if principal is None:
            return False
        restrictions = principal.restrictions
        if restrictions is not None and not all(covers(p, object_id) for p in restrictions.objects):
            return False
        roles = self.rules.roles_of(principal)
        concerning = [rule for rule in self.rules.rules if rule.concerns(principal, roles, object_id)]
        if any(not rule.allow and "*" in rule.methods for rule in concerning):
            return False
        if by_role and (roles or self.policy is not None):
            return True
        return self.allow_authenticated or any(rule.allow for rule in concerning)


ALLOW_AUTHENTICATED = Authorization(allow_authenticated=True)
"""For a laboratory whose members trust each other: who is known may call all that has no roles."""
