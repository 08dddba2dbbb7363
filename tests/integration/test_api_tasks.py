from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands.keys import Scope
from orchestrator.core.states import Event, WaitingOn
from orchestrator.core.verdict import Ask
from orchestrator.db import claims, effects
from orchestrator.db.claims import Claimed
from orchestrator.db.sql import StepRef
from orchestrator.db.transitions import park
from tests.integration.api_server import Door, migrated, served, wired
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def door(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder: Path = tmp_path_factory.mktemp("api")
    with served(wired(migrated(postgres_server), folder)) as open_door:
        yield open_door


def claim(door: Door, task: dict[str, Any], number: int = 0) -> Claimed:
    step = StepRef("default", task["id"], task["workflow"]["id"], task["steps"][number]["id"])
    with door.wiring.engine.begin() as connection:
        claimed = claims.claim(
            connection, step, lease=timedelta(minutes=1), agent_id="agent-1@here/1", signature=None
        )
    assert isinstance(claimed, Claimed)
    return claimed


def ask(door: Door, claimed: Claimed, call: str = "call_1") -> str:
    question = Ask(call_id=call, text="Keep the flag?", options=("Yes", "No"))
    with door.wiring.engine.begin() as connection:
        assert effects.ask(connection, claimed.step, claimed.fence, question)
    found = door.get(f"/tasks/{claimed.step.task_id}")["questions"]
    return str(found[-1]["id"])


def test_a_new_task_is_answered_with_all_of_it_and_where_it_is(door: Door) -> None:
    steps = [{"id": "a", "description": "First"}, {"id": "b", "description": "Then", "needs": ["a"]}]

    answer = door.client.post("/api/v1/tasks", json={"description": "Fix it\nall", "steps": steps})

    body = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api/v1/tasks/{body['id']}"
    assert (body["status"], body["phase"], body["title"]) == ("queued", "pending", "Fix it")
    assert [(step["key"], step["needs"]) for step in body["steps"]] == [("a", []), ("b", ["a"])]
    assert body == door.get(f"/tasks/{body['id']}")


def test_a_budget_in_dollars_for_a_model_without_a_price_is_warned_of_at_once(door: Door) -> None:
    budget = {"max_cost_usd": "5"}
    warned = door.create(model="some-model", budget=budget)["warnings"]
    (said,) = [each["detail"] for each in warned if each["code"] == "price-unknown"]
    assert """ORCHESTRATOR_PRICES='{"some-model": {"input":""" in said
    for fine in (
        {"model": "some-model"},
        {"model": "claude-sonnet-4-5", "budget": budget},
        {"model": "some-model", "budget": budget, "agent": {"type": "replay"}},
    ):
        assert "price-unknown" not in {each["code"] for each in door.create(**fine)["warnings"]}


def test_models_that_nobody_names_are_warned_of_as_well(door: Door, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {
        "model": "house-model",
        "openai_model": "house-codex",
        "fallback_models": ["claude-sonnet-4-5", "spare-model"],
        "task_models": {"testing": "test-model"},
        "model_rules": {"creative": "muse-model"},
    }

    def warned(**body: Any) -> set[str]:
        found = here.create(budget={"max_cost_usd": "5"}, **body)["warnings"]
        texts = [each["detail"] for each in found if each["code"] == "price-unknown"]
        return {text.partition("the price of ")[2].partition(" ")[0] for text in texts}

    with served(wired(door.wiring.database_url, tmp_path, **chosen)) as here:
        assert warned() == {"house-model", "test-model", "spare-model"}
        assert warned(requirements=["Be creative."]) == {"muse-model", "test-model", "spare-model"}
        assert warned(model="claude-sonnet-4-5") == {"spare-model"}
        assert warned(agent={"type": "goose"}) == {"house-model"}
        assert warned(agent={"type": "codex"}) == {"house-codex"}
        assert warned(agent={"type": "replay"}) == warned(agent={"type": "agentapi"}) == set()
        steps = [{"id": "a", "description": "x", "agent": "codex"}, {"id": "b", "description": "y"}]
        assert warned(steps=steps) == {"house-codex", "house-model", "test-model", "spare-model"}


def test_a_dead_broker_delays_no_task_and_loses_none(door: Door) -> None:
    created = door.create()  # no broker listens at all in this file

    ready = door.sql(
        "SELECT status, ready_at IS NOT NULL FROM steps WHERE task_id = :task", task=created["id"]
    )
    assert [tuple(row) for row in ready] == [("queued", True)]


def test_the_same_id_and_request_lead_to_the_same_task(door: Door) -> None:
    body = {"description": "Once", "id": "task_mine"}
    first = door.client.post("/api/v1/tasks", json=body)
    second = door.client.post("/api/v1/tasks", json=body)
    other = door.client.post("/api/v1/tasks", json={**body, "description": "Twice"})

    assert [first.status_code, second.status_code, other.status_code] == [201, 200, 409]
    assert second.json()["id"] == "task_mine"
    assert other.json()["code"] == "task-exists"


def test_a_task_is_found_without_its_prefix_and_by_its_external_id(door: Door) -> None:
    created = door.create(id="task_123", external_id="JIRA-7")

    assert door.get("/tasks/123")["id"] == created["id"]
    assert door.get("/tasks/JIRA-7")["id"] == created["id"]


def test_pages_go_on_where_the_last_one_ended_even_when_tasks_are_added(door: Door) -> None:
    ids = [door.create(priority="critical")["id"] for _ in range(5)]

    seen: list[str] = []
    path = "/tasks?priority=critical&limit=2"
    page = door.get(path)
    while True:
        seen += [task["id"] for task in page["data"]]
        door.create(priority="critical")
        if not page["has_more"] or len(seen) >= 5:
            break
        page = door.get(f"{path}&cursor={page['next_cursor']}")

    assert seen[:5] == ids[::-1]


def test_a_cursor_is_bound_to_its_filter_and_to_this_installation(door: Door) -> None:
    for _ in range(2):
        door.create(priority="low")
    cursor = door.get("/tasks?priority=low&limit=1")["next_cursor"]

    other = door.client.get("/api/v1/tasks", params={"priority": "high", "cursor": cursor})
    forged = door.client.get("/api/v1/tasks", params={"priority": "low", "cursor": f"A{cursor[1:]}"})
    nonsense = door.client.get("/api/v1/tasks", params={"cursor": "é"})

    assert (other.status_code, other.json()["code"]) == (400, "cursor-mismatch")
    assert (forged.status_code, forged.json()["code"]) == (400, "cursor-invalid")
    assert (nonsense.status_code, nonsense.json()["code"]) == (400, "cursor-invalid")


def test_a_list_is_filtered_by_status_alias_and_text_taken_literally(door: Door) -> None:
    door.create(description="Raise 100% of the coverage_x", priority="high")

    assert [task["title"] for task in door.get("/tasks?status=Pending&q=100%25%20of")["data"]] == [
        "Raise 100% of the coverage_x"
    ]
    assert door.get("/tasks?q=100_%20of")["data"] == []
    assert door.get("/tasks?status=completed,failed")["data"] == []
    wrong = door.client.get("/api/v1/tasks?status=done")
    assert (wrong.status_code, wrong.json()["code"]) == (400, "filter-invalid")


def test_more_than_a_page_holds_is_no_error(door: Door) -> None:
    assert door.client.get("/api/v1/tasks?limit=100000").status_code == 200


def test_what_belongs_to_another_tenant_is_not_there(door: Door) -> None:
    created = door.create()
    question = ask(door, claim(door, created))
    stranger = door.new_client({"X-API-Key": door.new_key(Scope.ADMIN, "others")})

    with stranger:
        base = f"/api/v1/tasks/{created['id']}"
        looked = [stranger.get(base + path).status_code for path in ("", "/progress", "/events", "/logs")]
        looked += [
            stranger.get(base + path).status_code for path in ("/diff", "/artifacts", "/interventions")
        ]
        looked.append(stranger.get(f"/api/v1/questions/{question}").status_code)
        acted = [
            stranger.post(f"{base}/{verb}").status_code for verb in ("pause", "resume", "cancel", "retry")
        ]
        acted.append(
            stranger.post(f"/api/v1/questions/{question}/answer", json={"answer": "mine"}).status_code
        )
        listed = stranger.get("/api/v1/tasks").json()["data"]

    assert (set(looked), set(acted), listed) == ({404}, {404}, [])


def test_a_question_is_answered_once_and_a_second_answer_sees_the_first(door: Door) -> None:
    created = door.create()
    question = ask(door, claim(door, created))
    waiting = door.get(f"/tasks/{created['id']}")

    first = door.client.post(f"/api/v1/questions/{question}/answer", json={"answer": {"choice": 2}})
    second = door.client.post(f"/api/v1/questions/{question}/answer", json={"answer": "Yes"})

    assert (waiting["status"], waiting["waiting_on"]) == ("pending_input", "question")
    assert waiting["display"]["label"] == "needs answer"
    assert (first.status_code, first.json()["answer"], first.json()["state"]) == (
        200,
        {"text": "No"},
        "answered",
    )
    assert (second.status_code, second.json()["code"]) == (409, "already-answered")
    assert ": No (at " in second.json()["detail"]
    assert door.get(f"/tasks/{created['id']}")["questions"] == []


def test_the_only_open_question_of_a_task_may_be_answered_by_the_tasks_id(door: Door) -> None:
    created = door.create(id="task_asking")
    ask(door, claim(door, created))

    answer = door.client.post("/api/v1/questions/asking/answer", json={"answer": "Yes, keep it"})

    assert answer.json()["answer"] == {"text": "Yes, keep it"}


@pytest.mark.parametrize(
    "answer", [{"choice": 3}, {"choice": True}, {}, "", "with a bell\a", {"text": "x", "more": 1}, 7, None]
)
def test_an_answer_that_is_none_is_refused_and_the_question_stays_open(door: Door, answer: Any) -> None:
    created = door.create()
    question = ask(door, claim(door, created))

    refused = door.client.post(f"/api/v1/questions/{question}/answer", json={"answer": answer})

    assert refused.status_code == 422
    assert refused.json()["code"] in {"answer-invalid", "request-invalid"}
    assert len(door.get(f"/tasks/{created['id']}")["questions"]) == 1


def test_commands_over_a_task_are_kept_with_who_and_why(door: Door) -> None:
    created = door.create()
    base = f"/api/v1/tasks/{created['id']}"

    paused = door.client.post(f"{base}/pause", json={"reason": "Lunch"})
    twice = door.client.post(f"{base}/pause")
    resumed = door.client.post(f"{base}/resume")
    cancelled = door.client.post(f"{base}/cancel", json={"reason": "Not needed"})
    ended = door.client.post(f"{base}/cancel")

    assert (paused.status_code, paused.json()["status"]) == (202, "pending_input")
    assert (twice.status_code, twice.json()["code"]) == (409, "already-paused")
    assert (resumed.status_code, resumed.json()["status"]) == (202, "queued")
    assert (cancelled.json()["state"], cancelled.json()["status"]) == ("applied", "cancelled")
    assert (ended.status_code, ended.json()["code"]) == (409, "task-ended")
    kept = door.get(f"/tasks/{created['id']}/interventions")["data"]
    assert [(line["command"], line["reason"], line["requested_by"]) for line in kept] == [
        ("pause", "Lunch", "configured"),
        ("resume", None, "configured"),
        ("cancel", "Not needed", "configured"),
    ]
    assert door.get(f"/tasks/{created['id']}")["display"]["why"] == "Not needed."


def test_a_message_to_a_task_is_kept_without_secrets_and_told_to_who_watches(door: Door) -> None:
    base = f"/api/v1/tasks/{door.create()['id']}"
    secret = "sk-ant-api03-" + "a" * 40

    sent = door.client.post(f"{base}/messages", json={"text": f"Use tabs, not {secret}."})
    empty = door.client.post(f"{base}/messages", json={"text": ""})
    door.client.post(f"{base}/cancel")
    late = door.client.post(f"{base}/messages", json={"text": "Stop!"})

    assert (sent.status_code, sent.json()["status"]) == (202, "queued")
    assert (empty.status_code, empty.json()["code"]) == (422, "request-invalid")
    assert (late.status_code, late.json()["code"]) == (409, "task-ended")
    told = [event for event in door.get(f"{base[7:]}/events")["data"] if event["name"] == "message"]
    assert [event["data"]["by"] for event in told] == ["configured"]
    assert told[0]["data"]["reason"].startswith("Use tabs, not ")
    assert secret not in str(told)


def test_an_ended_task_is_run_again_by_a_new_workflow(door: Door) -> None:
    created = door.create()
    door.client.post(f"/api/v1/tasks/{created['id']}/cancel")

    retried = door.client.post(f"/api/v1/tasks/{created['id']}/retry")

    assert (retried.status_code, retried.json()["status"]) == (202, "queued")
    assert door.get(f"/tasks/{created['id']}")["workflow"]["number"] == 2


def test_a_wait_ends_when_the_task_needs_somebody(door: Door) -> None:
    body = {"description": "Not yet", "start": False}

    answer = door.client.post("/api/v1/tasks", json=body, headers={"Prefer": "wait=20"})

    assert answer.headers["preference-applied"] == "wait=20"
    assert (answer.json()["status"], answer.json()["waiting_on"]) == ("pending_input", "paused")


def test_a_wait_that_is_too_short_answers_with_what_is_there(door: Door) -> None:
    answer = door.client.post("/api/v1/tasks", json={"description": "Slow"}, headers={"Prefer": "wait=1"})

    assert (answer.status_code, answer.json()["status"]) == (201, "queued")


def test_progress_is_a_fraction_of_the_plan_and_names_the_current_step(door: Door) -> None:
    steps = [{"id": "a", "description": "First"}, {"id": "b", "description": "Then", "needs": ["a"]}]
    created = door.create(steps=steps)
    claimed = claim(door, created)
    with door.wiring.engine.begin() as connection:
        assert park(connection, claimed.step, claimed.fence, Event.WAIT, WaitingOn.RATE_LIMIT, {})

    found = door.get(f"/tasks/{created['id']}/progress")

    assert list(found)[:3] == ["task_id", "progress", "current_step"]
    assert (found["progress"], found["current_step"], found["status"]) == (0.0, 1, "running")
    assert found["display"]["label"] == "waiting"
