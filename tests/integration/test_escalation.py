"""Steps that change the same lines: one more run, then a person, then one more run by the person's word."""

from __future__ import annotations

from orchestrator.commands import intervene
from tests.integration.stack import Stack, until, worker


def test_a_step_that_conflicts_twice_is_led_on_by_a_resume_on_the_branch_s_new_end(stack: Stack) -> None:
    steps = [{"id": key, "description": key, "spec": {"do": "edit"}} for key in "abc"]
    for held in ("t.a.1", "t.b.1", "t.b.2", "t.c.1"):
        stack.notes.hold(held)
    with worker(stack):
        result = stack.call({"description": "Something", "steps": steps}, task_id="t")
        for key in "abc":
            stack.began(f"t.{key}.1")
        refs = stack.ledger.steps("t")
        stack.notes.let_go("t.a.1")
        until(lambda: stack.ledger.step(refs["a"])["status"] == "completed", "the first on the branch")
        stack.notes.let_go("t.b.1")
        again = stack.began("t.b.2")
        assert "same.txt" in again["context"]["conflict"]
        stack.notes.let_go("t.c.1")
        until(lambda: stack.ledger.step(refs["c"])["status"] == "completed", "the second on the branch")
        stack.notes.let_go("t.b.2")
        until(lambda: stack.ledger.row("t")["waiting_on"] == "escalation", "the second conflict")
        assert stack.ledger.step(refs["b"])["waiting_detail"] == {"why": "conflict", "files": ["same.txt"]}
        tip = stack.ledger.row("t")["tip_commit"]

        stack.command(intervene.resume, "t")

        done = result.get(timeout=30)
    assert done["status"] == "completed"
    assert stack.ledger.step(refs["b"])["start_commit"] == tip
    assert stack.ledger.step(refs["b"])["attempt"] == 1, "a conflict is no broken attempt"
    (mirror,) = {built.mirror for built in stack.wiring.workspaces.mirrors.built()}
    repository = stack.wiring.workspaces.mirrors.git(mirror)
    assert repository.text("show", f"{done['commit']}:same.txt").strip() == "b"
    assert repository.text("rev-list", "--count", f"{done['base_commit']}..{done['commit']}").strip() == "3"
    stack.ledger.assert_consistent("t")
