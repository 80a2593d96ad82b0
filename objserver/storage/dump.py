"""A store as a file of text, to be kept, read, edited, and loaded into another store, of another engine too.

The format is JSON Lines: a header, a line for each row of a snapshot, an end.  States are readable
(`codecs.readable`), everything else that is bytes is in hexadecimal (ids) or base64.

    {"row": "store", "format": 1, "schema": 3, "id": "4f…", "made": "2026-11-23T12:00:00+00:00",
     "types": null}
    {"row": "object", "type": "Account", "key": "alice", "owner": "", "epoch": 0, "version": 3, "codec": 1,
     "state_version": 1, "state": {"balance": 7}}
    {"row": "reply", …}  {"row": "timer", …}  {"row": "session", …}  {"row": "message", …}
    {"row": "end"}

A state is text and nothing else if reading that text gives the same bytes again.  The few of which that is
not so, written by another release perhaps, have the bytes beside it as `data`.  Loading then refuses a
`state` that says something else than `data`: who has edited it and means it removes `data`.

Neither way is anything imported or executed, and neither holds more than some rows in memory.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NoReturn, TypeVar

from objserver import errors
from objserver.codecs.readable import from_json, to_json
from objserver.storage.base import (
    Answered,
    Due,
    Message,
    Record,
    Reply,
    Row,
    Session,
    Store,
    Stored,
    Timer,
    Unstorable,
)

__all__ = ["dump", "dump_file", "load", "state_to_json"]

_T = TypeVar("_T")

FORMAT = 1
LINE_SIZE_MAX = 1 << 30
"""Bytes of one line: four times the largest state that PostgreSQL takes."""
_NATIVE = 1
"""The codec of states that can be read without their class (`adapter.state.CODEC`)."""


def dump(store: Store, file: IO[bytes], types: Sequence[str] | None = None) -> dict[str, int]:
    """Write all that is in the store, or what belongs to `types`; how many rows of each kind there were."""
    from objserver.storage.schema import SCHEMA_VERSION  # loads SQLAlchemy

    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    header = {"row": "store", "format": FORMAT, "schema": SCHEMA_VERSION, "id": store.id, "made": made}
    _write(file, {**header, "types": None if types is None else list(types)})
    counts: Counter[str] = Counter()
    with contextlib.closing(store.snapshot(types)) as rows:
        for row in rows:
            kind, fields = _fields(row)
            _write(file, {"row": kind, **fields})
            counts[kind] += 1
    _write(file, {"row": "end"})
    return dict(counts)


def dump_file(store: Store, path: str, types: Sequence[str] | None = None) -> dict[str, int]:
    """As `dump`, into a file that only its owner may read.  It is there when it is complete, not before."""
    directory = os.path.dirname(os.path.abspath(path))
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".dump-", delete=False) as file:
            try:
                counts = dump(store, file, types)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as problem:
        raise errors.StoreError(f"cannot write {path}: {problem.strerror or problem}") from problem
    return counts


def load(store: Store, file: IO[bytes], *, replace: bool = False) -> dict[str, int]:
    """Make the store what `dump` has written; how many rows of each kind there were.

    StoreError, naming the line, if that is not possible; then nothing is changed.  A store that has objects
    is refused unless they may be replaced.
    """
    reader = _Reader(file)
    id = reader.header()
    try:
        store.restore(id, reader.rows(), replace=replace)
    except Unstorable as problem:
        if problem.row is None:
            raise
        raise errors.StoreError(f"line {problem.row + 1}: {problem}") from problem
    return dict(reader.counts)


def state_to_json(codec: int, data: bytes) -> Any:
    """What to show of a state; SerializeError if nothing can be said of it."""
    if codec != _NATIVE:
        raise errors.SerializeError(f"this release does not know the encoding {codec} of the state")
    return to_json(data)


# -- writing -------------------------------------------------------------------------------------------


def _write(file: IO[bytes], line: dict[str, Any]) -> None:
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    # (Paths may hold halves of surrogates, which UTF-8 does not.)
    file.write(text.encode("utf-8", "backslashreplace") + b"\n")


def _fields(row: Row) -> tuple[str, dict[str, Any]]:
    match row:
        case Stored(type, key, owner, record):
            names = {"type": type, "key": key, "owner": owner}
            numbers = {name: getattr(record, name) for name in ("epoch", "version", "codec", "state_version")}
            return "object", {**names, **numbers, **_state(record)}
        case Answered(type, key, reply):
            result = None if reply.result is None else _base64(reply.result)
            ids = {"client": reply.client.hex(), "number": reply.number, "path": reply.path.hex()}
            digest = {"acked": reply.acked, "digest": reply.digest.hex(), "status": reply.status}
            return "reply", {"type": type, "key": key, **ids, **digest, "result": result}
        case Due(type, key, timer):
            names = {"type": type, "key": key, "name": timer.name}
            return "timer", {**names, "due": timer.due, "payload": _base64(timer.payload)}
        case Session(client, expires_at):
            return "session", {"client": client.hex(), "expires_at": expires_at}
    return "message", {"id": row.id.hex(), "target": row.target, "payload": _base64(row.payload)}


def _state(record: Record) -> dict[str, Any]:
    """Readable if it can be, and as bytes if reading that would not give the same."""
    if record.state is None:
        return {"deleted": True}
    try:
        state = state_to_json(record.codec, record.state)
        same = from_json(state) == record.state
    except errors.SerializeError:
        return {"data": _base64(record.state)}
    return {"state": state} if same else {"state": state, "data": _base64(record.state)}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- reading -------------------------------------------------------------------------------------------


class _Reader:
    """Of a file that anybody may have edited: nothing is taken for granted."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._line = 0
        self.counts: Counter[str] = Counter()

    def header(self) -> str:
        """The id of the store it is a dump of; refuses what this release does not read."""
        line = self._next()
        if line.get("row") != "store":
            self._refuse('a dump begins with a line {"row": "store", ...}; this is none')
        known = self._schema()
        if line.get("format") != FORMAT:
            self._refuse(
                f"it has format {line.get('format')!r}, this release reads {FORMAT}; use a newer one"
            )
        schema = line.get("schema")
        if type(schema) is not int or schema > known:
            self._refuse(
                f"it is of schema version {schema!r}, this release knows up to {known}; use a newer one"
            )
        id = line.get("id")
        if type(id) is not str or not re.fullmatch("[0-9a-f]{32}", id):
            self._refuse("the id of the store has to be 32 hexadecimal digits")
        return id

    @staticmethod
    def _schema() -> int:
        from objserver.storage.schema import SCHEMA_VERSION

        return SCHEMA_VERSION

    def rows(self) -> Iterator[Row]:
        """What is between the header and the end."""
        while True:
            line = self._next()
            kind = line.pop("row", None)
            if kind == "end":
                if self._file.readline(1):
                    self._line += 1
                    self._refuse("something comes after the end")
                return
            make = _ROWS.get(kind) if type(kind) is str else None
            if make is None:
                self._refuse(f"a row is one of {', '.join(_ROWS)} and end, not {str(kind)[:50]!r}")
            fields = _Fields(line)
            try:
                row = make(fields)
                fields.done()
            except (ValueError, errors.SerializeError) as problem:
                self._refuse(str(problem))
            self.counts[kind] += 1
            yield row

    def _next(self) -> dict[str, Any]:
        self._line += 1
        try:
            text = self._file.readline(LINE_SIZE_MAX + 1)
        except OSError as problem:
            self._refuse(f"it cannot be read: {problem.strerror or problem}")
        if not text:
            self._refuse('the file ends before its last line, {"row": "end"}: it is not complete')
        if len(text) > LINE_SIZE_MAX:
            self._refuse(f"it is longer than {LINE_SIZE_MAX} bytes")
        try:
            line = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as problem:
            self._refuse(f"it is not JSON: {problem}")
        if type(line) is not dict:
            self._refuse("it is not a JSON object")
        return line

    def _refuse(self, why: str) -> NoReturn:
        raise errors.StoreError(f"line {self._line}: {why}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f'{name} is written {{"$float": ...}}')


class _Fields:
    """The fields of one line, each taken once and with its type; ValueError says what is wrong."""

    def __init__(self, line: dict[str, Any]) -> None:
        self._line = line

    def __contains__(self, name: str) -> bool:
        return name in self._line

    def done(self) -> None:
        """There must be none left."""
        if self._line:
            raise ValueError(f"there is no field {min(self._line)!r} in this row")

    def take(self, name: str) -> Any:
        if name not in self._line:
            raise ValueError(f"the field {name!r} is missing")
        return self._line.pop(name)

    def maybe(self, name: str, take: Callable[[str], _T]) -> _T | None:
        """Null, or what `take` takes."""
        if self._line.get(name, "") is None:
            del self._line[name]
            return None
        return take(name)

    def text(self, name: str) -> str:
        value = self.take(name)
        if type(value) is not str or re.search("[\ud800-\udfff]", value):
            raise ValueError(f"the field {name!r} has to be text")
        return value

    def number(self, name: str, below: int = 1 << 63) -> int:
        value = self.take(name)
        if type(value) is not int or not 0 <= value < below:
            raise ValueError(f"the field {name!r} has to be a whole number from 0 to {below - 1}")
        return value

    def seconds(self, name: str) -> float:
        value = self.take(name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"the field {name!r} has to be a number of seconds")
        return float(value)

    def hex(self, name: str) -> bytes:
        value = self.take(name)
        if type(value) is not str or not re.fullmatch("([0-9a-f]{2})*", value):
            raise ValueError(f"the field {name!r} has to be hexadecimal digits")
        return bytes.fromhex(value)

    def base64(self, name: str) -> bytes:
        value = self.take(name)
        try:
            return base64.b64decode(value, validate=True)
        except (ValueError, TypeError):
            raise ValueError(f"the field {name!r} has to be base64") from None


def _object(fields: _Fields) -> Row:
    type, key = fields.text("type"), fields.text("key")
    owner = fields.maybe("owner", fields.text)
    record = Record(
        fields.number("epoch"),
        fields.number("version"),
        fields.number("codec", 1 << 15),
        fields.number("state_version", 1 << 31),
        None,
    )
    return Stored(type, key, owner, record._replace(state=_bytes_of(record, fields)))


def _bytes_of(record: Record, fields: _Fields) -> bytes | None:
    if "deleted" in fields:
        if fields.take("deleted") is not True:
            raise ValueError("the field 'deleted' is true or not there")
        return None
    if "data" not in fields:
        if record.codec != _NATIVE:
            raise ValueError(f"a state in encoding {record.codec} needs the field 'data'")
        return from_json(fields.take("state"))
    data = fields.base64("data")
    if "state" in fields and state_to_json(record.codec, data) != fields.take("state"):
        raise ValueError(
            "'state' and 'data' say different things; remove 'data' if 'state' was edited and is meant"
        )
    return data


def _reply(fields: _Fields) -> Row:
    type, key = fields.text("type"), fields.text("key")
    return Answered(
        type,
        key,
        Reply(
            fields.hex("client"),
            fields.number("number"),
            fields.hex("path"),
            fields.number("acked"),
            fields.hex("digest"),
            fields.number("status", 1 << 15),
            fields.maybe("result", fields.base64),
        ),
    )


_ROWS: dict[str, Callable[[_Fields], Row]] = {
    "object": _object,
    "reply": _reply,
    "timer": lambda f: Due(
        f.text("type"), f.text("key"), Timer(f.text("name"), f.seconds("due"), f.base64("payload"))
    ),
    "session": lambda f: Session(f.hex("client"), f.seconds("expires_at")),
    "message": lambda f: Message(f.hex("id"), f.text("target"), f.base64("payload")),
}
