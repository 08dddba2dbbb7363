"""Which commands lead on from how a task stands, each whole, so that it can be copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

_ANSWER: Final = "orchestrator task answer {id}"
_WAITS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("question", "tool_approval", "budget"), _ANSWER),
        **dict.fromkeys(("paused", "escalation"), "orchestrator task resume {id}"),
        "agent": "orchestrator agent types",
        "circuit_breaker": "orchestrator breakers list",
    }
)


def ways_on(task: Mapping[str, Any]) -> list[str]:
    """Of a task as the API shows it. Empty where it goes on by itself, or went well."""
    if task["status"] in {"completed", "failed", "cancelled"}:
        return list(_after_the_end(task)) if _left_undone(task) else []
    waits = [task["waiting_on"], *(step["waiting_on"] for step in task["steps"])]
    ways = dict.fromkeys(_WAITS[on] for on in waits if on in _WAITS)
    return [
        way.format(id=subject)
        for way in ways
        for subject in (_asked(task) if way == _ANSWER else [task["id"]])
    ]


def _asked(task: Mapping[str, Any]) -> list[str]:
    """The task, where one answer can only mean its one question; else each question."""
    open_ones = [str(question["id"]) for question in task["questions"]]
    return open_ones if len(open_ones) > 1 else [task["id"]]


def _left_undone(task: Mapping[str, Any]) -> bool:
    return bool(task["status"] == "failed" or (task["outcome"] or {}).get("type") == "partially_completed")


def _after_the_end(task: Mapping[str, Any]) -> Iterator[str]:
    """What each error means, what was going on, and another try; an agent's own code is explained nowhere."""
    from orchestrator.api.explanations import EXPLANATIONS

    errors = [step["error"]["code"] for step in task["steps"] if step["status"] == "failed" and step["error"]]
    for code in dict.fromkeys((*errors, (task["outcome"] or {}).get("reason"))):
        if code in EXPLANATIONS:
            yield f"orchestrator explain {code}"
    yield f"orchestrator task logs {task['id']}"
    yield f"orchestrator task retry {task['id']}"
