"""Types what the README and the guides say into a shell, against a stack that `orchestrator up` started.

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
from tests.acceptance.running import recorded
from tests.messages_server import Answer, call_block, closing, opening, serving
from tests.readme import GUIDES, README, ROOT, STARTED_BY, blocks, commands

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

    def filled(self, text: str) -> str:
        """What stands on the page, with the places that a reader fills in."""
        filled = text.replace("/path/to/repository", str(self.repository))
        return filled.replace("http://127.0.0.1:8000", self.api_url).replace("=…", "=sk-test")

    def types(self, command: str, *, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        typed = self.filled(command)
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
        with (home / "up.log").open("wb") as talk, (home / "up.json").open("wb") as data_of_it:
            up = subprocess.Popen(
                [sys.executable, "-P", "-m", "orchestrator", "up", "--concurrency", "2", "--json"],
                cwd=repository,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=data_of_it,
                stderr=talk,
            )
        try:
            _await(home / "up.log", up, "Ctrl-C stops everything")
            yield Terminal(home, data, repository, {**environment, **_settings(data)})
        finally:
            up.send_signal(signal.SIGINT)
            ended = up.wait(PATIENCE_SECONDS)
            postgres.remove(data / "postgres")
    assert ended == 130
    ready, stopped = map(json.loads, (home / "up.json").read_text("utf-8").splitlines())
    assert (ready["event"], ready["data_dir"], set(ready["urls"])) == (
        "ready",
        str(data),
        {"api", "gateway", "flower"},
    )
    assert stopped == {"event": "stopped", "exit_code": 130}


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
    for command in commands(README):
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
    (terminal.home / "producer.py").write_text(terminal.filled(block))
    done = terminal.types(f"python {terminal.home / 'producer.py'}", seconds=120)
    assert done.returncode == 0, done.stderr
    called, branch = done.stdout.splitlines()
    assert branch == f"agent/{called.split()[0]}"


# ---- tutorials and how-to pages


@pytest.fixture
def asking(terminal: Terminal, tmp_path: Path) -> str:
    """A task whose agent has asked something."""
    request = tmp_path / "ask.json"
    request.write_text(json.dumps(recorded("ask", tmp_path / "asked-about")))
    made = terminal.types(f"orchestrator task create -f {request} --json")
    waited = terminal.types("orchestrator task wait " + json.loads(made.stdout)["id"], seconds=90)
    assert waited.returncode == 8, waited.stderr
    return str(json.loads(made.stdout)["id"])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_the_commands_of_a_guide_work(terminal: Terminal, asking: str, page: Path) -> None:
    agent = json.loads(terminal.types("orchestrator agent list --json").stdout)["data"][0]["id"]
    before: list[str] = []
    for command in commands(page):
        if command in STARTED_BY:
            continue
        filled = command.replace("<task id>", asking).replace("<agent id>", agent)
        if command.startswith("export "):
            before.append(filled)
        if command.startswith("orchestrator worker "):
            _a_worker_starts(terminal, filled)
            continue
        done = terminal.types("; ".join([*before, filled]), seconds=120)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


def _a_worker_starts(terminal: Terminal, command: str) -> None:
    """It takes work until it is told to end."""
    log = terminal.home / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=terminal.repository,
            env=terminal.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _await(log, process, " ready.")
        # Celery that is told to end in the moment in which it is ready breaks over its own timers.
        name = command.partition("--name ")[2].partition(" ")[0]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while f'"{name}' not in terminal.types("orchestrator agent list --json").stdout:
            assert time.monotonic() < deadline, log.read_text("utf-8")
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0, log.read_text("utf-8")


THEIRS = """
import json, os
from celery import Celery
from orchestrator.tasks import execute_task

redis = os.environ["ORCHESTRATOR_BROKER_URL"]
app = Celery("theirs", broker=redis, backend=redis)
app.conf.update(task_default_queue="mine", broker_transport_options={"visibility_timeout": 86_400})


@app.task(shared=False)
def collect():
    return {"found": "a failing test"}


@app.task(shared=False)
def report(result):
    with open("reported", "a") as file:
        file.write(json.dumps(result) + "\\n")
"""


@pytest.mark.timeout(240)
def test_the_python_of_the_producers_tutorial_works(terminal: Terminal) -> None:
    """Each block as it stands, after the tasks of the reader's own that it speaks of."""
    alone, in_chain, in_chord = blocks("python", ROOT / "docs" / "tutorials" / "producers.md")
    alone = alone.replace('"url": "https://…"', f'"path": "{terminal.repository}"')
    (terminal.home / "theirs.py").write_text(THEIRS)
    (terminal.home / "first.py").write_text(f'{alone}print(result["status"])\n')
    names = f'names, path = ["a", "b"], "{terminal.repository}"'
    (terminal.home / "canvases.py").write_text(
        f"from theirs import collect, execute_task, report\n{in_chain}\n{names}\n{in_chord}"
    )
    done = terminal.types(f"python {terminal.home / 'first.py'}", seconds=120)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "completed"), done.stderr
    there = f"cd {terminal.home} && PYTHONPATH={terminal.home}"
    log = terminal.home / "theirs.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"{there} exec celery -A theirs worker -Q mine -P solo -l INFO"],
            env=terminal.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _await(log, process, " ready.")
        done = terminal.types(f"{there} python canvases.py")
        assert done.returncode == 0, done.stderr
        reported = terminal.home / "reported"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reported.exists() or len(reported.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
    found = sorted(map(json.loads, reported.read_text().splitlines()), key=lambda one: isinstance(one, list))
    assert found[0]["status"] == "completed"
    assert [one["status"] for one in found[1]] == ["completed", "completed"]


@pytest.mark.timeout(240)
def test_what_runs_on_this_machine_is_told_as_json_too(terminal: Terminal) -> None:
    shown = [json.loads(line) for line in terminal.types("orchestrator demo --json").stdout.splitlines()]
    logs = terminal.types("orchestrator logs api beat --tail 3 --json").stdout.splitlines()
    restarted = terminal.types("orchestrator restart beat --json")

    assert shown[0]["event"] == "status"
    assert shown[-2]["event"] == "end"
    assert (shown[-1]["event"], shown[-1]["task"]["status"]) == ("task", "completed")
    assert {json.loads(line)["service"] for line in logs} <= {"api", "beat"}
    assert json.loads(restarted.stdout) == {"restarted": ["beat"]}
