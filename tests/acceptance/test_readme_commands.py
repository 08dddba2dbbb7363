"""Types what the README says into a shell, against a stack that `orchestrator up` started.

The model is a server on loopback that speaks the Messages API: everything else is what a user has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.local import credentials, postgres, roster
from tests.messages_server import Answer, call_block, closing, opening, serving
from tests.readme import STARTED_BY, blocks, commands

PATIENCE_SECONDS = 90
FIXED = Answer(
    [
        opening(),
        *call_block(
            0, "call_1", "write_file", json.dumps({"path": "FIXED.md", "content": "It works now.\n"})
        ),
        *call_block(1, "call_2", "attempt_completion", json.dumps({"summary": "Repaired the test."})),
        *closing(),
    ]
)


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where a user sits: a repository, a home folder, and a running stack."""

    home: Path
    data: Path
    repository: Path
    environment: dict[str, str]

    @property
    def api_url(self) -> str:
        running = roster.read(self.data)
        assert running
        return str(running.urls["api"])

    def types(self, command: str, *, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """As it stands in the README, but for the places that a reader fills in."""
        typed = command.replace("/path/to/repository", str(self.repository)).replace(
            "http://127.0.0.1:8000", self.api_url
        )
        return subprocess.run(
            ["bash", "-c", typed],
            cwd=self.repository,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    home = tmp_path_factory.mktemp("home")
    data, repository = home / "data", home / "repository"
    repository.mkdir()
    who = ("-c", "user.name=reader", "-c", "user.email=reader@example.invalid")
    (repository / "README.md").write_text("A repository.\n")
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), (*who, "commit", "-q", "-m", "It begins")):
        subprocess.run(["git", *words], cwd=repository, check=True)
    with serving(FIXED) as model:
        environment = {
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "ORCHESTRATOR_DATA_DIR": str(data),
            "ANTHROPIC_API_KEY": "sk-test",
            "ANTHROPIC_BASE_URL": model.url,
        }
        with (home / "up.log").open("wb") as output:
            up = subprocess.Popen(
                [sys.executable, "-P", "-m", "orchestrator", "up"],
                cwd=repository,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            _await(home / "up.log", up, "Ctrl-C stops everything")
            yield Terminal(home, data, repository, {**environment, **_settings(data)})
        finally:
            up.send_signal(signal.SIGINT)
            ended = up.wait(PATIENCE_SECONDS)
            postgres.remove(data / "postgres")
    assert ended == 130


def _await(log: Path, process: subprocess.Popen[bytes], line: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while line not in (said := log.read_text("utf-8")):
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def _settings(data: Path) -> dict[str, str]:
    """What a producer of this installation needs, and the key for curl."""
    made, running = credentials.load_or_make(data), roster.read(data)
    assert running
    redis = f"redis://:{made.redis_password}@127.0.0.1:{running.ports['redis']}/0"
    login = f"orchestrator:{made.postgres_password}"
    return {
        "ORCHESTRATOR_DATABASE_URL": f"postgresql://{login}@127.0.0.1:{running.ports['postgres']}/orchestrator",
        "ORCHESTRATOR_BROKER_URL": redis,
        "ORCHESTRATOR_MESSAGE_SECRET": made.message_secret,
        "ORCHESTRATOR_API_KEY": made.api_key,
    }


@pytest.mark.timeout(300)
def test_the_commands_of_the_readme_do_what_they_say(terminal: Terminal) -> None:
    if shutil.which("curl") is None:
        pytest.skip("THE README'S COMMANDS WERE NOT RUN: there is no curl on PATH")
    task_id = ""
    for command in commands():
        if command in STARTED_BY:
            continue
        done = terminal.types(command.replace("<task id>", task_id))
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        if not task_id:
            found = re.search(r"\btask_\w+", done.stdout + done.stderr)
            assert found, done.stdout
            task_id = found.group()
        elif "/events" in command:
            assert "event: end" in done.stdout
        elif command.startswith("curl"):
            created = json.loads(done.stdout)
            assert created["status"] == "queued", created
        elif " diff " in command:
            assert "+It works now." in done.stdout
        elif " agent " not in command:
            assert task_id in done.stdout


@pytest.mark.timeout(180)
def test_the_python_of_the_readme_prints_the_branch(terminal: Terminal) -> None:
    (block,) = blocks("python")
    (terminal.home / "producer.py").write_text(block.replace("/path/to/repository", str(terminal.repository)))
    done = terminal.types(f"python {terminal.home / 'producer.py'}", seconds=120)
    assert done.returncode == 0, done.stderr
    called, branch = done.stdout.splitlines()
    assert branch == f"agent/{called.split()[0]}"
