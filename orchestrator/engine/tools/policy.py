"""What the engine's steps may use besides the files and commands of their workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.core.assignment import Stop
from orchestrator.core.mcp_server import NAME, McpServer, read_server
from orchestrator.engine.ports import Workspace
from orchestrator.engine.tools.tool import Tool
from orchestrator.engine.untrusted import cut, storable
from orchestrator.engine.web import HostPolicy


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """An installation's, which a task may narrow and add sandboxed servers to.

    `problems`: what a task asked for and doesn't get, and why.
    """

    hosts: HostPolicy = field(default_factory=HostPolicy)
    """Of fetch_url, and of MCP servers behind HTTP. None named: there is no fetch_url."""
    servers: Mapping[str, McpServer] = field(default_factory=dict)
    subtasks: bool = False
    problems: tuple[str, ...] = ()

    def for_task(self, asked: Any) -> ToolPolicy:
        """`asked` as it came with the plan and untrusted, e.g.
        `{"fetch_hosts": ["example.org"], "mcp": {"lint": {"command": ["lint-mcp"]}}, "subtasks": false}`.

        Hosts can only be taken away. An MCP server of the installation can be named with `{}` or a shorter
        `allow`, or left out with null.
        """
        if asked is None:
            return self
        if not isinstance(asked, dict):
            return replace(self, problems=(*self.problems, "tools: it is no object"))
        problems: list[str] = []
        hosts = self.hosts if "fetch_hosts" not in asked else self._hosts(asked["fetch_hosts"], problems)
        servers = dict(self.servers)
        wanted = asked.get("mcp", {})
        if not isinstance(wanted, dict):
            problems.append("mcp: it is no object")
            wanted = {}
        for name, value in wanted.items():
            try:
                server = self._server(name, value)
            except ValueError as error:
                problems.append(f"MCP server {name}: {error}")
                servers.pop(name, None)
                continue
            servers.pop(name, None)
            if server is not None:
                servers[name] = server
        subtasks = self.subtasks and asked.get("subtasks", True) is True
        told = tuple(storable(cut(problem, 1000)) for problem in problems)
        return ToolPolicy(hosts, servers, subtasks, (*self.problems, *told))

    def _hosts(self, asked: Any, problems: list[str]) -> HostPolicy:
        if not isinstance(asked, list) or not all(isinstance(host, str) for host in asked):
            problems.append("fetch_hosts must be a list of names")
            return replace(self.hosts, hosts=())
        kept = tuple(host for host in asked if self.hosts.covers(host))
        problems += [f"fetch_hosts: {host} may not be reached here" for host in asked if host not in kept]
        return replace(self.hosts, hosts=kept)

    def _server(self, name: str, value: Any) -> McpServer | None:
        if not NAME.fullmatch(name):
            raise ValueError("its name must be letters, digits, - and single _, at most 31")
        if value is None:
            return None
        ours = self.servers.get(name)
        if ours is None or not isinstance(value, dict) or not set(value) <= {"allow"}:
            return read_server(value)
        allow = value.get("allow")
        if allow is None:
            return ours
        named = read_server({"command": ["-"], "allow": allow}).allow or ()
        return replace(
            ours, allow=named if ours.allow is None else tuple(t for t in named if t in ours.allow)
        )


@dataclass(frozen=True, slots=True)
class McpTools:
    """What the MCP servers of one claim offer; `problems` say what is missing, and why."""

    tools: Sequence[Tool[Any]] = ()
    problems: Sequence[str] = ()


OpenServers = Callable[
    [Mapping[str, McpServer], Workspace, HostPolicy, Stop], AbstractContextManager[McpTools]
]
"""`engine.tools.mcp.opened`, whose library is large: only a process that has servers to start loads it."""


@contextmanager
def no_servers(
    servers: Mapping[str, McpServer], _workspace: Workspace, _hosts: HostPolicy, _stop: Stop
) -> Iterator[McpTools]:
    """For processes that start none."""
    yield McpTools(problems=tuple(f"MCP server {name}: none are started here" for name in servers))
