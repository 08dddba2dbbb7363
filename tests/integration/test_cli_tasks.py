from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands.keys import Scope
from orchestrator.core.states import Event, WaitingOn
from orchestrator.core.verdict import Ask
from orchestrator.db import agents, claims, effects
from orchestrator.db.agents import Slot
from orchestrator.db.claims import Claimed
from orchestrator.db.completion import succeed
from orchestrator.db.effects import LogChunk, StoredFile, add_artifact, append_logs
from orchestrator.db.events import EventDraft
from orchestrator.db.sql import StepRef, TaskRef
from orchestrator.db.transitions import fail, park, retry_later, wait_in_queue
from orchestrator.db.waking import due
from tests.integration.api_server import Door, migrated, served, wired
from tests.servers import PostgresServer

PROGRAM = (sys.executable, "-m", "orchestrator")


@pytest.fixture(scope="module")
def door(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with served(wired(migrated(postgres_server), tmp_path_factory.mktemp("api"))) as open_door:
        yield open_door


def environment(door: Door, **changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    return {
        **kept,
        "ORCHESTRATOR_API_URL": door.url,
        "ORCHESTRATOR_API_KEY": door.key,
        "XDG_CONFIG_HOME": "/nonexistent",
        **changes,
    }


def run(
    door: Door, *words: str, stdin: str = "", changes: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words],
        env=environment(door, **(changes or {})),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def claim(door: Door, task: dict[str, Any]) -> Claimed:
    step = StepRef("default", task["id"], task["workflow"]["id"], task["steps"][0]["id"])
    with door.wiring.engine.begin() as connection:
        claimed = claims.claim(
            connection, step, lease=timedelta(minutes=1), agent_id="agent-1@here/1", signature=None
        )
    assert isinstance(claimed, Claimed)
    return claimed


def ask(door: Door, task: dict[str, Any]) -> None:
    claimed = claim(door, task)
    question = Ask("call_1", "Keep \x1b[31mthe flag?", ("Yes", "No"))
    with door.wiring.engine.begin() as connection:
        assert effects.ask(connection, claimed.step, claimed.fence, question)


def complete(door: Door, claimed: Claimed) -> None:
    with door.wiring.engine.begin() as connection:
        assert succeed(connection, claimed.step, claimed.fence, summary="All well", result={})


def test_a_created_task_is_one_id_on_stdout_and_the_next_command_on_stderr(door: Door) -> None:
    done = run(door, "task", "create", "-d", "Fix the reader", "--label", "team=a", "--priority", "high")

    assert done.returncode == 0
    task = door.get(f"/tasks/{done.stdout.strip()}")
    assert (task["title"], task["labels"], task["priority"]) == ("Fix the reader", {"team": "a"}, "high")
    assert f"orchestrator task watch {task['id']}" in done.stderr


def test_a_task_is_described_by_stdin_a_file_or_a_whole_request(door: Door, tmp_path: Path) -> None:
    request, plan, text = tmp_path / "task.json", tmp_path / "plan.json", tmp_path / "text"
    request.write_text(json.dumps({"description": "From a file", "priority": "low", "labels": {"a": "b"}}))
    plan.write_text(json.dumps([{"id": "one", "description": "1"}]))
    text.write_text("From text")

    said = [
        run(door, "task", "create", "-d", "-", "--json", stdin="From stdin"),
        run(door, "task", "create", "-d", f"@{text}", "--json"),
        run(door, "task", "create", "-f", str(request), "--steps", str(plan), "--priority", "high", "--json"),
    ]

    tasks = [json.loads(one.stdout) for one in said]
    assert [task["description"] for task in tasks] == ["From stdin", "From text", "From a file"]
    assert [step["key"] for step in tasks[2]["steps"]] == ["one"]
    assert (tasks[2]["priority"], json.loads(said[2].stdout)) == (
        "high",
        door.get(f"/tasks/{tasks[2]['id']}"),
    )


def test_bytes_that_are_no_text_are_refused_without_a_traceback(door: Door) -> None:
    done = subprocess.run(
        [*PROGRAM, "task", "create", "-d", "-"],
        env=environment(door, PYTHONUTF8="1", PYTHONIOENCODING="utf-8:surrogateescape"),
        input=b"\xff\xfe",
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.decode().startswith("✗ Can't read stdin (it is not UTF-8).")


def test_a_code_that_is_nearly_one_is_found(door: Door) -> None:
    assert "Did you mean: model-overloaded" in run(door, "explain", "modle-overloaded").stderr


def test_a_path_that_is_there_is_a_repository_on_this_machine(door: Door, tmp_path: Path) -> None:
    done = run(door, "task", "create", "-d", "x", "--repo", str(tmp_path), "--branch", "main", "--json")

    task = json.loads(done.stdout)
    assert (task["repository_url"], task["repository_branch"]) == (str(tmp_path), "main")


@pytest.mark.parametrize(
    ("words", "changes", "exit_code", "code"),
    [
        (("task", "create"), {}, 2, "request-invalid"),
        (("task", "create", "-d", " "), {}, 2, "option-invalid"),
        (("task", "create", "-d", "-"), {}, 2, "option-invalid"),
        (("task", "create", "-d", "\udcff"), {"PYTHONUTF8": "1"}, 2, "option-invalid"),
        (("task", "list", "-q", "\udcff"), {"PYTHONUTF8": "1"}, 2, "option-invalid"),
        (("task", "create", "-d", "x", "--mode", "strict"), {}, 2, "mode-unavailable"),
        (("task", "create", "-d", "x", "--priority", "urgent"), {}, 2, "request-invalid"),
        (("task", "create", "-d", "x", "--id", "a/b"), {}, 2, "request-invalid"),
        (("task", "create", "-d", "x", "--credential", "forge", "--repo", "/"), {}, 2, "request-invalid"),
        (("task", "create", "-d", "x", "--gate", "tests"), {}, 2, "mode-unavailable"),
        (("task", "create", "-d", "x", "--depends-on", "y"), {}, 2, "mode-unavailable"),
        (("task", "create", "-d", "x", "--project", "web"), {}, 2, "mode-unavailable"),
        (("task", "create", "-d", "x", "--validate-only"), {}, 2, "mode-unavailable"),
        (("task", "create", "-d", "x", "--agent", "cursor"), {}, 2, "agent-unknown"),
        (("task", "retry", "none", "--from", "step:2"), {}, 5, "task-unknown"),
        (("task", "create", "-d", "x", "-f", "/nonexistent"), {}, 2, "file-unreadable"),
        (("task", "create", "-d", "x", "--label", "team"), {}, 2, "option-invalid"),
        (("task", "list", "--since", "yesterday"), {}, 2, "option-invalid"),
        (("task", "status", "none"), {}, 5, "task-unknown"),
        (("task", "status", "../../health"), {}, 5, "not-found"),
        (("task", "cancel", "none"), {}, 5, "task-unknown"),
        (("task", "diff", "none"), {}, 5, "task-unknown"),
        (("task", "list"), {"ORCHESTRATOR_API_KEY": "ork_live_wrong"}, 4, "key-invalid"),
        (("task", "list"), {"ORCHESTRATOR_API_KEY": ""}, 4, "key-missing"),
        (("task", "list"), {"ORCHESTRATOR_API_URL": "http://127.0.0.1:1"}, 7, "api-unreachable"),
        (("task", "list"), {"ORCHESTRATOR_API_URL": "nonsense"}, 7, "api-unreachable"),
        (("agent", "drain", "nobody"), {}, 5, "agent-unknown"),
        (("explain", "no-such-code"), {}, 5, "code-unknown"),
        (("up", "--ephemeral", "--data", "kept"), {}, 2, "option-invalid"),
        (("demo", "--ephemeral", "--data", "kept"), {}, 2, "option-invalid"),
    ],
)
def test_an_error_says_what_to_do_and_ends_with_its_codes(
    door: Door, words: tuple[str, ...], changes: dict[str, str], exit_code: int, code: str
) -> None:
    done = run(door, *words, changes=changes)

    assert (done.returncode, done.stdout) == (exit_code, "")
    assert done.stderr.startswith("✗ ")
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"  code {code} · exit {exit_code} · orchestrator explain {code}"
    assert "Traceback" not in done.stderr


def test_a_wrong_option_is_named_as_the_option_that_it_is_and_said_once(door: Door) -> None:
    done = run(door, "task", "create", "-d", "x", "--budget", "abc")

    assert done.returncode == 2
    first = "✗ --budget: must be an amount of US dollars above 0: write 2 or 0.50"
    assert done.stderr.splitlines()[0] == first
    assert done.stderr.count("write 2 or 0.50") == 1
    unfit = run(door, "task", "create", "-d", "x", "--ask-before", "exectue").stderr
    assert unfit.startswith(
        "✗ --ask-before: 'exectue' is no class of risk and no tool; did you mean execute?"
    )


def test_a_command_that_there_is_not_is_a_usage_error(door: Door) -> None:
    done = run(door, "task", "crate")

    assert done.returncode == 2
    assert "create" in done.stderr


def test_a_conflict_has_an_exit_code_of_its_own(door: Door) -> None:
    task = door.create()
    run(door, "task", "cancel", task["id"])

    done = run(door, "task", "cancel", task["id"])

    assert done.returncode == 6
    assert f"orchestrator task retry {task['id']}" in done.stderr


def test_an_escalated_step_says_the_way_on_and_a_resume_says_what_happens(door: Door) -> None:
    task = door.create(steps=[{"id": "one", "description": "1"}])
    claimed = claim(door, task)
    with door.wiring.engine.begin() as connection:
        assert park(connection, claimed.step, claimed.fence, Event.ASK, WaitingOn.ESCALATION, {})

    shown = run(door, "task", "status", task["id"])
    done = run(door, "task", "resume", task["id"], "-r", "I looked")

    assert "escalated: Its commit conflicted" in shown.stdout
    assert f"  → orchestrator task resume {task['id']}" in shown.stdout.splitlines()
    assert done.returncode == 0
    assert "One more run, on what the branch holds now" in done.stderr
    assert door.get(f"/tasks/{task['id']}")["steps"][0]["status"] == "queued"
    assert run(door, "task", "resume", task["id"]).returncode == 6


def test_a_failed_task_names_the_commands_that_lead_on_and_each_works_when_copied(door: Door) -> None:
    task = door.create(steps=[{"id": "one", "description": "1"}])
    broken = claim(door, task)
    with door.wiring.engine.begin() as connection:
        error = {"code": "sandbox-unavailable", "message": "There is no sandbox."}
        assert fail(connection, broken.step, broken.fence, error)

    shown, watched = (run(door, "task", verb, task["id"]) for verb in ("status", "watch"))

    assert "failed: Step one: There is no sandbox (sandbox-unavailable)." in shown.stdout
    ways = [line.removeprefix("  → ") for line in shown.stdout.splitlines() if line.startswith("  → ")]
    assert [way.split()[1:3] for way in ways] == [
        ["explain", "sandbox-unavailable"],
        ["task", "logs"],
        ["task", "retry"],
    ]
    assert [run(door, *way.split()[1:]).returncode for way in ways] == [0, 0, 0]
    assert [line for line in watched.stderr.splitlines() if "→" in line] == [f"  → {way}" for way in ways]


def test_what_a_partly_completed_task_left_undone_is_explained_and_a_foreign_code_is_not(door: Door) -> None:
    task = door.create(
        steps=[{"id": "one", "description": "1"}, {"id": "two", "description": "2"}],
        on_step_failure="continue",
    )
    first, second = ({**task, "steps": [step]} for step in task["steps"])
    complete(door, claim(door, first))
    broken = claim(door, second)
    with door.wiring.engine.begin() as connection:
        assert fail(connection, broken.step, broken.fence, {"code": "of-its-own", "message": "No."})

    shown = run(door, "task", "status", task["id"]).stdout

    assert "partially completed" in shown
    assert "explain" not in shown
    assert f"  → orchestrator task retry {task['id']}" in shown.splitlines()


def test_a_list_in_a_pipe_is_a_line_of_tabs_per_task_newest_first(door: Door) -> None:
    first, second = door.create(title="Older one"), door.create(title="Newer one")

    lines = run(door, "task", "list", "-L", "2").stdout.splitlines()

    assert [line.split("\t")[0] for line in lines] == [second["id"], first["id"]]
    assert lines[0].split("\t")[1:3] == ["queued", "Newer one"]


def test_commands_over_a_task_work_and_name_the_next_one(door: Door) -> None:
    task = door.create()

    told = run(door, "task", "message", task["id"], "Use tabs.")
    said = [run(door, "task", verb, task["id"]) for verb in ("pause", "resume", "cancel", "retry")]

    assert told.stderr.splitlines()[0] == f"{task['id']}: It is heard as soon as a step of it runs."
    assert [one.returncode for one in said] == [0, 0, 0, 0]
    assert f"orchestrator task resume {task['id']}" in said[0].stderr
    assert door.get(f"/tasks/{task['id']}")["workflow"]["number"] == 2


def test_a_command_that_a_running_step_must_take_up_is_said_to_be_on_its_way(door: Door) -> None:
    task = door.create()
    claim(door, task)

    said = run(door, "task", "cancel", task["id"]).stderr

    first = f"{task['id']}: cancel requested, done as soon as what runs takes it up; it is running."
    assert said.splitlines()[0] == first


def test_what_a_machine_has_is_told_without_an_empty_reason(door: Door) -> None:
    lines = run(door, "doctor").stdout.splitlines()

    assert any(line.startswith(" ✓ git version") for line in lines)
    assert [line for line in lines if line.endswith(":")] == []


def test_the_exit_code_of_a_wait_says_how_it_ended(door: Door) -> None:
    done, failed, cancelled, asking = (door.create() for _ in range(4))
    complete(door, claim(door, done))
    broken = claim(door, failed)
    with door.wiring.engine.begin() as connection:
        assert fail(connection, broken.step, broken.fence, {"code": "poison", "message": "It died."})
    run(door, "task", "cancel", cancelled["id"])
    ask(door, asking)

    codes = {
        name: run(door, "task", "wait", task["id"]).returncode
        for name, task in (("done", done), ("failed", failed), ("cancelled", cancelled), ("asks", asking))
    }

    assert codes == {"done": 0, "failed": 10, "cancelled": 11, "asks": 8}
    assert run(door, "task", "status", "--exit-status", failed["id"]).returncode == 10
    assert run(door, "task", "status", failed["id"]).returncode == 0


def test_a_wait_is_over_when_its_time_is_whatever_moves(door: Door) -> None:
    """The server keeps the connection alive every ten seconds: that is no news of the task."""
    first, second = door.create(), door.create()
    began = time.monotonic()

    done = run(door, "task", "wait", first["id"], second["id"], "--timeout", "1s")

    assert time.monotonic() - began < 10
    assert done.returncode == 3
    assert f"✗ {first['id']} has not ended yet; it keeps running." in done.stderr
    assert "code wait-timed-out · exit 3" in done.stderr
    run(door, "task", "cancel", first["id"])
    assert run(door, "task", "wait", first["id"], "--timeout", "20s").returncode == 11
    assert run(door, "task", "wait", "none", "--timeout", "20s").returncode == 5


def test_watching_what_was_archived_says_so(door: Door) -> None:
    task = door.create()
    run(door, "task", "cancel", task["id"])
    door.sql("DELETE FROM events WHERE task_id = :t", t=task["id"])

    done = run(door, "task", "watch", task["id"])

    assert (done.returncode, done.stdout) == (
        11,
        "--------Z what was before is archived; it is cancelled, 0 % done\n",
    )


def test_a_question_is_answered_by_number_or_text(door: Door) -> None:
    by_number, by_text = door.create(), door.create()
    ask(door, by_number)
    ask(door, by_text)

    first = run(door, "task", "answer", by_number["id"], "--choice", "2")
    second = run(door, "task", "answer", by_text["id"], "--text", "Neither", "--json")
    again = run(door, "task", "answer", by_number["id"], "--choice", "2")

    assert "answered: No" in first.stderr
    assert json.loads(second.stdout)["answer"] == {"text": "Neither"}
    assert again.returncode == 6
    assert "was answered by" in again.stderr


def test_watching_in_a_pipe_tells_a_line_per_event_and_stops_where_a_person_is_needed(door: Door) -> None:
    task = door.create()
    ask(door, task)

    done = run(door, "task", "watch", task["id"])

    assert done.returncode == 8
    assert re.search(
        r"^\d\d:\d\d:\d\dZ step 1 work ▶ running on agent-1@here/1, attempt 1$", done.stdout, re.MULTILINE
    )
    assert "queued → running" in done.stdout
    assert f"orchestrator task answer {task['id']}" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_watching_as_json_is_a_line_of_json_per_event(door: Door) -> None:
    task = door.create()
    complete(door, claim(door, task))

    done = run(door, "task", "watch", task["id"], "--json")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, events[-1]["event"]) == (0, "end")
    assert [event["seq"] for event in events[:-1]] == list(range(1, len(events)))


def test_ctrl_c_leaves_the_task_running(door: Door) -> None:
    task = door.create()
    with subprocess.Popen(
        [*PROGRAM, "task", "watch", task["id"]],
        env=environment(door),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout
        assert "queued" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=30)

    assert watching.returncode == 130
    assert f"orchestrator task watch {task['id']}" in said
    assert door.get(f"/tasks/{task['id']}")["status"] == "queued"


def test_what_an_agent_wrote_cannot_speak_to_the_terminal(door: Door) -> None:
    task = door.create()
    wrote = "\x1b]0;owned\x07 red \x1b[31m \u202e over\r\n\u009b2J next\n"
    with door.wiring.engine.begin() as connection:
        append_logs(connection, TaskRef("default", task["id"]), None, None, [LogChunk("stdout", wrote)])

    shown = run(door, "task", "logs", task["id"]).stdout

    assert "\\x1b]0;owned\\x07 red" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e\r")


def test_a_patch_in_a_pipe_is_the_patch_itself(door: Door) -> None:
    task = door.create()
    patch = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-\x1b[0m\r\n+\xff\n"
    stored = door.wiring.artifacts.put(patch)
    step = StepRef("default", task["id"], task["workflow"]["id"], task["steps"][0]["id"])
    with door.wiring.engine.begin() as connection:
        file = StoredFile("patch", "task.patch", "text/x-diff", stored.size, stored.sha256, stored.key)
        add_artifact(connection, step, file)

    done = subprocess.run(
        [*PROGRAM, "task", "diff", task["id"]],
        env=environment(door),
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, patch)
    assert run(door, "task", "diff", "--stat", task["id"]).stdout == "M x  +1 -1\n"


def test_a_plan_shows_what_runs_side_by_side_and_how_long_that_takes(door: Door) -> None:
    steps = [
        {"id": "parse", "description": "1", "estimate": "10m"},
        {"id": "docs", "description": "2", "estimate": "PT5M"},
        {"id": "tests", "description": "3", "needs": ["parse"], "estimate": 90},
        {"id": "look", "description": "4", "needs": ["docs", "tests"]},
    ]
    task = door.create(steps=steps)
    done = run(door, "task", "plan", task["id"])
    assert done.stdout.splitlines() == [
        "parse\t1\t10m00s\t",
        "docs\t1\t5m00s\t",
        "tests\t2\t1m30s\tparse",
        "look\t3\t\tdocs, tests",
    ]
    assert "Critical path: parse → tests → look" in done.stderr
    assert "11m30s side by side, 16m30s one after the other; steps without an estimate: 1" in done.stderr
    shown = json.loads(run(door, "task", "plan", task["id"], "--json").stdout)
    assert shown["parallel_groups"] == [["parse", "docs"], ["tests"], ["look"]]
    assert (shown["sequential_seconds"], shown["parallel_seconds"]) == (990, 690)
    plain = door.create(steps=[{"id": "only", "description": "1"}])
    assert "No step has an estimate." in run(door, "task", "plan", plain["id"]).stderr
    assert run(door, "task", "plan", "nobody").returncode == 5


def on_a_terminal(
    door: Door,
    *words: str,
    typed: str = "",
    until: str = "",
    then: Callable[[], None] | None = None,
    **changes: str,
) -> tuple[int, str]:
    """Runs it with a terminal; types once `until` is on the screen, a key after each
    change of it, or does `then`. Exit code and all that was drawn."""
    child, screen = pty.fork()
    if child == 0:
        os.execve(  # noqa: S606
            sys.executable,
            [*PROGRAM, *words],
            environment(door, **{"TERM": "xterm", "COLUMNS": "150", "LINES": "40", **changes}),
        )
    drawn = b""
    while True:
        try:
            part = os.read(screen, 65536)
        except OSError:  # the other end is closed
            break
        drawn += part
        if then is not None and until.encode() in drawn:
            then()
            then = None
        if typed and until.encode() in drawn:
            os.write(screen, typed[0].encode())
            typed = typed[1:]
        if not part:
            break
    _, status = os.waitpid(child, 0)
    os.close(screen)
    return os.waitstatus_to_exitcode(status), drawn.decode("utf-8", "replace")


def test_a_question_is_asked_and_answered_at_the_terminal_that_watches(door: Door) -> None:
    task = door.create()
    ask(door, task)

    def go_on() -> None:
        with door.new_client({"X-API-Key": door.key}) as other:
            while other.get(f"/api/v1/tasks/{task['id']}").json()["questions"]:
                pass
        complete(door, claim(door, task))

    worker = threading.Thread(target=go_on)
    worker.start()
    code, drawn = on_a_terminal(door, "task", "watch", task["id"], typed="2\n", until="answer [1-2")
    worker.join(30)

    assert code == 0
    assert "The agent asks: Keep \\x1b[31mthe flag?" in drawn
    assert "completed" in drawn
    assert door.sql("SELECT answer ->> 'text' FROM questions WHERE task_id = :t", t=task["id"])[0][0] == "No"


def test_the_prompt_goes_on_when_somebody_answers_elsewhere(door: Door) -> None:
    task = door.create()
    ask(door, task)

    def answer_elsewhere() -> None:
        run(door, "task", "answer", task["id"], "--choice", "1")
        complete(door, claim(door, task))

    code, drawn = on_a_terminal(door, "task", "watch", task["id"], until="answer [1-2", then=answer_elsewhere)

    assert code == 0
    assert "answered by" in drawn.split("answer [1-2")[1]


def test_who_leaves_the_prompt_is_told_that_the_task_waits_and_how_to_answer(door: Door) -> None:
    task = door.create()
    ask(door, task)
    way = f"orchestrator task answer {task['id']}"

    end, said = on_a_terminal(door, "task", "watch", task["id"], typed="\x04", until="answer [1-2")
    stopped, left = on_a_terminal(door, "task", "watch", task["id"], typed="\x03\n", until="answer [1-2")

    assert (end, stopped) == (8, 130)
    assert way in said.split("answer [1-2")[1]
    assert f"waits for an answer. Answer it: {way}" in left
    assert "keeps running" not in left


def test_a_maximum_is_offered_without_numbers_that_would_be_taken_for_one(door: Door) -> None:
    task = door.create(budget={"max_cost_usd": "1"})
    claimed = claim(door, task)
    more = Ask("budget-1", "The budget is used up.", ("$2.00", "Stop"), WaitingOn.BUDGET)
    with door.wiring.engine.begin() as connection:
        assert effects.ask(connection, claimed.step, claimed.fence, more)

    _, drawn = on_a_terminal(
        door, "task", "watch", task["id"], typed="\x04", until="answer [a maximum, or Stop]"
    )

    for shown in (drawn, run(door, "task", "status", task["id"]).stdout):
        assert "[budget] The budget is used up." in shown
        assert "the new maximum: $2.00, 10 (US dollars), 500000 tokens, 200 turns; or Stop" in shown
        assert "1)" not in shown
        assert "The agent asks" not in shown


def test_each_of_several_questions_is_named_in_the_command_that_answers_it(door: Door) -> None:
    task = door.create(steps=[{"id": "one", "description": "1"}, {"id": "two", "description": "2"}])
    for step in task["steps"]:
        ask(door, {**task, "steps": [step]})

    shown = run(door, "task", "status", task["id"]).stdout
    watched = run(door, "task", "watch", task["id"]).stderr

    ways = re.findall("→ orchestrator (task answer .*)", shown)
    assert len(ways) == 2
    assert re.findall("→ orchestrator (task answer .*)", watched) == ways
    assert [run(door, *way.split(), "--choice", "1").returncode for way in ways] == [0, 0]


def test_without_a_question_nobody_is_made_to_type_an_answer(door: Door) -> None:
    code, drawn = on_a_terminal(door, "task", "answer", door.create()["id"])

    assert code == 5
    assert "question-unknown" in drawn
    assert "answer [" not in drawn


def test_what_explains_a_retry_stays_above_the_picture_and_what_is_missing_is_said_once(door: Door) -> None:
    task = door.create()
    why = {"model": "gpt-5.2-codex", "reason": "claude-sonnet-5-5 failed: model-overloaded"}
    problem = {"problem": "MCP server lint: it did not start"}
    error = {"code": "model-overloaded", "message": "Overloaded"}
    for attempt in (1, 2, 3):
        claimed = claim(door, task)
        where = (claimed.step.workflow_id, claimed.step.step_id)
        noted = [
            EventDraft("progress", "model", why, *where),
            EventDraft("progress", "tools", problem, *where),
        ]
        with door.wiring.engine.begin() as connection:
            effects.observe(connection, claimed.step, claimed.fence, claimed.attempt, noted, [])
            if attempt < 3:
                assert retry_later(connection, claimed.step, claimed.fence, error, timedelta(0))
                assert due(connection, claimed.step)
    complete(door, claimed)

    code, drawn = on_a_terminal(door, "task", "watch", task["id"])

    assert code == 0
    assert drawn.count("model gpt-5.2-codex: claude-sonnet-5-5 failed: model-overloaded") == 3
    assert drawn.count("will be tried again: Overloaded") == 2
    assert drawn.count("MCP server lint: it did not start") == 1
    assert " (attempt 3)" in drawn


def test_what_a_watched_task_waits_for_is_told_whole_and_with_the_way_on(door: Door) -> None:
    task = door.create(steps=[{"id": "one", "description": "1"}])
    claimed = claim(door, task)
    lacks = {
        "codex": ["not installed: orchestrator agent install codex, then restart: " + "it " * 40 + "end"]
    }
    with door.wiring.engine.begin() as connection:
        assert wait_in_queue(
            connection, claimed.step, claimed.fence, WaitingOn.AGENT, {"missing": lacks}, timedelta(hours=1)
        )

    code, drawn = on_a_terminal(
        door, "task", "watch", task["id"], typed="qxq\x03", until="→ orchestrator agent types"
    )

    waited = run(door, "task", "wait", task["id"], "--timeout", "5s")
    status = run(door, "task", "status", task["id"]).stdout

    assert re.search(r"waits: .*it end\.\n  → orchestrator agent types\n", waited.stderr)
    assert status.count("not installed: orchestrator agent install codex") == 1
    assert code == 130
    assert re.search(r"it\s+end\.", drawn)
    assert "qxq" not in drawn, "keys don't tear the picture apart"


def test_a_table_on_a_terminal_is_coloured_unless_nobody_wants_it(door: Door) -> None:
    door.create(title="[bold]Not markup[/bold]")

    _, coloured = on_a_terminal(door, "task", "list", "-L", "1")
    _, plain = on_a_terminal(door, "task", "list", "-L", "1", NO_COLOR="1")

    assert "[bold]Not markup[/bold]" in coloured
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", plain)


def test_no_cell_of_a_table_is_lost_on_a_narrow_terminal(door: Door) -> None:
    task = door.create(title="A title")

    _, narrow = on_a_terminal(door, "task", "list", "-L", "1", COLUMNS="40")
    _, wide = on_a_terminal(door, "task", "list", "-L", "1", COLUMNS="80")

    first, second = narrow.split("\r\n")[:2]
    assert first == task["id"]
    assert second.startswith("  queued · A title · 0/1 · ")
    assert "STATUS" in wide
    assert "A title" in wide


def test_a_state_is_shown_whole_and_a_long_title_is_one_line(door: Door) -> None:
    task = door.create(title="word " * 20)
    complete(door, claim(door, task))

    _, drawn = on_a_terminal(door, "task", "list", "-L", "1", COLUMNS="80", NO_COLOR="1")

    _, _, rows = drawn.partition(f"{task['id']}  ")
    assert rows.startswith("completed  word")
    assert len(rows.splitlines()) == 1


def test_agents_are_listed_and_drained(door: Door) -> None:
    with door.wiring.engine.begin() as connection:
        agents.register(
            connection, Slot("default", "worker-9@here/1", "worker-9", "here", 1, "b", "0", ("high",), (), ())
        )

    listed = run(door, "agent", "list").stdout
    drained = run(door, "agent", "drain", "worker-9@here/1")
    rehearsed = run(door, "agent", "reclaim", "worker-9", "--dry-run", "--json")

    assert "worker-9@here/1\tidle" in listed
    assert (drained.returncode, "worker-9@here/1: draining." in drained.stderr) == (0, True)
    assert json.loads(rehearsed.stdout) == {"dry_run": True, "data": []}


def test_a_key_that_may_only_read_is_told_so(door: Door) -> None:
    done = run(door, "task", "create", "-d", "x", changes={"ORCHESTRATOR_API_KEY": door.new_key(Scope.READ)})

    assert done.returncode == 4
    assert "scope-missing" in done.stderr


def test_the_credentials_that_the_stack_keeps_are_found(door: Door, tmp_path: Path) -> None:
    kept = tmp_path / "orchestrator" / "credentials.toml"
    kept.parent.mkdir()
    kept.write_text(f'api_url = "{door.url}"\napi_key = "{door.key}"\n')
    changes = {"XDG_CONFIG_HOME": str(tmp_path), "ORCHESTRATOR_API_KEY": "", "ORCHESTRATOR_API_URL": ""}

    assert run(door, "task", "list", changes=changes).returncode == 0


def test_a_watch_goes_on_by_number_when_the_connection_was_lost(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The API is stopped and started again on its port while somebody watches."""
    url = migrated(postgres_server)
    with served(wired(url, tmp_path)) as first:
        port = first.port
        task = first.create()
        watching = subprocess.Popen(
            [*PROGRAM, "task", "watch", task["id"], "--json"],
            env=environment(first),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout
        assert watching.stderr
        begin = json.loads(watching.stdout.readline())
    assert "connection lost" in watching.stderr.readline()
    with served(wired(url, tmp_path), port=port) as second:
        second.client.post(f"/api/v1/tasks/{task['id']}/cancel")
        said, talk = watching.communicate(timeout=60)

    events = [begin, *(json.loads(line) for line in said.splitlines())]
    assert watching.returncode == 11
    assert "reconnected" in talk
    assert [event["seq"] for event in events[:-1]] == list(range(1, len(events)))
    assert events[-1]["event"] == "end"


def test_help_loads_nothing_that_is_slow(door: Door) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "orchestrator", "--help"],
        env=environment(door),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"celery", "sqlalchemy", "fastapi", "pydantic", "rich", "httpx2", "anthropic"}


def test_versions_and_explanations_are_there_without_a_server(door: Door) -> None:
    explained = run(
        door, "explain", "plan-cycle", "--json", changes={"ORCHESTRATOR_API_URL": "http://127.0.0.1:1"}
    )
    version = run(door, "version", "--json")

    assert json.loads(explained.stdout)["title"] == "The plan's steps wait for one another"
    assert set(json.loads(version.stdout)) == {"version", "python"}
