"""What hostile and broken peers send, as one list that is played against every listener.

An `Attack` is some bytes, for the moment before the greeting or after it.  `play` sends many of them, each on
a connection of its own and all at the same time, and says what became of each: it was answered, refused, or
the connection was closed.  One that is left without any of these is a hole in the server.

Nothing here knows a server of ours: the bytes are made by hand, and whoever listens may be anything that
speaks Pyro's protocol.  The points are those of the table in tests/server/test_hostile_input.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import ormsgpack

from objserver import errors
from objserver.references import Location
from objserver.settings import CLIENT_LIMITS, MiB
from objserver.wire import Flag, Frame, FrameParser, FrameType, encode_frame
from objserver.wire.frames import HEADER

__all__ = ["Attack", "Attacked", "Peer", "attacks", "forget_peak", "peak_memory", "play"]

SERPENT, MARSHAL, JSON, MSGPACK, NATIVE = 1, 2, 3, 4, 79
TOGETHER = 150
"""Attacks that are under way at the same time."""
PING = encode_frame(FrameType.PING, MSGPACK, 0, 9, b"")
"""Follows an attack, because a oneway call is right to be left without an answer."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """Bytes; `greeted`: a greeting comes before them, `refused`: a plain result would be wrong."""

    point: int
    name: str
    data: bytes
    greeted: bool = True
    refused: bool = False


class Attacked(NamedTuple):
    """What became of an attack: "answered", "refused", "closed" or "nothing", and in which time."""

    attack: Attack
    outcome: str
    took_s: float
    answer: bytes


class Peer:
    """A raw client."""

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        location = Location.parse(address)
        if location.path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout_s)
            self.sock.connect(location.path)
        else:
            self.sock = socket.create_connection((location.host, location.port), timeout_s)
        self.timeout_s = timeout_s
        self._parser = FrameParser(CLIENT_LIMITS)
        self._frames: list[Frame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def greet(self, object_id: str) -> Self:
        """Be let in; ProtocolError with the reason if not."""
        self.send(greeting(object_id))
        frame = self.read()
        if frame.type != FrameType.CONNECT_OK:
            raise errors.ProtocolError(f"not let in: {frame.payload!r}")
        return self

    def send(self, data: bytes) -> None:
        """All of it, unless the other side has closed."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def read(self) -> Frame:
        """The next frame; EOFError if the connection ends before, TimeoutError if neither happens."""
        while not self._frames:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._frames += self._parser.receive_data(data)
        return self._frames.pop(0)

    def outcome(self, attack: Attack, since: float, until: float) -> Attacked:
        """What becomes of an attack until then."""
        self.sock.settimeout(max(0.001, until - time.monotonic()))
        outcome, answer = "answered", b""
        try:
            frame = self.read()
            answer = bytes(frame.payload)
            if frame.flags & Flag.EXCEPTION or frame.type == FrameType.CONNECT_FAIL:
                outcome = "refused"
        except EOFError:
            outcome = "closed"
        except errors.ProtocolError:
            outcome = "refused"  # in another protocol, which is how HTTP is answered
        except TimeoutError:
            outcome = "nothing"
        return Attacked(attack, outcome, time.monotonic() - since, answer)


def play(address: str, object_id: str, attacks: Iterable[Attack], within_s: float) -> list[Attacked]:
    """Play them, and see what becomes of each in that time."""
    played: list[Attacked] = []
    waiting = list(attacks)
    while waiting:
        some, waiting = waiting[:TOGETHER], waiting[TOGETHER:]
        peers = [Peer(address) for _ in some]
        try:
            for attack, peer in zip(some, peers, strict=True):
                if attack.greeted:
                    peer.greet(object_id)
            begun = time.monotonic()
            for attack, peer in zip(some, peers, strict=True):
                peer.send(attack.data)
            for attack, peer in zip(some, peers, strict=True):
                played.append(peer.outcome(attack, begun, begun + within_s))
        finally:
            for peer in peers:
                peer.sock.close()
    return played


def peak_memory(pid: int) -> int:
    """The most memory that a process has had, in bytes, since its peak was forgotten."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    """Let the peak begin again with what the process has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


# -- how the bytes are made ------------------------------------------------------------------------------


def greeting(object_id: str) -> bytes:
    """The connect frame of a stock client."""
    data = {"handshake": "hello", "object": object_id}
    return encode_frame(FrameType.CONNECT, JSON, 0, 0, json.dumps(data).encode())


def raw_frame(kind: int, serializer: int = JSON, payload: bytes = b"", **fields: int | bytes) -> bytes:
    """A frame any of whose header fields may be wrong; `annotations` precede the payload."""
    annotations = fields.pop("annotations", b"")
    assert isinstance(annotations, bytes)
    header = {
        "magic": b"PYRO", "version": 502, "type": kind, "serializer": serializer, "flags": 0, "sequence": 7,
        "size": len(payload), "annotations_size": len(annotations), "correlation": bytes(16), "reserved": 0,
        "check": 0x4DC5,
    }  # fmt: skip
    return HEADER.pack(*(header | fields).values()) + annotations + payload


def _text(text: str) -> bytes:
    return ormsgpack.packb(text)


def call(serializer: int, object_id: str, method: str, argument: bytes) -> bytes:
    """The payload of a call whose one argument is what the serializer reads in these bytes."""
    if serializer == JSON:
        head = json.dumps([object_id, method])[1:-1].encode()
        target, _, name = head.partition(b", ")
        return b'{"object":%s,"method":%s,"params":[%s],"kwargs":{}}' % (target, name, argument)
    if serializer in (MSGPACK, NATIVE):
        return b"\x94" + _text(object_id) + _text(method) + b"\x91" + argument + b"\x80"
    if serializer == MARSHAL:
        names = b"".join(
            b"u" + struct.pack("<i", len(text.encode())) + text.encode() for text in (object_id, method)
        )
        return b"(\x04\x00\x00\x00" + names + b"(\x01\x00\x00\x00" + argument + b"{0"
    return b"# serpent utf-8 python3.2\n(%s,%s,(%s,),{})" % (
        repr(object_id).encode(),
        repr(method).encode(),
        argument,
    )


def _invoke(serializer: int, payload: bytes, flags: int = 0, **fields: int | bytes) -> bytes:
    return raw_frame(FrameType.INVOKE, serializer, payload, flags=flags, **fields) + PING


def _chunk(name: bytes, size: int, data: bytes = b"") -> bytes:
    return name + size.to_bytes(4, "big") + data


# -- the list --------------------------------------------------------------------------------------------


def attacks(object_id: str, method: str) -> Iterator[Attack]:
    """All of them, against an object there is and a method of it that takes one argument or more."""
    plain = call(JSON, object_id, method, b"1")
    yield from _strangers(object_id)
    yield from _damaged(object_id, plain)
    yield from _headers(object_id, plain)
    yield from _annotations(plain)
    yield from _serializers(object_id, method)
    yield from _compressed(plain)
    yield from _values(object_id, method)
    yield from _classes(object_id, method)
    yield from _names(object_id, method)
    yield from _batches(object_id, method)


TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))


def _strangers(object_id: str) -> Iterator[Attack]:
    said = {
        "zeros": bytes(64), "bytes": bytes(range(256)) * 8, "tls": TLS_HELLO, "newline": b"\r\n\r\n",
        "get": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "post": b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "ssh": b"SSH-2.0-OpenSSH_9.6\r\n", "redis": b"PING\r\n",
        "postgres": b"\x00\x00\x00\x08\x04\xd2\x16\x2f", "pickle": b"\x80\x05\x95cos\nsystem\n(S'id'\ntR.",
        "silence": b"", "magic": b"PYRO", "half": greeting(object_id)[:20], "body": greeting(object_id)[:-1],
    }  # fmt: skip
    for name, data in said.items():
        yield Attack(1, name, data, greeted=False, refused=True)
        if data:
            yield Attack(1, f"{name} after the greeting", data, refused=True)


def _damaged(object_id: str, plain: bytes) -> Iterator[Attack]:
    hello = greeting(object_id)
    frame = raw_frame(FrameType.INVOKE, JSON, plain)
    for bit in range(0, 40 * 8, 2):
        flipped = bytearray(hello)
        flipped[bit // 8] ^= 1 << bit % 8
        yield Attack(2, f"greeting with bit {bit} flipped", bytes(flipped), greeted=False)
    for bit in range(0, len(frame) * 8, 7):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        yield Attack(2, f"call with bit {bit} flipped", bytes(flipped) + PING)
    for size in range(1, len(hello), 5):
        yield Attack(2, f"{size} bytes of a greeting", hello[:size], greeted=False, refused=True)
    for size in range(1, len(frame), 5):
        yield Attack(2, f"{size} bytes of a call", frame[:size], refused=True)


def _headers(object_id: str, plain: bytes) -> Iterator[Attack]:
    wrong: dict[str, dict[str, int | bytes]] = {
        "magic": {"magic": b"PYRP"}, "lower case": {"magic": b"pyro"}, "version 501": {"version": 501},
        "version 0": {"version": 0}, "check": {"check": 0x4DC6},
    }  # fmt: skip
    for name, fields in wrong.items():
        yield Attack(3, f"{name} in a call", _invoke(JSON, plain, 0, **fields), refused=True)
        hello = raw_frame(FrameType.CONNECT, JSON, b"{}", **fields)
        yield Attack(3, f"{name} in a greeting", hello, greeted=False, refused=True)
    for kind in (0, 1, 2, 3, 5, 7, 16, 17, 18, 99, 255):
        yield Attack(3, f"type {kind}", raw_frame(kind, JSON, plain), refused=True)
        nothing = raw_frame(kind, JSON, b"{}")
        yield Attack(3, f"type {kind} first", nothing, greeted=False, refused=True)
    yield Attack(3, "reserved", _invoke(JSON, plain, reserved=0xFFFF))
    yield Attack(3, "all flags", _invoke(JSON, plain, 0xFFFF))
    for size in (0, 1, 2**20, 2**20 + 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1):
        for field in ("size", "annotations_size"):
            long: dict[str, int | bytes] = {field: size}
            frame = raw_frame(FrameType.INVOKE, JSON, plain, **long)
            yield Attack(4, f"{field} {size}", frame, refused=size > 0)
            hello = raw_frame(FrameType.CONNECT, JSON, b"{}", **long)
            yield Attack(4, f"{field} {size} in a greeting", hello, greeted=False, refused=True)
    both: dict[str, int | bytes] = {"size": 2**32 - 1, "annotations_size": 2**32 - 1}
    yield Attack(4, "both", raw_frame(FrameType.INVOKE, JSON, plain, **both), refused=True)


def _annotations(plain: bytes) -> Iterator[Attack]:
    for name, beside, refused in (
        ("past the end", _chunk(b"ABCD", 0xFFFF), True),
        ("past the end by one", _chunk(b"ABCD", 2, b"x"), True),
        ("half a head", b"ABCD\x00", True),
        ("empty", _chunk(b"ABCD", 0), False),
        ("twice", _chunk(b"ABCD", 1, b"x") + _chunk(b"ABCD", 1, b"y"), False),
        ("no ascii", _chunk(b"\xff\xfe\xfd\xfc", 0), True),
        ("zeros", _chunk(bytes(4), 0), False),
        ("65", b"".join(_chunk(b"A%03d" % n, 0) for n in range(65)), True),
        ("65 of one name", _chunk(b"SAME", 0) * 65, True),
        ("125,000", _chunk(b"SAME", 0) * 125_000, True),
        ("too large", _chunk(b"ABCD", MiB, bytes(MiB)), True),
        ("our context", _chunk(b"OBJS", 5, b"\xff" * 5), False),
        ("our promises", _chunk(b"PROM", 5, b"\x92\xc0\x80\xff\xff"), False),
        ("buffers that are not there", _chunk(b"OBJB", 4, b"\x93\x00\x05\x05"), False),
        ("a blob's label", _chunk(b"BLBI", 4, b"c\xff\xff\xff"), False),
    ):
        yield Attack(5, name, _invoke(JSON, plain, annotations=beside), refused=refused)
    yield Attack(5, "a blob without a label", _invoke(JSON, plain, Flag.KEEP_SERIALIZED), refused=True)


def _serializers(object_id: str, method: str) -> Iterator[Attack]:
    for serializer in (0, 5, 6, 78, 80, 255):
        frame = _invoke(serializer, call(JSON, object_id, method, b"1"))
        yield Attack(6, f"serializer {serializer}", frame, refused=True)
        hello = raw_frame(FrameType.CONNECT, serializer, b"{}")
        yield Attack(6, f"greeting in serializer {serializer}", hello, greeted=False, refused=True)
    marshalled = call(MARSHAL, object_id, method, b"N")
    yield Attack(6, "marshal, which is off", _invoke(MARSHAL, marshalled), refused=True)
    hello = raw_frame(FrameType.CONNECT, MARSHAL, b"{0")
    yield Attack(6, "greeting in marshal", hello, greeted=False, refused=True)


def _compressed(plain: bytes) -> Iterator[Attack]:
    def packed(data: bytes, **fields: int | bytes) -> bytes:
        return _invoke(JSON, data, Flag.COMPRESSED, **fields)

    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(4 * MiB)) for _ in range(64)) + packer.flush()
    for name, data in {
        "a bomb of 256 MiB": bomb, "a bomb in a bomb": zlib.compress(bomb, 9), "no data": b"",
        "cut off": zlib.compress(plain)[:-3], "trailing data": zlib.compress(plain) + b"more",
        "twice compressed": zlib.compress(zlib.compress(plain)), "not compressed": plain,
        "wrong checksum": zlib.compress(plain)[:-1] + b"\x00", "gzip": b"\x1f\x8b\x08" + bytes(20),
    }.items():  # fmt: skip
        yield Attack(7, name, packed(data), refused=True)
        hello = raw_frame(FrameType.CONNECT, JSON, data, flags=Flag.COMPRESSED)
        yield Attack(7, f"{name} as greeting", hello, greeted=False, refused=True)
    spaces = b" " * (MiB - 100)
    yield Attack(7, "as much as may be", packed(zlib.compress(plain + spaces, 9)))


OPENING = {SERPENT: (b"[", b"]"), JSON: (b"[", b"]"), MSGPACK: (b"\x91", b""), NATIVE: (b"\x91", b"")}
KEYED = {
    SERPENT: (b"{1:", b"}"),
    JSON: (b'{"a":', b"}"),
    MSGPACK: (b"\x81\xa1a", b""),
    NATIVE: (b"\x81\xa1a", b""),
}


def _values(object_id: str, method: str) -> Iterator[Attack]:
    for serializer in OPENING:
        for levels in (101, 1_000, 100_000):
            for what, (opening, closing) in (("lists", OPENING[serializer]), ("dicts", KEYED[serializer])):
                value = opening * levels + (b"1" if serializer < MSGPACK else b"\x01") + closing * levels
                payload = call(serializer, object_id, method, value)
                yield Attack(
                    8, f"{levels} {what} in {serializer}", _invoke(serializer, payload), refused=True
                )
    for name, serializer, value in _large_values():
        yield Attack(8, name, _invoke(serializer, call(serializer, object_id, method, value)))


def _large_values() -> Iterator[tuple[str, int, bytes]]:
    many, digits = 300_000, b"9" * 100_000
    texts = {
        "items": b"[" + b"1," * many + b"1]", "lists": b"[" + b"[]," * 200_000 + b"1]",
        "digits": digits, "a float of digits": b"0." + digits,
        "a text": b'"' + b"x" * 900_000 + b'"', "escapes": b'"' + b"\\u0041" * 100_000 + b'"',
        "an exponent": b"1e999999999",
        "surrogates": b'"\\ud800\\udfff\\ud800"',
        "keys that come twice": b"{" + b'"a":1,' * 50_000 + b'"a":1}',
        "no end": b'"' + b"x" * 500_000, "a bare end": b"]" * 1_000,
    }  # fmt: skip
    for serializer in (SERPENT, JSON):
        for name, value in texts.items():
            yield f"{name} in {serializer}", serializer, value
    collisions = [n * (2**61 - 1) for n in range(20_000)]
    yield "NaN in json", JSON, b"[NaN,Infinity,-Infinity]"
    yield "colliding numbers in serpent", SERPENT, b"{%s}" % ",".join(map(str, collisions)).encode()
    for name, source in {
        "signs": b"-" * 50_000 + b"1", "sums": b"1" + b"+1" * 50_000,
        "calls": b"f(" * 5_000 + b")" * 5_000,
        "an import": b"__import__('os').system('true')", "attributes": b"a" + b".a" * 50_000,
        "a comprehension": b"[x for x in (1,)]", "lambda": b"lambda:" * 5_000 + b"1",
        "an f-string": b"f'{1}'",
        "subscripts": b"[1]" + b"[0]" * 50_000, "powers": b"9**9**9", "lines": b"1\n" * 100_000,
        "sets": b"[" + b"set()," * 100_000 + b"]", "zero": b"'\0'", "backslashes": b"'" + b"\\" * 99_999,
        "strings": b"[" + b"''," * 200_000 + b"]", "comments": b"[1" + b"#\n" * 200_000 + b"]",
    }.items():  # fmt: skip
        yield f"{name} in serpent", SERPENT, source
    for serializer in (MSGPACK, NATIVE):
        pack, ext = ormsgpack.packb, ormsgpack.Ext
        for name, value in {
            "small items": b"\xdd\x00\x0d\xbb\xa0" + b"\x01" * 900_000,
            "dicts": b"\xdd\x00\x0d\xbb\xa0" + b"\x80" * 900_000,
            "more items than bytes": b"\xdd\xff\xff\xff\xff", "more keys than bytes": b"\xdf\xff\xff\xff\xff",
            "a text longer than the message": b"\xdb\xff\xff\xff\xffx", "bad utf-8": b"\xa2\xff\xfe",
            "surrogates": b"\xa3\xed\xa0\x80", "floats": pack([float("nan"), float("inf"), -0.0]),
            "keys that come twice": b"\xde\xff\xff" + b"\xa1a\x01" * 65_535,
            "keys with one hash": b"\xde\x40\x00" + b"".join(_tuples(14)), "no value": b"\xc1",
            "a timestamp": b"\xc7\x0c\xff" + b"\xff" * 12, "nested exts": _nested_exts(150),
        }.items():  # fmt: skip
            yield f"{name} in {serializer}", serializer, value
        for tag in (*range(14), 32, 33, 48, 49, 50, 51, *range(63, 74), 127):
            for data in (b"", b"\x91\xc1", pack([[]] * 20), b"\xff" * 40, pack({"__class__": "x"})):
                yield f"ext {tag} with {data[:4]!r} in {serializer}", serializer, pack(ext(tag, data))
    pack, ext = ormsgpack.packb, ormsgpack.Ext
    number = pack(ext(64, b"\x7f" * 200_000))
    yield "a fraction of large numbers", NATIVE, pack(ext(5, b"\x92" + number + number))
    yield (
        "colliding numbers in a set",
        NATIVE,
        pack(ext(2, pack([ext(64, n.to_bytes(12, "big")) for n in collisions]))),
    )
    yield "proxies", NATIVE, pack([ext(70, b"PYRO:x@127.0.0.1:1")] * 20_000)


def _tuples(length: int) -> Iterator[bytes]:
    """Keys of a map that all have the same hash: -1 and -2 have."""
    for number in range(2**length):
        yield ormsgpack.packb([-1 - (number >> bit & 1) for bit in range(length)]) + b"\x01"


def _nested_exts(levels: int) -> bytes:
    data = b"\x90"
    for _ in range(levels):
        data = b"\x91" + ormsgpack.packb(ormsgpack.Ext(1, data))
    return data


CLASSES = (
    "builtins.eval", "os.system", "subprocess.Popen", "SystemExit", "builtins.KeyboardInterrupt", "object",
    "__main__.X", "objserver.errors.ObjServerError", "Pyro5.errors.PyroError", "", "a" * 5_000, "a.b.c",
)  # fmt: skip


def _classes(object_id: str, method: str) -> Iterator[Attack]:
    shapes: list[object] = []
    for name in CLASSES:
        shapes += [
            {"__class__": name},
            {"__class__": name, "__exception__": True, "args": ["x"], "attributes": {"args": 1, "x": 2}},
            {"__class__": name, "__exception__": True, "args": 5, "attributes": 6},
        ]
    hostile = {
        "__init__": 1,
        "__class__": "x",
        "with_traceback": 1,
        "__traceback__": 1,
        "__cause__": 2,
        "args": 3,
    }
    shapes += [
        {"__class__": 5}, {"__class__": None}, {"__class__": ["x"]}, {"__class__": {"__class__": "x"}},
        {"__class__": "Pyro5.core.URI"}, {"__class__": "Pyro5.core.URI", "state": []},
        {"__class__": "Pyro5.core.URI", "state": [1, 2, 3, 4, 5]},
        {"__class__": "Pyro5.client.Proxy", "state": ["PYRO:x@127.0.0.1:1"] * 8},
        {"__class__": "Pyro5.client.Proxy", "state": "PYRO:x@127.0.0.1:1"},
        {"__class__": "Pyro5.core._ExceptionWrapper"},
        {"__class__": "Pyro5.core._ExceptionWrapper", "exception": {"__class__": "SystemExit", "args": []}},
        {"__class__": "ValueError", "__exception__": True, "args": [], "attributes": hostile},
        {"__class__": "UnicodeDecodeError", "__exception__": True, "args": ["utf-8", "x", -(10**9), 5, "r"],
         "attributes": {"start": -(10**9)}},
        {"__class__": "float", "value": "nan"}, {"__class__": "float", "value": "1" * 10_000},
    ]  # fmt: skip
    for number, shape in enumerate(shapes):
        for serializer in (SERPENT, JSON, MSGPACK, NATIVE):
            argument = _written(serializer, [shape, {"deep": shape}])
            payload = call(serializer, object_id, method, argument)
            yield Attack(9, f"class {number} in {serializer}", _invoke(serializer, payload))
    for name in CLASSES:
        inside = ormsgpack.packb([name, ["x"], {"__init__": 1, "args": 2}, "text"])
        for tag in (9, 10, 11, 12):
            argument = ormsgpack.packb(ormsgpack.Ext(tag, inside))
            yield Attack(
                9, f"{name[:30]} as ext {tag}", _invoke(NATIVE, call(NATIVE, object_id, method, argument))
            )


def _written(serializer: int, value: object) -> bytes:
    if serializer == SERPENT:
        return repr(value).encode()
    return json.dumps(value).encode() if serializer == JSON else ormsgpack.packb(value)


NAMES = (
    "__class__", "__init__", "__reduce__", "__reduce_ex__", "__getattr__", "__getattribute__", "__setattr__",
    "__dict__", "__del__", "__subclasshook__", "__call__", "__new__", "_private", "__", "_", "",
    " ", ".", "..",
    "{m}.__func__", "{m}.__globals__", "__class__.__base__", "{m}\0", "{m} ", " {m}", "{M}", "{m}\n",
    "x" * 1_001, "x" * 500_000, "\u202e{m}", "{m}\u200b", "../{m}", "{m}()", "%s", "{0.__class__}", "{wide}",
)  # fmt: skip
"""Method names; {m} is one that there is, {M} the same in capitals, {wide} in full-width letters."""


def _names(object_id: str, method: str) -> Iterator[Attack]:
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in method)
    for name in NAMES:
        named = name.replace("{m}", method).replace("{M}", method.upper()).replace("{wide}", wide)
        for serializer in (SERPENT, JSON, MSGPACK, NATIVE):
            payload = call(serializer, object_id, named, b"1" if serializer < MSGPACK else b"\x01")
            frame = raw_frame(FrameType.INVOKE, serializer, payload)
            yield Attack(10, f"method {named[:20]!r} in {serializer}", frame, refused=True)
        payload = call(JSON, named or "-", method, b"1")
        yield Attack(10, f"object {named[:20]!r}", raw_frame(FrameType.INVOKE, JSON, payload), refused=True)
    ids = ("Pyro.Daemon/x", "'; DROP TABLE states; --", "../../etc/passwd", "a/b/c", object_id + "\0", "~1")
    for name in (*ids, "x" * 900_000, "\u0000", "\ud800", "%2e%2e/"):
        payload = call(JSON, name, method, b"1")
        yield Attack(10, f"object {name[:20]!r}", raw_frame(FrameType.INVOKE, JSON, payload), refused=True)
        yield Attack(10, f"greeting of {name[:20]!r}", greeting(name), greeted=False)
    for part in (b"1", b"null", b"true", b"[]", b"{}", b"1e5"):
        for parts in (
            (part, b'"x"', b"[]", b"{}"),
            (json.dumps(object_id).encode(), part, b"[]", b"{}"),
            (json.dumps(object_id).encode(), json.dumps(method).encode(), b'"x"', part),
        ):
            payload = b'{"object":%s,"method":%s,"params":%s,"kwargs":%s}' % parts
            name = f"a call of {[part.decode() for part in parts]}"
            yield Attack(10, name, raw_frame(FrameType.INVOKE, JSON, payload), refused=True)
    for name in ("__class__", "_private", "__init__", method):
        for magic in ("__getattr__", "__setattr__"):
            argument = json.dumps(name).encode() + (b",1" if magic == "__setattr__" else b"")
            payload = call(JSON, object_id, magic, argument)
            yield Attack(10, f"{magic} of {name}", raw_frame(FrameType.INVOKE, JSON, payload), refused=True)


def _batches(object_id: str, method: str) -> Iterator[Attack]:
    def batch(calls: object) -> bytes:
        data = {"object": object_id, "method": "<batch>", "params": calls, "kwargs": {}}
        return _invoke(JSON, json.dumps(data).encode(), Flag.BATCH)

    yield Attack(13, "a batch of 20,000 calls", batch([[method, [1], {}]] * 20_000), refused=True)
    wrong: tuple[object, ...] = ([5], [[]], [[method]], [[method, 1, 2]], [[5, [], {}]], {"a": 1}, "text")
    for calls in wrong:
        yield Attack(13, f"a batch of {str(calls)[:20]}", batch(calls), refused=True)
