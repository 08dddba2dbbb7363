"""A token that is refused is renewed once, for all who wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from orchestrator.core.recovery import ErrorClass
from orchestrator.engine.ports import (
    Model,
    ModelError,
)
from orchestrator.engine.providers.anthropic import AnthropicModel
from orchestrator.engine.providers.credential import Credential, Renewable
from orchestrator.engine.providers.openai import OpenAIModel
from tests.integration.provider_turns import reply_of
from tests.integration.test_provider_faults import SCRIPT, SECONDS
from tests.model_server import RunningModel, model_server

WITH_KEYS: dict[str, Callable[[RunningModel, Credential], Model]] = {
    "messages": lambda server, key: AnthropicModel("claude-x", key, server.url, deadlines=SECONDS),
    "responses": lambda server, key: OpenAIModel("gpt-x", key, server.openai_url, deadlines=SECONDS),
    "chat": lambda server, key: OpenAIModel("gpt-x", key, server.openai_url, "chat", deadlines=SECONDS),
}


class Tokens:
    """Gives the next token, slowly; counts how often it was asked and how often at once."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.fetched = 0
        self.at_once = 0
        self._under_way = 0
        self._lock = threading.Lock()

    def fetch(self) -> str:
        with self._lock:
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
        time.sleep(0.1)  # a token's server takes its time: who comes meanwhile must wait for it
        with self._lock:
            self._under_way -= 1
            self.fetched += 1
        return f"token-{next(self._numbers)}"


@pytest.mark.parametrize("api", WITH_KEYS)
def test_a_refused_token_is_renewed_and_one_send_succeeds(api: str) -> None:
    tokens = Tokens()
    with model_server(SCRIPT) as server:
        server.fault("unauthorized")
        assert reply_of(WITH_KEYS[api](server, Renewable(tokens.fetch))).stop_reason == "tool_use"
        sends = server.sends()
    assert [send.status for send in sends] == [401, 200]
    assert len({send.key for send in sends}) == 2, "the second with another token"
    assert tokens.fetched == 2


@pytest.mark.parametrize("api", WITH_KEYS)
def test_a_token_refused_twice_is_given_up(api: str) -> None:
    with model_server(SCRIPT) as server:
        server.fault("unauthorized", times=None)
        with pytest.raises(ModelError) as raised:
            reply_of(WITH_KEYS[api](server, Renewable(Tokens().fetch)))
        assert len(server.sends()) == 2
    assert (raised.value.error, raised.value.retryable) == (ErrorClass.AUTH, False)


def test_many_senders_wait_for_one_refresh_and_each_succeeds_once() -> None:
    tokens = Tokens()
    with model_server(SCRIPT) as server, ThreadPoolExecutor(4) as pool:
        key = Renewable(tokens.fetch)
        key.current()
        server.fault("unauthorized", times=None, when={"headers": {"authorization": "Bearer token-1"}})
        models = [WITH_KEYS["messages"](server, key) for _ in range(4)]
        replies = list(pool.map(reply_of, models))
        statuses = sorted(send.status or 0 for send in server.sends())
    assert [reply.stop_reason for reply in replies] == ["tool_use"] * 4
    assert tokens.at_once == 1
    assert statuses.count(200) == 4
    assert 1 <= statuses.count(401) <= 4


def test_the_refused_token_of_a_latecomer_is_not_renewed_again() -> None:
    tokens = Tokens()
    key = Renewable(tokens.fetch)
    old = key.current()
    assert key.renewed(old) == "token-2"
    assert key.renewed(old) == "token-2"
    assert tokens.fetched == 2
