"""The decorators with which a class says what it offers.

The marks on functions are Pyro5's own (`_pyroExposed`, `_pyroOneway`), so a class decorated here can be
hosted by a stock Pyro5 daemon and the other way round; ours add `_objserver_*` marks beside them.  Nothing
is exposed that was not asked for, and private names never are.  Roles are a mark like any other: it is the
server that asks for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

__all__ = ["HOOKS", "expose", "idempotent", "is_private", "oneway", "readonly"]

T = TypeVar("T")

HOOKS = frozenset({"on_activate", "on_passivate", "close", "upgrade_state"})
"""Called by the server on a servant's behalf; exposing a whole class leaves them out."""

_CALLABLE_DUNDERS = frozenset(
    {
        "__contains__",
        "__delitem__",
        "__getitem__",
        "__iter__",
        "__len__",
        "__next__",
        "__reversed__",
        "__setitem__",
    }
)


def is_private(name: str) -> bool:
    """Names with a leading underscore, except the container protocol that proxies pass on."""
    return name.startswith("_") and name not in _CALLABLE_DUNDERS


def _functions(member: Any) -> list[Any]:
    """The plain functions behind a class member: a method's own, or those of a property."""
    if isinstance(member, property):
        return [f for f in (member.fget, member.fset, member.fdel) if f is not None]
    if isinstance(member, (staticmethod, classmethod)):
        return [member.__func__]
    return [member] if inspect.isfunction(member) else []


def _mark(member: T, **marks: bool) -> T:
    functions = _functions(member)
    if not functions:
        raise TypeError(f"{member!r} is neither a function nor a property; decorate the method itself")
    for function in functions:
        function.__dict__.update(marks)
    return member


@overload
def expose(member_or_class: T) -> T: ...
@overload
def expose(*, roles: Iterable[str]) -> Callable[[T], T]: ...
def expose(member_or_class: Any = None, *, roles: Iterable[str] | None = None) -> Any:
    """Offer a method or property to remote callers, or everything public that a class itself defines.

    Inherited members keep the exposure they were given where they were defined.  The hooks
    `on_activate`, `on_passivate`, `close` and `upgrade_state` of an exposed class stay private.

    `roles`: where a server knows who calls, only who has one of them may.  What a member says counts before
    what its class says; a property's setter without roles of its own has those of the getter, and a member
    without any those of the one it overrides.
    """
    if roles is not None:
        needed = _checked(roles)
        return lambda marked: _need(expose(marked), needed)
    if isinstance(member_or_class, type):
        for name, member in vars(member_or_class).items():
            if not is_private(name) and name not in HOOKS and _functions(member):
                _mark(member, _pyroExposed=True, _objserver_exposed=True)
        member_or_class._pyroExposed = True  # type: ignore[attr-defined]
        return member_or_class
    for function in _functions(member_or_class):
        if is_private(function.__name__):
            raise AttributeError(f"{function.__name__!r} is private; a leading underscore is never exposed")
    return _mark(member_or_class, _pyroExposed=True, _objserver_exposed=True)


def _checked(roles: Iterable[str]) -> frozenset[str]:
    if isinstance(roles, str) or not all(isinstance(role, str) and role for role in roles):
        raise TypeError(f"roles are several names, like {{'operator'}}, and not {roles!r}")
    needed = frozenset(roles)
    if not needed:
        raise ValueError("without any role nobody could call it; leave `roles` out, or name one")
    return needed


def _need(marked: T, roles: frozenset[str]) -> T:
    """What has roles keeps them: a member of its class, a getter of the property with a setter."""
    members = [marked]
    if isinstance(marked, type):
        members = [member for member in vars(marked).values() if _is_exposed(member)]
    for member in members:
        for function in _functions(member):
            function.__dict__.setdefault("_objserver_roles", roles)
    return marked


def _is_exposed(member: Any) -> bool:
    functions = _functions(member)
    return bool(functions) and getattr(functions[0], "_pyroExposed", False)


def readonly(member: T) -> T:
    """Promise that calling it changes nothing: it may run beside others and is not saved.

    Our proxies call it again by themselves when a connection breaks.
    """
    return _mark(member, _objserver_readonly=True)


def idempotent(member: T) -> T:
    """Promise that calling it twice is the same as once.

    Our proxies call it again by themselves when a connection breaks.
    """
    return _mark(member, _objserver_idempotent=True)


def oneway(method: T) -> T:
    """Callers do not wait for it and learn nothing of its outcome."""
    return _mark(method, _pyroOneway=True)


def written_for_pyro5(functions: list[Callable[..., Any]]) -> bool:
    """Whether any exposed function carries only Pyro5's mark."""
    return any(not getattr(function, "_objserver_exposed", False) for function in functions)
