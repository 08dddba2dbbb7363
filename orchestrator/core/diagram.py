"""The lifecycle for people: `RULES` as a Mermaid diagram, which the README and the reference show."""

from __future__ import annotations

from collections import defaultdict

from orchestrator.core.states import RULES, TERMINAL, Event, Status


def mermaid() -> str:
    """A `stateDiagram-v2`; events that share an arrow share its label. Without a newline at the end."""
    arrows: defaultdict[tuple[Status, Status], list[Event]] = defaultdict(list)
    for event, rule in RULES.items():
        for source in sorted(rule.sources, key=list(Status).index):
            arrows[source, rule.to].append(event)
    lines = [f"    {source} --> {to}: {', '.join(events)}" for (source, to), events in arrows.items()]
    ends = [f"    {status} --> [*]" for status in Status if status in TERMINAL]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {Status.QUEUED}: submit", *lines, *ends])
