"""A million broken frames: only errors of the protocol come out, whole and in pieces alike, compiled or not.

FUZZED_FRAMES says how many, FUZZED_FROM with which seed they begin; `make soak` lets a thousand times as
many come.
"""

import os
import subprocess
import sys
import zlib
from pathlib import Path
from random import Random

import pytest

from objserver import errors
from objserver.compiled import compiled
from objserver.testing import fuzz
from objserver.wire import FrameParser, frames

MiB = 1 << 20
SLICES = 8
FRAMES = int(os.environ.get("FUZZED_FRAMES", 1_000_000)) // SLICES
FIRST = int(os.environ.get("FUZZED_FROM", 0))
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SLICES))
def test_only_errors_of_the_protocol_come_out_of_broken_frames(seed):
    fuzz.fuzz(seed, min(FRAMES, 5_000))  # what is loaded and grows once
    before = resident()
    outcome = fuzz.fuzz(seed, FRAMES)
    assert outcome.frames == FRAMES
    assert outcome.read > FRAMES * 0.3
    assert outcome.refused > FRAMES * 0.1
    assert outcome.decoded > FRAMES * 0.02
    assert resident() - before < 32 * MiB


@pytest.mark.skipif(compiled("wire._kernel") is None, reason="this run is without the compiled part")
def test_the_compiled_parts_and_python_do_the_same_with_every_frame():
    program = "from objserver.testing.fuzz import fuzz; print(fuzz(5, 20_000))"
    told = [
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        for environment in (os.environ, {**os.environ, "OBJSERVER_PURE": "1"})
    ]
    assert told[0].stdout.startswith("Outcome(frames=20000"), told[0].stderr
    assert told[0].stdout == told[1].stdout


def test_a_seed_is_always_the_same_run():
    assert fuzz.fuzz(3, 2_000) == fuzz.fuzz(3, 2_000)
    assert fuzz.fuzz(3, 2_000).digest != fuzz.fuzz(4, 2_000).digest


def test_sound_frames_are_read_and_nearly_all_decoded():
    small, large = fuzz.sound_frames()
    examiner = fuzz.Examiner()
    for frame in small:
        examiner.examine(frame, [len(frame) // 2])
    assert examiner.outcome.refused == 0
    assert examiner.outcome.read == len(small)
    assert examiner.outcome.decoded > len(small) / 4  # each payload is in several frames
    for frame in large:
        examiner.examine(frame, [50, 70_000] if len(frame) > 70_000 else [50])
    assert examiner.outcome.refused == 1  # the one that inflates to more than may be


def test_every_codec_and_every_limit_is_met():
    seen = set()
    small, large = fuzz.sound_frames()
    random, examiner = Random(1), fuzz.Examiner()
    for number in range(20_000):
        frame = random.choice(large if number % 20 == 0 else small)
        data = fuzz.broken(frame, random.choice(small), random)
        try:
            for read in FrameParser(fuzz.LIMITS).receive_data(data):
                examiner.codecs.get(read.serializer_id).decode(read.payload)
                seen.add(read.serializer_id)
        except errors.MessageTooLarge as problem:
            seen.add(problem.limit)
        except errors.ProtocolError:
            pass
    limits = {"frame_size_max", "annotations_max", "annotations_size_max", "nesting_max", "decoded_size_max"}
    assert seen >= {1, 2, 3, 4, 79} | limits


# -- what is wrong is found ------------------------------------------------------------------------------


def test_a_foreign_error_of_the_parser_is_found(monkeypatch):
    monkeypatch.setattr("objserver.wire.parser.split_annotations", lambda data, limits: {}[data])
    with pytest.raises(AssertionError, match=r"KeyError.*from the parser") as caught:
        fuzz.fuzz(0, 1_000)
    assert any("of seed 0" in note for note in caught.value.__notes__)


def test_a_foreign_error_of_a_codec_is_found(monkeypatch):
    monkeypatch.setattr("objserver.codecs.NativeCodec._explain", lambda *args: ValueError("foreign"))
    with pytest.raises(AssertionError, match=r"ValueError.*from decoding"):
        fuzz.fuzz(0, 1_000)


def test_a_parser_that_minds_where_its_input_is_cut_is_found(monkeypatch):
    monkeypatch.setattr(FrameParser, "_keep", lambda self, data: self._chunks.insert(0, data))
    with pytest.raises(AssertionError, match=r"whole: .*cut at"):
        fuzz.fuzz(0, 1_000)


def test_a_fast_way_that_differs_is_found(monkeypatch):
    real = frames._pure_plain_request

    def careless(data, size_max):
        frame = real(data, size_max)
        if frame is not None and len(frame.payload) > 20:
            frame.payload = frame.payload[:-1]
        return frame

    monkeypatch.setattr(fuzz, "plain_request", careless)
    with pytest.raises(AssertionError, match="instead of"):
        fuzz.fuzz(0, 1_000)


def test_the_command_says_what_became_of_them(capsys):
    assert fuzz.main(["--seed", "2", "--frames", "500"]) == 0
    assert "frames=500" in capsys.readouterr().out


def test_there_is_a_bomb_among_the_sound_frames():
    _, large = fuzz.sound_frames()
    assert any(len(frame) < 5_000 and len(zlib.decompress(frame[40:])) > 500_000 for frame in large[2:3])
