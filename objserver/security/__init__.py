"""Who calls, and what that one may do: credentials, and decisions about them.

Pure: this room opens no socket and reads no clock of its own.  Servers and proxies ask it, and carry out
what it says.
"""

from objserver.security.audit import JsonAuditFormatter, write_audit
from objserver.security.authorization import ALLOW_AUTHENTICATED, Authorization, Decision, Policy
from objserver.security.principal import Principal, Restrictions
from objserver.security.quotas import Quotas
from objserver.security.rules import Rule, Rules
from objserver.security.tokens import RootKeys, Voucher

__all__ = [
    "ALLOW_AUTHENTICATED",
    "Authorization",
    "Decision",
    "JsonAuditFormatter",
    "Policy",
    "Principal",
    "Quotas",
    "Restrictions",
    "RootKeys",
    "Rule",
    "Rules",
    "Voucher",
    "write_audit",
]
