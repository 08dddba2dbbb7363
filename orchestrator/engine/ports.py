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
from typing import IO, Any, Literal, Protocol, runtime_checkable

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.subtask import SubtaskEnd, SubtaskRequest
from orchestrator.core.workspace import BackgroundOutput, CommandResult, Match

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
    """Tokens of one reply, as the provider counted them; the first four don't overlap.
    `cache_write_hour_tokens`: those of `cache_write_tokens` that are kept for an hour."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_hour_tokens: int = 0

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


Purpose = Literal["turn", "shorter", "summary"]


@dataclass(frozen=True, slots=True)
class CallFacts:
    """Whose request it is, for headers and logs; nothing of it changes what the model answers.

    `turn` is the number of the turn that the reply becomes, and grows within a claim (`fence`) of a step.
    `shorter` asks for the same turn once more, with less of the past.
    """

    task_id: str
    step_id: str
    fence: int
    turn: int
    purpose: Purpose = "turn"


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
    most that a request and its reply may have) and be `Counting`.
    """

    @property
    def kind(self) -> Literal["live", "recorded"]: ...

    @property
    def name(self) -> str: ...

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        """Raises `ModelError`, or `Stopped` as soon as `stop` is set hard."""


@runtime_checkable
class Counting(Protocol):
    """A model whose provider may say how large a request is."""

    def count(self, request: ModelRequest, /) -> int | None:
        """Tokens; None: nobody counts them. Raises `ModelError`."""


def counted(model: Model, request: ModelRequest) -> int | None:
    """Tokens, as the model's provider counts them; never a guess."""
    return model.count(request) if isinstance(model, Counting) else None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool call gave, as the model will read it."""

    text: str
    is_error: bool = False
    output: str | None = field(default=None, repr=False, compare=False)
    """The whole output where `text` shows a part of it: kept under the call's id, for `Journal.output`."""


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
    reason: str | None = None
    """Why this model answered, where there was a choice."""
    metered: bool = False
    """Its usage is written down elsewhere (by the gateway): the journal counts it no second time."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A steering message; the model reads it in the request of turn `before_turn`."""

    before_turn: int
    text: str


@dataclass(frozen=True, slots=True)
class Compacted:
    """From turn `before_turn` on, less of the past is sent. What the journal holds stays as it is.

    `shortened_to`: the outputs of the turns up to that one are sent in short. `summary`: stands in for the
    turns up to `summarised_to`; None: nothing was summed up. `usage` is what writing the summary took.
    """

    before_turn: int
    shortened_to: int
    summarised_to: int = 0
    summary: str | None = None
    usage: Usage = Usage()
    cost_usd: Decimal | None = Decimal(0)


@dataclass(frozen=True, slots=True)
class Corrected:
    """The agent went in circles; before turn `before_turn` it was told so, in `text`.

    `rung` counts from 1: told, rolled back, a person asked. `checkpoint`: the files were put back to it.
    """

    before_turn: int
    rung: int
    text: str
    checkpoint: str | None = None
    began: int = 0
    """The turn in which the first of these circles began."""


Entry = Turn | Heard | Compacted | Corrected


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that was begun; `result` is None until it was finished."""

    call_id: str
    result: ToolResult | None = None
    checkpoint: str | None = None
    turn: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that a journal holds, in the order in which it was appended."""

    entries: tuple[Entry, ...] = ()
    calls: tuple[Call, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    """call_id of what asked a person (a question, an approval, a budget) → the answer."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """call_id of what asked for leave → the digest of what was shown."""
    subtasks: Mapping[str, SubtaskEnd | None] = field(default_factory=dict)
    """call_id of a `start_subtask` → how that subtask ended; None while it lives."""

    @property
    def checkpoint(self) -> str | None:
        """The commit of the tree after the last finished call that changed it, or to which it was put back
        since."""
        back = [entry for entry in self.entries if isinstance(entry, Corrected) and entry.checkpoint]
        since = back[-1].before_turn if back else 0
        after = [call.checkpoint for call in self.calls if call.checkpoint and call.turn >= since]
        if after:
            return after[-1]
        return back[-1].checkpoint if back else None


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
        """What the whole tree of tasks has used, subtasks included, but for this conversation."""

    def append_turn(self, turn: Turn, /) -> None: ...

    def append(self, entry: Compacted | Corrected, /) -> None: ...

    def as_kept(self, arguments: Mapping[str, Any], /) -> Mapping[str, Any]:
        """The arguments of a call as the journal keeps them, without secrets; twice changes nothing more."""

    def begin_call(self, turn: int, call_id: str, name: str, arguments: Mapping[str, Any], /) -> None:
        """Before the tool runs. A call that was begun before is begun once."""

    def finish_call(self, call_id: str, result: ToolResult, checkpoint: str | None, /) -> None: ...

    def output(self, call_id: str, start: int, end: int, /) -> str | None:
        """Characters `start` to `end` (from 0, the end left out) of the whole output of a finished call;
        None: there is no such call."""

    def start_subtasks(self, requests: Sequence[SubtaskRequest], checkpoint: str | None, /) -> None:
        """Makes a task of each that has none yet, in one transaction; they start from `checkpoint` (None:
        from the step's own start). Raises `SubtaskRefused` when a limit of depth or number forbids it."""


class ServedProcess(Protocol):
    """Somebody else's program, contained as commands are; its pipes are the caller's to read and write."""

    @property
    def stdin(self) -> IO[bytes]: ...

    @property
    def stdout(self) -> IO[bytes]: ...

    @property
    def stderr(self) -> IO[bytes]: ...

    def code(self) -> int | None:
        """None while it runs."""

    def end(self, *, closing: float, terminating: float) -> int | None:
        """Its input closed, SIGTERM, SIGKILL to all that it started, each after so many seconds; once or
        twice."""


class Workspace(Protocol):
    """The attempt's files and commands.

    Paths are relative to the workspace, '/'-separated; '.' is its root; what leads outside is refused with
    `WorkspaceRefusal`. A freshly opened workspace holds the step's base.
    """

    def read(self, path: str, start: int | None, end: int | None, /) -> str:
        """Lines `start` to `end` (from 1, both included; None: to that edge), newlines as stored."""

    def has(self, path: str, /) -> bool:
        """Whether anything lies there: a file, a folder, a link."""

    def write(self, path: str, text: str, /) -> None:
        """Makes missing folders; replaces the whole file."""

    def delete(self, path: str, /) -> None: ...

    def move(self, path: str, to: str, /) -> None:
        """A file or a folder, to a path where nothing is; makes missing folders."""

    def list(self, path: str, depth: int, /) -> Sequence[str]:
        """Paths of what lies at most `depth` levels below `path`; those of folders end in '/'."""

    def search(self, pattern: str, path: str, glob: str | None, /) -> Sequence[Match]:
        """Lines that match the regular expression, in text files below `path` whose name matches `glob`."""

    def run(
        self, command: str, *, timeout: timedelta, on_output: Callable[[str], None], stop: Stop
    ) -> CommandResult:
        """One shell command in the root; `on_output` gets its output in pieces; a hard `stop` kills it."""

    def start_background(
        self, handle: str, command: str, *, timeout: timedelta, on_output: Callable[[str], None], stop: Stop
    ) -> None:
        """A shell command that goes on by itself: until its end, its timeout, a hard `stop`, or the end of
        the claim, whichever is first. `handle` names it from then on."""

    def read_background(self, handle: str, wait: timedelta, stop: Stop, /) -> BackgroundOutput:
        """Waits up to `wait` for its end or a hard `stop`, then says what it printed since the last time."""

    def stop_background(self, handle: str, /) -> BackgroundOutput:
        """Kills it with all that it started."""

    def serve(self, words: Sequence[str], environment: Mapping[str, str], /) -> ServedProcess:
        """Starts a program that is talked to over its stdin and stdout; it ends with the claim at the
        latest."""

    def checkpoint(self, label: str, /) -> str | None:
        """Commits the tree to a hidden ref; None if it is as at the last checkpoint or restore."""

    def restore(self, commit: str, /) -> None:
        """Makes the tree exactly that of `commit`, which a checkpoint of this step returned."""

    def adopt(self, commit: str, /) -> str | None:
        """Merges what a subtask did, which started from a checkpoint of this step, into the tree; a conflict
        changes nothing and is returned as a text."""
