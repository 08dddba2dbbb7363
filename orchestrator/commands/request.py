"""The body of a new task, the same in every door: what is accepted, and what is said about what isn't."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from orchestrator.commands.faults import in_words
from orchestrator.core import leave, priority, repository_url, task_id
from orchestrator.core.errors import Problem, Refused
from orchestrator.core.plan import PlanStep
from orchestrator.core.priority import Priority
from orchestrator.core.redaction import LOOKS
from orchestrator.core.verdict import OnSilence

MAX_DESCRIPTION: Final = 100_000
MAX_TITLE: Final = 300
MAX_WORD: Final = 200
MAX_ITEMS: Final = 100
MAX_SPEC_BYTES: Final = 65_536
DEEPEST: Final = 64

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u2028-\u202e\u2066-\u2069]")
_BUILT_MODES: Final = frozenset({"auto"})
_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$")
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _printable(text: str) -> str:
    found = _CONTROL.search(text)
    if found:
        raise ValueError(
            f"holds the control character U+{ord(found.group()):04X} at position {found.start()}"
        )
    return text


def _may_need_leave(name: str) -> str:
    if said := leave.fault(name):
        raise ValueError(said)
    return name


def _one_line(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise ValueError("must be one line")
    return _printable(text)


def _spec(value: dict[str, Any]) -> dict[str, Any]:
    size = _size(value)
    if size > MAX_SPEC_BYTES:
        raise ValueError(f"is {size} bytes of JSON, more than {MAX_SPEC_BYTES}")
    for text in _texts(value):
        _printable(text)
    return value


def _texts(value: Any) -> Iterator[str]:
    """Every string at any depth, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _id(text: str) -> str:
    if not task_id.is_task_id(text):
        raise ValueError(task_id.RULE)
    return text


def duration(value: object) -> object:
    """`"30m"`, `"2h"`, seconds as a number, or ISO 8601, which pydantic reads itself."""
    if isinstance(value, str) and (found := _DURATION.match(value.strip())):
        return timedelta(seconds=float(found.group(1)) * _UNIT_SECONDS[found.group(2)])
    return value


def _end_of_day(value: object) -> object:
    """A date alone means the end of that day, in UTC."""
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return datetime.combine(datetime.fromisoformat(value), time(23, 59, 59), tzinfo=UTC)
    return value


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _priority(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return priority.parse(value)
    except Refused as error:
        # In a template braces would be fields of its own; what was given is no template.
        raise PydanticCustomError("invalid_priority", "{words}", {"words": error.message}) from None


def _mode(value: object) -> object:
    return value.lower().replace("-", "_") if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_printable)]
Line = Annotated[str, Field(min_length=1, max_length=MAX_WORD), AfterValidator(_one_line)]
Duration = Annotated[timedelta, BeforeValidator(duration), Field(gt=timedelta(0), le=timedelta(days=30))]


class _Body(BaseModel):
    """Unknown fields are refused, so that a typing error isn't silent; `x_…` is the caller's own."""

    model_config = ConfigDict(extra="allow", frozen=True, str_strip_whitespace=False)

    @model_validator(mode="after")
    def _no_unknown_fields(self) -> Self:
        unknown = [name for name in self.model_extra or {} if not name.startswith("x_")]
        if unknown:
            known = ", ".join(sorted(type(self).model_fields))
            raise ValueError(f"unknown field {unknown[0]!r}; known are {known}")
        for text in _texts(self.model_extra):
            _printable(text)
        return self


class RepositoryRequest(_Body):
    """Where the code is. `push` asks for the branch to be pushed back to it at the end.

    `credential` is the name of one that the workers have for that address.
    """

    url: Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_one_line)] | None = None
    branch: Line | None = None
    path: Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_one_line)] | None = None
    push: bool = False
    credential: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise ValueError("give either url or path")
        if self.credential is not None and not (self.url or "").lower().startswith("https://"):
            raise ValueError("a credential is for an https url; ssh has keys of its own")
        return self


class BudgetRequest(_Body):
    """What the task may use at most."""

    max_cost_usd: Annotated[Decimal, Field(gt=0, le=100_000)] | None = None
    max_tokens: Annotated[int, Field(gt=0, le=10_000_000_000)] | None = None
    max_duration: Duration | None = None
    max_turns: Annotated[int, Field(gt=0, le=10_000)] | None = None


class AgentRequest(_Body):
    """Which kind of agent does the work, and what it must ask leave for.

    `tool_approval` names tools and classes of risk (read, write, execute, network; `*`: all of them) whose
    calls wait for a person's approval.
    """

    type: Line | None = None
    capabilities: Annotated[list[Line], Field(max_length=MAX_ITEMS)] = []
    tool_approval: Annotated[
        list[
            Annotated[
                str,
                Field(pattern=r"^(\*|[A-Za-z][A-Za-z0-9_.:/-]{0,99})$"),
                AfterValidator(_may_need_leave),
            ]
        ],
        Field(max_length=MAX_ITEMS),
    ] = []


class QuestionTimeout(_Body):
    """What becomes of a question that nobody answers within `after`: it goes on waiting, the step fails, or
    it goes on with the answer that the agent itself proposed.

    Silence is never consent: what asks for an approval or for more budget only waits or fails.
    """

    after: Duration
    then: OnSilence


class StepRequest(_Body):
    """One step of a plan that comes with the request."""

    id: Line
    description: Annotated[Text, Field(min_length=1, max_length=MAX_DESCRIPTION)]
    needs: Annotated[list[Line], Field(max_length=500)] = []
    agent: Line | None = None
    model: Line | None = None
    estimate: Duration | None = None
    spec: Annotated[dict[str, Any], AfterValidator(_spec)] = {}


class TaskRequest(_Body):
    """A new task; only `description` is required."""

    description: Annotated[Text, Field(min_length=1, max_length=MAX_DESCRIPTION)]
    id: Annotated[str, AfterValidator(_id)] | None = None
    title: Annotated[str, Field(min_length=1, max_length=MAX_TITLE), AfterValidator(_one_line)] | None = None
    priority: Annotated[Priority, BeforeValidator(_priority)] = Priority.MEDIUM
    execution_mode: Annotated[Literal["auto", "strict", "dry_run"], BeforeValidator(_mode)] = "auto"
    requirements: Annotated[list[Annotated[Text, Field(max_length=2000)]], Field(max_length=MAX_ITEMS)] = []
    deadline: Annotated[datetime, BeforeValidator(_end_of_day), AfterValidator(_aware)] | None = None
    stakeholders: Annotated[list[Line], Field(max_length=MAX_ITEMS)] = []
    repository: RepositoryRequest | None = None
    project: Line | None = None
    external_id: Line | None = None
    parent_id: Line | None = None
    depends_on: Annotated[list[Line], Field(max_length=MAX_ITEMS)] = []
    budget: BudgetRequest = BudgetRequest()
    agent: AgentRequest = AgentRequest()
    model: Line | None = None
    gates: Annotated[list[Line], Field(max_length=MAX_ITEMS)] = []
    on_question_timeout: QuestionTimeout | None = None
    on_step_failure: Literal["stop", "continue"] = "stop"
    labels: Annotated[dict[Line, Line], Field(max_length=MAX_ITEMS)] = {}
    callback_url: Line | None = None
    start: bool = True
    validate_only: bool = False
    steps: Annotated[list[StepRequest], Field(min_length=1, max_length=500)] | None = None

    def plan_steps(self) -> list[PlanStep]:
        """The request's own plan, or one step that is the whole task; not validated as a graph yet."""
        if self.steps is None:
            return [PlanStep(key="work", description=self.description)]
        return [
            PlanStep(
                key=step.id,
                description=step.description,
                needs=tuple(step.needs),
                agent_type=step.agent,
                model=step.model,
                estimate=step.estimate,
                spec=step.spec,
            )
            for step in self.steps
        ]


def parse(data: Mapping[str, Any] | str) -> TaskRequest:
    """Reads a request: a mapping, or the description alone; what looks like a secret is taken out of it.

    Raises Refused: `request-invalid` with a JSON pointer for each fault, or `mode-unavailable` for what the
    request may say but this version can't do.
    """
    body: Mapping[str, Any] = {"description": data} if isinstance(data, str) else data
    if not isinstance(body, Mapping):
        raise Refused("request-invalid", "The request must be an object or a text.", "See the reference.")
    try:
        request = TaskRequest.model_validate(_without_secrets(body))
    except ValidationError as error:
        raise refused(error) from None
    _only_what_is_built(request)
    return request


def _without_secrets(body: Mapping[str, Any]) -> Any:
    """Here, before anything of it is stored, sent or told."""
    labels = body.get("labels")
    if isinstance(labels, Mapping):  # their names are the caller's words, too
        body = {**body, "labels": {LOOKS.value(name): value for name, value in labels.items()}}
    clean = LOOKS.value(body)
    repository = body.get("repository")
    if isinstance(repository, Mapping) and isinstance(url := repository.get("url"), str):
        # An account's name (git@) is part of an address and no secret; an address with a secret is refused.
        repository_url.check(url, allow_local=True, allow_private=True)
        clean["repository"]["url"] = url
    return clean


def refused(error: ValidationError) -> Refused:
    problems = tuple(
        Problem(
            pointer="".join(f"/{part}" for part in found["loc"]),
            code=found["type"].replace("_", "-"),
            detail=in_words(found),
        )
        for found in error.errors(include_url=False, include_input=False, include_context=False)
    )
    first = problems[0]
    where = first.pointer.lstrip("/").replace("/", ".") or "the request"
    return Refused(
        "request-invalid",
        f"{where}: {first.detail[:900]}",
        "Correct the named fields and send it again.",
        problems=problems,
    )


def check_id(text: object) -> None:
    """Raises Refused `request-invalid` for what can't be a task's id, in a request's own words."""
    if not task_id.is_task_id(text):
        raise Refused(
            "request-invalid",
            f"id: {task_id.RULE}",
            "Correct the named fields and send it again.",
            problems=(Problem("/id", "value-error", task_id.RULE),),
        )


def check_body(body: Any, most_bytes: int) -> None:
    """What a REST request meets on its way in, for bodies that come another way: the same codes and texts.

    Raises Refused `request-malformed` or `body-too-large`.
    """
    try:
        size = _size(dict(body) if isinstance(body, Mapping) else body)
    except (TypeError, ValueError, RecursionError):
        raise Refused("request-malformed", "The body is not JSON in UTF-8.", "Send a JSON object.") from None
    check_depth(body)
    if size > most_bytes:
        raise too_large(most_bytes)


def check_previous(previous: Any, most_bytes: int) -> None:
    """The result of the task before, which goes with the request: as long as a body at most.

    Raises Refused `request-malformed` or `body-too-large`.
    """
    try:
        size = _size(harmless(previous), str)
    except (TypeError, ValueError, RecursionError):
        raise Refused(
            "request-malformed", "What the task before returned is not JSON.", "Let it return JSON."
        ) from None
    check_depth(previous)
    if size > most_bytes:
        raise too_large(most_bytes, "What the task before returned")


def check_depth(body: Any) -> None:
    """Raises Refused `request-malformed`."""
    level, depth = [body], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise Refused("request-malformed", f"The body is nested deeper than {DEEPEST}.", "Flatten it.")
        level = [
            item
            for each in level
            if isinstance(each, Mapping | list | tuple)
            for item in (each.values() if isinstance(each, Mapping) else each)
        ]


def too_large(most_bytes: int, what: str = "The body") -> Refused:
    return Refused(
        "body-too-large",
        f"{what} is longer than {most_bytes} bytes.",
        "Shorten it, or raise ORCHESTRATOR_MAX_BODY_BYTES.",
    )


def _size(value: Any, other: Callable[[Any], str] | None = None) -> int:
    return len(json.dumps(value, ensure_ascii=False, allow_nan=False, default=other or _as_text).encode())


def _as_text(value: object) -> str:
    """Of what isn't JSON, that which has one spelling in it. Raises TypeError."""
    if isinstance(value, datetime | date | time | timedelta | Decimal | UUID | Enum):
        return str(value)
    raise TypeError(type(value).__name__)


def harmless(value: Any) -> Any:
    """A result of somebody's program as data: what no text of ours may hold is replaced, not refused."""
    if isinstance(value, str):
        return _CONTROL.sub("\ufffd", value.encode("utf-8", "replace").decode("utf-8"))
    if isinstance(value, Mapping):
        return {harmless(str(key)): harmless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [harmless(item) for item in value]
    return value


def unavailable(pointer: str, value: object) -> Refused:
    """What is understood, and not built into this version."""
    name = pointer.lstrip("/").replace("/", ".")
    return Refused(
        "mode-unavailable",
        f"{name} {repr(value)[:200]} is understood, but this version can't do it yet.",
        f"Leave {name} out.",
        problems=(Problem(pointer, "mode-unavailable", "not available in this version"),),
    )


def _only_what_is_built(request: TaskRequest) -> None:
    unbuilt = {
        "/execution_mode": request.execution_mode if request.execution_mode not in _BUILT_MODES else None,
        "/gates": request.gates,
        "/depends_on": request.depends_on,
        "/parent_id": request.parent_id,
        "/callback_url": request.callback_url,
        "/project": request.project,
        "/validate_only": request.validate_only,
    }
    for pointer, value in unbuilt.items():
        if value:
            raise unavailable(pointer, value)
