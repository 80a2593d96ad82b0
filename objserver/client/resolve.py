"""From a logical reference to the one that says where the object is.

`PYRONAME:` asks a name server for a name, `PYROMETA:` for any object with the given tags.  A reference may
give several name servers; where it gives none, the program does (`NameServers`) or its environment: the
variable OBJSERVER_NAMESERVERS (`host:port,host:port`), else PYRO_NS_HOST and PYRO_NS_PORT, else it is the one
on this machine at the port that everybody uses, as Pyro5 does.

Of several the first that answers is believed.  As long as others are left none gets much time, and one that
did not answer is asked last for a while, so that a dead name server costs a moment and not a timeout.  One
that does not let this client in did not answer: another may know the key already that it does not know yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from objserver import errors, pyro5
from objserver.client.nameservers import Contact, NameServers, contacts, usual
from objserver.client.picking import Candidate, PickPolicy, RandomPick, healthy
from objserver.references import NAMESERVER_ID, Location, Reference

__all__ = ["Ask", "NobodyAnswers", "ask_any", "name_server", "name_servers", "resolve"]

ATTEMPT_S = 0.3
"""For a name server as long as others are left: two that are dead and do not even refuse still leave the
third its time within a second."""

UNANSWERED_S = 10.0
"""For the last of several name servers, where the caller would wait for ever."""

SHOWN_APART = (
    "; a name server is shown only what name_servers=NameServers(..., tls=..., credentials=...) says, and "
    "nothing that is for the object"
)

_dice = Random()
"""Of our own: the application may have seeded the common one, and count on it."""

Call = Callable[..., Any]
"""`call(name server, timeout_s, method, *args)` asks one."""
Ask = Callable[..., Any]
"""`ask(method, *args)` asks any of several."""


def name_server(location: Location | None = None) -> Reference:
    """The reference of the name server at `location`, by default the first of the environment's."""
    return Reference("PYRO", NAMESERVER_ID, location or usual()[0])


def name_servers(reference: Reference) -> list[Reference]:
    """The name servers that know `reference`, in the order of preference."""
    given = (reference.location, *reference.others) if reference.location is not None else usual()
    return [name_server(location) for location in given]


def ask_any(
    servers: Sequence[Contact],
    call: Call,
    timeout_s: float | None,
    purpose: str = "",
    is_ill: Callable[[Location], bool] = lambda _: False,
    failed: Callable[[Location], None] = lambda _: None,
) -> Ask:
    """Asks the first of `servers` that answers; NamingError if none does.

    ConnectFailed if one of them is there and does not take this client, and no other answers;
    AuthenticationFailed if that is for who it is.  Those that are ill are asked last.  A question may reach
    several, so it must bear repeating.  One that has not answered is not asked again by what is returned.
    """
    order = sorted(servers, key=lambda server: is_ill(server.location))
    if len(order) == 1:
        turns = [(order[0], timeout_s)]
    else:
        enough_s = UNANSWERED_S if timeout_s is None else timeout_s
        # Once more with all the time there is: the network may be slow.
        turns = [(server, min(ATTEMPT_S, enough_s)) for server in order]
        turns += [(server, enough_s) for server in order]
    refusals: list[errors.ConnectFailed] = []

    def ask(method: str, *args: Any) -> Any:
        problem: BaseException | None = None
        while turns:
            server, patience_s = turns[0]
            try:
                return call(server, patience_s, method, *args)
            except (errors.ConnectFailed, errors.OutcomeUnknown) as silence:
                if isinstance(silence, errors.OutcomeUnknown) and len(order) == 1:
                    raise
                problem = silence
                failed(server.location)
                del turns[0]
                if isinstance(silence, errors.AuthenticationFailed):  # it would be refused again
                    turns[:] = [turn for turn in turns if turn[0] is not server]
                if isinstance(silence, errors.ConnectFailed) and silence.refused:
                    refusals.append(_refusal(server, silence, purpose))
        if refusals:
            raise refusals[0] from problem
        at = " or ".join(str(server.location) for server in servers)
        raise NobodyAnswers(
            f"{purpose}no name server answers at {at}; start one with `objserver nameserver`"
        ) from problem

    return ask


def _refusal(server: Contact, problem: errors.ConnectFailed, purpose: str) -> errors.ConnectFailed:
    sentence = f"{purpose}the name server at {server.location} could not be asked: {problem}"
    # It was written for who calls an object, and advises to give its proxy something.
    advises = "tls=" in sentence or "credentials=" in sentence
    refusal = type(problem)(sentence + SHOWN_APART if advises else sentence)
    refusal.refused = True
    return refusal


class NobodyAnswers(errors.NamingError):
    """It is not that the name is unknown."""


def resolve(
    reference: Reference,
    call: Call,
    timeout_s: float | None,
    policy: PickPolicy | None = None,
    is_ill: Callable[[Location], bool] = lambda _: False,
    failed: Callable[[Location], None] = lambda _: None,
    servers: Sequence[Contact] = (),
) -> Reference:
    """The PYRO reference behind `reference`; NamingError if nobody knows it.

    `call(name server, timeout_s, method, *args)` asks a name server.  `is_ill` says whether an address did
    not answer lately, `failed` is told of one.  A PYROMETA reference picks by `policy`.  `servers` are asked,
    by default those that the reference or the environment names.
    """
    if reference.protocol == "PYRO":
        return reference
    asked = servers or contacts(reference, NameServers())
    ask = ask_any(asked, call, timeout_s, f"cannot resolve {reference}: ", is_ill, failed)
    if reference.protocol == "PYRONAME":
        with contextlib.suppress(errors.MemberNotFound):  # of a stock name server
            return Reference.parse(ask("resolve", reference.object_id))
        return _lookup(reference.object_id, lambda name: ask("lookup", name))
    policy = policy or RandomPick()
    found = _candidates(ask, sorted(reference.tags), policy.asks_load)
    if not found:
        raise errors.NamingError(f"no object is registered with all of the tags {sorted(reference.tags)}")
    return policy.pick(healthy(found, is_ill), frozenset({socket.gethostname()}), _dice).reference


def _candidates(ask: Ask, tags: list[str], loads: bool) -> list[Candidate]:
    found: dict[str, Any] | None = None
    if loads:
        try:
            found = ask("candidates", tags)
        except errors.MemberNotFound:
            pass  # a stock name server knows no loads
    if found is None:
        found = {name: (uri, 0.0) for name, uri in ask("yplookup", tags, None, False).items()}
    return [Candidate(Reference.parse(str(uri)), load) for _, (uri, load) in sorted(found.items())]


def _lookup(name: str, lookup: Callable[[str], Any]) -> Reference:
    """What stands behind `name`, or behind the part of it that is a name, with the rest as the object's key.

    Only `Account` is registered where `Account/alice` is meant: every key exists.
    """
    head, key = name, ""
    while True:
        try:
            found = Reference.parse(str(lookup(head)))
        except NobodyAnswers:
            raise
        except pyro5.NamingError:
            head, slash, last = head.rpartition("/")
            if not slash:
                raise
            key = f"/{last}{key}"
        else:
            return dataclasses.replace(found, object_id=found.object_id + key)
