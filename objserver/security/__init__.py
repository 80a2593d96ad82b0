"""Who calls, and what that one may do: credentials, and decisions about them.

Pure: this room opens no socket and reads no clock of its own.  Servers and proxies ask it, and carry out
what it says.
"""

from objserver.security.authentication import AcceptedKey, Authentication
from objserver.security.credentials import Credentials, SharedKey, Token
from objserver.security.principal import Principal
from objserver.security.tls import ClientTLS, Itself, ServerTLS

__all__ = [
    "AcceptedKey",
    "Authentication",
    "ClientTLS",
    "Credentials",
    "Itself",
    "Principal",
    "ServerTLS",
    "SharedKey",
    "Token",
]
