import gc
import sqlite3
import struct
import weakref

import pytest

from objserver import errors
from objserver.codecs import exceptions
from objserver.codecs.base import cannot
from objserver.codecs.native import NativeCodec
from objserver.codecs.types import Types
from objserver.settings import Limits


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("builtins.KeyError", KeyError),
        ("KeyError", KeyError),
        ("struct.error", struct.error),
        ("sqlite3.IntegrityError", sqlite3.IntegrityError),
        ("exceptions.ValueError", ValueError),
        ("objserver.errors.Deadlock", errors.Deadlock),
        ("builtins.SystemExit", errors.RemoteError),
        ("os.system", errors.RemoteError),
        ("builtins.eval", errors.RemoteError),
    ],
)
def test_the_allow_list(name, cls):
    assert type(exceptions.rebuild(name, ["x"], {})) is cls


def test_hostile_attributes():
    error = exceptions.rebuild(
        "builtins.ValueError",
        ["x"],
        {"__class__": 1, "__dict__": {}, "a b": 1, 5: 1, "add_note": 1, "args": 7, "__notes__": 3, "good": 1},
    )
    assert vars(error) == {"good": 1}
    assert error.args == ("x",)
    with pytest.raises(errors.SerializeError):
        exceptions.rebuild("builtins.ValueError", "x", {})
    assert type(exceptions.rebuild("builtins.UnicodeDecodeError", ["x"], {})) is errors.RemoteError


def test_stock_names():
    assert exceptions.stock_name(errors.ObjectNotFound()) == "Pyro5.errors.DaemonError"
    assert exceptions.stock_name(errors.CallTimeout()) == "Pyro5.errors.TimeoutError"
    assert exceptions.stock_name(KeyError()) == "builtins.KeyError"


class Mute(Exception):
    def __str__(self):
        raise SystemExit

    __repr__ = __str__


def test_text_of_what_has_none():
    assert exceptions.text_of(Mute()) == ""
    assert exceptions.repr_of(Mute()) == "<Mute>"
    assert str(exceptions.rebuild("a.B", [Mute(), 5], {})) == "a.B: , 5"
    assert str(cannot("encode", "json", Mute())) == "cannot encode the value with json: Mute"


def test_an_interrupt_is_the_users():
    class Stopped:
        def __str__(self):
            raise KeyboardInterrupt

        __repr__ = __str__

    for told in (exceptions.text_of, exceptions.repr_of):
        with pytest.raises(KeyboardInterrupt):
            told(Stopped())


# -- chains, between our peers -------------------------------------------------------------------------


def sent(error):
    return NativeCodec(Limits()).decode(NativeCodec(Limits()).encode(error))


def linked(count, name):
    first = last = ValueError(0)
    for number in range(1, count):
        setattr(last, name, ValueError(number))
        last = getattr(last, name)
    return first


def length(error):
    return 1 + length(error.__cause__ or error.__context__) if error.__cause__ or error.__context__ else 1


@pytest.mark.parametrize("name", ["__cause__", "__context__"])
def test_a_long_chain_is_cut(name):
    assert length(sent(linked(5, name))) == 5
    assert length(sent(linked(500, name))) == exceptions.DEPTH_MAX + 1


def test_a_circle_of_errors_ends():
    one, two = ValueError(1), KeyError(2)
    one.__cause__, two.__context__, one.other, two.args = two, one, two, (one,)
    again = sent(one)
    assert (type(again.__cause__), again.__cause__.args) == (KeyError, ("ValueError(1)",))
    assert (type(again.other), again.other.__context__) == (KeyError, None)
    one.__cause__ = one
    one.me = [one]
    assert sent(one).me == ["ValueError(1)"]


def test_errors_that_share_others_do_not_multiply():
    error = ValueError("first")
    for number in range(30):
        outer = ValueError(number)
        outer.__cause__ = outer.__context__ = error
        outer.one = outer.two = error
        outer.__suppress_context__ = False
        error = outer
    assert len(NativeCodec(Limits()).encode(error)) < 200 * exceptions.ERRORS_MAX
    groups = [ExceptionGroup("many", [ValueError(n) for n in range(count)]) for count in (900, 1_100)]
    assert len(sent(groups[0]).exceptions) == 900
    assert type(sent(groups[1])) is errors.RemoteError, (
        "too many are told by their repr, which no group takes"
    )


def test_notes_are_kept_and_ours_is_not_sent_on():
    error = ValueError("x")
    error.add_note("mine")
    error._pyroTraceback = ["Traceback\n", "ValueError: x\n"]
    once = sent(error)
    assert once.__notes__ == ["mine", "Remote traceback:\nTraceback\nValueError: x"]
    assert sent(once).__notes__ == once.__notes__


def test_an_error_of_types_is_made_without_its_constructor():
    class Odd(OSError):
        def __init__(self, needed, also):
            raise AssertionError("the constructor was run")

    odd = Odd.__new__(Odd)
    OSError.__init__(odd, 2, "gone")
    codec = NativeCodec(Limits(), types=Types([Odd]))
    again = codec.decode(codec.encode(odd))
    assert (type(again), again.args) == (Odd, (2, "gone"))


@pytest.mark.parametrize(
    "links",
    [
        {"__cause__": 5, "__context__": "x", "__notes__": 3, "__suppress_context__": "yes"},
        {"__cause__": ["x"], "__notes__": [1, b"x", None]},
        {"__traceback__": 5, "__class__": 5, "__dict__": 5},
    ],
)
def test_hostile_links(links):
    error = exceptions.rebuild("builtins.ValueError", ["x"], links)
    assert (error.__cause__, error.__context__, error.__suppress_context__) == (None, None, False)
    assert not hasattr(error, "__notes__")


def test_an_error_that_was_encoded_does_not_wait_for_the_collector():
    """Its traceback has the frames of the call, with all arguments."""

    class Argument:
        pass

    def fail(argument):
        raise ValueError("no", object())  # the second cannot travel, which is an error too

    argument = Argument()
    alive = weakref.ref(argument)
    codec = NativeCodec(Limits())
    gc.disable()
    try:
        try:
            fail(argument)
        except ValueError as problem:
            codec.encode(problem)
        del argument
        assert alive() is None
    finally:
        gc.enable()
