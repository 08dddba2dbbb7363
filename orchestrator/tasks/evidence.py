"""The artifact store: that it is the one that all share, and what a workflow leaves in it when it ends."""

from __future__ import annotations

from typing import Final

import structlog

from orchestrator.bootstrap import Wiring
from orchestrator.core.errors import OrchestratorError
from orchestrator.db import effects, installation
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.effects import StoredFile
from orchestrator.db.sql import StepRef

log: Final = structlog.get_logger(__name__)


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
    """Stores the whole log of an ended workflow as one file. The rows stay; a failure here is only logged."""
    try:
        with wiring.engine.begin() as connection:
            found = effects.logs_of_workflow(connection, step)
            if not found:
                return
            lines = [
                f"{row['at']:%Y-%m-%dT%H:%M:%S.%fZ} {row['key'] or '-'} {row['stream']}: {line}\n"
                for row in found
                for line in row["text"].splitlines()
            ]
            stored = wiring.artifacts.put("".join(lines).encode())
            whole = StoredFile("log", "task.log", "text/plain", stored.size, stored.sha256, stored.key)
            effects.add_artifact(connection, step, whole)
    except (SQLAlchemyError, OrchestratorError, OSError) as error:
        log.warning("log_not_stored", task=step.task_id, error=type(error).__name__)
