"""What the REST API and the terminal show of calls, costs and breakers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands import retention
from orchestrator.core.states import WaitingOn
from orchestrator.db import transitions
from tests.integration.api_server import API_KEY, Door, served, wired
from tests.integration.gateway_server import MODEL, gateway_to
from tests.integration.ledger import TENANT, Ledger, step
from tests.integration.stack import until
from tests.integration.test_gateway_faults import OVERLOADED, STREAM, post, subtask
from tests.messages_server import Answer, serving


@pytest.fixture
def door(ledger: Ledger, tmp_path: Path) -> Iterator[Door]:
    with served(wired(ledger.url, tmp_path)) as found:
        yield found


def orchestrator(door: Door, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator", *words],
        env={**os.environ, "ORCHESTRATOR_API_URL": door.url, "ORCHESTRATOR_API_KEY": API_KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_calls_costs_and_breakers_are_shown_and_evidence_goes_with_the_rest(
    ledger: Ledger, tmp_path: Path, door: Door
) -> None:
    root = ledger.take(ledger.task("root", step("a"), budget={"max_cost_usd": "2"})["a"])
    child = subtask(ledger, "child", "root")
    answers = (Answer(STREAM), Answer(STREAM), OVERLOADED)
    with (
        serving(*answers) as provider,
        gateway_to(ledger, provider.url, tmp_path, breaker_failures=1) as gateway,
    ):
        for claimed in (root, child, root):
            post(gateway.access(ledger, claimed), messages=[{"role": "user", "content": "Hello."}])
        until(
            lambda: (
                len(ledger.rows("SELECT 1 FROM model_calls WHERE num_nonnulls(evidence_key, ended_at) = 2"))
                == 3
            )
        )

    failed, done = door.get("/tasks/root/calls")["data"]
    assert (done["outcome"], done["cost"]["amount"], done["model"]) == ("done", "0.0004", MODEL)
    assert (failed["outcome"], failed["error_code"], failed["cost"]) == ("failed", "overloaded_error", None)
    said = json.loads(orchestrator(door, "task", "calls", "root", done["id"], "--json"))
    assert said["request"]["items"] == [{"role": "user", "content": "Hello."}]
    assert said["reply"]["content"] == [{"type": "text", "text": "I read."}]
    missing = door.client.get(f"/api/v1/tasks/child/calls/{done['id']}")
    assert (missing.status_code, missing.json()["code"]) == (404, "call-unknown")

    for task in ("root", "child"):
        costs = json.loads(orchestrator(door, "task", "costs", task, "--json"))
        assert (costs["root_id"], costs["cost"]["amount"]) == ("root", "0.0008")
        (line,) = costs["lines"]
        assert (line["provider"], line["agent_type"], line["calls"]) == ("anthropic", "engine", 2)

    (breaker,) = json.loads(orchestrator(door, "breakers", "list", "--json"))
    assert (breaker["name"], breaker["circuit"]["state"], breaker["reason"]) == (
        *("anthropic", "open", "overloaded_error"),
    )
    orchestrator(door, "breakers", "reset", "provider", "anthropic")
    (breaker,) = door.get("/breakers")["data"]
    assert (breaker["circuit"]["state"], breaker["circuit"]["failures"]) == ("closed", 0)
    unknown = door.client.post("/api/v1/breakers/provider/nobody/reset")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "breaker-unknown")

    ledger.succeed(root)
    ledger.run("UPDATE tasks SET entry_signature = NULL")
    archived = ledger.do(lambda connection: retention.archive(connection, TENANT, timedelta(0)))
    assert sorted(archived.evidence) == sorted(f"calls/root/{call['id']}.json" for call in (failed, done))
    assert door.client.get(f"/api/v1/tasks/root/calls/{done['id']}").status_code == 404
    assert [call["has_evidence"] for call in door.get("/tasks/root/calls")["data"]] == [False, False]


def test_health_tells_a_gateway_that_died_from_none_at_all(
    ledger: Ledger, tmp_path: Path, door: Door
) -> None:
    def gateway() -> dict[str, Any]:
        found: dict[str, Any] = door.client.get("/health").json()["components"]["gateway"]
        return found

    assert gateway() == {"status": "ok", "alive": 0, "providers": []}
    with gateway_to(ledger, "http://127.0.0.1:1", tmp_path):
        assert gateway() == {"status": "ok", "alive": 1, "providers": ["anthropic", "openai"]}
    assert gateway()["alive"] == 0, "it left in order"
    ledger.run("INSERT INTO gateways (id, url, heartbeat_at) VALUES ('g', 'u', now() - interval '1 hour')")
    assert gateway() == {"status": "degraded", "alive": 0, "providers": []}


def test_what_has_no_known_price_is_never_shown_as_free(ledger: Ledger, tmp_path: Path, door: Door) -> None:
    free, both = ledger.take(ledger.task("free")["work"]), ledger.take(ledger.task("both")["work"])
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        for claimed, model in ((free, "some-model"), (both, "some-model"), (both, MODEL)):
            assert post(gateway.access(ledger, claimed, model), model=model).status_code == 200
        until(lambda: len(ledger.rows("SELECT 1 FROM model_calls WHERE ended_at IS NOT NULL")) == 3)

    for task, said in (("free", "price unknown"), ("both", "at least $0.0")):
        usage = door.get(f"/tasks/{task}")["usage"]
        assert not usage["is_cost_complete"]
        assert usage["unpriced_tokens"] > 0
        costs = door.get(f"/tasks/{task}/costs")
        assert (costs["is_cost_complete"], door.get("/tasks")["data"][0]["is_cost_complete"]) == (
            False,
            False,
        )
        assert f"· {said}" in orchestrator(door, "task", "status", task)
        (row,) = [each for each in orchestrator(door, "task", "list").splitlines() if each.startswith(task)]
        assert said in row
    assert "price unknown" in orchestrator(door, "task", "calls", "free")
    assert "price unknown" in orchestrator(door, "task", "costs", "both")


def test_what_an_agent_spends_with_a_key_of_its_own_is_never_shown_as_nothing(
    ledger: Ledger, door: Door
) -> None:
    ours = {**step("a"), "agent": "replay"}
    plan = [ours, {**step("b"), "agent": "agentapi"}]
    done, idle, other = ledger.task("done", *plan), ledger.task("idle", *plan), ledger.task("other", ours)
    for ref in (done["a"], done["b"], idle["a"], other["a"]):
        ledger.take(ref)
    assert {task["id"]: task["is_cost_complete"] for task in door.get("/tasks")["data"]} == {
        "done": False,
        "idle": True,
        "other": True,
    }
    usage, costs = door.get("/tasks/done")["usage"], door.get("/tasks/done/costs")
    assert (usage["is_cost_complete"], usage["uncounted_agents"]) == (False, ["agentapi"])
    assert (costs["is_cost_complete"], costs["uncounted_agents"]) == (False, ["agentapi"])
    assert door.get("/tasks/idle")["usage"]["uncounted_agents"] == []
    assert "· price unknown" in orchestrator(door, "task", "status", "done")
    (row,) = [each for each in orchestrator(door, "task", "list").splitlines() if each.startswith("done")]
    assert "price unknown" in row
    (line,) = orchestrator(door, "task", "costs", "done").splitlines()
    assert line.split() == ["its", "own", "agentapi", "price", "unknown"]
    assert "· $0.0000" in orchestrator(door, "task", "status", "idle")


def test_a_step_that_waits_for_such_an_agent_has_spent_nothing(ledger: Ledger, door: Door) -> None:
    claimed = ledger.take(ledger.task("t", agent={"type": "agentapi"})["work"])
    assert not door.get("/tasks/t")["usage"]["is_cost_complete"]
    later = timedelta(minutes=1)
    ledger.do(lambda c: transitions.wait_in_queue(c, claimed.step, claimed.fence, WaitingOn.AGENT, {}, later))
    assert door.get("/tasks/t")["usage"]["is_cost_complete"]
