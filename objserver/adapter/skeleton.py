"""Skeletons: the table from member name to call, computed once for each class.

A name that came over the wire is looked up in this table and nowhere else; it never reaches `getattr`.
What a class cannot be served with is refused here, before anybody calls it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from objserver import errors
from objserver.adapter.arguments import Arguments
from objserver.adapter.exposure import HOOKS, _functions, is_private, written_for_pyro5

__all__ = ["Member", "Skeleton"]

_HOOKS = sorted(HOOKS | {"__init__", "__getstate__", "__setstate__"})
"""What the server calls outside of any event loop: a coroutine of theirs would be dropped unawaited."""


class Member(NamedTuple):
    """One exposed method, or the getter or setter of an exposed property."""

    name: str
    call: Callable[..., Any]
    oneway: bool = False
    readonly: bool = False
    idempotent: bool = False
    asynchronous: bool = False
    check: Arguments | None = None
    """Refuses what the annotations do not allow; only of members exposed by our decorator."""
    roles: frozenset[str] = frozenset()
    """Who may call it has one of them, where the server knows who calls; none: the class does not say."""


def _first(member: Any) -> Any:
    """The function that decides for a member."""
    return next(iter(_functions(member)), None)


class Skeleton:
    """What a class offers: `methods`, `getters` and `setters` by name."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.methods: dict[str, Member] = {}
        self.getters: dict[str, Member] = {}
        self.setters: dict[str, Member] = {}
        exposed: list[Callable[..., Any]] = []
        for name in dir(cls):
            if is_private(name):
                continue
            raw = inspect.getattr_static(cls, name)
            functions = _functions(raw)
            # A property's getter decides for both directions, or without one its setter, as in Pyro5.
            if not functions or not getattr(functions[0], "_pyroExposed", False):
                continue
            exposed.append(functions[0])
            if isinstance(raw, property):
                roles = self._roles(name)
                if raw.fget is not None:
                    self.getters[name] = Member(name, raw.fget, readonly=True, roles=roles)
                if raw.fset is not None:
                    self.setters[name] = Member(
                        name,
                        raw.fset,
                        check=self._check(name, raw.fset, functions[0]),
                        roles=self._roles(name, lambda member: getattr(member, "fset", None)) or roles,
                    )
            else:
                self.methods[name] = self._method(name, raw, functions[0])
        for name in _HOOKS:
            if name == "close" and name in self.methods:
                continue  # a remote method like any other; the server does not call it
            for hook in _functions(inspect.getattr_static(cls, name, None)):
                if inspect.iscoroutinefunction(hook) or inspect.isasyncgenfunction(hook):
                    raise errors.RegistrationError(
                        f"{name} of class {cls.__name__} is async, but the server calls it without awaiting"
                        " it; make it a plain function"
                    )
        self.written_for_pyro5 = written_for_pyro5(exposed) or hasattr(cls, "_pyroInstancing")
        self.empty = not exposed
        self.repeatable = {name for name, m in self.methods.items() if m.readonly or m.idempotent}
        """Members that may be called twice where once was meant, and reading attributes is."""
        if self.getters:
            self.repeatable.add("__getattr__")
        self.metadata = {
            "methods": set(self.methods),
            "oneway": {name for name, member in self.methods.items() if member.oneway},
            "attrs": set(self.getters) | set(self.setters),
        }

    def _roles(self, name: str, part: Callable[[Any], Any] = _first) -> frozenset[str]:
        """Those of the member, or of the one that it overrides: who overrides it does not open it to all."""
        for base in self.cls.__mro__:
            roles: frozenset[str] | None = getattr(part(vars(base).get(name)), "_objserver_roles", None)
            if roles:
                return roles
        return frozenset()

    def _check(self, name: str, function: Any, marked: Any, bound: bool = True) -> Arguments | None:
        """... for a class written for Pyro5 may rely on being called with anything."""
        if getattr(marked, "_objserver_exposed", False):
            with contextlib.suppress(ValueError, TypeError):  # without a signature
                return Arguments(self.cls, name, function, bound)
        return None

    def _method(self, name: str, raw: Any, function: Callable[..., Any]) -> Member:
        call: Callable[..., Any] = function
        if isinstance(raw, staticmethod):

            def call(_servant: object, *args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs)

        elif isinstance(raw, classmethod):

            def call(servant: object, *args: Any, **kwargs: Any) -> Any:
                return function(type(servant), *args, **kwargs)

        return Member(
            name,
            call,
            oneway=getattr(function, "_pyroOneway", False),
            readonly=getattr(function, "_objserver_readonly", False),
            idempotent=getattr(function, "_objserver_idempotent", False),
            asynchronous=inspect.iscoroutinefunction(function),
            check=self._check(name, function, function, bound=not isinstance(raw, staticmethod)),
            roles=self._roles(name),
        )

    @staticmethod
    def of(cls: Any) -> Skeleton:
        """The skeleton of a class; computed once."""
        return _skeleton(cls)

    def find(self, method: str, args: Any) -> tuple[Member, Any]:
        """The member that a request means, and the arguments left for it.

        Attribute access travels as Pyro5's pseudo-methods `__getattr__` and `__setattr__`.
        """
        member = self.methods.get(method)
        if member is not None:
            return member, args
        if method in ("__getattr__", "__setattr__") and args and isinstance(args[0], str):
            table, verb = (self.getters, "get") if method == "__getattr__" else (self.setters, "set")
            member = table.get(args[0])
            if member is not None:
                return member, args[1:]
            hint = errors.did_you_mean(args[0], table)
            raise errors.MemberNotFound(
                f"{self.cls.__name__} has no exposed attribute {args[0]!r} to {verb}{hint}"
            )
        if method in self.getters:
            hint = "; it is an attribute, which is read and not called"
        else:
            hint = errors.did_you_mean(method, self.methods)
        raise errors.MemberNotFound(f"{self.cls.__name__} has no exposed method {method!r}{hint}")


@functools.lru_cache(maxsize=1024)
def _skeleton(cls: Any) -> Skeleton:
    return Skeleton(cls)
