"""What one claim of our own engine works with: the tools that policy allows, MCP servers started for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from orchestrator.core.assignment import Assignment, Link
from orchestrator.engine.ports import Workspace
from orchestrator.engine.tools import TOOLS, toolbox
from orchestrator.engine.tools.policy import OpenServers, ToolPolicy, no_servers
from orchestrator.engine.tools.tool import Tool


@contextmanager
def equipped(
    policy: ToolPolicy,
    open_servers: OpenServers,
    assignment: Assignment,
    workspace: Workspace,
    link: Link,
) -> Iterator[Mapping[str, Tool[Any]]]:
    """`policy` is the installation's; a step narrows it or adds to it with `spec["tools"]`.

    A recorded conversation knows `TOOLS` alone. What is missing is said in the log; raises `Stopped`.
    """
    if "recording" in assignment.spec:
        yield TOOLS
        return
    own = policy.for_task(assignment.spec.get("tools"))
    opening = open_servers if own.servers else no_servers
    with opening(own.servers, workspace, own.hosts, link.stop) as found:
        for problem in (*own.problems, *found.problems):
            link.log("system", f"{problem}\n")
            link.note("tools", {"problem": problem})
        yield toolbox(own, found.tools)
