"""Who calls, and what that one may do: credentials, and decisions about them.

Pure: this room opens no socket and reads no clock of its own.  Servers and proxies ask it, and carry out
what it says.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objserver.security.audit import JsonAuditFormatter, write_audit
    from objserver.security.authentication import AcceptedKey, Authentication
    from objserver.security.authorization import ALLOW_AUTHENTICATED, Authorization, Decision, Policy
    from objserver.security.credentials import Credentials, SharedKey, Token
    from objserver.security.principal import Principal, Restrictions
    from objserver.security.quotas import Quotas
    from objserver.security.rules import Rule, Rules
    from objserver.security.tls import ClientTLS, Itself, ServerTLS
    from objserver.security.tokens import RootKeys, Voucher

__all__ = [
    "ALLOW_AUTHENTICATED",
    "AcceptedKey",
    "Authentication",
    "Authorization",
    "ClientTLS",
    "Credentials",
    "Decision",
    "Itself",
    "JsonAuditFormatter",
    "Policy",
    "Principal",
    "Quotas",
    "Restrictions",
    "RootKeys",
    "Rule",
    "Rules",
    "ServerTLS",
    "SharedKey",
    "Token",
    "Voucher",
    "write_audit",
]

# Each name is loaded when it is first asked for: most programs need none of it, and a client that proves who
# it is decides nothing.
_HOMES = {
    "audit": "JsonAuditFormatter write_audit",
    "authentication": "AcceptedKey Authentication",
    "authorization": "ALLOW_AUTHENTICATED Authorization Decision Policy",
    "credentials": "Credentials SharedKey Token",
    "principal": "Principal Restrictions",
    "quotas": "Quotas",
    "rules": "Rule Rules",
    "tls": "ClientTLS Itself ServerTLS",
    "tokens": "RootKeys Voucher",
}
_home_of = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _home_of:
        raise AttributeError(f"module 'objserver.security' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"objserver.security.{_home_of[name]}"), name)
    globals()[name] = value
    return value
