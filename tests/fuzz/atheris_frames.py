"""Coverage-guided fuzzing of the parser and the codecs, with atheris: `make fuzz`.

    python tests/fuzz/atheris_frames.py [-max_total_time=600] [corpus directory]

The first two bytes of an input say where it is cut; the rest is what a peer sends.  It begins with the frames
of `objserver.testing.fuzz`, and promises the same: only errors of the protocol, whole and in pieces alike.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["OBJSERVER_PURE"] = "1"  # what is compiled cannot be watched

try:
    import atheris
except ImportError:
    print("skipped: atheris is not installed (pip install atheris; it needs Python 3.11 to 3.13 on Linux)")
    sys.exit(0)

with atheris.instrument_imports(include=["objserver.wire", "objserver.codecs"]):
    from objserver.testing import fuzz

EXAMINER = fuzz.Examiner()


def examine(data: bytes) -> None:
    """One input."""
    where, sent = data[:2], data[2:]
    cuts = sorted(byte * len(sent) // 255 for byte in where)
    EXAMINER.examine(sent, cuts)


def main() -> None:
    """Begin with the sound frames, unless a corpus is given."""
    arguments = sys.argv
    with tempfile.TemporaryDirectory(prefix="frames-") as corpus:
        if not any(Path(argument).is_dir() for argument in arguments[1:]):
            for number, frame in enumerate(fuzz.sound_frames()[0]):
                Path(corpus, f"{number:04}").write_bytes(b"\x40\xa0" + frame)
            arguments = [*arguments, corpus]
        atheris.Setup(arguments, examine)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
