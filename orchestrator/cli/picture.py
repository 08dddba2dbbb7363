"""A task drawn for a terminal: one region, redrawn in place, never taller than the screen."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.cli import answers
from orchestrator.cli.money import spent
from orchestrator.cli.terminal import TONES, line, span
from orchestrator.cli.ways_on import ways_on

_MARKS: Final = {
    "completed": ("✓", "green"),
    "running": ("▶", "cyan"),
    "pending_input": ("?", "yellow"),
    "failed": ("✗", "red"),
    "cancelled": ("■", "default"),
    "queued": ("○", "dim"),
}
_AROUND: Final = 8
"""Lines besides those of the steps."""
REPLAY: Final = "REPLAY"


def draw(task: Mapping[str, Any], doing: Mapping[str, str], height: int) -> RenderableType:
    """`doing`: what the agent of each running step is at, by step key."""
    parts: list[RenderableType] = [_head(task), _bar(task)]
    parts += [_step(step, doing) for step in _visible(task["steps"], max(3, height - _AROUND))]
    hidden = len(task["steps"]) - (len(parts) - 2)
    if hidden > 0:
        parts.append(Text(f"   … and {hidden} steps that are done or not due", style="dim"))
    parts += [_question(question) for question in task["questions"]]
    if task["waiting_on"] and not task["questions"]:
        parts.append(_wait(task))
    return Group(*parts)


def _wait(task: Mapping[str, Any]) -> Text:
    """What it waits for, whole: the line of a step is cut. And what can be done about it."""
    drawn = Text(f" {line(task['display']['why'])}", style="yellow")
    for way in ways_on(task):
        drawn.append(f"\n   → {way}")
    return drawn


def _head(task: Mapping[str, Any]) -> Text:
    head = Text(f" {line(task['title'])}", style="bold", overflow="ellipsis", no_wrap=True)
    head.append(f"  {task['id']} · {task['execution_mode']} · {task['priority']}", style="dim")
    if task["model"]["kind"] == "recorded":
        head.append(f"  {REPLAY} ", style="bold yellow")
        head.append("recorded model; tools, git and tests are real", style="yellow")
    return head


def _bar(task: Mapping[str, Any]) -> RenderableType:
    shown = task["display"]
    row = Table.grid(padding=(0, 1))
    began = task["started_at"] or task["created_at"]
    until = datetime.fromisoformat(task["finished_at"]) if task["finished_at"] else datetime.now(UTC)
    used = task["usage"]
    facts = [
        f"step {task['steps_done']} of {task['steps_total']}",
        span((until - datetime.fromisoformat(began)).total_seconds()),
        spent(used["cost"], is_complete=used["is_cost_complete"]),
        f"{(used['input_tokens'] + used['output_tokens']) / 1000:.1f} k tokens",
    ]
    mark, colour = _MARKS[task["status"]]
    row.add_row(
        Text(f" {mark} {shown['label']}", style=TONES.get(shown["tone"], colour)),
        Text(f"{task['progress'] * 100:3.0f} %"),
        ProgressBar(total=1.0, completed=task["progress"], width=30),
        Text(" · ".join(facts), style="dim"),
    )
    return row


def _visible(steps: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """All, if they fit; else those that something happens to, and their neighbours."""
    if len(steps) <= most:
        return steps
    order = {"running": 0, "pending_input": 1, "failed": 2, "queued": 3, "cancelled": 4, "completed": 5}
    chosen = sorted(steps, key=lambda step: (order[step["status"]], step["number"]))[:most]
    return sorted(chosen, key=lambda step: int(step["number"]))


def _step(step: Mapping[str, Any], doing: Mapping[str, str]) -> Text:
    mark, colour = _MARKS[step["status"]]
    drawn = Text(f" {mark} {step['number']} ", style=colour, overflow="ellipsis", no_wrap=True)
    drawn.append(line(step["key"]), style="bold" if step["status"] == "running" else "")
    if step["attempt"] > 1:
        drawn.append(f" (attempt {step['attempt']})", style="dim")
    if step["started_at"]:
        end = step["finished_at"]
        until = datetime.fromisoformat(end) if end else datetime.now(UTC)
        took = (until - datetime.fromisoformat(step["started_at"])).total_seconds()
        drawn.append(f"  {span(took)}", style="dim")
    said = doing.get(step["key"]) if step["status"] == "running" else step["summary"]
    if step["error"] and step["status"] in {"failed", "cancelled"}:
        said = step["error"]["message"]
    if step["waiting_on"]:
        said = step["display"]["why"]
    if said:
        drawn.append(f"  {line(said)}", style="dim")
    return drawn


def _question(question: Mapping[str, Any]) -> Text:
    first, *more = answers.lines(question)
    who = "The agent asks: " if question["kind"] == "question" else ""
    drawn = Text(f" ? {who}{line(first.removeprefix('? '))}", style="yellow")
    for each in more:
        drawn.append(f"\n     {line(each)}")
    return drawn
