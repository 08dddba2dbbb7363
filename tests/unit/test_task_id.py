from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings, strategies as st

from orchestrator.core import task_id

AWKWARD = st.text("ab.:lock-", max_size=12).map(lambda rest: f"x{rest}")
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}", fullmatch=True) | AWKWARD


@given(IDS)
@settings(max_examples=150, deadline=None)
def test_every_id_that_is_accepted_can_be_a_branch_and_a_folder(text: str) -> None:
    assert task_id.is_task_id(text)
    branch = task_id.branch(text)
    checked = subprocess.run(["git", "check-ref-format", f"refs/heads/{branch}"], check=False)
    assert checked.returncode == 0, branch
    assert len(branch) == len("agent/") + len(text), "no id becomes too long for a file"
    assert task_id.read(task_id.spelled(text)) == text, "two ids never share a branch"
    assert not set(task_id.spelled(text)) & set(":/")


@pytest.mark.parametrize(
    ("text", "branch"),
    [
        ("task_01M7ZC93FK5KWMQ8D21QQ0A40H", "agent/task_01M7ZC93FK5KWMQ8D21QQ0A40H"),
        ("workflow_123_456", "agent/workflow_123_456"),
        ("seed:1.2", "agent/seed+1.2"),
        ("a..b", "agent/a=.b"),
        ("a.lock", "agent/a=lock"),
        ("end.", "agent/end="),
    ],
)
def test_an_id_stays_readable_in_its_branch(text: str, branch: str) -> None:
    assert task_id.branch(text) == branch


@pytest.mark.parametrize(
    "text", ["", ".", "-x", ":x", "a/b", "a b", "a\n", "é", "x" * 81, "a+b", "a=b", 7, None]
)
def test_what_can_not_be_an_id_is_none(text: object) -> None:
    assert not task_id.is_task_id(text)
