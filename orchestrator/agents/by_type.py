"""Chooses the agent of an assignment by its type; each is made only when it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.core.assignment import Agent, Assignment, Link
from orchestrator.core.verdict import Verdict


@dataclass(frozen=True, slots=True)
class AgentByType:
    """`makers` by agent type; `otherwise` makes what does the work of all others."""

    makers: Mapping[str, Callable[[], Agent]]
    otherwise: Callable[[], Agent]

    def work(self, assignment: Assignment, link: Link) -> Verdict:
        make = self.makers.get(assignment.agent_type, self.otherwise)
        return make().work(assignment, link)
