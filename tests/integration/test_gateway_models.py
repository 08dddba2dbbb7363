"""The real SDKs through a gateway to the local model server, by all three APIs, streamed and whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from orchestrator.core.assignment import ModelAccess
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke
from orchestrator.tasks.circuits import laid_at_its_cause
from tests.integration.gateway_server import MODEL, gateway_to
from tests.integration.ledger import Ledger, step
from tests.integration.stack import until
from tests.model_server import model_server

SCRIPT = {"conversations": [{"turns": [{"text": "I read it all."}]}]}
HELLO: list[Any] = [{"role": "user", "content": "Hello."}]


def messages(access: ModelAccess, stream: bool) -> str:
    with anthropic.Anthropic(api_key=access.token, base_url=access.base_url, max_retries=0) as client:
        if not stream:
            whole = client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
            return "".join(block.text for block in whole.content if block.type == "text")
        with client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as events:
            return "".join(events.text_stream)


def chat(access: ModelAccess, stream: bool) -> str:
    with openai.OpenAI(api_key=access.token, base_url=f"{access.base_url}/v1", max_retries=0) as client:
        if not stream:
            whole = client.chat.completions.create(model=MODEL, messages=HELLO)
            return whole.choices[0].message.content or ""
        chunks = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def responses(access: ModelAccess, stream: bool) -> str:
    with openai.OpenAI(api_key=access.token, base_url=f"{access.base_url}/v1", max_retries=0) as client:
        if not stream:
            return client.responses.create(model=MODEL, input="Hello.").output_text
        with client.responses.stream(model=MODEL, input="Hello.") as events:
            return events.get_final_response().output_text


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("ask", [messages, chat, responses])
def test_what_the_model_says_arrives_and_what_it_used_is_written_down(
    ledger: Ledger, tmp_path: Path, ask: Callable[[ModelAccess, bool], str], stream: bool
) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    with model_server(SCRIPT) as model, gateway_to(ledger, model.url, tmp_path) as gateway:
        assert ask(gateway.access(ledger, claimed), stream) == "I read it all."
        assert len(model.sends()) == 1
    (call,) = ledger.rows("SELECT * FROM model_calls")
    assert (call["outcome"], call["estimated"], call["streamed"]) == ("done", False, stream)
    (used,) = ledger.rows("SELECT * FROM usage")
    assert used["input_tokens"] > 0
    assert used["output_tokens"] > 0


def test_an_agent_is_to_blame_for_what_it_asked_and_for_what_came_of_a_good_reply(
    ledger: Ledger, tmp_path: Path
) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    own = Broke("agent-failed", "It could not go on.", ErrorClass.AGENT)
    with model_server(SCRIPT) as model, gateway_to(ledger, model.url, tmp_path) as gateway:
        where = (gateway.wiring, claimed.step, claimed.fence)
        assert laid_at_its_cause(*where, own) == own, "it never called a model"
        model.fault("bad-request")
        with pytest.raises(anthropic.BadRequestError):
            messages(gateway.access(ledger, claimed), True)
        assert laid_at_its_cause(*where, own) == own
        model.fault("overloaded")
        with pytest.raises(anthropic.APIStatusError):
            messages(gateway.access(ledger, claimed), True)
        messages(gateway.access(ledger, claimed), True)
        assert laid_at_its_cause(*where, own) == own, "the provider was back"


@pytest.mark.parametrize("ask", [messages, chat, responses])
@pytest.mark.parametrize(
    "fault", ["server-error", "overloaded", "close", "cut", "reset", "truncated", "error-event"]
)
def test_a_fault_is_passed_on_once_and_counts_against_the_provider(
    ledger: Ledger, tmp_path: Path, ask: Callable[[ModelAccess, bool], str], fault: str
) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    with model_server(SCRIPT) as model, gateway_to(ledger, model.url, tmp_path) as gateway:
        model.fault(fault)
        with contextlib.suppress(Exception):  # each SDK has errors of its own, or takes half for the whole
            ask(gateway.access(ledger, claimed), True)
        assert len(model.sends()) == 1
        (call,) = until(lambda: ledger.rows("SELECT * FROM model_calls WHERE ended_at IS NOT NULL"))
    assert call["outcome"] == "failed"
    (breaker,) = ledger.rows("SELECT name, failures FROM breakers")
    assert breaker == {"name": call["provider"], "failures": 1}
    retold = Broke("agent-failed", "The connection was lost.", ErrorClass.AGENT)
    laid = laid_at_its_cause(gateway.wiring, claimed.step, claimed.fence, retold)
    assert laid == replace(retold, error=ErrorClass.OVERLOADED), "no agent is to blame for it"
