"""Registers our Celery tasks with an app."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from celery import Celery, Task
from celery._state import (  # type: ignore[attr-defined]  # its types leave one out
    _get_active_apps,
    connect_on_app_finalize,
)

from orchestrator.bootstrap import Wiring
from orchestrator.queues.messages import reclaim_label
from orchestrator.queues.names import TaskName
from orchestrator.tasks.entry import ExecuteTask
from orchestrator.tasks.step import StepFailed, run_step
from orchestrator.tasks.sweep import run_sweep
from orchestrator.tasks.worker import Workplace, attend


@dataclass(frozen=True, slots=True)
class Registered:
    """An app with our tasks in it, and the workplace of the worker that may run it."""

    app: Celery
    execute_task: ExecuteTask
    workplace: Workplace


def register(wiring: Wiring, *, shared: bool = False) -> Registered:
    """`shared`: `execute_task` is known to the caller's own Celery app, too, so that its canvases may hold
    it."""
    app, workplace = wiring.app, Workplace(wiring)

    class Entry(ExecuteTask):
        """The door, bound to this wiring."""

    Entry.wiring = wiring

    def run_one_step(self: Task[Any, Any], /, **arguments: Any) -> dict[str, Any]:
        return run_step(self, workplace, arguments)

    def sweep(self: Task[Any, Any], /) -> dict[str, Any]:
        del self
        return asdict(run_sweep(wiring))

    # A step that fails is nothing that broke here: Celery logs it in a line.
    app.task(name=str(TaskName.RUN_STEP), bind=True, shared=False, throws=(StepFailed,))(run_one_step)
    app.task(name=str(TaskName.SWEEP), bind=True, shared=False, ignore_result=True)(sweep)
    if Entry.name in app.tasks:
        app.tasks.unregister(Entry.name)  # of another wiring, which shares it with every app of this process
    entry = app.register_task(Entry())
    assert isinstance(entry, ExecuteTask)  # noqa: S101 - what was just given
    app.conf.beat_schedule = {
        "sweep": {
            "task": str(TaskName.SWEEP),
            "schedule": wiring.settings.sweep_every,
            "options": {
                **wiring.topology.system.options,
                **reclaim_label().options,
                "expires": wiring.settings.sweep_every.total_seconds(),
            },
        }
    }
    if shared:
        _share(entry)
    attend(workplace)
    return Registered(app, entry, workplace)


def _share(entry: ExecuteTask) -> None:
    def adopt(other: Celery) -> None:
        if entry.name not in other.tasks:
            other.register_task(type(entry)())

    connect_on_app_finalize(adopt)
    for other in _get_active_apps():
        if other.finalized:
            adopt(other)
