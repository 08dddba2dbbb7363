"""Which model answers the next turn, and why: by the kind of work, by what the work requires, else the
primary one; and which comes after one that failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from orchestrator.core.recovery import ErrorClass

Api = Literal["messages", "responses", "chat"]


class TaskType(StrEnum):
    """Kinds of work that may have a model of their own."""

    PLANNING = "planning"
    IMPLEMENTATION = "implementation"
    TESTING = "testing"
    REVIEW = "review"
    CODE_REVIEW = "code_review"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What must be known of a model to call it. `api` None: by its name (see `api_of`)."""

    api: Api | None = None
    native_tools: bool = True
    """Without: it is shown tools in its prompt, and calls them by tags in its text."""
    max_output_tokens: int = 16_000
    context_tokens: int | None = None
    """The most that a request and its reply may have together."""
    store: bool = False
    """Responses API: the provider keeps replies, and a turn goes on from the one before."""


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """USD per million tokens, as somebody has entered it. Where nothing else is said, the cache costs the
    input's price, and what is kept in it for an hour 8/5 of `cache_write`."""

    input: Decimal
    output: Decimal
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_hour: Decimal | None = None


def api_of(model: str, options: ModelOptions) -> Api:
    """Claude speaks Messages, OpenAI's own models Responses, everybody else Chat Completions."""
    if options.api is not None:
        return options.api
    if model.startswith("claude"):
        return "messages"
    return "responses" if re.match(r"(gpt-|chatgpt-|codex-|o\d)", model) else "chat"


@dataclass(frozen=True, slots=True)
class Choice:
    """A model's name, and the reason, as people read it."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """The models of one run. `reasoning` says how they were selected."""

    primary: str
    fallbacks: tuple[str, ...] = ()
    specialized: Mapping[TaskType, str] = field(default_factory=dict)
    reasoning: str = "the default model"

    @property
    def models(self) -> tuple[str, ...]:
        """All that may be asked, each once."""
        return tuple(dict.fromkeys((self.primary, *self.specialized.values(), *self.fallbacks)))

    def choices(self, phase: TaskType | None) -> Iterator[Choice]:
        """For the work of `phase`: the best first, then those that stand in for it."""
        special = self.specialized.get(phase) if phase is not None else None
        if special is not None and special != self.primary:
            yield Choice(special, f"the model for {str(phase).replace('_', ' ')}")
        yield Choice(self.primary, self.reasoning)
        for model in self.fallbacks:
            if model not in {self.primary, special}:
                yield Choice(model, "a fallback")


def select(
    named: str | None,
    default: str,
    fallbacks: Sequence[str] = (),
    specialized: Mapping[TaskType, str] = MappingProxyType({}),
    rules: Mapping[str, str] = MappingProxyType({}),
    requirements: Iterable[str] = (),
) -> ModelSelection:
    """Whoever names a model gets that one, whatever the phase; then the first rule counts whose word is a
    requirement's, case aside. `rules` are words to models, `requirements` the task's own words.
    """
    if named is not None:
        return ModelSelection(named, tuple(fallbacks), {}, "the task names it")
    words = {word for requirement in requirements for word in re.findall(r"[\w-]+", requirement.lower())}
    for word, model in rules.items():
        if word.lower() in words:
            return ModelSelection(
                model, tuple(fallbacks), dict(specialized), f"the task requires {word.lower()!r}"
            )
    return ModelSelection(default, tuple(fallbacks), dict(specialized))


_PHASES: Final[Sequence[tuple[TaskType, frozenset[str]]]] = (
    (
        TaskType.IMPLEMENTATION,
        frozenset({"write_file", "edit_file", "apply_patch", "move_file", "delete_file"}),
    ),
    (TaskType.TESTING, frozenset({"run_command"})),
    (TaskType.REVIEW, frozenset({"attempt_completion"})),
)


def phase(latest_first: Iterable[Sequence[str]], *, reviews: bool = False) -> TaskType:
    """What the work is at, by the tools that each turn has called, the latest turn first: planning until
    something is changed or run, then whatever was done last. `reviews`: the step looks at another's work.
    """
    if reviews:
        return TaskType.CODE_REVIEW
    for called in latest_first:
        for kind, tools in _PHASES:
            if not tools.isdisjoint(called):
                return kind
    return TaskType.PLANNING


_ANOTHER_MAY: Final = frozenset(
    {
        ErrorClass.NETWORK,
        ErrorClass.RATE_LIMIT,
        ErrorClass.OVERLOADED,
        ErrorClass.TIMEOUT,
        ErrorClass.DEPENDENCY,
        ErrorClass.AUTH,
    }
)
_NOBODY_CAN: Final = frozenset({"run-token-invalid", "gateway-unready"})
_ANOTHER_CAN: Final = frozenset({"model-unknown", "model-not-allowed", "price-unknown"})


def another_may_answer(error: ErrorClass, code: str) -> bool:
    """Whether a fallback is worth a send after this failure: what is wrong with the request, the budget or
    the gateway is wrong for every model."""
    return code not in _NOBODY_CAN and (error in _ANOTHER_MAY or code in _ANOTHER_CAN)
