"""Our own engine as an agent: opens what one claim needs, and lets the loop work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta

from orchestrator.agents.equipment import equipped
from orchestrator.core.assignment import Assignment, Link
from orchestrator.core.verdict import Broke, StopReason, Verdict, Yielded
from orchestrator.core.workspace import WorkspaceFault
from orchestrator.engine import loop
from orchestrator.engine.limits import refused
from orchestrator.engine.ports import Journal, LeaseLost, Model, ModelError, Spending, Stopped, Workspace
from orchestrator.engine.prices import PRICES, Price
from orchestrator.engine.tools.policy import OpenServers, ToolPolicy, no_servers


@dataclass(frozen=True, slots=True)
class EngineAgent:
    """`model` may raise `ModelError`, `open_workspace` may raise `WorkspaceFault`: both end in a verdict.

    `open_journal` gives the journal of this step under this claim's fence. A run that was given
    `context["conflict"]` starts a conversation of its own: its journal must be a new one.
    """

    model: Callable[[Assignment], Model]
    open_journal: Callable[[Assignment], Journal]
    open_workspace: Callable[[Assignment], AbstractContextManager[Workspace]]
    command_timeout: timedelta = loop.COMMAND_TIMEOUT
    policy: ToolPolicy = field(default_factory=ToolPolicy)
    """What the model may call here besides the plain tools; a step's spec narrows it."""
    open_servers: OpenServers = no_servers
    prices: Mapping[str, Price] = field(default_factory=lambda: PRICES)

    def work(self, assignment: Assignment, link: Link) -> Verdict:
        try:
            model = self.model(assignment)
            with (
                self.open_workspace(assignment) as workspace,
                equipped(self.policy, self.open_servers, assignment, workspace, link) as tools,
            ):
                return loop.work(
                    assignment,
                    link,
                    model=model,
                    journal=self.open_journal(assignment),
                    workspace=workspace,
                    tools=tools,
                    prices=self.prices,
                    command_timeout=self.command_timeout,
                )
        except ModelError as error:
            return refused(error, assignment.budget, Spending(), {})
        except Stopped:
            return Yielded(link.stop.reason or StopReason.DRAIN)
        except LeaseLost:
            return Yielded(StopReason.LEASE_LOST)
        except WorkspaceFault as fault:
            return Broke(fault.code, fault.message, fault.error)
