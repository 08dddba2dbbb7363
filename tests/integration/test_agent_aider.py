"""Aider's real program, in the sandbox, against the local model server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agents.aider import Aider
from orchestrator.core.verdict import Broke, Done, StopReason, Yielded
from tests.agent_world import AgentWorld
from tests.agents_installed import installed
from tests.engine_world import Wire
from tests.integration.repositories import installation
from tests.model_server import RunningModel, model_server
from tests.refusing_gateway import refusing_gateway

EDIT = """add() subtracts. This repairs it:

sums.py
```python
<<<<<<< SEARCH
    return a - b
=======
    return a + b
>>>>>>> REPLACE
```
"""
THEIRS = {
    ".env": """ANTHROPIC_API_KEY=theirs
ANTHROPIC_API_BASE=http://127.0.0.1:9
AIDER_ANTHROPIC_API_KEY=theirs
AIDER_MODEL=anthropic/claude-theirs
AIDER_TEST_CMD="touch started-by-env"
AIDER_AUTO_TEST=true
AIDER_DRY_RUN=true
HTTP_PROXY=http://127.0.0.1:9
""",
    ".aider.conf.yml": """model: anthropic/claude-theirs
weak-model: anthropic/claude-theirs
anthropic-api-key: theirs
api-key: [anthropic=theirs]
set-env: ["ANTHROPIC_API_BASE=http://127.0.0.1:9"]
alias: ["anthropic/claude-sonnet-4-6:anthropic/claude-theirs"]
lint-cmd: touch started-by-lint
auto-lint: true
test-cmd: touch started-by-test
auto-test: true
notifications: true
notifications-command: touch started-by-notification
auto-commits: true
dry-run: true
""",
}
CLAUDE, GPT = "claude-sonnet-4-6", "gpt-5.2-codex"


def saying(*texts: str, **turn: Any) -> dict[str, Any]:
    return {"conversations": [{"turns": [{"text": text, **turn} for text in texts], "loop": True}]}


@pytest.fixture
def model() -> Iterator[RunningModel]:
    with model_server(saying(EDIT)) as found:
        yield found


@pytest.fixture
def worlds(tmp_path: Path, model: RunningModel) -> Callable[[str], AgentWorld]:
    adapter = Aider(installed("aider"), CLAUDE)
    return lambda name: AgentWorld(installation(tmp_path / "root"), tmp_path, adapter, model.url, name)


@pytest.mark.parametrize("name", [CLAUDE, GPT])
def test_it_fixes_a_bug_with_models_of_either_provider_and_leaves_nothing_else(
    worlds: Callable[[str], AgentWorld], model: RunningModel, name: str
) -> None:
    world = worlds(name)
    verdict = world.work()
    assert isinstance(verdict, Done), (verdict, world.log())
    assert "a + b" in world.file("sums.py")
    assert verdict.summary == "add() subtracts. This repairs it:\n\nChanged: sums.py"
    assert world.left() == []
    assert len(model.sends()) == 1
    with world._workspace(world.assignment()) as workspace:
        assert not [path for path in workspace.list(".", 1) if ".aider" in path]


def test_a_repositorys_configuration_takes_it_to_no_other_provider_and_starts_nothing(
    tmp_path: Path, model: RunningModel
) -> None:
    adapter = Aider(installed("aider"), CLAUDE)
    world = AgentWorld(installation(tmp_path / "root"), tmp_path, adapter, model.url, CLAUDE, THEIRS)
    verdict = world.work()
    assert isinstance(verdict, Done), (verdict, world.log())
    assert "a + b" in world.file("sums.py")
    assert not [name for name in world.names() if name.startswith("started-")]
    assert [send.model for send in model.sends()] == [CLAUDE]
    kept = [at for at in world.home.rglob("*") if at.is_file() and b"run-token" in at.read_bytes()]
    assert kept == []


def test_what_is_said_and_not_done_is_no_success(
    worlds: Callable[[str], AgentWorld], model: RunningModel
) -> None:
    model.play(saying("I have fixed everything."))
    world = worlds(CLAUDE)
    verdict = world.work()
    assert isinstance(verdict, Broke), (verdict, world.log())
    assert verdict.code == "agent-changed-nothing"
    assert len(model.sends()) == 2  # it was told once


def test_a_provider_that_refuses_is_not_asked_again_and_again(
    worlds: Callable[[str], AgentWorld], model: RunningModel
) -> None:
    model.fault("overloaded", times=9)
    world = worlds(CLAUDE)
    verdict = world.work()
    assert isinstance(verdict, Broke), (verdict, world.log())
    assert verdict.code == "model-overloaded"
    assert len(model.sends()) <= 2
    assert world.left() == []


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("unauthorized", "model-unauthorized", "authentication_error: invalid x-api-key"),
        ("bad-request", "model-request-refused", "invalid_request_error: The request is not valid."),
        ("billing", "model-billing", "Your credit balance is too low to access the API."),
    ],
)
def test_a_provider_that_refuses_is_told_of_in_its_own_words(
    worlds: Callable[[str], AgentWorld], model: RunningModel, fault: str, code: str, words: str
) -> None:
    model.fault(fault, times=9)
    verdict = worlds(CLAUDE).work()
    assert isinstance(verdict, Broke), verdict
    assert (verdict.code, verdict.retryable) == (code, False)
    assert words in verdict.message


def test_what_the_gateway_refuses_for_good_ends_it_in_the_gateways_words(tmp_path: Path) -> None:
    adapter = Aider(installed("aider"), CLAUDE)
    with refusing_gateway("price-unknown", "nobody knows what this model costs") as gateway:
        verdict = AgentWorld(installation(tmp_path / "root"), tmp_path, adapter, gateway.url, CLAUDE).work()
        assert gateway.calls <= 2
    assert isinstance(verdict, Broke), verdict
    assert (verdict.code, verdict.retryable) == ("price-unknown", False)
    assert "nobody knows what this model costs" in verdict.message


def test_a_cancel_in_the_middle_of_a_reply_leaves_no_process(
    worlds: Callable[[str], AgentWorld], model: RunningModel
) -> None:
    model.play(saying(EDIT * 4, pace=1.0))
    world, wire = worlds(CLAUDE), Wire()

    def cancel() -> None:
        model.await_sends(1)
        wire.stop.set(StopReason.CANCEL)

    threading.Thread(target=cancel, daemon=True).start()
    began = time.monotonic()
    assert world.work(wire) == Yielded(StopReason.CANCEL)
    assert time.monotonic() - began < 60
    assert world.left() == []
