"""Which kinds of agent there are, what each is good at, and what each can't do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

Grade = Literal["full", "degraded"]
Provider = Literal["anthropic", "openai"]
PROVIDERS: Final = frozenset({"anthropic", "openai"})


class Capability(StrEnum):
    """What a kind of agent can do with us; a task may require it by this name."""

    QUESTIONS = "questions"
    """Asks a person, and holds no worker until the answer is there."""
    APPROVALS = "approvals"
    """Asks for leave before a risky call."""
    STEERING = "steering"
    """Hears messages that are sent while it works."""
    CANCEL = "cancel"
    """Stops at once, and leaves nothing that runs."""
    RESUME = "resume"
    """Goes on where it was when its worker dies."""
    LIMITS = "limits"
    """Keeps to the task's turns, tokens and cost."""
    USAGE = "usage"
    """What it spends is counted."""
    EVENTS = "events"
    """Its tool calls are seen as they happen."""
    SUBTASKS = "subtasks"
    """Starts tasks of its own and waits for them."""


ALL: Final = frozenset(Capability)
LANGUAGES: Final = frozenset(
    (
        *("c", "c++", "c#", "clojure", "css", "dart", "elixir", "erlang", "go", "haskell", "html", "java"),
        *("javascript", "julia", "kotlin", "lua", "ocaml", "perl", "php", "python", "r", "ruby", "rust"),
        *("scala", "shell", "sql", "swift", "typescript", "zig"),
    )
)
"""A task may require one by this name. An agent writes them all unless its type names those that it does."""


@dataclass(frozen=True, slots=True)
class AgentType:
    """One kind of agent.

    `degraded` is one that is judged by what it left alone, without events or questions. `specialties` are
    words for kinds of work that a task may require or name as its own; `strengths` say the same to people.
    `providers`: it needs a model of one of these. `program`: its name in `data/agents.toml`.
    """

    name: str
    label: str
    protocol: str
    grade: Grade
    strengths: str
    specialties: frozenset[str]
    capabilities: frozenset[Capability]
    model_kind: Literal["live", "recorded"] = "live"
    providers: tuple[Provider, ...] = ()
    program: str | None = None
    languages: frozenset[str] = frozenset()
    lacks: str = ""
    """What it can't do, for people."""
    preference: float = 0.0
    """How much a rule that has nothing else to go by prefers it; below 0 it is used only when it is named."""

    def offers(self, word: str) -> bool:
        """Whether it has what a task requires by this word: a capability, a kind of work, a language."""
        if word in LANGUAGES:
            return not self.languages or word in self.languages
        return word in self.capabilities or word in self.specialties


_TYPES: Final = (
    AgentType(
        "engine",
        "Built-in engine",
        "built in",
        "full",
        "Any task; its turns are durable, it plans, asks, and splits work into subtasks",
        frozenset(
            (
                *("automation", "backend", "cli", "debugging", "documentation", "editing", "generation"),
                *("implementation", "planning", "refactoring", "review", "testing"),
            )
        ),
        ALL,
        providers=("anthropic", "openai"),
        preference=3.0,
    ),
    AgentType(
        "claude-code",
        "Claude Code",
        "Claude Agent SDK",
        "full",
        "Full-stack development, testing, debugging",
        frozenset(("backend", "debugging", "frontend", "full-stack", "implementation", "review", "testing")),
        ALL - {Capability.SUBTASKS},
        providers=("anthropic",),
        program="claude-code",
        lacks="subtasks of its own",
        preference=2.0,
    ),
    AgentType(
        "codex",
        "Codex",
        "ACP",
        "full",
        "Code completion, generation, translation",
        frozenset(("generation", "completion", "implementation", "translation")),
        ALL - {Capability.SUBTASKS},
        providers=("openai",),
        program="codex",
        lacks="subtasks of its own; a question keeps its session, not its process",
        preference=1.9,
    ),
    AgentType(
        "goose",
        "Goose",
        "ACP",
        "full",
        "Backend development, CLI tools, automation",
        frozenset(("automation", "backend", "cli", "implementation")),
        ALL - {Capability.SUBTASKS, Capability.QUESTIONS},
        providers=("anthropic", "openai"),
        program="goose",
        lacks="questions and subtasks of its own",
        preference=1.8,
    ),
    AgentType(
        "aider",
        "Aider",
        "command line",
        "degraded",
        "Code editing, git integration, incremental development",
        frozenset(("editing", "incremental", "refactoring")),
        frozenset((Capability.CANCEL, Capability.LIMITS, Capability.USAGE)),
        providers=("anthropic", "openai"),
        program="aider",
        lacks="questions, approvals, steering, events; it runs no commands, begins anew when its "
        "worker dies, and is judged by its change alone",
        preference=0.5,
    ),
    AgentType(
        "agentapi",
        "coder/agentapi",
        "HTTP",
        "degraded",
        "Whatever the agent behind it does, in its own folder and with its own keys",
        frozenset(),
        frozenset((Capability.STEERING,)),
        lacks="our sandbox, cancelling, questions, approvals, limits, cost; its text is read from a screen",
        preference=-1.0,
    ),
    AgentType(
        "replay",
        "REPLAY",
        "recording",
        "full",
        "Plays a recorded conversation of the engine, for demonstrations and tests",
        frozenset(),
        ALL,
        model_kind="recorded",
        preference=-1.0,
    ),
)
AGENT_TYPES: Final[Mapping[str, AgentType]] = MappingProxyType({kind.name: kind for kind in _TYPES})
