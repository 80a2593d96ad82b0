"""What a power loss may leave of the files of an SQLite store, at every operation on them.

`recording` puts a layer between SQLite and the operating system that writes down each create, write,
truncate, sync and delete.  It is a copy of SQLite's own file layer ("VFS") with five functions replaced,
registered as the default inside the very SQLite library that the `sqlite3` module of this Python uses.  So
the engine under test runs unchanged, with its own SQL, pragmas and library version; a second binding such as
apsw would bring another library and another connection.  The price is some ctypes, and a Python whose
SQLite hides its symbols is refused with a sentence.

`Disk` then plays the operations back and keeps apart what is certain and what is not.  Certain is what a
sync made so; of everything else each part may be there after the power loss or not, in any combination:
writes by pieces that end at multiples of 512 bytes, the least that a disk writes at once, truncations,
and entries of the directory, so that a file made may be missing and a file deleted may be back.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = [
    "SECTOR",
    "Create",
    "Delete",
    "Disk",
    "Log",
    "Note",
    "Step",
    "Sync",
    "Truncate",
    "Write",
    "power_losses",
    "recording",
]

SECTOR = 512
"""Bytes that a disk writes all or not at all.  Larger sectors would only leave fewer cases."""
TORN = 0.3
"""Of the writes that were not synced, so many are decided sector by sector."""
LIKELY = (0.05, 0.5, 0.95)
"""How likely it is that something not synced is there: mostly nothing, half, mostly all."""


class Create(NamedTuple):
    """A file that was not there is there."""

    name: str


class Write(NamedTuple):
    name: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    name: str
    size: int


class Sync(NamedTuple):
    """The file's bytes are safe on return, and the directory's entries too if `directory`."""

    name: str
    directory: bool


class Delete(NamedTuple):
    name: str
    directory: bool


class Note(NamedTuple):
    """What the workload wrote in between: "this commit was acknowledged", for instance."""

    value: Any


Step = Create | Write | Truncate | Sync | Delete | Note


class Log:
    """The operations on the files of one directory, in order."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.realpath(directory)
        self.steps: list[Step] = []
        self.files: dict[str, bytes] = {}
        """What was there before the first step."""
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as file:
                self.files[name] = file.read()

    def note(self, value: Any) -> None:
        self.steps.append(Note(value))


class _File:
    """The bytes of one file, also when no entry of the directory leads to it any more."""

    def __init__(self, content: bytes = b"") -> None:
        self.certain = bytearray(content)
        self.pending: list[Write | Truncate] = []

    def sync(self) -> None:
        for step in self.pending:
            _apply(self.certain, step)
        self.pending.clear()

    def after_power_loss(self, chance: random.Random) -> bytes:
        if not self.pending:
            return bytes(self.certain)
        content = bytearray(self.certain)
        likely = chance.choice(LIKELY)
        for step in self.pending:
            if isinstance(step, Write) and chance.random() < TORN:
                for piece in _sectors(step):
                    if chance.random() < 0.5:
                        _apply(content, piece)
            elif chance.random() < likely:
                _apply(content, step)
        return bytes(content)


def _sectors(write: Write) -> Iterator[Write]:
    name, start, data = write
    while data:
        size = SECTOR - start % SECTOR
        yield Write(name, start, data[:size])
        start, data = start + size, data[size:]


def _apply(content: bytearray, step: Write | Truncate) -> None:
    if isinstance(step, Truncate):
        del content[step.size :]
        return
    if len(content) < step.offset:
        content.extend(bytes(step.offset - len(content)))
    content[step.offset : step.offset + len(step.data)] = step.data


class Disk:
    """The files of one directory, as they are certain to be and as they may be."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = {name: _File(content) for name, content in files.items()}  # as the program sees them
        self._certain = dict(self._files)
        self._pending: list[tuple[str, _File | None]] = []  # entries made (a file) and removed (None)

    def play(self, step: Step) -> None:
        match step:
            case Create(name):
                self._files[name] = _File()
                self._pending.append((name, self._files[name]))
            case Write(name) | Truncate(name):
                self._files[name].pending.append(step)
            case Sync(name, directory):
                self._files[name].sync()
                if directory:
                    self._sync_directory()
            case Delete(name, directory):
                del self._files[name]
                self._pending.append((name, None))
                if directory:
                    self._sync_directory()

    def _sync_directory(self) -> None:
        for name, file in self._pending:
            self._set(self._certain, name, file)
        self._pending.clear()

    @staticmethod
    def _set(entries: dict[str, _File], name: str, file: _File | None) -> None:
        if file is None:
            entries.pop(name, None)
        else:
            entries[name] = file

    def after_power_loss(self, chance: random.Random) -> dict[str, bytes]:
        """One of the ways the files may be now if the power fails: name to content."""
        entries = dict(self._certain)
        likely = chance.choice(LIKELY)
        for name, file in self._pending:
            if chance.random() < likely:
                self._set(entries, name, file)
        return {name: file.after_power_loss(chance) for name, file in entries.items()}


# From here on: the layer.  The structures are those of sqlite3.h, which never change, only grow at their end.

_OK = 0
_JOURNALS = 0x800 | 0x4000 | 0x80000  # main journal, super-journal, write-ahead log
_POINTER = ctypes.c_void_p
# Paths are addresses too: SQLite's layer keeps them, so it must be given its own and not a copy.
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER)
_DELETE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int)


def _address(function: Any) -> int:
    return ctypes.cast(function, _POINTER).value or 0


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`, version 3."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("path_max", ctypes.c_int),
        ("next", _POINTER),
        ("name", ctypes.c_char_p),
        ("data", _POINTER),
        ("open", _POINTER),
        ("delete", _POINTER),
        ("others", _POINTER * 14),
    ]


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, version 3."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("close", _POINTER),
        ("read", _POINTER),
        ("write", _POINTER),
        ("truncate", _POINTER),
        ("sync", _POINTER),
        ("others", _POINTER * 13),
    ]


class _Layer:
    """The recording layer; made once for a process, because SQLite keeps pointers into it."""

    def __init__(self) -> None:
        # A symbol is also found in the libraries that this one needs, so either way of linking will do.
        self._library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        try:
            find, self._register = self._library.sqlite3_vfs_find, self._library.sqlite3_vfs_register
        except AttributeError:
            raise RuntimeError(
                "the SQLite of this Python hides its functions, so that nothing can be recorded; "
                "use a Python that links SQLite as a shared library"
            ) from None
        find.restype = ctypes.POINTER(_Vfs)
        self._register.argtypes = [_POINTER, ctypes.c_int]
        self._original = find(None)
        original = self._original.contents
        if original.version != 3:
            raise RuntimeError(f"the file layer of this SQLite is of version {original.version}, 3 is known")
        self._vfs = _Vfs.from_buffer_copy(original)
        self._vfs.name = b"objserver-recording"
        self._open, self._delete = _OPEN(original.open), _DELETE(original.delete)
        # What SQLite points to must stay alive: the functions, and a table of methods for each kind of file.
        self._functions = [_OPEN(self._on_open), _DELETE(self._on_delete)]
        self._vfs.open, self._vfs.delete = map(_address, self._functions)
        self._methods: dict[int, _Methods] = {}
        self._names: dict[int, tuple[Log, str]] = {}  # by the address of the open file
        self._to_sync: set[str] = set()
        self._log: Log | None = None

    def start(self, log: Log) -> None:
        if self._log is not None:
            raise RuntimeError(f"{self._log.directory} is being recorded; one recording at a time")
        self._log = log
        self._to_sync.clear()
        self._register(ctypes.addressof(self._vfs), 1)

    def stop(self) -> None:
        self._register(ctypes.addressof(self._original.contents), 1)
        self._log = None

    def _named(self, path: int | None) -> str | None:
        """The name in the recorded directory; None for a file elsewhere, or for one without a name."""
        if self._log is None or path is None:
            return None
        directory, name = os.path.split(os.fsdecode(ctypes.string_at(path)))
        return name if os.path.realpath(directory) == self._log.directory else None

    def _on_open(self, vfs: int, path: int | None, file: int, flags: int, out: int | None) -> int:
        name = self._named(path)
        log = self._log
        new = log is not None and name is not None and not os.path.exists(os.path.join(log.directory, name))
        code = int(self._open(ctypes.addressof(self._original.contents), path, file, flags, out))
        if code == _OK and name is not None and log is not None:
            if new:
                log.steps.append(Create(name))
                if flags & _JOURNALS:
                    # SQLite's layer syncs the directory with the first sync of a journal that it made.
                    self._to_sync.add(name)
            self._names[file] = (log, name)
            table = ctypes.cast(file, ctypes.POINTER(_POINTER))
            table[0] = ctypes.addressof(self._replaced(table[0]))
        return code

    def _on_delete(self, vfs: int, path: int, directory: int) -> int:
        name = self._named(path)
        code = int(self._delete(ctypes.addressof(self._original.contents), path, directory))
        if code == _OK and name is not None and self._log is not None:
            self._log.steps.append(Delete(name, bool(directory)))
        return code

    def _note(self, file: int, step: Callable[[str], Step]) -> None:
        log, name = self._names[file]
        if log is self._log:  # else its recording is over, and the connection still open
            log.steps.append(step(name))

    def _sync(self, name: str) -> Sync:
        directory = name in self._to_sync
        self._to_sync.discard(name)
        return Sync(name, directory)

    def _replaced(self, address: int) -> _Methods:
        """The methods at this address with the three that matter replaced."""
        if address not in self._methods:
            original = ctypes.cast(address, ctypes.POINTER(_Methods)).contents
            write, truncate, sync = _WRITE(original.write), _TRUNCATE(original.truncate), _SYNC(original.sync)

            def on_write(file: int, data: int, size: int, offset: int) -> int:
                self._note(file, lambda name: Write(name, offset, ctypes.string_at(data, size)))
                return int(write(file, data, size, offset))

            def on_truncate(file: int, size: int) -> int:
                self._note(file, lambda name: Truncate(name, size))
                return int(truncate(file, size))

            def on_sync(file: int, flags: int) -> int:
                code = int(sync(file, flags))
                if code == _OK:  # only then is anything certain
                    self._note(file, self._sync)
                return code

            functions = [_WRITE(on_write), _TRUNCATE(on_truncate), _SYNC(on_sync)]
            self._functions += functions
            methods = _Methods.from_buffer_copy(original)
            methods.write, methods.truncate, methods.sync = map(_address, functions)
            self._methods[address] = methods
        return self._methods[address]


_layer: _Layer | None = None


@contextlib.contextmanager
def recording(directory: str) -> Iterator[Log]:
    """Write down what SQLite does to the files of `directory`, for connections opened in this block.

    One block at a time in a process, and one thread: the order of the log is that of the calls.
    """
    global _layer
    if _layer is None:
        _layer = _Layer()
    log = Log(directory)
    _layer.start(log)
    try:
        yield log
    finally:
        _layer.stop()


def power_losses(
    log: Log, chance: random.Random, *, rounds: int = 1
) -> Iterator[tuple[list[Any], dict[str, bytes]]]:
    """For each step, `rounds` times: what was noted so far, and the files as a power loss may leave them."""
    disk, notes = Disk(log.files), list[Any]()
    for step in log.steps:
        if isinstance(step, Note):
            notes.append(step.value)
        else:
            disk.play(step)
        for _ in range(rounds):
            yield notes, disk.after_power_loss(chance)
