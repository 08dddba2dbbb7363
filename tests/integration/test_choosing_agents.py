"""Which agent a step is given, on real workers that can run different ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from orchestrator.db import choices, transitions
from tests.agents_ready import KEYLESS, NAMED
from tests.integration.ledger import TENANT, Ledger
from tests.integration.stack import Stack, until, worker

NOW = timedelta(0)
ONE = {"description": "Something", "steps": [{"id": "a", "description": "Do it"}]}


def with_agents(stack: Stack, *names: str, **more: str) -> Stack:
    return replace(stack, more={**stack.more, NAMED: ",".join(names), **more})


def step(stack: Stack, task_id: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = stack.ledger.rows("SELECT * FROM steps WHERE task_id = :task", task=task_id)[0]
    return found


def test_a_step_waits_for_the_agent_that_its_task_names_and_a_new_worker_takes_it(stack: Stack) -> None:
    with worker(with_agents(stack, "engine", **{KEYLESS: "goose"})):
        until(lambda: stack.ledger.rows("SELECT 1 FROM agents"), "a slot")
        stack.ledger.run("""UPDATE agents SET capabilities = capabilities || '["goose"]'""")  # with a key
        keyless = stack.call({**ONE, "agent": {"type": "goose"}}).id
        row = until(lambda: (found := step(stack, keyless))["waiting_on"] == "agent" and found, "the wait")
        assert isinstance(row, Mapping)
        assert row["waiting_detail"]["elsewhere"] is False

        task_id = stack.call({**ONE, "agent": {"type": "aider"}}).id
        row = until(lambda: (found := step(stack, task_id))["waiting_on"] == "agent" and found, "the wait")
        assert isinstance(row, Mapping)
        assert row["status"] == "queued"
        assert row["waiting_detail"] == {
            "agent": "aider",
            "missing": {"aider": ["not installed: Install it."]},
            "elsewhere": False,
        }

        with worker(with_agents(stack, "aider")) as other:
            stack.healed(lambda: stack.ledger.row(task_id)["finished_at"], "the end")
            ended = step(stack, task_id)
            assert (ended["status"], ended["attempt"]) == ("completed", 1)
            assert ended["agent_id"].startswith(other.name)


def test_a_required_capability_finds_the_worker_that_has_it(stack: Stack) -> None:
    with (
        worker(with_agents(stack, "engine")),
        worker(with_agents(stack, "engine", ORCHESTRATOR_WORKER_CAPABILITIES="gpu,node")) as able,
    ):
        until(lambda: len(stack.ledger.rows("SELECT 1 FROM agents WHERE capabilities ? 'gpu'")) == 4, "slots")
        for number in range(4):
            task_id = stack.call({**ONE, "agent": {"capabilities": ["gpu"]}}, task_id=f"task-{number}").id
            stack.healed(lambda task_id=task_id: stack.ledger.row(task_id)["finished_at"], "the end")
            assert step(stack, task_id)["agent_id"].startswith(able.name)


def test_a_choice_among_several_is_kept_with_its_reason(stack: Stack) -> None:
    with worker(with_agents(stack, "claude-code", "goose")):
        task_id = stack.call({**ONE, "labels": {"type": "automation"}}).id
        assert stack.ends(task_id) == "completed"
    row = step(stack, task_id)
    assert row["agent_type"] == "goose"
    assert "good at automation" in row["spec"]["agent_choice"]["reason"]
    events = stack.ledger.rows(
        "SELECT data FROM events WHERE task_id = :task AND name = 'agent'", task=task_id
    )
    assert [event["data"]["agent"] for event in events] == ["goose"]


def test_after_an_attempt_that_broke_another_agent_is_given_the_step(stack: Stack) -> None:
    body = {"description": "Something", "steps": [{**ONE["steps"][0], "spec": {"do": "break once"}}]}  # type: ignore[index]
    with worker(with_agents(stack, "engine", "claude-code")):
        task_id = stack.call(body).id
        stack.healed(lambda: stack.ledger.row(task_id)["finished_at"], "the end")
    row = step(stack, task_id)
    assert (row["status"], row["attempt"], row["agent_type"]) == ("completed", 2, "claude-code")
    choice = row["spec"]["agent_choice"]
    assert choice["failed"] == {"engine": 1}
    assert "failed here once" in choice["reason"]


WHOSE = {
    ("agent", "agent-failed"): True,
    ("internal", "agent-crashed"): True,
    ("limit", "limit-turns"): True,
    ("dependency", "agent-program-missing"): True,
    ("overloaded", "model-overloaded"): False,
    ("overloaded", "agent-failed"): False,
    ("rate_limit", "model-rate-limited"): False,
    ("network", "gateway-unready"): False,
    ("timeout", "provider-timeout"): False,
    ("auth", "model-unauthorized"): False,
    ("agent", "model-repeated-call"): False,
    ("storage", "artifact-store-away"): False,
    (None, "deadline-exceeded"): False,
}
"""The class and code of a failure, and whether it speaks against the kind of agent that met it."""


def test_an_agent_is_held_to_its_own_failures_and_to_no_provider_s(ledger: Ledger) -> None:
    for number, ((error, code), blamed) in enumerate(WHOSE.items()):
        ref = ledger.task(f"t{number}")["work"]
        told = {"code": code, "message": "x", **({"class": error} if error else {})}
        first = ledger.take(ref)
        ledger.do(lambda c, at=first, told=told: transitions.retry_later(c, at.step, at.fence, told, NOW))
        assert ledger.do(lambda c, at=first: choices.is_blamed(c, at.step, 1)) is blamed, code
        second = ledger.take(ref)
        ledger.do(lambda c, at=second, told=told: transitions.fail(c, at.step, at.fence, told))
    (known,) = ledger.do(lambda c: choices.known(c, TENANT)).values()
    assert (known["completed"], known["failed"]) == (0, sum(WHOSE.values()))


def test_the_default_agent_is_told_with_other_news_without_a_row_of_its_own(stack: Stack) -> None:
    with worker(with_agents(stack, "engine", "replay")):
        spoken = {"id": "a", "description": "Do it", "spec": {"do": "script"}}
        task_id = stack.call({"description": "Something", "steps": [spoken]}).id
        assert stack.ends(task_id) == "completed"
    noted = until(
        lambda: stack.ledger.rows(
            "SELECT data FROM events WHERE task_id = :task AND name = 'agent'", task=task_id
        ),
        "the note",
    )
    assert noted[0]["data"]["agent"] == "engine"
    assert "nothing speaks against it" in noted[0]["data"]["reason"]
