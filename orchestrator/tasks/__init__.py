"""Celery shells. Producers: `from orchestrator.tasks import execute_task`; workers: `-A
orchestrator.tasks`."""

from orchestrator.bootstrap import load
from orchestrator.tasks.entry import TaskCancelled, TaskFailed, TaskResult
from orchestrator.tasks.registry import register

_registered = register(load(), shared=True)
app = _registered.app
execute_task = _registered.execute_task

__all__ = ["TaskCancelled", "TaskFailed", "TaskResult", "app", "execute_task"]
