"""What a process writes to its own log: one line an event, secrets taken out, on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from celery import signals

from orchestrator.core.redaction import Redactor


class _Redacting(logging.Filter):
    """Takes secrets out of whatever any library logs, tracebacks included."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._redactor.text(record.getMessage()), ()
        if record.exc_info:
            shown = logging.Formatter().formatException(record.exc_info)
            record.exc_info, record.exc_text = None, self._redactor.text(shown)
        return True


def configure(redactor: Redactor) -> None:
    """Before anything is logged. Safe to call again."""

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

    def guard(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            handler.addFilter(_Redacting(redactor))

    signals.after_setup_logger.connect(guard, weak=False)
    signals.after_setup_task_logger.connect(guard, weak=False)
