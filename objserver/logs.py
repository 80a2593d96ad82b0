r"""What a peer names writes no line of its own into a log.

Object ids, method names and the texts of errors come from peers, and a line break in one would begin a line
that looks like another record; other control characters move the cursor of whoever reads it in a terminal.  A
logger that is `escaping` writes them as `\n` and `\x1b`.

Tracebacks are left as they are: they have several lines, and what the text of an exception says is in them.
"""

from __future__ import annotations

import logging

__all__ = ["escaped", "escaping"]


def escaped(text: str) -> str:
    """`text` with everything escaped that is not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _escaped(argument: object) -> object:
    if isinstance(argument, (int, float)):
        return argument
    try:
        text = str(argument)
    except Exception:
        return f"<{type(argument).__name__}>"
    return argument if text.isprintable() else escaped(text)


class _Escaping(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped, record.args))
        return True


_ESCAPING = _Escaping()


def escaping(logger: logging.Logger) -> logging.Logger:
    """The logger, which from now on escapes the arguments of its messages."""
    logger.addFilter(_ESCAPING)
    return logger
