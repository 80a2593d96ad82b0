"""Frames broken at random: whatever comes, only errors of the protocol come out, and nothing is kept.

    python -m objserver.testing.fuzz --seed 17 --frames 1000000

Each frame begins as one that a peer might send: a call in every codec, a greeting, a batch, with annotations,
compressed, large.  Then it is broken: bits flip, it is cut, extended, glued to another, its lengths are
others, or its payload is damaged and its header is right, so that the damage reaches the decoders.  It is
read whole and in pieces, which must come to the same, and what is read is decoded, as a server would.

Everything follows from the seed, so the `digest` of a run is the same in every process that has loaded the
same modules (references become proxies where the client room is), with and without the compiled parts too.
The first thing that is wrong is an AssertionError with the bytes that show it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from random import Random
from typing import Any

from objserver import errors, pyro5
from objserver.codecs import Codecs, marshalled
from objserver.codecs.exceptions import repr_of
from objserver.invocation import CallId
from objserver.references import Reference
from objserver.settings import KiB, Limits
from objserver.wire import (
    CallContext,
    Extension,
    Flag,
    Frame,
    FrameParser,
    FrameType,
    Probe,
    Promises,
    encode_frame,
)
from objserver.wire.buffers import Arrived, Parts, parts_frame
from objserver.wire.frames import HEADER_SIZE, NO_CORRELATION, plain_request

__all__ = ["LIMITS", "Examiner", "Outcome", "broken", "fuzz", "main", "sound_frames"]

LIMITS = Limits(
    frame_size_max=200 * KiB,
    annotations_max=6,
    annotations_size_max=2 * KiB,
    nesting_max=12,
    decoded_size_max=128 * KiB,
    shared_buffer_size_max=64 * KiB,
)
"""So small that each of them is met, and so large that a payload can be one that is received in place."""

VALUES: tuple[Any, ...] = (
    None,
    [1, -1, 2**40, -(2**63), 2**200, 1.5, float("inf"), True],
    {"key": "v\u00e4lue", "deep": {"list": [[[[]]]], "": {}}},
    {1: (2, 3), None: {4}, (5, 6): frozenset({7}), 1.5: b"x"},
    ["text " * 20, b"bytes" * 60, bytearray(b"array")],
    [datetime.datetime(2024, 2, 29, 12, 30), datetime.date(1999, 1, 2), datetime.timedelta(1, 2, 3)],
    [Decimal("1.50"), Fraction(1, 3), 1 + 2j, uuid.UUID(int=5), PurePosixPath("/x")],
    [Reference.parse("PYRO:obj@localhost:9090"), Reference.parse("PYRO:~1@./u:/x")],
    ValueError("wrong", 5, {"why": [1]}),
    [KeyError("k"), OSError(2, "gone", "file"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")],
    {"__class__": "builtins.eval", "args": ["1"]},
    {"__class__": "Pyro5.client.Proxy", "state": ["PYRO:x@localhost:1", [], [], [], "hello", None]},
    {"__class__": "Pyro5.core.URI", "state": ["PYRO", "x", None, "localhost", 1]},
    {
        "__class__": "ValueError",
        "__exception__": True,
        "args": ["x"],
        "attributes": {"_pyroTraceback": ["t"]},
    },
    list(range(100)),
    [0.5] * 100,
)
NUMBERS = (0, 1, 2, 7, 39, 40, 41, 127, 128, 255, 256, 2048, 2049, 65535, 65536, 204800, 2**31, 2**32 - 1)
LARGE_EVERY = 600
"""One frame in so many is a large one."""
KNOWN_MAX = 1_000
"""Payloads that need not be decoded twice: most frames are broken elsewhere."""
CUT_EVERY = 4
"""... and one is read in pieces too."""


def _calls(codecs: Codecs) -> Iterator[tuple[int, bytes]]:
    """Serializer and payload of calls, greetings and results, as far as the codec can write them."""
    greeting: dict[str, Any] = {"handshake": "hello", "object": "echo"}
    peer = greeting | {"objserver": Extension(session="s" * 32, client="c", multiplexed=True).to_data()}
    batch = [["echo", [1], {}], ["echo", [], {"value": 2}]]
    for codec in codecs.by_id.values():
        # Reading serpent and marshal takes ten times as long; the others are not to wait for that.
        for value in (*(VALUES[::4] if codec.name in ("serpent", "marshal") else VALUES), greeting, peer):
            try:
                yield codec.serializer_id, codec.encode(value)
                yield codec.serializer_id, codec.encode_call("echo", "echo", [value], {"named": value})
            except errors.ProtocolError:
                continue
        yield codec.serializer_id, codec.encode_call("echo", "<batch>", batch, {})


def sound_frames() -> tuple[list[bytes], list[bytes]]:
    """Frames that a peer might send: small ones, and large ones."""
    codecs = Codecs(LIMITS, marshal=True, arrive=lambda reference: reference)
    call = CallId(b"c" * 16, 7, b"p" * 16)
    contexts = [CallContext(1.5, ("a", "b")), CallContext(None, ("a",), call, 3, True)]
    annotations: list[dict[str, bytes]] = [
        *({"OBJS": context.encode()} for context in contexts),
        {"PROM": Promises(3, {0: 1, "x": 2}).encode()},
        {"OBJB": b"\x92\x05\x03"},
        {"USER": b"x" * 20, "MORE": b""},
        {"BLBI": b"(\x03\x00\x00\x00u\x01\x00\x00\x00iu\x01\x00\x00\x00ou\x01\x00\x00\x00m"},
        {f"A{number:03}": b"" for number in range(6)},
    ]
    small = [
        encode_frame(FrameType.PING, 0, 0, 1, b"ping"),
        encode_frame(FrameType.CANCEL, 79, 0, 1, b""),
        encode_frame(FrameType.GOODBYE, 79, 0, 0, b""),
        encode_frame(FrameType.PROBE, 79, 0, 3, Probe(1, 0.5, 64, (("call", 1), ("next", 2))).encode()),
    ]
    for number, (serializer, payload) in enumerate(_calls(codecs)):
        kind = (FrameType.INVOKE, FrameType.RESULT, FrameType.CONNECT, FrameType.INVOKE)[number % 4]
        flags = (0, 0, Flag.ONEWAY, Flag.BATCH, Flag.EXCEPTION, Flag.KEEP_SERIALIZED, Flag.KEEP)[number % 7]
        small.append(encode_frame(kind, serializer, flags, number, payload))
        beside = annotations[number % len(annotations)]
        small.append(encode_frame(FrameType.INVOKE, serializer, flags, number, payload, beside))
        if number % 3 == 0:
            packed = zlib.compress(payload)
            small.append(encode_frame(kind, serializer, Flag.COMPRESSED, number, packed, None, b"c" * 16))
    blocks = Parts(codecs.native.encode([1]), [b"x" * 100, b"y" * 50])
    for numbers in (Parts(codecs.native.encode([1]), []), blocks):
        small.append(parts_frame(FrameType.INVOKE, 79, 0, 9, numbers, None, NO_CORRELATION, None, KiB))
    room = 100 * KiB
    large = [
        encode_frame(FrameType.INVOKE, 79, 0, 5, codecs.native.encode_call("o", "m", [b"x" * room], {})),
        encode_frame(FrameType.INVOKE, 1, 0, 6, codecs.serpent.encode_call("o", "m", ["x" * room], {})),
        encode_frame(FrameType.INVOKE, 3, Flag.COMPRESSED, 7, zlib.compress(bytes(1000 * KiB), 9)),
        encode_frame(FrameType.INVOKE, 4, 0, 8, b"\x94\xa1o\xa1m\x91" + b"\x91" * room, annotations[0]),
    ]
    return small, large


def broken(frame: bytes, other: bytes, random: Random) -> bytes:
    """The frame with something done to it; `other` is one to take parts from."""
    draw = random.random
    data = bytearray(frame)
    for _ in range(1 if draw() < 0.7 else 3):
        size = len(data)
        if not size:
            return other
        kind = int(draw() * 11)
        at = int(draw() * size)
        if kind == 0:  # a bit
            data[at] ^= 1 << int(draw() * 8)
        elif kind == 1:  # a byte of the header or of the first annotation
            data[int(draw() * min(size, HEADER_SIZE + 8))] = int(draw() * 256)
        elif kind == 2:  # a length
            place = (12, 16, HEADER_SIZE + 4)[int(draw() * 3)]
            data[place : place + 4] = NUMBERS[int(draw() * len(NUMBERS))].to_bytes(4, "big")
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data += other[int(draw() * len(other)) :] if draw() < 0.5 else other
        elif kind == 5:  # flags, and the serializer
            data[min(7 + int(draw() * 3), size - 1)] = (0, 1, 2, 3, 4, 79, 1 << int(draw() * 8))[
                int(draw() * 7)
            ]
        elif kind == 6:  # an annotation more, or so many that they are too many
            more = (b"MORE" + bytes(4)) * (1 + int(draw() * 9))
            data[HEADER_SIZE:HEADER_SIZE] = more
            beside = int.from_bytes(data[16:20], "big") + len(more)
            data[16:20] = (beside & 0xFFFFFFFF).to_bytes(4, "big")
        else:  # damage inside, and a header that fits
            start = HEADER_SIZE + int.from_bytes(data[16:20], "big")
            if start < size:
                at = start + int(draw() * (size - start))
                if kind == 7:
                    data[at] ^= 1 << int(draw() * 8)
                elif kind == 8:
                    data[at:at] = bytes((int(draw() * 256),))
                elif kind == 9:
                    del data[at : at + 1 + int(draw() * 4)]
                else:
                    end = at + int(draw() * 30)
                    data[at:end] = other[HEADER_SIZE + at - start : HEADER_SIZE + end - start]
                data[12:16] = (len(data) - start).to_bytes(4, "big")
    return bytes(data)


@dataclasses.dataclass
class Outcome:
    """What became of so many frames."""

    frames: int = 0
    read: int = 0
    """Frames that the parser took for whole."""
    refused: int = 0
    """Streams that ended with an error."""
    decoded: int = 0
    """Values that came out of payloads."""
    digest: int = 0
    """A checksum of all that was observed."""


class Examiner:
    """Reads bytes as a server does, and holds what comes out against the promises."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.codecs = Codecs(limits, marshal=True, arrive=lambda reference: reference)
        self.outcome = Outcome()
        self._parser: FrameParser | None = None
        self._known: dict[tuple[int, int, int, bytes], str] = {}

    def examine(self, data: bytes, cuts: Sequence[int] = ()) -> None:
        """Read `data` whole, and in pieces that begin at `cuts`; decode it.  AssertionError if that differs,
        or if anything but an error of the protocol is raised."""
        outcome = self.outcome
        outcome.frames += 1
        whole, problem, missing = self._read(data, ())
        if cuts:
            self._compare(data, cuts, whole, problem, missing)
        if problem is not None:
            outcome.refused += 1
        outcome.read += len(whole)
        digest = zlib.crc32(f"{type(problem).__name__} {missing}".encode(), outcome.digest)
        for frame in whole:
            became = self._decode(frame, data)
            line = f"{frame.type} {frame.flags} {frame.sequence} {len(frame.payload)} {became}"
            digest = zlib.crc32(line.encode(), digest)
        outcome.digest = digest

    def _compare(
        self,
        data: bytes,
        cuts: Sequence[int],
        whole: list[Frame],
        problem: errors.ProtocolError | None,
        missing: int,
    ) -> None:
        pieces, other, still = self._read(data, cuts)
        agree = type(problem) is type(other)
        if problem is None:
            agree = agree and missing == still and [*map(_seen, whole)] == [*map(_seen, pieces)]
            plain = plain_request(data, self.limits.frame_size_max)
            if plain is not None and [*map(_seen, whole)] != [_seen(plain)]:
                raise AssertionError(f"{plain} instead of {whole}: {data!r}")
        if not agree:
            raise AssertionError(
                f"whole: {whole} {problem!r} {missing}; cut at {cuts}: {pieces} {other!r} {still}: {data!r}"
            )

    def _read(self, data: bytes, cuts: Sequence[int]) -> tuple[list[Frame], errors.ProtocolError | None, int]:
        """The frames in `data`, the error that ends them, and how much is missing of the next."""
        parser = self._parser or FrameParser(self.limits)
        parser.parts_in = self.codecs.native.serializer_id
        self._parser = None
        frames: list[Frame] = []
        try:
            for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
                piece = memoryview(data)[start:end] if cuts else data
                while cuts and piece and (space := parser.space()) is not None:
                    count = min(len(space), len(piece))
                    space[:count] = piece[:count]
                    piece = piece[count:]
                    frames += parser.received(count)
                if piece:
                    frames += parser.receive_data(bytes(piece))
        except errors.ProtocolError as problem:
            if parser.buffered and not cuts:
                raise AssertionError(f"something is kept after {problem!r}: {data!r}") from None
            return frames, problem, 0
        except Exception as problem:
            raise AssertionError(f"{problem!r} from the parser, cut at {cuts}: {data!r}") from problem
        if parser.buffered == 0:
            self._parser = parser  # it stands between two frames, as on a connection
        return frames, None, parser.missing

    def _decode(self, frame: Frame, data: bytes) -> str:
        """Do what a server does with a frame; what it was."""
        try:
            for name, decode in _BESIDE:
                if name in frame.annotations:
                    decode(frame.annotations[name])
            if type(frame.payload) is not bytes:
                return self._taken(frame)
            what = frame.type, frame.serializer_id, frame.flags & Flag.KEEP_SERIALIZED, frame.payload
            became = self._known.get(what)
            if became is None:
                became = self._taken(frame)
                if len(self._known) < KNOWN_MAX:
                    self._known[what] = became
            return became
        except errors.ProtocolError:
            return "refused"
        except BaseException as problem:
            raise AssertionError(f"{problem!r} from decoding {frame}: {data!r}") from problem

    def _taken(self, frame: Frame) -> str:
        if frame.type == FrameType.PROBE:
            Probe.decode(frame.payload)
            return "probe"
        codec = self.codecs.get(frame.serializer_id)
        if frame.type == FrameType.INVOKE:
            if frame.flags & Flag.KEEP_SERIALIZED:
                marshalled.loads(frame.annotations.get("BLBI", b""))
            _, _, args, _ = codec.decode_call(frame.payload)
            self.outcome.decoded += 1
            return type(args).__name__
        value = codec.decode(frame.payload)
        self.outcome.decoded += 1
        if isinstance(value, (BaseException, pyro5.ExceptionWrapper)):
            repr_of(value)
            str(value)
        if isinstance(value, dict) and frame.type == FrameType.CONNECT:
            Extension.from_handshake(value)
        return type(value).__name__


_BESIDE: tuple[tuple[str, Any], ...] = (("OBJS", CallContext.decode), ("PROM", Promises.decode))


def _seen(frame: Frame) -> tuple[Any, ...]:
    payload = frame.payload
    content = bytes(payload.beside if isinstance(payload, Arrived) else payload)
    head = frame.type, frame.serializer_id, frame.flags, frame.sequence, sorted(frame.annotations)
    return *head, content, frame.correlation, dict(frame.annotations)


def fuzz(seed: int, frames: int) -> Outcome:
    """Examine so many broken frames."""
    random = Random(seed)
    draw = random.random
    small, large = sound_frames()
    examiner = Examiner()
    number = -1
    try:
        for frame in small:
            examiner.examine(frame)
        examiner.outcome = Outcome()
        for number in range(frames):
            frame = random.choice(large) if number % LARGE_EVERY == 0 else small[int(draw() * len(small))]
            data = broken(frame, small[int(draw() * len(small))], random)
            cuts: list[int] = []
            if number % CUT_EVERY == 0:
                cuts = sorted(int(draw() * (len(data) + 1)) for _ in range(1 + int(draw() * 4)))
            examiner.examine(data, cuts)
    except AssertionError as problem:
        problem.add_note(f"frame {number} of seed {seed}")
        raise
    return examiner.outcome


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m objserver.testing.fuzz",
        description="Broken frames against the parser and the codecs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="which frames")
    parser.add_argument("--frames", type=int, default=100_000, help="how many")
    options = parser.parse_args(arguments)
    began = time.process_time()
    outcome = fuzz(options.seed, options.frames)
    took = time.process_time() - began
    print(f"{outcome} in {took:.1f} s, {took / max(1, options.frames) * 1e6:.1f} µs each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
