"""Each contract of setup.cfg refuses what it is there to refuse, when a copy of the package breaks it."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "setup.cfg"

# The contract's section, the file that breaks it, the line that does, and what must be said of it.
BROKEN = [
    ("layers", "core/intruder.py", "import orchestrator.db.connect", "orchestrator.core.intruder"),
    ("layers", "db/intruder.py", "import orchestrator.commands.submit", "orchestrator.db.intruder"),
    ("layers", "engine/intruder.py", "import orchestrator.workspaces.git", "orchestrator.engine.intruder"),
    ("layers", "api/intruder.py", "import orchestrator.local.stack", "orchestrator.api.intruder"),
    ("layers", "utils.py", "", "orchestrator.utils"),
    ("agents-know-no-infrastructure", "engine/intruder.py", "import sqlalchemy", "engine.intruder"),
    ("agents-know-no-infrastructure", "agents/intruder.py", "import celery", "agents.intruder"),
    (
        "agents-know-no-infrastructure",
        "workspaces/intruder.py",
        "import orchestrator.queries.task",
        "orchestrator.workspaces.intruder",
    ),
    ("core-is-pure", "core/intruder.py", "import pydantic", "orchestrator.core.intruder"),
    ("celery", "commands/intruder.py", "import celery", "orchestrator.commands.intruder"),
    ("sqlalchemy", "tasks/intruder.py", "import sqlalchemy", "orchestrator.tasks.intruder"),
    ("web", "tasks/intruder.py", "import fastapi", "orchestrator.tasks.intruder"),
    ("terminal", "local/intruder.py", "import rich", "orchestrator.local.intruder"),
]


def contracts() -> dict[str, str]:
    """Section → name of each contract."""
    config = configparser.ConfigParser()
    config.read(SETUP)
    prefix = "importlinter:contract:"
    return {
        section.removeprefix(prefix): config[section]["name"]
        for section in config.sections()
        if section.startswith(prefix)
    }


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """The package and its contracts alone, in an empty folder."""
    shutil.copytree(
        ROOT / "orchestrator",
        tmp_path / "orchestrator",
        ignore=shutil.ignore_patterns("__pycache__", "data"),
    )
    shutil.copy(SETUP, tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and output, of the copy, not of the installed package."""
    program = "import sys; sys.path.insert(0, ''); from importlinter import cli; cli.lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
    return done.returncode, done.stdout + done.stderr


def broken_contracts(output: str) -> set[str]:
    return {name for name in contracts().values() if f"{name} BROKEN" in " ".join(output.split())}


def test_the_package_keeps_its_contracts(copy: Path) -> None:
    code, output = lint(copy)
    assert code == 0, output


def test_every_contract_is_shown_to_refuse_something() -> None:
    assert {section for section, *_ in BROKEN} == set(contracts())


@pytest.mark.parametrize(("section", "file", "line", "named"), BROKEN)
def test_a_contract_that_is_broken_on_purpose_fails_by_name(
    copy: Path, section: str, file: str, line: str, named: str
) -> None:
    (copy / "orchestrator" / file).write_text(f"{line}\n")
    code, output = lint(copy)
    assert code != 0
    assert named in output, output
    assert contracts()[section] in broken_contracts(output), output


def test_the_core_imports_nothing_but_the_standard_library_and_networkx() -> None:
    found = {
        name.partition(".")[0]
        for path in (ROOT / "orchestrator" / "core").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported(node)
    }
    assert found - sys.stdlib_module_names - {"networkx", "orchestrator"} == set()


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
