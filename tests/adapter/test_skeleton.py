"""What a class offers is what stock Pyro5 would offer of it; what cannot be served is refused at once."""

import Pyro5.server
import pytest

from objserver import errors, expose
from objserver.adapter.skeleton import Skeleton


def getter(self):
    return 1


def setter(self, value):
    self.set_to = value


def deleter(self): ...


def copies(*functions):
    """Fresh functions, so that the marks of one test are not seen by another."""
    return [type(f)(f.__code__, f.__globals__, f.__name__) if f else None for f in functions]


@pytest.mark.parametrize("marked", ["", "get", "set", "del", "get set", "set del", "get set del"])
@pytest.mark.parametrize("present", ["get", "set", "get set", "set del", "get set del"])
def test_properties_are_reachable_exactly_as_in_pyro5(present, marked):
    functions = dict(zip(("get", "set", "del"), copies(getter, setter, deleter), strict=True))
    for name in marked.split():
        expose(functions[name])

    class Thing:
        p = property(*(functions[name] if name in present else None for name in ("get", "set", "del")))

    def stock(call, *args):
        try:
            call(Thing(), "p", *args)
        except AttributeError:
            return False
        return True

    skeleton = Skeleton(Thing)
    assert ("p" in skeleton.getters) == stock(Pyro5.server._get_exposed_property_value)
    assert ("p" in skeleton.setters) == stock(Pyro5.server._set_exposed_property_value, 5)
    assert skeleton.metadata["attrs"] == Pyro5.server._get_exposed_members(Thing)["attrs"]


def test_a_setter_alone_does_not_make_a_property_readable():
    class Account:
        @expose
        def other(self): ...

        @property
        def secret(self):
            return 5

        @secret.setter
        @expose
        def secret(self, value): ...

    with pytest.raises(errors.MemberNotFound):
        Skeleton.of(Account).find("__getattr__", ("secret",))


def test_async_generators_that_are_not_exposed_are_nobodys_business():
    class Source:
        @expose
        async def total(self):
            return sum([item async for item in self.items()])

        async def items(self):
            yield 1

    assert Skeleton.of(Source).methods["total"].asynchronous


@pytest.mark.parametrize(
    "name",
    ["on_activate", "on_passivate", "close", "__init__", "upgrade_state", "__getstate__", "__setstate__"],
)
@pytest.mark.parametrize("kind", [lambda f: f, classmethod])
def test_async_hooks_are_refused(name, kind):
    async def hook(self, *args): ...

    thing = type("Thing", (), {name: kind(hook), "value": expose(getter)})
    with pytest.raises(errors.RegistrationError, match=f"{name} of class Thing is async"):
        Skeleton.of(thing)

    class Heir(thing):
        pass

    with pytest.raises(errors.RegistrationError, match=f"{name} of class Heir is async"):
        Skeleton.of(Heir)


def test_an_exposed_close_may_be_async_for_it_is_no_hook():
    class File:
        @expose
        async def close(self): ...

    assert Skeleton.of(File).methods["close"].asynchronous

    class Other(File):
        @expose
        async def on_activate(self): ...

    with pytest.raises(errors.RegistrationError, match="on_activate"):
        Skeleton.of(Other)
