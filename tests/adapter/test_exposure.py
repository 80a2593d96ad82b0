"""Nothing is reachable that was not offered."""

import Pyro5.api
import pytest

from objserver import errors, expose, idempotent, oneway, readonly
from objserver.adapter.skeleton import Skeleton


@expose
class Thing:
    attribute = 5

    def method(self): ...
    @readonly
    def reader(self): ...
    @idempotent
    @oneway
    def shout(self): ...
    async def wait(self): ...
    @staticmethod
    def static(x):
        return x

    @classmethod
    def name(cls):
        return cls.__name__

    @property
    def value(self):
        return 1

    @value.setter
    def value(self, new): ...
    def __len__(self):
        return 3

    def _private(self): ...
    def close(self): ...
    def on_activate(self): ...


def test_a_class_offers_its_public_members_and_not_its_hooks():
    skeleton = Skeleton.of(Thing)
    assert set(skeleton.methods) == {"method", "reader", "shout", "wait", "static", "name", "__len__"}
    assert (set(skeleton.getters), set(skeleton.setters)) == ({"value"}, {"value"})


def test_marks_reach_the_skeleton():
    methods = Skeleton.of(Thing).methods
    assert methods["reader"].readonly
    assert methods["shout"].oneway
    assert methods["shout"].idempotent
    assert methods["wait"].asynchronous
    assert not methods["method"].readonly


def test_static_and_class_methods_are_called_rightly():
    methods = Skeleton.of(Thing).methods
    assert methods["static"].call(Thing(), 4) == 4
    assert methods["name"].call(Thing()) == "Thing"


def test_only_marked_methods_of_an_unmarked_class_are_offered():
    class Half:
        @expose
        def yes(self): ...
        def no(self): ...

    assert set(Skeleton.of(Half).methods) == {"yes"}


def test_a_close_that_is_itself_exposed_is_a_member():
    class File:
        @expose
        def close(self): ...

    assert "close" in Skeleton.of(File).methods


def test_private_names_cannot_be_exposed():
    with pytest.raises(AttributeError, match="private"):

        class Bad:
            @expose
            def _hidden(self): ...


@pytest.mark.parametrize(
    "name",
    ["_private", "__init__", "__class__", "__getattribute__", "close", "attribute", "a.b", "", "méthod"],
)
def test_names_from_the_wire_reach_nothing_else(name):
    with pytest.raises(errors.MemberNotFound):
        Skeleton.of(Thing).find(name, ())


def test_attribute_access_is_by_table_too():
    with pytest.raises(errors.MemberNotFound, match="attribute"):
        Skeleton.of(Thing).find("__getattr__", ("attribute",))


def test_pyro5_decorators_are_understood_and_recognised():
    @Pyro5.api.behavior(instance_mode="single")
    class Old:
        @Pyro5.api.expose
        @Pyro5.api.oneway
        def method(self): ...

    skeleton = Skeleton.of(Old)
    assert skeleton.methods["method"].oneway
    assert skeleton.written_for_pyro5
    assert not Skeleton.of(Thing).written_for_pyro5


def roles(cls):
    skeleton = Skeleton.of(cls)
    return {
        **{name: set(member.roles) for name, member in skeleton.methods.items()},
        **{name: set(member.roles) for name, member in skeleton.getters.items()},
        **{f"{name}=": set(member.roles) for name, member in skeleton.setters.items()},
    }


@expose(roles={"operator"})
class Guarded:
    def method(self): ...
    @expose(roles={"viewer", "operator"})
    def own(self): ...
    @staticmethod
    def static(): ...
    @property
    def value(self): ...
    @value.setter
    def value(self, new): ...
    @expose(roles=["viewer"])
    @property
    def parted(self): ...
    @expose(roles=["admin"])
    @parted.setter
    def parted(self, new): ...
    def _private(self): ...


def test_roles_of_a_member_count_before_those_of_its_class():
    assert roles(Guarded) == {
        "method": {"operator"},
        "own": {"viewer", "operator"},
        "static": {"operator"},
        "value": {"operator"},
        "value=": {"operator"},
        "parted": {"viewer"},
        "parted=": {"admin"},
    }


def test_a_setter_without_roles_has_those_of_the_getter():
    class Thing:
        @expose(roles={"viewer"})
        @property
        def value(self): ...
        @value.setter
        def value(self, new): ...

    assert roles(Thing) == {"value": {"viewer"}, "value=": {"viewer"}}


def test_who_overrides_a_member_does_not_open_it():
    @expose
    class Looser(Guarded):
        def method(self): ...
        @property
        def parted(self): ...
        @parted.setter
        def parted(self, new): ...
        def added(self): ...

    found = roles(Looser)
    assert found["method"] == {"operator"}
    assert (found["parted"], found["parted="]) == ({"viewer"}, {"admin"})
    assert found["added"] == set()


def test_roles_reach_what_pyro5_exposed():
    @expose(roles={"operator"})
    class Stock:
        @Pyro5.api.expose
        def method(self): ...

    assert roles(Stock) == {"method": {"operator"}}


@pytest.mark.parametrize("wrong", ["operator", [5], [""]])
def test_roles_are_several_names(wrong):
    with pytest.raises(TypeError, match="roles are several names"):
        expose(roles=wrong)


def test_no_roles_at_all_are_a_mistake():
    with pytest.raises(ValueError, match="nobody could call it"):
        expose(roles=[])
