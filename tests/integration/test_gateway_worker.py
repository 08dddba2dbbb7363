"""Real workers whose engine calls its model through a real gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.integration.gateway_server import MODEL, REAL_KEY, RunningGateway, serving_gateway, wired
from tests.integration.harness import SECRET
from tests.integration.orders import plan
from tests.integration.repositories import repository
from tests.integration.stack import Stack, until, worker
from tests.integration.test_secrets import files, in_redis, kept
from tests.messages_server import Answer, MessagesServer, call_block, closing, opening, serving

WRITE = Answer(
    [
        opening(),
        *call_block(
            0,
            "c1",
            "write_file",
            json.dumps({"path": "key.txt", "content": f"{SECRET[:20]}"})[:-2],
            f'{SECRET[20:]}"}}',
        ),
        *closing(),
    ]
)
FINISH = Answer(
    [
        opening(),
        *call_block(0, "c2", "attempt_completion", json.dumps({"summary": "Wrote it."})),
        *closing(),
    ]
)


@contextmanager
def through_gateway(stack: Stack, *answers: Answer) -> Iterator[tuple[Stack, MessagesServer, RunningGateway]]:
    """The same installation, whose workers know a gateway and no key."""
    with serving(*answers) as provider:
        wiring = wired(stack.database_url, provider.url, stack.folder)
        with serving_gateway(wiring) as gateway:
            yield (
                replace(stack, more={**stack.more, "ORCHESTRATOR_GATEWAY_URL": gateway.url}),
                provider,
                gateway,
            )


def test_the_engine_works_through_the_gateway_and_no_secret_stays_anywhere(
    stack: Stack, tmp_path: Path
) -> None:
    source = repository(tmp_path / "source", {"README.md": "A project.\n"})
    request = {
        "description": "Write it",
        "agent": {"type": "engine"},
        "model": MODEL,
        "repository": {"path": str(source)},
        "budget": {"max_cost_usd": "1"},
    }
    with through_gateway(stack, WRITE, FINISH) as (known, provider, gateway):
        with worker(known, app="orchestrator.tasks") as process:
            known.call(request, task_id="t")
            assert known.ends("t") == "completed", process.text()
        wiring = gateway.wiring
    tokens = [headers["x-api-key"] for headers, _ in provider.requests]
    assert tokens == [REAL_KEY] * 2
    used = known.ledger.rows("SELECT * FROM usage ORDER BY id")
    assert [(row["recorded"], row["call_id"] is not None) for row in used] == [(False, True)] * 2
    (budget,) = known.ledger.rows("SELECT * FROM budgets")
    assert (budget["calls"], budget["spent_usd"]) == (2, sum(row["cost_usd"] for row in used))

    calls = known.ledger.rows("SELECT * FROM model_calls ORDER BY started_at")
    first, second = (json.loads(wiring.artifacts.get(call["evidence_key"])) for call in calls)
    assert first["request"]["items_before"] == 0
    assert first["request"]["system"]
    assert first["request"]["tools"]
    assert second["request"]["items_before"] == 1
    assert "system" not in second["request"]
    assert second["request"]["system_sha256"] == first["request"]["system_sha256"]
    assert [item["role"] for item in second["request"]["items"]] == ["assistant", "user"]
    (written,) = first["reply"]["content"]
    assert json.loads(written["input"]) == {"path": "key.txt", "content": "[redacted]"}

    everything = {**kept(known), **files(known.folder / "artifacts"), "redis": in_redis(known)}
    everything["log"] = process.text()
    for secret in (REAL_KEY, SECRET):
        assert [name for name, text in everything.items() if secret in text] == []
    assert [name for name, text in everything.items() if "ort_" in text] == [], "no token is kept either"
    known.close()


def delegating(call: str, model: str) -> Answer:
    wanted = json.dumps({"objective": "Write it.", "model": model})
    return Answer([opening(), *call_block(0, call, "start_subtask", wanted), *closing()])


def test_a_subtask_may_use_what_its_parent_s_run_may_and_nothing_else(stack: Stack) -> None:
    dearer = "claude-opus-4-8"
    turns = (delegating("d1", dearer), delegating("d2", MODEL), WRITE, FINISH, FINISH)
    with through_gateway(stack, *turns) as (known, provider, _), worker(known, app="orchestrator.tasks"):
        known.call({"description": "Do it", "agent": {"type": "engine"}, "model": MODEL}, task_id="t")
        assert known.ends("t") == "completed"
    assert [body["model"] for _, body in provider.requests] == [MODEL] * 5
    (answer,) = provider.requests[1][1]["messages"][-1]["content"]
    assert answer["is_error"]
    assert f"a subtask can't have the model '{dearer}'; there are {MODEL}" in str(answer["content"])
    (child,) = known.ledger.rows("SELECT id, status, model FROM tasks WHERE parent_id = 't'")
    assert (child["status"], child["model"]) == ("completed", MODEL)
    tokens = known.ledger.rows("SELECT task_id, models FROM run_tokens")
    assert {row["task_id"] for row in tokens} == {"t", child["id"]}
    assert [row["models"] for row in tokens] == [[MODEL]] * len(tokens)
    calls = known.ledger.rows("SELECT task_id FROM model_calls ORDER BY started_at")
    assert [row["task_id"] for row in calls] == ["t", "t", child["id"], child["id"], "t"]
    known.close()


def test_a_step_waits_while_no_gateway_has_a_way_to_a_provider(stack: Stack) -> None:
    """It says what is missing, and goes on by itself when that is there."""
    silent = wired(stack.database_url, None, stack.folder)
    with worker(stack, app="orchestrator.tasks"):
        stack.call({"description": "Do it", "agent": {"type": "engine"}, "model": MODEL}, task_id="t")
        (step,) = until(
            lambda: stack.ledger.rows("SELECT * FROM steps WHERE waiting_on IS NOT NULL"), "the wait"
        )
    assert (step["status"], step["waiting_on"]) == ("queued", "agent")
    assert "ANTHROPIC_API_KEY" in str(step["waiting_detail"])
    with serving_gateway(silent):
        assert stack.ledger.rows("SELECT providers FROM gateways") == [{"providers": []}]
    assert stack.ledger.rows("SELECT 1 FROM gateways") == [], "it leaves in order"


def test_a_type_of_agent_that_fails_is_left_alone_by_all_until_it_had_time_to_recover(stack: Stack) -> None:
    """Its step waits meanwhile, and that counts as no attempt."""
    strict = {"ORCHESTRATOR_BREAKER_FAILURES": "1", "ORCHESTRATOR_BREAKER_RECOVERY": "PT3S"}
    known = replace(stack, more={**strict, "ORCHESTRATOR_BREAKER_SUCCESSES": "1"})
    with worker(known):
        known.call(plan({"id": "a", "spec": {"do": "break once"}}), task_id="first")
        known.healed(
            lambda: known.ledger.rows("SELECT 1 FROM breakers WHERE state = 'open'"), "the open breaker"
        )
        known.call(plan({"id": "b"}), task_id="second")
        known.healed(
            lambda: known.ledger.rows(
                "SELECT 1 FROM steps WHERE key = 'b' AND status = 'queued' AND waiting_on = 'circuit_breaker'"
            ),
            "the wait",
        )
        for task in ("first", "second"):
            known.healed(lambda task=task: known.ledger.row(task)["status"] == "completed", task)
    (row,) = known.ledger.rows("SELECT kind, name, state FROM breakers")
    assert (row["kind"], row["name"], row["state"]) == ("agent_type", "engine", "closed")
    attempts = known.ledger.rows("SELECT key, attempt FROM steps ORDER BY key")
    assert [(row["key"], row["attempt"]) for row in attempts] == [("a", 2), ("b", 1)]
    known.close()
