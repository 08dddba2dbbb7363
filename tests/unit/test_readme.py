"""The README is short, tells the truth about the states, and shows nothing that no test runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

from orchestrator.core.diagram import mermaid
from orchestrator.core.states import RULES, Status
from tests.readme import GUIDES, README, ROOT, STARTED_BY, blocks, commands
from tests.readme_output import BEGIN, END, renewed


def test_it_can_be_read_at_one_sitting() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 200


def test_its_state_diagram_is_that_of_the_code() -> None:
    assert blocks("mermaid") == [f"{mermaid()}\n"], "write it anew: .venv/bin/python -m tests.documents"


def test_the_diagram_has_an_arrow_for_each_rule_and_no_other() -> None:
    arrows = {
        (source, to, event)
        for source, to, events in re.findall(r"^    (\w+) --> (\w+): (.+)$", mermaid(), re.MULTILINE)
        for event in events.split(", ")
    }
    assert arrows == {(source, rule.to, event) for event, rule in RULES.items() for source in rule.sources}
    assert all(f"    {status} --> [*]" in mermaid() for status in ("completed", "failed", "cancelled"))
    assert set(re.findall(r"--> (\w+)", mermaid())) == set(Status)


def test_its_output_can_be_renewed_from_a_run() -> None:
    run = (
        "Making .venv …\norchestrator 0.2.0 · data /tmp\n\n ✓ redis\n"
        " 10:00:00 step 1/1 ▶ a on agent-1@here/1\n"
        " 10:00:01 step 1/1     turn 1 (replayed)\n 10:00:01 step 1/1     $ make\n 10:00:02 step 1/1 ✓ a\n"
        " Branch agent/t at 1\n\ndiff --git a/x b/x\n+x\n\n History\n   10:00:00 · → pending\n"
    )
    new = renewed(README.read_text("utf-8"), run)
    assert new.partition(BEGIN)[2].partition(END)[0].split("\n")[2:-2] == [
        "orchestrator 0.2.0 · data /tmp",
        " ✓ redis",
        " 10:00:00 step 1/1 ▶ a on agent-1@here/1",
        " …",
        " 10:00:02 step 1/1 ✓ a",
        " Branch agent/t at 1",
        " …",
        " History",
        "   10:00:00 · → pending",
    ]
    assert new.partition(BEGIN)[0] == README.read_text("utf-8").partition(BEGIN)[0]
    assert new.partition(END)[2] == README.read_text("utf-8").partition(END)[2]


def test_every_command_is_one_that_a_test_runs() -> None:
    assert commands()
    shown = [command for page in (README, *GUIDES) for command in commands(page)]
    assert set(STARTED_BY) <= set(shown)
    for command in shown:
        program = command.split()[0]
        assert program in {"orchestrator", "curl", "export"} or command in STARTED_BY, command


def test_the_tests_that_start_what_is_not_run_as_it_stands_exist() -> None:
    assert [path for path in STARTED_BY.values() if not (ROOT / path).exists()] == []


def test_its_python_compiles_and_its_imports_exist() -> None:
    imports = [
        ast.unparse(node)
        for block in blocks("python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert "from orchestrator.tasks import TaskFailed, execute_task" in imports
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(imports)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
