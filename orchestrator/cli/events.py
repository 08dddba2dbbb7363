"""A task's events as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from orchestrator.cli.terminal import line
from orchestrator.core.spending import dollars

_MARKS: Final = {
    "succeed": "✓",
    "fail": "✗",
    "cancel": "■",
    "ask": "?",
    "claim": "▶",
    "retry": "↻",
    "expire": "↻",
    "pause": "‖",
}
_SHOWN: Final = ("path", "command", "pattern", "query", "question", "url", "objective")
_LONGEST: Final = 140


def told(kind: str, event: Mapping[str, Any]) -> str | None:
    """One event as a line; None when it says nothing to people."""
    if kind == "reset":
        return f"what was before is archived; it is {event['status']}, {event['progress_percent']} % done"
    data = event["data"]
    match kind:
        case "step":
            return _step(event, data)
        case "status":
            return _status(data)
        case "progress" if event["name"] == "budget":
            return f"! {_nearly_spent(data)}"
        case "progress":
            activity = doing(event)
            return f"{_place(event)} {activity}" if activity else None
        case "intervention":
            reason = f": {data['reason']}" if data.get("reason") else ""
            return f"{event['name']} by {data.get('by')}{reason}"
        case "subtask":
            return f"{_place(event)} starts subtask {data.get('task_id')}"
        case _:
            return None


def doing(event: Mapping[str, Any]) -> str | None:
    """What an agent is at: the tool and what it works on."""
    data = event["data"]
    if event["name"] != "tool" or data.get("state") != "started":
        return None
    arguments = data.get("arguments")
    about = ""
    if isinstance(arguments, Mapping):
        about = next((str(arguments[name]) for name in _SHOWN if arguments.get(name)), "")
    return _short(f"{data.get('name', 'tool')} {about}".strip())


def _nearly_spent(data: Mapping[str, Any]) -> str:
    """Four fifths of a budget are gone: which, and how much."""
    spent, budget = data.get("spent") or {}, data.get("budget") or {}
    parts = [
        f"{int(spent.get(unit) or 0):,} of {int(most):,} {unit}"
        for unit in ("tokens", "turns")
        if (most := budget.get(f"max_{unit}"))
    ]
    if most := budget.get("max_cost_usd"):
        parts.insert(0, f"${Decimal(spent.get('cost_usd') or 0):.2f} of {dollars(Decimal(most))}")
    return f"the budget is nearly used up: {', '.join(parts)}"


def clock(event: Mapping[str, Any]) -> str:
    """The time of day of an event, in UTC; dashes for what has none."""
    return f"{event['at'][11:19]}Z" if "at" in event else "--------Z"


def _place(event: Mapping[str, Any]) -> str:
    return f"step {event['step_number']} {event['step_key']}" if event.get("step_number") else "task"


def _step(event: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    name = event["name"]
    match name:
        case "claim":
            again = " (goes on)" if data.get("resumed") else ""
            said = f"running on {data.get('agent')}, attempt {data.get('attempt')}{again}"
        case "succeed":
            commit = f" · commit {data['commit'][:9]}" if data.get("commit") else ""
            said = f"{data.get('summary') or 'done'}{commit}"
        case "fail" | "retry":
            error = data.get("error") or {}
            said = f"{'failed' if name == 'fail' else 'will be tried again'}: {error.get('message', '')}"
        case "ask":
            said = f"asks: {data.get('question', '')}" if data.get("question") else "waits for a person"
        case "cancel":
            said = f"cancelled: {data.get('reason', '')}"
        case "expire":
            said = "the worker was lost; another attempt goes on from the last finished turn"
        case "answer":
            said = f"answered by {data.get('by')}"
        case "wait" | "yield" | "wake":
            said = _moved(str(name), data)
        case _:
            said = str(name)
    return _short(f"{_place(event)} {_MARKS.get(name, '·')} {said}")


def _moved(name: str, data: Mapping[str, Any]) -> str:
    """To a wait, or back from one."""
    if waiting_on := str(data.get("waiting_on") or "").replace("_", " "):
        said, why = f"waits for {waiting_on}", data.get("message")
    else:
        said = "is ready to go on" if name == "wake" else "gives its place back"
        why = data.get("why")
    return f"{said}: {why}" if why else said


def _status(data: Mapping[str, Any]) -> str:
    start = f"{data['from']} → " if data.get("from") else ""
    waits = f" ({data['waiting_on']})" if data.get("waiting_on") else ""
    outcome = data.get("outcome") or {}
    why = outcome.get("message") or (outcome.get("reason") if data["to"] == "cancelled" else None)
    return _short(f"{start}{data['to']}{waits}" + (f": {why}" if why else ""))


def _short(text: str) -> str:
    text = line(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
