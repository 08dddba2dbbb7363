"""What the engine needs from outside, as small Protocols, and the values that cross them.

    Workspace   an attempt's files and commands              (built by `workspaces`)
    Journal     the conversation's durable home              (built on Postgres by the shell)
    Model       one request, one streamed reply              (`engine.providers`)

Failures: a workspace raises `WorkspaceRefusal` (told to the model) or `WorkspaceFault` (ends the claim), a
journal raises `LeaseLost`, a model raises `ModelError` or `Stopped`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.subtask import SubtaskEnd, SubtaskRequest
from orchestrator.core.workspace import CommandResult, Match

Block = Mapping[str, Any]
"""One content block as the Messages API spells it: {"type": "text" | "tool_use" | …, …}."""


class LeaseLost(Exception):
    """Another claim has the step now: nothing more may be written."""


class SubtaskRefused(Exception):
    """No subtask was started; the text is for the model."""


class Stopped(Exception):
    """The stop was set hard while the model was answering; the stream is closed, nothing of it is kept."""


class ModelError(Exception):
    """The model gave no usable reply. `message` is for people and holds no secret."""

    def __init__(
        self,
        error: ErrorClass,
        code: str,
        message: str,
        *,
        retryable: bool,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply, as the provider counted them; the four don't overlap."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    @property
    def total(self) -> int:
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: every block, and the reason for its end."""

    content: tuple[Block, ...]
    stop_reason: str
    usage: Usage
    model: str
    request_id: str | None = None
    reason: str | None = None
    """Why this model answered, where there was a choice."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """Whose request it is, for headers and logs; nothing of it changes what the model answers.

    `turn` is the number of the turn that the reply becomes, and grows within a claim (`fence`) of a step.
    """

    task_id: str
    step_id: str
    fence: int
    turn: int
    purpose: Literal["turn", "summary"] = "turn"


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request. `messages` grows by appending from turn to turn; a model must not change it."""

    system: str
    tools: Sequence[Mapping[str, Any]]
    messages: Sequence[Mapping[str, Any]]
    call: CallFacts | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Some more of the text that the model is writing."""

    text: str


@dataclass(frozen=True, slots=True)
class CallAnnounced:
    """The model began to write a tool call; its arguments are still to come."""

    name: str


@dataclass(frozen=True, slots=True)
class CallCompleted:
    """A call is there as a whole, while the reply may still go on. A listener may check it, show it, or begin
    what only reads; whether the call counts is known when the whole reply is."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]

    def block(self) -> Block:
        return {"type": "tool_use", "id": self.call_id, "name": self.name, "input": self.arguments}


@dataclass(frozen=True, slots=True)
class ModelSwitched:
    """From here on another model answers; what was heard of this reply before is void."""

    model: str
    reason: str


StreamEvent = TextDelta | CallAnnounced | CallCompleted | ModelSwitched


class Model(Protocol):
    """Answers one request, once: it never retries and never hides an error in text.

    A model may also have `metered: bool` (its usage is written down elsewhere), `context_tokens: int` (the
    most that a request and its reply may have) and `count(request) -> int` (tokens, asked of the provider).
    """

    @property
    def kind(self) -> Literal["live", "recorded"]: ...

    @property
    def name(self) -> str: ...

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        """Raises `ModelError`, or `Stopped` as soon as `stop` is set hard."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool call gave, as the model will read it."""

    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply of the model, whole, as it is appended to the journal; numbers count from 1 without gaps."""

    number: int
    content: tuple[Block, ...]
    stop_reason: str
    usage: Usage
    model: str
    model_kind: Literal["live", "recorded"]
    request_id: str | None
    cost_usd: Decimal | None
    """0 for a recorded model; None when the price of the model isn't known."""
    elapsed: timedelta
    """Time at work since the turn before (or since the claim began); the sum is the step's wall time."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A steering message; the model reads it in the request of turn `before_turn`."""

    before_turn: int
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that was begun; `result` is None until it was finished."""

    call_id: str
    result: ToolResult | None = None
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that a journal holds, in the order in which it was appended."""

    entries: tuple[Turn | Heard, ...] = ()
    calls: tuple[Call, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    """call_id of what asked a person (a question, an approval, a budget) → the answer."""
    subtasks: Mapping[str, SubtaskEnd | None] = field(default_factory=dict)
    """call_id of a `start_subtask` → how that subtask ended; None while it lives."""

    @property
    def checkpoint(self) -> str | None:
        """The commit of the tree after the last finished call that changed it."""
        return next((call.checkpoint for call in reversed(self.calls) if call.checkpoint), None)


@dataclass(frozen=True, slots=True)
class Spending:
    """What conversations have used."""

    turns: int = 0
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)


class Journal(Protocol):
    """The conversation's durable home, one per step. It only grows: nothing written is rewritten.

    Every method is one transaction that first checks the claim's fence; without it it raises `LeaseLost`.
    When a method has returned, what it was given survives the process.
    """

    def load(self) -> Conversation: ...

    def hear(self, before_turn: int, /) -> Sequence[Heard]:
        """Steering messages that nobody has taken up, in order: each is taken and appended in the same
        transaction, so that it is heard once, whoever dies."""

    def spent_elsewhere(self) -> Spending:
        """What the task's other steps have used in this run, and this step in earlier conversations."""

    def append_turn(self, turn: Turn, /) -> None: ...

    def begin_call(self, turn: int, call_id: str, name: str, arguments: Mapping[str, Any], /) -> None:
        """Before the tool runs. A call that was begun before is begun once."""

    def finish_call(self, call_id: str, result: ToolResult, checkpoint: str | None, /) -> None: ...

    def start_subtasks(self, requests: Sequence[SubtaskRequest], checkpoint: str | None, /) -> None:
        """Makes a task of each that has none yet, in one transaction; they start from `checkpoint` (None:
        from the step's own start). Raises `SubtaskRefused` when a limit of depth or number forbids it."""


class Workspace(Protocol):
    """The attempt's files and commands.

    Paths are relative to the workspace, '/'-separated; '.' is its root; what leads outside is refused with
    `WorkspaceRefusal`. A freshly opened workspace holds the step's base.
    """

    def read(self, path: str, start: int | None, end: int | None, /) -> str:
        """Lines `start` to `end` (from 1, both included; None: to that edge), newlines as stored."""

    def write(self, path: str, text: str, /) -> None:
        """Makes missing folders; replaces the whole file."""

    def delete(self, path: str, /) -> None: ...

    def list(self, path: str, depth: int, /) -> Sequence[str]:
        """Paths of what lies at most `depth` levels below `path`; those of folders end in '/'."""

    def search(self, pattern: str, path: str, glob: str | None, /) -> Sequence[Match]:
        """Lines that match the regular expression, in text files below `path` whose name matches `glob`."""

    def run(
        self, command: str, *, timeout: timedelta, on_output: Callable[[str], None], stop: Stop
    ) -> CommandResult:
        """One shell command in the root; `on_output` gets its output in pieces; a hard `stop` kills it."""

    def checkpoint(self, label: str, /) -> str | None:
        """Commits the tree to a hidden ref; None if it is as at the last checkpoint or restore."""

    def restore(self, commit: str, /) -> None:
        """Makes the tree exactly that of `commit`, which a checkpoint of this step returned."""
