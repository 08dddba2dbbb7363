"""How an MCP server is configured, for an installation or for one task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]|_(?!_)){0,30}")
"""A server's name is a part of the names of its tools, between double underscores."""

Risks = Literal["read", "write", "execute", "network"]


@dataclass(frozen=True, slots=True)
class McpServer:
    """One server: on stdio (`command`, run in the sandbox) or behind HTTP (`url`, reached by the worker).

    Raises `ValueError` for what is neither, or both.
    """

    command: tuple[str, ...] = ()
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For HTTP; they may hold a secret, which stays in the worker."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """For stdio; the sandbox sees it, so it must hold no secret."""
    allow: tuple[str, ...] | None = None
    """Tools by their own names; None: all that it offers."""
    risk: Risks | None = None
    """None: `execute` on stdio, `network` behind HTTP. What the server says of itself doesn't count."""
    seconds: float = 60.0
    """How long one call may take."""

    def __post_init__(self) -> None:
        if bool(self.command) == (self.url is not None):
            raise ValueError("an MCP server has either a command or a url")
        if (self.headers and self.url is None) or (self.environment and self.url is not None):
            raise ValueError("headers belong to a url, environment to a command")
        if not 0 < self.seconds <= 3600:  # noqa: PLR2004 - an hour
            raise ValueError("seconds must be more than 0 and at most 3600")


def read_server(value: Any) -> McpServer:
    """From a task's JSON, which can set neither headers (secrets are the installation's) nor a lower risk.

    Raises `ValueError` that says what is wrong.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - one kind of error for the caller
    if unknown := sorted(set(value) - {"command", "url", "environment", "allow", "seconds"}):
        raise ValueError(f"{', '.join(unknown)} can't be set by a task")
    command, allow, environment = value.get("command", []), value.get("allow"), value.get("environment", {})
    if not _are_words(command) or not (allow is None or _are_words(allow)):
        raise ValueError("command and allow must be lists of texts")
    if not isinstance(environment, dict) or not _are_words(list(environment.values())):
        raise ValueError("environment must hold texts")
    url, seconds = value.get("url"), value.get("seconds", 60)
    if not isinstance(url, str | None) or not isinstance(seconds, int | float):
        raise ValueError("url must be a text, seconds a number")  # noqa: TRY004 - as above
    return McpServer(
        command=tuple(command),
        url=url,
        environment=environment,
        allow=None if allow is None else tuple(allow),
        seconds=float(seconds),
    )


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and "\0" not in word for word in value)
