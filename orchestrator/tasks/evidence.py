"""The artifact store: that it is the one that all share, and what a workflow leaves in it when it ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Final

import structlog

from orchestrator.bootstrap import Wiring
from orchestrator.core.errors import OrchestratorError
from orchestrator.db import effects, installation
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.effects import StoredFile
from orchestrator.db.sql import StepRef

log: Final = structlog.get_logger(__name__)
_PIECE: Final = 200
"""Rows of a log that are read at once."""
_SPOOL: Final = 1024**2
"""Bytes of a log that are held in memory."""


def check_store(wiring: Wiring) -> None:
    """Raises ArtifactStoreUnavailable if this process's store is not the installation's.

    The first process of an installation marks it; any later one must find the mark.
    """
    with wiring.engine.begin() as connection:
        known = installation.installation(connection)
        if known.store_marked:
            wiring.artifacts.check_marker(known.id)
        else:
            wiring.artifacts.ensure_marker(known.id)
            installation.mark_store(connection)


def keep_log(wiring: Wiring, step: StepRef) -> None:
    """Stores the whole log of an ended workflow as one file. The rows stay; a failure here is only logged.

    It may be long: it is read in pieces, and no transaction is open while it is stored.
    """
    try:
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as spool:
            for line in _log_lines(wiring, step):
                spool.write(line.encode())
            if not spool.tell():
                return
            spool.seek(0)
            stored = wiring.artifacts.put(spool)
        whole = StoredFile("log", "task.log", "text/plain", stored.size, stored.sha256, stored.key)
        with wiring.engine.begin() as connection:
            effects.add_artifact(connection, step, whole)
    except (SQLAlchemyError, OrchestratorError, OSError) as error:
        log.warning("log_not_stored", task=step.task_id, error=type(error).__name__)


def _log_lines(wiring: Wiring, step: StepRef) -> Iterator[str]:
    after, more = 0, True
    while more:
        with wiring.engine.begin() as connection:
            found = effects.logs_of_workflow(connection, step, after, _PIECE)
        for row in found:
            after = row["number"]
            for line in row["text"].splitlines():
                yield f"{row['at']:%Y-%m-%dT%H:%M:%S.%fZ} {row['key'] or '-'} {row['stream']}: {line}\n"
        more = len(found) == _PIECE
