"""Subtasks that our own engine starts in real workers."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from orchestrator.commands import intervene
from tests.integration.stack import PATIENCE_SECONDS, Stack, until, worker
from tests.integration.subtask_rows import children, objective, shown


def script(*calls: Any) -> str:
    return objective(do="script", calls=calls)


def writes(path: str, text: str) -> str:
    done = ("attempt_completion", {"summary": f"Wrote {path}."})
    return script(("write_file", {"path": path, "content": text}), done)


def engine_parent(*objectives: str) -> dict[str, Any]:
    calls = [
        ("write_file", {"path": "parent.txt", "content": "parent\n"}),
        [("start_subtask", {"objective": each}) for each in objectives],
        ("attempt_completion", {"summary": "All parts are there."}),
    ]
    step = {"id": "a", "description": "Delegate", "spec": {"do": "script", "calls": calls}}
    return {"description": "Something", "steps": [step]}


def results(stack: Stack, task_id: str = "p") -> list[str]:
    """What the parent's conversation says of its subtasks."""
    found = stack.ledger.rows(
        "SELECT c.result FROM tool_calls c JOIN steps s ON s.id = c.step_id"
        " WHERE s.task_id = :task AND c.name = 'start_subtask' ORDER BY c.number",
        task=task_id,
    )
    return [row["result"] for row in found]


def turns(stack: Stack, task_id: str) -> list[int]:
    return [note["turn"] for note in stack.notes.read("asked") if note["task"] == task_id]


def test_the_engine_hands_out_two_parts_and_goes_on_with_both(stack: Stack) -> None:
    stack.call(engine_parent(writes("one.txt", "one\n"), writes("two.txt", "two\n")), task_id="p")
    with worker(stack, slots=1):
        assert stack.ends("p") == "completed"
    first, second = results(stack)
    assert first.startswith("completed. Its changes are in the workspace.")
    assert "Wrote one.txt." in first
    assert "Wrote two.txt." in second
    assert [shown(stack, "p", f"{name}.txt") for name in ("parent", "one", "two")] == ["parent", "one", "two"]
    assert turns(stack, "p") == [1, 2, 3], "the wait cost no request"
    told = """
        SELECT data ->> 'state' AS state FROM events
        WHERE task_id = 'p' AND data ->> 'name' = 'start_subtask' ORDER BY number
    """
    states = [row["state"] for row in stack.ledger.rows(told)]
    assert states == ["started", "started", "finished", "finished"], "each is told of once"
    for task in ("p", *children(stack)):
        stack.ledger.assert_consistent(task)


def test_a_failure_a_cancel_and_a_conflict_of_subtasks_reach_the_engine_as_words(stack: Stack) -> None:
    breaks, waits = objective(do="break"), objective(do="ask")
    clashes = [writes("same.txt", "left\n"), writes("same.txt", "right\n")]
    stack.call(engine_parent(breaks, waits, *clashes), task_id="p")
    with worker(stack):
        waiting = until(
            lambda: stack.ledger.rows("SELECT id FROM tasks WHERE waiting_on = 'question'"), "a question"
        )
        stack.command(intervene.cancel, waiting[0]["id"], reason="not this one")
        assert stack.ends("p") == "completed"
    broken, cancelled, left, right = results(stack)
    assert broken.startswith("failed. It changed no files.")
    assert "no-luck: It did not work." in broken
    assert cancelled.startswith("cancelled. It changed no files.")
    assert "not this one" in cancelled
    assert left.startswith("completed. Its changes are in the workspace.")
    assert "could not be merged" in right
    assert shown(stack, "p", "same.txt") == "left"
    errors = stack.ledger.rows("SELECT is_error FROM tool_calls WHERE name = 'start_subtask' ORDER BY number")
    assert [row["is_error"] for row in errors] == [True, True, False, True]


@pytest.mark.parametrize("turn", [2, 3])
def test_kill_9_of_a_parent_by_the_engine_starts_and_asks_nothing_twice(stack: Stack, turn: int) -> None:
    """Killed while it asks for the turn that starts them, or for the one that is told of their ends."""
    stack.notes.hold(f"p.{turn}")
    stack.call(engine_parent(writes("one.txt", "one\n"), writes("two.txt", "two\n")), task_id="p")
    with worker(stack, slots=2) as process:
        until(lambda: turn in turns(stack, "p"), f"turn {turn}")
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(PATIENCE_SECONDS)
    stack.notes.let_go(f"p.{turn}")
    with worker(stack, slots=2):
        stack.healed(lambda: stack.ledger.row("p")["finished_at"], "the end")
    assert stack.ledger.row("p")["status"] == "completed"
    assert turns(stack, "p") == sorted([1, 2, 3, turn])
    assert len(children(stack)) == 2
    for child in children(stack):
        assert turns(stack, child) == [1, 2]
    assert [shown(stack, "p", f"{name}.txt") for name in ("one", "two")] == ["one", "two"]
    stack.ledger.assert_consistent("p")


def test_what_the_limits_forbid_is_told_to_the_engine(stack: Stack) -> None:
    narrow = Stack(stack.database_url, stack.redis_url, stack.folder, {"ORCHESTRATOR_MAX_SUBTASKS": "1"})
    narrow.call(engine_parent("Look.", "Look again."), task_id="p")
    with worker(narrow):
        assert narrow.ends("p") == "completed"
    first, second = results(narrow)
    assert first == second
    assert "a task may have 1 at most" in first
    assert children(narrow) == []
    narrow.close()
