"""The tools of MCP servers, as ours: `mcp__<server>__<tool>`, of an allow-list, checked, cut and marked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import mcp_types as types
from pydantic import ConfigDict

from orchestrator.core.assignment import Stop
from orchestrator.core.mcp_server import McpServer
from orchestrator.engine.event_loop import EventLoop
from orchestrator.engine.json_schemas import ArgumentsSchema, SchemaUnusable
from orchestrator.engine.mcp_session import Connection, McpSession, ServerFailed, over_http, over_pipes
from orchestrator.engine.ports import ToolResult, Workspace
from orchestrator.engine.tools.output import told
from orchestrator.engine.tools.policy import McpTools
from orchestrator.engine.tools.tool import Arguments, Risk, Tool, ToolContext
from orchestrator.engine.untrusted import cut, storable
from orchestrator.engine.web import HostPolicy

MOST_TOOLS: Final = 64
LONGEST_SCHEMA: Final = 20_000
LONGEST_DESCRIPTION: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What every provider takes as the name of a tool."""


def risk_of(server: McpServer) -> Risk:
    return Risk(server.risk or ("execute" if server.url is None else "network"))


class AnyArguments(Arguments):
    """Described by the server's own schema."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True, slots=True)
class McpTool(Tool[AnyArguments]):
    """A tool whose arguments a server describes."""

    input_schema: Mapping[str, Any] = field(default_factory=dict)
    checks: Callable[[Mapping[str, Any]], list[str]] = lambda _: []

    def schema(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.description, "input_schema": dict(self.input_schema)}

    def faults(self, arguments: Mapping[str, Any]) -> list[str]:
        return self.checks(arguments)


@contextmanager
def opened(
    servers: Mapping[str, McpServer], workspace: Workspace, hosts: HostPolicy, stop: Stop
) -> Iterator[McpTools]:
    """Starts them, asks for their tools, and ends them. A server that fails is a problem, not an error.

    Raises `Stopped`.
    """
    loop = EventLoop("mcp")
    sessions: list[McpSession] = []
    tools: list[Tool[Any]] = []
    problems: list[str] = []
    try:
        for name, server in servers.items():
            session = McpSession(loop, _connector(server, workspace, hosts))
            sessions.append(session)
            try:
                offered = session.tools(stop)
            except ServerFailed as failure:
                problems.append(_problem(name, str(failure)))
                continue
            chosen = _chosen(name, server, offered, problems)
            made = [_as_ours(name, server, tool, session, problems) for tool in chosen]
            tools += [tool for tool in made if tool is not None]
        yield McpTools(tuple(tools), tuple(problems))
    finally:
        for session in sessions:
            session.close()
        loop.close()
        for session in sessions:
            session.end()


def _connector(server: McpServer, workspace: Workspace, hosts: HostPolicy) -> Callable[[], Connection]:
    if server.url is not None:
        url = server.url
        return lambda: over_http(url, server.headers, hosts)
    return lambda: over_pipes(workspace.serve(server.command, server.environment))


def _chosen(
    name: str, server: McpServer, offered: Sequence[types.Tool], problems: list[str]
) -> list[types.Tool]:
    there = {tool.name: tool for tool in reversed(offered)}
    wanted = list(there)[::-1] if server.allow is None else server.allow
    problems += [_problem(name, f"it has no tool {tool!r}") for tool in wanted if tool not in there]
    if len(wanted) > MOST_TOOLS:
        problems.append(_problem(name, f"only {MOST_TOOLS} of its {len(wanted)} tools are used"))
    return [there[tool] for tool in wanted[:MOST_TOOLS] if tool in there]


def _problem(server: str, what: str) -> str:
    return storable(cut(f"MCP server {server}: {what}", 1000))


def _as_ours(
    name: str, server: McpServer, tool: types.Tool, session: McpSession, problems: list[str]
) -> McpTool | None:
    ours = f"mcp__{name}__{tool.name}"
    try:
        schema = _usable(ours, tool.input_schema)
    except (SchemaUnusable, RecursionError, ValueError) as error:
        problems.append(_problem(name, f"its tool {tool.name[:100]!r} is not used: {error}"))
        return None
    return McpTool(
        name=ours,
        description=storable(
            f"From the MCP server {name}: {cut(tool.description or '', LONGEST_DESCRIPTION)}"
        ),
        arguments=AnyArguments,
        risk=risk_of(server),
        changes_files=server.url is None and risk_of(server) is not Risk.READ,
        carry_out=_caller(name, server, tool.name, session),
        input_schema=tool.input_schema,
        checks=schema.faults,
    )


def _usable(name: str, schema: Mapping[str, Any]) -> ArgumentsSchema:
    if not _NAME.fullmatch(name):
        raise SchemaUnusable("its name is too long or has other signs than letters, digits, _ and -")
    if len(json.dumps(schema)) > LONGEST_SCHEMA:
        raise SchemaUnusable("its schema is too long")
    return ArgumentsSchema(schema)


def _caller(
    name: str, server: McpServer, tool: str, session: McpSession
) -> Callable[[Workspace, AnyArguments, ToolContext], ToolResult]:
    def carry_out(_: Workspace, asked: AnyArguments, context: ToolContext) -> ToolResult:
        seconds = min(server.seconds, context.command_timeout.total_seconds())
        try:
            result = session.call(tool, asked.model_extra or {}, seconds, context.stop)
        except ServerFailed as failure:
            return ToolResult(_problem(name, str(failure)), is_error=True)
        text = "\n".join(_text(block) for block in result.content)
        if not text and result.structured_content is not None:
            text = json.dumps(result.structured_content, ensure_ascii=False)
        return told(
            context, "", f"{tool} of the MCP server {name}", text or "(nothing)", is_error=result.is_error
        )

    return carry_out


def _text(block: types.ContentBlock) -> str:
    if isinstance(block, types.TextContent):
        return block.text
    if isinstance(block, types.EmbeddedResource) and isinstance(block.resource, types.TextResourceContents):
        return f"[{block.resource.uri}]\n{block.resource.text}"
    if isinstance(block, types.ResourceLink):
        return f"[a link to {block.uri}]"
    return f"[{block.type}, not shown]"
