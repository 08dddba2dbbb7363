"""What a process writes to its own log: one line an event, secrets taken out, on stderr."""

from __future__ import annotations

import logging
from typing import Any

from celery import signals

from orchestrator.bootstrap import redact_logs
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
    """Of this process's own log, and of whatever Celery writes. Safe to call again."""
    redact_logs(redactor)

    def guard(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            handler.addFilter(_Redacting(redactor))

    signals.after_setup_logger.connect(guard, weak=False)
    signals.after_setup_task_logger.connect(guard, weak=False)
