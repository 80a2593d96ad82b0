"""The audit log: every decision, on the logger `objserver.audit`.

What is allowed is logged at INFO, what is denied at WARNING.  The fields of a record are data, under
`audit`; its message is the same as a sentence for people.  Names come from anybody, so nothing in either can
end a line or steer a terminal: the sentence has them escaped, and JSON escapes by itself.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from objserver.security.principal import Principal

__all__ = ["JsonAuditFormatter", "log", "record_decision", "write_audit"]

log = logging.getLogger("objserver.audit")

TEXT_MAX = 1_000
"""Characters of a name in a record: as long as an object id may be."""


def record_decision(
    *,
    now: float,
    principal: Principal | None,
    address: Any,
    object_id: str,
    method: str,
    allowed: bool,
    reason: str,
    correlation_id: str = "",
) -> None:
    """Log one.  `now` is in seconds since 1970."""
    where = _address(address)
    fields = {
        "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds"),
        "principal": None if principal is None else principal.name[:TEXT_MAX],
        "means": None if principal is None else principal.means[:TEXT_MAX],
        "address": where,
        "object": object_id[:TEXT_MAX],
        "method": method[:TEXT_MAX],
        "allowed": allowed,
        "reason": reason,
        "correlation_id": correlation_id or None,
    }
    log.log(
        logging.INFO if allowed else logging.WARNING,
        "%s: %s at %s calls %s of %s: %s",
        "allowed" if allowed else "denied",
        "somebody unknown" if principal is None else _shown(principal.name),
        _shown(where or "a local socket"),
        _shown(method),
        _shown(object_id),
        _shown(reason),
        extra={"audit": fields},
    )


def _address(address: Any) -> str | None:
    if isinstance(address, (tuple, list)) and len(address) >= 2:
        host, port = str(address[0]), address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address) if address else None


def _shown(text: str) -> str:
    """Without what would end the line or steer the terminal."""
    text = text[:TEXT_MAX]
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class JsonAuditFormatter(logging.Formatter):
    """One JSON object in a line for each decision."""

    def format(self, record: logging.LogRecord) -> str:
        """Only ASCII: whatever reads the file, a name cannot disguise itself."""
        import json  # only who wants it needs it

        return json.dumps(getattr(record, "audit", {"message": record.getMessage()}), ensure_ascii=True)


def write_audit(path: str | Path) -> logging.Handler:
    """From now on add every decision to a file, which only its owner can read; returns what is to be closed.

    The decisions go there and nowhere else.  OSError if the file cannot be opened.
    """
    path = Path(path)
    path.touch(mode=0o600, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(JsonAuditFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return handler
