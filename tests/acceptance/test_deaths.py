"""What dies under a running task, and that nothing of the task is lost or done twice."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from orchestrator.local import processes
from tests.acceptance.running import Doors, recorded, until

pytestmark = pytest.mark.timeout(240)
Start = Callable[..., dict[str, Any]]


def test_a_worker_killed_in_the_middle_of_a_step_is_replaced_from_the_last_finished_turn(
    doors: Doors, start: Start
) -> None:
    task, pid, step_id = _stopped_in_the_middle(doors, start)
    child = processes.identify(pid)
    assert child is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not processes.alive(child), "the end of the killed process")

    done = doors.until_status(task, "completed")
    [hurt] = [step for step in done["steps"] if step["id"] == step_id]
    claims = [event["data"] for event in doors.claims(task) if event["step_key"] == hurt["key"]]
    assert [claim["attempt"] for claim in claims] == [1, 2]
    turns = [
        event["data"]["number"]
        for event in doors.events(task)
        if event["name"] == "turn" and event["step_key"] == hurt["key"]
    ]
    assert turns == sorted(set(turns)), "a turn was asked of the model again"
    _linear(doors, done)


def _stopped_in_the_middle(doors: Doors, start: Start) -> tuple[str, int, str]:
    """A task, and the stopped process of the agent that has finished a turn of one of its steps.

    A recorded step is over in a moment: what was stopped too early or too late goes on, another is tried.
    """
    for _ in range(20):
        task = start("fix-bug")["id"]
        while doors.get(f"/tasks/{task}")["status"] in {"queued", "running"}:
            for agent in doors.get("/agents")["data"]:
                step_id = agent["step_id"]
                if step_id is None:
                    continue
                os.kill(agent["pid"], signal.SIGSTOP)
                turns = [
                    event
                    for event in doors.events(task)
                    if event["name"] == "turn" and event["step_id"] == step_id
                ]
                now = {one["id"]: one["step_id"] for one in doors.get("/agents")["data"]}
                if turns and now[agent["id"]] == step_id:
                    return task, agent["pid"], step_id
                os.kill(agent["pid"], signal.SIGCONT)
    raise AssertionError("no step was ever stopped in the middle")


def _linear(doors: Doors, task: dict[str, Any]) -> None:
    """Each commit has the one before it as its only parent, and each step that changes files has one."""
    commits = doors.commits(task)
    assert [parents for _, parents, _ in commits] == [[sha] for sha, _, _ in commits[1:]] + [
        [task["base_commit"]]
    ]
    assert commits[0][0] == task["commit"]
    changed = [step["id"] for step in task["steps"] if step["key"] in {"fix_tokens", "fix_stats", "document"}]
    assert sorted(step for _, _, step in commits) == sorted(changed)


def test_a_dead_broker_loses_no_task_and_doesnt_slow_the_door(doors: Doors, tmp_path: Path) -> None:
    def submit(number: int) -> str:
        request = recorded("ask", tmp_path / f"repository-{number}")
        answer = httpx2.post(
            f"{doors.urls['api']}/api/v1/tasks",
            json=request,
            headers={"Authorization": f"Bearer {doors.secrets['api_key']}"},
            timeout=5,
            trust_env=False,
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    redis = doors.service("redis")
    assert redis.pid is not None
    assert redis.port is not None
    accepted = [submit(1), submit(2)]
    os.kill(redis.pid, signal.SIGKILL)
    until(lambda: not _listens(redis.port), "the end of Redis")
    accepted += [submit(3), submit(4)]
    until(lambda: doors.service("redis").pid not in {None, redis.pid}, "Redis once more")
    for task in accepted:
        doors.until_status(task, "pending_input")
        assert doors.post(f"/questions/{task}/answer", answer={"choice": 2}).status_code == 200
    for task in accepted:
        done = doors.until_status(task, "completed")
        assert [step["status"] for step in done["steps"]] == ["completed", "completed"]


def _listens(port: int | None) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port or 0)) == 0
