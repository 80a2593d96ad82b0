"""The table of what is registered, and the meaning of an object id in it.

An object id is `Name` or `Name/key`; without a key it is the object whose key is empty.  What may be
registered, under which policies if none are given, and which ids then have a meaning, is decided here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any
from urllib.parse import unquote

from objserver import errors
from objserver.adapter.activation import Registration
from objserver.adapter.hold import Hold
from objserver.adapter.invocation import EMPTY
from objserver.adapter.policies import (
    ActivationPolicy,
    Concurrent,
    PerClient,
    PerRequest,
    Serial,
    Shared,
    ThreadingPolicy,
    check_combination,
)
from objserver.adapter.skeleton import Skeleton

__all__ = ["Registry"]


class Registry:
    """Registrations by name.  Every method may be called from any thread."""

    def __init__(self, has_store: bool) -> None:
        self._has_store = has_store
        self._lock = Lock()
        self._registrations: dict[str, Registration] = {}

    def __len__(self) -> int:
        return len(self._registrations)

    def all(self) -> list[Registration]:
        """Everything registered."""
        return list(self._registrations.values())

    def add(
        self,
        thing: Any,
        name: str,
        activation: ActivationPolicy | None,
        threading: ThreadingPolicy | None,
    ) -> Registration:
        """Take in a class, an instance or a locator; RegistrationError with the reason if it cannot be."""
        is_class = isinstance(thing, type)
        is_locator = not is_class and callable(thing) and Skeleton.of(type(thing)).empty
        skeleton = None if is_locator else Skeleton.of(thing if is_class else type(thing))
        if skeleton is not None and skeleton.empty:
            hint = "decorate it, or some of its methods, with @expose"
            if skeleton.cls.__module__ == "builtins" and not is_class:
                hint = f"{thing!r} is no object to serve; give a class, an instance, or a function"
            raise errors.RegistrationError(f"{skeleton.cls.__name__} exposes nothing; {hint}")
        make: Callable[[str], Any] = (
            thing if is_locator else (lambda key: thing()) if is_class else (lambda key: thing)
        )
        if skeleton is not None and is_class:
            mode, creator = getattr(thing, "_pyroInstancing", ("session", None))
            if creator is not None:
                make = lambda key: creator(thing)  # noqa: E731
            if activation is None:
                activation = _pyro5_policy(mode) if skeleton.written_for_pyro5 else Shared()
        activation = activation or Shared()
        if threading is None:
            # Pyro5 calls servants from many threads at once; what was written for it may count on that.
            for_pyro5 = skeleton is not None and skeleton.written_for_pyro5
            free = for_pyro5 and isinstance(activation, (Shared, PerClient))
            threading = Concurrent() if free else Serial()
        instance = EMPTY if is_class or is_locator else thing
        check_combination(activation, threading, instance=instance is not EMPTY, store=self._has_store)
        if not isinstance(name, str):
            raise errors.RegistrationError(f"an object's name is a str, not a {type(name).__name__}")
        if not name or any(c.isspace() or c == "@" for c in name):
            raise errors.RegistrationError(f"{name!r} cannot be an object's name: it has blanks or an '@'")
        registration = Registration(name, make, activation, threading, skeleton=skeleton, instance=instance)
        with self._lock:
            if name in self._registrations:
                raise errors.RegistrationError(f"the name {name!r} is taken; unregister it first")
            self._registrations[name] = registration
        return registration

    def remove(self, name: str) -> Registration:
        """Give the name free; ObjectNotFound if nothing has it."""
        with self._lock:
            registration = self.named(name)
            del self._registrations[name]
            registration.removed = True
        return registration

    def named(self, name: str) -> Registration:
        """What is registered under exactly this name; ObjectNotFound if nothing is."""
        registration = self._registrations.get(name)
        if registration is None:
            raise errors.ObjectNotFound(f"nothing is registered as {name!r}")
        return registration

    def check(
        self, registration: Registration, activation: ActivationPolicy, threading: ThreadingPolicy
    ) -> None:
        """RegistrationError with the reason if what is registered cannot be served so."""
        check_combination(
            activation, threading, instance=registration.instance is not EMPTY, store=self._has_store
        )

    def hold(self, registration: Registration, hold: Hold) -> None:
        """From now on new activations are held; RegistrationError if they are already."""
        with self._lock:
            if registration.hold is not None or registration.removed:
                raise errors.RegistrationError(
                    f"the policies of {registration.name!r} are being changed already, or it is unregistered"
                )
            registration.hold = hold

    def replace(self, old: Registration, new: Registration) -> None:
        """`new` has the name of `old` from now on; RegistrationError if that has been unregistered."""
        with self._lock:
            if old.removed:
                raise errors.RegistrationError(f"{old.name!r} has been unregistered meanwhile")
            self._registrations[old.name] = new

    def find(self, object_id: str) -> tuple[Registration, str]:
        """The registration an object id belongs to, and the key inside it, decoded."""
        registration = self._registrations.get(object_id)
        if registration is not None:
            return registration, ""
        at = object_id.rfind("/")
        while at > 0:
            registration = self._registrations.get(object_id[:at])
            if registration is not None and registration.keyed:
                return registration, unquote(object_id[at + 1 :])
            at = object_id.rfind("/", 0, at)
        raise errors.ObjectNotFound(f"unknown object {object_id!r}: nothing of that name is served here")


def _pyro5_policy(mode: str) -> ActivationPolicy:
    """What Pyro5's @behavior(instance_mode=...) means here."""
    if mode == "percall":
        return PerRequest()
    return Shared() if mode == "single" else PerClient()
