"""What a task waits for is said at the task itself, by REST and at the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.core.states import WaitingOn
from orchestrator.db.transitions import wait_in_queue
from tests.integration.api_server import Door, migrated, served, wired
from tests.integration.test_api_tasks import claim
from tests.integration.test_cli_tasks import run
from tests.servers import PostgresServer

MISSING = {
    "agent": "codex",
    "missing": {"codex": ["not installed: orchestrator agent install codex"]},
    "elsewhere": False,
}
TWO = [{"id": "a", "description": "First"}, {"id": "b", "description": "Beside it"}]


@pytest.fixture(scope="module")
def door(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with served(wired(migrated(postgres_server), tmp_path_factory.mktemp("api"))) as open_door:
        yield open_door


def wait(door: Door, task: dict[str, Any], number: int = 0, on: WaitingOn = WaitingOn.AGENT) -> None:
    claimed = claim(door, task, number)
    detail = MISSING if on is WaitingOn.AGENT else {}
    with door.wiring.engine.begin() as connection:
        assert wait_in_queue(connection, claimed.step, claimed.fence, on, detail, timedelta(minutes=5))


def test_a_task_whose_only_open_step_waits_for_an_agent_says_so_and_what_is_missing(door: Door) -> None:
    steps = [*TWO[:1], {"id": "later", "description": "Then", "needs": ["a"]}]
    task = door.create(steps=steps)
    wait(door, task)

    seen = door.get(f"/tasks/{task['id']}")
    assert (seen["status"], seen["waiting_on"]) == ("running", "agent")
    assert seen["waiting_detail"] == {**MISSING, "step_id": task["steps"][0]["id"]}
    assert "codex: not installed" in seen["display"]["why"]
    assert door.get(f"/tasks/{task['id']}/progress")["waiting_on"] == "agent"

    listed = {each["id"]: each for each in door.get("/tasks?waiting_on=agent")["data"]}[task["id"]]
    assert (listed["waiting_on"], listed["waiting_detail"]) == ("agent", seen["waiting_detail"])

    said = run(door, "task", "status", task["id"]).stdout
    assert "running (waits for an agent): No agent fits. codex: not installed" in said
    (row,) = [line for line in run(door, "task", "list").stdout.splitlines() if task["id"] in line]
    assert "agent (codex not installed)" in row


def test_a_task_of_which_something_runs_or_waits_for_another_thing_says_nothing(door: Door) -> None:
    task = door.create(steps=TWO)
    wait(door, task)
    assert door.get(f"/tasks/{task['id']}")["waiting_on"] is None  # the other step may start

    wait(door, task, 1, WaitingOn.CIRCUIT_BREAKER)
    assert door.get(f"/tasks/{task['id']}")["waiting_on"] is None
    assert task["id"] not in {each["id"] for each in door.get("/tasks?waiting_on=agent")["data"]}
