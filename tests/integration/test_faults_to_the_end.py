"""Every misbehaviour of a model's server, from a worker through the gateway to the end of its task: who sends
again is the orchestrator alone, a finished turn is never sent twice, and none is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateway_server import serving_gateway, wired
from tests.integration.repositories import repository
from tests.integration.stack import Stack, worker
from tests.model_server import RunningModel, model_server

pytestmark = pytest.mark.timeout(300)

MENDED: dict[str, dict[str, Any]] = {
    "rate-limit": {"retry_after": 1},
    "server-error": {},
    "overloaded": {},
    "bad-gateway": {},
    "timed-out": {},
    "hang": {},
    "close": {},
    "stall": {},
    "stall-alive": {},
    "cut": {},
    "reset": {},
    "truncated": {},
    "garbage": {},
    "error-event": {},
}
"""Another attempt goes on where this one broke off."""
FATAL = {
    "unauthorized": "model-unauthorized",
    "billing": "model-billing",
    "bad-request": "model-request-refused",
    "context-too-long": "context-too-long",
    "refusal": "model-refused",
}
"""Of no use to send again; what is too long is sent once more, shortened, and is too long here even then."""
SLOW: dict[str, dict[str, Any]] = {"drip": {"piece_bytes": 400}, "slow-start": {}}
MODELS = {"messages": "claude-sonnet-4-6", "responses": "gpt-5.2"}
EVERY = (*MENDED, *FATAL, *SLOW)


def _script() -> dict[str, Any]:
    """Each task has a conversation of its own, whose second turn meets the fault at its first send."""
    return {
        "conversations": [
            {
                "name": fault,
                "when": {"contains": f"Meet {fault}."},
                "turns": [
                    {"calls": [{"name": "write_file", "arguments": {"path": "one.txt", "content": "one\n"}}]},
                    {
                        "text": "And the second one. " * 10,
                        "calls": [
                            {"name": "write_file", "arguments": {"path": "two.txt", "content": "two\n"}}
                        ],
                        "faults": [{"kind": fault, **{**MENDED, **SLOW}.get(fault, {})}],
                    },
                    {"calls": [{"name": "attempt_completion", "arguments": {"summary": "Both."}}]},
                ],
            }
            for fault in EVERY
        ]
    }


@contextmanager
def _installation(stack: Stack, model: RunningModel) -> Iterator[Stack]:
    """A silence of six seconds is a hang; no provider is left alone, however often it fails."""
    wiring = wired(stack.database_url, model.url, stack.folder, breaker_failures=1000)
    with serving_gateway(wiring) as gateway:
        more = {
            "ORCHESTRATOR_GATEWAY_URL": gateway.url,
            "ORCHESTRATOR_MODEL_SILENCE": "PT6S",
            "ORCHESTRATOR_MODEL_STALL": "PT6S",
            "ORCHESTRATOR_BREAKER_FAILURES": "1000",
            "ORCHESTRATOR_LEASE": "PT20S",  # none is lost on a busy machine, which would count as an attempt
        }
        yield replace(stack, more={**stack.more, **more})


def _until_ended(known: Stack, task: str) -> None:
    """Swept meanwhile: the back-off of a rate limit is ten seconds."""
    deadline = time.monotonic() + 120
    while not known.ledger.row(task)["finished_at"]:
        assert time.monotonic() < deadline, known.ledger.row(task)
        known.sweep()
        time.sleep(0.05)


@pytest.mark.parametrize("api", MODELS)
def test_each_fault_ends_as_it_should_with_no_finished_turn_sent_twice(
    stack: Stack, tmp_path: Path, api: str
) -> None:
    source = repository(tmp_path / "source", {"README.md": "A project.\n"})
    with model_server(_script()) as model, _installation(stack, model) as known:
        with worker(known, app="orchestrator.tasks", slots=6):
            for fault in EVERY:
                request = {
                    "description": f"Meet {fault}.",
                    "agent": {"type": "engine"},
                    "model": MODELS[api],
                    "repository": {"path": str(source)},
                }
                known.call(request, task_id=fault)
            for fault in EVERY:
                _until_ended(known, fault)
        sends = model.await_end()
        assert model.finished_twice() == []
    asked = Counter((send.conversation, send.turn) for send in sends)
    print(f"\n{'fault':18} {'sends by turn':16} outcome")
    for fault in EVERY:
        row = known.ledger.row(fault)
        counts = [asked[fault, turn] for turn in range(3)]
        outcome = row["outcome"].get("reason", row["status"])
        print(f"{fault:18} {counts!s:16} {outcome}")
        if fault in FATAL:
            sent = 2 if fault == "context-too-long" else 1
            assert (counts, outcome) == ([1, sent, 0], FATAL[fault])
        else:
            assert (counts, outcome) == ([1, 1 if fault in SLOW else 2, 1], "completed")
    claims = known.ledger.rows("SELECT task_id, attempt FROM steps")
    assert {row["task_id"]: row["attempt"] for row in claims} == {
        fault: 2 if fault in MENDED else 1 for fault in EVERY
    }
    known.close()
