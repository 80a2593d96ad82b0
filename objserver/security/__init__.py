"""Who calls, and what that one may do: credentials, and decisions about them.

Pure: this room opens no socket and reads no clock of its own.  Servers and proxies ask it, and carry out
what it says.
"""

from objserver.security.principal import Principal

__all__ = ["Principal"]
