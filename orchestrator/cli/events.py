"""A task's events as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
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
_LONGEST_REASON: Final = 280


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
        case "progress":
            return _progress(event, data)
        case "intervention":
            reason = f": {data['reason']}" if data.get("reason") else ""
            return f"{event['name']} by {data.get('by')}{reason}"
        case "subtask":
            return f"{_place(event)} starts subtask {data.get('task_id')}"
        case _:
            return None


def aside(kind: str, event: Mapping[str, Any]) -> str | None:
    """The line of an event that a picture of the task doesn't show, though it explains what it shows."""
    names = _ASIDE.get(kind, frozenset())
    if kind == "reset" or event["name"] not in names:
        return None
    if event["name"] == "agent" and not _is_another_try(event["data"]):
        return None
    return told(kind, event)


_ASIDE: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "step": frozenset({"retry", "expire"}),
        "progress": frozenset({"agent", "model", "compacted", "stuck", "tools", "budget"}),
    }
)


def _progress(event: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    match event["name"]:
        case "budget":
            return f"! {_nearly_spent(data)}"
        case "tool" if data.get("state") == "finished" and data.get("is_error"):
            said = f"✗ {data.get('name') or 'a tool'} failed"
        case "agent":
            said = f"· agent {data.get('agent')}: {_why_that_agent(data)}"
        case "model":
            said = f"· model {data.get('model')}: {data.get('reason')}"
        case "compacted":
            how = (
                "a summary stands for older turns"
                if data.get("summary")
                else "older outputs are sent in short"
            )
            before, after = (int(data.get(f"tokens_{when}") or 0) for when in ("before", "after"))
            said = f"· the conversation got long: {how}, about {before:,} → {after:,} tokens"
        case "stuck":
            said = f"! the agent goes in circles: {data.get('what')}"
        case "tools":
            said = f"! {data.get('problem')}"
        case _:
            if not (activity := doing(event)):
                return None
            return f"{_place(event)} {activity}"
    return _short(f"{_place(event)} {said}", _LONGEST_REASON)


def _why_that_agent(data: Mapping[str, Any]) -> str:
    """What spoke against the others is worth a line where one of them has failed."""
    reason = str(data.get("reason") or "")
    return reason if _is_another_try(data) else reason.partition(". Instead of")[0]


def _is_another_try(data: Mapping[str, Any]) -> bool:
    return int(data.get("attempt") or 1) > 1


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
    """Four fifths of a budget are gone, or all of it: which, and how much."""
    spent, budget = data.get("spent") or {}, data.get("budget") or {}
    parts = [
        f"{int(spent.get(unit) or 0):,} of {int(most):,} {unit}"
        for unit in ("tokens", "turns")
        if (most := budget.get(f"max_{unit}"))
    ]
    full = any(
        int(spent.get(unit) or 0) >= int(budget.get(f"max_{unit}") or 0) > 0 for unit in ("tokens", "turns")
    )
    if most := budget.get("max_cost_usd"):
        cost = Decimal(spent.get("cost_usd") or 0)
        parts.insert(0, f"${cost:.2f} of {dollars(Decimal(most))}")
        full = full or cost >= Decimal(most)
    return f"the budget is {'used up' if full else 'nearly used up'}: {', '.join(parts)}"


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


def _short(text: str, most: int = _LONGEST) -> str:
    text = line(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
