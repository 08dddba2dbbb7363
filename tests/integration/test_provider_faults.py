"""Every misbehaviour of a provider against each API that we speak: fault → sends counted → outcome.

The server's own log counts. One call of a model is one send, whatever happens; the one exception is a past
that the server has lost. With -s the whole table is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.recovery import ErrorClass
from orchestrator.engine.ports import CallFacts, Model, ModelError, ModelRequest, Reply
from orchestrator.engine.providers.anthropic import AnthropicModel
from orchestrator.engine.providers.live import Deadlines
from orchestrator.engine.providers.openai import OpenAIModel
from orchestrator.engine.tools import TOOLS
from tests.model_server import RunningModel, model_server

SCRIPT: Final = {
    "conversations": [
        {
            "turns": [
                {
                    "text": "I look at it first, and then I say what I think of it.",
                    "calls": [{"name": "read_file", "arguments": {"path": "src/module.py"}}],
                },
                {"text": "It is good as it is."},
            ]
        }
    ]
}
REQUEST: Final = ModelRequest(
    "You are a test.",
    [tool.schema() for tool in TOOLS.values()],
    [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}],
    CallFacts("task-1", "step-1", fence=3, turn=1),
)
SECONDS: Final = Deadlines(*(timedelta(seconds=seconds) for seconds in (10, 10, 30, 20)))
APIS: Final[dict[str, Callable[[RunningModel, Deadlines], Model]]] = {
    "messages": lambda server, deadlines: AnthropicModel(
        "claude-sonnet-4-6", "sk-secret", server.url, deadlines=deadlines
    ),
    "responses": lambda server, deadlines: OpenAIModel(
        "gpt-5", "sk-secret", server.openai_url, "responses", deadlines=deadlines
    ),
    "chat": lambda server, deadlines: OpenAIModel(
        "gpt-5", "sk-secret", server.openai_url, "chat", deadlines=deadlines
    ),
}


@dataclass(frozen=True)
class Case:
    """What happens to the first send, and what is made of it; `but`: in one API's own way."""

    fault: str
    error: ErrorClass | None = None
    code: str = ""
    retryable: bool = True
    how: dict[str, Any] = field(default_factory=dict)
    retry_after: timedelta | None = None
    deadlines: Deadlines = SECONDS
    stop_reason: str = "tool_use"
    but: dict[str, dict[str, Any]] = field(default_factory=dict)

    def on(self, api: str) -> Case:
        return replace(self, **self.but.get(api, {}))


NETWORK, LATE, BUSY = ErrorClass.NETWORK, ErrorClass.TIMEOUT, ErrorClass.OVERLOADED
LIMITED, NEVER = ErrorClass.RATE_LIMIT, {"retryable": False}
SHORT_READ = replace(SECONDS, read=timedelta(seconds=1))
SHORT_STALL = replace(SECONDS, stall=timedelta(seconds=3))
SHORT_ALL = replace(SECONDS, overall=timedelta(seconds=3))
CASES: Final = {
    "429 with Retry-After": Case(
        "rate-limit",
        LIMITED,
        "model-rate-limited",
        how={"retry_after": 7},
        retry_after=timedelta(seconds=7),
    ),
    "429 without": Case("rate-limit", LIMITED, "model-rate-limited"),
    "429 in milliseconds": Case(
        "rate-limit",
        LIMITED,
        "model-rate-limited",
        how={"headers": {"retry-after-ms": "1500"}},
        retry_after=timedelta(seconds=1.5),
    ),
    "429 with a reset time": Case(
        "rate-limit",
        LIMITED,
        "model-rate-limited",
        how={
            "headers": {
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "1m30s",
                "x-ratelimit-remaining-requests": "12",
                "x-ratelimit-reset-requests": "5h",
            }
        },
        retry_after=timedelta(seconds=90),
    ),
    "quota used up": Case("billing", ErrorClass.AUTH, "model-billing", **NEVER),
    "500": Case("server-error", BUSY, "model-server-error"),
    "502 of a proxy": Case("bad-gateway", BUSY, "model-server-error"),
    "529 or 503": Case("overloaded", BUSY, "model-overloaded"),
    "504": Case("timed-out", LATE, "model-timeout"),
    "409": Case("conflict", NETWORK, "model-conflict"),
    "401": Case("unauthorized", ErrorClass.AUTH, "model-unauthorized", **NEVER),
    "403": Case("forbidden", ErrorClass.AUTH, "model-unauthorized", **NEVER),
    "404": Case("model-unknown", ErrorClass.VALIDATION, "model-unknown", **NEVER),
    "400": Case("bad-request", ErrorClass.VALIDATION, "model-request-refused", **NEVER),
    "413": Case("too-large", ErrorClass.CONTEXT_TOO_LONG, "context-too-long", **NEVER),
    "context too long": Case("context-too-long", ErrorClass.CONTEXT_TOO_LONG, "context-too-long", **NEVER),
    "hung call": Case("hang", LATE, "model-timeout", deadlines=SHORT_READ),
    "connection closed": Case("close", NETWORK, "model-unreachable"),
    "stalled in mid-stream": Case("stall", LATE, "model-timeout", deadlines=SHORT_READ),
    "stalled, kept alive by pings": Case("stall-alive", LATE, "model-stalled", deadlines=SHORT_STALL),
    "longer than the deadline": Case(
        "drip", LATE, "model-deadline", how={"piece_bytes": 8, "seconds": 0.05}, deadlines=SHORT_ALL
    ),
    "cut in mid-stream": Case("cut", NETWORK, "model-stream-dropped"),
    "truncated stream": Case("truncated", NETWORK, "model-stream-truncated"),
    "garbage frame": Case("garbage", NETWORK, "model-garbled"),
    "error in mid-stream": Case(
        "error-event",
        BUSY,
        "model-server-error",
        but={"messages": {"code": "model-overloaded"}},
    ),
    "throttled in mid-stream": Case(
        "error-event",
        LIMITED,
        "model-rate-limited",
        how={"code": "rate_limit_error"},
        but={"responses": {"how": {"code": "rate_limit_exceeded"}}},
    ),
    "failed in mid-stream": Case(
        "failed-event",
        BUSY,
        "model-server-error",
        but={"messages": {"code": "model-overloaded"}},
    ),
    "slow drip": Case("drip", how={"piece_bytes": 64, "seconds": 0.001}),
    "slow start": Case("slow-start", how={"seconds": 0.3}),
    "refusal": Case("refusal", ErrorClass.CONTENT_REFUSED, "model-refused", **NEVER),
    "output limit": Case("max-tokens", stop_reason="max_tokens"),
}


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, int, str]]]:
    rows: list[tuple[str, str, int, str]] = []
    yield rows
    print("\n")
    for fault, api, sends, outcome in rows:
        print(f"{fault:<30} {api:<10} {sends} {'send ' if sends == 1 else 'sends'}  {outcome}")


def ask(model: Model, request: ModelRequest = REQUEST) -> Reply | ModelError:
    try:
        return model.reply(request, lambda _: None, Stop())
    except ModelError as error:
        return error


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_one_send_and_one_outcome(
    name: str, api: str, table: list[tuple[str, str, int, str]]
) -> None:
    case = CASES[name].on(api)
    with model_server(SCRIPT) as server:
        server.fault(case.fault, **case.how)
        made = APIS[api](server, case.deadlines)
        outcome = ask(made)
        sends = len(server.sends())
        table.append((name, api, sends, shown(outcome)))
        assert sends == 1
        if case.error is None:
            assert isinstance(outcome, Reply), outcome
            assert outcome.stop_reason == case.stop_reason
        else:
            assert isinstance(outcome, ModelError), outcome
            assert (outcome.error, outcome.code, outcome.retryable) == (
                case.error,
                case.code,
                case.retryable,
            )
            assert outcome.retry_after == case.retry_after
            assert "sk-secret" not in outcome.message
            again = ask(APIS[api](server, SECONDS))
            assert isinstance(again, Reply), "the orchestrator's next attempt is a send of its own"
            assert len(server.sends()) == 2
        assert server.finished_twice() == []
        assert {send.headers["x-stainless-retry-count"] for send in server.sends()} == {"0"}


def shown(outcome: Reply | ModelError) -> str:
    if isinstance(outcome, Reply):
        return f"reply ({outcome.stop_reason})"
    wait = "" if outcome.retry_after is None else f", after {outcome.retry_after.total_seconds():g} s"
    return f"{outcome.error} {outcome.code}{wait}{'' if outcome.retryable else ', for good'}"
