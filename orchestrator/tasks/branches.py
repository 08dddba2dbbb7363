"""The references of a machine's mirrors follow the rows, which know where each task's branch ends."""

from __future__ import annotations

from typing import Final

import structlog

from orchestrator.bootstrap import Wiring
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.db import effects
from orchestrator.workspaces.mirrors import Built

log: Final = structlog.get_logger(__name__)


def follow_rows(wiring: Wiring) -> int:
    """Moves the branches of ended tasks that end elsewhere than their rows say; returns how many those were.

    A merge moves the reference before its COMMIT: a worker that died in between leaves it too far on, and
    another machine's merge leaves it behind. References are read before rows, and moved by compare-and-swap,
    so that a task that goes on meanwhile is not disturbed.
    """
    mirrors = wiring.workspaces.mirrors
    built = mirrors.built()
    if not built:
        return 0
    with wiring.engine.connect() as connection:
        tips = effects.final_tips(connection, wiring.tenant_id, [branch.task_id for branch in built])
    wrong = [branch for branch in built if branch.task_id in tips and tips[branch.task_id] != branch.commit]
    return sum(_move(wiring, branch, tips[branch.task_id]) for branch in wrong)


def _move(wiring: Wiring, branch: Built, tip: str | None) -> bool:
    try:
        if tip is not None:
            wiring.workspaces.bundles.ensure(branch.mirror, tip)
        wiring.workspaces.mirrors.rebuild(branch, tip)
    except WorkspaceFault as fault:
        log.warning("branch_not_moved", task=branch.task_id, error=fault.message)
        return False
    return True
