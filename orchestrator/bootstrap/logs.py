"""What a process logs, and how."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any

from orchestrator.core.redaction import Redactor


def redact_logs(redactor: Redactor) -> None:
    """Before anything is logged: one line an event, on stderr, secrets taken out. Safe to call again."""
    import structlog

    def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {
            key: redactor.text(value) if isinstance(value, str) else value for key, value in event.items()
        }

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
