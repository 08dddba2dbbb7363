"""The shell of `commands.subtask`: starts tasks for an agent, commits, publishes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.agents.types import AGENT_TYPES
from orchestrator.bootstrap import Wiring
from orchestrator.commands import subtask
from orchestrator.commands.publication import Publication
from orchestrator.commands.subtask import Bounds, Call, NotStarted
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.db.journal import Scope
from orchestrator.engine.ports import SubtaskRefused
from orchestrator.tasks.publish import publish

_KINDS: Final = frozenset(name for name, kind in AGENT_TYPES.items() if kind.preference >= 0)
"""A model may choose among them: those that work in our sandbox, on our budget."""


def start(
    wiring: Wiring,
    scope: Scope,
    requests: Sequence[SubtaskRequest],
    commit: str | None,
    models: Sequence[str],
) -> None:
    """`models`: see `commands.subtask.start`. The parent doesn't wait yet: that is its verdict's to say.

    Raises FenceLost, SubtaskRefused.
    """
    settings = wiring.settings
    bounds = Bounds(settings.max_subtask_depth, settings.max_subtasks, settings.max_tree_tasks)
    call = Call(scope.step, scope.fence, scope.conversation, commit)
    try:
        with wiring.engine.begin() as connection:
            started = subtask.start(
                connection,
                call,
                requests,
                bounds=bounds,
                agent_types=_KINDS,
                models=models,
                misfit=wiring.policy.misfit,
            )
    except NotStarted as refused:
        raise SubtaskRefused(str(refused)) from None
    for each in started:
        publish(wiring, Publication(started=each))
