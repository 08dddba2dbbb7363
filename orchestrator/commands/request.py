"""The body of a new task, the same in every door: what is accepted, and what is said about what isn't."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from orchestrator.core.errors import Problem, Refused
from orchestrator.core.plan import PlanStep
from orchestrator.core.priority import Priority
from orchestrator.core.redaction import LOOKS

MAX_DESCRIPTION: Final = 100_000
MAX_TITLE: Final = 300
MAX_WORD: Final = 200
MAX_ITEMS: Final = 100
MAX_SPEC_BYTES: Final = 65_536
TASK_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$"

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


def _one_line(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise ValueError("must be one line")
    return _printable(text)


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
    if isinstance(value, str):
        lower = value.lower()
        return "medium" if lower == "normal" else lower
    return value


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
        return self


class RepositoryRequest(_Body):
    """Where the code is. `push` asks for the branch to be pushed back to it at the end."""

    url: Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_one_line)] | None = None
    branch: Line | None = None
    path: Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_one_line)] | None = None
    push: bool = False

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise ValueError("give either url or path")
        return self


class BudgetRequest(_Body):
    """What the task may use at most."""

    max_cost_usd: Annotated[Decimal, Field(gt=0, le=100_000)] | None = None
    max_tokens: Annotated[int, Field(gt=0, le=10_000_000_000)] | None = None
    max_duration: Duration | None = None
    max_turns: Annotated[int, Field(gt=0, le=10_000)] | None = None


class AgentRequest(_Body):
    """Which kind of agent does the work."""

    type: Line | None = None
    capabilities: Annotated[list[Line], Field(max_length=MAX_ITEMS)] = []


class StepRequest(_Body):
    """One step of a plan that comes with the request."""

    id: Line
    description: Annotated[Text, Field(min_length=1, max_length=MAX_DESCRIPTION)]
    needs: Annotated[list[Line], Field(max_length=500)] = []
    agent: Line | None = None
    model: Line | None = None
    estimate: Duration | None = None
    spec: dict[str, Any] = {}


class TaskRequest(_Body):
    """A new task; only `description` is required."""

    description: Annotated[Text, Field(min_length=1, max_length=MAX_DESCRIPTION)]
    id: Annotated[str, Field(pattern=TASK_ID)] | None = None
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
    on_question_timeout: dict[str, Any] | None = None
    on_step_failure: Literal["stop", "continue"] = "stop"
    labels: Annotated[dict[Line, Line], Field(max_length=MAX_ITEMS)] = {}
    callback_url: Line | None = None
    start: bool = True
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
    return LOOKS.value(body)


def refused(error: ValidationError) -> Refused:
    problems = tuple(
        Problem(
            pointer="".join(f"/{part}" for part in found["loc"]),
            code=found["type"].replace("_", "-"),
            detail=found["msg"].removeprefix("Value error, "),
        )
        for found in error.errors(include_url=False, include_input=False, include_context=False)
    )
    first = problems[0]
    where = first.pointer.lstrip("/").replace("/", ".") or "the request"
    return Refused(
        "request-invalid",
        f"{where}: {first.detail[:300]}",
        "Correct the named fields and send it again.",
        problems=problems,
    )


def _only_what_is_built(request: TaskRequest) -> None:
    unbuilt = {
        "/execution_mode": request.execution_mode if request.execution_mode not in _BUILT_MODES else None,
        "/gates": request.gates,
        "/depends_on": request.depends_on,
        "/parent_id": request.parent_id,
        "/on_question_timeout": request.on_question_timeout,
        "/callback_url": request.callback_url,
        "/project": request.project,
    }
    for pointer, value in unbuilt.items():
        if value:
            name = pointer.lstrip("/")
            raise Refused(
                "mode-unavailable",
                f"{name} {value!r} is understood, but this version can't do it yet.",
                f"Leave {name} out.",
                problems=(Problem(pointer, "mode-unavailable", "not available in this version"),),
            )
