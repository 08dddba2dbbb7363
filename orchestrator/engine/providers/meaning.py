"""What an error of any provider means, in our words: one class, one code, whether another send may help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from orchestrator.core.recovery import ErrorClass
from orchestrator.core.redaction import beginning
from orchestrator.engine.ports import ModelError

CODE_HEADER: Final = "x-orchestrator-code"
"""By this header our own gateway says that it was itself that refused, and why."""
_SHOWN: Final = 500


@dataclass(frozen=True, slots=True)
class Meaning:
    error: ErrorClass
    code: str
    retryable: bool
    says: str = "the model's server answered with an error"


UNAUTHORIZED: Final = Meaning(ErrorClass.AUTH, "model-unauthorized", retryable=False)
BILLING: Final = Meaning(ErrorClass.AUTH, "model-billing", retryable=False)
UNKNOWN: Final = Meaning(ErrorClass.VALIDATION, "model-unknown", retryable=False)
RATE_LIMITED: Final = Meaning(ErrorClass.RATE_LIMIT, "model-rate-limited", retryable=True)
OVERLOADED: Final = Meaning(ErrorClass.OVERLOADED, "model-overloaded", retryable=True)
SERVER: Final = Meaning(ErrorClass.OVERLOADED, "model-server-error", retryable=True)
CONFLICT: Final = Meaning(ErrorClass.NETWORK, "model-conflict", retryable=True)
INVALID: Final = Meaning(ErrorClass.VALIDATION, "model-request-refused", retryable=False)
SLOW: Final = Meaning(
    ErrorClass.TIMEOUT,
    "model-timeout",
    retryable=True,
    says="the model's server did not answer in time",
)
LATE: Final = Meaning(
    ErrorClass.TIMEOUT, "model-deadline", retryable=True, says="the model's reply was not complete in time"
)
STALLED: Final = Meaning(
    ErrorClass.TIMEOUT, "model-stalled", retryable=True, says="the model's reply stood still for too long"
)
TOO_LONG: Final = Meaning(
    ErrorClass.CONTEXT_TOO_LONG,
    "context-too-long",
    retryable=False,
    says="the conversation no longer fits into the model's context",
)
REFUSED: Final = Meaning(
    ErrorClass.CONTENT_REFUSED, "model-refused", retryable=False, says="the model refused to answer"
)
DROPPED: Final = Meaning(
    ErrorClass.NETWORK,
    "model-stream-dropped",
    retryable=True,
    says="the connection to the model was lost in the middle of its reply",
)
TRUNCATED: Final = Meaning(
    ErrorClass.NETWORK,
    "model-stream-truncated",
    retryable=True,
    says="the model's stream ended before its reply did",
)
UNREACHABLE: Final = Meaning(
    ErrorClass.NETWORK, "model-unreachable", retryable=True, says="the model's server can't be reached"
)
GARBLED: Final = Meaning(
    ErrorClass.NETWORK,
    "model-garbled",
    retryable=True,
    says="the model's server answered with something that can't be read",
)

BY_STATUS: Final[Mapping[int, Meaning]] = MappingProxyType(
    {
        401: UNAUTHORIZED,
        402: BILLING,
        403: UNAUTHORIZED,
        404: UNKNOWN,
        408: SLOW,
        409: CONFLICT,
        413: TOO_LONG,
        429: RATE_LIMITED,
        503: OVERLOADED,
        504: SLOW,
        529: OVERLOADED,
    }
)
OF_GATEWAY: Final[Mapping[str, Meaning]] = MappingProxyType(
    {
        meaning.code: meaning
        for meaning in (
            Meaning(ErrorClass.LIMIT, "budget-exhausted", retryable=False),
            Meaning(ErrorClass.LIMIT, "run-limit-reached", retryable=False),
            Meaning(ErrorClass.OVERLOADED, "circuit-open", retryable=True),
            # The lease had lapsed for a moment (the machine slept), or is another's: then nothing is written.
            Meaning(ErrorClass.NETWORK, "run-token-invalid", retryable=True),
            Meaning(ErrorClass.VALIDATION, "model-not-allowed", retryable=False),
            Meaning(ErrorClass.VALIDATION, "price-unknown", retryable=False),
            Meaning(ErrorClass.AUTH, "provider-missing", retryable=False),
            Meaning(ErrorClass.NETWORK, "gateway-unready", retryable=True),
            Meaning(ErrorClass.RATE_LIMIT, "too-many-calls", retryable=True),
            Meaning(ErrorClass.RATE_LIMIT, "provider-throttled", retryable=True),
            Meaning(ErrorClass.NETWORK, "provider-unreachable", retryable=True),
            Meaning(ErrorClass.TIMEOUT, "provider-timeout", retryable=True),
        )
    }
)


_SAYINGS: Final[Mapping[str, Meaning]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("prompt is too long", "exceed context limit", "maximum context length", "context window"),
                "context_length_exceeded",
            ),
            TOO_LONG,
        ),
        **dict.fromkeys(
            ("credit balance is too low", "exceeded your current quota", "insufficient_quota"), BILLING
        ),
    }
)
"""What providers say under codes and statuses that mean something else, too."""


def of_words(said: str) -> Meaning | None:
    """What an error means by its own words alone."""
    lower = said.lower()
    return next((meaning for saying, meaning in _SAYINGS.items() if saying in lower), None)


def of_status(status: int, headers: Mapping[str, str]) -> Meaning:
    """Where the error's body says nothing better."""
    if (refused := OF_GATEWAY.get(headers.get(CODE_HEADER, ""))) is not None:
        return refused
    if status in BY_STATUS:
        return BY_STATUS[status]
    return SERVER if status >= 500 or status == 200 else INVALID  # noqa: PLR2004 - 200: in mid-stream


def failure(meaning: Meaning, said: str | None = None) -> ModelError:
    """`said`: the server's own words, for people."""
    words = beginning(said or meaning.says, _SHOWN).removesuffix(f" [{meaning.code}]")
    return ModelError(meaning.error, meaning.code, words, retryable=meaning.retryable)
