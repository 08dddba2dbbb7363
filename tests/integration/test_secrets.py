"""A secret that is put into every field that takes words is found in nothing that is kept or sent."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.commands import answer, intervene
from orchestrator.tasks.registry import register
from tests.integration.harness import SECRET
from tests.integration.repositories import git, repository
from tests.integration.stack import Stack, until, worker

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("write_file", {"path": "one.txt", "content": "one\n"}),
    ("run_command", {"command": "true " + "." * 180 + " $SECRET; echo $SECRET"}),
    ("ask_followup_question", {"question": "Is $SECRET the key?", "options": ["$SECRET", "no"]}),
    (
        "attempt_completion",
        {"summary": "Used $SECRET for it.", "result": {"key": "$SECRET", "in": ["$SECRET"]}},
    ),
]
REQUEST: dict[str, Any] = {
    "title": f"Title {SECRET}",
    "description": f"Description {SECRET}",
    "requirements": [f"Requirement {SECRET}"],
    "stakeholders": [f"Stakeholder {SECRET}"],
    "labels": {"label": f"value {SECRET}", f"name {SECRET}": "value"},
    "external_id": f"external {SECRET}",
    "x_own": {"deep": [SECRET]},
    "steps": [
        {"id": "a", "description": f"Step {SECRET}", "spec": {"do": "script", "calls": CALLS, "own": SECRET}},
        {"id": "b", "description": "B", "needs": ["a"], "spec": {"do": "break"}},
    ],
}


def kept(stack: Stack) -> dict[str, str]:
    """Every row of every table, as text."""
    tables = stack.ledger.rows("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
    found = {}
    for name in (row["name"] for row in tables):
        lines = stack.ledger.rows(f'SELECT row_to_json(t)::text AS line FROM "{name}" t')
        found[name] = "\n".join(row["line"] for row in lines)
    return found


def in_redis(stack: Stack) -> str:
    """Messages that wait, results, and what Celery keeps beside them."""
    read = {
        b"list": lambda key: stack.redis.lrange(key, 0, -1),
        b"set": stack.redis.smembers,
        b"zset": lambda key: stack.redis.zrange(key, 0, -1),
        b"hash": stack.redis.hgetall,
        b"string": stack.redis.get,
    }
    return "\n".join(f"{key} {read[stack.redis.type(key)](key)}" for key in stack.redis.scan_iter())


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes().decode("utf-8", "replace") for path in found}


def test_a_secret_in_any_field_is_found_in_no_row_message_result_artifact_commit_or_log(
    stack: Stack, tmp_path: Path
) -> None:
    source = repository(tmp_path / "source", {"README.md": "A project.\n"})
    request = {**REQUEST, "repository": {"path": str(source), "push": True}}
    stack.call(request, task_id="t")
    assert in_redis(stack), "the message waits"
    assert SECRET not in in_redis(stack)
    with worker(stack) as process:
        until(lambda: stack.ledger.rows("SELECT 1 FROM questions"), "the question")
        stack.command(intervene.pause, "t", reason=f"pause {SECRET}")
        given = stack.command(answer.answer, "t", f"answer {SECRET}")
        stack.command(intervene.resume, "t", reason=f"resume {SECRET}")
        assert stack.ends("t") == "failed"
        stack.command(intervene.retry, "t", reason=f"retry {SECRET}")
        until(lambda: stack.ledger.row("t")["open_questions"], "the question again")
        stack.command(intervene.cancel, "t", reason=f"cancel {SECRET}")
        assert stack.ends("t") == "cancelled"
        log = process.text()
    rows = kept(stack)
    for table, words in {
        "tasks": ("Title [redacted]", "Requirement [redacted]", "Stakeholder [redacted]", "value [redacted]"),
        "steps": ("Step [redacted]", "Used [redacted] for it."),
        "questions": ("Is [redacted] the key?", "answer [redacted]"),
        "interventions": ("pause [redacted]", "resume [redacted]", "retry [redacted]", "cancel [redacted]"),
        "events": ("Is [redacted] the key?", "cancel [redacted]"),
        "turns": ("[redacted]",),
        "logs": ("[redacted]",),
    }.items():
        for word in words:
            assert word in rows[table], (table, word)
    assert given.answer == "answer [redacted]"
    for table, text in rows.items():
        assert SECRET not in text, table
    assert SECRET not in in_redis(stack)
    assert SECRET not in log
    for place in ("artifacts", "mirrors"):
        for name, text in files(stack.folder / place).items():
            assert SECRET not in text, name
    (mirror,) = (stack.folder / "mirrors").glob("*.git")
    messages = git(mirror, "log", "--all", "--format=%B")
    assert "Used [redacted] for it." in messages
    assert SECRET not in messages


def test_a_producer_without_a_database_sends_its_request_without_the_secret(stack: Stack) -> None:
    alone = replace(stack.wiring, database_url=None)
    try:
        register(alone).execute_task.apply_async((REQUEST,), task_id="t")
        (waiting,) = (json.loads(line) for line in stack.redis.lrange("orchestrator.medium", 0, -1))
        body = b64decode(waiting["body"]).decode()
        assert "Description [redacted]" in body
        assert SECRET not in body
    finally:
        alone.app.close()
