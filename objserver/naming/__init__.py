"""Names instead of addresses: the name server, the program that hosts it, and how it is found.

Its face is that of Pyro5's name server, so stock clients, servers and `pyro5-nsc` use it unchanged.
"""

from objserver.naming.beacon import BEACON_PORT, Beacon
from objserver.naming.daemon import NameServerDaemon
from objserver.naming.directory import NameServer, NamingLimits
from objserver.naming.ownership import Ownership
from objserver.naming.registrar import Registrar, load_of

__all__ = [
    "BEACON_PORT",
    "Beacon",
    "NameServer",
    "NameServerDaemon",
    "NamingLimits",
    "Ownership",
    "Registrar",
    "load_of",
]
