"""`Resolver`: what a process knows of names, so that it need not ask for each connection.

The first time a name is resolved, a name server is asked.  The second time it is asked again, and to tell
when the name changes; from then on what it said is believed.  So a program that makes one connection pays for
one question, and has no connection of its own for news.  Stock name servers tell no news and are always
asked.

News can be lost with the connection that would have brought them.  So what is believed is believed for some
seconds only, after which the name server is asked, and asked to tell, again.  It is forgotten at once when
the object is not found where it should be.

What one name server said to one principal is remembered for that principal only, and what was heard without
TLS is not believed where TLS is wanted.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from objserver import errors
from objserver.client.nameservers import Contact, NameServers, contacts
from objserver.client.picking import PickPolicy
from objserver.client.resolve import Ask, Call, ask_any, resolve
from objserver.machine import machine
from objserver.references import Location, Reference

__all__ = ["Resolver"]

T = TypeVar("T")

ANY = NameServers()
BELIEVED_S = 5.0
"""How long a watched name is believed without asking, if no news come."""
ILL_S = 5.0
"""How long an address that did not answer is thought to be dead, as long as there are others."""
LACKING_S = 60.0
"""How long a name server that is a stock one is remembered as that."""
Asked = tuple[Reference, tuple[Contact, ...]]
"""A name, whom it was asked of, and as whom."""
NAMES_MAX = 10_000
"""Names and addresses remembered; a name costs some 500 bytes."""


@dataclasses.dataclass
class _Known:
    """A name that was resolved once; `resolved` is what to, if that is believed until `until`.

    `told` is what somebody was last told from memory, and is perhaps still on the way to.
    """

    resolved: Reference | None = None
    until: float = 0.0
    told: Location | None = None


class Resolver:
    """One in a process; any thread may call it."""

    def __init__(self) -> None:
        self._monotonic = machine.get().monotonic
        self._lock = threading.Lock()
        self._known: OrderedDict[Asked, _Known] = OrderedDict()
        self._ill: OrderedDict[Location, float] = OrderedDict()
        self._lacking: OrderedDict[tuple[Contact, str], float] = OrderedDict()
        self._news = 0
        self._listener: object = None

    def resolve(
        self,
        reference: Reference,
        call: Call,
        timeout_s: float | None,
        policy: PickPolicy | None = None,
        given: NameServers = ANY,
    ) -> Reference:
        """As `resolve.resolve`, from memory if that is as good."""
        if reference.protocol == "PYRO":
            return reference
        servers = contacts(reference, given)
        options = policy, self.is_ill, self._fell_ill, servers
        if reference.protocol == "PYROMETA":
            return resolve(reference, self._asked(call), timeout_s, *options)
        name = reference, servers
        with self._lock:
            known = self._known.get(name)
            if known is not None and known.resolved is not None and self._monotonic() < known.until:
                known.told = known.resolved.location
                return known.resolved
            if known is None:
                self._known[name] = _Known()
                while len(self._known) > NAMES_MAX:
                    self._known.popitem(last=False)
            news = self._news
        # Before the question: what changes after the answer is then told.
        watched = known is not None and self._watch(name, call, timeout_s)
        found = resolve(reference, self._asked(call), timeout_s, *options)
        with self._lock:
            if watched and news == self._news:
                known = self._known.setdefault(name, _Known())
                known.resolved, known.until = found, self._monotonic() + BELIEVED_S
        return found

    def ask(self, servers: Sequence[Contact], call: Call, timeout_s: float | None) -> Ask:
        """Asks the first of the name servers that answers."""
        return ask_any(servers, self._asked(call), timeout_s, "", self.is_ill, self._fell_ill)

    def _asked(self, call: Call) -> Call:
        """As `call`, without asking a name server for what it has just said it does not have."""

        def asked(server: Contact, timeout_s: float | None, method: str, *args: Any) -> Any:
            until = self._lacking.get((server, method))
            if until is not None and self._monotonic() < until:
                raise errors.MemberNotFound(f"the name server at {server.location} has no {method}")
            try:
                return call(server, timeout_s, method, *args)
            except errors.MemberNotFound:
                self._remember(self._lacking, (server, method), LACKING_S)
                raise

        return asked

    def failed(self, reference: Reference, location: Location, given: NameServers = ANY) -> bool:
        """Nothing of `reference` answers at `location`, where it was resolved to.

        Whether to resolve it again now: because the answer came from memory, or because others would do.
        """
        was_ill = self.is_ill(location)
        self._fell_ill(location)
        name = reference, contacts(reference, given)
        with self._lock:
            known = self._known.get(name)
            believed = known is not None and known.told == location
            if known is not None:
                known.resolved = known.told = None
        return not was_ill if reference.protocol == "PYROMETA" else believed

    def is_ill(self, location: Location) -> bool:
        """Whether the address did not answer lately."""
        return self._ill.get(location, 0.0) > self._monotonic()

    def _fell_ill(self, location: Location) -> None:
        self._remember(self._ill, location, ILL_S)

    def _remember(self, what: OrderedDict[T, float], key: T, seconds: float) -> None:
        with self._lock:
            what[key] = self._monotonic() + seconds
            while len(what) > NAMES_MAX:
                what.popitem(last=False)

    def _watch(self, name: Asked, call: Call, timeout_s: float | None) -> bool:
        if self._listener is None:
            from objserver.client.news import NameListener  # with the adapter, which most clients do without

            self._listener = NameListener(self._changed)
        # The first part of the name is watched, for the key of an object behind it is no name.
        reference, servers = name
        prefix = reference.object_id.partition("/")[0]
        try:
            self.ask(servers, call, timeout_s)("watch", self._listener, prefix)
        except errors.ObjServerError:  # a stock name server, or one whose watchers are too many
            return False
        return True

    def _changed(self, names: Collection[str]) -> None:
        with self._lock:
            self._news += 1
            for (reference, _), known in self._known.items():
                head = reference.object_id
                while head and head not in names:
                    head = head.rpartition("/")[0]
                if head:
                    known.resolved = None
