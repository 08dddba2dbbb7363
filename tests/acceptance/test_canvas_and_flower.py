"""A plan as Celery carries it, and what an operator sees of it in Flower."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.running import Doors, recorded, until

pytestmark = pytest.mark.timeout(240)
Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def completed(doors: Doors, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bundled five steps, two of them parallel."""
    request = recorded("fix-bug", tmp_path_factory.mktemp("completed") / "repository")
    return doors.until_status(doors.create(**request)["id"], "completed")


def test_celerys_own_chain_and_chord_start_every_step_of_a_plan(
    doors: Doors, completed: Mapping[str, Any]
) -> None:
    claims = {event["step_key"]: event["data"]["by"] for event in doors.claims(completed["id"])}
    assert claims == {step["key"]: "canvas" for step in completed["steps"]}
    seen = doors.until_flower(completed["id"], dict.fromkeys("12345", "SUCCESS"))
    parents = {number: (each["parent_id"] or "").rpartition(".")[2] for number, each in seen.items()}
    assert parents["1"] == ""
    assert {parents["2"], parents["3"]} == {"1"}
    assert parents["4"] in {"2", "3"}
    assert parents["5"] == "4"


def test_flower_finds_all_of_a_task_by_its_id_and_shows_queue_name_and_place(
    doors: Doors, completed: Mapping[str, Any]
) -> None:
    seen = doors.until_flower(completed["id"], dict.fromkeys("12345", "SUCCESS"))
    for number, each in seen.items():
        assert each["args"] == f"({completed['id']!r}, 'step {number}/5')"
        assert each["kwargs"] == "{}"
        assert each["name"] == "step:agent"
        assert each["routing_key"] == "orchestrator.medium"
        assert each["worker"].startswith("agent-")


def test_flower_shows_a_question_an_answer_and_an_end(doors: Doors, start: Start) -> None:
    task = start("ask")
    asked = doors.until_status(task["id"], "pending_input")
    doors.until_flower(task["id"], {"1": "PENDING_INPUT"})
    doors.post(f"/questions/{asked['questions'][0]['id']}/answer", answer={"choice": 2})
    doors.until_status(task["id"], "completed")
    doors.until_flower(task["id"], {"1": "SUCCESS", "2": "SUCCESS"})


def test_flower_shows_that_a_parked_task_was_cancelled(doors: Doors, start: Start) -> None:
    task = start("ask")
    doors.until_status(task["id"], "pending_input")
    doors.until_flower(task["id"], {"1": "PENDING_INPUT"})
    assert doors.post(f"/tasks/{task['id']}/cancel").status_code == 202
    doors.until_status(task["id"], "cancelled")
    doors.until_flower(task["id"], {"1": "REVOKED"})


def test_flower_shows_that_a_parked_task_failed_when_its_time_was_over(doors: Doors, tmp_path: Path) -> None:
    task = doors.create(**recorded("ask", tmp_path / "repository"), budget={"max_duration": "6s"})
    doors.until_flower(task["id"], {"1": "PENDING_INPUT"})
    failed = doors.until_status(task["id"], "failed")
    assert failed["outcome"]["reason"] == "duration-exceeded"
    seen = doors.until_flower(task["id"], {"1": "FAILURE"})
    assert "duration-exceeded" in seen["1"]["exception"]


def test_flower_shows_that_a_running_task_was_cancelled(doors: Doors, start: Start) -> None:
    task = start("fix-bug")
    doors.until_event(task["id"], "progress", "turn")
    assert doors.post(f"/tasks/{task['id']}/cancel").status_code == 202
    cancelled = doors.until_status(task["id"], "cancelled")
    assert {step["status"] for step in cancelled["steps"]} <= {"cancelled", "completed"}
    ends = {"completed": "SUCCESS", "cancelled": "REVOKED"}
    states = {str(step["number"]): ends[step["status"]] for step in cancelled["steps"]}

    def look() -> bool:
        seen = doors.in_flower(task["id"])
        begun = {str(step["number"]) for step in cancelled["steps"] if step["attempt"]}
        return begun <= seen.keys() and all(each["state"] == states[key] for key, each in seen.items())

    until(look, f"{task['id']} in Flower as {states}", lambda: doors.in_flower(task["id"]))


_PRODUCER = """
import json, sys
from orchestrator.tasks import execute_task
waiting = execute_task.delay(json.load(sys.stdin))
print(waiting.id, flush=True)
try:
    waiting.get(timeout=90)
except Exception as error:
    print(type(error).__name__, *error.args)
"""


def test_flower_and_the_caller_of_delay_hear_that_the_task_was_cancelled(
    doors: Doors, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PRODUCER],
        env=doors.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as producer:
        assert producer.stdin is not None
        assert producer.stdout is not None
        producer.stdin.write(json.dumps(recorded("ask", tmp_path / "repository")))
        producer.stdin.close()
        task = producer.stdout.readline().strip()
        doors.until_status(task, "pending_input")
        doors.until_flower(task, {task: "PENDING_INPUT", "1": "PENDING_INPUT"})
        assert doors.post(f"/tasks/{task}/cancel", reason="not wanted").status_code == 202
        assert producer.stdout.read().strip() == "TaskCancelled not wanted"
    doors.until_flower(task, {task: "REVOKED", "1": "REVOKED"})


def test_flower_shows_a_failure_by_its_code_alone(doors: Doors, tmp_path: Path) -> None:
    request = recorded("ask", tmp_path / "repository")
    request["repository"] = {"path": str(tmp_path / "there-is-none")}
    task = doors.create(**request)
    failed = doors.until_status(task["id"], "failed")
    assert failed["outcome"]["reason"] == "repository-unreachable"
    seen = doors.until_flower(task["id"], {"1": "FAILURE"})
    assert "repository-unreachable" in seen["1"]["exception"]
    assert "there-is-none" not in json.dumps(seen)
    info = doors.flower.get(f"/api/task/info/{failed['steps'][0]['id']}").json()
    assert "repository-unreachable" in info["traceback"]
    for place in (".py", str(Path(sys.prefix)), str(Path(__file__).parents[2])):
        assert place not in json.dumps([seen, info]), "where the installation is"


def test_flower_tells_no_payload_and_no_secret(
    doors: Doors, completed: Mapping[str, Any], start: Start
) -> None:
    asking = start("ask")
    asked = doors.until_status(asking["id"], "pending_input")
    seen = doors.until_flower(asking["id"], {"1": "PENDING_INPUT"})
    told = doors.flower.get("/api/tasks").text + doors.flower.get("/api/workers").text
    for number in seen:
        told += doors.flower.get(f"/api/task/info/{asked['workflow']['id']}.{number}").text
    for step in completed["steps"]:
        info = doors.flower.get(f"/api/task/info/{step['id']}")
        assert info.status_code == 200
        told += info.text
    assert completed["id"] in told
    payloads = [
        *(completed["description"], completed["title"], completed["repository_url"]),
        *(step["description"] for step in completed["steps"]),
        *(step["summary"] for step in completed["steps"]),
        *(asked["description"], asked["questions"][0]["text"], *asked["questions"][0]["options"]),
    ]
    assert [text for text in payloads if json.dumps(text)[1:-1] in told] == []
    assert [name for name, secret in doors.secrets.items() if secret in told] == []


@pytest.mark.parametrize(
    "path",
    [
        "/api/worker/shutdown/{worker}",
        "/api/worker/pool/restart/{worker}",
        "/api/task/revoke/{task}",
        "/api/task/async-apply/orchestrator.run_step",
        "/api/task/send-task/orchestrator.run_step",
    ],
)
def test_flower_changes_nothing(doors: Doors, completed: Mapping[str, Any], path: str) -> None:
    worker = doors.until_flower(completed["id"], dict.fromkeys("12345", "SUCCESS"))["1"]["worker"]
    filled = path.format(worker=worker, task=completed["steps"][0]["id"])
    assert doors.flower.post(filled, json={"args": []}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/tasks", "/workers", "/api/tasks", "/api/workers", "/broker"])
def test_flower_shows_nothing_without_its_password(doors: Doors, path: str) -> None:
    url = f"{doors.urls['flower'].rstrip('/')}{path}"
    assert httpx2.get(url, trust_env=False).status_code == 401
    assert httpx2.get(url, auth=("operator", "wrong"), trust_env=False).status_code == 401
