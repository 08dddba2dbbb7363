"""What of a caller's request, besides its body, a provider gets to see."""

from __future__ import annotations

from orchestrator.gateway.dialects import MESSAGES, RESPONSES, Family
from orchestrator.gateway.keys import FixedKey
from orchestrator.gateway.providers import Provider

KEY = "the-real-key"
ANTHROPIC = Provider(Family.ANTHROPIC, "https://a.example", FixedKey(KEY), frozenset({b"x-codex-task"}))
OPENAI = Provider(Family.OPENAI, "https://o.example", FixedKey(KEY))


def sent(provider: Provider, **given: str) -> dict[str, str]:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    return {name.decode(): value.decode() for name, value in provider.headers(raw, {}, KEY)}


def test_what_agents_and_sdks_tell_providers_passes() -> None:
    told = {
        "anthropic_beta": "a",
        "anthropic_version": "2023-06-01",
        "user_agent": "x",
        "x_stainless_retry_count": "0",
        "x_codex_window_id": "1",
        "session_id": "s",
        "accept": "text/event-stream",
    }
    found = sent(ANTHROPIC, **told)
    assert {name.replace("_", "-"): value for name, value in told.items()}.items() <= found.items()


def test_nothing_else_passes() -> None:
    """Neither another account nor another reading of the body, nor a way back to who asks."""
    stranger = {
        "authorization": "Bearer ort_x",
        "x_api_key": "ort_x",
        "openai_organization": "org",
        "openai_project": "proj",
        "cookie": "c",
        "content_encoding": "gzip",
        "content_type": "text/plain",
        "accept_encoding": "gzip",
        "x_forwarded_for": "1.2.3.4",
        "x_task_id": "t",
        "x_codex_task": "named by the installation",
        "x_http_method_override": "DELETE",
        "anything_new": "x",
    }
    common = {"accept-encoding": "identity", "content-type": "application/json"}
    assert sent(ANTHROPIC, **stranger) == {**common, "x-api-key": KEY}
    assert sent(OPENAI, **stranger) == {
        **common,
        "authorization": f"Bearer {KEY}",
        "x-codex-task": "named by the installation",
    }


def test_an_idempotency_key_is_one_of_its_run_alone() -> None:
    """Providers answer a key that they know with what they said before, whoever of the account asks."""

    def shown(run: str, key: bytes) -> bytes:
        return dict(OPENAI.headers([(b"idempotency-key", key)], {}, KEY, run))[b"idempotency-key"]

    mine = shown("my-run", b"step-1-3-1-turn-1-1")
    assert mine == shown("my-run", b"step-1-3-1-turn-1-1"), "a send that is tried again is the same"
    others = {shown("my-run", b"step-1-3-2-turn-3-1"), shown("another", b"step-1-3-1-turn-1-1")}
    assert len({mine, *others, b"step-1-3-1-turn-1-1"}) == 4


def test_of_a_query_what_names_a_version_passes() -> None:
    assert ANTHROPIC.url(MESSAGES, b"beta=true&key=x") == "https://a.example/v1/messages?beta=true"
    assert OPENAI.url(RESPONSES, b"key=x#y") == "https://o.example/v1/responses"
    assert OPENAI.url(RESPONSES, b"") == "https://o.example/v1/responses"
