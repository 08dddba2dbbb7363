"""The program as its user runs it: a process, its output, its doors; and nothing of it afterwards."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx2

from orchestrator.local import control, processes, roster
from orchestrator.local.processes import Identity
from tests.integration.repositories import git, repository

MARK: Final = "ACCEPTANCE_MARK"
"""In the environment of every process that a program under test starts, however deep."""
READY: Final = "Ctrl-C stops everything"
ENDED: Final = ("completed", "failed", "cancelled")

_DATA: Final = Path(__file__).parent.parent.parent / "orchestrator" / "data"
OURS: Final = (
    "ORCHESTRATOR_",
    "DATABASE_URL",
    "CELERY_",
    "REDIS_URL",
    "ANTHROPIC_",
    "MAX_CONCURRENT_",
    "FLOWER_",
)
_PATIENCE_SECONDS: Final = 90.0
_LOOK_SECONDS: Final = (0.03, 0.2)
"""Between two looks, at first and after a while: each may be a request to the API."""

T = TypeVar("T")


def until(look: Callable[[], T | None], what: str, say: Callable[[], object] = str) -> T:
    """What `look` finds once it finds something; a failure that shows `say()` when it never does."""
    began = time.monotonic()
    while not (found := look()):
        waited = time.monotonic() - began
        assert waited < _PATIENCE_SECONDS, f"never came: {what}\n{say()}"
        time.sleep(min(max(_LOOK_SECONDS[0], waited / 10), _LOOK_SECONDS[1]))
    return found


@dataclass
class Program:
    """`orchestrator …` as a process. `data` is where its stack is: for a passing one, known once it runs."""

    words: Sequence[str]
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._output = self.folder / f"{self.mark}.out"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        own = {"XDG_CONFIG_HOME": str(self.folder / "config"), "TMPDIR": str(self.folder), MARK: self.mark}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "orchestrator", *self.words],
                env={**kept, "PYTHONUNBUFFERED": "1", **own, **self.settings},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._output.read_text("utf-8", "replace")

    @cached_property
    def data(self) -> Path:
        if "--data" in self.words:
            return Path(self.words[self.words.index("--data") + 1])
        [found] = self.folder.glob("orchestrator-*")
        return found

    def until_said(self, words: str) -> str:
        def look() -> str | None:
            said = self.said
            assert words in said or self.process.poll() is None, said
            return said if words in said else None

        return until(look, words, lambda: self.said)

    def wait(self) -> int:
        return self.process.wait(_PATIENCE_SECONDS)

    def stop(self) -> int:
        """As Ctrl-C does it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.wait()

    def living(self) -> list[str]:
        """Command lines of all processes that it started: by its mark, and by the mark of its stack."""
        wanted = f"{MARK}={self.mark}".encode()
        found = {pid for pid in _pids() if wanted in _read(pid, "environ").split(b"\0")}
        current = roster.read(self.data) if "data" in self.__dict__ or "--data" in self.words else None
        if current is not None:
            found |= {one.pid for one in processes.marked(current.stack)}
        return [_read(pid, "cmdline").replace(b"\0", b" ").decode() for pid in sorted(found)]

    def family(self) -> frozenset[Identity]:
        return processes.family([self.process.pid])


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


@dataclass
class Doors:
    """What a user of a running stack can reach: its API, Flower, its folder."""

    data: Path

    @cached_property
    def secrets(self) -> Mapping[str, str]:
        return tomllib.loads((self.data / "credentials.toml").read_text())

    @cached_property
    def urls(self) -> Mapping[str, str]:
        current = roster.read(self.data)
        assert current is not None
        return current.urls

    @cached_property
    def api(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.secrets['api_key']}"}
        return httpx2.Client(base_url=self.urls["api"], headers=headers, timeout=30, trust_env=False)

    @cached_property
    def flower(self) -> httpx2.Client:
        login = ("operator", self.secrets["flower_password"])
        url = self.urls["flower"].rstrip("/")
        return httpx2.Client(base_url=url, auth=login, timeout=30, trust_env=False)

    def close(self) -> None:
        for name in ("api", "flower"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def get(self, path: str) -> dict[str, Any]:
        answer = self.api.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return self.api.post(f"/api/v1{path}", json=body)

    def create(self, **body: Any) -> dict[str, Any]:
        answer = self.post("/tasks", **body)
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    def task(self, task_id: str) -> dict[str, Any]:
        return self.get(f"/tasks/{task_id}")

    def events(self, task_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while page := self.get(f"/tasks/{task_id}/events?after={found[-1]['seq'] if found else 0}")["data"]:
            found += page
        return found

    def claims(self, task_id: str) -> list[dict[str, Any]]:
        """The events of steps that were taken up by an agent."""
        return [
            event for event in self.events(task_id) if (event["type"], event["name"]) == ("step", "claim")
        ]

    def until_status(self, task_id: str, *wanted: str) -> dict[str, Any]:
        """The task once it has one of these; a failure if it ends otherwise."""

        def look() -> dict[str, Any] | None:
            task = self.task(task_id)
            assert task["status"] in {*wanted, "queued", "running", "pending_input"}, task["outcome"]
            return task if task["status"] in wanted else None

        return until(look, f"{task_id} {wanted}", lambda: json.dumps(self.task(task_id), indent=1))

    def until_event(self, task_id: str, kind: str, name: str, **data: Any) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            for event in self.events(task_id):
                if (event["type"], event["name"]) == (kind, name) and data.items() <= event["data"].items():
                    return event
            return None

        return until(look, f"{kind} {name}", lambda: json.dumps(self.events(task_id), indent=1))

    def in_flower(self, task_id: str) -> dict[str, dict[str, Any]]:
        """What Flower's search finds by this id, by number of step."""
        answer = self.flower.get("/api/tasks", params={"search": task_id})
        assert answer.status_code == 200, answer.text
        return {key.rpartition(".")[2]: each for key, each in answer.json().items()}

    def until_flower(self, task_id: str, states: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The same, once the states are these."""

        def look() -> dict[str, dict[str, Any]] | None:
            seen = self.in_flower(task_id)
            return seen if {key: each["state"] for key, each in seen.items()} == states else None

        return until(look, f"{task_id} in Flower as {states}", lambda: self.in_flower(task_id))

    def commits(self, task: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
        """Of the branch, newest first: sha, parents and Step trailer of each commit since its base."""
        [mirror] = [
            found
            for found in (self.data / "mirrors").glob("*.git")
            if task["branch"] in git(found, "for-each-ref", "--format=%(refname:short)").split()
        ]
        told = "--format=%H|%P|%(trailers:key=Step,valueonly,separator=%x2C)"
        lines = git(mirror, "log", told, f"{task['base_commit']}..{task['branch']}").splitlines()
        return [(sha, parents.split(), step) for sha, parents, step in (line.split("|") for line in lines)]

    def environment(self) -> dict[str, str]:
        """What a producer's program needs to reach this stack."""
        current = roster.read(self.data)
        assert current is not None
        postgres, redis = (current.ports[name] for name in ("postgres", "redis"))
        login = f"orchestrator:{self.secrets['postgres_password']}"
        return {
            "ORCHESTRATOR_DATABASE_URL": f"postgresql://{login}@127.0.0.1:{postgres}/orchestrator",
            "ORCHESTRATOR_BROKER_URL": f"redis://:{self.secrets['redis_password']}@127.0.0.1:{redis}/0",
            "ORCHESTRATOR_MESSAGE_SECRET": self.secrets["message_secret"],
            "PATH": os.environ["PATH"],
        }

    def service(self, name: str) -> control.Listed:
        [found] = [row for row in control.ps(self.data) if row.name == name]
        return found


def recorded(name: str, folder: Path) -> dict[str, Any]:
    """The request of a bundled recording, on a new repository of its sample."""
    plan = json.loads((_DATA / "recordings" / name / "plan.json").read_text())
    sample = _DATA / "samples" / plan["sample"]
    files = {
        str(path.relative_to(sample)): path.read_text()
        for path in sorted(sample.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    return {
        "description": plan["description"],
        "repository": {"path": str(repository(folder, files))},
        "agent": {"type": "replay"},
        "steps": plan["steps"],
    }


@contextmanager
def up(folder: Path, *words: str, **settings: str) -> Iterator[tuple[Program, Doors]]:
    """A running stack. `settings` are ORCHESTRATOR_… without that prefix."""
    environment = {f"ORCHESTRATOR_{name.upper()}": value for name, value in settings.items()}
    program = Program(("up", *words), folder, environment)
    try:
        program.until_said(READY)
        doors = Doors(program.data)
        try:
            yield program, doors
        finally:
            doors.close()
    finally:
        program.stop()
