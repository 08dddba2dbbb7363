"""How a task's state is shown: computed once, here, so that no two doors and no two pages can disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from orchestrator.core.states import WAITS_QUEUED, Status, WaitingOn


@dataclass(frozen=True, slots=True)
class Display:
    """`tone`: neutral, active, attention, good, bad. `icon`: the name of a drawing. `why`: one sentence."""

    label: str
    tone: str
    icon: str
    why: str


_WAITS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        WaitingOn.QUESTION: ("needs answer", "The agent asked a question and waits for the answer."),
        WaitingOn.TOOL_APPROVAL: ("needs approval", "A tool call waits for approval."),
        WaitingOn.PLAN_APPROVAL: ("needs approval", "The plan waits for approval."),
        WaitingOn.STEP_CONFIRMATION: ("needs approval", "The next step waits for confirmation."),
        WaitingOn.MANUAL_REVIEW: ("needs review", "The result waits for a review."),
        WaitingOn.COUNCIL_DECISION: ("needs decision", "The council's verdict waits for a decision."),
        WaitingOn.PAUSED: ("paused", "It is paused and goes on when it is resumed."),
        WaitingOn.ESCALATION: (
            "escalated",
            "Its commit conflicted with the branch twice; a resume gives it one more run, a cancel ends it.",
        ),
        WaitingOn.BUDGET: ("needs budget", "Its budget is used up; a person may raise it."),
        WaitingOn.SUBTASK: ("waiting", "It waits for a subtask."),
        WaitingOn.RATE_LIMIT: ("waiting", "The model's provider limits requests; it goes on when that ends."),
        WaitingOn.EXTERNAL_CI: ("waiting", "It waits for an external check to end."),
        WaitingOn.MERGE: ("waiting", "It waits for the merge."),
        WaitingOn.DEPENDENCY: ("queued", "Something that it needs is not completed yet."),
        WaitingOn.SLOT: ("queued", "As many workflows as allowed are running; it starts when one ends."),
        WaitingOn.AGENT: ("queued", "No agent that could do it is there."),
        WaitingOn.RETRY_BACKOFF: ("retrying", "An attempt broke; the next one starts soon."),
        WaitingOn.CIRCUIT_BREAKER: (
            "queued",
            "What it needs has failed too often lately; it is tried later.",
        ),
    }
)
_PERSON: Final = "attention"
_BEFORE_A_RUN: Final = WAITS_QUEUED - {WaitingOn.RETRY_BACKOFF}
"""A task that has begun isn't called queued again, though its steps are."""


def display(
    status: str,
    waiting_on: str | None,
    outcome: Mapping[str, Any] | None,
    *,
    cancel_requested: bool = False,
    detail: Mapping[str, Any] | None = None,
) -> Display:
    """Of a task; of a step too, with its own status and, as `outcome`, nothing. `detail`: of what it waits
    for."""
    match Status(status):
        case Status.COMPLETED:
            return _completed(outcome)
        case Status.FAILED:
            return Display("failed", "bad", "cross", _failure(outcome))
        case Status.CANCELLED:
            reason = str((outcome or {}).get("reason") or "it was cancelled")
            return Display("cancelled", "neutral", "stop", _sentence(reason))
        case _ if cancel_requested:
            return Display(
                "cancelling", "attention", "stop", "It was cancelled; what runs hands in its work."
            )
        case Status.PENDING_INPUT:
            label, why = _WAITS.get(waiting_on or "", ("needs input", "It waits for a person."))
            icon = "pause" if waiting_on == WaitingOn.PAUSED else "question"
            return Display(label, _PERSON, icon, why)
        case Status.RUNNING if waiting_on:
            shown = Display(*_waits(waiting_on, "active", "clock", detail))
            return replace(shown, label="running") if waiting_on in _BEFORE_A_RUN else shown
        case Status.RUNNING:
            return Display(
                "running", "active", "play", "An agent is at work, or the next step is about to start."
            )
        case Status.QUEUED if waiting_on:
            return Display(*_waits(waiting_on, "neutral", "clock", detail))
        case Status.QUEUED:
            return Display("queued", "neutral", "circle", "It starts as soon as an agent is free.")


def _completed(outcome: Mapping[str, Any] | None) -> Display:
    if outcome and outcome.get("type") == "partially_completed":
        gaps = ", ".join(outcome.get("gaps", ()))
        return Display("partially completed", "attention", "partial", f"Not completed: {gaps}.")
    return Display("completed", "good", "check", "Everything that was asked for is done.")


def _waits(
    waiting_on: str, tone: str, icon: str, detail: Mapping[str, Any] | None = None
) -> tuple[str, str, str, str]:
    label, why = _WAITS[waiting_on]
    return label, tone, icon, _lacking(detail) or why


def _lacking(detail: Mapping[str, Any] | None) -> str:
    """Which agents could do it if they had what they lack; empty if nobody wrote that down."""
    missing = (detail or {}).get("missing") or {}
    said = "; ".join(f"{name}: {', '.join(lines)}" for name, lines in missing.items())
    if not said:
        return ""
    there = (
        "Another worker has the agent that it needs" if (detail or {}).get("elsewhere") else "No agent fits"
    )
    return _sentence(f"{there}. {said}")


def _failure(outcome: Mapping[str, Any] | None) -> str:
    """The message, and its code as it is written: a code is no word of a sentence, and is looked up."""
    if not outcome:
        return "It broke for good."
    code, message = str(outcome.get("reason") or "failed"), str(outcome.get("message") or "")
    where = f"step {outcome['step']}: " if outcome.get("step") else ""
    said = (message or "it failed").strip().removesuffix(".")
    return _sentence(f"{where}{said} ({code})")


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def shown(row: Mapping[str, Any]) -> Display:
    """Of a row of `tasks`."""
    return display(
        row["status"],
        row["waiting_on"],
        row["outcome"],
        cancel_requested=row["cancel_requested_at"] is not None,
        detail=row.get("waiting_detail"),
    )
