"""Subtasks, approvals and budgets as people see them: by REST and at the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.commands import subtask
from orchestrator.commands.subtask import Bounds, Call
from orchestrator.core.states import WaitingOn
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.core.verdict import Ask
from orchestrator.db import claims, effects, subtasks
from orchestrator.db.claims import Claimed
from orchestrator.db.sql import StepRef
from tests.integration.api_server import Door, migrated, served, wired
from tests.integration.test_cli_tasks import run
from tests.servers import PostgresServer

DIGEST = "cd" * 32


@pytest.fixture(scope="module")
def door(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with served(wired(migrated(postgres_server), tmp_path_factory.mktemp("api"))) as open_door:
        yield open_door


def claim(door: Door, task: dict[str, Any]) -> Claimed:
    step = StepRef("default", task["id"], task["workflow"]["id"], task["steps"][0]["id"])
    with door.wiring.engine.begin() as connection:
        claimed = claims.claim(
            connection, step, lease=timedelta(minutes=1), agent_id="agent-1@here/1", signature=None
        )
    assert isinstance(claimed, Claimed)
    return claimed


def start(door: Door, claimed: Claimed, *objectives: str) -> list[str]:
    """Parks the step on subtasks with these objectives; their ids."""
    call = Call(claimed.step, claimed.fence, 0, None)
    requests = [SubtaskRequest(f"call_{number}", text) for number, text in enumerate(objectives)]
    with door.wiring.engine.begin() as connection:
        started = subtask.start(
            connection, call, requests, bounds=Bounds(3, 20, 100), agent_types=frozenset(), models=frozenset()
        )
    with door.wiring.engine.begin() as connection:
        assert subtasks.park(connection, claimed.step, claimed.fence, {})
    return [each.task.task_id for each in started]


def ask(door: Door, task: dict[str, Any], asked: Ask) -> str:
    claimed = claim(door, task)
    with door.wiring.engine.begin() as connection:
        assert effects.ask(connection, claimed.step, claimed.fence, asked)
    return str(door.get(f"/tasks/{task['id']}")["questions"][0]["id"])


APPROVAL = Ask(
    "call_1", "rm \x1b[31mall", ("Approve", "Deny"), WaitingOn.TOOL_APPROVAL, subject_digest=DIGEST
)
BUDGET = Ask("budget-1", "It is used up.", ("Raise", "Stop"), WaitingOn.BUDGET)


def test_a_tree_of_tasks_is_seen_from_its_root_and_from_below(door: Door) -> None:
    root = door.create()
    one, two = start(door, claim(door, root), "Left", "Right")
    (deep,) = start(door, claim(door, door.get(f"/tasks/{one}")), "Deeper")

    seen = door.get(f"/tasks/{root['id']}")
    assert [(each["id"], each["parent_id"], each["depth"]) for each in seen["children"]] == [
        (one, root["id"], 1),
        (deep, one, 2),
        (two, root["id"], 1),
    ]
    assert seen["children"][0]["step_id"] == root["steps"][0]["id"]
    assert [each["call_id"] for each in seen["children"]] == ["call_0", "call_0", "call_1"]
    assert (seen["waiting_on"], seen["children"][0]["waiting_on"]) == ("subtask", "subtask")
    below = door.get(f"/tasks/{deep}")
    assert (below["parent_id"], below["root_id"], below["depth"], below["children"]) == (
        one,
        root["id"],
        2,
        [],
    )
    listed = {task["id"]: task["parent_id"] for task in door.get("/tasks?status=awaiting_subtask")["data"]}
    assert listed == {root["id"]: None, one: root["id"]}

    lines = run(door, "task", "status", root["id"]).stdout.splitlines()
    tree = [line for line in lines if "\u21b3" in line]
    assert [line.index("\u21b3") for line in tree] == [2, 4, 2]
    assert one in tree[0]
    assert "Deeper" in tree[1]
    assert f"started by an agent of {one}" in run(door, "task", "status", deep).stdout


def test_a_cancel_says_how_many_go_with_it(door: Door) -> None:
    root = door.create()
    start(door, claim(door, root), "Left", "Right")

    done = door.client.post(f"/api/v1/tasks/{root['id']}/cancel").json()

    assert done["message"] == "It has ended, and 2 subtasks with it."
    assert {child["status"] for child in door.get(f"/tasks/{root['id']}")["children"]} == {"cancelled"}


def test_an_approval_shows_what_it_is_bound_to(door: Door) -> None:
    task = door.create(agent={"tool_approval": ["execute"]})
    question = ask(door, task, APPROVAL)

    shown = door.get(f"/questions/{question}")
    assert (shown["kind"], shown["subject_digest"]) == ("tool_approval", DIGEST)
    for wrong in ("yes", {"text": "approve it"}, {"choice": 3}, {"max_tokens": 5}):
        refused = door.client.post(f"/api/v1/questions/{question}/answer", json={"answer": wrong})
        assert (refused.status_code, refused.json()["code"]) == (422, "answer-invalid"), wrong
    said = run(door, "task", "status", task["id"]).stdout
    assert "[approval] rm" in said
    assert DIGEST in said
    assert f"orchestrator task answer {task['id']}" in said
    done = run(door, "task", "answer", task["id"], "--text", "approve")
    assert f"{question} answered: Approve" in done.stderr
    assert DIGEST in done.stderr


def test_a_budget_is_raised_by_rest_and_at_the_terminal(door: Door) -> None:
    first, second = (door.create(budget={"max_cost_usd": "5", "max_tokens": 1000}) for _ in range(2))
    question = ask(door, first, BUDGET)
    ask(door, second, BUDGET)

    answer = door.client.post(
        f"/api/v1/questions/{question}/answer", json={"answer": {"max_cost_usd": 7.5, "max_tokens": 2000}}
    )
    assert answer.json()["answer"] == {"text": "Raised to $7.50, 2,000 tokens"}
    assert door.get(f"/tasks/{first['id']}")["budget"] == {"max_cost_usd": "7.5", "max_tokens": 2000}
    assert "the new maximum" in run(door, "task", "status", second["id"]).stdout
    low = run(door, "task", "answer", second["id"], "--text", "4")
    assert (low.returncode, "not more than the 5" in low.stderr) == (2, True)
    assert run(door, "task", "answer", second["id"], "--text", "9").returncode == 0
    assert door.get(f"/tasks/{second['id']}")["budget"]["max_cost_usd"] == "9"


def test_what_silence_means_is_said_with_the_task_and_shown_with_the_question(door: Door) -> None:
    created = run(
        *(door, "task", "create", "-d", "x", "--json", "--question-timeout", "2h", "--on-silence", "default"),
        *("--ask-before", "execute", "--ask-before", "network"),
    )
    task = json.loads(created.stdout)
    (request,) = door.sql("SELECT request FROM tasks WHERE id = :id", id=task["id"])[0]
    assert request["on_question_timeout"] == {"after": "PT2H", "then": "default"}
    assert request["agent"] == {"tool_approval": ["execute", "network"]}
    question = ask(door, task, Ask("call_1", "Which?", default="left"))
    shown = door.get(f"/questions/{question}")
    assert (shown["on_expiry"], shown["default_answer"]) == ("default", "left")
    left = datetime.fromisoformat(shown["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=55) < left < timedelta(hours=2)
    assert "it is: left" in run(door, "task", "status", task["id"]).stdout


def test_silence_without_a_time_is_refused(door: Door) -> None:
    done = run(door, "task", "create", "-d", "x", "--on-silence", "fail")
    assert (done.returncode, "--question-timeout" in done.stderr) == (2, True)
