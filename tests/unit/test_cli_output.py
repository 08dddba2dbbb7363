from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from orchestrator.cli import request, session
from orchestrator.cli.codes import ExitCode, code_of, code_of_task, report
from orchestrator.cli.events import aside, told
from orchestrator.cli.main import app
from orchestrator.cli.terminal import clean, span
from orchestrator.core.errors import (
    Conflict,
    Denied,
    OrchestratorError,
    Problem,
    Refused,
    Unavailable,
    Unknown,
)
from orchestrator.local.credentials import new_api_key

OPTIONS = """
description steps repo branch push title priority mode agent model requirements deadline stakeholders labels
budget timeout external_id id hold credential gates depends_on project validate_only
question_timeout on_silence ask_before
"""
NOTHING = dict.fromkeys(OPTIONS.split())


@pytest.mark.parametrize(
    "evil", ["\x1b[2J", "\x9b2J", "\x07", "\r", "\u202e", "\u2066", "\x7f", "\x00", "\u2028", "\ufeff"]
)
def test_no_character_that_a_terminal_obeys_gets_through(evil: str) -> None:
    assert evil[0] not in clean(f"before {evil} after")


def test_text_lines_and_tabs_stay_as_they_are() -> None:
    text = "naïve 日本語 ✓\n\tindented"
    assert clean(text) == text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (59, "59s"),
        (61, "1m01s"),
        (3700, "1h01m"),
        (200_000, "2d"),
        (-5, "0.0s"),
    ],
)
def test_spans_are_short(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OrchestratorError("x", "x"), 1),
        (Unavailable("database-unavailable", "x"), 1),
        (Refused("x", "x"), 2),
        (Unavailable("wait-timed-out", "x"), 3),
        (Denied("x", "x"), 4),
        (Unknown("x", "x"), 5),
        (Conflict("x", "x"), 6),
        (Unavailable("api-unreachable", "x"), 7),
    ],
)
def test_each_kind_of_error_has_its_documented_exit_code(error: OrchestratorError, code: int) -> None:
    assert code_of(error) == code


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        ("completed", {"type": "completed"}, ExitCode.OK),
        ("completed", {"type": "partially_completed", "gaps": ["b"]}, ExitCode.PARTIAL),
        ("failed", {"type": "failed"}, ExitCode.FAILED),
        ("cancelled", None, ExitCode.CANCELLED),
        ("pending_input", None, ExitCode.WAITS),
        ("running", None, ExitCode.OK),
    ],
)
def test_each_end_of_a_task_has_its_documented_exit_code(
    status: str, outcome: dict[str, object] | None, code: ExitCode
) -> None:
    assert code_of_task({"status": status, "outcome": outcome}) == code


def test_faults_of_a_request_are_told_by_their_place(capsys: pytest.CaptureFixture[str]) -> None:
    from_server = Refused("plan-invalid", "No.", "Do this.", (Problem("/steps/0/needs/1", "x", "unknown"),))

    report(from_server)

    assert capsys.readouterr().err == (
        "✗ No.\n  /steps/0/needs/1: unknown\n  Do this.\n"
        "  code plan-invalid · exit 2 · orchestrator explain plan-invalid\n"
    )


def test_options_go_before_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(
        '{"description": "d", "title": "old", "repository": {"url": "https://x/y", "branch": "b"}}'
    )
    built = request.build(file, {**NOTHING, "title": "new", "repo": str(tmp_path), "budget": "2.00"})

    assert built == {
        "description": "d",
        "title": "new",
        "repository": {"path": str(tmp_path), "branch": "b"},
        "budget": {"max_cost_usd": "2.00"},
    }


def test_a_name_with_a_colon_is_an_address_and_no_path() -> None:
    assert request.build(None, {**NOTHING, "repo": "git@host:a/b"})["repository"] == {"url": "git@host:a/b"}


def test_events_that_say_nothing_to_people_are_not_told() -> None:
    event = {"name": "turn", "at": "2026-01-01T00:00:00Z", "step_number": 1, "step_key": "a", "data": {}}

    assert told("progress", event) is None
    assert told("phase", event) is None
    assert told("of a later version", event) is None


def test_a_budget_that_is_nearly_used_up_is_told_part_by_part() -> None:
    spent = {"cost_usd": "0.42", "tokens": 202000, "turns": 2}
    event = {
        "name": "budget",
        "data": {"spent": spent, "budget": {"max_cost_usd": "0.5", "max_tokens": 250000}},
    }

    expected = "! the budget is nearly used up: $0.42 of $0.50, 202,000 of 250,000 tokens"
    assert told("progress", event) == expected


def test_a_budget_that_is_used_up_is_not_called_nearly_so() -> None:
    event = {"name": "budget", "data": {"spent": {"cost_usd": "0.21"}, "budget": {"max_cost_usd": "0.15"}}}

    assert told("progress", event) == "! the budget is used up: $0.21 of $0.15"


LESS = "Instead of engine (failed here once), codex (can't: not installed)"


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        (
            "model",
            {"model": "gpt-5", "reason": "claude failed: model-overloaded"},
            "· model gpt-5: claude failed: model-overloaded",
        ),
        (
            "compacted",
            {"tokens_before": 23456, "tokens_after": 9000, "summary": None},
            "· the conversation got long: older outputs are sent in short, about 23,456 → 9,000 tokens",
        ),
        (
            "compacted",
            {"tokens_before": 23456, "tokens_after": 900, "summary": "It counts."},
            "· the conversation got long: a summary stands for older turns, about 23,456 → 900 tokens",
        ),
        ("stuck", {"what": "the same call", "rung": 1}, "! the agent goes in circles: the same call"),
        ("tools", {"problem": "MCP server lint: no\x1b[2J"}, "! MCP server lint: no\\x1b[2J"),
        (
            "agent",
            {"agent": "claude-code", "reason": f"preferred. {LESS}", "attempt": 2},
            f"· agent claude-code: preferred. {LESS}",
        ),
    ],
)
def test_what_changes_how_an_agent_works_is_told_and_stays_above_the_picture(
    name: str, data: dict[str, object], line: str
) -> None:
    event = {"name": name, "at": "", "step_number": 2, "step_key": "test", "data": data}

    assert told("progress", event) == aside("progress", event) == f"step 2 test {line}"


def test_the_first_choice_of_an_agent_is_told_in_short_and_not_above_the_picture() -> None:
    data = {"agent": "engine", "reason": f"preferred. {LESS}", "attempt": 1}
    event = {"name": "agent", "at": "", "step_number": 2, "step_key": "test", "data": data}

    assert told("progress", event) == "step 2 test · agent engine: preferred"
    assert aside("progress", event) is None


def test_a_call_that_failed_is_told_by_its_name() -> None:
    data = {"name": "mcp__lint__check", "state": "finished", "is_error": True}
    event = {"name": "tool", "at": "", "step_number": 2, "step_key": "test", "data": data}

    assert told("progress", event) == "step 2 test ✗ mcp__lint__check failed"
    assert told("progress", {**event, "data": {**data, "is_error": False}}) is None


def test_a_tool_call_is_told_with_what_it_works_on_and_in_one_line() -> None:
    data = {"name": "run_command", "state": "started", "arguments": {"command": "pytest\x1b[2J -q\nrm"}}
    event = {"name": "tool", "at": "", "step_number": 2, "step_key": "test", "data": data}

    assert told("progress", event) == "step 2 test run_command pytest\\x1b[2J -q rm"


def test_a_key_that_is_kept_for_one_server_is_sent_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "orchestrator" / "credentials.toml"
    kept.parent.mkdir()
    kept.write_text(f'api_url = "https://mine.example"\napi_key = "{new_api_key()}"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("ORCHESTRATOR_API_KEY", "ORCHESTRATOR_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)

    sent = {}
    for url in (
        "https://mine.example",
        "http://127.0.0.1:9",
        "http://127.0.0.1.evil.example",
        "https://other.example",
    ):
        monkeypatch.setenv("ORCHESTRATOR_API_URL", url)
        client = session.client()
        sent[url] = "Authorization" in client._http.headers
        client.close()

    assert sent == {
        "https://mine.example": True,
        "http://127.0.0.1:9": True,
        "http://127.0.0.1.evil.example": False,
        "https://other.example": False,
    }


PROCESSES = {"worker", "beat", "api", "gateway", "flower", "model-server"}
"""They become other programs, which write logs."""


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child, found in children.items():
        yield from commands(f"{name} {child}".strip(), found)


@pytest.mark.parametrize(("name", "command"), [*commands("", typer.main.get_command(app))])
def test_every_command_prints_json_on_request(name: str, command: Any) -> None:
    options = {word for parameter in command.params for word in parameter.opts}
    assert ("--json" in options) is (name not in PROCESSES), name
