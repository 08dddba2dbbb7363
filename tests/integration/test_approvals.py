"""Answers by the kind of the question: leave for a call, and more budget."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.agents.claude_leave import QUESTION, RISKS as CLAUDE_RISKS
from orchestrator.commands import answer, request, subtask
from orchestrator.commands.subtask import Bounds, Call
from orchestrator.core import leave
from orchestrator.core.errors import Conflict, Refused
from orchestrator.core.states import WaitingOn
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.core.verdict import Ask
from orchestrator.db import effects
from orchestrator.db.sql import StepRef
from orchestrator.engine.tools import toolbox
from orchestrator.engine.tools.policy import ToolPolicy
from orchestrator.engine.web import HostPolicy
from orchestrator.tasks.attempt import _approvals
from tests.integration.ledger import TENANT, Ledger, step

DIGEST = "ab" * 32
ASKS = {
    WaitingOn.TOOL_APPROVAL: Ask(
        "call_1", "May I?", ("Approve", "Deny"), WaitingOn.TOOL_APPROVAL, subject_digest=DIGEST
    ),
    WaitingOn.BUDGET: Ask("budget-1", "It is used up.", ("Raise", "Stop"), WaitingOn.BUDGET),
}


def asking(ledger: Ledger, kind: WaitingOn, task_id: str = "t", **body: Any) -> StepRef:
    claimed = ledger.take(ledger.task(task_id, **body)["work"])
    ledger.do(lambda c: effects.ask(c, claimed.step, claimed.fence, ASKS[kind]))
    return claimed.step


def say(ledger: Ledger, given: Any, subject: str = "t") -> str:
    return ledger.do(lambda c: answer.answer(c, TENANT, subject, given, by="me")).answer


def refused(ledger: Ledger, given: Any) -> str:
    with pytest.raises(Refused) as found:
        say(ledger, given)
    assert found.value.code == "answer-invalid"
    assert ledger.rows("SELECT id FROM questions WHERE answered_at IS NOT NULL") == []
    return found.value.message


# --- approvals ----------------------------------------------------------------------------------------------


def test_an_approval_waits_as_one_and_knows_what_it_is_for(ledger: Ledger) -> None:
    ref = asking(ledger, WaitingOn.TOOL_APPROVAL)
    assert (ledger.row()["status"], ledger.row()["waiting_on"]) == ("pending_input", "tool_approval")
    question = ledger.question(ref)
    assert (question["kind"], question["subject_digest"]) == ("tool_approval", DIGEST)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Approve", "Approve"),
        (" approve ", "Approve"),
        ({"choice": 1}, "Approve"),
        ({"text": "APPROVE"}, "Approve"),
        ("deny", "Deny"),
        ({"choice": 2}, "Deny"),
        ("Deny: use the other file", "Deny: use the other file"),
        ("deny, and stop asking", "Deny: and stop asking"),
    ],
)
def test_an_approval_takes_one_of_two_words(ledger: Ledger, given: Any, kept: str) -> None:
    ref = asking(ledger, WaitingOn.TOOL_APPROVAL)
    assert say(ledger, given) == kept
    assert ledger.question(ref)["answer"] == {"text": kept}
    assert ledger.step(ref)["status"] == "queued"
    (event,) = ledger.rows("SELECT data FROM events WHERE name = 'answer'")
    assert event["data"]["kind"] == "tool_approval"


@pytest.mark.parametrize(
    "given", ["yes", "ok", "Approved", "Approve, if it is safe", "Approve everything", "denyx", {"choice": 3}]
)
def test_what_is_neither_is_refused(ledger: Ledger, given: Any) -> None:
    """No condition, no near miss: consent is that word."""
    asking(ledger, WaitingOn.TOOL_APPROVAL)
    assert "neither Approve nor Deny" in refused(ledger, given) or given == {"choice": 3}


def test_what_needs_leave_is_asked_for_with_the_task_and_goes_down_the_tree(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("t", agent={"tool_approval": ["execute", "forge.push"]})["work"])
    assert claimed.approvals == ["execute", "forge.push"]
    call = Call(claimed.step, claimed.fence, 0, None)
    (started,) = ledger.do(
        lambda c: subtask.start(
            c,
            call,
            [SubtaskRequest("a", "x")],
            bounds=Bounds(3, 20, 100),
            agent_types=frozenset(),
            models=frozenset(),
        )
    )
    assert ledger.take(ledger.steps(started.task.task_id)["work"]).approvals == claimed.approvals
    assert ledger.take(ledger.task("other")["work"]).approvals is None


def test_a_star_means_every_class_of_risk() -> None:
    every = ("read", "write", "execute", "network", "delegate")
    assert _approvals(("run_command", "*", "read")) == ("run_command", *every)


@pytest.mark.parametrize(
    "wrong", ["", "a b", "rm -rf", "\u202eread", ["read"], "exectue", "bash", "run_comand"]
)
def test_a_name_that_no_tool_has_is_refused(wrong: Any) -> None:
    with pytest.raises(Refused, match=r"agent\.tool_approval"):
        request.parse({"description": "x", "agent": {"tool_approval": [wrong]}})


def test_a_misspelt_name_is_told_which_there_are_and_a_servers_tool_may_have_any() -> None:
    with pytest.raises(Refused, match="did you mean execute") as found:
        request.parse({"description": "x", "agent": {"tool_approval": ["exectue"]}})
    assert all(
        name in found.value.message for name in ("network", "run_command", "Bash", "mcp__server__tool")
    )
    asked = ["*", "Bash", "apply_patch", "mcp__docs__search", "forge__push", "forge.push"]
    parsed = request.parse({"description": "x", "agent": {"tool_approval": asked}})
    assert parsed.agent.tool_approval == asked


def test_each_tool_of_ours_and_of_claude_code_may_need_leave() -> None:
    hosts = HostPolicy(("docs.test",))
    ours = [
        tool.name for tool in toolbox(ToolPolicy(hosts, subtasks=True)).values() if not tool.touches_nothing
    ]
    assert set(ours) <= set(leave.ENGINE_TOOLS)
    assert set(leave.ENGINE_TOOLS) <= set(toolbox(ToolPolicy(hosts, subtasks=True)))
    assert set(CLAUDE_RISKS) - {QUESTION} <= set(leave.CLAUDE_CODE_TOOLS)


# --- more budget --------------------------------------------------------------------------------------------

BUDGET = {"budget": {"max_cost_usd": "5", "max_tokens": 1000}}


@pytest.mark.parametrize(
    ("given", "raised", "kept"),
    [
        ("10", {"max_cost_usd": "10", "max_tokens": 1000}, "Raised to $10.00"),
        ("$7.50", {"max_cost_usd": "7.50", "max_tokens": 1000}, "Raised to $7.50"),
        (
            "10 USD, 5_000 tokens",
            {"max_cost_usd": "10", "max_tokens": 5000},
            "Raised to $10.00, 5,000 tokens",
        ),
        ({"max_tokens": 2000}, {"max_cost_usd": "5", "max_tokens": 2000}, "Raised to 2,000 tokens"),
        (
            "1,000, 2,500 tokens",
            {"max_cost_usd": "1000", "max_tokens": 2500},
            "Raised to $1000.00, 2,500 tokens",
        ),
        ({"text": "6 dollars"}, {"max_cost_usd": "6", "max_tokens": 1000}, "Raised to $6.00"),
    ],
)
def test_a_raise_binds_from_the_same_transaction_on(
    ledger: Ledger, given: Any, raised: dict[str, Any], kept: str
) -> None:
    ref = asking(ledger, WaitingOn.BUDGET, **BUDGET)
    assert ledger.row()["waiting_on"] == "budget"
    assert say(ledger, given) == kept
    assert ledger.row()["budget"] == raised
    assert ledger.take(ref).budget == raised
    ledger.assert_consistent()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("5", "not more than the 5"),
        ("0", "greater than 0"),
        ("-3", "no amount"),
        ("a lot", "no amount"),
        ({"choice": 1}, "'Raise' is no amount"),
        ("300 turns", "no max_turns; it has max_cost_usd 5, max_tokens 1000"),
        ("999999999", "less than or equal to 100000"),
        ({"max_tokens": 1000}, "not more than the 1000"),
        ({"max_tokens": "many"}, "max_tokens"),
        ("NaN", "no amount"),
        ("€10", "'€10' is no amount"),
        ("7,50", "'7,50' is no amount"),
        ("7 USD, 8 USD", "says max_cost_usd twice"),
        ({"max_cost_usd": None}, "has no amount"),
    ],
)
def test_what_raises_nothing_is_refused(ledger: Ledger, given: Any, says: str) -> None:
    asking(ledger, WaitingOn.BUDGET, **BUDGET)
    assert says in refused(ledger, given)
    assert ledger.row()["budget"] == BUDGET["budget"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("6", "max_cost_usd 6 is not more than the 6.25"),
        ("6.25", "not more than the 6.25"),
        ("10 USD, 1500 tokens", "max_tokens 1500 is not more than the 1500 that are spent already"),
    ],
)
def test_a_raise_to_no_more_than_is_spent_is_refused(ledger: Ledger, given: str, says: str) -> None:
    """Calls in flight may spend more than the bound; below that a raise would only ask again."""
    asking(ledger, WaitingOn.BUDGET, **BUDGET)
    ledger.run(
        "INSERT INTO budgets (tenant_id, root_id, spent_usd, spent_tokens, calls)"
        " VALUES (:tenant, 't', 6.25, 1500, 2)",
        tenant=TENANT,
    )
    assert says in refused(ledger, given)
    assert ledger.row()["budget"] == BUDGET["budget"]
    assert say(ledger, "6.26") == "Raised to $6.26"


def test_two_steps_that_ask_for_the_same_budget_go_on_by_the_same_answer(ledger: Ledger) -> None:
    refs = ledger.task("t", step("a"), step("b"), **BUDGET)
    for ref in refs.values():
        claimed = ledger.take(ref)
        ledger.do(lambda c, at=claimed: effects.ask(c, at.step, at.fence, ASKS[WaitingOn.BUDGET]))
    first, second = (ledger.question(ref)["id"] for ref in refs.values())
    assert say(ledger, "10", first) == "Raised to $10.00"
    with pytest.raises(Refused, match="9 is not more than the 10"):
        say(ledger, "9", second)
    assert say(ledger, "10", second) == "Raised to $10.00"
    assert ledger.row()["budget"]["max_cost_usd"] == "10"
    assert ledger.row()["open_questions"] == 0
    ledger.assert_consistent()


@pytest.mark.parametrize("given", ["Stop", "stop", {"choice": 2}])
def test_whoever_says_stop_ends_the_step(ledger: Ledger, given: Any) -> None:
    ref = asking(ledger, WaitingOn.BUDGET, **BUDGET)
    assert say(ledger, given) == "Stop"
    assert ledger.step(ref)["error"]["code"] == "budget-refused"
    assert ledger.row()["outcome"]["reason"] == "budget-refused"
    assert (ledger.row()["open_questions"], ledger.question(ref)["withdrawn_at"]) == (0, None)
    assert ledger.rows("SELECT outcome FROM attempts") == [{"outcome": "failed"}]
    with pytest.raises(Conflict, match="answered by me: Stop"):
        say(ledger, "10", ledger.question(ref)["id"])
    assert ledger.row()["budget"] == BUDGET["budget"]
    ledger.assert_consistent()


def test_a_second_raise_is_refused_and_raises_nothing(ledger: Ledger) -> None:
    ref = asking(ledger, WaitingOn.BUDGET, **BUDGET)
    say(ledger, "10")
    with pytest.raises(Conflict, match=r"Raised to \$10.00"):
        say(ledger, "20", ledger.question(ref)["id"])
    assert ledger.row()["budget"]["max_cost_usd"] == "10"


def test_a_subtask_s_question_raises_the_budget_of_the_whole_tree(ledger: Ledger) -> None:
    claimed = ledger.take(ledger.task("t", **BUDGET)["work"])
    call = Call(claimed.step, claimed.fence, 0, None)
    (started,) = ledger.do(
        lambda c: subtask.start(
            c,
            call,
            [SubtaskRequest("a", "x")],
            bounds=Bounds(3, 20, 100),
            agent_types=frozenset(),
            models=frozenset(),
        )
    )
    child = ledger.take(ledger.steps(started.task.task_id)["work"])
    ledger.do(lambda c: effects.ask(c, child.step, child.fence, ASKS[WaitingOn.BUDGET]))
    say(ledger, "10", started.task.task_id)
    assert ledger.row("t")["budget"]["max_cost_usd"] == "10"
    assert ledger.row(started.task.task_id)["budget"] == {}
