"""Questions, interventions and refusals, over REST, against everything real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from orchestrator.local import control
from tests.acceptance.running import Doors, recorded

pytestmark = pytest.mark.timeout(240)
Start = Callable[..., dict[str, Any]]


def test_a_question_survives_the_restart_of_all_workers_and_its_answer_is_taken_once(
    doors: Doors, start: Start
) -> None:
    asked = doors.until_status(start("ask")["id"], "pending_input")
    assert asked["waiting_on"] == "question"
    [question] = asked["questions"]
    before = {name: doors.service(name).pid for name in ("agent-1", "agent-2", "system")}
    assert set(control.restart(doors.data, "worker", {})) == set(before)
    assert all(doors.service(name).pid != pid for name, pid in before.items())
    assert doors.task(asked["id"])["questions"] == [question]
    first = doors.post(f"/questions/{question['id']}/answer", answer={"choice": 2})
    assert first.status_code == 200
    assert first.json()["answer"] == {"text": "Raise a ValueError"}
    second = doors.post(f"/questions/{question['id']}/answer", answer="Keep 0")
    assert (second.status_code, second.json()["code"]) == (409, "already-answered")
    assert "Raise a ValueError" in second.json()["detail"]
    done = doors.until_status(asked["id"], "completed")
    assert [step["attempt"] for step in done["steps"]] == [1, 1]
    assert [event["step_key"] for event in doors.claims(asked["id"])] == ["settle", "settle", "check"]
    assert done["steps"][0]["id"] == asked["steps"][0]["id"]
    diff = doors.api.get(f"/api/v1/tasks/{asked['id']}/diff", headers={"Accept": "text/x-diff"}).text
    assert "+        raise ValueError" in diff


def test_a_paused_task_keeps_what_it_has_and_goes_on_when_resumed(doors: Doors, start: Start) -> None:
    task = start("fix-bug")["id"]
    doors.until_event(task, "progress", "turn")
    assert doors.post(f"/tasks/{task}/pause", reason="lunch").status_code == 202
    paused = doors.until_status(task, "pending_input")
    assert paused["waiting_on"] == "paused"
    again = doors.post(f"/tasks/{task}/pause")
    assert (again.status_code, again.json()["code"]) == (409, "already-paused")
    assert doors.post(f"/tasks/{task}/resume").status_code == 202
    done = doors.until_status(task, "completed")
    assert [step["attempt"] for step in done["steps"]] == [1, 1, 1, 1, 1]
    turns = [(e["step_key"], e["data"]["number"]) for e in doors.events(task) if e["name"] == "turn"]
    assert len(turns) == len(set(turns))


def test_a_cancelled_task_stays_so_and_a_retry_runs_the_same_plan_anew(doors: Doors, start: Start) -> None:
    task = start("ask")["id"]
    doors.until_status(task, "pending_input")
    early = doors.post(f"/tasks/{task}/retry")
    assert (early.status_code, early.json()["code"]) == (409, "not-ended")
    assert doors.post(f"/tasks/{task}/cancel", reason="not wanted").status_code == 202
    cancelled = doors.until_status(task, "cancelled")
    assert cancelled["outcome"] == {"type": "cancelled", "reason": "not wanted"}
    for verb in ("cancel", "pause", "resume"):
        refused = doors.post(f"/tasks/{task}/{verb}")
        assert (refused.status_code, refused.json()["code"]) == (409, "task-ended")
    assert doors.post(f"/tasks/{task}/retry").status_code == 202
    asked = doors.until_status(task, "pending_input")
    assert asked["workflow"]["number"] == 2
    assert doors.post(f"/questions/{task}/answer", answer={"choice": 2}).status_code == 200
    assert doors.until_status(task, "completed")["outcome"] == {"type": "completed"}


CYCLE = [
    {"id": "a", "description": "first", "needs": ["c"]},
    {"id": "b", "description": "second", "needs": ["a"]},
    {"id": "c", "description": "third", "needs": ["b"]},
]
REFUSED = [
    ("request-invalid", {}, "description"),
    ("request-invalid", {"description": "x", "requirments": []}, "requirments"),
    ("request-invalid", {"description": "x", "priority": "urgent"}, "priority"),
    ("request-invalid", {"description": "x\u0007"}, "description"),
    ("request-invalid", {"description": "x" * 200_001}, "description"),
    ("plan-cycle", {"description": "x", "steps": CYCLE}, "a -> c -> b -> a"),
    (
        "repository-forbidden",
        {"description": "x", "repository": {"url": "https://127.0.0.1/a.git"}},
        "loopback",
    ),
    (
        "repository-forbidden",
        {"description": "x", "repository": {"url": "https://u:p@example.org/a"}},
        "user",
    ),
    ("mode-unavailable", {"description": "x", "execution_mode": "strict"}, "strict"),
]


@pytest.mark.parametrize(("code", "body", "named"), REFUSED)
def test_a_request_that_can_not_be_done_is_refused_and_leaves_nothing(
    doors: Doors, code: str, body: dict[str, Any], named: str
) -> None:
    newest = doors.get("/tasks?limit=1")["data"]
    answer = doors.post("/tasks", **body)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (422, code)
    assert named in told["detail"]
    assert told["next_actions"]
    assert doors.get("/tasks?limit=1")["data"] == newest


def test_too_large_a_body_a_wrong_key_and_an_unknown_task_are_refused(doors: Doors) -> None:
    large = doors.post("/tasks", description="x" * 2_000_000)
    assert (large.status_code, large.json()["code"]) == (413, "body-too-large")
    unknown = doors.api.get("/api/v1/tasks/task_there_is_none")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "task-unknown")
    for headers, code in (({}, "key-missing"), ({"Authorization": "Bearer ork_live_wrong"}, "key-invalid")):
        denied = httpx2.post(
            f"{doors.urls['api']}/api/v1/tasks", json={"description": "x"}, headers=headers, trust_env=False
        )
        assert (denied.status_code, denied.json()["code"]) == (401, code)


def test_a_repository_that_is_not_there_ends_the_task_and_says_so(doors: Doors, tmp_path: Path) -> None:
    request = recorded("ask", tmp_path / "repository")
    task = doors.create(**{**request, "repository": {"path": str(tmp_path / "gone")}})
    failed = doors.until_status(task["id"], "failed")
    assert failed["outcome"]["type"] == "failed"
    assert failed["outcome"]["reason"] == "repository-unreachable"
    assert failed["steps"][1]["status"] == "cancelled"
