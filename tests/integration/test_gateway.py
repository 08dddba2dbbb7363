from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import anthropic
import pytest

from tests.integration.gateway_server import MODEL, REAL_KEY, gateway_to
from tests.integration.ledger import Ledger, step
from tests.messages_server import Answer, closing, opening, serving, text_block

STREAM = [opening(cache_read_input_tokens=7), *text_block(0, "I ", "read."), *closing("end_turn")]


def ask(client: anthropic.Anthropic, model: str = MODEL) -> anthropic.types.Message:
    with client.messages.stream(
        model=model, max_tokens=1000, messages=[{"role": "user", "content": "Hello."}]
    ) as stream:
        return stream.get_final_message()


def test_a_call_is_passed_through_with_the_real_key_and_settled(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        client = anthropic.Anthropic(api_key=access.token, base_url=access.base_url, max_retries=0)
        reply = ask(client)
    assert [block.text for block in reply.content if block.type == "text"] == ["I read."]
    ((headers, _),) = provider.requests
    assert headers["x-api-key"] == REAL_KEY
    assert access.token not in str(headers)
    (used,) = ledger.rows("SELECT * FROM usage")
    assert (used["input_tokens"], used["output_tokens"], used["cache_read_tokens"]) == (10, 25, 7)
    assert (used["provider"], used["agent_type"], used["turn"]) == ("anthropic", "engine", None)
    assert used["cost_usd"] == Decimal("0.0004071")
    (budget,) = ledger.rows("SELECT * FROM budgets")
    assert (budget["spent_usd"], budget["spent_tokens"], budget["calls"]) == (used["cost_usd"], 42, 1)
    (call,) = ledger.rows("SELECT * FROM model_calls")
    assert (call["outcome"], call["http_status"], call["estimated"]) == ("done", 200, False)


def test_a_token_is_no_good_once_its_claim_is_lost(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        client = anthropic.Anthropic(api_key=access.token, base_url=access.base_url, max_retries=0)
        ask(client)
        ledger.expire(claimed.step)
        with pytest.raises(anthropic.AuthenticationError) as refused:
            ask(client)
        assert refused.value.response.headers["x-orchestrator-code"] == "run-token-invalid"
    assert len(provider.requests) == 1
