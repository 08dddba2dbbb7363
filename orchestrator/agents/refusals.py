"""What it means for a step when the gateway, or the provider behind it, refused an agent's last request."""

from __future__ import annotations

from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Ask, Broke, NeedsInput, Verdict, Waits
from orchestrator.engine.limits import NOT_SENT, SOONEST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.agents.door import Answered

_THROTTLED: Final = 429
_SERVER: Final = 500
PATIENCE: Final = timedelta(minutes=1)
"""A longer wait for a provider holds no worker."""
FINAL_CODES: Final = frozenset(("budget-exhausted", "run-limit-reached", "circuit-open", "run-token-invalid"))
"""Refusals that every request would meet: an agent that goes on trying only loses time."""
OF_ONE_MODEL: Final = frozenset(("model-not-allowed", "price-unknown", "provider-missing"))
"""Refusals that an agent may do without: some ask a model of their own choice for titles and summaries."""

_CODES: Final[Mapping[str, tuple[ErrorClass, bool, str]]] = MappingProxyType(
    {
        "run-token-invalid": (ErrorClass.INTERNAL, True, "the gateway no longer knew the run's token"),
        "model-not-allowed": (
            ErrorClass.VALIDATION,
            False,
            "the agent asked for a model that it may not use",
        ),
        "price-unknown": (
            ErrorClass.VALIDATION,
            False,
            (
                "the task has a budget in dollars, and the model's price is not known: enter it "
                """(ORCHESTRATOR_PRICES='{"MODEL": {"input": "0.2", "output": "0.6"}}'), or bound the """
                "task by tokens or turns"
            ),
        ),
        "provider-missing": (ErrorClass.AUTH, False, "the gateway has no key for the model's provider"),
        "run-limit-reached": (ErrorClass.LIMIT, False, "the agent used up what one step may use"),
        "gateway-unready": (ErrorClass.NETWORK, True, "the gateway was not ready"),
    }
)
_STATUSES: Final[Mapping[int, tuple[ErrorClass, str, bool]]] = MappingProxyType(
    {
        400: (ErrorClass.VALIDATION, "model-request-refused", False),
        401: (ErrorClass.AUTH, "model-unauthorized", False),
        402: (ErrorClass.AUTH, "model-billing", False),
        403: (ErrorClass.AUTH, "model-unauthorized", False),
        404: (ErrorClass.VALIDATION, "model-unknown", False),
        408: (ErrorClass.TIMEOUT, "model-timeout", True),
        413: (ErrorClass.CONTEXT_TOO_LONG, "context-too-long", False),
        429: (ErrorClass.RATE_LIMIT, "model-rate-limited", True),
        503: (ErrorClass.OVERLOADED, "model-overloaded", True),
        529: (ErrorClass.OVERLOADED, "model-overloaded", True),
    }
)
_SAYINGS: Final[Mapping[str, int]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("context_length_exceeded", "prompt is too long", "maximum context length"),
                *("context window", "exceed context limit"),
            ),
            413,
        ),
        **dict.fromkeys(
            ("insufficient_quota", "credit balance is too low", "exceeded your current quota"), 402
        ),
    }
)
"""What providers say under another status → the status that would be right."""


def is_final(answered: Answered) -> bool:
    """Whether an agent that goes on trying only loses time, or does what is the orchestrator's to do: to try
    again what was throttled or broke."""
    if answered.code is not None:
        return answered.code in FINAL_CODES
    return answered.status == _THROTTLED or answered.status >= _SERVER


def verdict(answered: Answered, *, fence: int) -> Verdict:
    """`fence`: of the claim, which ends with its question, so that no other of the step has the same name."""
    after = answered.retry_after
    if answered.code == "budget-exhausted":
        text = "The task's budget for models is used up. Raise it, or stop the task?"
        return NeedsInput(Ask(f"budget-{fence}", text, kind=WaitingOn.BUDGET))
    if answered.code == "circuit-open":
        return Waits(WaitingOn.CIRCUIT_BREAKER, {"why": "the provider failed again and again"}, after)
    if answered.code in NOT_SENT:
        why = "the gateway holds calls back for a provider that asked for a pause"
        return Waits(WaitingOn.RATE_LIMIT, {"why": why}, max(after or SOONEST, SOONEST))
    if answered.code is not None and answered.code in _CODES:
        error, retryable, text = _CODES[answered.code]
        return Broke(answered.code, _with_words(text, answered), error, retryable, after)
    fallback = (ErrorClass.OVERLOADED, "model-server-error", True)
    if answered.status < 500:  # noqa: PLR2004 - HTTP: the fault is the request's
        fallback = (ErrorClass.VALIDATION, "model-request-refused", False)
    error, code, retryable = _STATUSES.get(_meant(answered), fallback)
    if error is ErrorClass.RATE_LIMIT and after is not None and after > PATIENCE:
        return Waits(WaitingOn.RATE_LIMIT, {"why": "the model's provider limits requests"}, after)
    text = f"the model's provider answered with status {answered.status}"
    return Broke(code, _with_words(text, answered), error, retryable, after)


def _meant(answered: Answered) -> int:
    if answered.status in {400, 429}:
        for saying, status in _SAYINGS.items():
            if saying in answered.words:
                return status
    return answered.status


def _with_words(text: str, answered: Answered) -> str:
    """The gateway's own words name its code twice, which is told besides."""
    code = answered.code
    words = answered.words.removeprefix(f"{code}: ").removesuffix(f" [{code}]").rstrip(".")
    return f"{text}: {words}." if words else f"{text}."
