"""Which parts of this installation are compiled.

A few functions that every message passes through exist twice: in C, and in Python beside it.  The C is used
where there was a compiler when objserver was installed, and where OBJSERVER_PURE is not set; both do the
same, which the tests hold them to.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__all__ = ["compiled"]


def compiled(name: str) -> Any:
    """The compiled module `objserver.<name>`, or None."""
    if os.environ.get("OBJSERVER_PURE"):
        return None
    try:
        return importlib.import_module(f"objserver.{name}")
    except ImportError:
        return None
