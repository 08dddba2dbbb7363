from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

import orchestrator
from orchestrator.agents.types import AGENT_TYPES, Capability
from orchestrator.api.explanations import EXPLANATIONS
from orchestrator.core.errors import Refused
from orchestrator.core.states import WAITS_FOR_MACHINE, WAITS_FOR_PERSON, WAITS_QUEUED, Status
from orchestrator.queries.artifacts import changes
from orchestrator.queries.costs import UNCOUNTED
from orchestrator.queries.cursor import decode, encode
from orchestrator.queries.display import display
from orchestrator.queries.steps import current_step, fraction

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
PACKAGE = Path(orchestrator.__file__).parent


def test_a_cursor_gives_back_what_it_was_made_of_to_the_microsecond() -> None:
    cursor = encode(AT, "task_1", {"status": "failed"}, b"secret")
    assert decode(cursor, {"status": "failed"}, b"secret") == (AT, "task_1")


@pytest.mark.parametrize("place", range(0, 60, 7))
def test_a_cursor_that_was_touched_anywhere_is_refused(place: int) -> None:
    cursor = encode(AT, "task_1", {}, b"secret")
    touched = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
    with pytest.raises(Refused):
        decode(touched, {}, b"secret")


@pytest.mark.parametrize("cursor", ["", "x", "é", "====", "AAAA", "A" * 400])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(Refused, match="cursor-invalid"):
        decode(cursor, {}, b"secret")


ALL_WAITS = [
    (status, waiting_on)
    for status, waits in (
        (Status.PENDING_INPUT, WAITS_FOR_PERSON),
        (Status.RUNNING, WAITS_FOR_MACHINE),
        (Status.QUEUED, WAITS_QUEUED),
    )
    for waiting_on in sorted(waits)
]


@pytest.mark.parametrize(("status", "waiting_on"), [*((status, None) for status in Status), *ALL_WAITS])
def test_every_state_is_shown_with_a_sentence(status: Status, waiting_on: str | None) -> None:
    shown = display(status, waiting_on, None)
    assert shown.label
    assert shown.tone in {"neutral", "active", "attention", "good", "bad"}
    assert re.fullmatch(r"[A-Z].*[.!?]", shown.why)


def test_what_waits_for_a_person_asks_for_attention() -> None:
    assert {display("pending_input", wait, None).tone for wait in WAITS_FOR_PERSON} == {"attention"}


def test_a_failure_is_explained_by_its_own_reason() -> None:
    outcome = {"type": "failed", "reason": "poison", "message": "The worker was lost.", "step": "build"}
    assert display("failed", None, outcome).why == "Step build: The worker was lost (poison)."


def test_a_cancelled_task_that_still_runs_is_shown_as_cancelling() -> None:
    assert display("running", None, None, cancel_requested=True).label == "cancelling"
    assert display("cancelled", None, None, cancel_requested=True).label == "cancelled"


def test_the_current_step_is_the_first_that_runs_then_the_first_that_asks() -> None:
    assert current_step([(1, "completed"), (2, "pending_input"), (3, "running")]) == 3
    assert current_step([(1, "completed"), (2, "queued"), (3, "pending_input")]) == 3
    assert current_step([(1, "completed"), (2, "failed")]) is None


def test_progress_is_full_when_completed_even_with_gaps() -> None:
    assert [fraction("running", 1, 3), fraction("completed", 1, 3), fraction("queued", 0, 0)] == [
        0.3333,
        1.0,
        0.0,
    ]


def test_lines_of_a_patch_that_look_like_headers_are_counted_as_lines() -> None:
    patch = (
        "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n--- a/fake\n+++ b/fake\n context\n"
        "diff --git a/old name b/new name\nsimilarity index 90%\nrename from old name\nrename to new name\n"
        "@@ -1 +1 @@\n-diff --git a/no b/no\n+\u2028form\x0cfeed\n"
    )
    assert [
        (file.path, file.old_path, file.status, file.additions, file.deletions) for file in changes(patch)
    ] == [
        ("x", None, "modified", 1, 1),
        ("new name", "old name", "renamed", 1, 1),
    ]


def test_text_that_is_no_patch_changes_nothing() -> None:
    assert changes("") == ()
    assert changes("@@ -1 +1 @@\n+x\nnot a patch") == ()


RAISED = re.compile(r'(?:Refused|Unavailable|Unknown|Conflict|Denied)\(\s*"([a-z]+(?:-[a-z]+)+)"')


def test_every_code_that_is_raised_anywhere_is_explained() -> None:
    raised = {code for file in PACKAGE.rglob("*.py") for code in RAISED.findall(file.read_text("utf-8"))}

    assert len(raised) > 40
    assert sorted(raised - set(EXPLANATIONS)) == []


def test_the_kinds_of_agent_that_spend_unseen_are_known() -> None:
    live = [kind for kind in AGENT_TYPES.values() if kind.model_kind == "live"]
    assert set(UNCOUNTED) == {kind.name for kind in live if Capability.USAGE not in kind.capabilities}
