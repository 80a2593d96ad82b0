import sqlite3
import struct

import pytest

from objserver import errors
from objserver.codecs import exceptions
from objserver.codecs.base import cannot


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
