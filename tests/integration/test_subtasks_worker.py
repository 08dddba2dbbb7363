"""Subtasks in real workers: merged, and started once whoever is killed."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.commands import intervene
from orchestrator.commands.subtask import subtask_id
from orchestrator.db.sql import StepRef
from tests.integration.ledger import TENANT
from tests.integration.repositories import repository
from tests.integration.stack import PATIENCE_SECONDS, Stack, until, worker
from tests.integration.subtask_rows import children, complete, objective, shown


def delegate(*objectives: str, repo: Path | None = None, **body: Any) -> dict[str, Any]:
    where = {"repository": {"path": str(repo)}} if repo else {}
    spec = {"do": "delegate", "objectives": list(objectives)}
    steps = [{"id": "a", "description": "Delegate", "spec": spec}]
    return {"description": "Something", "steps": steps, **where, **body}


def write(path: str, text: str) -> str:
    return objective(do="write", path=path, text=text)


def told(stack: Stack, name: str = "p.a") -> list[dict[str, Any]]:
    return [note for note in stack.notes.read("told") if note["step"] == name]


def test_what_subtasks_did_is_merged_into_their_parent_s_work(stack: Stack, tmp_path: Path) -> None:
    source = repository(tmp_path / "source", {"one.txt": "1\n", "two.txt": "2\n"})
    request = delegate(write("one.txt", "one\n"), write("two.txt", "two\n"), "Only look.", repo=source)
    stack.call(request, task_id="p")
    with worker(stack, slots=1):
        assert stack.ends("p") == "completed", "one slot is enough: who waits holds none"
    assert [note["status"] for note in told(stack)] == ["completed"] * 3
    seen = stack.notes.read("saw")
    assert all("parent.txt" in note["files"] for note in seen), "they start from their parent's checkpoint"
    assert shown(stack, "p", "one.txt") == "one"
    assert shown(stack, "p", "two.txt") == "two"
    assert shown(stack, "p", "parent.txt") == "parent"
    (parent,) = stack.ledger.steps("p").values()
    assert stack.ledger.names(parent)[0:2] == ["claim", "wait"]
    assert stack.ledger.step(parent)["attempt"] == 1
    assert stack.ledger.step(parent)["published_by"] == "wake", "no sweep was needed"
    for task in ("p", *children(stack)):
        stack.ledger.assert_consistent(task)


def test_a_conflict_of_subtasks_is_shown_and_changes_nothing(stack: Stack, tmp_path: Path) -> None:
    source = repository(tmp_path / "source", {"one.txt": "1\n"})
    stack.call(delegate(write("one.txt", "left\n"), write("one.txt", "right\n"), repo=source), task_id="p")
    with worker(stack):
        assert stack.ends("p") == "completed"
    first, second = told(stack)
    assert first["conflict"] is None
    assert "one.txt" in second["conflict"]
    assert "+right" in second["conflict"].replace(" ", "")
    assert shown(stack, "p", "one.txt") == "left"


def test_another_machine_carries_out_a_subtask_and_another_one_its_parent(
    stack: Stack, tmp_path: Path
) -> None:
    """They share the artifact store alone."""
    source = repository(tmp_path / "source", {"one.txt": "1\n"})
    store = {"ORCHESTRATOR_ARTIFACT_URL": (tmp_path / "store").as_uri()}
    (tmp_path / "store").mkdir()
    machines = []
    for name in "abc":
        folder = tmp_path / name
        folder.mkdir()
        machines.append(Stack(stack.database_url, stack.redis_url, folder, store))
    first, second, third = machines
    first.notes.hold(f"{FIRST}.work")
    second.notes.hold("p.a")
    first.call(delegate(write("one.txt", "one\n"), repo=source), task_id="p")
    with worker(first, slots=1):
        first.began(f"{FIRST}.work")
    assert first.ledger.row("p")["waiting_on"] == "subtask"
    with worker(second, slots=2):
        second.healed(lambda: second.ledger.row(FIRST)["finished_at"], "the subtask's end")
        second.began("p.a")
    with worker(third, slots=1):
        third.healed(lambda: third.ledger.row("p")["finished_at"], "the end")
    assert third.ledger.row("p")["status"] == "completed"
    assert shown(third, "p", "one.txt") == "one"
    assert not third.notes.read("saw"), "it was another machine's work"
    for machine in machines:
        machine.close()


def test_kill_9_between_the_start_and_the_park_starts_nothing_twice(stack: Stack) -> None:
    stack.notes.hold("p.a.delegated")
    stack.call(delegate("Look.", "Look again."), task_id="p")
    with worker(stack, slots=1) as process:
        until(lambda: stack.notes.read("delegated"), "the subtasks")
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(PATIENCE_SECONDS)
    stack.notes.let_go("p.a.delegated")
    with worker(stack, slots=2):
        stack.healed(lambda: stack.ledger.row("p")["finished_at"], "the end")
    assert stack.ledger.row("p")["status"] == "completed"
    assert len(children(stack)) == 2
    assert len(stack.notes.read("delegated")) == 1, "the second attempt found them started"
    assert [note["call"] for note in told(stack)] == ["call_1", "call_2"]
    (parent,) = stack.ledger.steps("p").values()
    assert stack.ledger.step(parent)["attempt"] == 2


FIRST = subtask_id(StepRef(TENANT, "p", "workflow_p_1", "workflow_p_1.1"), 0, "call_1")
"""The id of what step `a` of task `p` starts first."""


def test_a_parent_whose_waker_died_is_woken_by_one_of_two_sweeps(stack: Stack) -> None:
    """The subtask's end is committed as a worker would that dies before its next word."""
    stack.notes.hold(f"{FIRST}.work")
    stack.call(delegate("Look."), task_id="p")
    with worker(stack, slots=1) as process:
        stack.began(f"{FIRST}.work")
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(PATIENCE_SECONDS)
    (parent,) = stack.ledger.steps("p").values()
    (child,) = stack.ledger.steps(FIRST).values()
    assert stack.ledger.step(parent)["waiting_on"] == "subtask"
    stack.ledger.expire(child)
    complete(stack.ledger, FIRST)
    with ThreadPoolExecutor(2) as pool:

        def woken() -> int:
            return sum(swept.woken for swept in pool.map(lambda _: stack.sweep(), range(2)))

        assert until(woken, "the wake") == 1
        assert woken() == 0
    with worker(stack, slots=1):
        assert stack.ends("p") == "completed"
    assert [note["call"] for note in told(stack)] == ["call_1"]
    assert stack.ledger.names(parent) == ["claim", "wait", "wake", "claim", "succeed"]


def test_a_cancelled_parent_s_running_subtask_stops(stack: Stack) -> None:
    stack.notes.hold(f"{FIRST}.work")
    stack.call(delegate("Look."), task_id="p")
    with worker(stack, slots=2):
        stack.began(f"{FIRST}.work")
        until(lambda: stack.ledger.row("p")["waiting_on"] == "subtask", "the park")
        stack.command(intervene.cancel, "p")
        assert stack.ends("p") == "cancelled"
        assert stack.ends(FIRST) == "cancelled"
    assert [note["reason"] for note in stack.notes.read("stopped")] == ["cancel"]


def test_a_parent_that_breaks_leaves_no_subtask_behind(stack: Stack) -> None:
    """It fails before it parks: the shell cancels them, no sweep is needed."""
    spec = {"do": "delegate and break", "objectives": [objective(do="work")]}
    stack.notes.hold(f"{FIRST}.work")
    stack.call({"description": "S", "steps": [{"id": "a", "description": "D", "spec": spec}]}, task_id="p")
    with worker(stack, slots=1):
        assert stack.ends("p") == "failed"
        assert stack.ends(FIRST) == "cancelled"
    assert stack.ledger.row(FIRST)["outcome"]["reason"] == "the step that started it has ended"
