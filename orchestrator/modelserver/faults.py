"""The ways in which the server misbehaves when it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import Field

from orchestrator.modelserver.asked import Asked, Dialect
from orchestrator.modelserver.when import Strict, When


class Kind(StrEnum):
    """What happens instead of, or to, the good reply."""

    # Refused with a status and an error body.
    RATE_LIMIT = "rate-limit"
    SERVER_ERROR = "server-error"
    OVERLOADED = "overloaded"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    BILLING = "billing"
    BAD_REQUEST = "bad-request"
    MODEL_UNKNOWN = "model-unknown"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    TIMED_OUT = "timed-out"
    CONTEXT_TOO_LONG = "context-too-long"
    PREVIOUS_RESPONSE_NOT_FOUND = "previous-response-not-found"
    BAD_GATEWAY = "bad-gateway"
    # No answer at all.
    HANG = "hang"
    CLOSE = "close"
    # A good reply that goes wrong on its way.
    STALL = "stall"
    STALL_ALIVE = "stall-alive"
    CUT = "cut"
    RESET = "reset"
    TRUNCATED = "truncated"
    GARBAGE = "garbage"
    GARBAGE_BYTES = "garbage-bytes"
    ERROR_EVENT = "error-event"
    FAILED_EVENT = "failed-event"
    # A whole reply, slowly.
    DRIP = "drip"
    SLOW_START = "slow-start"
    # A whole reply that is not the scripted one.
    REFUSAL = "refusal"
    MAX_TOKENS = "max-tokens"
    CONTEXT_FULL = "context-full"


class Fault(Strict):
    """One misbehaviour. Every field but `kind` has a sensible value of its own kind."""

    kind: Kind
    retry_after: float | str | None = None
    """Seconds, or what the header shall say (a date). None: no such header."""
    status: int | None = None
    message: str | None = None
    code: str | None = None
    """The error's `type` (Messages) or `code` (OpenAI)."""
    headers: dict[str, str] = Field(default_factory=dict)
    after: int | None = Field(default=None, ge=0)
    """Frames of the stream that are sent before it goes wrong; half of them by default."""
    seconds: float | None = Field(default=None, ge=0)
    """hang, stall: how long (for ever by default), and then the reply goes on. drip: between two pieces.
    slow-start: before the first byte.
    """
    piece_bytes: int = Field(default=64, ge=1)
    """drip: the length of a piece."""


class Order(Fault):
    """A fault and its sends: of those that match `when` and `turn` the `nth` and the next, `times` in all."""

    when: When = When()
    turn: int | None = Field(default=None, ge=0)
    nth: int = Field(default=1, ge=1)
    times: int | None = Field(default=1, ge=1)
    """None: for ever."""


HARMLESS: Final = frozenset({Kind.DRIP, Kind.SLOW_START, Kind.HANG, Kind.STALL, Kind.STALL_ALIVE})
"""After these a reply that was completed is the scripted one."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code` by dialect, where it is not the one that the API gives to every error of that status."""

    status: int
    message: str
    messages_code: str | None = None
    openai_code: str | None = None
    openai_status: int | None = None
    openai_message: str | None = None


REFUSALS: Final[Mapping[Kind, Refusal]] = {
    Kind.RATE_LIMIT: Refusal(429, "This request would exceed your organization's rate limit."),
    Kind.SERVER_ERROR: Refusal(500, "Internal server error"),
    Kind.OVERLOADED: Refusal(529, "Overloaded", openai_status=503),
    Kind.UNAUTHORIZED: Refusal(401, "invalid x-api-key", openai_message="Incorrect API key provided."),
    Kind.FORBIDDEN: Refusal(403, "Your API key does not have permission to use the specified resource."),
    Kind.BILLING: Refusal(
        400,
        "Your credit balance is too low to access the API.",
        openai_code="insufficient_quota",
        openai_status=429,
    ),
    Kind.BAD_REQUEST: Refusal(400, "The request is not valid."),
    Kind.MODEL_UNKNOWN: Refusal(404, "The model does not exist or you do not have access to it."),
    Kind.CONFLICT: Refusal(409, "The request conflicts with another one."),
    Kind.TOO_LARGE: Refusal(413, "Request exceeds the maximum allowed number of bytes."),
    Kind.TIMED_OUT: Refusal(504, "The request timed out."),
    Kind.CONTEXT_TOO_LONG: Refusal(
        400,
        "prompt is too long: 200001 tokens > 200000 maximum",
        openai_code="context_length_exceeded",
        openai_message="Your input exceeds the context window of this model.",
    ),
    Kind.PREVIOUS_RESPONSE_NOT_FOUND: Refusal(
        400, "Previous response not found.", openai_code="previous_response_not_found"
    ),
    Kind.BAD_GATEWAY: Refusal(502, "<html><body><h1>502 Bad Gateway</h1></body></html>"),
}


class FaultPlan:
    """The orders that still stand, oldest first; each counts the sends that it is for."""

    def __init__(self, orders: tuple[Order, ...] = ()) -> None:
        self._standing: list[tuple[Order, int]] = [(order, 0) for order in orders]

    def add(self, order: Order) -> None:
        self._standing.append((order, 0))

    def clear(self) -> None:
        self._standing.clear()

    def standing(self) -> list[Order]:
        return [order for order, _ in self._standing]

    def take(self, asked: Asked, turn: int, headers: Mapping[str, str]) -> Fault | None:
        """The fault for this send, which asks for this turn. Orders that match count it, up to the first that
        is due, which strikes.
        """
        struck: Fault | None = None
        left: list[tuple[Order, int]] = []
        for order, seen in self._standing:
            matches = order.turn in {None, turn} and order.when.matches(asked, headers)
            if struck is not None or not matches:
                left.append((order, seen))
                continue
            struck = order if seen + 1 >= order.nth else None
            if order.times is None or seen + 1 < order.nth + order.times - 1:
                left.append((order, seen + 1))
        self._standing = left
        return struck


def status_of(fault: Fault, dialect: Dialect) -> int:
    refusal = REFUSALS.get(fault.kind, REFUSALS[Kind.OVERLOADED])
    usual = refusal.status if dialect is Dialect.MESSAGES else refusal.openai_status or refusal.status
    return fault.status or usual


def message_of(fault: Fault, dialect: Dialect) -> str:
    refusal = REFUSALS.get(fault.kind, REFUSALS[Kind.OVERLOADED])
    usual = refusal.message if dialect is Dialect.MESSAGES else refusal.openai_message or refusal.message
    return fault.message or usual


def code_of(fault: Fault, dialect: Dialect) -> str | None:
    refusal = REFUSALS.get(fault.kind, REFUSALS[Kind.OVERLOADED])
    return fault.code or (refusal.messages_code if dialect is Dialect.MESSAGES else refusal.openai_code)


def headers_of(fault: Fault) -> dict[str, str]:
    match fault.retry_after:
        case None:
            return dict(fault.headers)
        case str() as said:
            return {"retry-after": said, **fault.headers}
        case seconds:
            return {"retry-after": f"{seconds:g}", **fault.headers}
