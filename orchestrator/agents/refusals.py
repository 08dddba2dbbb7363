"""What it means for a step when the gateway, or the provider behind it, refused an agent's last request."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Ask, Broke, NeedsInput, Verdict, Waits
from orchestrator.engine.limits import NOT_SENT, PARKED_AFTER, SOONEST
from orchestrator.engine.providers import meaning
from orchestrator.engine.providers.meaning import CODE_HEADER, Meaning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.agents.door import Answered

_THROTTLED: Final = 429
_SERVER: Final = 500
FINAL_CODES: Final = frozenset(("budget-exhausted", "run-limit-reached", "circuit-open", "run-token-invalid"))
"""Refusals that every request would meet: an agent that goes on trying only loses time."""
OF_ONE_MODEL: Final = frozenset(("model-not-allowed", "price-unknown", "provider-missing"))
"""Refusals that an agent may do without: some ask a model of their own choice for titles and summaries."""

_SAID: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run-token-invalid": "the gateway no longer knew the run's token",
        "model-not-allowed": "the agent asked for a model that it may not use",
        "price-unknown": (
            "the task has a budget in dollars, and the model's price is not known: enter it "
            """(ORCHESTRATOR_PRICES='{"MODEL": {"input": "0.2", "output": "0.6"}}'), or bound the """
            "task by tokens or turns"
        ),
        "provider-missing": "the gateway has no key for the model's provider",
        "run-limit-reached": "the agent used up what one step may use",
        "gateway-unready": "the gateway was not ready",
    }
)
"""By the gateway's codes, for people."""
_BY_WORDS: Final = frozenset((400, 429))
"""Statuses under which a provider may mean something else, which it says."""


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
    meant = _meant(answered)
    if meant.error is ErrorClass.RATE_LIMIT and after is not None and after > PARKED_AFTER:
        return Waits(WaitingOn.RATE_LIMIT, {"why": "the model's provider limits requests"}, after)
    plain = f"the model's provider answered with status {answered.status}"
    text = _with_words(_SAID.get(answered.code or "", plain), answered)
    return Broke(meant.code, text, meant.error, meant.retryable, after)


def _meant(answered: Answered) -> Meaning:
    """As the engine takes it, too."""
    said = meaning.of_words(answered.words) if answered.status in _BY_WORDS else None
    return said or meaning.of_status(answered.status, {CODE_HEADER: answered.code or ""})


def _with_words(text: str, answered: Answered) -> str:
    """The gateway's own words name its code twice, which is told besides."""
    code = answered.code
    words = answered.words.removeprefix(f"{code}: ").removesuffix(f" [{code}]").rstrip(".")
    return f"{text}: {words}." if words else f"{text}."
